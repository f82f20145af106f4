"""The commands of the shell that concern stored teachers: label, store verify, store repair."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_distill import data
from keras_distill._checks import choice, error
from keras_distill.teachers._label import label
from keras_distill.teachers._store_check import repair, verify
from keras_distill.teachers._store_files import read_manifest, stored_error
from keras_distill.teachers._stored import Stored


def add_parsers(subparsers: Any) -> None:
    """Add ``label``, ``store verify`` and ``store repair`` to the command line.

    Each sets ``run`` among its defaults: a function of the parsed arguments that writes to stdout, and raises a
    ``ValueError`` with one sentence if something is wrong.

    Args:
        subparsers: what ``ArgumentParser.add_subparsers`` returned.
    """
    command = subparsers.add_parser("label", help="run a teacher once over a data set and store what it says")
    _source(command)
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="the store to write")
    command.add_argument("--top-k", type=int, help="keep only this many classes, and the sum of the rest")
    command.add_argument("--dtype", default="float16", choices=("float32", "float16", "bfloat16", "int8"))
    command.add_argument("--features", nargs="*", default=(), metavar="LAYER", help="layers to store as well")
    command.add_argument("--examples-per-shard", type=int)
    command.add_argument("--shard", default="0/1", metavar="I/N", help="write part I of N, to share the work")
    command.add_argument("--overwrite", action="store_true", help="discard a store that is already there")
    command.set_defaults(run=_label)

    store = subparsers.add_parser("store", help="look after stored teachers").add_subparsers(required=True)
    command = store.add_parser("verify", help="read every byte of a store and name what is bad")
    command.add_argument("path", type=Path)
    command.set_defaults(run=_verify)
    command = store.add_parser("repair", help="label again what is bad, and only that")
    command.add_argument("path", type=Path)
    _source(command)
    command.set_defaults(run=_repair)


def _source(command: argparse.ArgumentParser) -> None:
    command.add_argument("--teacher", required=True, type=Path, metavar="FILE.keras", help="a saved Keras model")
    command.add_argument("--data", required=True, metavar="NAME", help=f"one of {', '.join(data.names())}")
    command.add_argument("--split", default="train", help="train, validation or test")
    command.add_argument("--batch-size", type=int, default=128)


def _dataset(arguments: argparse.Namespace) -> tf.data.Dataset:
    choice("label", "--split", arguments.split, ("train", "validation", "test"))
    return getattr(data.load(arguments.data), arguments.split).dataset(arguments.batch_size)


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit()):
        raise error("label", "--shard I/N, such as 0/4", text)
    return int(number), int(count)


def _label(arguments: argparse.Namespace) -> None:
    stored = label(
        keras.saving.load_model(arguments.teacher, compile=False, safe_mode=True),
        _dataset(arguments),
        arguments.out,
        top_k=arguments.top_k,
        dtype=arguments.dtype,
        features=arguments.features,
        examples_per_shard=arguments.examples_per_shard,
        shard=_part(arguments.shard),
        overwrite=arguments.overwrite,
    )
    missing = f"{arguments.out}: this part is written; other parts are still missing"
    _say(missing if stored is None else _summary(arguments.out, stored))


def _verify(arguments: argparse.Namespace) -> None:
    problems = verify(arguments.path)
    for problem in problems:
        _say(str(problem))
    if problems:
        advice = f"Run keras-distill store repair {arguments.path} --teacher FILE --data NAME"
        raise stored_error("a store as it was written", f"{len(problems)} bad files", advice, "store verify")
    _say(f"{arguments.path}: {len(read_manifest(arguments.path)['shards'])} shards, all as they were written")


def _repair(arguments: argparse.Namespace) -> None:
    before = verify(arguments.path)
    teacher = keras.saving.load_model(arguments.teacher, compile=False, safe_mode=True)
    stored = repair(teacher, _dataset(arguments), arguments.path)
    for problem in before:
        _say(f"repaired {problem.file}")
    missing = f"{arguments.path}: parts of other writers are still missing"
    _say(missing if stored is None else _summary(arguments.path, stored))


def _summary(path: Path, stored: Stored) -> str:
    size = sum(file.stat().st_size for file in path.iterdir())
    return f"{path}: {stored.num_examples} examples, {stored.bytes_per_example} bytes each, {size / 1e6:.1f} MB in all"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
