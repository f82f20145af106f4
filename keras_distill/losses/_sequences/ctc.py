"""Connectionist temporal classification, exact for logits of any size and with arbitrary masks."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._numerics import arguments
from keras_distill.losses._numerics.xla import compiled
from keras_distill.losses._sequences.base import SequenceLoss

NEVER = -1e30  # replaces log 0: sums stay finite, so that no difference of infinities becomes NaN


def ctc(*, labels: Tensor, logits: Tensor, mask: Tensor = None, blank: int = 0) -> Tensor:
    """Negative log-likelihood of label sequences without an alignment, summed over all alignments (CTC).

    Choose it for speech and handwriting, where the order of the labels is known but not their frames. Unlike
    ``keras.losses.CTC``, it applies a mask on the logits, is exact for logits of 1e4, and raises for labels that do not
    fit into the frames instead of returning a large number. Cost: two loops over the frames.

    Formula: -log sum_a prod_t q_t(a_t) over the paths a that yield the labels when repeats are merged and blanks
    dropped, q = softmax(logits).

    Args:
        labels: (batch, labels), integers from 0 to classes - 1. ``blank`` and every negative number are padding.
        logits: (batch, frames, classes), float.
        mask: (batch, frames) bool or None. Masked frames are left out, at any position.
        blank: the class that means "no label".

    Returns:
        (batch,), float32, nats. Inside a graph, labels that cannot be aligned (more labels and repeats than frames)
        give inf and no gradient.

    Raises:
        ValueError: if the shapes do not fit, or if known labels are out of range or do not fit into their frames.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> logits = np.zeros((1, 2, 2), "float32")  # of the 4 paths, (1, 1), (0, 1) and (1, 0) say "1"
        >>> round(float(losses.ctc(labels=[[1]], logits=logits)[0]), 4)  # -log(3 / 4)
        0.2877

    Reference:
        Graves et al., "Connectionist Temporal Classification: Labelling Unsegmented Sequence Data with Recurrent Neural
        Networks", ICML 2006, section 4. Differs: nothing.
    """
    return _ctc("ctc", labels, logits, mask, blank)


def _ctc(owner: str, labels: Tensor, logits: Tensor, mask: Tensor, blank: int) -> Tensor:
    labels, logits, mask = checked(owner, labels, logits, mask, blank)
    return negative_log_likelihood(labels, logits, mask, blank)


def checked(owner: str, labels: Tensor, logits: Tensor, mask: Tensor, blank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return int32 labels, float32 logits and the mask, or raise if they do not fit together."""
    logits, labels = arguments.float32(logits), _checks.tensor(owner, labels, ops.convert_to_tensor)
    shapes = f"{tuple(labels.shape)} and {tuple(logits.shape)}"
    if len(logits.shape) != 3:
        raise _checks.error(owner, "logits of shape (batch, frames, classes)", str(tuple(logits.shape)))
    advice = "Pad labels with 0 or -1 to one length"
    if len(labels.shape) != 2 or (
        None not in (labels.shape[0], logits.shape[0]) and labels.shape[0] != logits.shape[0]
    ):
        raise _checks.error(
            owner, "labels of shape (batch, labels) for logits (batch, frames, classes)", shapes, advice
        )
    mask = arguments.check_mask(owner, mask, logits)
    classes = logits.shape[-1]
    if not 0 <= blank < (classes or blank + 1):
        raise _checks.error(owner, f"blank from 0 to {classes - 1}", blank)
    known = arguments.concrete(labels)
    if known is not None and classes is not None:
        _check_known(owner, known, None if mask is None else arguments.concrete(mask), logits.shape, blank)
    return ops.cast(labels, "int32"), logits, mask


def _check_known(owner: str, labels: np.ndarray, mask: np.ndarray | None, shape: Any, blank: int) -> None:
    classes = shape[-1]
    if labels.size and labels.max() >= classes:
        advice = "The blank is one of the classes: a model for n labels has n + 1 outputs"
        raise _checks.error(
            owner, f"labels from 0 to {classes - 1}, negative ones as padding", int(labels.max()), advice
        )
    if shape[1] is None or (mask is None and 2 * labels.shape[1] <= shape[1] + 1):
        return
    frames = np.full(len(labels), shape[1]) if mask is None else mask.sum(axis=1)
    for row, available in zip(labels, frames, strict=True):
        needed = frames_needed(row, blank)
        if needed > available:
            advice = "Drop the example, shorten its labels or reduce the subsampling of the model"
            expected = f"at least {needed} frames for the labels {row[(row >= 0) & (row != blank)].tolist()}"
            raise _checks.error(owner, expected, f"{int(available)}", advice)


