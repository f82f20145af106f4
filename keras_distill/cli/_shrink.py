"""``keras-distill shrink``: make a trained classifier small or fast enough, and report the loss of quality."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from keras_distill import _files
from keras_distill._checks import error
from keras_distill.cli._output import move, output_folder


def add_parser(commands: Any) -> None:
    """Add the command.

    Args:
        commands: what ``ArgumentParser.add_subparsers`` returned.
    """
    parser = commands.add_parser(
        "shrink",
        help="make a trained classifier smaller or faster: build, factorise, quantise, with distillation between",
        description="Builds a student from the teacher within a budget, distils it after each step, and writes "
        "student.keras, student.tflite, and shrink.json and report.html with accuracy, calibration, size and latency.",
        allow_abbrev=False,
    )
    parser.add_argument("teacher", metavar="FILE", help="the teacher, a .keras file that gives logits")
    parser.add_argument("--data", required=True, metavar="NAME", help="a data set of keras_distill.data")
    parser.add_argument("--latency", type=float, metavar="X", help="time over the teacher's, above 0, at most 1")
    parser.add_argument("--parameters", type=int, metavar="N", help="largest number of parameters")
    parser.add_argument("--macs", type=int, metavar="N", help="largest number of multiply-accumulates per example")
    parser.add_argument("--file-bytes", type=int, metavar="N", help="largest size of the float LiteRT file, in bytes")
    parser.add_argument("--steps", default="build,quantize", metavar="A,B", help="any of build, factorize, quantize")
    parser.add_argument("--epochs", type=int, default=3, metavar="N", help="epochs of distillation after each step (3)")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="rounds of building, each distilled (1)")
    parser.add_argument("--examples", type=int, metavar="N", help="training examples to use (all)")
    parser.add_argument("--out", default="shrink_output", metavar="DIR", help="output folder (shrink_output)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run ``keras-distill shrink``.

    Args:
        options: the parsed arguments.

    Raises:
        ValueError: if no limit is given, the teacher does not fit the data, or nothing meets the budget.
    """
    from keras_distill import data, export, report, students

    limits = {
        "latency_ratio": options.latency,
        "parameters": options.parameters,
        "macs": options.macs,
        "file_bytes": options.file_bytes,
    }
    if all(value is None for value in limits.values()):
        raise error("shrink", "one of --latency, --parameters, --macs and --file-bytes", "none")
    budget = students.Budget(**limits)
    teacher = export.load_student(options.teacher)
    loaded = data.load(options.data)
    train = loaded.train if options.examples is None else loaded.train.take(options.examples)
    pairs = ((train.inputs, train.labels), (loaded.test.inputs, loaded.test.labels))
    with output_folder("shrink", options.out) as (folder, aside):
        made = students.shrink(
            teacher, pairs, budget, options.steps.split(","), epochs=options.epochs, rounds=options.rounds
        )
        made.model.save(aside / "student.keras")
        _files.write(aside / "student.tflite", made.litert)
        _files.write(aside / "shrink.json", f"{made.to_json()}\n".encode())
        notes = [
            f"Teacher: {Path(options.teacher).name}. Data: {options.data}, {len(train):,} training and "
            f"{len(loaded.test):,} test examples; {options.epochs} epochs after each step, one seed."
        ]
        title = f"A smaller model of {options.data}"
        report.write_shrink_page(made, aside / "report.html", title=title, notes=notes)
        for name in ("student.keras", "student.tflite", "shrink.json", "report.html"):
            move(aside, folder, name)
    sys.stdout.write(f"{made.table()}\nwritten to {folder}\n")
