"""The options for the data on which an exported model is compared with its student."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from keras_distill._checks import error


def add_comparison(parser: argparse.ArgumentParser) -> None:
    """Add ``--data``, ``--inputs``, ``--logits``, ``--probabilities`` and ``--task``."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--data", metavar="NAME", help="compare on the test split of this keras_distill.data set")
    group.add_argument(
        "--inputs",
        metavar="FILE",
        help="compare on an .npy array, or an .npz with an array per input, and 'labels'",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--logits", action="store_true", help="the student gives logits")
    kind.add_argument("--probabilities", action="store_true", help="the student gives probabilities")
    parser.add_argument("--task", choices=["classification", "binary", "regression"], help="the kind of output")


def from_logits(options: argparse.Namespace) -> bool | None:
    """Return ``from_logits`` as given by ``--logits`` and ``--probabilities``; None without either."""
    return True if options.logits else False if options.probabilities else None


def numbers(owner: str, option: str, text: str | None) -> list[int]:
    """Return the whole numbers of an option such as ``1,32``."""
    if not text:
        return []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as problem:
        raise error(owner, f"numbers separated by commas for {option}", text) from problem


def comparison_data(owner: str, options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Return inputs and labels to compare on, and inputs to calibrate int8 on."""
    if options.data is not None:
        from keras_distill import data

        loaded = data.load(options.data)
        train = loaded.train.inputs if "train" in loaded.splits else None
        return loaded.test.inputs, loaded.test.labels, train
    if options.inputs is None:
        return None, None, None
    from keras_distill.export._load import read_arrays

    path = Path(options.inputs)
    arrays = read_arrays(owner, path, "an .npy or .npz file of plain arrays for --inputs")
    truth = arrays.pop("labels", None)
    if not arrays:
        raise error(owner, "an array per input in the file of --inputs", f"{path} without one")
    inputs = next(iter(arrays.values())) if len(arrays) == 1 else arrays
    return inputs, truth, inputs
