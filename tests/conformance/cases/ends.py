"""Crashes, stops, restarts, and two runners on one folder (contract 3, 10, 24(b); design 2 rule 9)."""

import os
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

from case import case
from host import check, equal, message, task

KILLED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "killed_writer.py")


@case("until-go", "contract 9, 10", short=True)
def killed_in_mid_turn(s):
    """After a SIGKILL in mid-turn the next runner drops the claims and answers each message once."""
    s.put(message("a", "long one"))
    runner = s.start()
    s.until("a is claimed", lambda: s.ack("a") == "processing")
    s.put(message("b", "two"))
    runner.kill()
    equal(s.ack("a"), "processing", "the claim that was left")
    s.let_go()
    s.start()
    s.until_acked("a", "b")
    equal(s.texts(), ["echo: long one", "echo: two"], "the answers")


@case("echo", "design 2 rule 7, design 8: rows and acks are one transaction")
def killed_again_and_again(s):
    """However often it is killed, and whenever, each message is answered exactly once and in order."""
    # The same moments in every run, as far as the machine allows.
    moments = random.Random(20260518)
    count = 40
    for n in range(0, count, 2):
        s.put(message(f"m{n}", f"text {n}"), message(f"m{n + 1}", f"text {n + 1}"))
        runner = s.start()
        time.sleep(moments.uniform(0.005, 0.15))
        runner.kill()
    s.start()
    s.until_acked(*[f"m{n}" for n in range(count)])
    equal(s.texts(), [f"echo: text {n}" for n in range(count)], "the answers")
    (checked,), = s.read("PRAGMA integrity_check")
    equal(checked, "ok", "SQLite's check of outbound.db")


@case("slow", "design 8, weak spot 3")
def killed_after_a_push(s):
    """A message that was pushed into a turn which a SIGKILL ended is answered by the next runner, once."""
    s.put(message("a", "slowly one"))
    runner = s.start()
    s.until("a is claimed", lambda: s.ack("a") == "processing")
    s.put(message("b", "two"))
    s.until("b is pushed", lambda: s.ack("b") == "processing", 5)
    runner.kill()
    s.start()
    s.until_acked("a", "b")
    equal(sorted(s.texts()), ["echo: two", "slow: slowly one"], "the answers")


@case("echo", "contract 10, 24(b)6")
def stale_claims_are_dropped(s):
    """Claims of an earlier run are dropped at the start; final acks stay."""
    for id, status in [("a", "processing"), ("gone", "processing"), ("done", "completed"), ("bad", "failed")]:
        s.prepare("INSERT INTO processing_ack VALUES (?, ?, '2026-01-01 00:00:00')", id, status)
    s.put(message("a", "again"))
    s.start()
    s.until_acked("a")
    equal(s.acks(), {"a": "completed", "done": "completed", "bad": "failed"}, "the acks")


@case("until-go", "contract 24(b)3; issue: PID 1 duties", short=True)
def terminated_in_mid_turn(s):
    """SIGTERM in mid-turn ends the runner in its grace: no journal, no claim; the next runner answers."""
    s.put(message("a", "long one"))
    runner = s.start()
    s.until("a is claimed", lambda: s.ack("a") == "processing")
    code = runner.stop(within=5)
    check(code in (0, 143), f"exit code {code}")
    check(not os.path.exists(s.outbound_db + "-journal"), "a journal was left")
    check(s.ack("a") != "processing", "the claim was left")
    check(s.ack("a") is None, f"a is acked {s.ack('a')} although it was not answered")
    s.let_go()
    s.start()
    s.until_acked("a")
    equal(s.texts(), ["echo: long one"], "the answers")


@case("stubborn", "contract 24(b)3, 21: killed one second after SIGTERM", extension=True)
def terminated_with_a_stubborn_agent(s):
    """SIGTERM gives the messages back first, whatever the agent's process does; then nothing of it is left."""
    s.put(message("a", "one"))
    runner = s.start()
    marker = os.path.join(s.agent_dir, "stubborn-runs")
    s.until("the agent runs", lambda: os.path.exists(marker) and open(marker, encoding="utf-8").read().strip())
    with open(marker, encoding="utf-8") as file:
        agent = int(file.read())
    check(s.ack("a") == "processing", f"a is acked {s.ack('a')}")
    runner.expected = True
    runner.process.terminate()
    released = False
    ends = time.monotonic() + 10
    while runner.is_alive() and time.monotonic() < ends:
        released = released or (s.ack("a") is None and os.path.exists(f"/proc/{agent}"))
        time.sleep(0.005)
    check(not runner.is_alive(), "the runner did not end")
    check(released, "a was given back only after the agent's end")
    equal(s.ack("a"), None, "the ack of a")
    check(not os.path.exists(f"/proc/{agent}"), "the agent's process is left")


@case("echo", "contract 24(b)3")
def terminated_while_idle(s):
    """SIGTERM to a runner with nothing to do ends it at once."""
    s.put(message("a", "one"))
    runner = s.start()
    s.until_acked("a")
    code = runner.stop(within=3)
    check(code in (0, 143), f"exit code {code}")


