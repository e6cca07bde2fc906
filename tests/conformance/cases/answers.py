"""What becomes of the agent's final text (contract 12.1), and the numbers of the rows (contract 6)."""

import os
import subprocess
import sys

from case import case
from host import check, equal, message

WRITER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "second_writer.py")


@case("blocks", "contract 12.1")
def several_blocks(s):
    """Each block is a message, in order, trimmed, with nothing unescaped; text around them is not sent."""
    s.put(message("a", "zzseveral"))
    s.start()
    s.until_acked("a")
    found = [(row["platform_id"], row["content"]) for row in s.sent()]
    equal(found, [("7", {"text": "one"}), ("8", {"text": "two &amp; <b>2</b>"}), ("7", {"text": "three"})],
          "what was sent")


@case("blocks", "contract 12.1")
def unknown_destination(s):
    """A block to a name that nobody has is dropped; the others go out, and the message is done."""
    s.put(message("a", "zzstranger"))
    s.start()
    s.until_acked("a")
    equal([(row["platform_id"], row["content"]["text"]) for row in s.sent()], [("7", "found")], "what was sent")


@case("blocks", "contract 12.1")
def internal_parts_are_not_sent(s):
    """What stands in <internal> is never sent, blocks included."""
    s.put(message("a", "zzinternal"))
    s.start()
    s.until_acked("a")
    equal(s.texts(), ["shown"], "what was sent")


@case("blocks", "contract 12.1, weak spot 16 of the seed", short=True)
def each_destination_has_its_thread(s):
    """Thread and in_reply_to come from the newest inbound row of the destination's chat, whatever its status."""
    s.put(message("w1", chat="8", thread_id="old", status="completed"),
          message("w2", chat="8", thread_id="th-8", status="completed"),
          message("f1", "zzboth", thread_id="th-7"))
    s.start()
    s.until_acked("f1")
    found = [(row["platform_id"], row["thread_id"], row["in_reply_to"]) for row in s.sent()]
    equal(found, [("8", "th-8", "w2"), ("7", "th-7", "f1")], "thread and in_reply_to")


@case("blocks", "contract 12.1")
def a_destination_that_never_spoke(s):
    """A chat without any inbound row gets no thread, and the batch's first id as in_reply_to."""
    s.put(message("a", "first", thread_id="th-7"), message("b", "zzfaraway", thread_id="th-7"))
    s.start()
    s.until_acked("a", "b")
    row, = [row for row in s.sent() if row["platform_id"] == "9"]
    equal((row["thread_id"], row["in_reply_to"]), (None, "a"), "thread and in_reply_to")


@case("blocks", "contract 4.3; issue: live destinations")
def a_destination_that_is_added(s):
    """A name that the host adds while the runner runs is known to the next turn."""
    with s.writing() as db:
        db.execute("DELETE FROM destinations WHERE name = 'quiet'")
    s.start()
    s.put(message("a", "zzfaraway"))
    s.until_acked("a")
    equal(s.sent(), [], "what was sent to a name that nobody has")
    with s.writing() as db:
        db.execute("INSERT INTO destinations VALUES ('quiet', NULL, 'channel', 'tg', '9', NULL)")
    s.put(message("b", "zzfaraway"))
    s.until_acked("b")
    equal([(row["platform_id"], row["content"]["text"]) for row in s.sent()], [("9", "to quiet")], "what was sent")


@case("blocks", "contract 4.3, 5.1: agents")
def an_agent_as_destination(s):
    """A block to an agent goes to its group under the channel `agent`."""
    with s.writing() as db:
        db.execute("UPDATE destinations SET type = 'agent', channel_type = NULL, platform_id = NULL, "
                   "agent_group_id = 'ag-2' WHERE name = 'quiet'")
    s.put(message("a", "zzfaraway", thread_id="th-7"))
    s.start()
    s.until_acked("a")
    row, = s.sent()
    equal((row["channel_type"], row["platform_id"], row["thread_id"]), ("agent", "ag-2", None), "the address")


