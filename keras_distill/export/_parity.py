"""Compares an export with the Keras student: differences, agreement, accuracy, calibration, size, latency."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_distill import metrics
from keras_distill._checks import error, number
from keras_distill.export._heads import Head
from keras_distill.export._student import computes_in_half


@dataclasses.dataclass(frozen=True)
class Export(os.PathLike):
    """A written export and its agreement with the Keras student; usable as a path.

    Args:
        path: the file, or the version directory.
        format: ``"saved_model"``, ``"litert"``, ``"onnx"`` or ``"openvino"``.
        num_examples: number of inputs compared.
        max_difference: largest absolute difference of probabilities (of values, for regression).
        max_logit_difference: largest absolute difference of logits; None if the student returns none.
        tolerance: the allowed difference.
        agreement: fraction of examples with the student's class, between 0 and 1; None for regression.
        accuracy: accuracy of the export, if labels were given.
        student_accuracy: that of the Keras student on the same examples.
        ece: expected calibration error of the export (15 bins, l1), if labels were given.
        student_ece: that of the Keras student on the same examples.
        size_bytes: size of all files written for the model.
        latency_ms: median and 99th percentile per call by batch size, if measured.
    """

    path: Path
    format: str
    num_examples: int
    max_difference: float
    max_logit_difference: float | None
    tolerance: float
    agreement: float | None
    accuracy: float | None = None
    student_accuracy: float | None = None
    ece: float | None = None
    student_ece: float | None = None
    size_bytes: int = 0
    latency_ms: Mapping[int, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    def __fspath__(self) -> str:
        """Return the path, so that the result can be used as one."""
        return str(self.path)

    def __str__(self) -> str:
        """Return the path as text."""
        return str(self.path)

    def with_size(self, path: Path) -> Export:
        """Return a copy with the size of ``path``.

        Args:
            path: a file, or a directory, whose files are summed.

        Returns:
            The copy.
        """
        return dataclasses.replace(self, size_bytes=size_bytes(path))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with the path reduced to its last part.

        Returns:
            A dictionary.
        """
        out = dataclasses.asdict(self)
        out["path"] = self.path.name
        out["latency_ms"] = {str(batch): dict(value) for batch, value in self.latency_ms.items()}
        return out


def size_bytes(path: str | os.PathLike[str]) -> int:
    """Add up the bytes of a file, or of every file under a directory.

    Args:
        path: file or directory.

    Returns:
        Bytes.
    """
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())


def tolerance_for(owner: str, tolerance: float | None, student: keras.Model) -> float:
    """Return the given tolerance, or the default for the precision the student computes in.

    Args:
        owner: name shown in the error message.
        tolerance: the user's tolerance, or None.
        student: the model.

    Returns:
        The given one, else 1e-5 in float32 and 1e-2 if any layer computes in 16 bits.
    """
    if tolerance is not None:
        return number(owner, "tolerance", tolerance, low=0)
    return 1e-2 if computes_in_half(student) else 1e-5


