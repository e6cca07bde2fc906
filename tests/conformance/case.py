"""The list of all cases, and how one is added."""

import time
from dataclasses import dataclass
from typing import Callable

from host import Session

# A runner on a loaded machine needs a small part of it.
DEADLINE_S = 30

ALL = {}


@dataclass
class Case:
    """One thing that a runner does or does not do."""
    name: str
    about: str
    run: Callable
    # The set of the provider's configuration.
    provider: str
    # Seconds.
    deadline: float
    # The clause that asks for it: a section of the contract, a rule of the design.
    source: str
    # Whether it is about what NanoClaw's own runner does not know: facts, attempts.
    extension: bool
    # Whether it belongs to the short list for a second layout.
    short: bool


def case(provider, source, deadline=DEADLINE_S, extension=False, short=False):
    """Registers a function as a case; its name with hyphens is the case's, its first line of text says what."""
    def add(run):
        name = run.__name__.replace("_", "-")
        assert name not in ALL, name
        about = run.__doc__.strip().splitlines()[0]
        ALL[name] = Case(name, about, run, provider, deadline, source, extension, short)
        return run
    return add


def play(name, settings):
    """Runs one case. Returns the reason of its failure and the runner's last lines; both `None` when it passed."""
    found = ALL[name]
    # The last moment goes to the report; the parent ends a case that overruns.
    session = None
    try:
        session = Session(settings, found.provider, time.monotonic() + found.deadline - 1)
        found.run(session)
        return None, None
    except Exception as error:  # Whatever goes wrong in a case is its failure, never that of the suite.
        reason = str(error) or type(error).__name__
        if type(error).__name__ != "Failed":
            reason = f"{type(error).__name__}: {reason}"
        return reason, session.log() if session else ""
    finally:
        if session:
            session.close()
