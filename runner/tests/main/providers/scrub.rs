//! Takes out of a recording what differs from run to run and what takes room.

use std::error::Error;
use std::path::Path;

use serde_json::{Map, Value};

/// Keys of times, costs and machines, which nothing here reads.
const DROPPED: [&str; 30] = [
    "timestamp",
    "duration_ms",
    "duration_api_ms",
    "ttft_ms",
    "ttft_stream_ms",
    "time_to_request_ms",
    "usage",
    "modelUsage",
    "model_usage_since_last_result",
    "total_cost_usd",
    "messaging_socket_path",
    "memory_paths",
    "skills",
    "slash_commands",
    "terminal_slash_commands",
    "agents",
    "plugins",
    "request_id",
    "subagent_stats",
    "pid",
    "emittedAtMs",
    "startedAtMs",
    "completedAtMs",
    "durationMs",
    "createdAt",
    "updatedAt",
    "request_sent_wall_ms",
    "first_content_frame_ms",
    "fast_mode_disabled_reason",
    "begun_message_ids",
];

/// Most items of a list that is kept whole; of longer ones the first two stay.
const MAX_ITEMS: usize = 20;

/// The recording with stable paths and without noise.
pub fn scrub(text: &str, root: &str) -> Result<String, Box<dyn Error>> {
    let mut out = String::new();
    // claude names folders after paths, with a dash for whatever is no letter or digit.
    let dashed = |path: &str| path.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let repository = Path::new(repository).canonicalize()?.display().to_string();
    let (dashed_root, dashed_repository) = (dashed(root), dashed(&repository));
    let text = text.replace(root, "/test").replace(&dashed_root, "-test");
    let text = text.replace(&repository, "/repository").replace(&dashed_repository, "-repository");
    for line in text.lines() {
        let mut value: Value = serde_json::from_str(line)?;
        let is_control = value.pointer("/in/type").or(value.pointer("/out/type"));
        let is_control =
            is_control.is_some_and(|kind| kind.as_str().is_some_and(|kind| kind.starts_with("control_")));
        clean(&mut value, is_control);
        out.push_str(&value.to_string());
        out.push('\n');
    }
    Ok(out)
}

fn clean(value: &mut Value, is_control: bool) {
    match value {
        Value::Array(items) => {
            if items.len() > MAX_ITEMS {
                items.truncate(2);
            }
            items.iter_mut().for_each(|item| clean(item, is_control));
        }
        Value::Object(fields) => {
            // The id of a control request joins it with its response.
            fields.retain(|key, _| !DROPPED.contains(&key.as_str()) || (is_control && key == "request_id"));
            drop_own_id(fields);
            // What the CLI can do is read; what tools it has is not.
            let others = fields.iter_mut().filter(|(key, _)| *key != "capabilities");
            others.for_each(|(_, field)| clean(field, is_control));
        }
        _ => {}
    }
}

/// Each line of claude has a random id of its own; only those of messages are read.
fn drop_own_id(fields: &mut Map<String, Value>) {
    if !matches!(fields.get("type").and_then(Value::as_str), Some("user") | None) {
        fields.remove("uuid");
    }
}
