use lamplighter::session::{Address, InboundRow, Target};

use super::*;

fn row(seq: i64, kind: &str, chat: &str, timestamp: &str, content: &str) -> InboundRow {
    InboundRow {
        id: format!("m{seq}"),
        seq: Some(seq),
        kind: kind.into(),
        timestamp: timestamp.into(),
        trigger: true,
        address: Address::new("tg", chat, None),
        content: content.into(),
        ..InboundRow::default()
    }
}

fn names() -> Vec<Destination> {
    let target = Target::Channel { channel_type: "tg".into(), platform_id: "7".into() };
    let peer = Target::Agent { agent_group_id: "ag-2".into() };
    vec![
        Destination { name: "family".into(), display_name: None, target },
        Destination { name: "helper".into(), display_name: None, target: peer },
    ]
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    zone: String,
    rows: Vec<Json>,
    #[serde(default)]
    omitted: usize,
    #[serde(default)]
    scripts: BTreeMap<String, Json>,
    #[serde(default)]
    late: Vec<LateAnswer>,
    #[serde(default)]
    added: Vec<String>,
}

/// A row as the cases have it; its content is an object, or a text that stands for itself, byte for byte.
fn row_of(value: &Json, number: i64) -> InboundRow {
    let text = |key: &str| value.get(key).and_then(Json::as_str).map(str::to_owned);
    let content = match value.get("content") {
        Some(Json::Text(text)) => text.clone(),
        other => other.map(Json::compact).unwrap_or_default(),
    };
    let seq = match value.get("seq") {
        Some(Json::Null) => None,
        Some(given) => given.compact().parse().ok(),
        None => Some(number),
    };
    InboundRow {
        id: text("id").unwrap_or_else(|| format!("m{number}")),
        seq,
        kind: text("kind").unwrap_or_else(|| "chat".to_owned()),
        timestamp: text("timestamp").unwrap_or_else(|| "2026-06-15T09:30:00.000Z".to_owned()),
        trigger: true,
        address: Address {
            channel_type: text("channel_type"),
            platform_id: text("platform_id"),
            thread_id: None,
        },
        content,
        ..InboundRow::default()
    }
}

/// Each element of a prompt, byte for byte: `fixtures/prompts/NAME.json` gives `NAME.txt`; `UPDATE=1` rewrites it.
#[test]
fn prompts_are_as_recorded() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/prompts");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        seen += 1;
        let case: Case = serde_json::from_str(&std::fs::read_to_string(&path)?)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let rows = case.rows.iter().zip(1..).map(|(row, number)| row_of(row, 2 * number));
        let messages: Vec<Message> = rows.map(Message::read).collect::<Result<_, _>>()?;
        let Case { omitted, scripts, late, added, .. } = case;
        let extras = Extras { omitted, scripts, late, added };
        let messages: Vec<&Message> = messages.iter().collect();
        let prompt = Formatter::for_zone(Some(&case.zone)).prompt(&messages, &extras, &names()).text;
        let expected = path.with_extension("txt");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&expected, prompt)?;
        } else {
            assert_eq!(std::fs::read_to_string(&expected)?, prompt, "{}", path.display());
        }
    }
    assert!(seen >= 24, "only {seen} cases");
    Ok(())
}

#[test]
fn only_triggers_are_listed_as_such() -> Result<(), String> {
    let mut context = row(2, "chat", "7", "2026-06-15T09:30:00Z", r#"{"text":"noise"}"#);
    context.trigger = false;
    let asked = row(4, "chat", "7", "2026-06-15T09:30:00Z", r#"{"text":"hey"}"#);
    let messages = [Message::read(context)?, Message::read(asked)?];
    let extras = Extras { omitted: 3, ..Extras::default() };
    let prompt =
        Formatter::for_zone(Some("UTC")).prompt(&messages.iter().collect::<Vec<_>>(), &extras, &names());
    assert_eq!(prompt.triggers, [Trigger { from: Some("family".into()), text: "hey".into() }]);
    assert!(prompt.text.contains("<omitted earlier_messages=\"3\" />\n<messages>"), "{}", prompt.text);
    Ok(())
}
