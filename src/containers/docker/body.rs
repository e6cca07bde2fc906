//! What an engine is asked to create: the fields of its interface that are used, and nothing else. Pure.
//!
//! Invariant: a value of the agent's environment never reaches `Debug`, a label or a name.
//! Invariant: whatever is not restricted here was named in the configuration.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Serialize, Serializer};

use super::settings::{Confinement, Layout, User};
use crate::base::{Attempt, Private, SessionName};
use crate::containers::StartSpec;
use crate::containers::spec;
use crate::session::layout::CONTAINER_JSON;

/// The agent's home in the container: in memory, and gone with it.
pub const HOME: &str = "/home/agent";
/// The session's `out/`.
pub const WORKSPACE: &str = "/workspace";
/// The session's `in/`.
pub const IN: &str = "/workspace/in";
/// The agent's folder.
pub const AGENT: &str = "/workspace/agent";
/// The home of NanoClaw's user (contract 19).
pub const NANOCLAW_HOME: &str = "/home/node";
/// How NanoClaw's host starts its runner (contract 21).
const NANOCLAW_START: &str = "exec bun run /app/src/index.ts";
/// Where NanoClaw's runner reads its settings (contract 18).
const NANOCLAW_SETTINGS: &str = "/workspace/agent/container.json";
/// By this name what it is configured with reaches services of this machine (contract 21).
const NANOCLAW_EXTRA_HOST: &str = "host.docker.internal:host-gateway";
/// The runner in a checkout of NanoClaw.
pub const NANOCLAW_RUNNER: &str = "container/agent-runner/src";
/// Of such a checkout: what is mounted, and where (contract 20).
const NANOCLAW_MOUNTS: [(&str, &str); 3] = [
    (NANOCLAW_RUNNER, "/app/src"),
    ("container/skills", "/app/skills"),
    ("container/CLAUDE.md", "/app/CLAUDE.md"),
];
/// What a provider keeps from one attempt to the next: a folder of the session's state, and where it looks for
/// it. Without these, no conversation would be found again after a container has ended.
pub const STATE: [(&str, &str); 2] = [("claude", "/home/agent/.claude"), ("codex", "/home/agent/.codex")];
/// Files that an engine keeps of a container's output: the one that is written and one before it.
const LOG_FILES: u32 = 2;

/// Whose a container is, by installation.
pub const LABEL_INSTALLATION: &str = "lamplighter.installation";
/// Its session's name.
pub const LABEL_SESSION: &str = "lamplighter.session";
/// Which life of the session it is.
pub const LABEL_ATTEMPT: &str = "lamplighter.attempt";
/// What runs in it: of an image that the daemon made the digest of what it put there, else the image's id.
pub const LABEL_BUILD: &str = "lamplighter.build";
/// The name of its image when it was created, for people: it is created of the image's id.
pub const LABEL_IMAGE: &str = "lamplighter.image";
/// The process that had it make a file, of a container that does only that.
pub const LABEL_PROBE: &str = "lamplighter.probe";

/// What the engine is asked to create; its own names for everything.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Body {
    image: String,
    user: String,
    #[serde(serialize_with = "in_the_clear")]
    env: Vec<Private<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd: Option<Vec<String>>,
    working_dir: &'static str,
    labels: BTreeMap<&'static str, String>,
    attach_stdin: bool,
    open_stdin: bool,
    tty: bool,
    stop_signal: &'static str,
    host_config: HostConfig,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    mounts: Vec<Mount>,
    tmpfs: BTreeMap<&'static str, String>,
    network_mode: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    extra_hosts: Vec<&'static str>,
    readonly_rootfs: bool,
    cap_drop: Vec<&'static str>,
    cap_add: Vec<String>,
    security_opt: Vec<&'static str>,
    privileged: bool,
    init: bool,
    ipc_mode: &'static str,
    pids_limit: i64,
    memory: i64,
    memory_swap: i64,
    nano_cpus: i64,
    log_config: LogConfig,
    restart_policy: RestartPolicy,
    auto_remove: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    userns_mode: Option<&'static str>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Mount {
    r#type: &'static str,
    source: String,
    target: &'static str,
    read_only: bool,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct LogConfig {
    r#type: &'static str,
    config: BTreeMap<&'static str, String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct RestartPolicy {
    name: &'static str,
}

