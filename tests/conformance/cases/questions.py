"""A question of the agent and its answer, through the runner's tool server (contract 11 to 13, 20)."""

import time

from case import case
from host import check, compact, equal, message
from mcp import Tools, text_of


def _ask(s, tools, timeout):
    """Asks; returns the request's number and the question's id once the row is there."""
    number = tools.call("ask_user_question", title="Dinner", question="Soup or salad?", options=["Soup", "Salad"],
                        timeout=timeout)
    row = s.until("the question is sent", lambda: next((r for r in s.sent() if r["kind"] == "chat-sdk"), None))
    content = row["content"]
    equal((content["type"], content["title"], content["question"]), ("ask_question", "Dinner", "Soup or salad?"),
          "the question")
    equal(content["questionId"], row["id"], "the row's id")
    equal((row["channel_type"], row["platform_id"]), ("tg", "7"), "where it is asked")
    equal([option["label"] for option in content["options"]], ["Soup", "Salad"], "the labels")
    check(all({"label", "selectedLabel", "value"} <= set(option) for option in content["options"]),
          f"an option lacks a part: {content['options']}")
    check(row["seq"] % 2 == 1, f"an even number: {row['seq']}")
    return number, row["id"], content["options"][1]["value"]


def _answer(s, question, value):
    """What a host writes when somebody chose; returns the row's id."""
    id = f"qr-{question}-{int(time.time() * 1000)}"
    s.put(message(id, kind="system", content={
        "type": "question_response", "questionId": question, "selectedOption": value, "userId": "tg:1"}))
    return id


@case("echo", "contract 12, 13, 20")
def question_round_trip(s):
    """The answer reaches the tool as its value, is acked, and reaches nobody else."""
    s.start()
    with Tools(s) as tools:
        number, question, value = _ask(s, tools, timeout=20)
        id = _answer(s, question, value)
        result = tools.wait(number)
        check(not result.get("isError"), f"the tool failed: {result}")
        check(value in text_of(result), f"the value {value!r} is not in the result {result}")
        s.until_acked(id)
    s.settled("m1")
    equal(s.texts(), ["echo: marker m1"], "what was said")


@case("echo", "weak spot 38", extension=True)
def question_is_announced(s):
    """While a question waits, a fact says so and until when; afterwards it does not."""
    s.start()
    with Tools(s) as tools:
        number, question, value = _ask(s, tools, timeout=20)
        fact = s.until("a fact names the question", lambda: s.fact("wait"))
        check(question in fact.get("questions", {}) and fact.get("until"), f"the fact says too little: {fact}")
        _answer(s, question, value)
        tools.wait(number)
        s.until("the fact is gone", lambda: question not in str(s.fact("wait")))


@case("echo", "contract 24(a)5, weak spot 37")
def late_answer(s):
    """An answer after the tool gave up is taken off the list, so that it is not due for ever."""
    s.start()
    with Tools(s) as tools:
        number, question, value = _ask(s, tools, timeout=1)
        result = tools.wait(number)
        check(result.get("isError"), f"the tool did not give up: {result}")
        id = _answer(s, question, value)
        s.until_acked(id)


@case("echo", "contract 24(a)5, weak spot 37")
def late_answer_to_nobody(s):
    """An answer whose asker is gone is taken off the list too, by the next runner at the latest."""
    runner = s.start()
    with Tools(s) as tools:
        number, question, value = _ask(s, tools, timeout=1)
        tools.wait(number)
    runner.stop(10)
    id = _answer(s, question, value)
    s.put(message("a", "one"))
    s.start()
    s.until_acked("a")
    s.until_acked(id, seconds=10)


@case("prompt", "issue: a late answer is consumed and reported as late; weak spot 37")
def late_answer_is_told(s):
    """An answer that nobody waits for any more starts no turn; the next prompt tells of it, and only that one."""
    content = {"type": "ask_question", "questionId": "q-1", "title": "Dinner", "question": "Soup or salad?",
               "options": [{"label": "Salad", "selectedLabel": "Salad it is", "value": "salad-1"}]}
    s.prepare("INSERT INTO messages_out (id, seq, timestamp, kind, platform_id, channel_type, content) "
              "VALUES ('q-1', 1, datetime('now'), 'chat-sdk', '7', 'tg', ?)", compact(content))
    s.start()
    id = _answer(s, "q-1", "salad-1")
    s.until_acked(id)
    s.stays("no turn", lambda: s.continuation() is None, 1)
    for id in ("a", "b"):
        s.put(message(id, "hello"))
        s.until_acked(id)
    prompts = [row["content"]["text"] for row in s.sent() if row["kind"] == "chat"]
    equal(["Dinner" in prompt and ("salad-1" in prompt or "Salad" in prompt) for prompt in prompts], [True, False],
          "prompts that tell of the answer")


@case("echo", "contract 12, 12.2, 20")
def a_tool_sends(s):
    """A tool's message is a row like any other, with an odd number."""
    s.start()
    with Tools(s) as tools:
        result = tools.wait(tools.call("send_message", to="work", text="from a tool"))
        check(not result.get("isError"), f"the tool failed: {result}")
        result = tools.wait(tools.call("send_message", to="nobody", text="lost"))
        check(result.get("isError"), f"an unknown destination was accepted: {result}")
    row, = s.sent()
    equal((row["kind"], row["platform_id"], row["content"]), ("chat", "8", {"text": "from a tool"}), "the row")
    check(row["seq"] % 2 == 1, f"an even number: {row['seq']}")


@case("live", "contract 12.2; issue: in_reply_to is right although tools run in another process")
def a_tool_knows_what_it_answers(s):
    """A row that a tool sends in mid-turn answers the message that is being worked on."""
    s.put(message("a", "long", thread_id="th-7"))
    s.start()
    s.until("a is claimed", lambda: s.ack("a") == "processing")
    with Tools(s) as tools:
        result = tools.wait(tools.call("send_message", to="family", text="on it"))
        check(not result.get("isError"), f"the tool failed: {result}")
    row, = s.sent()
    equal((row["in_reply_to"], row["content"]), ("a", {"text": "on it"}), "the row")
