//! Names and addresses: which name a message came from, and where a block goes (contract 12.1). Pure.

use lamplighter::session::{Address, Destination, InboundRow, Target};

/// The channel type of everything that another agent sends or gets.
pub const AGENT: &str = "agent";

/// Channel and chat that a destination stands for, as rows have them.
pub fn chat_of(target: &Target) -> (&str, &str) {
    match target {
        Target::Channel { channel_type, platform_id } => (channel_type, platform_id),
        Target::Agent { agent_group_id } => (AGENT, agent_group_id),
    }
}

/// The name of the place a row came from, for the `from` attribute. `None` when the row has no address; a
/// place without a name of its own is `unknown:<channel>:<chat>`.
pub fn origin(address: &Address, destinations: &[Destination]) -> Option<String> {
    let (channel, chat) = (address.channel_type.as_deref(), address.platform_id.as_deref());
    if channel.is_none() && chat.is_none() {
        return None;
    }
    let (channel, chat) = (channel.unwrap_or_default(), chat.unwrap_or_default());
    let named = destinations.iter().find(|destination| chat_of(&destination.target) == (channel, chat));
    Some(named.map_or_else(|| format!("unknown:{channel}:{chat}"), |destination| destination.name.clone()))
}

/// The newest row of a turn that came from this chat: its thread and id address the answer.
pub fn newest_in<'a>(
    rows: impl IntoIterator<Item = &'a InboundRow>,
    chat: (&str, &str),
) -> Option<&'a InboundRow> {
    rows.into_iter().filter(|row| row.address.chat() == Some(chat)).max_by_key(|row| row.seq)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destinations() -> Vec<Destination> {
        let target = Target::Channel { channel_type: "tg".into(), platform_id: "7".into() };
        let peer = Target::Agent { agent_group_id: "ag-2".into() };
        vec![
            Destination { name: "family".into(), display_name: None, target },
            Destination { name: "helper".into(), display_name: None, target: peer },
        ]
    }

    #[test]
    fn an_origin_is_found_by_chat_or_by_agent_group() {
        let names = destinations();
        let of = |channel: &str, chat: &str| origin(&Address::new(channel, chat, None), &names);
        assert_eq!(of("tg", "7").as_deref(), Some("family"));
        assert_eq!(of("agent", "ag-2").as_deref(), Some("helper"));
        assert_eq!(of("tg", "8").as_deref(), Some("unknown:tg:8"));
        assert_eq!(origin(&Address::default(), &names), None);
    }

    #[test]
    fn the_newest_row_of_the_chat_is_the_one_with_the_greatest_number() {
        let row = |id: &str, seq, chat: &str| InboundRow {
            id: id.into(),
            seq: Some(seq),
            address: Address::new("tg", chat, None),
            ..InboundRow::default()
        };
        let rows = [row("a", 2, "7"), row("b", 6, "7"), row("c", 8, "9")];
        assert_eq!(newest_in(&rows, ("tg", "7")).map(|r| r.id.as_str()), Some("b"));
        assert_eq!(newest_in(&rows, ("tg", "1")), None);
    }
}
