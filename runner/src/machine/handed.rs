//! What was handed to the agent together, and under which id, until an answer covers it.
//!
//! An agent knows a push by its id: the same messages under the same id are recognised when they come again, after an
//! error or a crash; mixed anew they would be new to it, and what it did for them would be done twice. So the rows of
//! a push stay together from the claim on, and the file holds them before the push goes out.
//!
//! Invariant: a composition never changes. All of them fit one fact; what has no room there is not claimed yet.

use lamplighter::session::rows::MAX_FACT_BYTES;
use serde_json::{Value, json};
use uuid::Uuid;

use super::batch::MAX_ROWS;

/// Bytes of a fact without any entry, generously.
const ENVELOPE: usize = 16;
/// Most bytes of an entry without its rows: brackets, the longest key, a number of five digits, commas.
const ENTRY: usize = 36;
/// Bytes of a row in an entry: its name, quotes, a comma.
const ROW: usize = 19;
/// So many hexadecimal digits are a row's name: too many for two rows of a session to share one by chance.
const NAME: usize = 16;
/// Most context messages that are said to have been left out of one push.
const MAX_OMITTED: usize = 99_999;

/// A message's name in the fact. Ids may be as long as a fact is.
pub fn name(id: &str) -> String {
    let mut name = Uuid::new_v5(&Uuid::nil(), id.as_bytes()).simple().to_string();
    name.truncate(NAME);
    name
}

/// The id of a push of these messages: a single message's own.
pub fn push_id(triggers: &[&str]) -> String {
    match triggers {
        [only] => (*only).to_owned(),
        several => format!("batch-{}", name(&several.join("\n"))),
    }
}

/// One push.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Together {
    /// Its id; empty for one whose id follows from its rows.
    key: String,
    /// How many context messages were left out.
    omitted: usize,
    /// The names of its rows.
    rows: Vec<String>,
    /// Whether it went out, so that the agent may know it.
    handed: bool,
}

impl Together {
    /// How many context messages were left out.
    pub fn omitted(&self) -> usize {
        self.omitted
    }

    /// The id of the push, of which these messages that start a turn are left.
    pub fn id(&self, triggers: &[&str]) -> String {
        match triggers {
            _ if !self.key.is_empty() => self.key.clone(),
            [only] => (*only).to_owned(),
            // As earlier versions named a push of several messages; they kept no key.
            several => several.join("\n"),
        }
    }

    fn cost(rows: usize) -> usize {
        ENTRY + ROW * rows
    }
}

/// All pushes that no answer has covered, in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handed(Vec<Together>);

impl Handed {
    /// Reads the fact `lamplighter.pushes`; what cannot be read is empty.
    pub fn read(fact: &str) -> Self {
        let value: Value = serde_json::from_str(fact).unwrap_or_default();
        let entry = |entry: &Value| -> Option<Together> {
            let parts = entry.as_array()?;
            let omitted = usize::try_from(parts.get(1)?.as_u64()?).ok()?;
            let rows = parts.iter().skip(2).filter_map(Value::as_str).map(str::to_owned).collect();
            Some(Together { key: parts.first()?.as_str()?.to_owned(), omitted, rows, handed: true })
        };
        let entries = value.get("pushes").and_then(Value::as_array);
        Self(entries.into_iter().flatten().filter_map(entry).collect())
    }

    /// What an earlier version, which did not tell pushes apart, had handed over.
    pub fn as_one(ids: &[String]) -> Self {
        let rows: Vec<String> = ids.iter().take(MAX_ROWS).map(|id| name(id)).collect();
        let one = Together { rows, handed: true, ..Together::default() };
        Self(if one.rows.is_empty() { Vec::new() } else { vec![one] })
    }

