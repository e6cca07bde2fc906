//! `lamplighter status`, `session` and `message`: questions to the running daemon.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::args::{JsonFlag, MessageCommand, SessionCommand, StopArgs};
use super::error::CommandError;
use super::{replay, table};
use crate::base::printable::one_line;
use crate::host::control::{Request, call};
use crate::host::folder::DataFolder;

/// How long a daemon may take to stop that does not say so.
const STOP_MAX: Duration = Duration::from_secs(600);

fn ask(data: &Path, request: Request) -> Result<Value, CommandError> {
    Ok(call(&DataFolder::open(data)?, request)?)
}

fn print_json(value: &Value) -> Result<(), CommandError> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
    Ok(writeln!(io::stdout(), "{text}")?)
}

fn text(value: &Value, key: &str) -> String {
    match &value[key] {
        Value::Null => String::new(),
        // Much of it comes from rows, which containers write.
        Value::String(text) => one_line(text),
        other => other.to_string(),
    }
}

/// `status`
///
/// # Errors
/// When there is no daemon.
pub fn status(data: &Path, flag: JsonFlag) -> Result<(), CommandError> {
    let value = ask(data, Request::Status)?;
    if flag.json {
        return print_json(&value);
    }
    let out = &mut io::stdout().lock();
    let (slots, messages, journal, reactor) =
        (&value["slots"], &value["messages"], &value["journal"], &value["reactor"]);
    writeln!(
        out,
        "lamplighter {}, up {} s, {} runtime",
        text(&value, "build"),
        value["uptime_s"],
        text(&value, "runtime")
    )?;
    if let Some(why) = value["runtime_trouble"].as_str() {
        let since = text(&value, "runtime_away_for");
        writeln!(
            out,
            "away       {}{}",
            one_line(why),
            if since.is_empty() { since } else { format!(" (for {since})") }
        )?;
        if value["runtime_unlisted"] == true {
            writeln!(
                out,
                "           what an earlier daemon left running is not known yet; its replies are delivered"
            )?;
        }
    }
    writeln!(out, "slots      {} of {} used, {} waiting", slots["used"], slots["of"], slots["waiting"])?;
    writeln!(
        out,
        "messages   {} inbound open, {} outbound open",
        messages["inbound_open"], messages["outbound_open"]
    )?;
    writeln!(out, "journal    last record {}, durable {}", text(journal, "last"), text(journal, "synced"))?;
    writeln!(
        out,
        "watching   {} folders, {} unwatched, {} changes found without an event, {} rescans",
        reactor["watches"], reactor["unwatched"], reactor["unannounced"], reactor["rescans"]
    )?;
    if reactor["events_trusted"] == false {
        let why = match reactor["silence_learned"] == true {
            true => "changes were found and no event came",
            false => "not every change is announced here",
        };
        let late = &reactor["unannounced_late_ms"];
        writeln!(out, "           {why}: running sessions are looked at every {late} ms")?;
    }
    print_disk(out, &value["disk"])?;
    for channel in value["channels"].as_array().into_iter().flatten() {
        let up = if channel["up"] == true { "up" } else { "down" };
        writeln!(out, "channel    {} {up}", text(channel, "channel"))?;
    }
    writeln!(out)?;
    sessions_table(out, &value)?;
    for it in
        value["sessions"].as_array().into_iter().flatten().filter(|it| it["questions"].as_u64() > Some(0))
    {
        writeln!(
            out,
            "\n{}: {} waiting for an answer in {}",
            text(it, "session"),
            plural(&it["questions"]),
            text(it, "chat")
        )?;
    }
    for held in value["held_destinations"].as_array().into_iter().flatten() {
        let (chat, why, waited) = (text(held, "chat"), text(held, "why"), text(held, "for"));
        writeln!(out, "\n{chat}: {} waiting, {why} (for {waited})", held["waiting"])?;
        if !held["free_with"].is_null() {
            writeln!(out, "  {}", text(held, "free_with"))?;
        }
    }
    Ok(())
}

/// How the last attempt of a session ended, as a sentence; empty when nothing is known.
fn last_end(session: &Value) -> String {
    let last = text(session, "last_end");
    if last.is_empty() { last } else { format!("its last container {last}") }
}

fn plural(questions: &Value) -> String {
    match questions.as_u64() {
        Some(1) => "1 question".into(),
        n => format!("{} questions", n.unwrap_or(0)),
    }
}

