//! JSON as JavaScript reads and prints it, which is how NanoClaw shows payloads to an agent (contract 11).
//!
//! Members keep their order, but those named like an index of an array come first, by number; of two with the same
//! name the later value stands in the earlier place. Numbers are those of JavaScript: `1e3` is 1000, and what needs
//! more than 53 bits is rounded. Pure.
//!
//! Not as there: a text with half a surrogate pair, a number beyond the range of a double, and nesting deeper than 128
//! are refused here.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// One more than the greatest index of an array.
const INDEX_END: u64 = u32::MAX as u64;
/// So many digits stand before the point at most; larger numbers have an exponent.
const MAX_DIGITS: i32 = 21;
/// So many zeros follow the point at most; smaller numbers have an exponent.
const MAX_ZEROS: i32 = 6;

/// A value.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Json {
    /// `null`.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
    /// A list.
    Array(Vec<Json>),
    /// Members in their order, each name once.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads a text; `None` when it is no JSON.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// A member of an object. Takes as long as the object is large.
    pub fn get(&self, name: &str) -> Option<&Json> {
        match self {
            Self::Object(members) => members.iter().find(|(known, _)| known == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text, when it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether JavaScript takes it for true: not `null`, `false`, 0 or an empty text.
    pub fn is_truthy(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(value) => *value,
            Self::Number(number) => *number != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::Array(_) | Self::Object(_) => true,
        }
    }

    /// On one line, without spaces.
    pub fn compact(&self) -> String {
        self.printed(None)
    }

    /// On many lines, each level two spaces further in.
    pub fn pretty(&self) -> String {
        self.printed(Some(0))
    }

    fn printed(&self, depth: Option<usize>) -> String {
        let mut out = String::new();
        self.print(&mut out, depth);
        out
    }

    fn print(&self, out: &mut String, depth: Option<usize>) {
        let inner = depth.map(|depth| depth + 1);
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Number(value) => out.push_str(&number(*value)),
            Self::Text(text) => quote(out, text),
            Self::Array(items) if items.is_empty() => out.push_str("[]"),
            Self::Array(items) => {
                out.push('[');
                for (place, item) in items.iter().enumerate() {
                    separate(out, place, inner);
                    item.print(out, inner);
                }
                line(out, depth);
                out.push(']');
            }
            Self::Object(members) if members.is_empty() => out.push_str("{}"),
            Self::Object(members) => {
                out.push('{');
                for (place, (name, value)) in members.iter().enumerate() {
                    separate(out, place, inner);
                    quote(out, name);
                    out.push_str(if inner.is_some() { ": " } else { ":" });
                    value.print(out, inner);
                }
                line(out, depth);
                out.push('}');
            }
        }
    }
}

fn separate(out: &mut String, place: usize, depth: Option<usize>) {
    if place > 0 {
        out.push(',');
    }
    line(out, depth);
}

fn line(out: &mut String, depth: Option<usize>) {
    if let Some(depth) = depth {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str("  "));
    }
}

fn quote(out: &mut String, text: &str) {
    // The same escapes as JavaScript's; writing a text does not fail.
    out.push_str(&serde_json::to_string(text).unwrap_or_default());
}

/// A number as JavaScript writes it: the shortest digits that mean it (ECMAScript, Number::toString).
pub fn number(value: f64) -> String {
    // Both zeros are 0.
    if value == 0.0 {
        return "0".to_owned();
    }
    let written = format!("{:e}", value.abs());
    let (mantissa, exponent) = written.split_once('e').unwrap_or((&written, "0"));
    let digits = mantissa.replace('.', "");
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    // So many of the digits stand before the point.
    let point = exponent.parse::<i32>().unwrap_or(0) + 1;
    let mut out = String::from(if value < 0.0 { "-" } else { "" });
    let zeros = |n: i32| "0".repeat(usize::try_from(n).unwrap_or(0));
    let (whole, rest) = digits.split_at(usize::try_from(point.clamp(1, count)).unwrap_or(1));
    // Writing to a String does not fail.
    let _ = match point {
        1.. if count <= point && point <= MAX_DIGITS => write!(out, "{digits}{}", zeros(point - count)),
        1..=MAX_DIGITS => write!(out, "{whole}.{rest}"),
        _ if -MAX_ZEROS < point && point <= 0 => write!(out, "0.{}{digits}", zeros(-point)),
        _ => {
            let (first, rest) = digits.split_at(1);
            let dot = if rest.is_empty() { "" } else { "." };
            let sign = if point > 0 { "+" } else { "" };
            write!(out, "{first}{dot}{rest}e{sign}{}", point - 1)
        }
    };
    out
}

