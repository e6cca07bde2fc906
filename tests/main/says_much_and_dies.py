"""A runner that commits as many replies as its argument says, and is then killed in mid-transaction, after pages of it
were written into the database file itself: it leaves a hot journal behind the replies, which nobody rolls back."""
import json, os, signal, sqlite3, sys

path = os.path.join(os.environ["LAMPLIGHTER_WORKSPACE"], "outbound.db")
db = sqlite3.connect(path, timeout=5, isolation_level=None)
db.execute("BEGIN IMMEDIATE")
for n in range(int(sys.argv[1])):
    db.execute(
        "INSERT INTO messages_out (id, seq, timestamp, kind, platform_id, channel_type, content)"
        " VALUES (?, ?, datetime('now'), 'chat', 'chat:main', 'chat', ?)",
        (f"r{n}", 2 * n + 1, json.dumps({"text": f"reply {n}"})))
db.execute("COMMIT")
db.execute("PRAGMA cache_size = 2")
db.execute("BEGIN IMMEDIATE")
for n in range(50):
    db.execute("INSERT INTO session_state (key, value, updated_at) VALUES (?, ?, datetime('now'))",
               (f"filler-{n}", "x" * 4000))
os.kill(os.getpid(), signal.SIGKILL)
