"""A model service for tests: Anthropic Messages and OpenAI Responses, on loopback, by script.

    python3 fake_model.py [--port N] [--log FILE]

prints its port and serves until its standard input ends. What it answers is written in the messages themselves, so
that a conversation which is resumed elsewhere needs no memory here. A script is the word PLAY and a JSON array in a
user message; its k-th element answers the k-th call after that message. The text may be escaped as XML. Without a
script, or after its end, the answer is "echo: " and the newest user text. The elements' keys:

    say      a text                          tool      [name, {arguments}], or a list of those
    status   refuse with this HTTP status    times     ... only so many times, then go on (default: always)
    after    retry-after of a refusal, s     delay     wait before the answer, s
    slow     pause between words, s          hang      true: never answer
    cut      true: break off in mid-stream   broken    true: an error event in mid-stream
    usage    [input tokens, output tokens]   limits    true: say that the subscription's window is used up

A note of the runner that replies were lost is answered with what the scripts of the messages that it names say last.
"""

import argparse
import html
import json
import re
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MARK = "PLAY"
LOST = '<notice kind="reply-lost">'
KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
         413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error"}
SUMMARY = ("Respond with TEXT ONLY", "CONTEXT CHECKPOINT COMPACTION", "detailed summary of the conversation")

lock = threading.Lock()
refusals = {}
log = None


def new_id(prefix):
    return prefix + uuid.uuid4().hex[:20]


def texts(content):
    if isinstance(content, str):
        return content
    parts = [part if isinstance(part, str) else part.get("text", "") for part in content or []
             if isinstance(part, str) or part.get("type") in ("text", "input_text", "output_text")]
    return "\n".join(parts)


def entries(body):
    """The conversation as (who, text): `user`, `agent` or `result`."""
    if "messages" in body:
        for message in body["messages"]:
            content = message.get("content")
            if message.get("role") == "assistant":
                yield "agent", ""
                continue
            if isinstance(content, list) and any(part.get("type") == "tool_result" for part in content
                                                 if isinstance(part, dict)):
                yield "result", ""
            yield "user", texts(content)
        return
    given = body.get("input", [])
    for item in [{"role": "user", "content": given}] if isinstance(given, str) else given:
        kind = item.get("type", "message")
        if kind == "message":
            yield ("agent" if item.get("role") == "assistant" else "user"), texts(item.get("content"))
        elif kind.endswith("_output"):
            yield "result", ""
        else:
            yield "agent", ""


def script_in(text):
    plain = html.unescape(text)
    at = plain.find(MARK + "[")  # the first: the arguments of a tool may hold another script
    if at < 0:
        return None
    try:
        script, _ = json.JSONDecoder().raw_decode(plain, at + len(MARK))
    except ValueError:
        return None
    return script if isinstance(script, list) else None


def choose(body):
    """The element that answers this call, and what names it."""
    script, rounds, newest, before, scripts, notes = None, 0, "", "", [], []
    for who, text in entries(body):
        if who == "agent":
            rounds += before != "agent"
            notes = []
        elif who == "user" and text.strip():
            newest = text
            notes += [text[text.find(LOST):]] if LOST in text else []
            found = script_in(text)
            if found is not None:
                script, rounds = found, 0
                scripts.append((text, found[-1].get("say") if found else None))
            elif before == "agent" and "<system-reminder>" not in text:
                script = None  # a new turn without a script
        before = who if who != "user" or text.strip() else before
    if any(words in newest for words in SUMMARY):
        return {"say": "<summary>what was said</summary>"}, "summary"
    wanted = [id for note in notes for id in re.findall(r'id="[^"]+"', note)]
    lost = [say for text, say in scripts if say and any(f"<message {id}" in text for id in wanted)]
    if lost and LOST in newest:
        return {"say": "\n".join(lost)}, "lost"
    if script is not None and rounds < len(script):
        step = script[rounds]
        if lost and "say" in step:
            step = {**step, "say": "\n".join([*lost, step["say"]])}
        return step, json.dumps([script, rounds])
    return {"say": "echo: " + newest[-200:]}, "echo"


def refuses(step, name):
    if "status" not in step:
        return False
    with lock:
        refusals[name] = refusals.get(name, 0) + 1
        return refusals[name] <= step.get("times", sys.maxsize)


def tools_of(step):
    found = step.get("tool", [])
    return [found] if found and isinstance(found[0], str) else found