    /// The fact `lamplighter.pushes`: what went out, `[id or "", left out, names…]` each. `None` without any.
    pub fn fact(&self) -> Option<String> {
        let entry = |entry: &Together| {
            let head = [json!(entry.key), json!(entry.omitted)];
            Value::from_iter(head.into_iter().chain(entry.rows.iter().map(|row| json!(row))))
        };
        let entries: Vec<Value> = self.0.iter().filter(|entry| entry.handed).map(entry).collect();
        (!entries.is_empty()).then(|| json!({ "pushes": entries }).to_string())
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many rows a push may have that is made now; `kept_free` more pushes of one row are to come besides.
    pub fn room(&self, kept_free: usize) -> usize {
        let used: usize = self.0.iter().map(|entry| Together::cost(entry.rows.len())).sum();
        let used = ENVELOPE + used + kept_free * Together::cost(1) + ENTRY;
        MAX_FACT_BYTES.saturating_sub(used) / ROW
    }

    /// How many pushes of one row may be made beside one of so many rows.
    pub fn room_for_singles(&self, rows: usize, kept_free: usize) -> usize {
        self.room(kept_free).saturating_sub(rows) * ROW / Together::cost(1)
    }

    /// The pushes that none of these ids belongs to.
    pub fn without(&self, in_use: &[&str]) -> Vec<Together> {
        let names: Vec<String> = in_use.iter().map(|id| name(id)).collect();
        let is_free = |entry: &&Together| !entry.rows.iter().any(|row| names.contains(row));
        self.0.iter().filter(is_free).cloned().collect()
    }

    /// Keeps a push of these rows, unless they are kept already.
    pub fn add(&mut self, rows: &[&str], triggers: &[&str], omitted: usize) {
        let names: Vec<String> = rows.iter().map(|id| name(id)).collect();
        if self.0.iter().any(|entry| entry.rows.iter().any(|row| names.contains(row))) {
            return;
        }
        let key = if triggers.len() == 1 { String::new() } else { push_id(triggers) };
        let omitted = omitted.min(MAX_OMITTED);
        self.0.push(Together { key, omitted, rows: names, handed: false });
    }

    /// Notes that the push of these rows goes out.
    pub fn goes_out(&mut self, rows: &[&str]) {
        self.each_of(rows, |entry| entry.handed = true);
    }

    /// Forgets the push of these rows: it is covered, failed, or to be mixed anew.
    pub fn forget(&mut self, rows: &[&str]) {
        let names: Vec<String> = rows.iter().map(|id| name(id)).collect();
        self.0.retain(|entry| !entry.rows.iter().any(|row| names.contains(row)));
    }

    /// Forgets the pushes of these rows that never went out.
    pub fn forget_unsent(&mut self, rows: &[&str]) {
        let names: Vec<String> = rows.iter().map(|id| name(id)).collect();
        self.0.retain(|entry| entry.handed || !entry.rows.iter().any(|row| names.contains(row)));
    }

    /// The conversation that knew them is over: what is still to be handed over is new to the next one.
    pub fn conversation_over(&mut self, in_use: &[&str]) {
        let names: Vec<String> = in_use.iter().map(|id| name(id)).collect();
        self.0.retain(|entry| entry.rows.iter().any(|row| names.contains(row)));
        self.0.iter_mut().for_each(|entry| entry.handed = false);
    }

    /// Forgets pushes of which no row is left.
    pub fn retain<'a>(&mut self, left: impl Iterator<Item = &'a str>) {
        if self.0.is_empty() {
            return;
        }
        let left: std::collections::BTreeSet<String> = left.map(name).collect();
        self.0.retain(|entry| entry.rows.iter().any(|row| left.contains(row)));
    }

    fn each_of(&mut self, rows: &[&str], change: impl Fn(&mut Together)) {
        let names: Vec<String> = rows.iter().map(|id| name(id)).collect();
        let entries = self.0.iter_mut();
        entries.filter(|entry| entry.rows.iter().any(|row| names.contains(row))).for_each(change);
    }
}

/// Which push a row belonged to.
#[derive(Debug)]
pub struct Members<'a> {
    entries: &'a [Together],
    by_name: std::collections::BTreeMap<&'a str, usize>,
}

