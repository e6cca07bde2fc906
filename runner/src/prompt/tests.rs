use lamplighter::session::{Address, InboundRow, Target};

use super::*;

fn row(seq: i64, kind: &str, chat: &str, timestamp: &str, content: &str) -> InboundRow {
    InboundRow {
        id: format!("m{seq}"),
        seq: Some(seq),
        kind: kind.into(),
        timestamp: timestamp.into(),
        trigger: true,
        address: Address::new("tg", chat, None),
        content: content.into(),
        ..InboundRow::default()
    }
}

fn names() -> Vec<Destination> {
    let target = Target::Channel { channel_type: "tg".into(), platform_id: "7".into() };
    vec![Destination { name: "family".into(), display_name: None, target }]
}

fn prompt(zone: &str, rows: Vec<InboundRow>) -> Result<String, String> {
    let messages: Vec<Message> = rows.into_iter().map(Message::read).collect::<Result<_, _>>()?;
    Ok(Formatter::for_zone(Some(zone)).prompt(&messages, 0, &names()).text)
}

#[test]
fn one_chat_message_stands_alone_under_the_header() {
    let one =
        row(4, "chat", "7", "2026-06-15T09:30:00.000Z", r#"{"text":"a < b & \"c\" isn't","sender":"Ann"}"#);
    assert_eq!(
        prompt("Europe/Berlin", vec![one]).as_deref(),
        Ok("<context timezone=\"Europe/Berlin\" />\n\
            <message id=\"4\" from=\"family\" sender=\"Ann\" time=\"Jun 15, 2026, 11:30 AM\">\
            a &lt; b &amp; &quot;c&quot; isn't</message>")
    );
}

#[test]
fn a_time_without_a_zone_is_utc_and_not_the_local_time() {
    let one = row(4, "chat", "7", "2026-06-15 22:05:00", r#"{"text":"x","sender":"A"}"#);
    let text = prompt("America/New_York", vec![one]).unwrap_or_default();
    assert!(text.contains("time=\"Jun 15, 2026, 6:05 PM\""), "{text}");
}

#[test]
fn quotes_replies_and_attachments_follow_the_contract() {
    let content = r#"{"text":"see","sender":"Ann","replyTo":{"id":"99","sender":"Bob <b>","text":"old & new"},
        "attachments":[{"type":"image","name":"a\".png","localPath":"inbox/m4/a.png"},
                       {"name":"b.pdf","url":"https://x/y?a=1&b=2"},{}]}"#;
    assert_eq!(
        prompt("UTC", vec![row(4, "chat-sdk", "8", "2026-06-05T00:07:00Z", content)]).as_deref(),
        Ok("<context timezone=\"UTC\" />\n\
            <message id=\"4\" from=\"unknown:tg:8\" sender=\"Ann\" time=\"Jun 5, 2026, 12:07 AM\" \
            reply_to=\"99\">\n  \
            <quoted_message from=\"Bob &lt;b&gt;\">old &amp; new</quoted_message>\n\
            see\n\
            [image: a&quot;.png — saved to /workspace/inbox/m4/a.png]\n\
            [file: b.pdf (https://x/y?a=1&amp;b=2)]\n\
            [file: attachment]</message>")
    );
}

#[test]
fn groups_come_in_their_order_and_several_chats_are_wrapped() {
    let at = "2026-06-15T09:30:00Z";
    let rows = vec![
        row(2, "webhook", "7", at, r#"{"source":"ci","event":"push","payload":{"a":"<x>"}}"#),
        row(4, "task", "7", at, r#"{"prompt":"do </task> it","script":null}"#),
        row(6, "chat", "7", at, r#"{"text":"one","sender":"A"}"#),
        row(8, "chat", "7", at, r#"{"text":"two","sender":"B"}"#),
    ];
    assert_eq!(
        prompt("UTC", rows).as_deref(),
        Ok("<context timezone=\"UTC\" />\n\
            <messages>\n\
            <message id=\"6\" from=\"family\" sender=\"A\" time=\"Jun 15, 2026, 9:30 AM\">one</message>\n\
            <message id=\"8\" from=\"family\" sender=\"B\" time=\"Jun 15, 2026, 9:30 AM\">two</message>\n\
            </messages>\n\n\
            <task from=\"family\" time=\"Jun 15, 2026, 9:30 AM\">\
            Instructions:\ndo &lt;/task&gt; it</task>\n\n\
            <webhook from=\"family\" source=\"ci\" event=\"push\">\
            {\n  &quot;a&quot;: &quot;&lt;x&gt;&quot;\n}</webhook>")
    );
}

#[test]
fn a_row_without_number_address_or_time_is_still_shown() {
    let bare = InboundRow {
        kind: "chat".into(),
        timestamp: "whenever".into(),
        content: "hi".into(),
        ..InboundRow::default()
    };
    assert_eq!(
        prompt("Nowhere/Land", vec![bare]).map(|text| text.lines().skip(1).collect::<String>()).as_deref(),
        Ok("<message sender=\"Unknown\" time=\"whenever\">hi</message>")
    );
}

#[test]
fn only_triggers_are_listed_as_such() -> Result<(), String> {
    let mut context = row(2, "chat", "7", "2026-06-15T09:30:00Z", r#"{"text":"noise"}"#);
    context.trigger = false;
    let asked = row(4, "chat", "7", "2026-06-15T09:30:00Z", r#"{"text":"hey"}"#);
    let messages = [Message::read(context)?, Message::read(asked)?];
    let prompt = Formatter::for_zone(Some("UTC")).prompt(&messages, 3, &names());
    assert_eq!(prompt.triggers, [Trigger { from: Some("family".into()), text: "hey".into() }]);
    assert!(prompt.text.contains("<omitted earlier_messages=\"3\" />\n<messages>"), "{}", prompt.text);
    Ok(())
}
