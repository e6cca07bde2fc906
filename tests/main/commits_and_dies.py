"""Writes one more reply like the last one into an outbound.db, as a runner would, and is then killed in mid-transaction,
after pages of it were written into the database file itself: it leaves a hot journal behind the reply."""
import json, os, signal, sqlite3, sys

path = sys.argv[1]
db = sqlite3.connect(path, timeout=5, isolation_level=None)
db.execute("BEGIN IMMEDIATE")
db.execute(
    "INSERT INTO messages_out (id, seq, in_reply_to, timestamp, kind, platform_id, channel_type, thread_id, content)"
    " SELECT 'written-last', seq + 2, in_reply_to, timestamp, kind, platform_id, channel_type, thread_id, ?"
    " FROM messages_out ORDER BY seq DESC LIMIT 1", (json.dumps({"text": "written last"}),))
db.execute("COMMIT")
db.execute("PRAGMA cache_size = 2")
db.execute("BEGIN IMMEDIATE")
for n in range(50):
    db.execute("INSERT INTO session_state (key, value, updated_at) VALUES (?, ?, datetime('now'))",
               (f"filler-{n}", "x" * 4000))
# As if the agent's user had written it, whose the database is.
owner = os.stat(path)
os.chown(path + "-journal", owner.st_uid, owner.st_gid)
os.kill(os.getpid(), signal.SIGKILL)