/// A name that JavaScript takes for an index of an array, as its number.
fn index(name: &str) -> Option<u64> {
    let plain = name == "0" || !name.starts_with('0');
    let digits = plain && name.bytes().all(|byte| byte.is_ascii_digit());
    name.parse().ok().filter(|number| digits && *number < INDEX_END)
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    #[allow(clippy::cast_precision_loss, reason = "JavaScript has no other numbers")]
    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    #[allow(clippy::cast_precision_loss, reason = "JavaScript has no other numbers")]
    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = from.next_element()? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Json, A::Error> {
        let mut places = BTreeMap::new();
        let mut members: Vec<(String, Json)> = Vec::new();
        while let Some((name, value)) = from.next_entry::<String, Json>()? {
            match places.get(&name) {
                Some(&place) => {
                    if let Some((_, known)) = members.get_mut::<usize>(place) {
                        *known = value;
                    }
                }
                None => {
                    places.insert(name.clone(), members.len());
                    members.push((name, value));
                }
            }
        }
        // Stable: those that are no index stay in their order behind the others.
        members.sort_by_key(|(name, _)| index(name).unwrap_or(INDEX_END));
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_written_as_javascript_does() {
        // Each pair is what `String(JSON.parse(given))` gives there.
        for (given, written) in [
            ("0", "0"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("1e3", "1000"),
            ("1.0", "1"),
            ("-1.50", "-1.5"),
            ("0.1", "0.1"),
            ("100", "100"),
            ("123.456", "123.456"),
            ("0.000001", "0.000001"),
            ("0.0000001", "1e-7"),
            ("1.5e-9", "1.5e-9"),
            ("1e20", "100000000000000000000"),
            ("1e21", "1e+21"),
            ("1.25e22", "1.25e+22"),
            ("123456789012345678901", "123456789012345680000"),
            ("9007199254740993", "9007199254740992"),
            ("18446744073709551615", "18446744073709552000"),
            ("-9223372036854775808", "-9223372036854776000"),
            ("52.520006599999995", "52.520006599999995"),
            ("5e-324", "5e-324"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
        ] {
            assert_eq!(Json::parse(given).map(|json| json.compact()).as_deref(), Some(written), "{given}");
        }
        assert_eq!(Json::parse("1e400"), None);
    }

    #[test]
    fn members_are_in_javascripts_order() {
        let text = r#"{"b":1,"10":2,"a":3,"2":4,"b":5,"01":6,"4294967295":7,"4294967294":8,"-1":9}"#;
        let order = r#"{"2":4,"10":2,"4294967294":8,"b":5,"a":3,"01":6,"4294967295":7,"-1":9}"#;
        assert_eq!(Json::parse(text).map(|json| json.compact()).as_deref(), Some(order));
    }

    #[test]
    fn many_lines_are_two_spaces_further_in_each() {
        let json = Json::parse(r#"{"a":[1,{"b":"\u0007\"/\u00e4"}],"c":{},"d":[],"e":null}"#);
        let lines = "{\n  \"a\": [\n    1,\n    {\n      \"b\": \"\\u0007\\\"/ä\"\n    }\n  ],\n  \"c\": {},\n  \
                     \"d\": [],\n  \"e\": null\n}";
        assert_eq!(json.map(|json| json.pretty()).as_deref(), Some(lines));
    }

    #[test]
    fn what_javascript_takes_for_false_is_that_here() {
        for text in ["null", "false", "0", "-0", "\"\""] {
            assert_eq!(Json::parse(text).map(|json| json.is_truthy()), Some(false), "{text}");
        }
        for text in ["true", "-1", "\" \"", "[]", "{}"] {
            assert_eq!(Json::parse(text).map(|json| json.is_truthy()), Some(true), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_number_is_read_as_it_was_written(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            prop_assert_eq!(number(value).parse::<f64>(), Ok(value));
            prop_assert_eq!(Json::parse(&number(value)), Some(Json::Number(value)));
        }
    }
}
