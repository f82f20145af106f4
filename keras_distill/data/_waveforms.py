"""Prepares waveforms for training: one length, one sampling rate, only valid samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_distill._checks import choice, error, integer, number


def waveforms(
    sounds: Sequence[Any],
    *,
    sampling_rate: int,
    expected_rate: int | None = None,
    silent: str = "raise",
    silence: float = 1e-4,
    length: int | None = None,
) -> np.ndarray:
    """Return sounds as one float32 array, padded with zeros, after checking each of them.

    Args:
        sounds: arrays (samples,), float in -1..1 or integers of 8 (unsigned), 16 or 32 bits, which are scaled.
        sampling_rate: > 0, samples per second of the sounds.
        expected_rate: the rate that the model expects; None: the same.
        silent: treatment of a sound without any sample above ``silence``: ``"raise"``, or ``"keep"``, which returns
            only padding and so preserves the order of the examples.
        silence: >= 0, largest absolute sample of a silent sound.
        length: number of samples of the result; None: that of the longest sound.

    Returns:
        (sounds, samples), float32.

    Raises:
        ValueError: naming the sound by its number, if it is not a one-axis array, is empty, holds NaN or infinity, is
            silent or longer than ``length``; or if the rates differ.

    Example:
        >>> waveforms([np.array([16384, -16384], "int16"), np.array([0.25])], sampling_rate=8000).tolist()
        [[0.5, -0.5], [0.25, 0.0]]
    """
    owner = "data.waveforms"
    integer(owner, "sampling_rate", sampling_rate, low=1)
    choice(owner, "silent", silent, ("raise", "keep"))
    number(owner, "silence", silence, low=0.0)
    if expected_rate is not None and sampling_rate != expected_rate:
        advice = "Resample the sounds, for example with scipy.signal.resample_poly"
        raise error(owner, f"sounds of {expected_rate} samples per second", f"{sampling_rate}", advice)
    checked = [_checked(owner, index, sound, silent, silence) for index, sound in enumerate(sounds)]
    if not checked:
        raise error(owner, "at least one sound", "none")
    longest = max(map(len, checked))
    if length is not None and longest > length:
        index = next(i for i, sound in enumerate(checked) if len(sound) > length)
        raise error(owner, f"sounds of at most {length} samples", f"{len(checked[index])} in number {index}", "Cut it")
    out = np.zeros((len(checked), length or longest), "float32")
    for row, sound in zip(out, checked, strict=True):
        row[: len(sound)] = sound
    return out


def _checked(owner: str, index: int, sound: Any, silent: str, silence: float) -> np.ndarray:
    array = np.asarray(sound)
    if array.ndim != 1 or not array.size:
        advice = "Mix several channels down to one: sound.mean(axis=-1)"
        raise error(owner, "sounds of shape (samples,)", f"{array.shape} in number {index}", advice)
    if array.dtype.kind in "iu":
        half = (
            float(np.iinfo(array.dtype).max // 2 + 1) if array.dtype.kind == "u" else -float(np.iinfo(array.dtype).min)
        )
        array = array.astype("float64") / half - (1.0 if array.dtype.kind == "u" else 0.0)
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array))[0])
        raise error(
            owner, "finite samples", f"{array[bad]} at sample {bad} in number {index}", "Repair or drop the file"
        )
    if np.abs(array).max() <= silence:
        if silent == "raise":
            advice = "Drop it, or give silent='keep' to return only padding for it"
            raise error(owner, f"a sample above {silence:g}", f"a silent sound in number {index}", advice)
        array = np.zeros_like(array)
    return array.astype("float32")


def fitting_labels(labels: Sequence[Any], frames: Sequence[int], *, num_classes: int, blank: int = 0) -> np.ndarray:
    """Return which utterances CTC can learn from, after checking all labels before training.

    Args:
        labels: the labels of each utterance; ``blank`` and negative numbers are padding.
        frames: the number of frames that the model outputs for each utterance, after subsampling.
        num_classes: >= 2, number of the model's classes, including the blank.
        blank: the class that means "no label".

    Returns:
        (utterances,) bool: False if the labels, with a blank between equal ones, need more frames than there are.

    Raises:
        ValueError: if the numbers of utterances differ, or a label is outside the classes; the message names the
            utterance.

    Example:
        >>> fitting_labels([[1, 1], [1, 2]], [2, 2], num_classes=3)  # "1 1" needs three frames
        array([False,  True])
    """
    owner = "data.fitting_labels"
    classes = integer(owner, "num_classes", num_classes, low=2)
    if len(labels) != len(frames):
        raise error(owner, f"frames for each of the {len(labels)} utterances", f"{len(frames)}")
    fits = np.zeros(len(labels), bool)
    for index, (row, available) in enumerate(zip(labels, frames, strict=True)):
        array = np.asarray(row, "int64").reshape(-1)
        array = array[(array >= 0) & (array != blank)]
        if array.size and array.max() >= classes:
            got = f"{int(array.max())} in utterance {index}"
            raise error(owner, f"labels from 0 to {classes - 1}", got, "A model for n labels has n + 1 outputs")
        fits[index] = array.size + np.sum(array[1:] == array[:-1]) <= available
    return fits
