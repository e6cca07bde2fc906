"""All cases, one module for each part of the contract."""

from . import answers, ends, errors, liveness, prompts, questions, tasks, window  # noqa: F401
