//! A reply as people read it.

use crate::channels::protocol::{FileLine, SkippedLine, ToClient};

/// A reply's text, with what came beside it; none for a line that is no reply.
pub fn shown(line: &ToClient) -> Option<String> {
    let ToClient::Message { text, files, skipped, .. } = line else { return None };
    let mut lines = Vec::new();
    if !text.is_empty() {
        lines.push(text.clone());
    }
    let file = |it: &FileLine| format!("[file {}, {}: {}]", it.name, size(it.bytes), it.path);
    lines.extend(files.iter().map(file));
    let skip = |it: &SkippedLine| format!("[file {} was not sent: {}]", it.name, it.reason);
    lines.extend(skipped.iter().map(skip));
    Some(lines.join("\n"))
}

/// Bytes as people say them.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} bytes"),
        1_024..1_048_576 => format!("{} KiB", bytes.div_ceil(1_024)),
        _ => format!("{} MiB", bytes.div_ceil(1_048_576)),
    }
}

/// How a question is answered, below it.
pub const HINT: &str = "[answer with the number or the label of an option]";

/// Whether a reply is a question.
pub fn asks(line: &ToClient) -> bool {
    matches!(line, ToClient::Message { question: Some(_), .. })
}
