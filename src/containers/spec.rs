//! What an attempt is started with. Pure.
//!
//! Invariant: a value of the environment never reaches `Debug`, a log or a file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::base::{Attempt, Private, SessionName, SessionNo};

/// Variables of the daemon that a child inherits; everything else must be named in the configuration.
const INHERITED: [&str; 8] =
    ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", "RUST_BACKTRACE"];

/// What an attempt is started with.
#[derive(Clone, Debug)]
pub struct StartSpec {
    /// Whose.
    pub session: SessionNo,
    /// Its name.
    pub name: SessionName,
    /// Which life of it.
    pub attempt: Attempt,
    /// The session's `out/`, also the working folder.
    pub out_dir: PathBuf,
    /// The session's `in/`.
    pub in_dir: PathBuf,
    /// The agent's folder, with its `container.json`.
    pub agent_dir: PathBuf,
    /// What providers keep from one attempt of this session to the next, where the agent's home does not outlive it.
    pub state_dir: PathBuf,
    /// What is copied into the state of a session that has none yet. Need not be there.
    pub seed_dir: PathBuf,
    /// The agent's time zone, an IANA name.
    pub timezone: String,
    /// What the configuration passes on.
    pub env: Vec<(String, Private<String>)>,
}

/// The whole environment of a child: inherited, then configured, then what the contract says, which wins.
pub fn environment(
    spec: &StartSpec,
    daemon: impl Fn(&str) -> Option<OsString>,
) -> BTreeMap<OsString, OsString> {
    let mut env = BTreeMap::new();
    for name in INHERITED {
        if let Some(value) = daemon(name) {
            env.insert(name.into(), value);
        }
    }
    for (name, value) in &spec.env {
        env.insert(name.into(), value.0.clone().into());
    }
    env.insert("TZ".into(), spec.timezone.clone().into());
    env.insert("LAMPLIGHTER_WORKSPACE".into(), spec.out_dir.clone().into());
    env.insert("LAMPLIGHTER_IN".into(), spec.in_dir.clone().into());
    env.insert("LAMPLIGHTER_AGENT".into(), spec.agent_dir.clone().into());
    env.insert("LAMPLIGHTER_ATTEMPT".into(), spec.attempt.to_string().into());
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contract_wins_over_the_configuration_and_nothing_else_is_inherited() {
        let spec = StartSpec {
            session: SessionNo(1),
            name: SessionName::new("g", "s").unwrap(),
            attempt: Attempt((2 << 32) | 5),
            out_dir: "/o".into(),
            in_dir: "/i".into(),
            agent_dir: "/a".into(),
            state_dir: "/s".into(),
            seed_dir: "/seed".into(),
            timezone: "Europe/Zurich".into(),
            env: vec![
                ("KEY".into(), Private("value".into())),
                ("LAMPLIGHTER_IN".into(), Private("/elsewhere".into())),
            ],
        };
        let env = environment(&spec, |name| (name == "PATH" || name == "SECRET").then(|| "/bin".into()));
        let expected = [
            ("KEY", "value"),
            ("LAMPLIGHTER_AGENT", "/a"),
            ("LAMPLIGHTER_ATTEMPT", "2.5"),
            ("LAMPLIGHTER_IN", "/i"),
            ("LAMPLIGHTER_WORKSPACE", "/o"),
            ("PATH", "/bin"),
            ("TZ", "Europe/Zurich"),
        ];
        let expected: BTreeMap<OsString, OsString> =
            expected.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        assert_eq!(env, expected);
        assert!(!format!("{spec:?}").contains("value"));
    }
}
