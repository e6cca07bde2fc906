//! The runner as the first process of a container, tried in a process namespace of its own.

use std::fs;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::session::{Outcome, Session, said, until};

/// Whether this user may make a process namespace. With `LAMPLIGHTER_REQUIRE_FIRST_PROCESS=1` it must.
fn can_unshare() -> bool {
    let tried = Command::new("unshare").args(["--pid", "--fork", "true"]).output();
    let can = tried.is_ok_and(|tried| tried.status.success());
    if !can {
        let required = std::env::var("LAMPLIGHTER_REQUIRE_FIRST_PROCESS").is_ok_and(|value| value == "1");
        assert!(!required, "this user cannot make a process namespace (unshare --pid)");
        eprintln!("SKIPPED: this user cannot make a process namespace (unshare --pid)");
    }
    can
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[test]
fn it_reaps_what_others_leave_and_ends_with_the_runner() -> Outcome {
    if !can_unshare() {
        return Ok(());
    }
    let session = Session::new("[]")?;
    let mut outer = session.start_as_first_process("1.1")?;
    // The script's grandchild outlives it and belongs to the first process then.
    let script = r#"{"prompt":"p","script":"(setsid sleep 0.3 &) ; echo '{\"wakeAgent\":false}'"}"#;
    session.put(&[said("task", script)])?;
    session.inbound()?.execute("UPDATE messages_in SET kind = 'task' WHERE id = 'task'", [])?;
    session.until_acked("task", "completed")?;
    let first = until("the first process", || children(outer.id()).first().copied())?;
    let gone = || children(first).len() == 1;
    until("only the runner is left below the first process", || gone().then_some(()))?;
    session.put(&[said("a", r#"{"text":"one"}"#)])?;
    session.until_acked("a", "completed")?;
    let pid = i32::try_from(first).ok().and_then(Pid::from_raw).ok_or("no process id")?;
    kill_process(pid, Signal::TERM)?;
    assert_eq!(outer.ended()?.code(), Some(0), "{}", session.log("1.1"));
    assert!(session.log("1.1").contains("ended as asked"));
    Ok(())
}

#[test]
fn it_ends_with_the_code_of_a_runner_that_cannot_go_on() -> Outcome {
    if !can_unshare() {
        return Ok(());
    }
    let session = Session::new("[]")?;
    session.configure(r#"{"provider":"none"}"#)?;
    let mut outer = session.start_as_first_process("1.1")?;
    assert_eq!(outer.ended()?.code(), Some(78), "{}", session.log("1.1"));
    Ok(())
}
