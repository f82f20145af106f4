"""The command ``keras-distill``: every error is one sentence and exit code 2."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import keras_distill
from keras_distill.cli import _demo, _env, _export, _label, _serve_check, _store

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: what follows ``keras-distill``; those of the process by default.

    Returns:
        The exit code: 0 done, 2 an error that one sentence on stderr explains, 130 interrupted.
    """
    options = _parser().parse_args(arguments)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # advice on tracing is for whoever writes the program
    try:
        options.run(options)
    except (ValueError, OSError, ArithmeticError, ImportError) as failure:
        sentence = " ".join(str(failure).split()) or type(failure).__name__
        sys.stderr.write(f"keras-distill {options.command}: {sentence}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"keras-distill {options.command}: interrupted.\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-distill", description="Knowledge distillation for Keras 3 on TensorFlow.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"keras-distill {keras_distill.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    for command in (_demo, _label, _store, _export, _serve_check, _env):
        command.add_parser(commands)
    return parser
