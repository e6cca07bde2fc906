use std::sync::mpsc::{self, Receiver};

use super::*;
use crate::base::{Private, SessionName};

/// A bound for waiting on a process that a loaded machine may start slowly; reaching it is a failure.
const LIMIT: Duration = Duration::from_secs(30);

struct Fixture {
    folder: tempfile::TempDir,
    runtime: Processes,
    events: Receiver<ContainerEvent>,
}

fn fixture(script: &str) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    for name in ["locks", "out", "in", "agent"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    let (send, events) = mpsc::channel();
    let send = Mutex::new(send);
    let command = ["sh", "-c", script].map(Into::into).to_vec();
    let sink: Sink = Arc::new(move |event| drop(lock(&send).send(event)));
    let runtime = Processes::start(Launch::of(command), folder.path().join("locks"), sink).unwrap();
    Fixture { folder, runtime, events }
}

impl Fixture {
    fn start(&self, attempt: u64) {
        let path = |name: &str| self.folder.path().join(name);
        self.runtime.start(StartSpec {
            session: SessionNo(1),
            name: SessionName::new("g", "s").unwrap(),
            attempt: Attempt(attempt),
            out_dir: path("out"),
            in_dir: path("in"),
            agent_dir: path("agent"),
            state_dir: path("state"),
            seed_dir: path("seed"),
            timezone: "UTC".into(),
            env: vec![("EXTRA".into(), Private("yes".into()))],
        });
    }

    fn next(&self) -> ContainerEvent {
        self.events.recv_timeout(LIMIT).expect("no event in time")
    }

    fn line(&self) -> String {
        match self.next() {
            ContainerEvent::Output { line, .. } => line,
            other => panic!("expected output, got {other:?}"),
        }
    }