def said(step):
    if "say" in step or not step.get("tool"):
        return [step.get("say", "done")]
    return []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, value, headers=None):
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"content-type": "application/json", "content-length": len(data), **(headers or {})}.items():
            self.send_header(name, str(text))
        self.end_headers()
        self.wfile.write(data)

    def begin(self, headers=None):
        self.send_response(200)
        for name, text in {"content-type": "text/event-stream", "connection": "close", **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.close_connection = True

    def event(self, kind, **fields):
        data = json.dumps({"type": kind, **fields})
        self.wfile.write(f"event: {kind}\ndata: {data}\n\n".encode())
        self.wfile.flush()

    def do_GET(self):
        if "websocket" in (self.headers.get("upgrade") or "").lower():
            self.answer(426, {"error": {"message": "no websocket here"}})
        else:
            self.answer(200, {"data": [], "models": [], "has_more": False})

    def do_POST(self):
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = self.path.split("?")[0]
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            body = {}
        if path.endswith("/count_tokens"):
            return self.answer(200, {"input_tokens": len(raw) // 4 + 1})
        if not path.endswith(("/messages", "/responses")):
            return self.answer(200, {})
        try:
            self.call(body, path.endswith("/messages"))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def call(self, body, messages):
        step, name = choose(body)
        status = step["status"] if refuses(step, name) else 200
        note({"status": status, "model": body.get("model"), "tools": [tool.get("name") for tool in body.get("tools", [])],
              "session": self.headers.get("x-claude-code-session-id"), "body": body})
        if step.get("hang"):
            while self.connection.recv(1):
                pass
            self.close_connection = True
            return None
        time.sleep(step.get("delay", 0))
        if step.get("limits"):
            reset = {"anthropic-ratelimit-unified-status": "rejected",
                     "anthropic-ratelimit-unified-reset": int(time.time()) + 3600,
                     "anthropic-ratelimit-unified-representative-claim": "five_hour"}
            return self.refuse(429, messages, reset)
        if status != 200:
            return self.refuse(status, messages, {"retry-after": step["after"]} if "after" in step else None)
        return self.anthropic(step, body) if messages else self.openai(step, body)

    def refuse(self, status, messages, headers=None):
        kind = KINDS.get(status, "api_error")
        error = {"type": kind, "message": f"refused by the test: {kind}"}
        self.answer(status, {"type": "error", "error": error} if messages else {"error": {**error, "code": kind}}, headers)

    def words(self, text, step):
        for at, word in enumerate(text.split(" ")):
            yield word if at == 0 else " " + word
            time.sleep(step.get("slow", 0))

    def anthropic(self, step, body):
        content = [{"type": "text", "text": text} for text in said(step)]
        content += [{"type": "tool_use", "id": new_id("toolu_"), "name": tool, "input": arguments}
                    for tool, arguments in tools_of(step)]
        stop = "tool_use" if tools_of(step) else "end_turn"
        taken, made = step.get("usage", [100, 10])
        usage = {"input_tokens": taken, "output_tokens": made, "cache_creation_input_tokens": 0,
                 "cache_read_input_tokens": 0}
        message = {"id": new_id("msg_"), "type": "message", "role": "assistant", "model": body.get("model"),
                   "content": content, "stop_reason": stop, "stop_sequence": None, "usage": usage}
        if not body.get("stream"):
            return self.answer(200, message)
        self.begin()
        self.event("message_start", message={**message, "content": [], "stop_reason": None})
        if step.get("broken"):
            return self.event("error", error={"type": "overloaded_error", "message": "broken off by the test"})
        for index, block in enumerate(content):
            if block["type"] == "text":
                self.event("content_block_start", index=index, content_block={"type": "text", "text": ""})
                for word in self.words(block["text"], step):
                    self.event("content_block_delta", index=index, delta={"type": "text_delta", "text": word})
            else:
                self.event("content_block_start", index=index, content_block={**block, "input": {}})
                part = json.dumps(block["input"])
                self.event("content_block_delta", index=index, delta={"type": "input_json_delta", "partial_json": part})
            if step.get("cut"):
                return self.connection.close()
            self.event("content_block_stop", index=index)
        self.event("message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage={"output_tokens": made})
        return self.event("message_stop")

    def openai(self, step, body):
        output = [{"type": "message", "id": new_id("msg_"), "role": "assistant", "status": "completed",
                   "content": [{"type": "output_text", "text": text, "annotations": []}]} for text in said(step)]
        for tool, arguments in tools_of(step):
            space, _, bare = tool.rpartition("/")
            call = {"type": "function_call", "id": new_id("fc_"), "call_id": new_id("call_"), "name": bare,
                    "arguments": json.dumps(arguments), "status": "completed"}
            output.append({**call, "namespace": space} if space else call)
        taken, made = step.get("usage", [100, 10])
        usage = {"input_tokens": taken, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": made,
                 "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": taken + made}
        response = {"id": new_id("resp_"), "object": "response", "created_at": int(time.time()), "status": "completed",
                    "model": body.get("model"), "output": output, "usage": usage, "error": None}
        if not body.get("stream"):
            return self.answer(200, response)
        self.begin()
        self.event("response.created", response={**response, "status": "in_progress", "output": [], "usage": None})
        if step.get("broken"):
            error = {"code": "server_error", "message": "broken off by the test"}
            return self.event("response.failed", response={**response, "status": "failed", "output": [], "error": error})
        for index, item in enumerate(output):
            if item["type"] == "message":
                self.event("response.output_item.added", output_index=index,
                           item={**item, "status": "in_progress", "content": []})
                for word in self.words(item["content"][0]["text"], step):
                    self.event("response.output_text.delta", item_id=item["id"], output_index=index, content_index=0,
                               delta=word)
            else:
                self.event("response.output_item.added", output_index=index, item=item)
            if step.get("cut"):
                return self.connection.close()
            self.event("response.output_item.done", output_index=index, item=item)
        return self.event("response.completed", response=response)


def note(record):
    if log is not None:
        with lock:
            log.write(json.dumps(record) + "\n")
            log.flush()


def main():
    global log
    given = argparse.ArgumentParser()
    given.add_argument("--port", type=int, default=0)
    given.add_argument("--log")
    given = given.parse_args()
    log = open(given.log, "a", encoding="utf-8") if given.log else None
    ThreadingHTTPServer.daemon_threads = True
    server = ThreadingHTTPServer(("127.0.0.1", given.port), Handler)
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


main()