/// To the engine alone.
fn in_the_clear<S: Serializer>(env: &[Private<String>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(env.iter().map(|it| it.0.as_str()))
}

/// What is the same for every container of a daemon.
#[derive(Clone, Debug)]
pub struct Common {
    /// The installation, as its labels have it.
    pub installation: String,
    /// What runs in the containers, as their label has it.
    pub build: String,
    /// The image's name.
    pub name: String,
    /// What containers are created of: the image's id.
    pub image: String,
    /// How it is started.
    pub layout: Layout,
    /// The agents' user in the container.
    pub user: User,
    /// How the engine is to map users, where it must be asked to.
    pub userns: Option<&'static str>,
    /// What they may do and use.
    pub confinement: Confinement,
}

impl Common {
    /// The agents' home in the container.
    pub fn home(&self) -> &'static str {
        match self.layout {
            Layout::Own => HOME,
            Layout::NanoClaw { .. } => NANOCLAW_HOME,
        }
    }
}

/// A container's name: installation, session and attempt, so that no two are alike and people can tell them.
pub fn name(installation: &str, session: &SessionName, attempt: Attempt) -> String {
    // An engine takes letters, digits and some signs; a session's name may have others.
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' };
    let short = |text: &str| text.chars().map(plain).take(64).collect::<String>();
    let installation = installation.get(..8).unwrap_or(installation);
    format!("lamplighter-{installation}-{}-{}-{attempt}", short(session.group()), short(session.session()))
}

/// The body for one attempt.
pub fn body(common: &Common, spec: &StartSpec) -> Body {
    let labels = BTreeMap::from([
        (LABEL_INSTALLATION, common.installation.clone()),
        (LABEL_SESSION, spec.name.to_string()),
        (LABEL_ATTEMPT, spec.attempt.to_string()),
        (LABEL_BUILD, common.build.clone()),
        (LABEL_IMAGE, common.name.clone()),
    ]);
    match &common.layout {
        Layout::Own => confined(common, labels, environment(spec), mounts(spec)),
        Layout::NanoClaw { checkout } => {
            let mounts = nanoclaw_mounts(spec, checkout.as_deref());
            let mut body = confined(common, labels, nanoclaw_environment(spec), mounts);
            body.run(["bash"], ["-c", NANOCLAW_START]);
            // Without a network the name leads nowhere, and an engine without a bridge cannot resolve it.
            if common.confinement.network != "none" {
                body.host_config.extra_hosts.push(NANOCLAW_EXTRA_HOST);
            }
            body
        }
    }
}

impl Body {
    /// In place of what the image says.
    fn run<const N: usize, const M: usize>(&mut self, entrypoint: [&str; N], cmd: [&str; M]) {
        self.entrypoint = Some(entrypoint.map(str::to_owned).to_vec());
        self.cmd = Some(cmd.map(str::to_owned).to_vec());
    }
}

/// A container that may do what the configuration lets it, and nothing else.
fn confined(
    common: &Common,
    labels: BTreeMap<&'static str, String>,
    env: Vec<Private<String>>,
    mounts: Vec<Mount>,
) -> Body {
    let (user, limits) = (common.user, &common.confinement);
    Body {
        entrypoint: None,
        cmd: None,
        image: common.image.clone(),
        user: format!("{}:{}", user.uid, user.gid),
        env,
        working_dir: WORKSPACE,
        labels,
        attach_stdin: false,
        open_stdin: false,
        tty: false,
        stop_signal: "SIGTERM",
        host_config: HostConfig {
            mounts,
            tmpfs: tmpfs(user, limits, common.home()),
            network_mode: limits.network.clone(),
            extra_hosts: Vec::new(),
            readonly_rootfs: limits.read_only_root,
            cap_drop: vec!["ALL"],
            cap_add: limits.add_capabilities.clone(),
            security_opt: if limits.no_new_privileges { vec!["no-new-privileges"] } else { Vec::new() },
            privileged: false,
            init: limits.init,
            ipc_mode: "private",
            pids_limit: limits.pids,
            memory: limits.memory,
            // As much as the memory: none of it is swap.
            memory_swap: limits.memory,
            nano_cpus: limits.nano_cpus,
            log_config: LogConfig {
                r#type: "json-file",
                config: BTreeMap::from([
                    ("max-file", LOG_FILES.to_string()),
                    ("max-size", (limits.log_bytes / u64::from(LOG_FILES)).to_string()),
                ]),
            },
            // Whether to start again is the daemon's decision, and it wants to know how a container ended.
            restart_policy: RestartPolicy { name: "no" },
            auto_remove: false,
            runtime: limits.oci_runtime.clone(),
            userns_mode: common.userns,
        },
    }
}

