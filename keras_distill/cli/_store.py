"""``keras-distill store``: verify a stored teacher, and repair it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from keras_distill.cli._labelling import add_source, dataset_of, say, summary


def add_parser(commands: Any) -> None:
    """Add ``store verify`` and ``store repair``.

    Args:
        commands: what ``ArgumentParser.add_subparsers`` returned.
    """
    parser = commands.add_parser("store", help="verify and repair stored teachers", allow_abbrev=False)
    store = parser.add_subparsers(dest="action", required=True, metavar="action")
    command = store.add_parser("verify", help="read every byte of a store and list damaged files", allow_abbrev=False)
    command.add_argument("path", type=Path)
    command.set_defaults(run=run_verify)
    command = store.add_parser("repair", help="label only the damaged shards again", allow_abbrev=False)
    command.add_argument("path", type=Path)
    add_source(command)
    command.set_defaults(run=run_repair)


def run_verify(arguments: argparse.Namespace) -> None:
    """Run ``keras-distill store verify``.

    Args:
        arguments: the parsed arguments.

    Raises:
        StoredTeacherError: if a file of the store is not as it was written.
    """
    from keras_distill import teachers
    from keras_distill.teachers.store._files import read_manifest, stored_error

    problems = teachers.verify(arguments.path)
    for problem in problems:
        say(str(problem))
    if problems:
        advice = f"Run keras-distill store repair {arguments.path} --teacher FILE --data NAME"
        raise stored_error("an unchanged store", f"{len(problems)} damaged files", advice, "store verify")
    say(f"{arguments.path}: {len(read_manifest(arguments.path)['shards'])} shards, all unchanged")


def run_repair(arguments: argparse.Namespace) -> None:
    """Run ``keras-distill store repair``.

    Args:
        arguments: the parsed arguments.

    Raises:
        ValueError: if teacher and data set are not those of the store.
    """
    from keras_distill import _model_files, teachers

    before = teachers.verify(arguments.path)
    teacher = _model_files.load_model("store repair", arguments.teacher)
    stored = teachers.repair(teacher, dataset_of(arguments), arguments.path)
    for problem in before:
        say(f"repaired {problem.file}")
    missing = f"{arguments.path}: parts of other writers are still missing"
    say(missing if stored is None else summary(arguments.path, stored))
