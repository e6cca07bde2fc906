"""A runner that is killed once in mid-transaction, after pages of it were written into the database file itself: it
leaves a hot journal. From its second life on it answers."""
import os, signal, sqlite3, sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import foreign_runner as runner

MARK = f"{runner.OUT}/was-killed"


def die_in_mid_transaction(db):
    rows = runner.claim_of(db)
    if not rows:
        return
    open(MARK, "w").close()
    db.execute("PRAGMA cache_size = 2")
    db.execute("BEGIN IMMEDIATE")
    for row in rows:
        db.execute("INSERT OR REPLACE INTO processing_ack VALUES (?, 'processing', datetime('now'))", (row[0],))
    for n in range(50):
        db.execute("INSERT INTO session_state (key, value, updated_at) VALUES (?, ?, datetime('now'))",
                   (f"filler-{n}", "x" * 4000))
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    db = sqlite3.connect(f"{runner.OUT}/outbound.db", timeout=5, isolation_level=None)
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("CREATE TABLE IF NOT EXISTS session_state (key TEXT PRIMARY KEY, value TEXT, updated_at TEXT)")
    db.execute("DELETE FROM processing_ack WHERE status = 'processing'")
    while True:
        if os.path.exists(MARK):
            runner.work(db)
        else:
            die_in_mid_transaction(db)
        runner.time.sleep(0.02)