def frames_needed(labels: Tensor, blank: int = 0) -> int:
    """Return the smallest number of frames for ``labels``: one per label, and one blank between equal neighbours."""
    row = np.asarray(labels)
    row = row[(row >= 0) & (row != blank)]
    return int(len(row) + np.sum(row[1:] == row[:-1]))


def negative_log_likelihood(labels: Tensor, logits: Tensor, mask: Tensor, blank: int) -> Tensor:
    """Return the CTC loss, (batch,), of checked arguments, with its gradient from the alignment posteriors."""
    states, exists, skips, last = _states(labels, blank)
    log_q = ops.log_softmax(arguments.clean(logits, mask), axis=-1)
    classes = ops.shape(log_q)[-1]
    index = ops.broadcast_to(
        ops.minimum(states, classes - 1)[:, None, :], (*ops.shape(log_q)[:2], ops.shape(states)[1])
    )
    # A label that is out of range can never be emitted, so the value is inf, not that of another label.
    allowed = ops.logical_and(exists, states < classes)[:, None, :]
    emitted = ops.where(allowed, ops.take_along_axis(log_q, index, axis=-1), NEVER)
    held = ops.maximum(ops.stop_gradient(emitted), NEVER)
    kept = ops.ones_like(held[:, :, 0], dtype="bool") if mask is None else mask
    # XLA runs both loops several times as fast as op by op, but not if the shape varies by batch, because each shape
    # is compiled again. No gradient flows through the loops.
    posterior = compiled(_posterior) if None not in tuple(held.shape) else _posterior
    total, occupied = posterior(held, kept, skips, last)
    possible = total > NEVER / 2
    # The gradient to the log-probabilities is minus the posterior of the states (Graves' eq. 15).
    path = ops.sum(ops.where(occupied > 0.0, ops.stop_gradient(occupied) * emitted, 0.0), axis=(1, 2))
    return ops.where(possible, -total, np.inf) - (path - ops.stop_gradient(path))


def _posterior(emitted: Any, kept: Tensor, skips: Any, last: Any) -> tuple[Tensor, Tensor]:
    """Return the log-likelihood (batch,), and the probability of each state at each frame given the labels."""
    forward = _scan(emitted, kept, skips, last, backward=False)
    backward = _scan(emitted, kept, skips, last, backward=True)
    total = _logsumexp(ops.where(last, forward[:, -1], NEVER))
    occupied = ops.exp(ops.minimum(forward + backward - total[:, None, None], 0.0))
    counts = ops.logical_and(kept, (total > NEVER / 2)[:, None])
    return total, ops.where(counts[..., None], occupied, 0.0)