@case("echo", "contract 12.1")
def two_chats_in_one_batch(s):
    """Messages of two chats in one batch are answered each in its own chat and thread."""
    s.put(message("a", "one", chat="7", thread_id="th-7"), message("b", "two", chat="8", thread_id="th-8"))
    s.start()
    s.until_acked("a", "b")
    found = [(row["platform_id"], row["thread_id"], row["in_reply_to"], row["content"]["text"]) for row in s.sent()]
    equal(found, [("7", "th-7", "a", "echo: one"), ("8", "th-8", "b", "echo: two")], "the answers")


@case("bare", "contract 9, 12.1; issue: one nudge a turn")
def bare_text_is_nudged_once(s):
    """Text in no block is not sent; the agent is asked once to send it again, and that is sent once."""
    s.put(message("a", "hello"), message("b", "zzbare", chat=None))
    s.start()
    s.until_acked("a", "b")
    s.until("the answer to the nudge", lambda: s.texts(), 10)
    s.stays("sent once", lambda: s.texts() == ["wrapped"], 2)


@case("bare-for-ever", "contract 9, 12.1; issue: one nudge a turn")
def bare_text_for_ever(s):
    """An agent that never uses a block is asked once and no more; its message is done, and nothing was sent."""
    s.put(message("a", "hello", chat=None))
    s.start()
    s.until_acked("a", seconds=15)
    s.stays("nothing is sent", lambda: not s.sent(), 2)
    fresh = s.settings["provider"].get("fresh")
    if fresh == "mock-1":
        # Its continuation counts turns: the message's, and at most the nudge's.
        check(s.continuation() in ("mock-1", "mock-2"), f"more turns than two: {s.continuation()}")


@case("echo", "contract 6, 24(b)7", deadline=40)
def odd_numbers_under_two_writers(s):
    """With a second writer on outbound.db all numbers are odd, unique and rising, and nothing is lost."""
    s.put(*[message(f"m{n}", f"text {n}") for n in range(10)])
    s.start()
    writer = subprocess.Popen([sys.executable, WRITER, s.outbound_db, s.inbound_db, "150"],
                              stderr=subprocess.PIPE, text=True)
    try:
        for n in range(10, 40):
            s.put(message(f"m{n}", f"text {n}"))
        s.until_acked(*[f"m{n}" for n in range(40)])
        _, errors = writer.communicate(timeout=20)
    finally:
        writer.kill()
        writer.wait()
    equal((writer.returncode, errors), (0, ""), "the other writer")
    rows = s.sent()
    numbers = [row["seq"] for row in rows]
    check(all(number % 2 == 1 for number in numbers), f"an even number: {numbers}")
    equal(numbers, sorted(set(numbers)), "the numbers in the order of commits")
    answers = [row["content"]["text"] for row in rows if not row["id"].startswith("other-")]
    equal(answers, [f"echo: text {n}" for n in range(40)], "the answers")
    equal(len(rows) - len(answers), 150, "rows of the other writer")


@case("echo", "contract 7, 12")
def the_form_of_a_row(s):
    """A sent row has a time as SQLite writes it, no due time, and an id of its own."""
    s.put(message("a", "one"), message("b", "two"))
    s.start()
    s.until_acked("a", "b")
    rows = s.sent()
    equal(len({row["id"] for row in rows}), 2, "different ids")
    for row in rows:
        check(s.read("SELECT datetime(?1) = ?1", row["timestamp"])[0][0] == 1, f"timestamp {row['timestamp']!r}")
        check("/" not in row["id"] and row["id"] not in (".", ".."), f"the id is no folder's name: {row['id']!r}")
    changed = s.read("SELECT count(*) FROM processing_ack WHERE datetime(status_changed) IS NOT status_changed")
    equal(changed[0][0], 0, "acks whose time has another form")
