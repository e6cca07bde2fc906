"""Runs an agent CLI and keeps what goes in and out.

    python3 record.py FILE PROGRAM [ARGUMENTS...]

Each line of FILE is {"in": line} or {"out": line}, in the order in which they passed; before them {"start":
conversation}, after them {"exit": code}.
"""

import json
import signal
import subprocess
import sys
import threading

file, command = open(sys.argv[1], "a", encoding="utf-8"), sys.argv[2:]
lock = threading.Lock()
child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
signal.signal(signal.SIGTERM, lambda *_: child.terminate())


def keep(kind, value):
    with lock:
        file.write(json.dumps({kind: value}) + "\n")
        file.flush()


def inward():
    for line in sys.stdin.buffer:
        keep("in", json.loads(line))
        child.stdin.write(line)
        child.stdin.flush()
    child.stdin.close()


ids = [word.partition("=")[2] for word in command if word.startswith(("--session-id=", "--resume="))]
keep("start", ids[0] if ids else "")
threading.Thread(target=inward, daemon=True).start()
for line in child.stdout:
    if line.startswith(b"{"):
        keep("out", json.loads(line))
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
code = child.wait()
keep("exit", code)
sys.exit(code if code >= 0 else 128 - code)
