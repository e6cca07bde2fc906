"""Which messages are taken up, when, and in which order (contract 9, 16)."""

import os
import sqlite3
import time
from contextlib import closing

from case import case
from host import check, compact, context, equal, iso, message, plain


@case("echo", "contract 9", short=True)
def pickup(s):
    """A message is answered and acked, cold and warm."""
    s.put(message("a", "hello", thread_id="th-1"))
    s.start()
    s.until_acked("a")
    row, = s.sent()
    equal(row["content"], {"text": "echo: hello"}, "the content")
    equal((row["kind"], row["channel_type"], row["platform_id"]), ("chat", "tg", "7"), "kind and address")
    equal((row["thread_id"], row["in_reply_to"], row["deliver_after"]), ("th-1", "a", None), "what it answers")
    equal(row["seq"], 3, "the number after 2")
    s.put(message("b", "again"))
    s.until_acked("b")
    equal(s.texts(), ["echo: hello", "echo: again"], "the answers")


@case("prompt", "contract 9, 10")
def batch_in_one_prompt(s):
    """Messages that wait together become one prompt, in the order of their numbers."""
    # The numbers run against the order of writing.
    s.put(message("c", "third", seq=8), message("a", "first", seq=2), message("b", "second", seq=6))
    s.start()
    s.until_acked("a", "b", "c")
    prompt = s.prompt()
    check("<messages>" in prompt, f"no group of messages: {prompt!r}")
    places = [prompt.find(word) for word in ("first", "second", "third")]
    check(-1 not in places and places == sorted(places), f"not all of them, or out of order: {prompt!r}")


@case("echo", "contract 9, design 8")
def batch_is_answered_in_order(s):
    """Messages of one batch are answered in the order of their numbers."""
    s.put(message("c", "three", seq=8), message("a", "one", seq=2), message("b", "two", seq=6))
    s.start()
    s.until_acked("a", "b", "c")
    equal(s.texts(), ["echo: one", "echo: two", "echo: three"], "the answers")


def _late(s):
    """A second message in mid-turn. Whenever it is acked, its answer must be there."""
    s.put(message("a", "slowly one"))
    s.start()
    s.until("a is claimed", lambda: s.ack("a") == "processing")
    s.put(message("b", "two"))
    seen = set()

    def answered():
        # The ack is read first: the answer must not be later than it.
        ack = s.ack("b")
        texts = s.texts()
        seen.add((ack, "echo: two" in texts, "slow: slowly one" in texts))
        return ack == "completed"
    s.until("b is acked", answered)
    check(("completed", False, True) not in seen and ("completed", False, False) not in seen,
          "b was acked completed before its answer was written")
    s.until_acked("a")
    equal(s.texts(), ["slow: slowly one", "echo: two"], "the answers")
    return seen


@case("slow-alone", "contract 9, weak spot 3", short=True)
def late_arrival(s):
    """A message in mid-turn is acked only after it was answered, when the provider takes no pushes."""
    _late(s)


@case("slow", "design 8, weak spot 3")
def late_arrival_is_pushed(s):
    """A message in mid-turn is claimed at once where the provider takes pushes, and completed by its result."""
    seen = _late(s)
    claimed = ("processing", False, False)
    check(claimed in seen, f"b was not claimed while a was worked on; seen {sorted(map(str, seen))}")


@case("slow", "contract 16, weak spot 19")
def context_never_starts_a_turn(s):
    """A message without trigger starts no turn, cold or warm or in mid-turn; the next trigger takes it along."""
    s.put(context("c1"), message("bad", content="null"))
    s.start()
    # What cannot be used is failed at the first look: then c1 was looked at too.
    s.until_acked("bad", status="failed")
    s.stays("c1 starts no turn", lambda: s.ack("c1") is None and not s.texts(), 1.5)
    s.put(message("a", "hey"))
    s.until_acked("a", "c1")
    equal(s.texts(), ["echo: hey"], "the answers")
    s.put(context("c2"))
    s.stays("c2 starts no turn", lambda: s.ack("c2") is None and len(s.texts()) == 1, 2.5)
    s.put(message("b", "slowly"))
    s.until("b is claimed", lambda: s.ack("b") == "processing")
    s.put(context("c3"))
    s.until_acked("b", "c2")
    s.stays("c3 starts no turn", lambda: s.ack("c3") != "completed" and len(s.texts()) == 2, 2.5)
    s.put(message("d", "last"))
    s.until_acked("d", "c3")
    equal(s.texts(), ["echo: hey", "slow: slowly", "echo: last"], "the answers")


