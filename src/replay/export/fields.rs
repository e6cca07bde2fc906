//! Machine values as trees of named fields, as an export shows them: taken from their wire forms, with numbers that
//! have a name elsewhere (records, sessions, messages, effects) written that way.
//!
//! Invariant: fields stay in the order in which they are declared.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::base::{DestinationNo, EffectId, MessageNo, RecordNo, SessionNo};
use crate::journal::wire::Mirror;
use crate::machine::state::{ComponentId, State};

/// A longer text inside a value is cut: enough to know it again, and no file grows by one value.
pub const TEXT_MAX: usize = 2_000;
/// A longer list inside a value is cut.
pub const LIST_MAX: usize = 64;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Nothing.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A number.
    Int(i64),
    /// A number that is larger.
    Big(u64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// Fields by name.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// The tree of a machine value.
    pub fn of<T: Mirror>(value: &T) -> Self {
        let json = serde_json::to_string(&value.to_wire());
        let tree: Result<Node, _> = json.and_then(|json| serde_json::from_str(&json));
        // Wire forms have text keys only, so this cannot fail; a reader would rather see why than nothing.
        tree.map_or_else(|error| Self::Text(format!("cannot be shown: {error}")), |tree| tree.named(""))
    }

    /// What stands inside the only field of an enum's variant; itself for a variant without fields.
    #[must_use]
    pub fn inside(self) -> Self {
        match self {
            Self::Map(mut fields) if fields.len() == 1 => fields.remove(0).1,
            Self::Text(_) => Self::Null,
            other => other,
        }
    }

    /// With long texts and long lists cut.
    #[must_use]
    pub fn bounded(self) -> Self {
        match self {
            Self::Text(text) => Self::Text(cut(&text)),
            Self::List(mut items) => {
                let more = items.len().saturating_sub(LIST_MAX);
                items.truncate(LIST_MAX);
                let mut items: Vec<Self> = items.into_iter().map(Self::bounded).collect();
                if more > 0 {
                    items.push(Self::Text(format!("… and {more} more")));
                }
                Self::List(items)
            }
            Self::Map(fields) => {
                Self::Map(fields.into_iter().map(|(key, value)| (key, value.bounded())).collect())
            }
            other => other,
        }
    }

    /// The fields that differ from `before`; all of it where it has another shape.
    pub fn changed_since(&self, before: &Self) -> Option<Self> {
        let (Self::Map(new), Self::Map(old)) = (self, before) else { return None };
        let same_shape = new.len() == old.len() && new.iter().zip(old).all(|(a, b)| a.0 == b.0);
        same_shape.then(|| {
            let changed = new.iter().zip(old).filter(|(a, b)| a.1 != b.1);
            Self::Map(changed.map(|(a, _)| a.clone()).collect())
        })
    }

    /// Numbers as they are written elsewhere; `key` is the name that the value stands under.
    fn named(self, key: &str) -> Self {
        match self {
            Self::Int(number) => named_number(key, number),
            Self::Big(number) if is_mark(key) => Self::Text(format!("{number:016x}")),
            Self::List(items) => match (key, items.as_slice()) {
                ("name", [Self::Text(group), Self::Text(session)]) => {
                    Self::Text(format!("{group}/{session}"))
                }
                // Pairs of a message and what was found for it.
                ("acks", _) => Self::List(items.into_iter().map(|item| item.pair("message")).collect()),
                // Pairs of a session and its attempt.
                ("alive", _) => Self::List(items.into_iter().map(|item| item.pair("session")).collect()),
                _ => Self::List(items.into_iter().map(|item| item.named(key)).collect()),
            },
            Self::Map(fields) => match fields.as_slice() {
                [(a, Self::Int(record)), (b, Self::Int(index))] if a == "record" && b == "index" => {
                    let (record, index) = (record.unsigned_abs(), index.unsigned_abs());
                    let id = EffectId {
                        record: RecordNo(record),
                        index: u32::try_from(index).unwrap_or(u32::MAX),
                    };
                    Self::Text(id.to_string())
                }
                _ => Self::Map(
                    fields
                        .into_iter()
                        .map(|(key, value)| {
                            let value = value.named(&key);
                            (key, value)
                        })
                        .collect(),
                ),
            },
            other => other,
        }
    }

    /// A pair's first number by `key`, the second as an attempt where it is a number.
    fn pair(self, key: &str) -> Self {
        match self {
            Self::List(items) => {
                let keys = [key, "attempt"];
                let named = items.into_iter().zip(keys).map(|(item, key)| item.named(key));
                Self::List(named.collect())
            }
            other => other.named(key),
        }
    }
}

/// At most [`TEXT_MAX`] characters of a text, and how many are left out.
pub fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => {
            let more = text[end..].chars().count();
            format!("{}… ({more} more characters)", &text[..end])
        }
        None => text.to_owned(),
    }
}

/// Digests and marks: they name a thing and are no amounts.
fn is_mark(key: &str) -> bool {
    matches!(key, "digest" | "mark" | "void" | "released")
}

fn named_number(key: &str, number: i64) -> Node {
    let plain = number.unsigned_abs();
    let small = u32::try_from(number).unwrap_or(u32::MAX);
    Node::Text(match key {
        "session" | "sessions" | "StopSession" | "StartSession" | "ResetSession" => {
            SessionNo(small).to_string()
        }
        "MessageDue" | "ClaimSilence" | "Ceiling" | "IdleStop" | "Healthy" | "ContainerOverdue"
        | "StartBackoff" | "LookAgain" | "LookOverdue" => SessionNo(small).to_string(),
        "Folder" | "Projection" | "Start" | "Look" => SessionNo(small).to_string(),
        "message" | "inbox" | "outbox" | "delivered" | "DeliverAfter" | "Message" | "Row" | "Update"
        | "Delivery" | "Record" => MessageNo(plain).to_string(),
        "destination" | "Destination" => DestinationNo(small).to_string(),
        "record" | "attempt" | "Attempt" => RecordNo(plain).to_string(),
        _ if is_mark(key) => format!("{plain:016x}"),
        _ => return Node::Int(number),
    })
}

