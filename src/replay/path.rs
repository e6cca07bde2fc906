//! Where two values differ, as a path of field names and places: read from their debug forms, so that it serves every
//! type without a line of its own.

use std::fmt::Debug;

/// The first difference between two values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Field names and places, `.a.b[2].c`; empty where the values differ as a whole.
    pub path: String,
    /// What the first has there, in its debug form.
    pub expected: String,
    /// What the second has there.
    pub actual: String,
}

/// The first difference in the debug forms of two values; none where they are the same.
pub fn first_difference<T: Debug>(expected: &T, actual: &T) -> Option<Difference> {
    let (expected, actual) = (format!("{expected:#?}"), format!("{actual:#?}"));
    let (mut left, mut right) = (expected.lines(), actual.lines());
    let mut path = Vec::new();
    loop {
        match (left.next(), right.next()) {
            (None, None) => return None,
            (Some(a), Some(b)) if a == b => enter(&mut path, &Line::of(a)),
            (a, b) => {
                let (a, b) = (Line::of(a.unwrap_or_default()), Line::of(b.unwrap_or_default()));
                return Some(difference(path, &a, &b));
            }
        }
    }
}

/// A line of a pretty debug form: four spaces for each level.
struct Line<'a> {
    depth: usize,
    /// Of a struct's field.
    name: Option<&'a str>,
    value: &'a str,
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Self {
        let text = line.trim_start_matches(' ');
        let depth = (line.len() - text.len()) / 4;
        let text = text.trim_end_matches(',');
        match text.split_once(": ") {
            Some((name, value)) if name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') => {
                Self { depth, name: Some(name), value }
            }
            _ => Self { depth, name: None, value: text },
        }
    }

    fn closes(&self) -> bool {
        self.name.is_none() && matches!(self.value, "}" | "]" | ")" | "" | "},")
    }
}

/// One level of the way to a line.
enum Step {
    Name(String),
    /// The how-manyth without a name.
    Place(usize),
}

/// Moves on to a line.
fn enter(path: &mut Vec<Step>, line: &Line<'_>) {
    if line.depth == 0 || line.closes() {
        // What it closes stays the last step of its level, so that the next place is counted from it.
        path.truncate(line.depth);
        return;
    }
    let before = match path.get(line.depth - 1) {
        Some(Step::Place(place)) => Some(*place),
        _ => None,
    };
    path.truncate(line.depth - 1);
    path.push(match line.name {
        Some(name) => Step::Name(name.to_owned()),
        None => Step::Place(before.map_or(0, |place| place + 1)),
    });
}

fn difference(mut path: Vec<Step>, expected: &Line<'_>, actual: &Line<'_>) -> Difference {
    if expected.depth == actual.depth
        && expected.name == actual.name
        && !expected.closes()
        && !actual.closes()
    {
        enter(&mut path, expected);
    } else {
        // One of them has more: the difference is what they are parts of.
        path.truncate(expected.depth.min(actual.depth));
    }
    let path = path.iter().map(|step| match step {
        Step::Name(name) => format!(".{name}"),
        Step::Place(place) => format!("[{place}]"),
    });
    let value = |line: &Line<'_>| match (line.closes(), line.name) {
        (true, _) => "nothing more".to_owned(),
        (false, None) if actual.closes() || expected.closes() => "one more".to_owned(),
        (false, Some(name)) if expected.name != actual.name => format!("{name}: {}", line.value),
        _ => line.value.trim_end_matches([' ', '{', '(', '[']).to_owned(),
    };
    Difference { path: path.collect(), expected: value(expected), actual: value(actual) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug)]
    #[allow(dead_code)] // Read through Debug only.
    struct Inner {
        list: Vec<(u8, Option<&'static str>)>,
        last: u8,
    }

    #[derive(Clone, Debug)]
    #[allow(dead_code)] // Read through Debug only.
    enum Value {
        One { inner: Inner, number: i64 },
        Two,
    }

    fn one() -> Inner {
        Inner { list: vec![(1, None), (2, Some("a: b")), (3, None)], last: 9 }
    }

    fn found(change: impl FnOnce(&mut Inner)) -> (String, String, String) {
        let mut inner = one();
        change(&mut inner);
        let value = |inner| Value::One { inner, number: 5 };
        let it = first_difference(&value(one()), &value(inner)).unwrap();
        (it.path, it.expected, it.actual)
    }

    fn texts(path: &str, expected: &str, actual: &str) -> (String, String, String) {
        (path.into(), expected.into(), actual.into())
    }

    #[test]
    fn a_field_is_named_by_the_way_to_it() {
        assert_eq!(found(|it| it.last = 8), texts(".inner.last", "9", "8"));
        assert_eq!(found(|it| it.list[0].0 = 7), texts(".inner.list[0][0]", "1", "7"));
        assert_eq!(found(|it| it.list[2].0 = 7), texts(".inner.list[2][0]", "3", "7"));
        assert_eq!(found(|it| it.list[1].1 = Some("c")), texts(".inner.list[1][1][0]", "\"a: b\"", "\"c\""));
        assert_eq!(found(|it| it.list[1].1 = None), texts(".inner.list[1][1]", "Some", "None"));
    }

    #[test]
    fn what_is_missing_is_named_by_what_it_is_missing_from() {
        let (path, expected, actual) = found(|it| it.list.truncate(2));
        assert_eq!(
            (path.as_str(), expected.as_str(), actual.as_str()),
            (".inner.list", "one more", "nothing more")
        );
    }

    #[test]
    fn other_variants_differ_as_a_whole_and_the_same_value_does_not() {
        let one = Value::One { inner: one(), number: 5 };
        let it = first_difference(&one, &Value::Two).unwrap();
        assert_eq!((it.path.as_str(), it.expected.as_str(), it.actual.as_str()), ("", "One", "Two"));
        assert_eq!(first_difference(&one, &one.clone()), None);
    }
}
