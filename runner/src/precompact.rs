//! What happens before Claude Code makes its conversation shorter (`lamplighter-runner precompact`, its PreCompact
//! hook): the conversation is put into the agent's folder, and the summary is told what it must not lose.
//!
//! Invariant: never stops the compaction. What cannot be done is a line on stderr.
//! Invariant: reads a regular file of bounded size and writes below the agent's folder, neither through a link.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use lamplighter::base::Wall;
use lamplighter::session::runner_side::InboundReader;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use serde_json::Value;

use crate::launch::{opening_for, wall_now};
use crate::log::Log;
use crate::options::Options;
use crate::prompt;

/// The folder of conversations, in the agent's own.
const FOLDER: &str = "conversations";
/// So much of one message is kept, in characters.
const MAX_MESSAGE_CHARS: usize = 2_000;
/// Longest line of a transcript that is read; pictures make long ones, and hold no text.
const MAX_LINE: u64 = 8 * 1024 * 1024;
/// Longest archive of one conversation, in bytes.
const MAX_ARCHIVE: usize = 16 * 1024 * 1024;
/// So much of a transcript is read, in bytes: the hook has a minute, and the summary is told something only after it.
const MAX_READ: u64 = 256 * 1024 * 1024;
/// Longest input of the hook, in bytes.
const MAX_INPUT: u64 = 1024 * 1024;
/// Longest part of a file's name that is made of the conversation's first words.
const MAX_SLUG: usize = 50;

/// Reads the hook's input from standard input, archives, and prints what the summary must keep.
pub fn run(options: &Options, log: Log) {
    let mut input = String::new();
    let input = match io::stdin().take(MAX_INPUT).read_to_string(&mut input) {
        Ok(_) => serde_json::from_str(&input).unwrap_or(Value::Null),
        Err(_) => Value::Null,
    };
    if let Some(transcript) = input.get("transcript_path").and_then(Value::as_str) {
        let zone = prompt::zone(options.zone.as_deref());
        match archive(Path::new(transcript), &options.agent, &zone, wall_now()) {
            Ok(Some(path)) => log.info("archived the conversation", &[("file", &path.display())]),
            Ok(None) => log.info("the conversation holds no text to archive", &[]),
            Err(error) => log.warn("cannot archive the conversation", &[("reason", &error)]),
        }
    }
    let mut reader = InboundReader::new(&options.folder, opening_for(options.folder.in_dir()));
    let names = match reader.destinations() {
        Ok(destinations) => destinations.into_iter().map(|known| known.name).collect(),
        Err(error) => {
            log.warn("cannot read the destinations", &[("reason", &error)]);
            Vec::new()
        }
    };
    let mut out = io::stdout();
    // Nobody is left to read it, at worst.
    let _ = out.write_all(reminder(&names).as_bytes()).and_then(|()| out.flush());
}

/// What a summary must keep.
fn reminder(names: &[String]) -> String {
    let names = match names.is_empty() {
        true => "none yet".to_owned(),
        false => names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", "),
    };
    format!(
        "Keep in the summary, in their order and word for word: the <message>, <task> and <webhook> elements that are \
         not dealt with yet, with their id, from, sender and time; the ids of messages that were sent; and what was \
         promised to whom.\n\
         Keep as well that only text in <message to=\"name\">…</message> blocks is sent, one block for each \
         destination, and that the tool send_message sends at once. Destinations: {names}.\n"
    )
}

/// Writes the texts of a transcript into a file of the agent's folder. Returns its path; `None` without any text.
fn archive(transcript: &Path, agent: &Path, zone: &TimeZone, now: Wall) -> io::Result<Option<PathBuf>> {
    let mut reader = BufReader::new(regular(transcript)?.take(MAX_READ));
    let mut text = String::new();
    let mut first = None;
    loop {
        let mut line = Vec::new();
        let read = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line)?;
        if read == 0 || text.len() > MAX_ARCHIVE {
            break;
        }
        // A line that was cut, or is of another kind, says nothing.
        let Ok(value) = serde_json::from_slice::<Value>(&line) else { continue };
        let Some((who, said)) = said(&value) else { continue };
        if first.is_none() && who == "User" {
            first = Some(slug(&said));
        }
        let shown: String = said.chars().take(MAX_MESSAGE_CHARS).collect();
        let cut = if shown.len() < said.len() { "…" } else { "" };
        text.push_str(&format!("**{who}**: {shown}{cut}\n\n"));
    }
    if text.is_empty() {
        return Ok(None);
    }
    let at = Timestamp::from_microsecond(now.0).unwrap_or_default().to_zoned(zone.clone());
    let slug = first.filter(|slug| !slug.is_empty());
    let slug = slug.unwrap_or_else(|| format!("conversation-{}", at.strftime("%H%M")));
    let folder = folder(agent)?;
    let (name, mut file) = fresh(&folder, &format!("{}-{slug}", at.strftime("%Y-%m-%d")))?;
    writeln!(file, "# Conversation archived at {}\n", at.strftime("%Y-%m-%d %H:%M %Z"))?;
    file.write_all(text.as_bytes())?;
    Ok(Some(agent.join(FOLDER).join(name)))
}