def _states(labels: Tensor, blank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the states blank, label, blank, label, ..., blank of each sequence, and their allowed transitions.

    Returns:
        states: (batch, states), the class of each; exists: which belong to the sequence; skips: where the blank before
        may be skipped; last: where a path may end.
    """
    labels = ops.pad(labels, ((0, 0), (0, 1)), constant_values=-1)  # room for the last blank, also without any label
    real = ops.logical_and(labels >= 0, labels != blank)
    position = ops.cumsum(ops.cast(real, "int32"), axis=1) - 1  # padding may stand anywhere
    slots = ops.arange(ops.shape(labels)[1], dtype="int32")
    chosen = ops.logical_and(real[:, :, None], position[:, :, None] == slots)
    packed = ops.sum(ops.where(chosen, labels[:, :, None], 0), axis=1)
    count = ops.sum(ops.cast(real, "int32"), axis=1)[:, None]
    packed = ops.where(slots < count, packed, blank)
    woven = ops.stack([ops.full_like(packed, blank), packed], axis=-1)
    states = ops.reshape(woven, (ops.shape(packed)[0], 2 * ops.shape(packed)[1]))
    number = ops.arange(ops.shape(states)[1], dtype="int32")
    exists = number <= 2 * count
    before = ops.concatenate([ops.full_like(states[:, :2], blank), states[:, :-2]], axis=1)
    skips = ops.logical_and(ops.logical_and(states != blank, states != before), exists)
    last = ops.logical_and(number >= 2 * count - 1, exists)
    return states, exists, skips, last


def _shifted(x: Tensor, by: int) -> Tensor:
    """Return ``x`` shifted by ``by`` states and padded with NEVER."""
    edge = ops.full_like(x[:, : abs(by)], NEVER)
    return ops.concatenate([edge, x[:, :-by]] if by > 0 else [x[:, -by:], edge], axis=1)


def _logsumexp(x: Tensor, axis: int = -1) -> Tensor:
    greatest = ops.max(x, axis=axis, keepdims=True)
    return ops.squeeze(greatest, axis) + ops.log(ops.sum(ops.exp(x - greatest), axis=axis))


def _scan(emitted: Any, kept: Tensor, skips: Any, last: Any, *, backward: bool) -> Tensor:
    """Return log-probabilities of all prefixes that end in a state, or of all suffixes that follow it.

    Args:
        emitted: (batch, frames, states), log-probability of the state's class.
        kept: (batch, frames) bool; other frames are skipped.
        skips: (batch, states) bool.
        last: (batch, states) bool.
        backward: False for prefixes, which include frame t; True for suffixes, which begin after t.

    Returns:
        (batch, frames, states).
    """
    # A single tensor to scan over: with two, Keras' scan for TensorFlow fails if the number of frames is unknown.
    together = ops.concatenate([emitted, ops.cast(kept, "float32")[:, :, None]], axis=2)
    time_first = ops.transpose(together, (1, 0, 2))
    started = ops.zeros_like(kept[:, 0])
    zero = ops.zeros_like(emitted[:, 0])
    number = ops.arange(ops.shape(emitted)[2], dtype="int32")
    skipped_to = ops.concatenate([skips[:, 2:], ops.zeros_like(skips[:, :2])], axis=1)

    def forward_step(carry: Tensor, now: Any) -> Tensor:
        alpha, begun = carry
        emission, keep = now[:, :-1], now[:, -1] > 0.0
        skip = ops.where(skips, _shifted(alpha, 2), NEVER)
        come = _logsumexp(ops.stack([alpha, _shifted(alpha, 1), skip], axis=-1))
        first = ops.where(number < 2, zero, NEVER)
        come = ops.maximum(ops.where(begun[:, None], come, first) + emission, NEVER)
        alpha = ops.where(keep[:, None], come, alpha)
        begun = ops.logical_or(begun, keep)
        return (alpha, begun), (alpha, begun)

    def backward_step(carry: Tensor, now: Any) -> Tensor:
        beta, begun = carry  # suffixes from the next frame on, including its emission
        emission, keep = now[:, :-1], now[:, -1] > 0.0
        follow = ops.where(skipped_to, _shifted(beta, -2), NEVER)
        come = _logsumexp(ops.stack([beta, _shifted(beta, -1), follow], axis=-1))
        after = ops.maximum(ops.where(begun[:, None], come, ops.where(last, zero, NEVER)), NEVER)
        beta = ops.where(keep[:, None], ops.maximum(after + emission, NEVER), beta)
        begun = ops.logical_or(begun, keep)
        return (beta, begun), (after, begun)

    step = backward_step if backward else forward_step
    # Keras' scan for TensorFlow returns one stack per part of the carry.
    _, (stacked, _) = ops.scan(step, (ops.where(number < 0, zero, NEVER), started), time_first, reverse=backward)
    return ops.transpose(stacked, (1, 0, 2))


@keras.saving.register_keras_serializable(package="keras_distill")
class Ctc(SequenceLoss):
    """Class twin of ``ctc``: a supervised loss for ``compile`` that applies the mask on the model's output.

    Args:
        blank: the class that means "no label"; see ``ctc``.
        reduction: as in ``keras.losses.Loss``: a mean over sequences by default.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> round(float(losses.Ctc()(np.array([[1, -1]]), np.zeros((1, 2, 2), "float32"))), 4)
        0.2877
    """

    def __init__(self, blank: int = 0, reduction: str | None = "sum_over_batch_size", name: str | None = "ctc") -> None:
        super().__init__(reduction=reduction, name=name)
        self.blank = _checks.integer("Ctc", "blank", blank, low=0)

    def check_labels(self, labels: np.ndarray, shape: tuple[int | None, ...]) -> None:
        """Raise ``ValueError`` if a label is no class, or a row needs more frames than the outputs have."""
        if labels.ndim == 2 and len(shape) == 3 and shape[-1] is not None:
            _check_known("Ctc", labels, None, shape, self.blank)

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Tensor = 1.0,
        labels: Tensor = None,
        mask: Tensor = None,
    ) -> Tensor:
        """Return ``ctc`` of each sequence; the labels are the first argument, as for every supervised loss."""
        return _ctc("Ctc", teacher_logits, student_logits, mask, self.blank)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "blank": self.blank}
