"""The command ``keras-distill``, which reports every error as one sentence and exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence

import keras_distill
from keras_distill.cli import _demo, _env, _export, _label, _serve_check, _shrink, _store

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the arguments after ``keras-distill``; those of the process by default.

    Returns:
        The exit code: 0 for success, 2 for an error, explained on stderr, 130 if interrupted.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported
    options = _parser().parse_args(arguments)
    with _without_greetings():
        importlib.import_module("keras_distill.distiller")  # registers with Keras what a saved distiller needs
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # advice on tracing is for programmers
    try:
        options.run(options)
    except (ValueError, OSError, ArithmeticError, ImportError) as failure:
        sentence = " ".join(str(failure).split()) or type(failure).__name__
        sentence = sentence.removeprefix(f"{options.command}: ")
        sys.stderr.write(f"keras-distill {options.command}: {sentence}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"keras-distill {options.command}: interrupted.\n")
        return 130
    return 0


@contextlib.contextmanager
def _without_greetings() -> Iterator[None]:
    """Hide what TensorFlow's libraries print while loading, because no environment variable silences all of it."""
    if "tensorflow" in sys.modules:
        yield
        return
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-distill", description="Knowledge distillation for Keras 3 on TensorFlow.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"keras-distill {keras_distill.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in (_demo, _label, _store, _export, _serve_check, _shrink, _env):
        command.add_parser(commands)
    return parser
