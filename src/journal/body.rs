//! Bodies: the texts of messages, in frames of their own beside the records. A record names a text by its digest
//! alone, so a journal decides the same with and without them.
//!
//! ```text
//! digest u64, little endian | the text, UTF-8
//! ```
//! The digest is the one that the input after it names: xxh3-64 seeded with the installation's number, of an inbound
//! message's text or of an outbound row's content. The frame's number is that of the record that brings the text.

use std::borrow::Cow;

use super::record::BODY_MAX;

/// The longest text that is kept, in bytes. A longer one stands in its session folder alone.
pub const TEXT_MAX: usize = 1 << 20;

const _: () = assert!(TEXT_MAX + size_of::<u64>() <= BODY_MAX);

/// A text and its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'a> {
    /// As records name it.
    pub digest: u64,
    /// The text.
    pub text: &'a str,
}

/// The body of its frame, into `out`, which is cleared first; false for a text that is too long.
pub fn encode(text: Text<'_>, out: &mut Vec<u8>) -> bool {
    out.clear();
    if text.text.len() > TEXT_MAX {
        return false;
    }
    out.extend(text.digest.to_le_bytes());
    out.extend(text.text.as_bytes());
    true
}

/// The text in a frame; none when there is none: a text decides nothing, so a bad one is left out.
pub fn decode(body: &[u8]) -> Option<Text<'_>> {
    let (digest, text) = body.split_first_chunk::<8>()?;
    Some(Text { digest: u64::from_le_bytes(*digest), text: std::str::from_utf8(text).ok()? })
}

/// What a text says: an inbound message's text is kept as it is, an outbound row's as its whole content, JSON, whose
/// text this gives, of a question what is asked and of a card its text (contracts 11 and 12).
pub fn said(text: &str) -> Cow<'_, str> {
    match text.starts_with('{').then(|| serde_json::from_str::<serde_json::Value>(text)) {
        Some(Ok(content)) => {
            let parts = ["text", "question", "fallbackText"].into_iter();
            match parts.filter_map(|key| content.get(key)?.as_str()).next() {
                Some(said) => Cow::Owned(said.to_owned()),
                None => Cow::Borrowed(text),
            }
        }
        _ => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_comes_back_and_a_bad_one_does_not() {
        let mut out = Vec::new();
        assert!(encode(Text { digest: 7, text: "Grüße" }, &mut out));
        assert_eq!(decode(&out), Some(Text { digest: 7, text: "Grüße" }));
        out.pop();
        assert_eq!(decode(&out[..7]), None);
        out.push(0xff);
        assert_eq!(decode(&out), None);
        assert!(!encode(Text { digest: 7, text: &"x".repeat(TEXT_MAX + 1) }, &mut out));
    }

    #[test]
    fn a_row_says_its_text_and_a_message_itself() {
        assert_eq!(said(r#"{"text":"hi","files":[]}"#), "hi");
        assert_eq!(said(r#"{"action":"react"}"#), r#"{"action":"react"}"#);
        assert_eq!(said("{ not json"), "{ not json");
    }
}