@case("prompt", "contract 16")
def context_rides_along(s):
    """The context that precedes a trigger is in its prompt."""
    s.put(context("c1", "as for the soup"), message("a", "who cooks?"))
    s.start()
    s.until_acked("a", "c1")
    prompt = s.prompt()
    check("as for the soup" in prompt, f"the context is not in the prompt: {prompt!r}")


@case("echo", "contract 9, weak spot 6")
def twenty_five_at_once(s):
    """Twenty-five messages at once are all answered, in order, each once, with no help of the host."""
    s.put(*[message(f"m{n}", f"text {n}") for n in range(25)])
    s.start()
    s.until_acked(*[f"m{n}" for n in range(25)])
    equal(s.texts(), [f"echo: text {n}" for n in range(25)], "the answers")


@case("echo", "contract 9, weak spot 7")
def context_newer_than_a_trigger(s):
    """A window full of context that is newer than one trigger does not hide it."""
    s.put(message("a", "look here"), *[context(f"c{n}") for n in range(12)])
    s.start()
    s.until_acked("a")
    equal(s.texts(), ["echo: look here"], "the answers")


@case("echo", "contract 9, weak spot 7")
def context_older_than_a_trigger(s):
    """A long backlog of context does not hide the trigger behind it, and is done with afterwards."""
    s.put(*[context(f"c{n}") for n in range(60)], message("a", "look here"))
    s.start()
    s.until_acked("a", *[f"c{n}" for n in range(60)])
    equal(s.texts(), ["echo: look here"], "the answers")


@case("echo", "contract 7, 9")
def not_due(s):
    """A message waits for its time, in every format; one whose time cannot be read never comes."""
    s.put(
        message("far", process_after=iso(3600)), message("far-b", process_after=plain(3600)),
        message("junk", process_after="soon"), message("empty", process_after=""),
        message("past", "past", process_after=plain(-60)), message("past-a", "past a", process_after=iso(-60)),
        message("offset", "offset", process_after="2020-01-01T00:00:00+02:00"),
        message("near", "near", process_after=iso(2)),
    )
    began = time.time()
    s.start()
    s.until_acked("past", "past-a", "offset")
    s.until_acked("near")
    check(time.time() - began > 1, "near was taken up before its time")
    equal(s.texts(), ["echo: past", "echo: past a", "echo: offset", "echo: near"], "the answers")
    equal([s.ack(id) for id in ("far", "far-b", "junk", "empty")], [None] * 4, "acks of what is not due")


@case("prompt", "contract 9, 18")
def as_many_as_configured(s):
    """container.json says how many triggers one prompt takes."""
    s.container["maxMessagesPerPrompt"] = 1
    s.configure()
    s.put(message("a", "first"), context("c"), message("b", "second"), message("d", "third"))
    s.start()
    s.until_acked("a", "c", "b", "d")
    prompts = s.texts()
    equal(len(prompts), 3, "turns")
    check("first" in prompts[0] and "second" in prompts[1] and "third" in prompts[2], f"out of order: {prompts}")


@case("echo", "contract 4.1, 6: a number may be missing")
def a_row_without_a_number(s):
    """A row without a number is worked off like any other."""
    s.put(message("a", "one"), message("n", "no number", seq=None))
    s.start()
    s.until_acked("a", "n")
    equal(sorted(s.texts()), ["echo: no number", "echo: one"], "the answers")


@case("echo", "design 5: 1 MiB of content")
def a_large_message(s):
    """A message as large as a host lets through is answered, and its answer is whole."""
    text = "zwölf Boxkämpfer " * 40_000
    s.put(message("a", text.strip()), message("b", "small"))
    s.start()
    s.until_acked("a", "b")
    texts = s.texts()
    equal([len(text) for text in texts], [len("echo: ") + len(text.strip()), len("echo: small")], "the lengths")


@case("slow", "contract 7, 9: what comes in mid-turn")
def poison_in_mid_turn(s):
    """What cannot be used fails alone in mid-turn too, and the turn and its follow-up go on."""
    s.put(message("a", "slowly one"))
    runner = s.start()
    s.until("a is claimed", lambda: s.ack("a") == "processing")
    s.put(message("bad", content="null"), message("b", "two"))
    s.until_acked("a", "b")
    s.until_acked("bad", status="failed")
    equal(s.texts(), ["slow: slowly one", "echo: two"], "the answers")
    check(runner.is_alive(), "the runner ended")