/// The name of a container that only makes a file for this process.
pub fn probe_name(installation: &str, process: u32) -> String {
    format!("lamplighter-{installation}-probe-{process}")
}

/// The body of a container that only makes a file in a folder, for this process: confined as an agent is, without its
/// files.
pub fn probe(common: &Common, folder: &Path, file: &str, process: u32) -> Body {
    let labels = BTreeMap::from([
        (LABEL_INSTALLATION, common.installation.clone()),
        (LABEL_PROBE, process.to_string()),
    ]);
    let mut body = confined(common, labels, Vec::new(), vec![mount(folder, WORKSPACE, false)]);
    let file = format!("{WORKSPACE}/{file}");
    match common.layout {
        Layout::Own => body.cmd = Some(vec!["probe".into(), file]),
        Layout::NanoClaw { .. } => body.run(["bash"], ["-c", &format!(": > {file}")]),
    }
    // It has nothing to say to anybody.
    body.host_config.network_mode = "none".into();
    body
}

fn mount(path: &Path, target: &'static str, read_only: bool) -> Mount {
    Mount { r#type: "bind", source: path.to_string_lossy().into_owned(), target, read_only }
}

fn mounts(spec: &StartSpec) -> Vec<Mount> {
    let mut mounts = vec![
        mount(&spec.out_dir, WORKSPACE, false),
        mount(&spec.in_dir, IN, true),
        mount(&spec.agent_dir, AGENT, false),
    ];
    mounts.extend(STATE.map(|(folder, target)| mount(&spec.state_dir.join(folder), target, false)));
    mounts
}

/// As NanoClaw's host mounts them. Its `/workspace` has inbound.db and inbox beside outbound.db: here these are links
/// into the host's half, which nobody in the container can write.
fn nanoclaw_mounts(spec: &StartSpec, checkout: Option<&Path>) -> Vec<Mount> {
    let mut mounts = vec![
        mount(&spec.out_dir, WORKSPACE, false),
        mount(&spec.in_dir, IN, true),
        mount(&spec.agent_dir, AGENT, false),
        mount(&spec.in_dir.join(CONTAINER_JSON), NANOCLAW_SETTINGS, true),
        mount(&spec.state_dir.join("claude"), "/home/node/.claude", false),
    ];
    let there = NANOCLAW_MOUNTS.into_iter().filter_map(|(path, target)| {
        let path = checkout?.join(path);
        path.exists().then(|| mount(&path, target, true))
    });
    mounts.extend(there);
    mounts
}

fn tmpfs(user: User, limits: &Confinement, home: &'static str) -> BTreeMap<&'static str, String> {
    // Agents run what they write and install, so programs there may be started; none gains a right by it.
    let common = format!("rw,exec,nosuid,nodev,size={}", limits.tmp_bytes);
    BTreeMap::from([
        ("/tmp", format!("{common},mode=1777")),
        (home, format!("{common},mode=0700,uid={},gid={}", user.uid, user.gid)),
    ])
}

/// Nothing of the daemon's own environment; then what the configuration names; then the contract, which wins.
/// Where to look for programs is the image's to say.
fn environment(spec: &StartSpec) -> Vec<Private<String>> {
    let mut env = spec::environment(spec, |name| (name == "HOME").then(|| HOME.into()));
    for (name, path) in
        [("LAMPLIGHTER_WORKSPACE", WORKSPACE), ("LAMPLIGHTER_IN", IN), ("LAMPLIGHTER_AGENT", AGENT)]
    {
        env.insert(name.into(), path.into());
    }
    env.into_iter()
        .map(|(name, value)| Private(format!("{}={}", name.to_string_lossy(), value.to_string_lossy())))
        .collect()
}

/// What NanoClaw's host sets (contract 19), and what the configuration names. Its runner knows the places.
fn nanoclaw_environment(spec: &StartSpec) -> Vec<Private<String>> {
    let mut env: BTreeMap<&str, &str> = BTreeMap::from([("HOME", NANOCLAW_HOME)]);
    env.extend(spec.env.iter().map(|(name, value)| (name.as_str(), value.0.as_str())));
    env.insert("TZ", &spec.timezone);
    env.into_iter().map(|(name, value)| Private(format!("{name}={value}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::SessionNo;

    pub(super) fn spec() -> StartSpec {
        StartSpec {
            session: SessionNo(1),
            name: SessionName::new("agent", "sess-1-abc").unwrap(),
            attempt: Attempt((2 << 32) | 5),
            out_dir: "/data/sessions/agent/sess-1-abc/out".into(),
            in_dir: "/data/sessions/agent/sess-1-abc/in".into(),
            agent_dir: "/data/groups/agent".into(),
            state_dir: "/data/state/agent/sess-1-abc".into(),
            seed_dir: "/data/state/agent/seed".into(),
            timezone: "Europe/Zurich".into(),
            env: vec![("KEY".into(), Private("secret".into()))],
        }
    }

    fn common(confinement: Confinement) -> Common {
        Common {
            installation: "00112233aabbccdd".into(),
            build: "lamplighter-runner@4567".into(),
            name: "lamplighter-runner:0123".into(),
            image: "sha256:89ab".into(),
            layout: Layout::Own,
            user: User { uid: 10_001, gid: 10_001 },
            userns: None,
            confinement,
        }
    }

    fn compare(body: &Body, name: &str) {
        assert!(!format!("{body:?}").contains("secret"));
        let shown = serde_json::to_string_pretty(body).unwrap() + "\n";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/docker").join(name);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &shown).unwrap();
        }
        let reviewed = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(shown, reviewed, "UPDATE=1 rewrites {}; review what is relaxed", path.display());
    }

    #[test]
    fn the_bodies_are_as_they_were_reviewed() {
        let mut common = common(Confinement::default());
        compare(&body(&common, &spec()), "create-body.json");
        common.name = "nanoclaw-agent-v2-01234567:latest".into();
        common.build = common.image.clone();
        common.layout = Layout::NanoClaw { checkout: None };
        compare(&body(&common, &spec()), "create-body-nanoclaw.json");
        common.confinement.network = "none".into();
        assert!(body(&common, &spec()).host_config.extra_hosts.is_empty());
    }

    #[test]
    fn of_a_checkout_of_nanoclaw_that_is_mounted_which_is_there() {
        let checkout = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(checkout.path().join("container/agent-runner/src")).unwrap();
        std::fs::write(checkout.path().join("container/CLAUDE.md"), "").unwrap();
        let mounts = nanoclaw_mounts(&spec(), Some(checkout.path()));
        let read_only: Vec<&str> = mounts.iter().filter(|it| it.read_only).map(|it| it.target).collect();
        assert_eq!(read_only, [IN, NANOCLAW_SETTINGS, "/app/src", "/app/CLAUDE.md"]);
    }

    #[test]
    fn the_agents_environment_cannot_move_the_contracts_paths() {
        let mut spec = spec();
        spec.env = vec![
            ("LAMPLIGHTER_IN".into(), Private("/elsewhere".into())),
            ("HOME".into(), Private("/workspace/home".into())),
        ];
        let env: Vec<String> = environment(&spec).into_iter().map(|it| it.0).collect();
        assert!(env.contains(&"LAMPLIGHTER_IN=/workspace/in".to_owned()), "{env:?}");
        assert!(env.contains(&"HOME=/workspace/home".to_owned()), "{env:?}");
        assert!(env.contains(&"LAMPLIGHTER_ATTEMPT=2.5".to_owned()), "{env:?}");
        assert!(!env.iter().any(|it| it.starts_with("USER=")), "{env:?}");
    }

    #[test]
    fn names_are_ones_that_an_engine_takes() {
        let session = SessionName::new("grüppe 1", "sess-1-abc").unwrap();
        assert_eq!(
            name("00112233aabbccdd", &session, Attempt((2 << 32) | 5)),
            "lamplighter-00112233-gr_ppe_1-sess-1-abc-2.5"
        );
    }
}
