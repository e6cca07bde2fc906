"""A runner that does what it is told: asks, sends files, cards, edits and reactions, and requests things of the host."""
import json, os, sqlite3, time

from foreign_runner import IN, OUT, claim_of, inbound, next_seq

QUESTION = {"type": "ask_question", "title": "Lunch", "question": "Which?",
            "options": [{"label": "Soup", "selectedLabel": "Soup!", "value": "soup-1"},
                        {"label": "Salad", "selectedLabel": "Salad!", "value": "salad-2"}]}


def write(db, row, content, kind="chat", id=None, reply_to=None):
    _, _, channel, platform, thread = row
    db.execute("BEGIN IMMEDIATE")
    seq = next_seq(db)
    db.execute(
        "INSERT INTO messages_out (id, seq, in_reply_to, timestamp, kind, platform_id, channel_type, thread_id, content)"
        " VALUES (?, ?, ?, datetime('now'), ?, ?, ?, ?, ?)",
        (id or f"out-{seq}", seq, reply_to, kind, platform, channel, thread, json.dumps(content)))
    db.execute("COMMIT")


def ack(db, id, status):
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT OR REPLACE INTO processing_ack VALUES (?, ?, datetime('now'))", (id, status))
    db.execute("COMMIT")


def ask(db, row, name, timeout):
    """Writes a question and waits for its answer as the tool does: by a look for its id in the text."""
    question = f"q-{name}"
    if not db.execute("SELECT 1 FROM messages_out WHERE id = ?", (question,)).fetchone():
        content = dict(QUESTION, questionId=question, timeoutMs=timeout)
        write(db, row, content, "chat-sdk", question, row[0])
    limit = time.time() + timeout / 1000
    while time.time() < limit:
        found = inbound("SELECT id, content, trigger FROM messages_in WHERE kind = 'system' AND status = 'pending'"
                        " AND content LIKE ?", f'%"questionId":"{question}"%')
        if found:
            ack(db, found[0][0], "completed")
            return json.loads(found[0][1])
        time.sleep(0.02)
    return None


def file(row, name, link=None):
    folder = f"{OUT}/outbox/files-{row[0]}"
    os.makedirs(folder, exist_ok=True)
    if link:
        os.symlink(link, f"{folder}/{name}")
    else:
        with open(f"{folder}/{name}", "w") as out:
            out.write("the report\n")


def act(db, row):
    id, content = row[:2]
    name, words = id.split(":")[0], json.loads(content)["text"].split()
    if words[0] == "ask":
        answer = ask(db, row, name, int(words[1]))
        text = f"{answer['selectedOption']} by {answer['userId']}" if answer else "no answer"
        write(db, row, {"text": text}, reply_to=id)
    elif words[0] == "files":
        file(row, "report.txt")
        file(row, "link", "/etc/passwd")
        write(db, row, {"text": "here", "files": ["report.txt", "link", "missing", "../x"]}, id=f"files-{id}", reply_to=id)
    elif words[0] == "forms":
        write(db, row, {"type": "card", "card": {"title": "T", "actions": [{"label": "Go", "url": "https://x.test/"}]}},
              "chat-sdk", reply_to=id)
        write(db, row, {"operation": "edit", "messageId": id, "text": "better"}, reply_to=id)
        write(db, row, {"operation": "reaction", "messageId": id, "emoji": "+1"}, reply_to=id)
        write(db, row, {"type": "hologram"}, "chat-sdk", reply_to=id)
    elif words[0] == "request":
        write(db, row, {"action": words[1]}, "system", f"sys-{name}", id)
    elif words[0] == "notes":
        notes = inbound("SELECT content FROM messages_in WHERE trigger = 0 ORDER BY seq")
        write(db, row, {"text": "\n".join(json.loads(note[0])["text"] for note in notes)}, reply_to=id)
    elif words[0] == "capabilities":
        with open(f"{IN}/container.json") as config:
            write(db, row, {"text": json.dumps(json.load(config)["capabilities"])}, reply_to=id)
    else:
        write(db, row, {"text": "heard: " + " ".join(words)}, reply_to=id)


def work(db):
    for row in claim_of(db):
        if inbound("SELECT kind FROM messages_in WHERE id = ?", row[0])[0][0] == "system":
            continue
        ack(db, row[0], "processing")
        act(db, row)
        ack(db, row[0], "completed")


if __name__ == "__main__":
    db = sqlite3.connect(f"{OUT}/outbound.db", timeout=5, isolation_level=None)
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("DELETE FROM processing_ack WHERE status = 'processing'")
    while True:
        work(db)
        time.sleep(0.02)
