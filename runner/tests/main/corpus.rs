//! The fuzz targets' corpus, played by a plain test, and the time that large inputs take.

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use lamplighter::session::InboundRow;
use lamplighter_runner::blocks;
use lamplighter_runner::content::Message;

use crate::session::Outcome;

#[path = "../../../fuzz/checks.rs"]
mod checks;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures");
const TARGETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/fuzz_targets");
/// Lines of a provider that are so long happen: a tool's output, a picture.
const LARGE: usize = 1_300_000;

/// The names of all entries of a folder.
fn names(folder: &Path) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().into_string().map_err(|name| format!("{name:?} is no text"))?);
    }
    names.sort();
    Ok(names)
}

/// What is checked of each target's inputs.
fn targets() -> BTreeMap<&'static str, fn(&[u8])> {
    BTreeMap::from([
        ("blocks", checks::blocks as fn(&[u8])),
        ("claude", checks::claude),
        ("codex", checks::codex),
        ("content", checks::content),
    ])
}

#[test]
fn every_input_of_the_corpus_is_taken() -> Outcome {
    for (target, check) in targets() {
        let folder = Path::new(FIXTURES).join("corpus").join(target);
        let inputs = names(&folder)?;
        assert!(inputs.len() >= 10, "{}: only {} inputs", folder.display(), inputs.len());
        for input in inputs {
            let data = fs::read(folder.join(&input))?;
            println!("{target}/{input}");
            check(&data);
        }
    }
    Ok(())
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target_and_a_line() -> Outcome {
    let known: Vec<String> = targets().keys().map(|name| (*name).to_owned()).collect();
    let built: Vec<String> =
        names(Path::new(TARGETS))?.iter().map(|name| name.trim_end_matches(".rs").to_owned()).collect();
    assert_eq!(built, known, "fuzz/fuzz_targets");
    assert_eq!(names(&Path::new(FIXTURES).join("corpus"))?, known, "fixtures/corpus");
    let readme = fs::read_to_string(Path::new(FIXTURES).join("README.md"))?;
    for name in known {
        assert!(
            readme.contains(&format!("- `{name}`: ")),
            "fixtures/README.md says nothing of corpus/{name}"
        );
    }
    Ok(())
}

/// A name, and an input that grows with the number given.
type Growing = (&'static str, fn(usize) -> String);

/// Texts that grow with the number given, each of them nasty in its own way.
fn hostile_texts() -> Vec<Growing> {
    vec![
        ("openers", |n| "<message to=\"a\">".repeat(n)),
        ("openers without an end", |n| "<message to=\"a".repeat(n)),
        ("quotes", |n| "<message to=\"".repeat(n)),
        ("openers with spaces", |n| "<message \t\n ".repeat(n)),
        ("one opener and spaces", |n| format!("<message{}", " ".repeat(8 * n))),
        ("closers", |n| "</message>".repeat(n)),
        ("internal", |n| "<internal>".repeat(n)),
        ("internal with openers", |n| "<internal><message to=\"a\">".repeat(n)),
        ("internal ends", |n| "</internal>".repeat(n)),
        ("signs", |n| "<".repeat(8 * n)),
        ("blocks", |n| "<message to=\"a\">x</message>".repeat(n)),
        ("a body of openers", |n| format!("<message to=\"a\">{}</message>", "<message to=\"b\">".repeat(n))),
    ]
}

/// JSON that grows with the number given.
fn hostile_contents() -> Vec<Growing> {
    vec![
        ("a long text", |n| format!("{{\"text\":\"{}\"}}", "x".repeat(8 * n))),
        ("escapes", |n| format!("{{\"text\":\"{}\"}}", "\\u00e4".repeat(n))),
        ("a text that never ends", |n| format!("{{\"text\":\"{}", "\\\"".repeat(n))),
        ("nesting", |n| "[".repeat(8 * n)),
        ("nested objects", |n| "{\"text\":".repeat(n)),
        ("attachments", |n| format!("{{\"attachments\":[{}{{}}]}}", "{},".repeat(n))),
        ("many keys of one name", |n| format!("{{{}\"text\":\"x\"}}", "\"text\":1,".repeat(n))),
        ("no JSON", |n| "<&>\"".repeat(2 * n)),
    ]
}

/// Lines of Claude Code that grow with the number given.
fn hostile_lines() -> Vec<Growing> {
    vec![
        ("a large tool result", |n| {
            let said = "x".repeat(8 * n);
            format!(
                r#"{{"type":"user","message":{{"content":[{{"type":"tool_result","content":"{said}"}}]}}}}"#
            )
        }),
        ("a large error", |n| {
            let said = "x".repeat(8 * n);
            format!(r#"{{"type":"result","is_error":true,"subtype":"{said}","errors":["{said}"]}}"#)
        }),
        ("many tools", |n| {
            let tools: Vec<String> =
                (0..n / 4).map(|n| format!(r#"{{"type":"tool_use","id":"{n}","name":"Bash"}}"#)).collect();
            format!(r#"{{"type":"assistant","message":{{"content":[{}]}}}}"#, tools.join(","))
        }),
        ("many uuids", |n| {
            format!(r#"{{"type":"result","user_message_uuids":["a"{}]}}"#, r#","b""#.repeat(n))
        }),
        ("many lines", |n| "{\"type\":\"system\"}\n".repeat(n / 4)),
        ("nesting", |n| "[".repeat(8 * n)),
    ]
}

/// Lines of `codex app-server` that grow with the number given.
fn hostile_lines_of_codex() -> Vec<Growing> {
    vec![
        ("a large output", |n| {
            let said = "x".repeat(8 * n);
            format!(
                r#"{{"method":"item/completed","params":{{"item":{{"type":"commandExecution","aggregatedOutput":"{said}"}}}}}}"#
            )
        }),
        ("a large error", |n| {
            let said = "x".repeat(8 * n);
            format!(r#"{{"id":1,"error":{{"code":-1,"message":"{said}"}}}}"#)
        }),
        ("many tools", |n| {
            let item = |n| {
                format!(
                    r#"{{"method":"item/started","params":{{"item":{{"type":"webSearch","id":"{n}"}}}}}}"#
                )
            };
            (0..n / 8).map(item).collect::<Vec<String>>().join("\n")
        }),
        ("many items of the thread", |n| {
            let item = r#"{"item":{"type":"userMessage","clientId":"a"},"turnId":"t"},"#.repeat(n / 8);
            let opened = r#"{"id":2,"result":{"thread":{"id":"$S"}}}"#;
            format!(
                "resumed\n{{\"id\":1,\"result\":{{}}}}\n{opened}\n{{\"id\":3,\"result\":{{\"data\":[{item}{{}}]}}}}"
            )
        }),
    ]
}

#[test]
fn inputs_of_more_than_a_megabyte_are_taken() {
    for (name, text) in hostile_texts() {
        println!("{name}");
        checks::blocks(text(LARGE / 8).as_bytes());
    }
    for (name, content) in hostile_contents() {
        println!("{name}");
        checks::content(content(LARGE / 8).as_bytes());
    }
    for (name, line) in hostile_lines() {
        println!("{name}");
        checks::claude(line(LARGE / 8).as_bytes());
        checks::codex(line(LARGE / 8).as_bytes());
    }
    for (name, line) in hostile_lines_of_codex() {
        println!("{name}");
        checks::codex(line(LARGE / 8).as_bytes());
    }
    checks::codex(&vec![0xff; LARGE]);
    checks::claude(&vec![0xff; LARGE]);
    checks::blocks(&vec![0xff; LARGE]);
    checks::content(&vec![0xff; LARGE]);
}

/// What this thread has had of a processor: what else the machine does has no part in it.
fn spent() -> Duration {
    let found = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(found.tv_sec.unsigned_abs(), u32::try_from(found.tv_nsec).unwrap_or_default())
}

/// The shortest of some tries: cold caches only add.
fn shortest(mut run: impl FnMut()) -> Duration {
    let once = |_| {
        let began = spent();
        run();
        spent().saturating_sub(began)
    };
    (0..5).map(once).min().unwrap_or_default()
}

/// Sixteen times the input may take 64 times as long: larger pieces of memory cost more, and quadratic work takes 256
/// times as long.
fn grows_linearly(name: &str, input: fn(usize) -> String, mut run: impl FnMut(&str)) {
    const SMALL: usize = 20_000;
    const FACTOR: f64 = 64.0;
    let (small, large) = (input(SMALL), input(16 * SMALL));
    let mut ratio = f64::INFINITY;
    // Once more when something else had the caches just then.
    for _ in 0..5 {
        let base = shortest(|| run(&small)).max(Duration::from_micros(20));
        ratio = ratio.min(shortest(|| run(&large)).as_secs_f64() / base.as_secs_f64());
        if ratio < FACTOR {
            return;
        }
    }
    panic!("{name}: sixteen times the input takes {ratio:.1} times as long");
}

#[test]
fn time_grows_with_the_input_and_no_faster() {
    for (name, input) in hostile_texts() {
        grows_linearly(name, input, |text| {
            black_box(blocks::parse(black_box(text)));
        });
    }
    for (name, input) in hostile_contents() {
        grows_linearly(name, input, |text| {
            let row = InboundRow { kind: "chat".into(), content: text.to_owned(), ..InboundRow::default() };
            // Either outcome is right; the time is what is looked at.
            let _ = black_box(Message::read(black_box(row)));
        });
    }
}
