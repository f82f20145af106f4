"""Maps a teacher's classes to the student's, exactly and in log space.

Kept apart from ``_ensemble.py``: it is arithmetic on tensors and knows no teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_distill._checks import error
from keras_distill._typing import Tensor
from keras_distill.teachers._members import log_sum_exp


class ClassMap:
    """Sums a teacher's probabilities over the classes that are one class for the student.

    Args:
        classes: for each class of the teacher the student's class, or -1 for one that the student lacks (its
            probability is redistributed over the rest); or a (teacher classes, student classes) matrix of shares >= 0.
        num_classes: the student's number of classes; None takes it from ``classes``.
        owner: name shown in the error message.

    Attributes:
        complete: whether every class of the student has a source in the teacher.

    Example:
        >>> import numpy as np
        >>> coarse = ClassMap([0, 0, 1])  # the teacher knows two kinds of class 0
        >>> logits = np.log(np.array([[0.2, 0.3, 0.5]], "float32"))
        >>> np.exp(np.asarray(coarse(logits))).round(3)
        array([[0.5, 0.5]], dtype=float32)
    """

    def __init__(self, classes: Sequence[int] | Any, num_classes: int | None = None, owner: str = "ClassMap") -> None:
        given = np.asarray(classes)
        if given.ndim == 1 and np.issubdtype(given.dtype, np.integer):
            target = num_classes or int(given.max()) + 1
            if given.min() < -1 or given.max() >= target or given.max() < 0:
                raise error(owner, f"class map entries from -1 to {target - 1}", given.tolist())
            shares = np.zeros((len(given), target))
            shares[np.arange(len(given))[given >= 0], given[given >= 0]] = 1.0
        elif given.ndim == 2:
            shares = given.astype("float64")
            if not np.all(np.isfinite(shares)) or shares.min() < 0 or shares.max() <= 0:
                raise error(owner, "class map shares >= 0, not all 0", f"values from {shares.min()} to {shares.max()}")
            if num_classes is not None and shares.shape[1] != num_classes:
                raise error(owner, f"a class map with {num_classes} columns", f"{shares.shape[1]}")
        else:
            raise error(
                owner,
                "a class map: one integer per teacher class, or a matrix of shares",
                f"{given.dtype} of shape {given.shape}",
            )
        self.classes = given.tolist()
        self.num_teacher_classes, self.num_classes = shares.shape
        self.complete = bool(np.all(shares.sum(axis=0) > 0))
        width = max(1, int((shares > 0).sum(axis=0).max()))
        self._source = np.zeros((self.num_classes, width), "int32")
        self._log_share = np.full((self.num_classes, width), -np.inf, "float32")
        for k in range(self.num_classes):
            rows = np.flatnonzero(shares[:, k])
            self._source[k, : len(rows)] = rows
            self._log_share[k, : len(rows)] = np.log(shares[rows, k])

    def __call__(self, logits: Tensor) -> Any:
        """Return logits over the student's classes, float32; -inf for a class without a source."""
        taken = ops.take(ops.cast(logits, "float32"), ops.convert_to_tensor(self._source), axis=-1)
        return log_sum_exp(taken + ops.convert_to_tensor(self._log_share), axis=-1)
