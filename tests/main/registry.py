"""A registry of npm's kind on loopback, with one version of each package: prints its address, and serves until it is ended.

    registry.py [wrong]     with `wrong`: what it gives is not what it names
"""

import base64
import hashlib
import http.server
import io
import json
import sys
import tarfile
import urllib.parse

VERSION = "1.2.3"
# The package, and where in it the program lies.
PACKAGES = {
    "@anthropic-ai/claude-code-linux-x64": ("1.2.3", "claude", "claude"),
    "@openai/codex": ("1.2.3-linux-x64", "vendor/x86_64-unknown-linux-musl/bin/codex", "codex"),
}


def packed(place: str, name: str) -> bytes:
    text = f"#!/bin/sh\necho {name} of the test {VERSION}\n".encode()
    entry = tarfile.TarInfo(f"package/{place}")
    entry.size, entry.mode = len(text), 0o755
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.addfile(entry, io.BytesIO(text))
    return out.getvalue()


class Registry(http.server.BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}

    def do_GET(self) -> None:
        body = self.files.get(urllib.parse.unquote(self.path))
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    wrong = sys.argv[1:] == ["wrong"]
    server = http.server.HTTPServer(("127.0.0.1", 0), Registry)
    address = f"http://127.0.0.1:{server.server_port}"
    for package, (version, place, name) in PACKAGES.items():
        tar = packed(place, name)
        digest = hashlib.sha512(b"another" if wrong else tar).digest()
        about = {"integrity": "sha512-" + base64.b64encode(digest).decode(), "tarball": f"{address}/{name}.tgz"}
        Registry.files[f"/{package}/{version}"] = json.dumps({"dist": about}).encode()
        Registry.files[f"/{name}.tgz"] = tar
    print(address, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
