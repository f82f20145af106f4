"""``keras-distill label``: run a teacher once over a data set and store its answers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from keras_distill._checks import error
from keras_distill.cli._labelling import add_source, dataset_of, say, summary


def add_parser(commands: Any) -> None:
    """Add the command.

    Args:
        commands: what ``ArgumentParser.add_subparsers`` returned.
    """
    command = commands.add_parser(
        "label", help="run a teacher once over a data set and store its answers", allow_abbrev=False
    )
    add_source(command)
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="the store to write")
    command.add_argument("--top-k", type=int, help="keep only this many classes, and the sum of the rest")
    command.add_argument("--dtype", default="float16", choices=("float32", "float16", "bfloat16", "int8"))
    command.add_argument("--features", nargs="*", default=(), metavar="LAYER", help="layers whose outputs to store")
    command.add_argument("--examples-per-shard", type=int)
    command.add_argument("--shard", default="0/1", metavar="I/N", help="write part I of N, to share the work")
    command.add_argument("--overwrite", action="store_true", help="discard an existing store")
    command.set_defaults(run=run)


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit()):
        raise error("label", "--shard I/N, such as 0/4", text)
    return int(number), int(count)


def run(arguments: argparse.Namespace) -> None:
    """Run ``keras-distill label``.

    Args:
        arguments: the parsed arguments.

    Raises:
        ValueError: if teacher, data set and options do not fit together.
    """
    from keras_distill import _model_files, teachers

    stored = teachers.label(
        _model_files.load_model("label", arguments.teacher),
        dataset_of(arguments),
        arguments.out,
        top_k=arguments.top_k,
        dtype=arguments.dtype,
        features=arguments.features,
        examples_per_shard=arguments.examples_per_shard,
        shard=_part(arguments.shard),
        overwrite=arguments.overwrite,
    )
    missing = f"{arguments.out}: this part is written; other parts are still missing"
    say(missing if stored is None else summary(arguments.out, stored))
