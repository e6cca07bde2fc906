//! The layer rules, proved by looking at every source file. Modules do not stop import cycles; this does.

use std::fs;
use std::path::{Path, PathBuf};

/// Which layers a layer may import. The third column says what to use instead.
const LAYERS: [(&str, &[&str]); 11] = [
    ("base", &[]),
    ("session", &["base"]),
    ("machine", &["base", "session"]),
    ("journal", &["base", "machine", "session"]),
    ("replay", &["base", "journal", "machine", "session"]),
    ("reactor", &["base", "session"]),
    ("containers", &["base", "session"]),
    ("channels", &["base", "session"]),
    ("host", &["base", "session", "machine", "journal", "replay", "reactor", "containers", "channels"]),
    ("cli", &["base", "host", "replay", "journal", "machine", "session", "channels"]),
    ("lib", &[]),
];

/// What the machine may not name, and what it uses instead.
const IMPURE: [(&str, &str); 12] = [
    ("std::fs", "an Effect"),
    ("std::io", "an Effect"),
    ("std::net", "an Effect"),
    ("std::env", "Policy"),
    ("std::thread", "an Effect"),
    ("std::time", "the `at` of the step"),
    ("Instant::", "the `at` of the step"),
    ("SystemTime", "ClockSet"),
    ("HashMap", "BTreeMap"),
    ("HashSet", "BTreeSet"),
    ("rand::", "a number derived from the record"),
    ("thread_local", "State"),
];

/// Crates and words that only one file may name.
const ONE_PLACE: [(&str, &[&str]); 4] = [
    ("notify::", &["src/reactor/watch.rs", "runner/src/wake/watch.rs"]),
    ("bincode::", &["src/journal/record.rs"]),
    ("bollard::", &["src/containers/docker.rs"]),
    ("unsafe {", &["src/session/host_side/outbound/syscalls.rs", "src/reactor/memory.rs"]),
];

/// The longest line; rustfmt keeps code below it, this also looks at comments and strings.
const COLUMNS: usize = 120;

struct Line<'a> {
    file: &'a str,
    number: usize,
    text: &'a str,
}

/// A file's lines without comments.
fn code<'a>(file: &'a str, text: &'a str) -> impl Iterator<Item = Line<'a>> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(move |(n, text)| Line { file, number: n + 1, text })
}

