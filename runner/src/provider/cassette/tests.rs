use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::log::{Level, Log};
use crate::mailbox::{Event as News, Mailbox};
use crate::prompt::{Prompt, Trigger};
use crate::provider::{Mock, Opening, Provider, Push, Query, Setup};

type Done = Result<(), Box<dyn std::error::Error>>;

fn push(id: &str, text: &str) -> Push {
    let triggers = vec![Trigger { from: Some("family".into()), text: text.into() }];
    Push { id: id.into(), prompt: Prompt { text: text.into(), triggers } }
}

/// What a provider says until it has answered these pushes.
fn said(
    mailbox: &Arc<Mailbox>,
    query: &mut dyn Query,
    follow_ups: &[Push],
) -> Result<Vec<ProviderEvent>, Box<dyn std::error::Error>> {
    let mut events = Vec::new();
    let mut rest = follow_ups.iter();
    loop {
        let by = Instant::now() + Duration::from_secs(10);
        let News::Provider(event) = mailbox.take(Some(by)) else { return Err("no answer".into()) };
        let ends = matches!(event, ProviderEvent::Result(_) | ProviderEvent::Error(_));
        events.push(event);
        if ends {
            match rest.next() {
                Some(push) => assert!(query.push(push)),
                None => return Ok(events),
            }
        }
    }
}

fn setup(folder: &Path, settings: serde_json::Value) -> Setup {
    Setup { settings, agent: folder.to_owned(), workspace: folder.to_owned(), ..Setup::default() }
}

fn record(folder: &Path) -> Result<Vec<ProviderEvent>, Box<dyn std::error::Error>> {
    let mock = Mock::new(setup(folder, json!({"rules": [{"pattern": "two", "tool_ms": 1}]})))?;
    let mut recorder = Recorder::new(Box::new(mock), &folder.join("a.jsonl"), Log::new(Level::Error))?;
    let mailbox = Arc::new(Mailbox::default());
    let opening = Opening { first: push("m1", "one"), ..Opening::default() };
    let query = recorder.start(opening, mailbox.open_query());
    let mut query = query.map_err(|error| error.reason)?;
    let events = said(&mailbox, query.as_mut(), &[push("m2", "two")])?;
    query.end();
    Ok(events)
}

#[test]
fn what_was_recorded_is_said_again_with_the_ids_of_this_run() -> Done {
    let folder = tempfile::tempdir()?;
    let recorded = record(folder.path())?;
    let mut cassette = Cassette::new(&setup(folder.path(), json!({"file": "a.jsonl", "strict": true})))?;
    let mailbox = Arc::new(Mailbox::default());
    let opening = Opening { first: push("x1", "one"), ..Opening::default() };
    let mut query = cassette.start(opening, mailbox.open_query()).map_err(|error| error.reason)?;
    let played = said(&mailbox, query.as_mut(), &[push("x2", "two")])?;
    let renamed: Vec<ProviderEvent> = recorded
        .into_iter()
        .map(|event| match event {
            ProviderEvent::Started { id } => ProviderEvent::Started { id: id.replace('m', "x") },
            ProviderEvent::Result(Answer { text, covers, local_command }) => {
                let covers = covers.iter().map(|id| id.replace('m', "x")).collect();
                ProviderEvent::Result(Answer { text, covers, local_command })
            }
            other => other,
        })
        .collect();
    assert_eq!(played, renamed);
    assert!(query.push(&push("x3", "three")));
    let by = Instant::now() + Duration::from_secs(10);
    let News::Provider(ProviderEvent::Error(error)) = mailbox.take(Some(by)) else {
        return Err("no error".into());
    };
    assert_eq!(error.reason, "the cassette has no more turns");
    query.abort();
    assert!(!query.is_alive());
    Ok(())
}

#[test]
fn another_prompt_or_conversation_is_an_error_that_says_so() -> Done {
    let folder = tempfile::tempdir()?;
    record(folder.path())?;
    let mut cassette = Cassette::new(&setup(folder.path(), json!({"file": "a.jsonl", "strict": true})))?;
    let mailbox = Arc::new(Mailbox::default());
    let foreign = Opening { continuation: Some("other".into()), ..Opening::default() };
    let error = cassette.start(foreign, mailbox.open_query()).err().map(|error| error.reason);
    assert_eq!(error.as_deref(), Some("no query of the cassette continues this conversation"));
    let opening = Opening { first: push("x1", "something else"), ..Opening::default() };
    let mut query = cassette.start(opening, mailbox.open_query()).map_err(|error| error.reason)?;
    let events = said(&mailbox, query.as_mut(), &[])?;
    let [ProviderEvent::Error(error)] = events.as_slice() else { return Err("no error".into()) };
    assert_eq!(error.reason, "the prompt differs from that of the recorded push \"m1\"");
    Ok(())
}

#[test]
fn a_file_that_is_no_cassette_is_named_with_its_line() -> Done {
    let folder = tempfile::tempdir()?;
    let header = |version: u32| {
        let says = json!({"version": version, "native_commands": true, "follow_ups": false});
        format!("{}\n", json!({ "cassette": says }))
    };
    for (text, reason) in [
        ("".to_owned(), "it holds no query"),
        (
            format!("{}\n", r#"{"open":{"continuation":null}}"#),
            "its first line does not say that it is a cassette",
        ),
        (header(9), "it has version 9, and this runner plays 1"),
        (header(1), "it holds no query"),
        (header(1) + r#"{"push":{"ms":0,"id":"a","text":""}}"# + "\n", "line 2: it belongs to no query"),
        (header(1) + "{\n", "line 2: EOF while parsing an object at line 2 column 0"),
    ] {
        std::fs::write(folder.path().join("a.jsonl"), text)?;
        let error = Cassette::new(&setup(folder.path(), json!({"file": "a.jsonl"}))).err();
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(error.ends_with(reason) && error.contains("a.jsonl"), "{error}");
    }
    let error = Cassette::new(&setup(folder.path(), json!({}))).err().map(|error| error.to_string());
    assert!(error.is_some_and(|error| error.contains("missing field `file`")));
    Ok(())
}
