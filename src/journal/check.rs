//! Looks at a journal folder without changing it: what `lamplighter journal check` and `journal ls` show.
//!
//! Invariant: it may run beside a daemon that is writing; what it calls a tail is then what is being written.

use std::path::{Path, PathBuf};

use super::recovery::{RecoverError, Verdict, judge};
use super::scan::{Scan, Trouble, after, scan};
use super::segment;
use crate::base::RecordNo;

/// A whole journal folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Its segments in order.
    pub segments: Vec<Checked>,
    /// Whole records in unbroken order, each counted once where segments overlap.
    pub records: u64,
    /// The first of them.
    pub first: Option<RecordNo>,
    /// The last of them.
    pub last: Option<RecordNo>,
    /// The highest record that any whole frame calls durable; 0 when none does.
    pub synced: RecordNo,
    /// Bytes of a tail that was not durable yet; the next start moves them to `cut/`.
    pub torn: u64,
    /// Segments that are damaged.
    pub damaged: u64,
}

/// What is to be said of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Whole.
    Whole,
    /// The newest, begun and never switched to; the next start moves it away.
    Unused,
    /// The newest, with a tail that was not durable yet.
    Torn(Trouble),
    /// Something that was durable is gone or changed.
    Damaged(Trouble),
}

/// One segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The segment.
    pub path: PathBuf,
    /// Its first record's number.
    pub first: RecordNo,
    /// Whole records in unbroken order.
    pub records: u64,
    /// The last of them.
    pub last: RecordNo,
    /// Where the unbroken order ends.
    pub end: u64,
    /// What is to be said of it.
    pub finding: Finding,
    /// The same in words, if anything is wrong.
    pub trouble: Option<String>,
}

/// Looks at every segment of a folder.
///
/// # Errors
/// When the folder or a segment cannot be read at all.
pub fn check(folder: &Path) -> Result<Report, RecoverError> {
    let list = segment::list(folder).map_err(|source| RecoverError::Io {
        doing: "list",
        path: folder.to_owned(),
        source,
    })?;
    let mut report = Report::default();
    let mut scans = Vec::new();
    for (first, path) in list {
        scans.push(scan(&path, first, None)?);
    }
    report.synced = scans.iter().map(|scan| scan.synced).max().unwrap_or_default();
    let newest = scans.len().saturating_sub(1);
    for (n, scan) in scans.iter().enumerate() {
        let before = n.checked_sub(1).and_then(|n| scans.get(n));
        let next = scans.get(n + 1).map(|next| next.first);
        let finding = find(scan, report.synced, before, next, n == newest);
        report.add(scan, next, finding);
    }
    Ok(report)
}

fn find(
    scan: &Scan,
    synced: RecordNo,
    before: Option<&Scan>,
    next: Option<RecordNo>,
    newest: bool,
) -> Finding {
    let gap = before.is_some_and(|before| {
        before.first.boot() == scan.first.boot()
            && after(before.last) < scan.first
            && before.trouble.is_none()
    });
    match (scan.trouble, newest) {
        (None, _) if gap => Finding::Damaged(Trouble::Gap { found: scan.first }),
        (None, _) => Finding::Whole,
        (Some(_), true) if !scan.is_begun() && scan.beyond == 0 => Finding::Unused,
        (Some(trouble), true) if judge(false, scan.missing(), synced) == Verdict::CutHere => {
            Finding::Torn(trouble)
        }
        // A rotation is under way, or was cut short: the newer segment has what comes next.
        (Some(_), false) if scan.is_begun() && next.is_some_and(|next| after(scan.last) >= next) => {
            Finding::Whole
        }
        (Some(trouble), _) => Finding::Damaged(trouble),
    }
}

impl Report {
    fn add(&mut self, scan: &Scan, next: Option<RecordNo>, finding: Finding) {
        // Records that the next segment has too are counted there.
        let own_end = next.map_or(after(scan.last).0, |next| after(scan.last).0.min(next.0));
        let own = scan.records.min(own_end.saturating_sub(scan.first.0));
        if own > 0 {
            self.first = self.first.or(Some(scan.first));
            self.last = Some(RecordNo(own_end.saturating_sub(1)));
        }
        self.records += own;
        match finding {
            Finding::Torn(_) | Finding::Unused => self.torn += scan.tail,
            Finding::Damaged(_) => self.damaged += 1,
            Finding::Whole => {}
        }
        self.segments.push(Checked {
            path: scan.path.clone(),
            first: scan.first,
            records: scan.records,
            last: scan.last,
            end: scan.end,
            finding,
            trouble: words(scan, finding),
        });
    }
}

fn words(scan: &Scan, finding: Finding) -> Option<String> {
    match finding {
        Finding::Whole => None,
        Finding::Unused => Some("begun and never used; the next start moves it to cut/".into()),
        Finding::Torn(_) => Some(format!(
            "a tail that was not durable yet, with {} whole records; the next start cuts it off",
            scan.beyond
        )),
        Finding::Damaged(trouble) => Some(format!(
            "damaged at offset {}, where record {} belongs: {trouble}",
            scan.end,
            scan.missing()
        )),
    }
}
