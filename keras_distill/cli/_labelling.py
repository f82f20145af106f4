"""The options ``--teacher``, ``--data``, ``--split`` and ``--batch-size``, and messages of ``label`` and ``store``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from keras_distill._checks import choice


def add_source(command: argparse.ArgumentParser) -> None:
    """Add the options for the teacher and the data set to label.

    Args:
        command: the parser of ``label`` or ``store repair``.
    """
    command.add_argument("--teacher", required=True, type=Path, metavar="FILE.keras", help="a saved Keras model")
    command.add_argument("--data", required=True, metavar="NAME", help="a data set of keras_distill.data")
    command.add_argument("--split", default="train", help="train, validation or test")
    command.add_argument("--batch-size", type=int, default=128)


def dataset_of(arguments: argparse.Namespace) -> Any:
    """Return the ``tf.data.Dataset`` of the options ``--data``, ``--split`` and ``--batch-size``."""
    from keras_distill import data

    choice("label", "--split", arguments.split, ("train", "validation", "test"))
    return getattr(data.load(arguments.data), arguments.split).dataset(arguments.batch_size)


def summary(path: Path, stored: Any) -> str:
    """Return one line about a finished store, and one for each output stored with ``top_k``."""
    size = sum(file.stat().st_size for file in path.iterdir())
    lines = [
        f"{path}: {stored.num_examples} examples, {stored.bytes_per_example} bytes each, {size / 1e6:.1f} MB in all"
    ]
    for name, nats in stored.divergence.items():
        lines.append(f"{name}: the classes that were left out cost {nats:.3g} nats of KL; see losses.TopKSoftTargets")
    return "\n".join(lines)


def say(line: str) -> None:
    """Print one line."""
    sys.stdout.write(line + "\n")
