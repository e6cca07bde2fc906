//! The layer rules, proved by looking at every source file. Modules do not stop import cycles; this does.

mod scan;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use scan::{Named, names, paths};

/// What a layer may name: other layers, and crates that the package depends on. Whatever is not here is refused.
struct Layer {
    name: &'static str,
    layers: &'static [&'static str],
    crates: &'static [&'static str],
}

/// The table of the design. Errors are made with `thiserror` everywhere but in `base`, which has std alone.
const LAYERS: [Layer; 14] = [
    Layer { name: "base", layers: &[], crates: &[] },
    // Timestamps are read and written with jiff; rustix opens without following links, and asks who owns a file.
    Layer { name: "session", layers: &["base"], crates: &["rusqlite", "rustix", "jiff", "thiserror"] },
    // Only session::rows, which a rule of its own says.
    Layer { name: "machine", layers: &["base", "session"], crates: &[] },
    // The codec goes through serde; a text in the journal is JSON; digests are xxh3.
    Layer {
        name: "journal",
        layers: &["base", "machine", "session"],
        crates: &["bincode", "crc32c", "serde", "serde_json", "xxhash_rust", "thiserror"],
    },
    // Exports are JSON, and redacting makes digests anew; pieces are rows and folders of sessions as well.
    Layer {
        name: "replay",
        layers: &["base", "journal", "machine", "session"],
        crates: &["serde", "serde_json", "xxhash_rust", "thiserror"],
    },
    // rustix stats files and asks what a mount is; libc hands memory back; what was seen of a file is left for the next
    // start, with serde.
    Layer {
        name: "reactor",
        layers: &["base", "session"],
        crates: &["notify", "crossbeam_channel", "rustix", "libc", "serde", "thiserror"],
    },
    // An engine speaks JSON and RFC 3339; processes and their locks are rustix'; an image is named by its digest.
    Layer {
        name: "containers",
        layers: &["base", "session"],
        crates: &[
            "bollard",
            "tokio",
            "futures_util",
            "crossbeam_channel",
            "rustix",
            "jiff",
            "serde",
            "serde_json",
            "xxhash_rust",
            "thiserror",
        ],
    },
    // Lines are JSON, and a peer's user is asked of the socket.
    Layer {
        name: "channels",
        layers: &["base", "session"],
        crates: &["rustix", "serde", "serde_json", "thiserror"],
    },
    // Everything comes together here, but what belongs behind a port: no engine, watcher, codec or runtime of tasks. libc
    // asks the kernel whether it keeps its clock.
    Layer {
        name: "host",
        layers: &["base", "session", "machine", "journal", "replay", "reactor", "containers", "channels"],
        crates: &[
            "crossbeam_channel",
            "jiff",
            "libc",
            "rustix",
            "serde",
            "serde_json",
            "slog",
            "slog_async",
            "slog_json",
            "slog_term",
            "strsim",
            "toml",
            "xxhash_rust",
            "thiserror",
        ],
    },
    // Besides host and replay: journals are shown record by record, and a chat client speaks the channel's lines.
    Layer {
        name: "cli",
        layers: &["base", "host", "replay", "journal", "machine", "session", "channels"],
        crates: &[
            "clap",
            "clap_complete",
            "clap_mangen",
            "indicatif",
            "jiff",
            "ratatui",
            "rustix",
            "rustyline",
            "serde_json",
            "signal_hook",
            "slog",
            "toml",
            "thiserror",
        ],
    },
    Layer { name: "lib", layers: &[], crates: &[] },
    // A child that ends with the daemon is this program too: `exec-child` has no other place.
    Layer {
        name: "main",
        layers: &["base", "cli", "host", "containers"],
        crates: &["clap", "clap_complete"],
    },
    // The other package. Which crates it has, its own manifest says.
    Layer { name: "runner", layers: &["base", "session"], crates: RUNNER },
    // Facts that outlive a run are JSON and name rows by UUID; both are pure.
    Layer { name: "runner's machine", layers: &["base", "session"], crates: &["serde_json", "uuid"] },
];

/// What the runner's package depends on, beside the library.
const RUNNER: &[&str] = &[
    "croner",
    "jiff",
    "notify",
    "regex_lite",
    "rmcp",
    "rustix",
    "schemars",
    "serde",
    "serde_json",
    "signal_hook",
    "thiserror",
    "tokio",
    "tokio_util",
    "uuid",
];

/// What the machines may not name, as a path or as a word, and what they use instead.
const IMPURE: [(&str, &str); 13] = [
    ("std::fs", "an Effect"),
    ("std::io", "an Effect"),
    ("std::net", "an Effect"),
    ("std::os", "an Effect"),
    ("std::env", "Policy"),
    ("std::thread", "an Effect"),
    ("std::time", "the `at` of the step"),
    ("Instant", "the `at` of the step"),
    ("SystemTime", "ClockSet"),
    ("HashMap", "BTreeMap"),
    ("HashSet", "BTreeSet"),
    ("rand", "a number derived from the record"),
    ("thread_local", "State"),
];

