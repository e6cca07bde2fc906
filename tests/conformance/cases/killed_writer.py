"""A runner killed in mid-transaction, after pages of it were written into the file itself: it leaves a hot journal."""

import os
import signal
import sqlite3
import sys

db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode = DELETE")
# So that pages are written before the commit.
db.execute("PRAGMA cache_size = 2")
db.execute("BEGIN IMMEDIATE")
for n in range(50):
    db.execute("INSERT INTO session_state VALUES (?, ?, datetime('now'))", (f"filler-{n}", "x" * 4000))
os.kill(os.getpid(), signal.SIGKILL)
