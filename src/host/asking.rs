//! Asks the runner whether it takes what is configured for the agent, before anybody waits for an answer: only it knows
//! its providers and their settings.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::agent;
use super::config::AgentConfig;

/// How long it may take: it reads a few KiB and ends.
const LIMIT: Duration = Duration::from_secs(5);
/// Bytes of its answer that are read.
const ANSWER_MAX: u64 = 16 << 10;
/// The exit code of a runner that cannot use `container.json` (docs/RUNNER.md).
const REFUSED: i32 = 78;

/// What the runner says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It takes it.
    Taken,
    /// It does not; every attempt would end at once.
    Refused(String),
    /// It could not be asked, or did not answer in time.
    Unknown(String),
}

/// Asks `runner` about `container.json` as it would be written for `agent`, whose folder is `folder`.
pub fn check(runner: &Path, agent: &AgentConfig, folder: &Path) -> Verdict {
    let unknown = |error: &dyn std::fmt::Display| Verdict::Unknown(format!("{}: {error}", runner.display()));
    let started = Command::new(runner)
        .arg("check")
        .env("LAMPLIGHTER_AGENT", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => return unknown(&error),
    };
    let text = agent::container_json(agent, &[].into());
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let (send, answer) = mpsc::sync_channel(1);
    // Ends with the child, or with its last descendant; by then nobody waits for it.
    let read = std::thread::Builder::new().name("ask-runner".into()).spawn(move || {
        if let Some(mut stdin) = stdin {
            // One that reads nothing says why.
            drop(stdin.write_all(text.as_bytes()));
        }
        let mut said = String::new();
        if let Some(stderr) = stderr {
            drop(stderr.take(ANSWER_MAX).read_to_string(&mut said));
        }
        drop(send.send(said));
    });
    let said = match read.map(|_| answer.recv_timeout(LIMIT)) {
        Ok(Ok(said)) => said,
        Ok(Err(_)) => {
            drop(child.kill());
            drop(child.wait());
            return unknown(&format!("no answer within {} s", LIMIT.as_secs()));
        }
        Err(error) => {
            drop(child.kill());
            drop(child.wait());
            return unknown(&error);
        }
    };
    match child.wait() {
        Ok(status) if status.success() => Verdict::Taken,
        Ok(status) if status.code() == Some(REFUSED) => {
            Verdict::Refused(said.lines().last().map(reason).unwrap_or_default())
        }
        Ok(status) => unknown(&format!("{status}: {}", said.lines().last().unwrap_or_default())),
        Err(error) => unknown(&error),
    }
}

/// The value of `reason=` in a line of the runner's log.
fn reason(line: &str) -> String {
    let Some((_, rest)) = line.split_once("reason=") else { return line.to_owned() };
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
    match values.next() {
        Some(Ok(text)) => text,
        _ => rest.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_runners_own_words_are_told_and_a_runner_that_says_nothing_is_no_refusal() {
        let folder = tempfile::tempdir().unwrap();
        let ask = |script: &str| {
            let path = folder.path().join("lamplighter-runner");
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            check(&path, &AgentConfig::default(), folder.path())
        };
        assert_eq!(ask("[ \"$1\" = check ] && grep -q '\"provider\": \"mock\"'"), Verdict::Taken);
        let said =
            ask(r#"echo 'warn x' >&2; echo 'error ended reason="a \"b\" c" hint=x code=78' >&2; exit 78"#);
        assert_eq!(said, Verdict::Refused("a \"b\" c".into()));
        assert!(matches!(ask("echo usage >&2; exit 64"), Verdict::Unknown(why) if why.contains("usage")));
        assert!(matches!(
            check(&folder.path().join("none"), &AgentConfig::default(), folder.path()),
            Verdict::Unknown(_)
        ));
    }
}