/// Opens a file to read. A FIFO would never end, and a link could lead to a file that is none of this conversation.
fn regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(openat(CWD, path, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

/// The folder of conversations, made when it is missing.
fn folder(agent: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let agent = openat(CWD, agent, flags, Mode::empty())?;
    match mkdirat(&agent, FOLDER, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(openat(&agent, FOLDER, flags | OFlags::NOFOLLOW, Mode::empty())?)
}

/// A file that did not exist, with its name; nothing is written through a link or over an earlier archive.
fn fresh(folder: &OwnedFd, name: &str) -> io::Result<(String, File)> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for number in 1..1_000 {
        let name = if number == 1 { format!("{name}.md") } else { format!("{name}-{number}.md") };
        match openat(folder, &name, flags, Mode::from_raw_mode(0o644)) {
            Ok(file) => return Ok((name, File::from(file))),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other(format!("there are too many archives named {name}")))
}

/// Who says what in a line of a transcript; tools and their results are left out.
fn said(line: &Value) -> Option<(&'static str, String)> {
    let who = match line.get("type")?.as_str()? {
        "user" => "User",
        "assistant" => "Assistant",
        _ => return None,
    };
    let text = match line.get("message")?.get("content")? {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts = blocks.iter().filter(|block| block.get("type").is_some_and(|kind| kind == "text"));
            let texts = texts.filter_map(|block| block.get("text").and_then(Value::as_str));
            texts.collect::<Vec<_>>().join("\n")
        }
        _ => return None,
    };
    (!text.trim().is_empty()).then_some((who, text))
}

/// The first words of a message as part of a file's name, without the elements around them.
fn slug(text: &str) -> String {
    let mut plain = String::new();
    let mut in_tag = false;
    for c in text.chars().take(MAX_MESSAGE_CHARS) {
        match c {
            '<' => in_tag = true,
            '>' => in_tag = false,
            c if !in_tag => plain.push(c),
            _ => {}
        }
    }
    let mut slug = String::new();
    for c in plain.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_alphanumeric() {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
        if slug.len() >= MAX_SLUG {
            break;
        }
    }
    slug.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Wall = Wall(1_779_096_600_000_000);

    #[test]
    fn texts_are_archived_and_tools_left_out() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let transcript = folder.path().join("t.jsonl");
        let long = "x".repeat(3_000);
        let lines = format!(
            "{}\nnot json\n{}\n{}\n{}\n",
            r#"{"type":"user","message":{"content":"<message id=\"2\">Buy Milk, please!</message>"}}"#,
            serde_json::json!({"type": "assistant", "message": {"content": [
                {"type": "tool_use", "name": "Bash"}, {"type": "text", "text": "done"},
            ]}}),
            r#"{"type":"user","message":{"content":[{"type":"tool_result","content":"secret"}]}}"#,
            format_args!(r#"{{"type":"assistant","message":{{"content":"{long}"}}}}"#),
        );
        std::fs::write(&transcript, lines)?;
        let archive = || archive(&transcript, folder.path(), &TimeZone::UTC, NOW);
        let path = archive()?.ok_or_else(|| io::Error::other("no archive"))?;
        assert!(path.ends_with("conversations/2026-05-18-buy-milk-please.md"), "{}", path.display());
        let text = std::fs::read_to_string(path)?;
        assert!(
            text.starts_with(
                "# Conversation archived at 2026-05-18 09:30 UTC\n\n**User**: <message id=\"2\">"
            )
        );
        assert!(text.contains("**Assistant**: done\n") && !text.contains("secret"), "{text}");
        assert!(text.contains(&format!("{}…\n", "x".repeat(2_000))));
        let second = archive()?.ok_or_else(|| io::Error::other("no archive"))?;
        assert!(second.ends_with("conversations/2026-05-18-buy-milk-please-2.md"));
        Ok(())
    }

    #[test]
    fn a_transcript_without_words_has_a_name_all_the_same() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let transcript = folder.path().join("t.jsonl");
        std::fs::write(&transcript, r#"{"type":"assistant","message":{"content":"hi"}}"#)?;
        let path = archive(&transcript, folder.path(), &TimeZone::UTC, NOW)?;
        assert!(path.is_some_and(|path| path.ends_with("conversations/2026-05-18-conversation-0930.md")));
        std::fs::write(&transcript, "{}\n")?;
        assert_eq!(archive(&transcript, folder.path(), &TimeZone::UTC, NOW)?, None);
        Ok(())
    }

    #[test]
    fn the_summary_is_told_where_answers_go() {
        let text = reminder(&["family".into(), "work".into()]);
        assert!(text.contains("Destinations: \"family\", \"work\"."), "{text}");
        assert!(reminder(&[]).contains("Destinations: none yet."));
    }
}
