//! Identifiers. Numbers are dense and decide order; names are attributes that no decision orders by.

use std::fmt;

/// How often a daemon was started on this data folder. Kept in `journal/boot`, never lowered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootNo(pub u32);

/// The number of one journal record: boot number · 2³² + n, so that a lost tail never leads to a reused number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordNo(pub u64);

impl RecordNo {
    /// The first record of a boot.
    pub fn first_of(boot: BootNo) -> Self {
        Self(u64::from(boot.0) << 32)
    }

    /// The boot that wrote this record.
    pub fn boot(self) -> BootNo {
        BootNo((self.0 >> 32) as u32)
    }

    /// The record after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for RecordNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl std::str::FromStr for RecordNo {
    type Err = String;

    /// Reads the form that `Display` writes, `boot.n`.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is not a record number; expected boot.n, for example 3.120");
        let (boot, n) = text.split_once('.').ok_or_else(bad)?;
        let boot: u32 = boot.parse().map_err(|_| bad())?;
        let n: u32 = n.parse().map_err(|_| bad())?;
        Ok(Self((u64::from(boot) << 32) | u64::from(n)))
    }
}

/// One life of a session's container: the number of the record that decided to start it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(pub u64);

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        RecordNo(self.0).fmt(f)
    }
}

/// One effect: the record that issued it and its place among that record's effects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EffectId {
    /// The record whose step issued the effect.
    pub record: RecordNo,
    /// Its place in the record, from 0.
    pub index: u32,
}

impl fmt::Display for EffectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.record, self.index)
    }
}

/// A session, numbered in order of first appearance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionNo(pub u32);

impl fmt::Display for SessionNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// A message in either direction, numbered in order of first appearance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageNo(pub u64);

impl fmt::Display for MessageNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m{}", self.0)
    }
}

/// A destination (session, channel, chat, thread), numbered in order of first appearance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationNo(pub u32);

impl fmt::Display for DestinationNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d{}", self.0)
    }
}

/// Where a session lives below `<data>/sessions`: its agent group's folder and its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionName {
    group: String,
    session: String,
}

impl SessionName {
    /// Builds a name from two folder names.
    ///
    /// # Errors
    /// When either is not a safe folder name ([`is_safe_name`]).
    pub fn new(group: impl Into<String>, session: impl Into<String>) -> Result<Self, String> {
        let (group, session) = (group.into(), session.into());
        for part in [&group, &session] {
            if !is_safe_name(part) {
                return Err(format!("{part:?} is not a safe folder name"));
            }
        }
        Ok(Self { group, session })
    }

    /// The agent group's folder name.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The session's own folder name (contract 8: `sess-<ms>-<r6>`).
    pub fn session(&self) -> &str {
        &self.session
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.session)
    }
}

impl std::str::FromStr for SessionName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (group, session) =
            text.split_once('/').ok_or_else(|| format!("{text:?} is not group/session"))?;
        Self::new(group, session)
    }
}

/// Whether a text from outside may become one component of a path: 1 to 255 bytes, no separator, no NUL or
/// other control character, not `.` or `..` (contract 17, "Safe name", and stricter on control characters).
pub fn is_safe_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.chars().any(|c| c == '/' || c == '\\' || c.is_control())
}

/// `n` in base 36, padded with zeros on the left to at least `width` digits (contract 8: `<r6>`).
pub fn base36(mut n: u64, width: usize) -> String {
    let mut digits = Vec::new();
    while n > 0 || digits.len() < width.max(1) {
        digits.push(char::from_digit((n % 36) as u32, 36).unwrap_or('0'));
        n /= 36;
    }
    digits.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_numbers_print_and_parse_as_boot_and_n() {
        let no = RecordNo(RecordNo::first_of(BootNo(3)).0 + 120);
        assert_eq!(no.to_string(), "3.120");
        assert_eq!("3.120".parse(), Ok(no));
        assert_eq!(no.boot(), BootNo(3));
        assert!("3".parse::<RecordNo>().is_err());
        assert!("3.x".parse::<RecordNo>().is_err());
    }

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for bad in ["", ".", "..", "a/b", "a\\b", "a\0", "a\nb"] {
            assert!(SessionName::new("g", bad).is_err(), "{bad:?}");
        }
        assert_eq!(SessionName::new("g", "sess-1-a").map(|n| n.to_string()), Ok("g/sess-1-a".into()));
    }

    #[test]
    fn base36_is_padded_to_its_width() {
        assert_eq!(base36(0, 6), "000000");
        assert_eq!(base36(35, 1), "z");
        assert_eq!(base36(36, 1), "10");
    }
}
