"""The command ``keras-distill``: every error is one sentence and exit code 2."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from keras_distill.export import _commands as export_commands
from keras_distill.teachers import _commands as teacher_commands

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
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    demo = commands.add_parser(
        "demo",
        help="train a teacher, a student alone and the same student distilled; compare, plot and export them",
        description="Trains a teacher, a small student alone and the same student distilled, from several seeds; "
        "prints a table and writes report.html, report.json, student.keras and serving/<dataset>/1.",
        allow_abbrev=False,
    )
    demo.add_argument("--dataset", default="digits", help="a set of images that keras_distill.data knows (digits)")
    demo.add_argument("--epochs", type=int, metavar="N", help="epochs of every training (the data set's own number)")
    demo.add_argument("--seeds", type=int, default=5, metavar="N", help="students of each kind (5)")
    demo.add_argument("--out", default="demo_output", metavar="DIR", help="where to write (demo_output)")
    demo.add_argument("--download", action="store_true", help="let tensorflow-datasets download the data set")
    demo.set_defaults(run=_run_demo)
    teacher_commands.add_parsers(commands)
    export_commands.add_parsers(commands)
    return parser


def _run_demo(options: argparse.Namespace) -> None:
    from keras_distill.cli._demo import run

    run(
        dataset=options.dataset,
        out=options.out,
        epochs=options.epochs,
        num_seeds=options.seeds,
        download=options.download,
    )