/// The value of a component; none when it is gone.
pub fn component(state: &State, id: ComponentId) -> Option<Node> {
    Some(match id {
        ComponentId::Core => Node::of(state.core()),
        ComponentId::Policy => Node::of(state.policy()),
        ComponentId::Directory if state.directory().chats.len() > LIST_MAX => {
            // Made anew for every chat that is added, so a list of all would cost their square.
            let directory = state.directory();
            let chats = Node::Text(format!("{} chats", directory.chats.len()));
            Node::Map(vec![
                ("group".to_owned(), Node::Text(directory.group.clone())),
                ("chats".to_owned(), chats),
                ("channels".to_owned(), Node::of(&directory.channels)),
            ])
        }
        ComponentId::Directory => Node::of(state.directory()),
        ComponentId::Slots => {
            let waiting = state.queue().iter().map(|no| Node::Text(no.to_string())).collect();
            Node::Map(vec![("waiting".to_owned(), Node::List(waiting))])
        }
        ComponentId::Complaints => Node::of(Some(state.complaints()).filter(|it| !it.is_empty())?),
        ComponentId::Session(no) => Node::of(state.session(no)?),
        ComponentId::Inbound(no) => Node::of(state.inbound(no)?),
        ComponentId::Outbound(no) => Node::of(state.outbound(no)?),
        ComponentId::Destination(no) => Node::of(state.destination(no)?),
        ComponentId::Question(no) => Node::of(state.question(no)?),
        ComponentId::Runtime => Node::of(state.outage()?),
        ComponentId::Missed(no) => Node::of(state.missed(no)?),
        ComponentId::Effect(id) => Node::Map(vec![("owner".to_owned(), Node::of(state.effects().get(&id)?))]),
    })
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(it) => serializer.serialize_bool(*it),
            Self::Int(it) => serializer.serialize_i64(*it),
            Self::Big(it) => serializer.serialize_u64(*it),
            Self::Text(it) => serializer.serialize_str(it),
            Self::List(items) => serializer.collect_seq(items),
            Self::Map(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                fields.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, it: bool) -> Result<Node, E> {
        Ok(Node::Bool(it))
    }

    fn visit_i64<E>(self, it: i64) -> Result<Node, E> {
        Ok(Node::Int(it))
    }

    fn visit_u64<E>(self, it: u64) -> Result<Node, E> {
        Ok(i64::try_from(it).map_or(Node::Big(it), Node::Int))
    }

    fn visit_str<E>(self, it: &str) -> Result<Node, E> {
        Ok(Node::Text(it.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Node::Map(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Attempt;
    use crate::machine::effect::Effect;
    use crate::machine::input::{AckFound, Input, Reading, Rows, TextFacts};

    fn json(node: &Node) -> String {
        serde_json::to_string(node).unwrap()
    }

    #[test]
    fn numbers_are_written_as_elsewhere_and_fields_keep_their_order() {
        let id = EffectId { record: RecordNo((1 << 32) | 8), index: 2 };
        let input = Input::InboundWritten { effect: id, seq: 4, duplicate: false };
        assert_eq!(json(&Node::of(&input).inside()), r#"{"effect":"1.8.2","seq":4,"duplicate":false}"#);
        let effect = Effect::StartContainer { session: SessionNo(3), attempt: Attempt((1 << 32) | 8) };
        assert_eq!(json(&Node::of(&effect)), r#"{"StartContainer":{"session":"s3","attempt":"1.8"}}"#);
        assert_eq!(Node::of(&Input::ShutdownAsked).inside(), Node::Null);
        let found = AckFound { status: crate::machine::input::Ack::Processing, mark: u64::MAX };
        let rows = Rows { acks: vec![(MessageNo(7), Some(found))], ..Rows::default() };
        let text = json(&Node::of(&Reading::Rows(rows)));
        assert!(text.contains(r#"["m7",{"status":"Processing","mark":"ffffffffffffffff"}]"#), "{text}");
        let facts = TextFacts { digest: 10, ..TextFacts::default() };
        assert!(json(&Node::of(&facts)).ends_with(r#""digest":"000000000000000a"}"#));
    }

    #[test]
    fn long_texts_and_lists_are_cut_and_say_so() {
        let text = Node::Text("ß".repeat(TEXT_MAX + 3)).bounded();
        assert!(matches!(&text, Node::Text(it) if it.ends_with("ß… (3 more characters)")));
        let Node::List(items) = Node::List(vec![Node::Int(1); LIST_MAX + 2]).bounded() else { panic!() };
        assert_eq!((items.len(), &items[LIST_MAX]), (LIST_MAX + 1, &Node::Text("… and 2 more".into())));
    }

    #[test]
    fn only_changed_fields_are_told() {
        let map = |a, b| Node::Map(vec![("a".into(), Node::Int(a)), ("b".into(), Node::Int(b))]);
        let changed = map(1, 3).changed_since(&map(1, 2)).unwrap();
        assert_eq!(json(&changed), r#"{"b":3}"#);
        assert_eq!(map(1, 2).changed_since(&Node::Null), None);
    }
}
