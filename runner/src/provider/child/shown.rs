//! Effects as text, for tests: of each agent CLI there are recordings with what they mean written beside.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;

use serde_json::Value;

use super::Effect;
use crate::provider::{Answer, ProviderEvent};

/// One effect as a line of text.
fn show(effect: &Effect) -> Option<String> {
    let event = match effect {
        Effect::Write(line) => {
            let of = |path: &str| line.pointer(path).and_then(Value::as_str);
            let said = of("/message/content").or(of("/params/input/0/text")).unwrap_or_default();
            let kind = of("/type").or(of("/method")).unwrap_or("answer");
            let said = said.lines().next().unwrap_or_default();
            return Some(format!("write {kind} {said}").trim_end().to_owned());
        }
        Effect::Tell(event) => event,
    };
    Some(match event {
        ProviderEvent::Activity => return None,
        ProviderEvent::Init { continuation } => format!("init {continuation}"),
        ProviderEvent::Progress(said) => format!("progress {said}"),
        ProviderEvent::Started { id } => format!("started {id}"),
        ProviderEvent::ToolStarted { id, name, timeout: None } => format!("tool {id} {name}"),
        ProviderEvent::ToolStarted { id, name, timeout: Some(time) } => {
            format!("tool {id} {name} within {time}")
        }
        ProviderEvent::ToolEnded { id } => format!("tool {id} ended"),
        ProviderEvent::Retrying { reason, wait } => format!("retrying in {wait}: {reason}"),
        ProviderEvent::Result(Answer { text, covers, local_command }) => {
            let what = if *local_command { "output of a command" } else { "result" };
            format!("{what} of {covers:?}: {text:?}")
        }
        ProviderEvent::Error(error) => {
            let after = error.retry_after.map(|time| format!(", after {time}")).unwrap_or_default();
            format!("error {}{after}: {}", error.class.word(), error.reason)
        }
    })
}

/// Effects as text, without the signs of life.
pub fn shown(effects: &[Effect]) -> Vec<String> {
    effects.iter().filter_map(show).collect()
}

/// Compares what `replay` makes of each recording of a CLI with what is written beside it; `UPDATE=1` writes it.
pub fn compare_recordings(
    name: &str,
    replay: impl Fn(&str) -> Result<String, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/cassettes").join(name);
    let update = std::env::var_os("UPDATE").is_some();
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(&folder)? {
        names.insert(entry?.path());
    }
    names.retain(|path| path.extension().is_some_and(|end| end == "ndjson"));
    assert!(!names.is_empty(), "no recordings in {}", folder.display());
    for path in names {
        let found = replay(&std::fs::read_to_string(&path)?)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let beside = path.with_extension("events");
        if update {
            std::fs::write(&beside, &found)?;
        }
        assert_eq!(found, std::fs::read_to_string(&beside)?, "{}: UPDATE=1 rewrites it", beside.display());
    }
    Ok(())
}
