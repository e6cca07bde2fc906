//! The forms of time in rows (contract 7). Read: ISO-8601 with `Z` or an offset (form A), and SQLite's
//! `YYYY-MM-DD HH:MM:SS`, which means UTC (form B). Written: form A with milliseconds, and form B.
//!
//! Invariant: nothing here reads a clock. What cannot be read is `None`, and a row with such a due time is
//! never due.

use jiff::civil::DateTime;
use jiff::tz::Offset;
use jiff::{Timestamp, fmt::strtime};

use crate::base::Wall;

/// Longest text that is looked at; the longest sensible form has 35 bytes.
const MAX_TEXT: usize = 64;

/// Reads any form of contract 7.
pub fn parse(text: &str) -> Option<Wall> {
    let text = text.trim();
    if text.len() > MAX_TEXT {
        return None;
    }
    let instant = match text.parse::<Timestamp>() {
        Ok(instant) => instant,
        Err(_) => Offset::UTC.to_timestamp(text.parse::<DateTime>().ok()?).ok()?,
    };
    Some(Wall(instant.as_microsecond()))
}

/// Whether a row is due: it names no instant, or one that has come. An unreadable one never comes (contract
/// 7).
pub fn is_due(text: Option<&str>, now: Wall) -> bool {
    match text {
        None => true,
        Some(text) => parse(text).is_some_and(|due| due <= now),
    }
}

/// Form A: `2026-05-18T09:30:00.250Z`.
pub fn iso(at: Wall) -> String {
    written(at, "%Y-%m-%dT%H:%M:%S.%3fZ")
}

/// Form B, as SQLite's `datetime('now')` writes it: `2026-05-18 09:30:00`.
pub fn sqlite(at: Wall) -> String {
    written(at, "%Y-%m-%d %H:%M:%S")
}

/// A time outside the years that can be written becomes the first or the last of them.
fn written(at: Wall, form: &str) -> String {
    let instant =
        Timestamp::from_microsecond(at.0).unwrap_or(if at.0 < 0 { Timestamp::MIN } else { Timestamp::MAX });
    strtime::format(form, Offset::UTC.to_datetime(instant)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_contract_is_read_as_an_instant() {
        const NINE: i64 = 1_779_096_600_000_000; // 2026-05-18T09:30:00Z
        for (text, micros) in [
            ("2026-05-18T09:30:00.250Z", Some(NINE + 250_000)),
            ("2026-05-18T09:30:00Z", Some(NINE)),
            ("2026-05-18 09:30:00", Some(NINE)),
            ("2026-05-18 09:30:00.5", Some(NINE + 500_000)),
            ("2026-05-18T09:30:00", Some(NINE)),
            ("2026-05-18T11:30:00+02:00", Some(NINE)),
            ("2026-05-18 04:30:00-05:00", Some(NINE)),
            ("2026-05-18 09:30", Some(NINE)),
            (" 2026-05-18T09:30:00Z ", Some(NINE)),
            ("2026-05-18", Some(NINE - 34_200_000_000)),
            ("1970-01-01 00:00:00", Some(0)),
            ("", None),
            ("now", None),
            ("tomorrow", None),
            ("2026-13-01 00:00:00", None),
            ("2026-05-18T09:30:00+99:00", None),
        ] {
            assert_eq!(parse(text).map(|w| w.0), micros, "{text:?}");
        }
        assert_eq!(parse(&"2".repeat(1_000_000)), None);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let at = Wall(1_779_096_600_250_000);
        assert_eq!(iso(at), "2026-05-18T09:30:00.250Z");
        assert_eq!(sqlite(at), "2026-05-18 09:30:00");
        assert_eq!(parse(&iso(at)), Some(at));
        assert_eq!(parse(&sqlite(at)), Some(Wall(1_779_096_600_000_000)));
        assert_eq!(sqlite(Wall(i64::MAX)).len(), 19);
        assert!(!sqlite(Wall(i64::MIN)).is_empty());
    }

    #[test]
    fn a_due_time_in_iso_form_is_due_on_its_own_day() {
        let now = parse("2026-05-18 09:31:00").unwrap_or_default();
        assert!(is_due(Some("2026-05-18T09:30:00.000Z"), now));
        assert!(!is_due(Some("2026-05-18T09:32:00.000Z"), now));
        assert!(is_due(None, now));
        assert!(!is_due(Some("soon"), now));
    }
}
