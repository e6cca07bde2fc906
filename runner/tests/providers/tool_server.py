"""A tool server for tests: one tool, `note`, which keeps what it is told in the file that NOTES names."""

import json
import os
import sys

TOOL = {"name": "note", "description": "Keeps a text", "inputSchema": {
    "type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}}


def reply(method, params):
    if method == "initialize":
        return {"protocolVersion": params.get("protocolVersion"), "capabilities": {"tools": {}},
                "serverInfo": {"name": "notes", "version": "1"}}
    if method == "tools/list":
        return {"tools": [TOOL]}
    if method == "tools/call":
        with open(os.environ["NOTES"], "a", encoding="utf-8") as notes:
            notes.write(params["arguments"]["text"] + "\n")
        return {"content": [{"type": "text", "text": "noted"}]}
    return {} if method == "ping" else None


for line in sys.stdin:
    request = json.loads(line)
    if "id" not in request:
        continue
    result = reply(request.get("method"), request.get("params") or {})
    answer = {"result": result} if result is not None else {"error": {"code": -32601, "message": "unknown method"}}
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], **answer}), flush=True)
