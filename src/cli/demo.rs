//! `lamplighter demo`: the whole way of a message, on a data folder of its own.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::args::DemoArgs;
use super::error::{CommandError, code};
use crate::host::folder::DataFolder;
use crate::journal::record::decode_record;
use crate::journal::segment::{self, SegmentReader};
use crate::machine::input::{Exit, Input};
use crate::replay::{self, Subject};

/// The demo's configuration: an agent that echoes, and that crashes once in the middle of a turn.
const CONFIG: &str = r#"
[log]
level = "warning"

[agent]
name = "Lamp"
mock = { rules = [
    { pattern = "crash", crash = 3, once = true },
    { pattern = "crash", reply = "I crashed in the middle of this, was started again, and here is your answer." },
    { pattern = "capital of France", reply = "Paris." },
] }

[policy]
claim_backoff = "300ms"
start_backoff = "100ms"
"#;

/// What is said, and where.
const TURNS: [(&str, &str); 4] = [
    ("kitchen", "hello"),
    ("office", "what is the capital of France?"),
    ("kitchen", "please crash while you read this"),
    ("office", "thank you"),
];

/// Runs the demo.
///
/// # Errors
/// When any step does not come out as it should.
pub fn demo(args: &DemoArgs) -> Result<(), CommandError> {
    let scratch = Scratch::new(args.keep)?;
    std::fs::write(scratch.0.join(crate::host::config::FILE), CONFIG)?;
    let own = std::env::current_exe()?;
    let mut daemon = Daemon::start(&own, &scratch.0)?;
    let out = &mut io::stdout();
    for (chat, text) in TURNS {
        writeln!(out, "[{chat}] you:  {text}")?;
        let said = Command::new(&own)
            .args(["chat", "--chat", chat, "--timeout", "60", text])
            .arg("--data")
            .arg(&scratch.0)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()?;
        for line in String::from_utf8_lossy(&said.stdout).lines() {
            writeln!(out, "[{chat}] Lamp: {line}")?;
        }
        if !said.status.success() {
            return Err(CommandError::new(
                code::FAILURE,
                "a turn of the demo failed",
                "its reason stands above",
            ));
        }
    }
    daemon.stop()?;
    let folder = DataFolder::open(&scratch.0)?;
    let message = the_one_that_crashed(&folder.journal())?;
    writeln!(out, "\nThe way of the message that the crash did not lose:")?;
    for line in replay::why(&folder.journal(), &Subject::Id(message))?.lines {
        writeln!(out, "  {line}")?;
    }
    if args.keep {
        writeln!(out, "\nThe data folder is kept: {}", scratch.0.display())?;
    }
    let report = replay::verify(&folder.journal())?;
    writeln!(out, "\n{report}")?;
    if report.is_clean() { Ok(()) } else { Err(CommandError::silent(code::FAILURE)) }
}

/// The message that was being worked on when a container crashed.
fn the_one_that_crashed(journal: &Path) -> Result<String, CommandError> {
    let mut arrivals = Vec::new();
    for (_, path) in segment::list(journal)? {
        let mut reader =
            SegmentReader::open(&path).map_err(|error| CommandError::new(code::IO, &error, error.hint()))?;
        let schema = reader.header().record_schema;
        while let Ok(Some(frame)) = reader.next_frame() {
            let Ok(record) = decode_record(schema, frame.body) else { continue };
            match record.input {
                Input::MessageArrived(arrival) => arrivals.push(arrival.message_id),
                Input::ContainerExited { exit: Exit::Code(3), .. } => {
                    // Turns are taken one after the other, so the newest arrival is the one.
                    return arrivals
                        .pop()
                        .ok_or_else(|| CommandError::new(code::FAILURE, "nothing arrived", ""));
                }
                _ => {}
            }
        }
    }
    Err(CommandError::new(code::FAILURE, "the crash of the demo is not on record", ""))
}

/// A data folder that is removed at the end.
struct Scratch(PathBuf, bool);

impl Scratch {
    fn new(keep: bool) -> io::Result<Self> {
        let id = super::chat::new_id()?;
        let path = std::env::temp_dir().join(format!("lamplighter-demo-{id}"));
        std::fs::create_dir(&path)?;
        Ok(Self(path, keep))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.1 {
            // What cannot be removed lies in the folder for temporary files.
            drop(std::fs::remove_dir_all(&self.0));
        }
    }
}

/// The demo's daemon.
struct Daemon(Child);

impl Daemon {
    fn start(own: &Path, data: &Path) -> Result<Self, CommandError> {
        let mut child = Command::new(own)
            .args(["run", "--runtime", "process"])
            .arg("--data")
            .arg(data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        // The chat socket is the last thing that a start makes; a start takes milliseconds.
        let socket = data.join("run/chat.sock");
        for _ in 0..1_000 {
            if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
                return Ok(Self(child));
            }
            if let Some(status) = child.try_wait()? {
                let text = format!("the demo's daemon ended at once ({status})");
                return Err(CommandError::new(code::FAILURE, text, "its reason stands above"));
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        drop(Self(child));
        Err(CommandError::new(code::FAILURE, "the demo's daemon did not start", ""))
    }

    fn stop(&mut self) -> Result<(), CommandError> {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).map_err(io::Error::from)?;
        }
        let status = self.0.wait()?;
        if status.success() {
            return Ok(());
        }
        Err(CommandError::new(code::FAILURE, format!("the demo's daemon ended with {status}"), ""))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has ended already, unless something else failed.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
