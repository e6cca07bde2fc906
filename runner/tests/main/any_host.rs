//! Any host that writes the contract's tables can drive the runner: here, a Python program of a few lines.

use std::process::Command;

use crate::session::Outcome;

const HOST: &str = include_str!("any_host.py");

#[test]
fn a_python_program_is_host_enough() -> Outcome {
    let folder = tempfile::tempdir()?;
    let done = Command::new("python3")
        .args(["-c", HOST, env!("CARGO_BIN_EXE_lamplighter-runner")])
        .arg(folder.path())
        .env_remove("LAMPLIGHTER_WORKSPACE")
        .output()?;
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}{err}");
    assert_eq!(out, "3 {\"text\":\"echo: hello\"}\n5 {\"text\":\"echo: again\"}\n", "{err}");
    Ok(())
}
