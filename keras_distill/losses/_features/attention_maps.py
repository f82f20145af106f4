"""Losses on where a layer is active: spatial attention maps, and the selectivity of its channels."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import FeatureTwin
from keras_distill.losses._features import maps

_KERNELS = ("polynomial", "linear", "gaussian")


def attention_map(features: Tensor, p: float = 2.0, absolute: bool = True) -> Tensor:
    """Return the flattened attention map of each example, scaled to length 1: the channel mean of |features|**p.

    Args:
        features: (batch, ..., channels), float32.
        p: >= 1, the power.
        absolute: False keeps the sign of features**p (matters only for odd integers p).

    Returns:
        (batch, positions). Zeros for an example without any activation.
    """
    features = maps.positions(maps.scaled(features, axis=tuple(range(1, len(features.shape)))))
    if p == 2.0:
        powered = ops.square(features)
    else:
        powered = ops.power(ops.abs(features), p)
        if not absolute and p % 2 == 1:
            powered = ops.sign(features) * powered
    return maps.unit(ops.mean(powered, axis=-1))


def attention_transfer(
    *,
    teacher_features: Tensor,
    student_features: Tensor,
    p: float = 2.0,
    mode: str = "code",
    absolute: bool = True,
    mask: Tensor = None,
) -> Tensor:
    """Distance between the spatial attention maps of two layers (AT).

    Choose it when channels differ and no adapter is wanted: it compares only where activations are large. Positive
    scaling of either side changes nothing. Usual weight 1000; it can hurt between dissimilar architectures.

    Formula: mean over positions of (Q_student - Q_teacher)**2, Q = map / ||map||_2 per example, map = mean over the
    channels of |features|**p.

    Args:
        teacher_features: (batch, ..., channels), rank 3 or 4. No gradient reaches it.
        student_features: same rank, any channels. If sizes differ, the larger is average-pooled, before the power.
        p: >= 1. 2 is usual; larger values emphasise the strongest channels.
        mode: "code", the formula above; "paper", the 2-norm of the difference of each example.
        absolute: False drops the absolute value, as some public codes do, which changes the loss for odd p.
        mask: (batch, time) bool for sequences, or the map's shape without the channels; masked positions never count.

    Returns:
        (batch,), float32, not reduced; between 0 and 4 / positions ("code") or 0 and 2 ("paper"). Zero exactly when the
        maps agree up to a positive factor.

    Raises:
        ValueError: if ranks or the mask do not fit, or an option is out of range.

    Example:
        >>> from keras_distill import losses
        >>> teacher, student = [[[1.0], [0.0]]], [[[0.0], [3.0]]]  # two positions, one channel
        >>> losses.attention_transfer(teacher_features=teacher, student_features=student).numpy()
        array([1.], dtype=float32)

    Reference:
        Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv:1612.03928, eq. 2.
        Differs: the default is the authors' code (mean of squares); ``mode="paper"`` is the equation, without beta / 2.
    """
    owner = "attention_transfer"
    p = _checks.number(owner, "p", p, low=1.0)
    _checks.choice(owner, "mode", mode, ("code", "paper"))
    teacher, student = maps.matching(owner, teacher_features, student_features, ranks=(3, 4), channels=False)
    teacher, student, mask = maps.masked(owner, teacher, student, mask)
    difference = attention_map(student, p, absolute) - attention_map(teacher, p, absolute)
    if mode == "paper":
        return maps.length(difference)
    places = None if mask is None else ops.reshape(mask, ops.shape(difference))
    return maps.position_mean(ops.square(difference), places)


@keras.saving.register_keras_serializable(package="keras_distill")
class AttentionTransfer(FeatureTwin):
    """Class twin of ``attention_transfer`` (AT); see that function.

    Args:
        p: >= 1, the power of the activations.
        mode: "code" (mean of squares) or "paper" (2-norm).
        absolute: False drops the absolute value.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> float(losses.AttentionTransfer(p=1)([[[1.0], [0.0]]], [[[0.0], [3.0]]]))
        1.0

    Reference:
        Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv:1612.03928.
        Differs: see ``attention_transfer``.
    """

    def __init__(
        self,
        p: float = 2.0,
        mode: str = "code",
        absolute: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "attention_transfer",
    ) -> None:
        super().__init__(
            attention_transfer,
            reduction,
            name,
            p=_checks.number("AttentionTransfer", "p", p, low=1.0),
            mode=_checks.choice("AttentionTransfer", "mode", mode, ("code", "paper")),
            absolute=bool(absolute),
        )


def neuron_selectivity(
    *, teacher_features: Tensor, student_features: Tensor, kernel: str = "polynomial", mask: Tensor = None
) -> Tensor:
    """Squared maximum mean discrepancy between the channels' selectivity patterns (NST).

    Choose it over ``attention_transfer`` when it matters where each channel fires, not only where any does. Positive
    scaling of any channel changes nothing. Costs O(channels**2 * positions) per example; usual weight 50.

    Formula: mean k(t, t') + mean k(s, s') - 2 mean k(s, t) over all pairs of channels of an example, each channel's map
    scaled to length 1; k(u, v) = (u . v)**2 ("polynomial"), u . v ("linear"), or exp(-||u - v||**2 / (2 w)) with w the
    mean of ||s - t||**2 over the pairs ("gaussian").

    Args:
        teacher_features: (batch, ..., channels), rank 3 or 4. No gradient reaches it.
        student_features: same rank, any channels. If sizes differ, the larger is average-pooled.
        kernel: "polynomial", "linear" or "gaussian".
        mask: the features' shape without the channels, bool, or None. Masked positions never count.

    Returns:
        (batch,), float32, not reduced, >= 0 up to rounding. Zero when the channels agree in any order.

    Raises:
        ValueError: if ranks or the mask do not fit, or the kernel is unknown.

    Example:
        >>> from keras_distill import losses
        >>> teacher, student = [[[1.0], [0.0]]], [[[0.0], [3.0]]]  # two positions, one channel
        >>> losses.neuron_selectivity(teacher_features=teacher, student_features=student).numpy()
        array([2.], dtype=float32)

    Reference:
        Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv:1707.01219,
        eq. 5 and section 4.1. Differs: no factor 1/2, as in public codes.
    """
    owner = "neuron_selectivity"
    _checks.choice(owner, "kernel", kernel, _KERNELS)
    teacher, student = maps.matching(owner, teacher_features, student_features, ranks=(3, 4), channels=False)
    teacher, student, mask = maps.masked(owner, teacher, student, mask)
    teacher, student = (maps.unit(maps.positions(side), axis=1) for side in (teacher, student))
    if kernel == "linear":  # the mean over all pairs is the product of the means
        return ops.sum(ops.square(ops.mean(student, axis=-1) - ops.mean(teacher, axis=-1)), axis=-1)
    pairs = [_products(teacher, teacher), _products(student, student), _products(student, teacher)]
    if kernel == "polynomial":
        pairs = [ops.square(each) for each in pairs]
    else:
        own = [ops.sum(ops.square(side), axis=1) for side in (teacher, student)]
        squared = [
            ops.maximum(left[:, :, None] + right[:, None, :] - 2.0 * each, 0.0)
            for left, right, each in zip((own[0], own[1], own[1]), (own[0], own[1], own[0]), pairs, strict=True)
        ]
        width = ops.mean(squared[2], axis=(1, 2), keepdims=True)
        pairs = [ops.exp(-each / (2.0 * ops.maximum(width, 1e-6))) for each in squared]
    both_teacher, both_student, mixed = (ops.mean(each, axis=(1, 2)) for each in pairs)
    return both_teacher + both_student - 2.0 * mixed


def _products(left: Any, right: Any) -> Tensor:
    """Return the inner products of all pairs of channels: (batch, channels, channels)."""
    return ops.matmul(ops.transpose(left, (0, 2, 1)), right)


@keras.saving.register_keras_serializable(package="keras_distill")
class NeuronSelectivity(FeatureTwin):
    """Class twin of ``neuron_selectivity`` (NST); see that function.

    Args:
        kernel: "polynomial", "linear" or "gaussian".
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> float(losses.NeuronSelectivity("linear")([[[1.0], [0.0]]], [[[0.0], [3.0]]]))
        2.0

    Reference:
        Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv:1707.01219.
        Differs: see ``neuron_selectivity``.
    """

    def __init__(
        self,
        kernel: str = "polynomial",
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "neuron_selectivity",
    ) -> None:
        super().__init__(
            neuron_selectivity, reduction, name, kernel=_checks.choice("NeuronSelectivity", "kernel", kernel, _KERNELS)
        )