@case("echo", "contract 9, 16", short=True)
def on_wake_is_for_the_first_look(s):
    """A message for the next start is seen by a runner's first look and by no later one."""
    s.put(message("w1", "woken", on_wake=1), message("a", "hello"))
    runner = s.start()
    s.until_acked("w1", "a")
    s.put(message("w2", "later", on_wake=1))
    s.settled("m1")
    s.put(message("b", "more"))
    s.until_acked("b")
    equal(s.ack("w2"), None, "the ack of what is for the next start")
    runner.stop(10)
    s.start()
    s.until_acked("w2")


@case("echo", "contract 23")
def an_older_folder(s):
    """A folder from before `on_wake` and with two of four tables is worked off all the same."""
    with s.writing() as db:
        db.execute("ALTER TABLE messages_in DROP COLUMN on_wake")
    with closing(sqlite3.connect(s.outbound_db)) as db:
        db.executescript("DROP TABLE session_state; DROP TABLE container_state")
    s.put(message("a", "hello"))
    s.start()
    s.until_acked("a")
    equal(s.texts(), ["echo: hello"], "the answers")
    equal(len(s.read("SELECT name FROM sqlite_schema WHERE name IN ('session_state', 'container_state')")), 2,
          "tables made by the runner")


@case("echo", "contract 4.1, 10")
def only_pending_rows(s):
    """Rows that the host has paused, failed or completed are left alone, and so are those with a final ack."""
    s.prepare("INSERT INTO processing_ack VALUES ('done', 'completed', datetime('now'))")
    s.prepare("INSERT INTO processing_ack VALUES ('lost', 'failed', datetime('now'))")
    s.put(message("p", status="paused"), message("f", status="failed"), message("c", status="completed"),
          message("done"), message("lost"))
    s.start()
    s.settled("m1")
    equal(s.acks(), {"done": "completed", "lost": "failed", "m1": "completed"}, "the acks")
    equal(s.texts(), ["echo: marker m1"], "the answers")


@case("echo", "contract 9, weak spots 11 and 12")
def poison_fails_alone(s):
    """What cannot be used fails by itself, with a reason that quotes nothing; the rest of its batch is answered."""
    s.put(
        message("a", "one"), message("null", content="null"), message("number", content=compact({"text": 7})),
        message("array", content=compact(["zucchini"])), message("object", content=compact({"text": {"zucchini": 1}})),
        message("odd", kind="telepathy"), message("raw", content="just words"), message("z", "two"),
    )
    runner = s.start()
    s.until_acked("a", "raw", "z")
    bad = ["null", "number", "array", "object", "odd"]
    s.until_acked(*bad, status="failed")
    equal(s.texts(), ["echo: one", "echo: just words", "echo: two"], "the answers")
    check(runner.is_alive(), "the runner ended")
    if s.extended:
        for id in bad:
            reason = (s.fact(f"failed.{id}") or {}).get("reason")
            check(reason, f"no fact says why {id} failed")
            check("zucchini" not in reason, f"the reason of {id} quotes the message")


@case("echo", "contract 11, 13")
def system_rows_never_reach_the_agent(s):
    """Rows of kind system start no turn and are in no prompt, whatever is in them."""
    rows = [
        message("s1", kind="system", content={"type": "cli_response", "requestId": "r1", "frame": {"id": "r1"}},
                trigger=0),
        message("s2", kind="system", content={"action": "x", "status": "ok", "result": "zucchini"}),
        message("s3", kind="system", content="null"),
    ]
    s.put(*rows)
    s.start()
    s.stays("no turn", lambda: not s.texts() and s.continuation() is None, 1.5)
    s.settled("m1")
    equal(s.texts(), ["echo: marker m1"], "the answers")


@case("echo", "contract 3, design 3: the host is away", short=True)
def inbound_is_locked_or_gone(s):
    """A locked or missing inbound.db makes the runner wait, never end; it goes on when the host is back."""
    aside = s.inbound_db + ".aside"
    os.rename(s.inbound_db, aside)
    runner = s.start()
    s.stays("the runner waits for the file", runner.is_alive, 2)
    os.rename(aside, s.inbound_db)
    s.put(message("a", "back"))
    s.until_acked("a")
    with closing(sqlite3.connect(s.inbound_db, timeout=5, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        db.execute("INSERT INTO messages_in (id, seq, kind, timestamp, content, channel_type, platform_id) "
                   "VALUES ('b', 4, 'chat', ?, '{\"text\":\"unlocked\"}', 'tg', '7')", (iso(),))
        s.stays("the runner waits for the lock", lambda: runner.is_alive() and s.ack("b") is None, 2)
        db.execute("COMMIT")
    s.until_acked("b")
    equal(s.texts(), ["echo: back", "echo: unlocked"], "the answers")
