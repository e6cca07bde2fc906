//! Times and recurrences as agents give them.
//!
//! Invariant: a time without an offset is meant in the agent's zone. Where a clock is set back it is the earlier of the
//! two; where it is set forward, and the time does not exist, it is as much later.

use std::str::FromStr;

use croner::Cron;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, Zoned};
use lamplighter::base::Wall;
use lamplighter::session::timestamp;

use super::Refusal;

/// A point in time, as it is written and as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct When {
    /// ISO 8601 in UTC with milliseconds (contract 7).
    pub(super) iso: String,
    /// In the agent's zone.
    pub(super) local: String,
    /// What the agent should know about it.
    pub(super) remark: Option<&'static str>,
}

/// Reads a time.
pub(super) fn parse(text: &str, zone: &TimeZone, now: Wall) -> Result<When, Refusal> {
    let text = text.trim();
    let (at, mut remark) = match text.parse::<Timestamp>() {
        Ok(at) => (at, None),
        Err(_) => naive(text, zone)?,
    };
    let micros = Wall(at.as_microsecond());
    if micros < now && remark.is_none() {
        remark = Some("that time is past, so it is due at once");
    }
    Ok(When { iso: timestamp::iso(micros), local: shown(at, zone), remark })
}

fn naive(text: &str, zone: &TimeZone) -> Result<(Timestamp, Option<&'static str>), Refusal> {
    let civil: DateTime = text.parse().map_err(|_| {
        format!(
            "{text:?} is no time; write it as 2026-06-15T09:30:00, with or without an offset such as +02:00"
        )
    })?;
    let found = zone.to_ambiguous_zoned(civil);
    let remark = match found.offset() {
        AmbiguousOffset::Unambiguous { .. } => None,
        AmbiguousOffset::Fold { .. } => Some("that time comes twice on that day; the earlier one is meant"),
        AmbiguousOffset::Gap { .. } => {
            Some("that time does not exist on that day; it is an hour later or so")
        }
    };
    let zoned: Zoned = found.compatible().map_err(|error| format!("{text:?} is no time: {error}"))?;
    Ok((zoned.timestamp(), remark))
}

/// A time as the agent is shown it.
pub(super) fn shown(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M %Z").to_string()
}

/// Checks a cron expression; an empty one is none.
pub(super) fn recurrence(text: Option<&str>) -> Result<Option<String>, Refusal> {
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else { return Ok(None) };
    let wrong = |why: &dyn std::fmt::Display| {
        format!("{text:?} is no cron expression of five fields (minute hour day month weekday): {why}")
    };
    if !text.starts_with('@') && text.split_whitespace().count() != 5 {
        return Err(wrong(&"it has another number of fields").into());
    }
    Cron::from_str(text).map_err(|error| wrong(&error))?;
    Ok(Some(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Wall = Wall(1_779_096_600_000_000);

    fn at(text: &str, zone: &str) -> Result<(String, Option<&'static str>), String> {
        let zone = TimeZone::get(zone).map_err(|error| error.to_string())?;
        parse(text, &zone, NOW).map(|when| (when.iso, when.remark)).map_err(|Refusal(why)| why)
    }

    #[test]
    fn a_time_without_an_offset_is_meant_in_the_zone() {
        let iso = |text: &str, zone: &str| at(text, zone).map(|(iso, _)| iso);
        assert_eq!(iso("2026-06-15T09:30:00", "Europe/Berlin").as_deref(), Ok("2026-06-15T07:30:00.000Z"));
        assert_eq!(iso("2026-06-15 09:30", "Europe/Berlin").as_deref(), Ok("2026-06-15T07:30:00.000Z"));
        assert_eq!(iso("2026-06-15T09:30:00Z", "Europe/Berlin").as_deref(), Ok("2026-06-15T09:30:00.000Z"));
        assert_eq!(iso("2026-06-15T09:30:00+05:00", "UTC").as_deref(), Ok("2026-06-15T04:30:00.000Z"));
        assert!(iso("tomorrow", "UTC").is_err_and(|why| why.contains("2026-06-15T09:30:00")));
    }

    #[test]
    fn the_hours_in_which_clocks_are_set_are_right() {
        let twice = at("2026-11-01T01:30:00", "America/New_York");
        let remark = Some("that time comes twice on that day; the earlier one is meant");
        assert_eq!(twice, Ok(("2026-11-01T05:30:00.000Z".to_owned(), remark)));
        let after = at("2026-11-01T02:30:00", "America/New_York");
        assert_eq!(after, Ok(("2026-11-01T07:30:00.000Z".to_owned(), None)));
        let never = at("2027-03-14T02:30:00", "America/New_York");
        let remark = Some("that time does not exist on that day; it is an hour later or so");
        assert_eq!(never, Ok(("2027-03-14T07:30:00.000Z".to_owned(), remark)));
        assert!(at("2020-01-01T00:00:00", "UTC").is_ok_and(|(_, remark)| remark.is_some()));
    }

    #[test]
    fn a_recurrence_is_checked_before_anybody_waits_for_it() {
        for good in ["0 9 * * 1-5", "*/15 * * * *", "0 0 1 JAN *", "@daily"] {
            assert_eq!(recurrence(Some(good)), Ok(Some(good.to_owned())), "{good}");
        }
        for bad in ["every day", "61 * * * *", "* * * *", "* * * * * *", "0 25 * * *"] {
            assert!(recurrence(Some(bad)).is_err(), "{bad}");
        }
        assert_eq!(recurrence(Some(" ")), Ok(None));
    }
}
