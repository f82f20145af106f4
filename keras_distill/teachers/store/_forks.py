"""Refuses processes that were forked after TensorFlow had started its threads, in which it would hang.

Kept apart from ``_labeller.py``: importing it registers a hook that every later fork calls.
"""

from __future__ import annotations

import os
from pathlib import Path

from keras_distill._checks import error

_state = {"threads": False, "forked": False}


def _before() -> None:
    # These are the names of TensorFlow's pool threads; without them, nothing of it has run and forking is safe.
    names = (file.read_text() for file in Path("/proc/self/task").glob("*/comm"))
    try:
        _state["threads"] = _state["forked"] or any(name.startswith("tf_") for name in names)
    except OSError:  # a thread has just ended, or there is no /proc
        _state["threads"] = _state["forked"]


def _in_child() -> None:
    _state["forked"] = _state["threads"]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)


def refuse_after_fork(owner: str) -> None:
    """Raise ``ValueError`` in a process that was forked after TensorFlow had run in its parent.

    Args:
        owner: name shown in the error message.
    """
    if _state["forked"]:
        advice = "Start it with multiprocessing.get_context('spawn')"
        got = "one that was forked after TensorFlow had run, in which it would hang"
        raise error(owner, "a process of its own", got, advice)
