#!/usr/bin/env python3
"""Fetches one version of a package of an npm registry, and verifies it against the digest that the registry names.

    fetch.py PACKAGE VERSION FILE

NPM_REGISTRY names another registry. The digest is kept beside the file, in FILE.sha512: a file that is there already is
verified against it and not fetched again, and then no network is needed. Exit codes: 0 done, 1 not to be had or not
what it should be, 64 wrong usage.
"""

import base64
import hashlib
import json
import os
import pathlib
import sys
import urllib.parse
import urllib.request

PATIENCE = 60  # seconds without a byte
MAX_ABOUT = 4 << 20  # bytes of what a registry says about one version; it is some kilobytes


def digest(file: pathlib.Path) -> str:
    sha512 = hashlib.sha512()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            sha512.update(piece)
    return "sha512-" + base64.b64encode(sha512.digest()).decode()


def is_kept(file: pathlib.Path, note: pathlib.Path) -> bool:
    """Whether the file is what it was when it came; one that was changed since is fetched again."""
    return file.exists() and note.exists() and digest(file) in note.read_text(encoding="ascii").split()


def fetch(package: str, version: str, file: pathlib.Path) -> None:
    note = file.with_name(file.name + ".sha512")
    if is_kept(file, note):
        return
    registry = os.environ.get("NPM_REGISTRY", "https://registry.npmjs.org").rstrip("/")
    about = f"{registry}/{urllib.parse.quote(package, safe='@')}/{urllib.parse.quote(version)}"
    try:
        with urllib.request.urlopen(about, timeout=PATIENCE) as answer:
            dist = json.loads(answer.read(MAX_ABOUT))["dist"]
    except OSError as error:
        raise OSError(f"{about}: {error}; is the version right, and NPM_REGISTRY?") from error
    wanted = [word for word in dist.get("integrity", "").split() if word.startswith("sha512-")]
    if not wanted:
        raise ValueError(f"{about} names no sha512 digest")
    # Of its own name, so that two builds at once do not write one file.
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        with urllib.request.urlopen(dist["tarball"], timeout=PATIENCE) as answer, partial.open("wb") as stream:
            while piece := answer.read(1 << 20):
                stream.write(piece)
        found = digest(partial)
        if found not in wanted:
            raise ValueError(f"{dist['tarball']} is not what {about} says: {found}, not {wanted[0]}")
        partial.rename(file)
        note.write_text(found + "\n", encoding="ascii")
    finally:
        partial.unlink(missing_ok=True)


def main() -> int:
    if len(sys.argv) != 4:
        print(__doc__, file=sys.stderr)
        return 64
    package, version, file = sys.argv[1:]
    try:
        fetch(package, version, pathlib.Path(file))
    except (OSError, ValueError, KeyError) as error:
        print(f"{package} {version}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