    fn exit(&self) -> Exit {
        loop {
            match self.next() {
                ContainerEvent::Exited { exit, .. } => return exit,
                ContainerEvent::Output { .. } | ContainerEvent::Started { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn started(&self) {
        assert!(matches!(self.next(), ContainerEvent::Started { .. }));
    }
}

#[test]
fn a_child_gets_its_folders_and_its_output_and_exit_are_reported() {
    let it = fixture("pwd; echo $LAMPLIGHTER_IN $LAMPLIGHTER_ATTEMPT $EXTRA $TZ >&2; exit 7");
    it.start(5);
    it.started();
    let mut lines = [it.line(), it.line()];
    lines.sort();
    let out = std::fs::canonicalize(it.folder.path().join("out")).unwrap();
    let expected_in = it.folder.path().join("in");
    let mut expected = [out.display().to_string(), format!("{} 0.5 yes UTC", expected_in.display())];
    expected.sort();
    assert_eq!(lines, expected);
    assert_eq!(it.exit(), Exit::Code(7));
    assert_eq!(it.runtime.is_alive(SessionNo(1), Attempt(5)), Some(false));
}

#[test]
fn a_child_is_asked_to_stop_first() {
    let it = fixture("trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    it.start(1);
    it.started();
    assert_eq!(it.line(), "ready");
    it.runtime.stop(SessionNo(1), Attempt(1), Ms::secs(60));
    assert_eq!(it.exit(), Exit::Code(3));
}

#[test]
fn a_child_that_does_not_stop_is_killed_with_its_group() {
    let it = fixture("trap '' TERM; (trap '' TERM; sleep 1000) & echo ready; while :; do sleep 0.05; done");
    it.start(1);
    it.started();
    assert_eq!(it.line(), "ready");
    it.runtime.stop(SessionNo(1), Attempt(1), Ms(100));
    assert_eq!(it.exit(), Exit::Signal(9));
    assert_eq!(it.runtime.list().unwrap(), Stock::Known(Vec::new()));
}

#[test]
fn a_grandchild_that_left_the_group_is_ended_before_the_exit_is_reported() {
    let it = fixture("setsid sleep 1000 & echo $!; exit 0");
    it.start(1);
    it.started();
    let _pid = it.line();
    assert_eq!(it.exit(), Exit::Code(0));
    let path = leftover::lock_path(&it.folder.path().join("locks"), &SessionName::new("g", "s").unwrap());
    assert!(leftover::try_take(&path).unwrap().is_some());
}

#[test]
fn what_an_earlier_daemon_left_is_found_and_ended_before_a_new_attempt() {
    let it = fixture("echo new; exit 0");
    let name = SessionName::new("g", "s").unwrap();
    let path = leftover::lock_path(&it.folder.path().join("locks"), &name);
    let file = leftover::try_take(&path).unwrap().unwrap();
    leftover::sign(&file, &name, Attempt(77)).unwrap();
    let mut old = Command::new("sleep").arg("1000").stdin(Stdio::from(file)).spawn().unwrap();
    let found = vec![Found { name, attempt: Some(Attempt(77)) }];
    assert_eq!(it.runtime.list().unwrap(), Stock::Known(found));
    // Its parent is this test, so somebody must reap it while the runtime waits for the lock.
    let reaper = std::thread::spawn(move || old.wait().unwrap());
    it.start(78);
    it.started();
    assert_eq!(reaper.join().unwrap().signal(), Some(15));
    assert_eq!(it.exit(), Exit::Code(0));
}

#[test]
fn a_program_that_is_not_there_is_named_also_behind_another() {
    for through in [Vec::new(), vec!["env".into()]] {
        let it = fixture("");
        let launch = Launch { through, command: vec!["no-such-program-anywhere".into()] };
        let sink = Arc::clone(&it.runtime.inner.sink);
        let runtime = Processes::start(launch, it.folder.path().join("locks"), sink).unwrap();
        let other = Fixture { runtime, ..it };
        other.start(1);
        match other.next() {
            ContainerEvent::StartFailed { reason, .. } => {
                assert!(
                    reason.contains("\"no-such-program-anywhere\"") && reason.contains("command"),
                    "{reason}"
                );
            }
            event => panic!("{event:?}"),
        }
    }
}

#[test]
fn a_child_is_told_whose_child_it_is() {
    let it = fixture("echo $LAMPLIGHTER_PARENT $PPID");
    it.start(1);
    it.started();
    let own = std::process::id();
    assert_eq!(it.line(), format!("{own} {own}"));
}

#[test]
fn an_attempt_that_nobody_expects_is_ended_before_discard_returns() {
    let it = fixture("exit 0");
    let name = SessionName::new("g", "s").unwrap();
    let path = leftover::lock_path(&it.folder.path().join("locks"), &name);
    let file = leftover::try_take(&path).unwrap().unwrap();
    leftover::sign(&file, &name, Attempt(77)).unwrap();
    let mut old = Command::new("sleep").arg("1000").stdin(Stdio::from(file)).spawn().unwrap();
    let reaper = std::thread::spawn(move || old.wait().unwrap());
    it.runtime.discard(&name, Attempt(77)).unwrap();
    assert_eq!(reaper.join().unwrap().signal(), Some(15));
    assert_eq!(it.runtime.list().unwrap(), Stock::Known(Vec::new()));
    std::fs::remove_dir_all(it.folder.path().join("locks")).unwrap();
    assert!(it.runtime.discard(&name, Attempt(77)).is_err());
}

#[test]
fn an_exit_is_reported_only_once_the_lock_could_be_taken() {
    let it = fixture("exit 0");
    let (send, tries) = mpsc::channel();
    let inner = Arc::clone(&it.runtime.inner);
    let (go_on, goes) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        inner.until_nothing_is_left(SessionNo(1), Attempt(1), Duration::from_millis(1), || {
            send.send(()).unwrap();
            if goes.try_recv().is_ok() { Ok(()) } else { Err(io::Error::other("it stays held")) }
        });
    });
    for _ in 0..3 {
        tries.recv_timeout(LIMIT).unwrap();
    }
    assert!(!thread.is_finished());
    match it.next() {
        ContainerEvent::Notice { text, .. } => assert!(text.contains("it stays held"), "{text}"),
        event => panic!("{event:?}"),
    }
    go_on.send(()).unwrap();
    thread.join().unwrap();
    assert!(it.events.try_recv().is_err(), "it is told once");
}

#[test]
fn a_child_that_never_stops_writing_is_still_asked_to_stop() {
    let it = fixture("trap 'exit 3' TERM; yes x & while :; do echo a line of many; done");
    it.start(1);
    it.started();
    // Lines are dropped by now, and it is told.
    while !it.line().contains("lines were dropped") {}
    it.runtime.stop(SessionNo(1), Attempt(1), Ms::secs(60));
    assert_eq!(it.exit(), Exit::Code(3));
}

#[test]
fn a_second_attempt_is_refused_while_the_first_runs() {
    let it = fixture("sleep 1000");
    it.start(1);
    it.started();
    it.start(2);
    assert!(matches!(it.next(), ContainerEvent::StartFailed { attempt: Attempt(2), .. }));
    it.runtime.shutdown(Ms::secs(10));
    assert_eq!(it.exit(), Exit::Signal(15));
}

#[test]
fn long_lines_and_floods_are_bounded() {
    let it = fixture("head -c 100000 /dev/zero | tr '\\0' x; echo; seq 1 5000; exit 0");
    it.start(1);
    it.started();
    let (mut lines, mut longest) = (0u32, 0);
    loop {
        match it.next() {
            ContainerEvent::Output { line, .. } => {
                lines += 1;
                longest = longest.max(line.len());
            }
            ContainerEvent::Exited { .. } => break,
            event => panic!("{event:?}"),
        }
    }
    assert_eq!(longest, LINE_MAX);
    assert!(lines < 2_000, "{lines} lines were passed on");
}

#[test]
fn stopping_what_is_not_there_is_answered() {
    let it = fixture("exit 0");
    it.runtime.stop(SessionNo(9), Attempt(3), Ms(10));
    let expected = ContainerEvent::Exited { session: SessionNo(9), attempt: Attempt(3), exit: Exit::Unknown };
    assert_eq!(it.next(), expected);
}

#[test]
fn a_stop_before_the_child_is_spawned_leaves_none() {
    let it = fixture("echo ran; exit 0");
    let name = SessionName::new("g", "s").unwrap();
    let path = leftover::lock_path(&it.folder.path().join("locks"), &name);
    // Held by this test, so the start waits for it.
    let held = leftover::try_take(&path).unwrap().unwrap();
    it.start(1);
    it.runtime.stop(SessionNo(1), Attempt(1), Ms::secs(60));
    drop(held);
    match it.next() {
        ContainerEvent::StartFailed { attempt: Attempt(1), reason, .. } => {
            assert!(reason.contains("asked to stop"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(it.runtime.is_alive(SessionNo(1), Attempt(1)), Some(false));
    it.start(2);
    it.started();
    assert_eq!(it.line(), "ran");
    assert_eq!(it.exit(), Exit::Code(0));
}
