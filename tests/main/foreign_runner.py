"""A runner in sixty lines: any program that speaks the session-folder contract can be one."""
import json, os, signal, sqlite3, sys, time

OUT, IN = os.environ["LAMPLIGHTER_WORKSPACE"], os.environ["LAMPLIGHTER_IN"]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def inbound(query, *args):
    db = sqlite3.connect(f"file:{IN}/inbound.db?mode=ro", uri=True, timeout=5)
    try:
        return db.execute(query, args).fetchall()
    finally:
        db.close()


def claim_of(db):
    done = {row[0] for row in db.execute("SELECT message_id FROM processing_ack")}
    due = inbound(
        "SELECT id, content, channel_type, platform_id, thread_id FROM messages_in WHERE status = 'pending'"
        " AND trigger = 1 AND (process_after IS NULL OR datetime(process_after) <= datetime('now')) ORDER BY seq")
    return [row for row in due if row[0] not in done]


def next_seq(db):
    top = max(db.execute("SELECT coalesce(max(seq), 0) FROM messages_out").fetchone()[0],
              inbound("SELECT coalesce(max(seq), 0) FROM messages_in")[0][0])
    return top + 1 if top % 2 == 0 else top + 2


def work(db):
    rows = claim_of(db)
    if not rows:
        return
    db.execute("BEGIN IMMEDIATE")
    for row in rows:
        db.execute("INSERT OR REPLACE INTO processing_ack VALUES (?, 'processing', datetime('now'))", (row[0],))
    db.execute("COMMIT")
    with open(f"{OUT}/.heartbeat", "w"):
        pass
    for id, content, channel, platform, thread in rows:
        text = "python: " + json.loads(content)["text"]
        db.execute("BEGIN IMMEDIATE")
        db.execute(
            "INSERT INTO messages_out (id, seq, in_reply_to, timestamp, kind, platform_id, channel_type, thread_id,"
            " content) VALUES (?, ?, ?, datetime('now'), 'chat', ?, ?, ?, ?)",
            (f"out-{id.split(':')[0]}", next_seq(db), id, platform, channel, thread, json.dumps({"text": text})))
        db.execute("INSERT OR REPLACE INTO processing_ack VALUES (?, 'completed', datetime('now'))", (id,))
        db.execute("COMMIT")


if __name__ == "__main__":
    db = sqlite3.connect(f"{OUT}/outbound.db", timeout=5, isolation_level=None)
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("DELETE FROM processing_ack WHERE status = 'processing'")
    while True:
        work(db)
        time.sleep(0.02)