def compare(
    owner: str,
    kind: str,
    path: Path,
    heads: list[Head],
    raw: Mapping[str, np.ndarray],
    served: Mapping[str, np.ndarray],
    labels: Any,
    tolerance: float,
) -> Export:
    """Compare the outputs of an export with those of the Keras student on the same inputs.

    Args:
        owner: name shown in the error message.
        kind: format name.
        path: final path of the export.
        heads: interpretation of each output.
        raw: the student's outputs.
        served: the export's outputs by served name.
        labels: integer labels of the first classification output, or None.
        tolerance: allowed difference of probabilities (absolute) and of logits or values (relative to the largest one).

    Returns:
        The measurements.

    Raises:
        ValueError: if any difference exceeds the tolerance, or an output is missing.
    """
    worst: dict[str, float] = {"probabilities": 0.0, "logits": 0.0, "values": 0.0}
    agreement: list[float] = []
    measured: dict[str, Any] = {}
    num_examples = 0
    for head, value in zip(heads, raw.values(), strict=True):
        expected = head.expected(value)
        num_examples = len(value)
        for name, wanted in expected.items():
            if name not in served or np.shape(served[name]) != wanted.shape:
                shape = np.shape(served[name]) if name in served else "nothing"
                raise error(owner, f"output '{name}' of shape {wanted.shape} from the export", shape)
            got = np.asarray(served[name], np.float64)
            difference = largest_difference(got, wanted)
            plain = name.removeprefix(head.prefix)
            if plain == "logits" and not head.from_logits:  # derived from the probabilities, which are compared
                continue
            relative = plain in ("logits", "values")
            scale = max(1.0, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0))) if relative else 1.0
            if not difference <= tolerance * scale:
                raise error(
                    owner,
                    f"the export to agree with the student within {tolerance * scale:.3g} in '{name}'",
                    f"a difference of {difference:.3g}",
                    "Nothing was kept. Raise tolerance only if you accept the difference",
                )
            if plain in worst:
                worst[plain] = max(worst[plain], difference)
        if head.task != "regression":
            probabilities = np.asarray(served[f"{head.prefix}probabilities"], np.float64)
            wanted = expected[f"{head.prefix}probabilities"]
            agreement.append(float((decide(head, probabilities) == decide(head, wanted)).mean()))
            if labels is not None and not measured:
                measured = _quality(owner, head, probabilities, wanted, labels)
    has_classes = bool(agreement)
    return Export(
        path=path,
        format=kind,
        num_examples=num_examples,
        max_difference=max(worst["probabilities"], worst["values"]),
        max_logit_difference=worst["logits"] if any(h.task != "regression" and h.from_logits for h in heads) else None,
        tolerance=tolerance,
        agreement=min(agreement) if has_classes else None,
        **measured,
    )


def largest_difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest absolute difference; equal infinities count as 0, NaN as infinity.

    Args:
        got: array.
        wanted: array of the same shape.

    Returns:
        A number >= 0.
    """
    with np.errstate(invalid="ignore"):
        difference = np.abs(np.asarray(got, np.float64) - np.asarray(wanted, np.float64))
    difference = np.where(got == wanted, 0.0, difference)
    return float(np.where(np.isnan(difference), np.inf, difference).max(initial=0.0))


def decide(head: Head, probabilities: np.ndarray) -> np.ndarray:
    """Turn probabilities into classes: the largest, or 0/1 per unit of a binary head.

    Args:
        head: how the output is read.
        probabilities: (..., classes).

    Returns:
        Integers.
    """
    if head.task == "classification":
        return probabilities.argmax(-1)
    out = (probabilities > 0.5).astype(np.int64)
    return out[..., 0] if out.shape[-1] == 1 else out


def _quality(
    owner: str, head: Head, probabilities: np.ndarray, student_probabilities: np.ndarray, labels: Any
) -> dict[str, Any]:
    truth = np.asarray(labels)
    wanted_shape = decide(head, probabilities).shape
    if truth.shape != wanted_shape and truth.size == np.prod(wanted_shape):
        truth = truth.reshape(wanted_shape)
    if truth.shape != wanted_shape:
        raise error(owner, f"check_labels of shape {wanted_shape}", truth.shape, "Give integer class labels")
    return {
        "accuracy": float((decide(head, probabilities) == truth).mean()),
        "student_accuracy": float((decide(head, student_probabilities) == truth).mean()),
        "ece": calibration_error(head, probabilities, truth),
        "student_ece": calibration_error(head, student_probabilities, truth),
    }


def calibration_error(head: Head, probabilities: np.ndarray, truth: np.ndarray, num_bins: int = 15) -> float:
    """Expected calibration error (l1): mean gap between confidence and accuracy over equal bins of confidence.

    Args:
        head: how the output is read.
        probabilities: (..., classes).
        truth: integer labels.
        num_bins: equal bins over 0..1.

    Returns:
        A number between 0 and 1.
    """
    if head.task != "classification":  # each binary decision is a choice of two
        probabilities = np.stack([1 - probabilities.ravel(), probabilities.ravel()], axis=-1)
    metric = metrics.ExpectedCalibrationError(num_bins=num_bins)
    metric.update_state(truth.reshape(-1), probabilities.reshape(-1, probabilities.shape[-1]).astype(np.float32))
    return float(metric.result())
