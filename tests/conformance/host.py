"""A host in one file: a session folder as the contract has it, its rows, and the runner's process in it.

Nothing here knows how a runner is made: it writes inbound.db and container.json and reads outbound.db read-only.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone

# The contract's tables (contract 4 and 5), column for column in its order.
INBOUND = """
CREATE TABLE messages_in (
  id TEXT PRIMARY KEY, seq INTEGER UNIQUE, kind TEXT NOT NULL, timestamp TEXT NOT NULL,
  status TEXT DEFAULT 'pending', process_after TEXT, recurrence TEXT, series_id TEXT,
  tries INTEGER DEFAULT 0, trigger INTEGER NOT NULL DEFAULT 1,
  platform_id TEXT, channel_type TEXT, thread_id TEXT, content TEXT NOT NULL,
  source_session_id TEXT, on_wake INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX idx_messages_in_series ON messages_in(series_id);
CREATE TABLE delivered (
  message_out_id TEXT PRIMARY KEY, platform_message_id TEXT,
  status TEXT NOT NULL DEFAULT 'delivered', delivered_at TEXT NOT NULL
);
CREATE TABLE destinations (
  name TEXT PRIMARY KEY, display_name TEXT, type TEXT NOT NULL, channel_type TEXT, platform_id TEXT,
  agent_group_id TEXT
);
CREATE TABLE session_routing (
  id INTEGER PRIMARY KEY CHECK (id = 1), channel_type TEXT, platform_id TEXT, thread_id TEXT
);
"""
OUTBOUND = """
CREATE TABLE messages_out (
  id TEXT PRIMARY KEY, seq INTEGER UNIQUE, in_reply_to TEXT, timestamp TEXT NOT NULL,
  deliver_after TEXT, recurrence TEXT, kind TEXT NOT NULL,
  platform_id TEXT, channel_type TEXT, thread_id TEXT, content TEXT NOT NULL
);
CREATE TABLE processing_ack (message_id TEXT PRIMARY KEY, status TEXT NOT NULL, status_changed TEXT NOT NULL);
CREATE TABLE session_state (key TEXT PRIMARY KEY, value TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE container_state (
  id INTEGER PRIMARY KEY CHECK (id = 1), current_tool TEXT, tool_declared_timeout_ms INTEGER,
  tool_started_at TEXT, updated_at TEXT NOT NULL
);
"""
# The names that the agent knows: two chats that speak, and one that never does.
DESTINATIONS = [
    ("family", "Family", "channel", "tg", "7", None),
    ("work", "Work", "channel", "tg", "8", None),
    ("quiet", None, "channel", "tg", "9", None),
]
ZONE = "Europe/Berlin"
# Between two looks at a condition; far below every time that a case measures.
LOOK_EVERY = 0.01


class Failed(Exception):
    """What the runner did that it must not, or did not do in time."""


def check(condition, reason):
    """Fails the case for this reason unless the condition holds."""
    if not condition:
        raise Failed(reason)


def equal(found, expected, what):
    """Fails the case unless both are equal, and shows both."""
    check(found == expected, f"{what}: found {found!r}, expected {expected!r}")


def iso(seconds_from_now=0.0):
    """Format A of contract 7."""
    at = datetime.now(timezone.utc) + timedelta(seconds=seconds_from_now)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03}Z"


def plain(seconds_from_now=0.0):
    """Format B of contract 7."""
    return (datetime.now(timezone.utc) + timedelta(seconds=seconds_from_now)).strftime("%Y-%m-%d %H:%M:%S")


def compact(value):
    """JSON without spaces, as hosts write it: runners look for literal text in it (contract 11)."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def message(id, text="hi", chat="7", **columns):
    """A chat message; `columns` replace what it has by default, `content` (text or JSON) among them."""
    content = columns.pop("content", {"text": text, "sender": "Ann", "senderId": "tg:1"})
    row = {
        "id": id, "kind": "chat", "timestamp": iso(), "series_id": id, "trigger": 1, "platform_id": chat,
        "channel_type": None if chat is None else "tg", "thread_id": None,
        "content": content if isinstance(content, str) else compact(content),
    }
    row.update(columns)
    return row


def context(id, text="noise", **columns):
    """A message that is there to be known, not to be answered."""
    return message(id, text, trigger=0, **columns)


def task(id, prompt, script=None, **columns):
    """A scheduled task that is due."""
    content = {"prompt": prompt, "script": script}
    return message(id, **{"kind": "task", "content": content, "timestamp": plain(), **columns})


def unescaped(text):
    """A text whose signs were written as entities, so that it could be one block."""
    for entity, sign in [("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")]:
        text = text.replace(entity, sign)
    return text


class Session:
    """One session folder. `settings` has the command, the layout and the provider's sets."""

    def __init__(self, settings, provider, until):
        self.settings = settings
        self.ends = until
        self.root = tempfile.TemporaryDirectory(prefix="conformance-", ignore_cleanup_errors=True)
        root = self.root.name
        self.flat = settings["flat"]
        self.out_dir = root if self.flat else os.path.join(root, "out")
        self.in_dir = root if self.flat else os.path.join(root, "in")
        self.agent_dir = os.path.join(root, "agent")
        for folder in {self.out_dir, self.in_dir, self.agent_dir, os.path.join(self.out_dir, "outbox")}:
            os.makedirs(folder, exist_ok=True)
        self.inbound_db = os.path.join(self.in_dir, "inbound.db")
        self.outbound_db = os.path.join(self.out_dir, "outbound.db")
        self.heartbeat = os.path.join(self.out_dir, ".heartbeat")
        self.runners = []
        self.attempts = 0
        sets = settings["provider"]["sets"]
        if provider not in sets:
            raise Failed(f"the provider's configuration has no set {provider!r}")
        suite = os.path.dirname(os.path.abspath(__file__))
        self.container = json.loads(json.dumps(sets[provider]["container"]).replace("{suite}", suite))
        self.configure()
        for path, tables in [(self.inbound_db, INBOUND), (self.outbound_db, OUTBOUND)]:
            with closing(self._open(path)) as db:
                db.executescript(tables)
        with self.writing() as db:
            db.executemany("INSERT INTO destinations VALUES (?, ?, ?, ?, ?, ?)", DESTINATIONS)
            db.execute("INSERT INTO session_routing VALUES (1, 'tg', '7', NULL)")

    def configure(self):
        """Writes container.json (contract 18)."""
        config = {"agentGroupId": "ag-1", "groupName": "Group", "maxMessagesPerPrompt": 10, **self.container}
        folder = self.agent_dir if self.flat else self.in_dir
        with open(os.path.join(folder, "container.json"), "w", encoding="utf-8") as file:
            json.dump(config, file, indent=2)
            file.write("\n")

    @staticmethod
    def _open(path):
        db = sqlite3.connect(path, timeout=5, isolation_level=None)
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA busy_timeout = 5000")
        return db

    # -- The host's file -------------------------------------------------------------------------------------

    @contextmanager
    def writing(self):
        """One short transaction on inbound.db: opened, written, closed."""
        with closing(self._open(self.inbound_db)) as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    def put(self, *rows):
        """Writes rows in one transaction, with the host's numbers (contract 6)."""
        with self.writing() as db:
            for row in rows:
                (top,) = db.execute("SELECT coalesce(max(seq), 0) FROM messages_in").fetchone()
                row = {"seq": 2 if top < 2 else top + 2 - top % 2, **row}
                names = ", ".join(row)
                marks = ", ".join("?" * len(row))
                db.execute(f"INSERT INTO messages_in ({names}) VALUES ({marks})", list(row.values()))

    def complete(self, *ids):
        """What the host does with an ack, whenever it gets to it."""
        with self.writing() as db:
            db.executemany("UPDATE messages_in SET status = 'completed' WHERE id = ?", [(id,) for id in ids])

    # -- The runner's file -----------------------------------------------------------------------------------

    def read(self, sql, *values):
        """Rows of outbound.db; `None` while it cannot be read.

        A runner that was killed may have left a transaction half made, whose journal no read-only handle can roll
        back. Once none runs any more, a copy is read, as hosts do: what was committed is there, the rest is not.
        """
        found = self.read_in_place(sql, *values)
        if found is None and not any(runner.is_alive() for runner in self.runners):
            return self.read_a_copy(sql, *values)
        return found

    def read_in_place(self, sql, *values):
        """Rows of outbound.db through a read-only handle on the file itself; `None` while it cannot be read."""
        try:
            with closing(sqlite3.connect(f"file:{self.outbound_db}?mode=ro", uri=True, timeout=5)) as db:
                return db.execute(sql, values).fetchall()
        except sqlite3.OperationalError:
            return None

    def read_a_copy(self, sql, *values):
        """Rows of a copy of outbound.db and its journal, rolled back; the files themselves stay as they are."""
        with tempfile.TemporaryDirectory(prefix="conformance-copy-") as folder:
            for suffix in ("", "-journal"):
                try:
                    shutil.copyfile(self.outbound_db + suffix, os.path.join(folder, "outbound.db" + suffix))
                except FileNotFoundError:
                    pass
            with closing(sqlite3.connect(os.path.join(folder, "outbound.db"), timeout=5)) as db:
                return db.execute(sql, values).fetchall()

    def prepare(self, sql, *values):
        """Writes into outbound.db while no runner runs: what an earlier one would have left."""
        with closing(self._open(self.outbound_db)) as db:
            db.execute(sql, values)

    def ack(self, id):
        rows = self.read("SELECT status FROM processing_ack WHERE message_id = ?", id)
        return rows[0][0] if rows else None

    def acks(self):
        return dict(self.read("SELECT message_id, status FROM processing_ack") or [])

    def state(self, key):
        rows = self.read("SELECT value FROM session_state WHERE key = ?", key)
        return rows[0][0] if rows else None

    def fact(self, name):
        """A fact of the session (`lamplighter.NAME` in session_state); `None` without one."""
        text = self.state(f"lamplighter.{name}")
        return None if text is None else json.loads(text)

    @property
    def continuation_key(self):
        return "continuation:" + self.container["provider"].lower()

    def continuation(self):
        return self.state(self.continuation_key)

    def tool(self):
        """`(current_tool, declared timeout)` of container_state; both `None` without a row."""
        rows = self.read("SELECT current_tool, tool_declared_timeout_ms FROM container_state")
        return tuple(rows[0]) if rows else (None, None)

    def sent(self):
        """All rows of messages_out in the order of their commits, as dicts; `content` is parsed."""
        names = ["id", "seq", "in_reply_to", "kind", "platform_id", "channel_type", "thread_id", "content",
                 "timestamp", "deliver_after"]
        rows = self.read(f"SELECT {', '.join(names)} FROM messages_out ORDER BY rowid") or []
        found = [dict(zip(names, row)) for row in rows]
        for row in found:
            row["content"] = json.loads(row["content"])
        return found

    def texts(self):
        """The texts of all rows of kind chat."""
        return [row["content"].get("text") for row in self.sent() if row["kind"] == "chat"]

    def prompt(self):
        """The prompt of the only turn, with the set `prompt`."""
        texts = self.texts()
        equal(len(texts), 1, "turns")
        return unescaped(texts[0])

    def beat(self):
        """The heartbeat's time in nanoseconds; `None` without the file."""
        try:
            return os.stat(self.heartbeat).st_mtime_ns
        except FileNotFoundError:
            return None

    # -- Waiting ---------------------------------------------------------------------------------------------

    def until(self, what, condition, seconds=None):
        """Waits until the condition gives something, and returns it."""
        ends = self.ends if seconds is None else min(self.ends, time.monotonic() + seconds)
        while True:
            found = condition()
            if found:
                return found
            ended = [runner for runner in self.runners if runner.ended_by_itself()]
            check(not ended, f"the runner ended with {ended and ended[-1].process.returncode} before: {what}")
            check(time.monotonic() < ends, f"waited in vain until {what}; acks {self.acks()}, sent {self.texts()}")
            time.sleep(LOOK_EVERY)

    def until_acked(self, *ids, status="completed", seconds=None):
        for id in ids:
            def acked(id=id):
                found = self.ack(id)
                other = {"completed": "failed", "failed": "completed"}.get(status)
                check(found != other, f"{id} was acked {found}, expected {status}; {self.facts()}")
                return found == status
            self.until(f"{id} is acked {status}", acked, seconds)

    def stays(self, what, condition, seconds):
        """Checks for so long that the condition holds: what must not happen has no event to wait for."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            check(condition(), f"not so any more: {what}; acks {self.acks()}, sent {self.texts()}")
            time.sleep(LOOK_EVERY)

    def settled(self, marker):
        """Waits until the runner has looked at all that was put before: a message put now is answered."""
        self.put(message(marker, f"marker {marker}"))
        self.until_acked(marker)

    def facts(self):
        """All facts, for a reason."""
        rows = self.read("SELECT key, value FROM session_state WHERE key LIKE 'lamplighter.%'")
        return dict(rows or [])

    @property
    def extended(self):
        """Whether the runner is to keep facts and attempts (design 5); NanoClaw's own knows neither."""
        return not self.settings["plain"]

    # -- The runner ------------------------------------------------------------------------------------------

    def environment(self, attempt):
        env = {name: os.environ[name] for name in ("PATH", "HOME", "USER", "LANG") if name in os.environ}
        env.update({"TZ": ZONE, "LAMPLIGHTER_ATTEMPT": attempt})
        if not self.flat:
            env.update({
                "LAMPLIGHTER_WORKSPACE": self.out_dir, "LAMPLIGHTER_IN": self.in_dir,
                "LAMPLIGHTER_AGENT": self.agent_dir,
            })
        return env

    def command(self, words):
        return [word.replace("{workspace}", self.out_dir) for word in words]

    def start(self, attempt=None):
        """Starts the runner; a host removes the heartbeat right before (contract 15)."""
        self.attempts += 1
        attempt = attempt or f"3.{self.attempts}"
        try:
            os.remove(self.heartbeat)
        except FileNotFoundError:
            pass
        log = os.path.join(self.root.name, f"log-{len(self.runners) + 1}")
        runner = Runner(self.command(self.settings["command"]), self.environment(attempt), self.out_dir, log)
        self.runners.append(runner)
        return runner

    def let_go(self):
        """Ends what the set `until-go` works on, and will work on."""
        with open(os.path.join(self.out_dir, "go"), "w", encoding="utf-8"):
            pass

    def log(self):
        """The last lines that the last runner wrote."""
        try:
            with open(self.runners[-1].log, encoding="utf-8", errors="replace") as file:
                return file.read()[-1500:]
        except (IndexError, OSError):
            return ""

    def close(self):
        for runner in self.runners:
            runner.kill()
        self.root.cleanup()


class Runner:
    """The runner's process."""

    def __init__(self, command, env, folder, log):
        self.log = log
        self.expected = False
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def ended_by_itself(self):
        return not self.expected and self.process.poll() is not None

    def is_alive(self):
        return self.process.poll() is None

    def kill(self):
        """SIGKILL; nothing of it runs afterwards."""
        self.expected = True
        self.process.kill()
        self.process.wait()

    def stop(self, within):
        """SIGTERM; returns the exit code."""
        self.expected = True
        self.process.send_signal(signal.SIGTERM)
        return self.ended(within)

    def ended(self, within):
        """Waits for the end; returns the exit code."""
        self.expected = True
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise Failed(f"the runner did not end within {within} s") from None
