"""Heartbeat and tool in flight (contract 14, 15; design 2 rule 5)."""

import time

from case import case
from host import check, equal, message

# At most so much passes between two beats of a runner that waits on a live provider. A host ends a claim after 60 s
# without any sign of life (contract 15).
BEAT_S = 15


@case("echo", "issue: heartbeat at start; weak spot 36", short=True)
def heartbeat_at_start(s):
    """The file is there soon after the start, without any message."""
    s.start()
    s.until("there is a heartbeat", lambda: s.beat() is not None, 10)


@case("slow-alone", "contract 15, 24(b)4")
def heartbeat_with_work(s):
    """The heartbeat moves with a claim and with what the provider does."""
    s.start()
    s.settled("m1")
    first = s.until("there is a heartbeat", s.beat, 5)
    s.put(message("a", "slowly"))
    s.until("a is claimed", lambda: s.ack("a"))
    s.until("the heartbeat moves", lambda: s.beat() > first, 10)
    s.until_acked("a")


@case("live", "issue: heartbeat while waiting on a live provider; weak spot 38", deadline=40)
def heartbeat_while_waiting(s):
    """The heartbeat moves while a provider that says nothing is alive and at work, and not all the time."""
    s.start()
    s.put(message("a", "long"))
    s.until("a is claimed", lambda: s.ack("a") == "processing")
    s.until("a second passes", _after(1), 5)
    beats = {s.beat()}

    def moved():
        beats.add(s.beat())
        return len(beats) > 1
    s.until("the heartbeat moves although nothing is said", moved, BEAT_S)
    s.until_acked("a")
    equal(s.texts(), ["after all: long"], "the answers")


@case("dead", "issue: not when its process is gone")
def no_heartbeat_for_a_dead_provider(s):
    """The heartbeat does not move for a provider that works no more."""
    s.start()
    s.put(message("a", "long"))
    s.until("a is claimed", lambda: s.ack("a") == "processing")
    s.until("two seconds pass", _after(2), 5)
    last = s.beat()
    s.stays("no heartbeat", lambda: s.beat() == last, BEAT_S)


@case("echo", "contract 15")
def no_heartbeat_while_idle(s):
    """A runner with nothing to do does not pretend to be at work."""
    s.start()
    s.put(message("a", "one"))
    s.until_acked("a")
    s.until("two seconds pass", _after(2), 5)
    last = s.beat()
    s.stays("no heartbeat", lambda: s.beat() == last, BEAT_S)


@case("tool", "contract 14")
def tool_in_flight(s):
    """container_state names the tool with its declared timeout while it runs, and nothing afterwards."""
    s.start()
    s.put(message("a", "build"))
    found = s.until("a tool is announced", lambda: s.tool() if s.tool()[0] else None)
    equal(found, ("Bash", 2000), "the tool")
    rows = s.read("SELECT tool_started_at, updated_at FROM container_state WHERE id = 1")
    check(rows and all(text and text.endswith("Z") for text in rows[0]), f"times in another form: {rows}")
    s.until_acked("a")
    equal(s.tool(), (None, None), "the tool after its end")
    equal(s.texts(), ["built"], "the answers")


@case("echo", "contract 24(b)5, weak spot 39")
def tool_of_an_earlier_run(s):
    """A tool that an earlier run left announced is gone after the start."""
    s.prepare("INSERT INTO container_state VALUES (1, 'Bash', 3600000, '2026-01-01T00:00:00.000Z', "
              "'2026-01-01T00:00:00.000Z')")
    s.start()
    s.until("the tool is forgotten", lambda: s.tool() == (None, None))


def _after(seconds):
    ends = time.monotonic() + seconds
    return lambda: time.monotonic() >= ends
