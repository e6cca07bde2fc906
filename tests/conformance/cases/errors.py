"""Errors of the provider, conversations that are gone, and commands (contract 9, 14, 22)."""

from case import case
from host import check, equal, message


@case("errors", "design 5 and 8, weak spot 4", deadline=45)
def transient_error(s):
    """An error that passes is tried again after a wait; the chat hears nothing of it."""
    s.put(message("a", "overload please", thread_id="th-7"))
    s.start()
    if s.extended:
        fact = s.until("a is released with a fact", lambda: s.fact("release.a"))
        check(fact.get("class") and fact.get("reason"), f"the fact says too little: {fact}")
        check("overload please" not in str(fact), "the fact quotes the message")
        check(s.ack("a") != "completed", "a is acked completed although it is to be tried again")
    s.until_acked("a")
    equal(s.texts(), ["echo: overload please"], "what the chat heard")


@case("errors", "design 8, weak spots 4 and 23")
def permanent_error(s):
    """An error that does not pass fails the message with a reason; the chat hears nothing of it from the runner."""
    s.put(message("a", "refused"), message("note", "refused", channel_type="agent", platform_id="ag-1"))
    runner = s.start()
    s.until_acked("a", "note", status="failed")
    if s.extended:
        for id in ("a", "note"):
            check((s.fact(f"failed.{id}") or {}).get("reason"), f"no fact says why {id} failed")
    equal(s.sent(), [], "what was sent")
    s.settled("m1")
    check(runner.is_alive(), "the runner ended")


def _remembered(s, key, value):
    s.prepare("INSERT INTO session_state VALUES (?, ?, '2026-01-01T00:00:00.000Z')", key, value)


@case("stale", "contract 9, 14; issue: stale continuation")
def stale_continuation(s):
    """An unknown conversation is forgotten, and the message is tried again at once in a fresh one."""
    adopted = s.settings["provider"]["adopted"]
    _remembered(s, s.continuation_key, adopted)
    s.put(message("a", "stale bread"))
    s.start()
    s.until_acked("a")
    equal(s.texts(), ["echo: stale bread"], "what the chat heard")
    fresh = s.settings["provider"].get("fresh")
    if fresh:
        equal(s.continuation(), fresh, "the continuation of a fresh conversation")
    check(s.continuation() != adopted, "the stale continuation is still there")
    if s.extended:
        equal(s.fact("failed.a"), None, "the fact of a failure")


@case("echo", "contract 14")
def continuation_is_kept(s):
    """A conversation goes on after a restart."""
    s.put(message("a", "one"))
    runner = s.start()
    s.until_acked("a")
    first = s.continuation()
    check(first, "no continuation is stored")
    runner.stop(10)
    s.put(message("b", "two"))
    s.start()
    s.until_acked("b")
    fresh = s.settings["provider"].get("fresh")
    if fresh:
        equal(first, fresh, "the first continuation")
        check(s.continuation() != fresh, "the second start began anew")


@case("echo", "contract 14")
def legacy_continuation_is_adopted(s):
    """The old key's conversation is taken over once, and the old key is gone before any message."""
    adopted = s.settings["provider"]["adopted"]
    _remembered(s, "sdk_session_id", adopted)
    s.start()
    s.until("the old key is gone", lambda: s.state("sdk_session_id") is None and s.continuation())
    equal(s.continuation(), adopted, "the continuation")


@case("echo", "contract 14")
def legacy_continuation_is_dropped(s):
    """The old key is deleted without being taken over where there is a conversation already."""
    _remembered(s, "sdk_session_id", "elsewhere")
    _remembered(s, s.continuation_key, s.settings["provider"]["adopted"])
    s.start()
    s.until("the old key is gone", lambda: s.state("sdk_session_id") is None)
    equal(s.continuation(), s.settings["provider"]["adopted"], "the continuation")


