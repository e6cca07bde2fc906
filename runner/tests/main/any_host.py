"""A host in one page: makes a flat session folder, starts the runner, sends two messages, prints answers."""
import json, os, sqlite3, subprocess, sys, time

runner, folder = sys.argv[1], sys.argv[2]

INBOUND = """
CREATE TABLE messages_in (id TEXT PRIMARY KEY, seq INTEGER UNIQUE, kind TEXT NOT NULL,
  timestamp TEXT NOT NULL, status TEXT DEFAULT 'pending', process_after TEXT, recurrence TEXT, series_id TEXT,
  tries INTEGER DEFAULT 0, trigger INTEGER NOT NULL DEFAULT 1, platform_id TEXT, channel_type TEXT,
  thread_id TEXT, content TEXT NOT NULL, source_session_id TEXT, on_wake INTEGER NOT NULL DEFAULT 0);
CREATE TABLE delivered (message_out_id TEXT PRIMARY KEY, platform_message_id TEXT,
  status TEXT NOT NULL DEFAULT 'delivered', delivered_at TEXT NOT NULL);
CREATE TABLE destinations (name TEXT PRIMARY KEY, display_name TEXT, type TEXT NOT NULL, channel_type TEXT,
  platform_id TEXT, agent_group_id TEXT);
INSERT INTO destinations VALUES ('me', 'Me', 'channel', 'cli', 'local', NULL);
"""

def commit(sql, values=()):
    db = sqlite3.connect(os.path.join(folder, "inbound.db"))
    with db:
        db.executescript(sql) if not values else db.execute(sql, values)
    db.close()


def send(number, text):
    commit("INSERT INTO messages_in (id, seq, kind, timestamp, channel_type, platform_id, content) "
           "VALUES (?, ?, 'chat', datetime('now'), 'cli', 'local', ?)",
           (f"m{number}", number, json.dumps({"text": text, "sender": "me"}, separators=(",", ":"))))


def answer(after):
    for _ in range(3000):
        path = os.path.join(folder, "outbound.db")
        if os.path.exists(path):
            db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            try:
                row = db.execute("SELECT rowid, seq, content FROM messages_out WHERE rowid > ?",
                                 (after,)).fetchone()
                if row:
                    print(row[1], row[2])
                    return row[0]
            except sqlite3.OperationalError:
                pass  # The runner is about to make its tables.
            finally:
                db.close()
        time.sleep(0.01)
    sys.exit("no answer came")


commit(INBOUND)
os.mkdir(os.path.join(folder, "agent"))
with open(os.path.join(folder, "agent", "container.json"), "w") as file:
    json.dump({"provider": "mock"}, file)
process = subprocess.Popen([runner, "--workspace", folder])
send(2, "hello")
seen = answer(0)
send(4, "again")
answer(seen)
process.terminate()
sys.exit(process.wait(10))
