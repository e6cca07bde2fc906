//! Pieces of output become lines, bounded in length and number. Pure but for the time that comes in.

use std::time::{Duration, Instant};

use crate::containers::process::{LINE_MAX, LINES_PER_SECOND};

/// Cuts pieces into lines.
#[derive(Default)]
pub struct Lines {
    rest: Vec<u8>,
    skipping: bool,
    window: Option<Instant>,
    passed: u32,
    dropped: u64,
}

impl Lines {
    /// The whole lines of what came so far. A longer one is cut; those that are too many in a second are counted.
    pub fn push(&mut self, piece: &[u8], now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in piece {
            if byte == b'\n' {
                if !std::mem::take(&mut self.skipping) {
                    lines.extend(self.pass(now));
                }
                self.rest.clear();
            } else if self.rest.len() < LINE_MAX {
                self.rest.push(byte);
            } else if !self.skipping {
                self.skipping = true;
                lines.extend(self.pass(now));
            }
        }
        lines
    }

    /// What is left at the end, and how much was dropped.
    pub fn end(mut self) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.rest.is_empty() && !self.skipping {
            lines.push(String::from_utf8_lossy(&std::mem::take(&mut self.rest)).into_owned());
        }
        if self.dropped > 0 {
            lines.push(format!("{} lines were dropped: more than {LINES_PER_SECOND} a second", self.dropped));
        }
        lines
    }

    fn pass(&mut self, now: Instant) -> Option<String> {
        let second = Duration::from_secs(1);
        if self.window.is_none_or(|since| now.saturating_duration_since(since) >= second) {
            self.window = Some(now);
            self.passed = 0;
        }
        self.passed += 1;
        if self.passed > LINES_PER_SECOND {
            self.dropped += 1;
            return None;
        }
        Some(String::from_utf8_lossy(&self.rest).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_whatever_the_pieces_are() {
        let now = Instant::now();
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"on", now), [""; 0]);
        assert_eq!(lines.push(b"e\ntwo\nth", now), ["one", "two"]);
        assert_eq!(lines.end(), ["th"]);
    }

    #[test]
    fn long_lines_are_cut_and_many_are_counted() {
        let now = Instant::now();
        let mut lines = Lines::default();
        let long = vec![b'x'; 3 * LINE_MAX];
        assert_eq!(lines.push(&long, now).first().map(String::len), Some(LINE_MAX));
        assert_eq!(lines.push(b"more\nnext\n", now), ["next"]);
        let flood = b"y\n".repeat(LINES_PER_SECOND as usize + 10);
        assert!(lines.push(&flood, now).len() < flood.len() / 2);
        assert_eq!(lines.push(b"later\n", now + Duration::from_secs(1)), ["later"]);
        let end = lines.end();
        assert!(end.len() == 1 && end[0].contains("lines were dropped"), "{end:?}");
    }
}