@case("echo", "contract 14")
def other_providers_keep_theirs(s):
    """The conversation of another provider is left as it is."""
    _remembered(s, "continuation:elsewhere", "their-own")
    s.put(message("a", "one"))
    s.start()
    s.until_acked("a")
    equal(s.state("continuation:elsewhere"), "their-own", "the other provider's continuation")


@case("echo", "contract 9, 22")
def clear(s):
    """`/clear` drops the conversation and says so; the agent does not see it."""
    s.put(message("a", "one"))
    s.start()
    s.until_acked("a")
    check(s.continuation(), "no continuation is stored")
    s.put(message("b", " /Clear ", thread_id="th-7"))
    s.until_acked("b")
    equal(s.texts(), ["echo: one", "Session cleared."], "what the chat heard")
    row = s.sent()[-1]
    equal((row["platform_id"], row["thread_id"], row["in_reply_to"]), ("7", "th-7", "b"), "where it was said")
    equal(s.continuation(), None, "the continuation")
    s.put(message("c", "two"))
    s.until_acked("c")
    equal(s.texts()[-1], "echo: two", "the next answer")
    fresh = s.settings["provider"].get("fresh")
    if fresh:
        equal(s.continuation(), fresh, "the continuation of a fresh conversation")


@case("echo", "contract 9, 22; weak spot 59")
def clear_is_matched_exactly(s):
    """`/clearance` and words that only contain the command do not clear."""
    s.put(message("a", "one"))
    s.start()
    s.until_acked("a")
    for id, text in [("b", "/clearance sale"), ("c", "please /clear"), ("d", "/clear_all")]:
        s.put(message(id, text))
        s.until_acked(id)
    equal(s.texts(), ["echo: one", "echo: /clearance sale", "echo: please /clear", "echo: /clear_all"],
          "what the chat heard")
    fresh = s.settings["provider"].get("fresh")
    if fresh:
        check(s.continuation() != fresh, "the conversation began anew")


@case("echo", "contract 9, 22")
def clear_beside_other_messages(s):
    """A `/clear` in a batch is answered once, and the other messages are answered too."""
    s.put(message("a", "one"), message("b", "/clear"), message("c", "two"))
    s.start()
    s.until_acked("a", "b", "c")
    texts = s.texts()
    equal(sorted(texts), ["Session cleared.", "echo: one", "echo: two"], "what the chat heard")
    check(texts.index("echo: one") < texts.index("echo: two"), f"out of order: {texts}")


@case("slow", "contract 9, 22")
def clear_in_mid_turn(s):
    """A `/clear` in mid-turn comes after the turn's answer, and what follows it is a fresh conversation."""
    s.put(message("a", "slowly one"))
    s.start()
    s.until("a is claimed", lambda: s.ack("a") == "processing")
    s.put(message("b", "/clear"), message("c", "two"))
    s.until_acked("a", "b", "c")
    equal(s.texts(), ["slow: slowly one", "Session cleared.", "echo: two"], "what the chat heard")
    fresh = s.settings["provider"].get("fresh")
    if fresh:
        equal(s.continuation(), fresh, "the continuation of a fresh conversation")


@case("errors", "design 8, weak spot 4", deadline=45)
def an_error_is_its_turns_alone(s):
    """While one message waits to be tried again, others are answered."""
    s.put(message("a", "overload"))
    s.start()
    s.until("a is given back", lambda: s.ack("a") is None and (not s.extended or s.fact("release.a")))
    s.put(message("b", "meanwhile"))
    s.until_acked("b")
    check(s.ack("a") != "completed", "a was not held back")
    s.until_acked("a")
    equal(s.texts(), ["echo: meanwhile", "echo: overload"], "what the chat heard")


@case("echo", "contract 22")
def clear_in_context_or_task_is_text(s):
    """Only a chat message is a command: a task that says /clear is a task."""
    _remembered(s, s.continuation_key, s.settings["provider"]["adopted"])
    s.put(message("t", kind="task", content={"prompt": "/clear", "script": None}))
    s.start()
    s.until_acked("t")
    check("Session cleared." not in s.texts(), "a task cleared the session")
