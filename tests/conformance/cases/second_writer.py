"""A second process that writes into outbound.db as a tool server does: numbers taken under BEGIN IMMEDIATE."""

import sqlite3
import sys

outbound, inbound, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
db = sqlite3.connect(outbound, timeout=30, isolation_level=None)
for n in range(count):
    db.execute("BEGIN IMMEDIATE")
    # Opened anew for each number, as readers of the host's file do (contract 3).
    host = sqlite3.connect(f"file:{inbound}?mode=ro", uri=True, timeout=30)
    (theirs,) = host.execute("SELECT coalesce(max(seq), 0) FROM messages_in").fetchone()
    host.close()
    (ours,) = db.execute("SELECT coalesce(max(seq), 0) FROM messages_out").fetchone()
    top = max(ours, theirs)
    db.execute(
        "INSERT INTO messages_out (id, seq, timestamp, kind, platform_id, channel_type, content) "
        "VALUES (?, ?, datetime('now'), 'chat', '7', 'tg', '{\"text\":\"other\"}')",
        (f"other-{n}", top + 1 + top % 2))
    db.execute("COMMIT")
