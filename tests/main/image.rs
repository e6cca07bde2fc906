//! The agents' image: its `bun`, and `container/build.sh` with its Dockerfile on a base that takes no network and no
//! time to make. That base has this machine's shell and a few of its tools; what manages packages and users in it only
//! notes what it was asked for. `scripts/test-image` builds on a real Debian.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::docker_engine::{Engine, Image, engine, not_done};
use crate::support::text;

/// A program of one's own in a folder.
fn script(path: &Path, lines: &str) {
    fs::write(path, format!("#!/bin/sh\n{lines}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What NanoClaw's host and its agents start in the image (contract 21 and 24(b)), the exit code, and what the runner
/// is given, or else what is said.
const STARTS: [(&str, i32, &str); 7] = [
    ("exec bun run /app/src/index.ts", 0, "--workspace /workspace"),
    ("exec bun run /app/src/mcp-tools/index.ts", 0, "mcp --workspace /workspace"),
    ("exec bun /app/src/compact-instructions.ts", 0, "precompact --workspace /workspace"),
    ("exec bun run /app/src/index.ts --record 'a file'", 0, "--workspace /workspace --record a file"),
    ("exec bun run /app/src/cli/ncl.ts groups list", 69, "no ncl"),
    ("exec bun /app/src/none.ts", 127, "'/app/src/none.ts' is none of the scripts"),
    ("exec bun", 127, "no JavaScript"),
];

#[test]
fn each_of_nanoclaws_starts_leads_to_the_runner_or_says_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let launcher = fs::read_to_string(root().join("container/bun")).unwrap();
    let place = "runner=/usr/local/bin/lamplighter-runner\n";
    assert_eq!(launcher.matches(place).count(), 1, "where the image has the runner");
    let stub = format!("runner='{}'\n", at("stub").display());
    fs::write(at("bun"), launcher.replace(place, &stub)).unwrap();
    fs::set_permissions(at("bun"), fs::Permissions::from_mode(0o755)).unwrap();
    script(&at("stub"), "echo \"$$: $*\"");
    let path = std::env::join_paths([folder.path(), "/usr/bin".as_ref(), "/bin".as_ref()]).unwrap();
    for (start, code, expected) in STARTS {
        let mut bash = Command::new("bash");
        bash.args(["-c", start]).env("PATH", &path).stdin(Stdio::null());
        let child = bash.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        let (said, complained) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{start}: {said}{complained}");
        if code == 0 {
            // In the place of what was started: it is a first process, and hears signals.
            assert_eq!(said, format!("{pid}: {expected}\n"), "{start}");
        } else {
            assert!(complained.contains(expected) && said.is_empty(), "{start}: {said}{complained}");
        }
    }
}

/// This machine's programs that the Dockerfile and a shell need.
const TOOLS: [&str; 14] =
    ["bash", "cat", "chmod", "chown", "cp", "find", "grep", "head", "id", "ln", "mkdir", "rm", "sh", "stat"];

/// The files of the tools and of what they link, by their places.
fn tools() -> Option<Vec<PathBuf>> {
    let mut all = BTreeSet::new();
    for tool in TOOLS {
        let Some(program) = ["/usr/bin", "/bin"]
            .map(|folder| Path::new(folder).join(tool))
            .into_iter()
            .find(|it| it.is_file())
        else {
            not_done(&format!("this machine has no {tool} in /usr/bin and /bin"));
            return None;
        };
        let linked = Command::new("ldd").arg(&program).output().unwrap();
        // `name => place (address)`, or the place alone.
        let places = text(&linked.stdout);
        all.extend(places.split_whitespace().filter(|it| it.starts_with('/')).map(PathBuf::from));
        all.insert(program);
    }
    Some(all.into_iter().collect())
}

/// A base on which all but ripgrep is installed.
fn base<'a>(engine: &'a Engine, folder: &Path) -> Option<Image<'a>> {
    let at = |name: &str| folder.join(name);
    script(&at("dpkg-query"), "case $3 in ripgrep) exit 1 ;; *) echo 'install ok installed' ;; esac");
    script(&at("apt-get"), "echo \"$*\" >>/asked");
    script(
        &at("useradd"),
        "echo \"$*\" >>/asked; mkdir /home/node; echo node:x:1000:1000::/home/node:/bin/bash >>/etc/passwd",
    );
    fs::write(at("passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    let tools = tools()?;
    let mut files: Vec<(&str, &Path, u32)> =
        tools.iter().map(|it| (it.to_str().unwrap().trim_start_matches('/'), it.as_path(), 0o755)).collect();
    // Where a script has its interpreter, whether or not the folders are one.
    files.push(("bin/sh", Path::new("/bin/sh"), 0o755));
    let own = ["dpkg-query", "apt-get", "useradd"].map(|name| (format!("usr/local/bin/{name}"), at(name)));
    files.extend(own.iter().map(|(place, file)| (place.as_str(), file.as_path(), 0o755)));
    let passwd = at("passwd");
    files.push(("etc/passwd", &passwd, 0o644));
    Some(engine.import(&files, &["ENV PATH=/usr/local/bin:/usr/bin:/bin"]))
}

/// A registry that is ended with the test, and its address.
struct Registry(Child, String);

impl Registry {
    fn start(words: &[&str]) -> Self {
        let program = root().join("tests/main/registry.py");
        let mut child =
            Command::new("python3").arg(program).args(words).stdout(Stdio::piped()).spawn().unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self(child, address.trim().to_owned())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A checkout with what building needs, and no settings of whoever runs the tests.
struct Checkout(tempfile::TempDir);

impl Checkout {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "container/Dockerfile",
            "container/build.sh",
            "container/bun",
            "container/fetch.py",
            "scripts/lib.sh",
        ] {
            let place = folder.path().join(name);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::copy(root().join(name), place).unwrap();
        }
        Self(folder)
    }

    fn configure(&self, registry: &Registry) {
        let env = format!("CLAUDE_CODE_VERSION=1.2.3\nCODEX_VERSION=1.2.3\nNPM_REGISTRY={}\n", registry.1);
        fs::write(self.0.path().join("container/.env"), env).unwrap();
    }

    /// Builds with a runner that says what it is given, and is of this version.
    fn build(&self, base: &str, tag: &str, version: &str) -> Output {
        let runner = self.0.path().join("runner");
        script(
            &runner,
            &format!("[ \"$*\" = --version ] && echo lamplighter-runner {version} || echo \"$$: $*\""),
        );
        let mut build = Command::new(self.0.path().join("container/build.sh"));
        build.args(["--base", base, "--tag", tag, "--runner"]).arg(runner);
        build.stdin(Stdio::null()).output().unwrap()
    }

    fn must_build(&self, base: &str, tag: &str, version: &str) {
        let built = self.build(base, tag, version);
        assert!(built.status.success(), "{}{}", text(&built.stdout), text(&built.stderr));
    }
}

/// Runs something in an image as an agent is run.
fn run(words: &[&str]) -> Output {
    let mut run = Command::new("docker");
    run.args(["run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--user=10001:10001"]);
    run.args(words);
    run.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn the_agents_image_is_built_on_a_local_base_without_a_network() {
    let Some(engine) = engine() else { return };
    if !Command::new("docker").arg("version").output().is_ok_and(|it| it.status.success()) {
        return not_done("the docker command is missing or finds no engine");
    }
    let stubs = tempfile::tempdir().unwrap();
    let Some(base) = base(&engine, stubs.path()) else { return };
    let checkout = Checkout::new();
    let [first, second] = ["first", "second"].map(|name| engine.named(&format!("{}-{name}", base.name)));
    let wrong = Registry::start(&["wrong"]);
    checkout.configure(&wrong);
    let refused = checkout.build(&base.name, &first.name, "9.8.7");
    assert!(
        !refused.status.success() && text(&refused.stderr).contains("is not what"),
        "{}",
        text(&refused.stderr)
    );
    drop(wrong);
    let registry = Registry::start(&[]);
    checkout.configure(&registry);
    checkout.must_build(&base.name, &first.name, "9.8.7");
    // What was fetched is kept.
    drop(registry);

    let about = |image: &Image<'_>| engine.json(&format!("/images/{}/json", image.name));
    let layers = |of: &Value| of["RootFS"]["Layers"].as_array().unwrap().clone();
    let made = about(&first);
    assert_eq!(made["Config"]["User"], "node");
    assert_eq!(made["Config"]["WorkingDir"], "/workspace");
    assert_eq!(made["Config"]["Entrypoint"], json!(["/usr/local/bin/lamplighter-runner"]));
    assert_eq!(made["Config"]["Labels"]["org.opencontainers.image.version"], "9.8.7");
    let before = layers(&made);

    let look =
        "cat /asked; id -u node; stat -c '%n %a %U' /tmp /workspace /home/agent /home/node; claude; codex";
    let seen = run(&["--entrypoint=bash", &first.name, "-euc", look]);
    let found = "update --quiet=2\ninstall --quiet=2 --yes --no-install-recommends ripgrep\n\
                 --uid 1000 --create-home --shell /bin/bash node\n1000\n\
                 /tmp 1777 root\n/workspace 755 node\n/home/agent 1777 root\n/home/node 777 root\n\
                 claude of the test 1.2.3\ncodex of the test 1.2.3\n";
    assert_eq!(text(&seen.stdout), found, "{}", text(&seen.stderr));
    // As the engine starts it, and as NanoClaw's host does: the runner is the first process.
    let started = run(&[&first.name, "any", "words"]);
    assert_eq!(text(&started.stdout), "1: any words\n", "{}", text(&started.stderr));
    for (start, _, expected) in STARTS.iter().filter(|(_, code, _)| *code == 0) {
        let started = run(&["--entrypoint=bash", &first.name, "-c", start]);
        assert_eq!(text(&started.stdout), format!("1: {expected}\n"), "{start}: {started:?}");
    }

    // Another build of the runner is one layer, the last.
    checkout.must_build(&base.name, &second.name, "9.8.8");
    let made = about(&second);
    let after = layers(&made);
    assert_eq!(made["Config"]["Labels"]["org.opencontainers.image.version"], "9.8.8");
    let (last, rest) = after.split_last().unwrap();
    assert_eq!((rest, after.len()), (&before[..before.len() - 1], before.len()));
    assert_ne!(last, before.last().unwrap());
}
