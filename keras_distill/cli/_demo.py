"""``keras-distill demo``: train, compare, plot and export in one command."""

from __future__ import annotations

import argparse
from typing import Any

from keras_distill._checks import optional


def add_parser(commands: Any) -> None:
    """Add the command.

    Args:
        commands: what ``ArgumentParser.add_subparsers`` returned.
    """
    demo = commands.add_parser(
        "demo",
        help="train a teacher, a student alone and the same student distilled; compare, plot and export them",
        description="Trains a teacher, a small student alone and the same student distilled, from several seeds; "
        "prints a table and writes report.html, report.json, student.keras and serving/<dataset>/1.",
        allow_abbrev=False,
    )
    demo.add_argument("--dataset", default="digits", help="an image set of keras_distill.data (digits)")
    demo.add_argument("--epochs", type=int, metavar="N", help="epochs of every training (the data set's own number)")
    demo.add_argument("--seeds", type=int, default=5, metavar="N", help="number of students of each kind (5)")
    demo.add_argument("--out", default="demo_output", metavar="DIR", help="output folder (demo_output)")
    demo.add_argument("--download", action="store_true", help="let tensorflow-datasets download the data set")
    demo.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run ``keras-distill demo``.

    Args:
        options: the parsed arguments.

    Raises:
        ValueError: if an argument does not fit, the data are missing, or the folder cannot be written.
    """
    with optional("demo", "rich", "demo"):
        import rich  # noqa: F401 -- the tables and bars of the demonstration

    from keras_distill.cli import _demonstration

    _demonstration.run(
        dataset=options.dataset,
        out=options.out,
        epochs=options.epochs,
        num_seeds=options.seeds,
        download=options.download,
    )
