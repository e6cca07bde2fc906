"""Scripts that decide whether a task's agent is asked at all (contract 11)."""

import os

from case import case
from host import check, equal, message, task

# What is added to a script's own time for the runner to end it and say so.
SLACK_S = 20
# So long after its end a child of the script would show that it still lives.
CHILD_S = 8


def _gated(s, script, seconds=None):
    """The task is done without the agent; another message shows that the runner works on."""
    s.put(task("t", "ask the agent", script))
    runner = s.start()
    s.until_acked("t", seconds=seconds)
    s.settled("m1")
    equal(s.texts(), ["echo: marker m1"], "the answers")
    check(runner.is_alive(), "the runner ended")
    if s.extended:
        told = [key for key, value in s.facts().items() if key.endswith(".t") or '"t"' in value]
        check(told, f"no fact tells the outcome of the script; facts {sorted(s.facts())}")


@case("prompt", "contract 11")
def script_wakes_with_data(s):
    """A script that says so wakes the agent, and its data is in the prompt."""
    script = "echo some noise\necho '{\"wakeAgent\": true, \"data\": {\"rain\": \"<heavy>\"}}'"
    s.put(task("t", "take an umbrella", script))
    s.start()
    s.until_acked("t")
    prompt = s.prompt()
    for part in ["Script output:", "rain", "heavy", "Instructions:", "take an umbrella"]:
        check(part in prompt, f"{part!r} is not in the prompt {prompt!r}")
    check("<heavy>" not in prompt, "the script's data is not escaped")


@case("echo", "contract 11")
def script_wakes(s):
    """A script that wakes the agent needs no data."""
    s.put(task("t", "go", "echo '{\"wakeAgent\":true}'"))
    s.start()
    s.until_acked("t")
    equal(s.texts(), ["echo: go"], "the answers")


@case("echo", "contract 11")
def script_says_no(s):
    """A script that says no ends the task."""
    _gated(s, "echo '{\"wakeAgent\":false,\"data\":1}'")


@case("echo", "contract 11")
def script_fails(s):
    """A script that ends with an error ends the task, whatever it printed."""
    _gated(s, "echo '{\"wakeAgent\":true}'\nexit 3")


@case("echo", "contract 11")
def script_prints_no_json(s):
    """A last line that is no JSON ends the task."""
    _gated(s, "echo '{\"wakeAgent\":true}'\necho done")


@case("echo", "contract 11")
def script_prints_nothing(s):
    """A script without output ends the task."""
    _gated(s, "true")


@case("echo", "contract 11")
def script_says_something_else(s):
    """A wakeAgent that is no boolean ends the task."""
    _gated(s, "echo '{\"wakeAgent\":\"yes\"}'")


@case("echo", "contract 11; issue: 1 MiB")
def script_prints_too_much(s):
    """Two MiB of output end the task, although the last line would wake the agent."""
    _gated(s, "head -c 2097152 /dev/zero | tr '\\0' 'x'\necho\necho '{\"wakeAgent\":true}'")


@case("scripts", "contract 11; issue: 30 s, killed as a group", deadline=70)
def script_overruns(s):
    """A script that runs too long is ended with its children, and the task with it."""
    limit = s.settings["provider"].get("script_timeout_s", 30)
    marker = f"{s.out_dir}/child-lives"
    _gated(s, f"(sleep {limit + CHILD_S}; touch '{marker}') &\nsleep 600\necho '{{\"wakeAgent\":true}}'",
           seconds=limit + SLACK_S)
    s.stays("its child is gone", lambda: not os.path.exists(marker), CHILD_S + 1)


@case("echo", "contract 11, weak spot 5")
def script_does_not_gate_others(s):
    """A gated task does not take the other messages of its batch with it."""
    s.put(message("a", "one"), task("t", "no", "exit 1"), task("u", "yes", "echo '{\"wakeAgent\":true}'"))
    s.start()
    s.until_acked("a", "t", "u")
    equal(sorted(s.texts()), ["echo: one", "echo: yes"], "the answers")


@case("slow", "contract 9 step 8, 11; weak spot 5")
def script_in_mid_turn(s):
    """A gated task in mid-turn ends alone; one that wakes the agent is answered."""
    s.put(message("a", "slowly one"))
    s.start()
    s.until("a is claimed", lambda: s.ack("a") == "processing")
    s.put(task("t", "no", "exit 1"), task("u", "yes", "echo '{\"wakeAgent\":true}'"))
    s.until_acked("a", "t", "u")
    equal(s.texts(), ["slow: slowly one", "echo: yes"], "the answers")
