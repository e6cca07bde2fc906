"""A client of the Model Context Protocol, as far as a test of tools needs one."""

import json
import queue
import subprocess
import threading

from host import Failed, check


class Tools:
    """The runner's tool server, started in a session as an agent would start it."""

    def __init__(self, session):
        words = session.settings["tools"]
        attempt = f"3.{session.attempts}"
        env = session.environment(attempt)
        if session.extended:
            # An agent starts it in a turn, so the runner has taken over by then; a write before that is fenced off.
            session.until("the runner has taken over", lambda: session.state("lamplighter.attempt") == attempt)
        self.session = session
        self.log = open(f"{session.root.name}/log-tools", "wb")
        self.process = subprocess.Popen(
            session.command(words), env=env, cwd=session.agent_dir, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.log)
        self.lines = queue.Queue()
        self.answers = {}
        self.next = 0
        threading.Thread(target=self._read, daemon=True).start()
        hello = {"protocolVersion": "2025-06-18", "capabilities": {},
                 "clientInfo": {"name": "conformance", "version": "1"}}
        self.wait(self.ask("initialize", hello))
        self._send({"method": "notifications/initialized"})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def _send(self, words):
        try:
            self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **words}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed(f"the tool server has ended: {self._tail()}") from None

    def _tail(self):
        with open(self.log.name, encoding="utf-8", errors="replace") as file:
            return file.read()[-500:]

    def ask(self, method, params):
        """Sends a request; returns its number."""
        self.next += 1
        self._send({"id": self.next, "method": method, "params": params})
        return self.next

    def wait(self, number, seconds=20):
        """The result of a request."""
        while number not in self.answers:
            try:
                line = self.lines.get(timeout=seconds)
            except queue.Empty:
                raise Failed("the tool server gave no answer") from None
            check(line is not None, f"the tool server has ended: {self._tail()}")
            answer = json.loads(line)
            if "id" in answer and "method" not in answer:
                self.answers[answer["id"]] = answer
        answer = self.answers.pop(number)
        check("error" not in answer, f"the tool server refused: {answer.get('error')}")
        return answer["result"]

    def call(self, tool, **arguments):
        """Calls a tool; returns the request's number."""
        return self.ask("tools/call", {"name": tool, "arguments": arguments})

    def close(self):
        """Ends the server as an agent does: by closing its input."""
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def text_of(result):
    """All text of a tool's result."""
    return "\n".join(part.get("text", "") for part in result.get("content", []))
