"""Losses over several scales or several layers: hierarchical context, semantic calibration, factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import FeatureLoss, FeatureTwin
from keras_distill.losses._features import maps
from keras_distill.losses._features.attention_maps import attention_map
from keras_distill.losses._numerics import arguments


def hierarchical_context(
    *, teacher_features: Tensor, student_features: Tensor, levels: Sequence[int] = (4, 2, 1)
) -> Tensor:
    """Mean squared distance at several resolutions of a map (HCL of ReviewKD).

    Choose it over ``hint`` for large maps, where layout matters more than detail; in ReviewKD
    ``adapters.AttentionFusion`` produces the student's side. Values of several stages are summed.

    Formula: sum_k w_k MSE_k / sum_k w_k, MSE_0 of the full maps with w_0 = 1, then of the maps pooled to each level
    smaller than the map's height, each with half the previous weight. A skipped level does not halve the weight.

    Args:
        teacher_features: (batch, height, width, channels), or (batch, time, channels), or a list of stages. No gradient
            reaches it.
        student_features: same rank and channels. If sizes differ, the larger is average-pooled.
        levels: heights (and widths) of the pooled maps, in descending order.

    Returns:
        (batch,), float32, not reduced. Zero exactly when the features are equal.

    Raises:
        ValueError: if shapes do not fit, or a level is not an integer >= 1.

    Example:
        >>> from keras_distill import losses
        >>> teacher, student = (
        ...     [[[0.0], [0.0]]],
        ...     [[[1.0], [-1.0]]],
        ... )  # two steps: 1 in full, 0 in the mean, weights 1, 1/2
        >>> value = losses.hierarchical_context(teacher_features=teacher, student_features=student)
        >>> round(float(value[0]), 5)
        0.66667

    Reference:
        Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv:2104.09044, section 3.3.
        Differs: nothing.
    """
    owner = "hierarchical_context"
    levels = [_checks.integer(owner, "levels", level, low=1) for level in levels]
    teachers, students = maps.lists(owner, teacher_features, student_features)
    stages = []
    for teacher, student in zip(teachers, students, strict=True):
        teacher, student = maps.matching(owner, teacher, student, ranks=(3, 4))
        height = student.shape[1]
        if height is None:
            raise _checks.error(owner, "maps of known height", "an unknown one", "Give the model a fixed input size")
        difference = student - teacher  # pooling is linear: one pooled difference in place of two pooled maps
        value, weight, total = _mean_square(difference), 1.0, 1.0
        for level in levels:
            if level >= height:
                continue
            weight /= 2.0
            total += weight
            pooled = maps.pool(difference, [level] * (len(student.shape) - 2))
            value = value + weight * _mean_square(pooled)
        stages.append(value / total)
    return sum(stages[1:], stages[0])


def _mean_square(difference: Tensor) -> Tensor:
    return ops.mean(maps.flat(ops.square(difference)), axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class HierarchicalContext(FeatureLoss):
    """Class twin of ``hierarchical_context`` (HCL of ReviewKD); see that function.

    Args:
        levels: heights of the pooled maps, in descending order.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> round(float(losses.HierarchicalContext()([[[0.0], [0.0]]], [[[1.0], [-1.0]]])), 5)
        0.66667

    Reference:
        Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv:2104.09044. Differs: nothing.
    """

    same_channels = True

    def __init__(
        self,
        levels: Sequence[int] = (4, 2, 1),
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "hierarchical_context",
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        self.levels = [_checks.integer("HierarchicalContext", "levels", level, low=1) for level in levels]

    def values(self, teacher_features: Tensor, student_features: Tensor, *, mask: Tensor = None) -> Tensor:
        """Return ``hierarchical_context`` of each example; masks are not supported."""
        if mask is not None:
            advice = "Use HintMatching or HiddenStates for padded sequences"
            raise _checks.error("HierarchicalContext", "features without a mask", "a mask", advice)
        return hierarchical_context(
            teacher_features=teacher_features, student_features=student_features, levels=self.levels
        )

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "levels": self.levels}


def layer_attention(*, queries: Tensor, keys: Any) -> Tensor:
    """Attention weight of each teacher layer for each student layer (the attention of SemCKD).

    Formula: softmax over teacher layers of queries . keys, without a temperature.

    Args:
        queries: (batch, student layers, units), of length 1, from ``adapters.LayerEmbedding``.
        keys: (batch, teacher layers, units), of length 1.

    Returns:
        (batch, student layers, teacher layers), float32; each row sums to 1. The gradient reaches both.

    Example:
        >>> layer_attention(queries=[[[1.0, 0.0]]], keys=[[[0.0, 1.0], [0.0, -1.0]]]).numpy()
        array([[[0.5, 0.5]]], dtype=float32)

    Reference:
        Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021, arXiv:2012.03236, eq. 5.
        Differs: nothing.
    """
    queries, keys = arguments.float32(queries), arguments.float32(keys)
    shapes = tuple(queries.shape), tuple(keys.shape)
    agree = all(None in pair or pair[0] == pair[1] for pair in zip(*(shape[::2] for shape in shapes), strict=False))
    if len(shapes[0]) != 3 or len(shapes[1]) != 3 or not agree:
        expected = "queries (batch, student layers, width) and keys (batch, teacher layers, width)"
        raise _checks.error("layer_attention", expected, f"shapes {shapes[0]} and {shapes[1]}")
    scores = ops.einsum("bsd,btd->bst", queries, keys)
    return ops.softmax(scores, axis=-1)


def semantic_calibration(*, teacher_features: Tensor, student_features: Tensor, attention: Any) -> Tensor:
    """Squared distances of all pairs of layers, weighted by the attention to each teacher layer (SemCKD).

    Choose it when it is unclear which layers correspond. The term ``CrossLayerAttention`` trains the adapters and the
    attention.

    Formula: sum over student layers s and teacher layers t of attention_st * mean((f_st - f_t)**2), over the number of
    student layers.

    Args:
        teacher_features: list of the teacher's layers, each (batch, ..., channels). No gradient reaches them.
        student_features: list over student layers of lists over teacher layers: layer s adapted to teacher layer t. Of
            two sizes the larger is average-pooled.
        attention: (batch, student layers, teacher layers), as from ``layer_attention``. It receives a gradient.

    Returns:
        (batch,), float32, not reduced.

    Raises:
        ValueError: if the lists or shapes do not fit each other.

    Example:
        >>> pairs = [[[[1.0]], [[1.0]]]]  # one student layer, adapted to two teacher layers
        >>> semantic_calibration(
        ...     teacher_features=[[[2.0]], [[5.0]]], student_features=pairs, attention=[[[0.75, 0.25]]]
        ... ).numpy()
        array([4.75], dtype=float32)

    Reference:
        Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021, arXiv:2012.03236, eq. 6.
        Differs: nothing.
    """
    owner = "semantic_calibration"
    attention = arguments.float32(attention)
    if len(attention.shape) != 3:
        expected = "attention of shape (batch, student layers, teacher layers)"
        raise _checks.error(owner, expected, f"shape {tuple(attention.shape)}")
    lists = [
        teacher_features,
        student_features,
        *(student_features if isinstance(student_features, (list, tuple)) else []),
    ]
    if not all(isinstance(each, (list, tuple)) for each in lists):
        advice = "student_features[i][j] is the student's layer i adapted to the teacher's layer j"
        raise _checks.error(owner, "a list of teacher layers and a list of lists of student layers", "others", advice)
    got = (len(student_features), *{len(row) for row in student_features})
    if got != (attention.shape[1], attention.shape[2]) or len(teacher_features) != attention.shape[2]:
        expected = f"one adapted student layer for each entry of an attention of {tuple(attention.shape)}"
        raise _checks.error(owner, expected, f"{got} of them for {len(teacher_features)} teacher layers")
    total = 0.0
    for row, adapted in enumerate(student_features):
        for column, (teacher, student) in enumerate(zip(teacher_features, adapted, strict=True)):
            teacher, student = maps.matching(owner, teacher, student)
            total = total + attention[:, row, column] * _mean_square(student - teacher)
    return total / len(student_features)


def factor_transfer(
    *,
    teacher_features: Tensor,
    student_features: Tensor,
    mode: str = "code",
    p: float = 2.0,
    distance_power: float = 1.0,
    mask: Tensor = None,
) -> Tensor:
    """Distance between the teacher's factor and the student's (FT).

    Choose it with an ``adapters.Paraphraser``, trained on the teacher's features beforehand, for the teacher's factor
    and an ``adapters.Translator`` for the student's. Usual weight 200.

    Formula: mean over positions of |Q_student - Q_teacher|**distance_power, Q the attention map of the factor as in
    ``attention_transfer`` ("code"); or the same over all elements of factors scaled to length 1 ("paper").

    Args:
        teacher_features: (batch, ..., channels), rank 3 or 4 (2 too in "paper"), the teacher's factor. No gradient
            reaches it.
        student_features: the student's factor; same rank, in "paper" the same channels. If sizes differ, the larger is
            average-pooled.
        mode: "code" (RepDistiller) or "paper".
        p: >= 1, the power of the attention map; "code" only.
        distance_power: >= 1.
        mask: the features' shape without the channels, bool, or None. Masked positions never count.

    Returns:
        (batch,), float32, not reduced. Zero when the maps, or the factors, agree up to a positive factor.

    Raises:
        ValueError: if shapes or the mask do not fit, or an option is out of range.

    Example:
        >>> from keras_distill import losses
        >>> teacher, student = [[[1.0], [0.0]]], [[[0.0], [3.0]]]  # two positions, one channel
        >>> losses.factor_transfer(teacher_features=teacher, student_features=student).numpy()
        array([1.], dtype=float32)

    Reference:
        Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018,
        arXiv:1802.04977, eq. 3. Differs: channel-pooled factors by default, as in public code; mean, not sum.
    """
    owner = "factor_transfer"
    _checks.choice(owner, "mode", mode, ("code", "paper"))
    p = _checks.number(owner, "p", p, low=1.0)
    power = _checks.number(owner, "distance_power", distance_power, low=1.0)
    ranks = (3, 4) if mode == "code" else (2, 3, 4)
    teacher, student = maps.matching(owner, teacher_features, student_features, ranks=ranks, channels=mode == "paper")
    teacher, student, mask = maps.masked(owner, teacher, student, mask)
    if mode == "code":
        gap = ops.abs(attention_map(student, p) - attention_map(teacher, p))
        places = None if mask is None else ops.reshape(mask, ops.shape(gap))
        return maps.position_mean(gap if power == 1.0 else ops.power(gap, power), places)
    gap = ops.abs(maps.unit(maps.flat(student)) - maps.unit(maps.flat(teacher)))
    gap = ops.reshape(gap if power == 1.0 else ops.power(gap, power), ops.shape(student))
    return maps.position_mean(ops.mean(gap, axis=-1), mask)


@keras.saving.register_keras_serializable(package="keras_distill")
class FactorTransfer(FeatureTwin):
    """Class twin of ``factor_transfer`` (FT); see that function.

    Args:
        mode: "code" or "paper".
        p: >= 1, the power of the attention map.
        distance_power: >= 1.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> float(losses.FactorTransfer("paper")([[[1.0], [0.0]]], [[[0.0], [3.0]]]))
        1.0

    Reference:
        Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018,
        arXiv:1802.04977. Differs: see ``factor_transfer``.
    """

    def __init__(
        self,
        mode: str = "code",
        p: float = 2.0,
        distance_power: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "factor_transfer",
    ) -> None:
        super().__init__(
            factor_transfer,
            reduction,
            name,
            mode=_checks.choice("FactorTransfer", "mode", mode, ("code", "paper")),
            p=_checks.number("FactorTransfer", "p", p, low=1.0),
            distance_power=_checks.number("FactorTransfer", "distance_power", distance_power, low=1.0),
        )
