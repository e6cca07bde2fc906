//! Finds what an agent wants to send in the text of its result (contract 12.1): blocks of the form
//! `<message to="NAME">BODY</message>`. Everything else is for the log.
//!
//! Invariant: linear in the length of the text, whatever the text is.
//! Invariant: what stands in `<internal>…</internal>` is never sent, blocks included.

const OPEN: &str = "<message";
const CLOSE: &str = "</message>";
const INTERNAL_OPEN: &str = "<internal>";
const INTERNAL_CLOSE: &str = "</internal>";

/// One message to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// A destination's name, as written.
    pub to: &'a str,
    /// What to send, trimmed and otherwise as written.
    pub body: &'a str,
}

/// What a text holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// In the order of the text.
    pub blocks: Vec<Block<'a>>,
    /// How many characters, white space left out, stand outside of blocks and of internal parts.
    pub bare_chars: usize,
}

/// Reads a text.
pub fn parse(text: &str) -> Parsed<'_> {
    let mut parsed = Parsed::default();
    let mut scan = Scan { text, closers: true, internal_closers: true };
    let mut at = 0;
    let mut bare_from = 0;
    while let Some(found) = text.get(at..).and_then(|rest| rest.find('<')).map(|offset| at + offset) {
        match scan.element(found) {
            Some((block, end)) => {
                parsed.bare_chars += visible(text.get(bare_from..found));
                parsed.blocks.extend(block);
                at = end;
                bare_from = end;
            }
            None => at = found + 1,
        }
    }
    parsed.bare_chars += visible(text.get(bare_from..));
    parsed
}

fn visible(text: Option<&str>) -> usize {
    text.unwrap_or_default().chars().filter(|c| !c.is_whitespace()).count()
}

/// Remembers that a closing tag was looked for in vain: there is none further on either, so no later opening
/// tag needs to look again. That is what keeps the whole linear.
struct Scan<'a> {
    text: &'a str,
    closers: bool,
    internal_closers: bool,
}

impl<'a> Scan<'a> {
    /// The element that begins at `start`, if one does: its block, when it is one, and where it ends.
    fn element(&mut self, start: usize) -> Option<(Option<Block<'a>>, usize)> {
        let rest = self.text.get(start..)?;
        if let Some(inner) = rest.strip_prefix(INTERNAL_OPEN) {
            let length = find(inner, INTERNAL_CLOSE, &mut self.internal_closers)?;
            return Some((None, start + INTERNAL_OPEN.len() + length + INTERNAL_CLOSE.len()));
        }
        let (to, body) = opening(rest)?;
        let length = find(body, CLOSE, &mut self.closers)?;
        let end = start + (rest.len() - body.len()) + length + CLOSE.len();
        Some((Some(Block { to, body: body.get(..length)?.trim() }), end))
    }
}

fn find(text: &str, closer: &str, any_left: &mut bool) -> Option<usize> {
    if !*any_left {
        return None;
    }
    let found = text.find(closer);
    *any_left = found.is_some();
    found
}

/// The name in an opening tag, and what follows the tag. A name ends at the next quote, and the next opening
/// tag has one, so no part of the text is searched by more than one tag.
fn opening(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix(OPEN)?;
    let rest = rest.strip_prefix(char::is_whitespace)?.trim_start().strip_prefix("to=\"")?;
    let (name, rest) = rest.split_once('"')?;
    let body = rest.trim_start().strip_prefix('>')?;
    (!name.is_empty()).then_some((name, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn blocks(text: &str) -> Vec<(&str, &str)> {
        parse(text).blocks.iter().map(|block| (block.to, block.body)).collect()
    }

    #[test]
    fn blocks_are_found_in_order_with_their_bodies_trimmed() {
        let text = "thinking\n<message to=\"family\">\n hi &amp; <b>bye</b> \n</message> and \
                    <message\n  to=\"Bob Smith\"  >x</message>";
        assert_eq!(blocks(text), [("family", "hi &amp; <b>bye</b>"), ("Bob Smith", "x")]);
        assert_eq!(parse(text).bare_chars, "thinkingand".len());
    }

    #[test]
    fn what_is_no_block_is_left_alone() {
        for text in [
            "",
            "plain",
            "<message>x</message>",
            "<messageto=\"a\">x</message>",
            "<message to='a'>x</message>",
            "<message to=\"\">x</message>",
            "<message to=\"a\" id=\"1\">x</message>",
            "<message id=\"1\" to=\"a\">x</message>",
            "<message to=\"a\">x",
            "<message to=\"a",
            "<message to=",
            "<Message to=\"a\">x</Message>",
            "&lt;message to=\"a\"&gt;x</message>",
        ] {
            assert_eq!(blocks(text), [], "{text}");
        }
    }

    #[test]
    fn a_body_ends_at_the_first_closing_tag() {
        let text = "<message to=\"a\">1<message to=\"b\">2</message>3</message>";
        assert_eq!(blocks(text), [("a", "1<message to=\"b\">2")]);
        assert_eq!(parse(text).bare_chars, "3</message>".len());
    }

    #[test]
    fn internal_parts_are_never_sent_and_never_counted() {
        let text =
            "<internal>no <message to=\"a\">secret</message></internal><message to=\"b\">yes</message>";
        assert_eq!(blocks(text), [("b", "yes")]);
        assert_eq!(parse(text).bare_chars, 0);
        assert_eq!(blocks("<internal><message to=\"a\">x</message>"), [("a", "x")], "never closed");
    }

    #[test]
    fn hostile_texts_take_linear_time() {
        let n = 200_000;
        let started = Instant::now();
        for piece in [
            "<message to=\"a\">",
            "<message to=\"",
            "<message ",
            "<message \t \n",
            "<internal>",
            "</message>",
            "<message to=\"a\"   ",
            "<",
            "<message to=\"a\">x</message>",
            "<internal><message to=\"a\">",
        ] {
            let text = piece.repeat(n);
            assert!(parse(&text).blocks.len() <= n, "{piece}");
        }
        let spaces = format!("<message{}", " ".repeat(n)).repeat(3);
        assert_eq!(blocks(&spaces), []);
        assert!(started.elapsed() < Duration::from_secs(30), "took {:?}", started.elapsed());
    }

    /// Pieces put together by a fixed generator: blocks never overlap, and each stands in the text as
    /// written.
    #[test]
    fn whatever_the_text_blocks_are_slices_of_it_in_order() {
        let pieces =
            ["<message to=\"", "a", "\">", "</message>", "<internal>", "</internal>", " ", "ä<", ">", "\""];
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..12 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let index = usize::try_from(seed % pieces.len() as u64).unwrap_or(0);
                text.push_str(pieces.get(index).unwrap_or(&""));
            }
            let mut from = 0;
            for block in parse(&text).blocks {
                assert!(!block.to.is_empty() && !block.body.contains(CLOSE), "{text}");
                let open = text.get(from..).and_then(|rest| rest.find(&format!("to=\"{}\"", block.to)));
                let Some(open) = open else { panic!("{text}: {block:?} is not there") };
                from += open + block.to.len() + block.body.len();
            }
        }
    }
}