/// Crates and words that only some files may name.
const ONE_PLACE: [(&str, &[&str]); 4] = [
    ("notify", &["src/reactor/watch.rs", "runner/src/wake/watch.rs"]),
    ("bincode", &["src/journal/record.rs"]),
    ("bollard", &["src/containers/docker/engine.rs"]),
    (
        "unsafe",
        &["src/session/host_side/outbound/syscalls.rs", "src/reactor/memory.rs", "src/host/doctor/clock.rs"],
    ),
];

/// The longest line; rustfmt keeps code below it, this also looks at comments and strings.
const COLUMNS: usize = 120;

fn layer_of(file: &str) -> Option<&'static Layer> {
    let name = match file.strip_prefix("runner/src/") {
        Some(inner) if inner.starts_with("machine/") => "runner's machine",
        Some(_) => "runner",
        None => file.strip_prefix("src/")?.split(['/', '.']).next()?,
    };
    LAYERS.iter().find(|layer| layer.name == name)
}

/// The layer of this library that a path of a file leads to.
fn target<'a>(file: &str, path: &'a [String]) -> Option<&'a str> {
    let first = path.first()?;
    let library = first == "lamplighter" || (first == "crate" && file.starts_with("src/"));
    let second = path.get(1)?.as_str();
    (library && LAYERS.iter().any(|layer| layer.name == second)).then_some(second)
}

fn list(words: &[&str]) -> String {
    if words.is_empty() { "nothing but std".to_owned() } else { words.join(", ") }
}

/// `tests` is the line at which the tests of the file begin; what they use is their own affair, but for layers.
fn check_layers(file: &str, named: &Named, known: &BTreeSet<String>, tests: usize) -> Option<String> {
    let layer = layer_of(file)?;
    let Named { line, path } = named;
    if let Some(target) = target(file, path) {
        let wrong = target != layer.name && !layer.layers.contains(&target);
        let allowed = list(layer.layers);
        return wrong.then(|| {
            format!("{file}:{line}: {} may not import {target}; it may import {allowed}", layer.name)
        });
    }
    let name = path.first()?.as_str();
    let wrong = known.contains(name) && !layer.crates.contains(&name) && !is_test(file) && *line < tests;
    let allowed = list(layer.crates);
    wrong.then(|| format!("{file}:{line}: {} may not use the crate {name}; it may use {allowed}", layer.name))
}

/// Tests stand in for others, a foreign writer of a database for example: they use the crates that this takes.
fn is_test(file: &str) -> bool {
    file.contains("/tests/") || file.ends_with("tests.rs")
}

fn is_pure(file: &str) -> bool {
    let pure = ["src/machine/", "runner/src/machine/"].iter().any(|folder| file.starts_with(folder));
    pure && !is_test(file)
}

fn check_purity(file: &str, text: &str, all: &[Named]) -> Vec<String> {
    if !is_pure(file) {
        return Vec::new();
    }
    let mut wrong = Vec::new();
    for Named { line, path } in all {
        let path = path.join("::");
        for (word, instead) in IMPURE.iter().filter(|(word, _)| word.contains("::")) {
            if path == *word || path.starts_with(&format!("{word}::")) {
                wrong.push(format!("{file}:{line}: {word} is banned here, use {instead}"));
            }
        }
        let of_session =
            path.strip_prefix("crate::session::").or(path.strip_prefix("lamplighter::session::"));
        if of_session.is_some_and(|rest| file.starts_with("src/") && rest.split("::").next() != Some("rows"))
        {
            wrong.push(format!("{file}:{line}: the machine may use session::rows only"));
        }
    }
    for (line, name) in names(text) {
        if let Some((word, instead)) = IMPURE.iter().find(|(word, _)| *word == name) {
            wrong.push(format!("{file}:{line}: {word} is banned here, use {instead}"));
        }
    }
    wrong
}

fn check_places(file: &str, text: &str, all: &[Named]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (word, places) in ONE_PLACE.iter().filter(|(_, places)| !places.contains(&file)) {
        let first = |named: &&Named| named.path.first().is_some_and(|first| first == word);
        let crates = all.iter().filter(first).map(|named| named.line);
        let keyword = names(text).into_iter().filter(|(_, name)| *word == "unsafe" && name == word);
        for line in crates.chain(keyword.map(|(line, _)| line)) {
            wrong.push(format!("{file}:{line}: {word} is banned here, its place is {}", places.join(" or ")));
        }
    }
    wrong
}

/// The crates that a manifest depends on, as code names them.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(manifest)).unwrap();
    let table = text.split("\n[").find(|table| table.starts_with("dependencies]")).unwrap();
    let name = |line: &str| {
        let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
        (!name.is_empty() && !name.starts_with('#')).then(|| name.replace('-', "_"))
    };
    table.lines().skip(1).filter_map(name).collect()
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

