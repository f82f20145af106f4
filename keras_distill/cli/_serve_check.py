"""``keras-distill serve-check``: load a SavedModel as TensorFlow Serving does, and compare it with its student."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from keras_distill.cli._comparison import add_comparison, comparison_data, from_logits, numbers


def add_parser(commands: Any) -> None:
    """Add the command.

    Args:
        commands: what ``ArgumentParser.add_subparsers`` returned.
    """
    parser = commands.add_parser(
        "serve-check",
        help="load a SavedModel as TensorFlow Serving does; show signatures, latency and parity",
        description="Loads the SavedModel through TensorFlow's C API in a process without Python TensorFlow, compares "
        "its answers with the student's, replays its warm-up requests and times it.",
        allow_abbrev=False,
    )
    parser.add_argument("directory", metavar="DIR", help="a version directory, or the model's base path")
    parser.add_argument("--student", metavar="FILE", help="the .keras file to compare with")
    add_comparison(parser)
    parser.add_argument("--tolerance", type=float, metavar="X", help="largest difference allowed (1e-4 in float32)")
    parser.add_argument("--batch-sizes", default="1,32", metavar="1,32", help="sizes to time, separated by commas")
    parser.add_argument("--repeats", type=int, default=100, metavar="N", help="number of timed calls for each (100)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run ``keras-distill serve-check``.

    Args:
        options: the parsed arguments.

    Raises:
        ValueError: if the SavedModel does not load, does not answer, or disagrees with the student.
    """
    from keras_distill import export

    arrays, truth, _ = comparison_data("serve-check", options)
    student = export.load_student(options.student) if options.student is not None else None
    checked = export.serve_check(
        options.directory,
        student=student,
        check_inputs=arrays,
        check_labels=truth,
        from_logits=from_logits(options),
        task=options.task,
        tolerance=options.tolerance,
        batch_sizes=numbers("serve-check", "--batch-sizes", options.batch_sizes),
        repeats=options.repeats,
    )
    sys.stdout.write(checked.text())