fn print_disk(out: &mut dyn Write, disk: &Value) -> Result<(), CommandError> {
    let mib = |key: &str| disk[key].as_u64().map(|bytes| bytes >> 20);
    let free = mib("free").map_or_else(|| "free space not known".into(), |free| format!("{free} MiB free"));
    let reserve = mib("reserve").unwrap_or(0);
    if disk["low"] == true {
        writeln!(out, "disk       LOW: {free}, {reserve} MiB kept in reserve; new messages are refused")?;
        return Ok(writeln!(out, "           {}", text(disk, "free_with"))?);
    }
    Ok(writeln!(out, "disk       {free}, {reserve} MiB kept in reserve")?)
}

fn sessions_table(out: &mut dyn Write, value: &Value) -> Result<(), CommandError> {
    let sessions = value["sessions"].as_array().cloned().unwrap_or_default();
    let rows: Vec<Vec<String>> = sessions
        .iter()
        .map(|it| {
            ["number", "session", "chat", "state", "for", "queued", "claimed", "outbound"]
                .iter()
                .map(|key| text(it, key))
                .collect()
        })
        .collect();
    table::write(out, &["NO", "SESSION", "CHAT", "STATE", "FOR", "QUEUED", "CLAIMED", "OUTBOUND"], &rows)?;
    for it in sessions.iter().filter(|it| !it["stuck"].is_null()) {
        writeln!(out, "\n{}: {}", text(it, "session"), text(it, "stuck"))?;
        for line in [last_end(it), text(it, "hint"), text(it, "free_with")].iter().filter(|it| !it.is_empty())
        {
            writeln!(out, "  {line}")?;
        }
    }
    Ok(())
}

/// `stop`
///
/// # Errors
/// When there is no daemon.
pub fn stop(data: &Path, args: &StopArgs) -> Result<(), CommandError> {
    let folder = DataFolder::open(data)?;
    let request = Request::Shutdown { containers: args.containers.map(Into::into) };
    let answer = call(&folder, request)?;
    // It may be gone before it has answered everybody. It says how long it may take at most.
    let within = answer["within_ms"].as_u64().map_or(STOP_MAX, Duration::from_millis);
    Ok(folder.wait_for_lock(within)?)
}

/// `session`
///
/// # Errors
/// When there is no daemon, or it says no.
pub fn session(data: &Path, command: SessionCommand) -> Result<(), CommandError> {
    let request = match command {
        SessionCommand::Ls(flag) => {
            let value = ask(data, Request::Status)?;
            if flag.json {
                return print_json(&value["sessions"]);
            }
            return sessions_table(&mut io::stdout().lock(), &value);
        }
        SessionCommand::Show { session, json } => {
            let value = ask(data, Request::SessionShow { session })?;
            return if json.json { print_json(&value) } else { show_session(&value) };
        }
        SessionCommand::Stop { session } => Request::SessionStop { session },
        SessionCommand::Start { session } => Request::SessionStart { session },
        SessionCommand::Reset { session } => Request::SessionReset { session },
    };
    ask(data, request).map(drop)
}

fn show_session(value: &Value) -> Result<(), CommandError> {
    let out = &mut io::stdout().lock();
    for key in
        ["session", "chat", "state", "for", "attempt", "failures", "stuck", "hint", "free_with", "last_end"]
    {
        let text = text(value, key);
        if !text.is_empty() {
            writeln!(out, "{key:<10} {text}")?;
        }
    }
    for line in value["last_attempt"]["said"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        writeln!(out, "  said     {}", one_line(line))?;
    }
    for it in value["questions"].as_array().into_iter().flatten() {
        let (id, state, time) = (text(it, "id"), text(it, "state"), text(it, "time"));
        writeln!(out, "question   {id} {state}, for {time} yet")?;
    }
    for (title, key, columns) in [
        ("INBOUND", "inbound", ["number", "id", "state", "time", "tries"]),
        ("OUTBOUND", "outbound", ["number", "id", "state", "to", "tries"]),
    ] {
        let rows: Vec<Vec<String>> = value[key]
            .as_array()
            .into_iter()
            .flatten()
            .map(|it| columns.iter().map(|column| text(it, column)).collect())
            .collect();
        if !rows.is_empty() {
            writeln!(out)?;
            let mut head = columns.map(str::to_uppercase);
            head[1] = title.to_owned();
            head[0] = "NO".to_owned();
            let head: Vec<&str> = head.iter().map(String::as_str).collect();
            table::write(out, &head, &rows)?;
        }
    }
    Ok(())
}

/// `message`
///
/// # Errors
/// When there is no daemon, or it says no.
pub fn message(data: &Path, command: MessageCommand) -> Result<(), CommandError> {
    let request = match command {
        MessageCommand::Show(args) => return replay::why(data, &args),
        MessageCommand::Retry { message } => Request::MessageRetry { message },
        MessageCommand::Drop { message } => Request::MessageDrop { message },
        MessageCommand::Resend { message } => Request::MessageResend { message },
    };
    ask(data, request).map(drop)
}
