"""What the agent is shown: the whole prompt, which the provider of these cases gives back."""

from case import case
from host import check, equal, message, task

QUOTED = {
    "text": "see <this> & \"that\"", "sender": "Ann", "senderId": "tg:1",
    "replyTo": {"id": "99", "sender": "Bob <b>", "text": "old & new"},
    "attachments": [
        {"type": "image", "name": "a.png", "localPath": "inbox/a/a.png"},
        {"name": "b.pdf", "url": "https://x/y?a=1&b=2"},
        {},
    ],
}


def _prompt(s, *rows):
    """The prompt of a turn with these rows."""
    s.put(*rows)
    s.start()
    s.until_acked(*[row["id"] for row in rows])
    return s.prompt()


def _holds(prompt, *parts):
    for part in parts:
        check(part in prompt, f"{part!r} is not in the prompt {prompt!r}")


@case("prompt", "reference: prompt format", short=True)
def prompt_header(s):
    """The prompt begins with the zone of its times."""
    prompt = _prompt(s, message("a", "hello"))
    check(prompt.startswith('<context timezone="Europe/Berlin" />\n'), f"the prompt begins {prompt[:80]!r}")


@case("prompt", "reference: prompt format")
def prompt_of_a_message(s):
    """A message is an element with id, origin, sender and time; what it says is escaped."""
    prompt = _prompt(s, message("a", "1 < 2 & \"3\" isn't", timestamp="2026-06-15T09:30:00.000Z"))
    _holds(prompt, '<message id="2" from="family" sender="Ann" time="Jun 15, 2026, 11:30 AM">',
           "1 &lt; 2 &amp; &quot;3&quot; isn't")


@case("prompt", "reference: prompt format; contract 17")
def prompt_of_quote_and_attachments(s):
    """A reply shows what it answers, and each attachment is a line that says where it is."""
    row = message("a", kind="chat-sdk", content=QUOTED, chat="55", timestamp="2026-06-05T00:07:00Z")
    prompt = _prompt(s, row, message("z", "answer here", chat="7"))
    _holds(prompt, 'from="unknown:tg:55"', 'reply_to="99"',
           '\n  <quoted_message from="Bob &lt;b&gt;">old &amp; new</quoted_message>\n',
           "see &lt;this&gt; &amp; &quot;that&quot;", "[image: a.png — saved to /workspace/inbox/a/a.png]",
           "[file: b.pdf (https://x/y?a=1&amp;b=2)]", "[file: attachment]", 'time="Jun 5, 2026, 2:07 AM"')


@case("prompt", "reference: prompt format; weak spots 54 and 64")
def prompt_of_a_task(s):
    """A task's prompt is escaped, and its time, written without a zone, is read as UTC."""
    prompt = _prompt(s, task("t", "do </task> it", timestamp="2026-06-15 22:05:00"))
    _holds(prompt, '<task from="family" time="Jun 16, 2026, 12:05 AM">', "Instructions:\ndo &lt;/task&gt; it")


@case("prompt", "reference: prompt format; weak spot 64")
def prompt_of_a_webhook(s):
    """A webhook's payload is indented JSON, escaped."""
    content = {"source": "ci", "event": "push", "payload": {"a": "<x>"}}
    prompt = _prompt(s, message("w", kind="webhook", content=content))
    _holds(prompt, '<webhook from="family" source="ci" event="push">', "&quot;a&quot;: &quot;&lt;x&gt;&quot;")


@case("prompt", "issue: new destinations are announced in the next prompt")
def prompt_names_a_new_destination(s):
    """A destination that was added since the last prompt is named in the next one, and only there."""
    s.put(message("a", "one"))
    s.start()
    s.until_acked("a")
    with s.writing() as db:
        db.execute("INSERT INTO destinations VALUES ('zebra-club', 'The Club', 'channel', 'tg', '44', NULL)")
    for id in ("b", "c"):
        s.put(message(id, "more"))
        s.until_acked(id)
    named = ["zebra-club" in text for text in s.texts()]
    equal(named, [False, True, False], "prompts that name it")


@case("echo", "contract 9; reference: prompt format")
def mixed_task_and_chat(s):
    """A task and chat messages of one batch are one turn, and all of them are answered."""
    s.put(message("a", "one"), task("t", "water the plants"), message("b", "two"))
    s.start()
    s.until_acked("a", "t", "b")
    equal(sorted(s.texts()), ["echo: one", "echo: two", "echo: water the plants"], "the answers")
