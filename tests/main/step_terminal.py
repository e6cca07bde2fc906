"""Runs a stepper on a terminal of its own: argv[1] is the signal that ends it, or `key`, or `closed` for a terminal that
goes away without a signal; the rest is the command.

Waits until it has left the alternate screen. Exit code: the program's, or 99 when the terminal's settings are not those
from before.
"""

import os
import pty
import select
import signal
import sys
import termios
import time

LIMIT = 60


def upto(master, wanted):
    seen, end = b"", time.monotonic() + LIMIT
    while wanted not in seen:
        if time.monotonic() > end:
            sys.exit(f"not seen: {wanted!r} in {seen!r}")
        if select.select([master], [], [], 0.1)[0]:
            seen += os.read(master, 65536)


def ends(child):
    """The program must end by itself; with what code does not matter, there is nobody to tell."""
    end = time.monotonic() + LIMIT
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            sys.exit("it goes on without its terminal")
        time.sleep(0.05)


def main():
    how, command = sys.argv[1], sys.argv[2:]
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    before = termios.tcgetattr(slave)
    child = os.fork()
    if child == 0:
        os.setsid()
        for fd in (0, 1, 2):
            os.dup2(slave, fd)
        os.execvp(command[0], command)
    upto(master, b"booted")
    if how == "closed":
        os.close(slave)
        os.close(master)
        return ends(child)
    if how == "key":
        os.write(master, b"nq")
    else:
        os.kill(child, getattr(signal, how))
    # Leaves the alternate screen.
    upto(master, b"\x1b[?1049l")
    _, status = os.waitpid(child, 0)
    if termios.tcgetattr(slave) != before:
        sys.exit(99)
    sys.exit(os.waitstatus_to_exitcode(status))


main()
