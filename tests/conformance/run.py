#!/usr/bin/env python3
"""Puts any runner through the session-folder contract from outside.

    run.py [options] -- RUNNER [ARGUMENT...]

Every case has a fresh session folder. In the split layout the runner is told by LAMPLIGHTER_WORKSPACE, _IN, _AGENT
and _ATTEMPT where it is; with --flat it gets `--workspace DIR`, or the folder where `{workspace}` stands in its
command. What the cases need of the runner's provider is written down in provider.json, and only there.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True
sys.path.insert(0, HERE)

import case  # noqa: E402
import cases  # noqa: E402,F401  (fills the list)

# A case process that is past its deadline gets so long to say what it waited for.
OVERRUN_S = 3


def parse(words):
    own, runner = (words[:words.index("--")], words[words.index("--") + 1:]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the cases and what each asks for")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this case alone; repeatable")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME",
                        help="not this case; it is named in the output and counted")
    parser.add_argument("--short", action="store_true", help="the few cases that depend on where the files are")
    parser.add_argument("--flat", action="store_true", help="NanoClaw's layout: everything in one folder")
    parser.add_argument("--plain", action="store_true",
                        help="a runner that keeps no facts and no attempts (lamplighter.* in session_state)")
    parser.add_argument("--tools", metavar="COMMAND",
                        help="the tool server; default: the runner's command with `mcp` after the program")
    parser.add_argument("--provider-config", metavar="FILE", default=os.path.join(HERE, "provider.json"))
    parser.add_argument("--jobs", type=int, default=3, help="cases at the same time, 1 to 8 (default 3)")
    parser.add_argument("--tap", action="store_true", help="print the Test Anything Protocol")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--child", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args(own)
    unknown = [name for name in options.only + options.skip if name not in case.ALL]
    if unknown:
        parser.error(f"no case is named {', '.join(unknown)}; see --list")
    if not runner and not options.list:
        parser.error("no runner is given; write its command after --")
    return options, runner


def settings_of(options, runner):
    with open(options.provider_config, encoding="utf-8") as file:
        provider = json.load(file)
    program = runner[0]
    runner = [os.path.abspath(program) if os.path.exists(program) else program, *runner[1:]]
    if options.flat and not any("{workspace}" in word for word in runner):
        runner += ["--workspace", "{workspace}"]
    tools = options.tools.split() if options.tools else [runner[0], "mcp", *runner[1:]]
    return {"command": runner, "tools": tools, "provider": provider, "flat": options.flat, "plain": options.plain}


def chosen(options):
    """The names to run, longest deadline first so that nothing long is left for the end; and those skipped."""
    names, skipped = [], []
    for name, found in case.ALL.items():
        if options.only and name not in options.only or options.short and not found.short:
            continue
        if name in options.skip:
            skipped.append((name, "asked for by --skip"))
        elif options.plain and found.extension:
            skipped.append((name, "about facts and attempts, and --plain says that there are none"))
        else:
            names.append(name)
    return sorted(names, key=lambda name: -case.ALL[name].deadline), skipped


class Child:
    """One case in a process of its own, with everything that it starts in one group."""

    def __init__(self, name, words):
        self.name = name
        self.began = time.monotonic()
        self.out = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "--child", name, *words],
            stdin=subprocess.DEVNULL, stdout=self.out, start_new_session=True)

    def result(self):
        """The result when there is one: what the case said, or that it said nothing in time."""
        late = time.monotonic() - self.began > case.ALL[self.name].deadline + OVERRUN_S
        if self.process.poll() is None and not late:
            return None
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.out.seek(0)
        try:
            result = json.loads(self.out.read())
        except ValueError:
            result = {"reason": "the case overran its deadline" if late else "the case ended without a word"}
        return {"name": self.name, "seconds": round(time.monotonic() - self.began, 2), **result}


def run_all(names, words, jobs):
    """Yields the results as they come."""
    waiting, running = list(names), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Child(waiting.pop(0), words))
            for child in list(running):
                result = child.result()
                if result:
                    running.remove(child)
                    yield result
            time.sleep(0.02)
    finally:
        for child in running:
            os.killpg(child.process.pid, signal.SIGKILL)


def show(options, number, result):
    reason, name = result.get("reason"), result["name"]
    if options.json:
        print(json.dumps({"ok": reason is None, **result}), flush=True)
    elif options.tap:
        print(f"{'not ok' if reason else 'ok'} {number} - {name}", flush=True)
        if reason:
            print(f"  ---\n  reason: {json.dumps(reason)}\n  asked by: {case.ALL[name].source}\n  ...", flush=True)
    elif reason is None:
        print(f"ok    {name} ({result['seconds']} s)", flush=True)
    else:
        print(f"FAIL  {name}: {reason}\n      asked by: {case.ALL[name].source}", flush=True)
        for line in (result.get("log") or "").strip().splitlines()[-6:]:
            print(f"      | {line[:300]}", flush=True)


def main():
    words = sys.argv[1:]
    options, runner = parse(words)
    if options.list:
        for found in case.ALL.values():
            print(f"{found.name:<44} {found.about}  [{found.source}]")
        return 0
    settings = settings_of(options, runner)
    if options.child:
        reason, log = case.play(options.child, settings)
        print(json.dumps({"reason": reason, "log": log}))
        return 0
    names, skipped = chosen(options)
    if options.tap:
        print(f"TAP version 13\n1..{len(names) + len(skipped)}")
    failed = 0
    number = 0
    for number, result in enumerate(run_all(names, words, max(1, min(options.jobs, 8))), 1):
        failed += result.get("reason") is not None
        show(options, number, result)
    for extra, (name, why) in enumerate(skipped, 1):
        if options.json:
            print(json.dumps({"name": name, "skipped": why}))
        else:
            print(f"ok {number + extra} - {name} # SKIP {why}" if options.tap else f"skip  {name}: {why}")
    if not options.json:
        mark = "# " if options.tap else ""
        print(f"{mark}{len(names)} cases, {failed} failed, {len(skipped)} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