/// The layers that a line of code names.
fn named_layers(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["crate::", "lamplighter::"] {
        for (at, _) in line.match_indices(start) {
            let before = line[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            let rest = &line[at + start.len()..];
            if let Some(list) = rest.strip_prefix('{') {
                let list = list.split('}').next().unwrap_or(list);
                found.extend(list.split(',').map(|name| first_word(name.trim())));
            } else {
                found.push(first_word(rest));
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn layer_of(file: &str) -> &str {
    let inner = file.strip_prefix("src/").unwrap_or(file);
    inner.split(['/', '.']).next().unwrap_or(inner)
}

fn check_layers(line: &Line<'_>) -> Vec<String> {
    let layer = layer_of(line.file);
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else { return Vec::new() };
    named_layers(line.text)
        .into_iter()
        .filter(|name| name != layer && LAYERS.iter().any(|(known, _)| known == name))
        .filter(|name| !allowed.contains(&name.as_str()))
        .map(|name| {
            let allowed = if allowed.is_empty() { "nothing but std".to_owned() } else { allowed.join(", ") };
            format!("{}:{}: {layer} may not import {name}; it may import {allowed}", line.file, line.number)
        })
        .collect()
}

fn check_purity(line: &Line<'_>) -> Vec<String> {
    if !line.file.starts_with("src/machine/") || line.file.contains("/tests/") {
        return Vec::new();
    }
    let mut wrong: Vec<String> = IMPURE
        .iter()
        .filter(|(word, _)| line.text.contains(word))
        .map(|(word, instead)| format!("{}:{}: {word} is banned here, use {instead}", line.file, line.number))
        .collect();
    if line.text.contains("session::") && !line.text.contains("session::rows") {
        wrong.push(format!("{}:{}: the machine may use session::rows only", line.file, line.number));
    }
    wrong
}

fn check_places(line: &Line<'_>) -> Vec<String> {
    ONE_PLACE
        .iter()
        .filter(|(word, places)| line.text.contains(word) && !places.contains(&line.file))
        .map(|(word, places)| {
            format!(
                "{}:{}: {word} is banned here, its place is {}",
                line.file,
                line.number,
                places.join(" or ")
            )
        })
        .collect()
}

fn files(root: &Path, folder: &str, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root.join(folder)).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            files(root, &name, out);
        } else if name.ends_with(".rs") {
            out.push(PathBuf::from(name));
        }
    }
}

fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    files(root, "src", &mut paths);
    files(root, "runner/src", &mut paths);
    paths.sort();
    paths
        .into_iter()
        .map(|path| (path.to_str().unwrap().to_owned(), fs::read_to_string(root.join(&path)).unwrap()))
        .collect()
}

#[test]
fn imports_run_one_way_and_the_machine_is_pure() {
    let (mut wrong, mut seen, mut machine, mut imports) = (Vec::new(), 0, 0, 0);
    for (file, text) in &sources() {
        seen += 1;
        machine += usize::from(file.starts_with("src/machine/"));
        for line in code(file, text) {
            imports += usize::from(!named_layers(line.text).is_empty());
            wrong.extend(check_layers(&line));
            wrong.extend(check_purity(&line));
            wrong.extend(check_places(&line));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        seen >= 100 && machine >= 13 && imports >= 200,
        "looked at only {seen} files, {machine} of the machine, {imports} imports"
    );
}

#[test]
fn every_file_says_what_it_does_and_no_line_is_too_long() {
    let mut wrong = Vec::new();
    for (file, text) in &sources() {
        let tests = file.contains("/tests") || file.ends_with("tests.rs");
        if !tests && !text.starts_with("//!") {
            wrong.push(format!("{file}:1: begins without saying what it does"));
        }
        for (n, line) in text.lines().enumerate() {
            if line.chars().count() > COLUMNS {
                wrong.push(format!("{file}:{}: longer than {COLUMNS} columns", n + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_unsafe_block_has_its_reason() {
    let mut found = 0;
    for (file, text) in &sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let bare = line.trim_start();
            if bare.starts_with("//") || !(line.contains("unsafe {") || bare.starts_with("unsafe impl")) {
                continue;
            }
            found += 1;
            let above = lines[n.saturating_sub(8)..n].iter().any(|line| line.contains("SAFETY"));
            assert!(above, "{file}:{}: unsafe without a SAFETY comment", n + 1);
        }
    }
    assert!(found >= 1, "no unsafe block was seen, although there is one place for them");
}

#[test]
fn the_rules_find_what_they_are_for() {
    let line = |file, text| Line { file, number: 7, text };
    let wrong = check_layers(&line("src/machine/wake.rs", "use crate::host::config::Config;"));
    assert_eq!(wrong, ["src/machine/wake.rs:7: machine may not import host; it may import base, session"]);
    assert_eq!(check_layers(&line("src/base/x.rs", "let x = crate::session::layout::IN;")).len(), 1);
    assert_eq!(check_layers(&line("src/reactor/x.rs", "use crate::{base::At, machine};")).len(), 1);
    assert!(check_layers(&line("src/host/x.rs", "use crate::machine::Machine;")).is_empty());
    assert_eq!(check_purity(&line("src/machine/x.rs", "use std::collections::HashMap;")).len(), 1);
    assert_eq!(check_purity(&line("src/machine/x.rs", "use crate::session::layout::IN;")).len(), 1);
    assert!(check_purity(&line("src/machine/x.rs", "use crate::session::rows::Address;")).is_empty());
    assert_eq!(check_places(&line("src/host/x.rs", "use notify::Watcher;")).len(), 1);
    assert!(check_places(&line("src/reactor/watch.rs", "use notify::Watcher;")).is_empty());
}