/// All that is wrong in one file.
fn check(file: &str, text: &str, known: &BTreeSet<String>) -> Vec<String> {
    let all = paths(file, text);
    // They are the last thing of a file.
    let tests = text.lines().position(|line| line == "mod tests {").map_or(usize::MAX, |before| before + 1);
    let layers = all.iter().filter_map(|named| check_layers(file, named, known, tests));
    layers.chain(check_purity(file, text, &all)).chain(check_places(file, text, &all)).collect()
}

fn known_crates() -> BTreeSet<String> {
    let mut known = dependencies("Cargo.toml");
    known.extend(dependencies("runner/Cargo.toml"));
    // Its layers have rules of their own.
    known.remove("lamplighter");
    known
}

#[test]
fn imports_run_one_way_and_the_machine_is_pure() {
    let known = known_crates();
    let (mut wrong, mut seen, mut machine, mut imports, mut crates) = (Vec::new(), 0, 0, 0, 0);
    for (file, text) in &sources() {
        seen += 1;
        machine += usize::from(file.starts_with("src/machine/"));
        let all = paths(file, text);
        imports += all.iter().filter(|named| target(file, &named.path).is_some()).count();
        crates += all.iter().filter(|named| named.path.first().is_some_and(|it| known.contains(it))).count();
        assert!(layer_of(file).is_some(), "{file} belongs to no layer");
        wrong.extend(check(file, text, &known));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        seen >= 100 && machine >= 13 && imports >= 1_000 && crates >= 300,
        "looked at only {seen} files, {machine} of the machine, {imports} imports, {crates} uses of crates"
    );
}

#[test]
fn every_file_says_what_it_does_and_no_line_is_too_long() {
    let mut wrong = Vec::new();
    for (file, text) in &sources() {
        if !is_test(file) && !text.starts_with("//!") {
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
    let known = known_crates();
    assert!(known.contains("rusqlite") && known.contains("regex_lite") && !known.contains("tempfile_"));
    let wrong = |file: &str, text: &str| check(file, text, &known);
    let host = "machine may not import host; it may import base, session";
    // Whichever way it is written.
    for (line, text) in [
        (1, "use crate::host::config::Config;"),
        (3, "use crate::{\n    base::{At, Ms},\n    host::X,\n};"),
        (1, "use crate::{base::{At, ids::{A, B}}, host};"),
        (2, "fn f() {\n    let x = crate::host::X::new();\n}"),
        (1, "use super::super::host::X;"),
        (2, "mod tests {\n    use super::super::super::host::X;\n}"),
    ] {
        assert_eq!(
            wrong("src/machine/wake.rs", text),
            [format!("src/machine/wake.rs:{line}: {host}")],
            "{text}"
        );
    }
    assert_eq!(wrong("src/base/x.rs", "let x = crate::session::layout::IN;").len(), 1);
    assert_eq!(wrong("runner/src/x.rs", "use lamplighter::host::config::Config;").len(), 1);
    for text in ["use crate::machine::Machine;", "// crate::cli::X", "let x = \"crate::cli::X\";"] {
        assert_eq!(wrong("src/host/x.rs", text), [""; 0], "{text}");
    }
    let crate_ = |file: &str, text: &str| assert_eq!(wrong(file, text).len(), 1, "{text}");
    crate_("src/machine/x.rs", "use serde::Serialize;");
    crate_("src/machine/x.rs", "fn f() -> rusqlite::Result<()> { todo() }");
    crate_("src/base/x.rs", "use {\n    std::fmt,\n    thiserror::Error,\n};");
    crate_("src/host/x.rs", "use tokio::runtime::Runtime;");
    crate_("runner/src/machine/x.rs", "use jiff::Zoned;");
    let inline = "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    use rusqlite::Connection;\n}";
    assert_eq!(wrong("src/host/x.rs", inline), [""; 0]);
    assert_eq!(wrong("src/session/x.rs", "use rusqlite::{Connection, params};"), [""; 0]);
    let pure = |text: &str| wrong("src/machine/x.rs", text);
    assert_eq!(pure("use std::collections::{BTreeMap, HashMap};").len(), 1);
    assert_eq!(pure("use std::{collections::BTreeMap, fs::File};").len(), 1);
    assert_eq!(pure("use crate::session::layout::IN;").len(), 1);
    assert_eq!(pure("use crate::session::rows::Address;"), [""; 0]);
    assert_eq!(wrong("src/reactor/x.rs", "use notify::Watcher;").len(), 1);
    assert_eq!(wrong("src/reactor/watch.rs", "use notify::Watcher;"), [""; 0]);
    assert_eq!(wrong("src/reactor/x.rs", "fn f() { unsafe { g() } }").len(), 1);
}