@case("echo", "contract 24(b)3; issue: killed as a group")
def terminated_while_a_script_runs(s):
    """SIGTERM while a task's script runs ends both, and the task is there for the next runner."""
    marker = os.path.join(s.out_dir, "script-runs")
    over = os.path.join(s.out_dir, "script-is-over")
    once = f"[ -e '{marker}' ] || {{ touch '{marker}'; sleep 4; touch '{over}'; }}"
    s.put(task("t", "water", once + "\necho '{\"wakeAgent\":true}'"))
    runner = s.start()
    s.until("the script runs", lambda: os.path.exists(marker))
    code = runner.stop(within=3)
    check(code in (0, 143), f"exit code {code}")
    check(s.ack("t") is None, f"t is acked {s.ack('t')}")
    s.stays("the script does not go on", lambda: not os.path.exists(over), 4.5)
    s.start()
    s.until_acked("t")
    equal(s.texts(), ["echo: water"], "the answers")


@case("echo", "contract 3, 6: other writers of outbound.db")
def outbound_is_locked(s):
    """A tool that holds outbound.db for a while makes the runner wait, never end."""
    runner = s.start()
    s.settled("m1")
    with closing(sqlite3.connect(s.outbound_db, timeout=5, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        s.put(message("a", "one"))
        # Longer than the five seconds that a connection waits by itself (contract 3).
        s.stays("the runner waits", runner.is_alive, 7)
        db.execute("COMMIT")
    s.until_acked("a")
    equal(s.texts(), ["echo: marker m1", "echo: one"], "the answers")


@case("echo", "contract 3, design 3: hot journals")
def hot_journal(s):
    """What a killed writer left in outbound.db is rolled back at the start, and the work goes on."""
    s.put(message("a", "one"))
    killed = subprocess.run([sys.executable, KILLED, s.outbound_db], check=False)
    check(killed.returncode == -9, f"the writer was not killed: {killed.returncode}")
    check(os.path.getsize(s.outbound_db + "-journal") > 0, "no journal was left")
    equal(s.read_in_place("SELECT count(*) FROM session_state"), None, "a read-only look at a hot journal")
    rows = "SELECT count(*) FROM session_state WHERE key LIKE 'filler-%'"
    equal(s.read(rows), [(0,)], "rows of the killed writer in the copy that hosts read")
    s.start()
    s.until_acked("a")
    equal(s.texts(), ["echo: one"], "the answers")
    equal(s.read(rows), [(0,)], "rows of the killed writer")


@case("until-go", "design 2 rule 9, design 8", extension=True, short=True)
def a_newer_attempt_fences(s):
    """A runner whose attempt is no longer the stored one ends with 75 and changes nothing."""
    s.put(message("a", "long one"))
    runner = s.start("3.1")
    s.until("a is claimed", lambda: s.ack("a") == "processing")
    equal(s.state("lamplighter.attempt"), "3.1", "the stored attempt")
    s.prepare("UPDATE session_state SET value = '3.2' WHERE key = 'lamplighter.attempt'")
    before = _all(s)
    # The claim is given back, were it not for the fence.
    code = runner.stop(within=10)
    equal(code, 75, "the exit code")
    equal(_all(s), before, "what is stored")


@case("slow", "design 2 rule 9, design 8", extension=True)
def a_second_runner_takes_over(s):
    """Of two runners on one folder the later attempt works; the earlier ends with 75, and nothing is sent twice."""
    s.put(message("a", "slowly one"))
    first = s.start("3.1")
    s.until("a is claimed", lambda: s.ack("a") == "processing")
    first.expected = True
    s.start("3.2")
    equal(first.ended(within=15), 75, "the exit code of the earlier one")
    s.until_acked("a")
    s.settled("m1")
    equal(s.texts(), ["slow: slowly one", "echo: marker m1"], "the answers")


@case("echo", "design 2 rule 9", extension=True)
def an_older_attempt_does_not_start(s):
    """A runner whose attempt is older than the stored one ends with 75 before it touches anything."""
    s.prepare("INSERT INTO session_state VALUES ('lamplighter.attempt', '4.7', '2026-01-01T00:00:00.000Z')")
    s.prepare("INSERT INTO processing_ack VALUES ('a', 'processing', '2026-01-01 00:00:00')")
    s.put(message("a", "one"), message("b", "two"))
    before = _all(s)
    equal(s.start("3.9").ended(within=10), 75, "the exit code")
    equal(_all(s), before, "what is stored")


@case("echo", "contract 18")
def an_unknown_provider(s):
    """A provider that nobody knows ends the runner at the start with an error, and claims nothing."""
    s.container = {"provider": "telepathy"}
    s.configure()
    s.put(message("a", "one"))
    code = s.start().ended(within=10)
    check(code != 0, "the exit code says that all is well")
    equal(s.acks(), {}, "the acks")


def _all(s):
    tables = ["messages_out", "processing_ack", "session_state", "container_state"]
    return {table: s.read(f"SELECT * FROM {table} ORDER BY 1") for table in tables}