impl<'a> Members<'a> {
    /// Of these pushes.
    pub fn of(entries: &'a [Together]) -> Self {
        let all =
            entries.iter().enumerate().flat_map(|(at, entry)| entry.rows.iter().map(move |row| (row, at)));
        Self { entries, by_name: all.map(|(row, at)| (row.as_str(), at)).collect() }
    }

    /// The number of the row's push.
    pub fn push_of(&self, id: &str) -> Option<usize> {
        if self.entries.is_empty() { None } else { self.by_name.get(name(id).as_str()).copied() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_out_comes_back_as_it_was() {
        let mut handed = Handed::default();
        handed.add(&["c", "a"], &["a"], 5);
        handed.add(&["b", "d"], &["b", "d"], 0);
        handed.add(&["e"], &["e"], 0);
        assert_eq!(handed.fact(), None, "nothing went out");
        handed.goes_out(&["a"]);
        handed.goes_out(&["b", "d"]);
        let fact = handed.fact().unwrap_or_default();
        let batch = push_id(&["b", "d"]);
        let expected = format!(
            r#"{{"pushes":[["",5,"{}","{}"],["{batch}",0,"{}","{}"]]}}"#,
            name("c"),
            name("a"),
            name("b"),
            name("d")
        );
        assert_eq!(fact, expected);
        let read = Handed::read(&fact);
        let ids: Vec<String> =
            [["a"].as_slice(), &["b", "d"]].iter().zip(&read.0).map(|(rows, entry)| entry.id(rows)).collect();
        assert_eq!(ids, ["a".to_owned(), batch.clone()]);
        assert_eq!(
            read.0.get(1).map(|entry| entry.id(&["d"])),
            Some(batch),
            "one message less changes no id"
        );
        assert_eq!(Handed::read("junk"), Handed::default());
        assert_eq!(Handed::read(r#"{"pushes":[7,[],["x"],["",-1,"y"]]}"#), Handed::default());
    }

    #[test]
    fn a_push_of_an_earlier_version_keeps_its_id() {
        let one = Handed::as_one(&["a".to_owned(), "b".to_owned()]);
        assert_eq!(one.0.first().map(|entry| entry.id(&["a", "b"])).as_deref(), Some("a\nb"));
        assert!(Handed::as_one(&[]).is_empty());
    }

    #[test]
    fn the_fact_has_room_for_all_that_the_room_allows() {
        let long = "\u{1}".repeat(4000);
        for rows in [1, 2, 10, MAX_ROWS] {
            let mut handed = Handed::default();
            let mut pushes = 0;
            while handed.room(0) >= rows {
                let ids: Vec<String> = (0..rows).map(|n| format!("{pushes}-{n}-{long}")).collect();
                let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
                handed.add(&ids, &ids, usize::MAX);
                handed.goes_out(&ids);
                pushes += 1;
            }
            let fact = handed.fact().unwrap_or_default();
            assert!(fact.len() <= MAX_FACT_BYTES, "{rows}: {}", fact.len());
            assert!(pushes * rows >= 64, "{rows}: only {pushes}");
            assert_eq!(Handed::read(&fact), handed);
        }
    }

    #[test]
    fn what_is_covered_gone_or_of_another_conversation_is_forgotten() {
        let mut handed = Handed::default();
        for id in ["a", "b", "c", "d"] {
            handed.add(&[id], &[id], 0);
            handed.goes_out(&[id]);
        }
        handed.forget(&["a"]);
        handed.retain(["b", "c"].into_iter());
        assert_eq!(handed.without(&["b"]).len(), 1);
        handed.add(&["b"], &["b"], 0);
        assert_eq!(handed.0.len(), 2, "it is kept once");
        handed.conversation_over(&["c"]);
        assert_eq!((handed.0.len(), handed.fact()), (1, None));
        handed.forget_unsent(&["c"]);
        assert!(handed.is_empty());
    }
}
