"""Losses on transformer internals: attention maps, hidden states, relations between tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import FeatureTwin
from keras_distill.losses._features import maps
from keras_distill.losses._numerics import arguments

_MASKED = -1e9  # the logit of a masked key; its probability is exactly zero


def attention_maps(
    *,
    teacher_features: Tensor,
    student_features: Tensor,
    mode: str = "mse",
    from_scores: bool = True,
    padding_score: float | None = -100.0,
    mask: Tensor = None,
) -> Tensor:
    """Distance between the attention of two transformer layers, head by head (TinyBERT, MiniLM).

    Choose it when teacher and student have equally many heads; otherwise use ``self_attention_relation``.

    Formula: "mse": mean over heads, queries and keys of (S_student - S_teacher)**2 of the scores before the softmax;
    "kl": mean over heads and queries of sum_k A_teacher (log A_teacher - log A_student), A the softmax of the scores.

    Args:
        teacher_features: (batch, heads, queries, keys). No gradient reaches it.
        student_features: same shape.
        mode: "mse" or "kl".
        from_scores: "kl" only; False means that the features are already probabilities, as
            ``keras.layers.MultiHeadAttention`` returns them.
        padding_score: "mse" only; scores at or below are set to 0 on both sides and then count. None keeps them.
        mask: (batch, tokens) bool, or None. Masked tokens never count, neither as queries nor as keys.

    Returns:
        (batch,), float32, not reduced; "kl" in nats. Zero when the maps are equal. With a mask each unmasked pair of
        tokens ("kl": each unmasked query) of the batch counts the same.

    Raises:
        ValueError: if shapes or the mask do not fit, or the mode is unknown.

    Example:
        >>> from keras_distill import losses
        >>> teacher, student = [[[[1.0, -1e4], [1.0, 1.0]]]], [[[[3.0, -1e4], [1.0, 1.0]]]]  # one padded key
        >>> losses.attention_maps(teacher_features=teacher, student_features=student).numpy()
        array([1.], dtype=float32)

    Reference:
        Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", EMNLP Findings 2020,
        arXiv:1909.10351, eq. 7 ("mse"); Wang et al., "MiniLM", NeurIPS 2020, arXiv:2002.10957, eq. 4 ("kl").
        Differs: mean over all elements, as in the authors' code.
    """
    owner = "attention_maps"
    _checks.choice(owner, "mode", mode, ("mse", "kl"))
    teacher, student = maps.pair(owner, teacher_features, student_features, ranks=(4,))
    arguments.check_same_shape(owner, teacher, student, "attention maps")
    keys = None
    if mask is not None:
        mask = arguments.check_mask(owner, mask, ops.transpose(student[:, 0], (0, 2, 1)))
        keys = mask[:, None, None, :]
    if mode == "mse":
        if padding_score is not None:
            level = _checks.number(owner, "padding_score", padding_score)
            teacher, student = (ops.where(side <= level, 0.0, side) for side in (teacher, student))
        pairs = None
        if mask is not None:
            pairs = ops.logical_and(mask[:, :, None], mask[:, None, :])
            teacher, student = (ops.where(pairs[:, None], side, 0.0) for side in (teacher, student))
        return maps.position_mean(ops.mean(ops.square(student - teacher), axis=1), pairs)
    if from_scores:
        divergence = _kl_of_logits(teacher, student, keys)
    else:
        divergence = _kl_of_probabilities(teacher, student, keys)
    return maps.position_mean(ops.mean(divergence, axis=1), mask)


def _kl_of_logits(teacher: Tensor, student: Tensor, keys: Any) -> Tensor:
    """KL divergence along the last axis, over the unmasked keys."""
    if keys is not None:
        teacher, student = ops.where(keys, teacher, _MASKED), ops.where(keys, student, _MASKED)
    log_teacher, log_student = ops.log_softmax(teacher), ops.log_softmax(student)
    return ops.sum(ops.exp(log_teacher) * (log_teacher - log_student), axis=-1)


def _kl_of_probabilities(teacher: Tensor, student: Tensor, keys: Any) -> Tensor:
    """KL divergence along the last axis; a student's zero counts as 1e-30 where the teacher's is positive."""
    counts = teacher > 0.0 if keys is None else ops.logical_and(teacher > 0.0, keys)
    ratio = ops.log(ops.where(counts, teacher, 1.0)) - ops.log(ops.where(counts, ops.maximum(student, 1e-30), 1.0))
    return ops.sum(ops.where(counts, teacher * ratio, 0.0), axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class AttentionMaps(FeatureTwin):
    """Class twin of ``attention_maps`` (TinyBERT, MiniLM); see that function.

    Args:
        mode: "mse" or "kl".
        from_scores: False if the features are probabilities; "kl" only.
        padding_score: scores at or below count as 0; "mse" only; None keeps them.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> float(losses.AttentionMaps()([[[[1.0, 2.0]]]], [[[[3.0, 2.0]]]]))
        2.0

    Reference:
        Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", EMNLP Findings 2020,
        arXiv:1909.10351. Differs: see ``attention_maps``.
    """

    def __init__(
        self,
        mode: str = "mse",
        from_scores: bool = True,
        padding_score: float | None = -100.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "attention_maps",
    ) -> None:
        if padding_score is not None:
            padding_score = _checks.number("AttentionMaps", "padding_score", padding_score)
        super().__init__(
            attention_maps,
            reduction,
            name,
            mode=_checks.choice("AttentionMaps", "mode", mode, ("mse", "kl")),
            from_scores=bool(from_scores),
            padding_score=padding_score,
        )


def hidden_states(
    *, teacher_features: Tensor, student_features: Tensor, mode: str = "mse", mask: Tensor = None
) -> Tensor:
    """Distance between the hidden states of two transformer layers (TinyBERT, DistilBERT, patient KD).

    Choose "mse" after a linear adapter (TinyBERT), "cosine" for last layers of equal width (DistilBERT), "patient" to
    compare the first token only.

    Formula: "mse": mean over tokens and channels of (h_student - h_teacher)**2; "cosine": mean over tokens of
    1 - cos(h_student, h_teacher); "patient": ||h_student / ||h_student|| - h_teacher / ||h_teacher||||**2 at token 0.

    Args:
        teacher_features: (batch, tokens, channels). No gradient reaches it.
        student_features: same shape, after its adapter.
        mode: "mse", "cosine" or "patient".
        mask: (batch, tokens) bool, or None. Masked tokens never count; all others of the batch count equally.

    Returns:
        (batch,), float32, not reduced. Zero when the states are equal.

    Raises:
        ValueError: if shapes or the mask do not fit, or the mode is unknown.

    Example:
        >>> from keras_distill import losses
        >>> teacher, student = [[[1.0, 0.0], [0.0, 0.0]]], [[[0.0, 3.0], [0.0, 0.0]]]
        >>> losses.hidden_states(teacher_features=teacher, student_features=student, mode="patient").numpy()
        array([2.], dtype=float32)

    Reference:
        Jiao et al., "TinyBERT", EMNLP Findings 2020, arXiv:1909.10351, eq. 8; Sanh et al., "DistilBERT", 2019,
        arXiv:1910.01108, section 2; Sun et al., "Patient Knowledge Distillation for BERT", EMNLP 2019,
        arXiv:1908.09355, eq. 7. Differs: nothing.
    """
    owner = "hidden_states"
    _checks.choice(owner, "mode", mode, ("mse", "cosine", "patient"))
    teacher, student = maps.pair(owner, teacher_features, student_features, ranks=(3,))
    if None not in (teacher.shape[1], student.shape[1]) and teacher.shape[1] != student.shape[1]:
        got = f"{teacher.shape[1]} and {student.shape[1]}"
        raise _checks.error(owner, "equally many tokens", got, "Use adapters.SequenceInterpolation")
    teacher, student = maps.matching(owner, teacher, student)
    teacher, student, mask = maps.masked(owner, teacher, student, mask)
    if mode == "mse":
        return maps.position_mean(ops.mean(ops.square(student - teacher), axis=-1), mask)
    if mode == "cosine":
        return maps.position_mean(maps.cosine_gap(teacher, student), mask)
    return ops.sum(ops.square(maps.unit(student[:, 0]) - maps.unit(teacher[:, 0])), axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class HiddenStates(FeatureTwin):
    """Class twin of ``hidden_states`` (TinyBERT, DistilBERT, patient KD); see that function.

    Args:
        mode: "mse", "cosine" or "patient".
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> float(losses.HiddenStates()([[[1.0, 0.0]]], [[[1.0, 2.0]]]))
        2.0

    Reference:
        Jiao et al., "TinyBERT", EMNLP Findings 2020, arXiv:1909.10351. Differs: see ``hidden_states``.
    """

    same_channels = True

    def __init__(
        self,
        mode: str = "mse",
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "hidden_states",
    ) -> None:
        super().__init__(
            hidden_states,
            reduction,
            name,
            mode=_checks.choice("HiddenStates", "mode", mode, ("mse", "cosine", "patient")),
        )


def self_attention_relation(
    *,
    teacher_features: Tensor,
    student_features: Tensor,
    num_heads: int = 12,
    relations: Sequence[str] = ("qq", "kk", "vv"),
    mask: Tensor = None,
) -> Tensor:
    """Divergence between the relations of tokens inside a layer's queries, keys and values (MiniLM).

    Choose it for one of the last layers of transformers of any width and number of heads; it needs no adapter.

    Formula: sum over relations of the mean over heads and queries of KL(R_teacher || R_student),
    R = softmax(X Y^T / sqrt(head size)); X, Y are split into num_heads heads whatever heads the model has. ("qk", "vv")
    is version 1 where num_heads is both models' own, ("qq", "kk", "vv") version 2.

    Args:
        teacher_features: [queries, keys, values], each (batch, tokens, channels) or (batch, tokens, heads, head size);
            one tensor is enough if the relations use one letter. No gradient reaches them.
        student_features: the same for the student, with any number of channels.
        num_heads: >= 1, relation heads; divides the channels of both models.
        relations: pairs of the letters q, k, v.
        mask: (batch, tokens) bool, or None. Masked tokens never count, neither as queries nor as keys.

    Returns:
        (batch,), float32, nats, not reduced; the mean over the example's own tokens. Zero when the relations are equal.

    Raises:
        ValueError: if the heads do not divide the channels, a relation is unknown, or shapes or the mask do not fit.

    Example:
        >>> from math import exp, log
        >>> from keras_distill import losses
        >>> teacher, student = [[[0.0], [0.0]]], [[[1.0], [0.0]]]  # 1/2, 1/2 twice; e/(1+e), 1/(1+e) and 1/2, 1/2
        >>> value = losses.self_attention_relation(
        ...     teacher_features=teacher, student_features=student, num_heads=1, relations=("vv",)
        ... )
        >>> round(float(value[0]), 5) == round(0.5 * (log(1 + exp(1.0)) - log(2.0) - 0.5), 5)
        True

    Reference:
        Wang et al., "MiniLM: Deep Self-Attention Distillation", NeurIPS 2020, arXiv:2002.10957, eq. 4-6;
        Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation", ACL Findings 2021, arXiv:2012.15828,
        section 3. Differs: nothing.
    """
    owner = "self_attention_relation"
    heads = _checks.integer(owner, "num_heads", num_heads, low=1)
    relations = _known_relations(owner, relations)
    teachers, students = maps.lists(owner, teacher_features, student_features)
    letters = sorted(set("".join(relations)))
    if len(teachers) not in (1, 3) or (len(teachers) == 1 and len(letters) > 1):
        expected = f"[queries, keys, values] for the relations {', '.join(relations)}"
        raise _checks.error(owner, expected, f"{len(teachers)} tensors")
    split: dict[str, tuple[Any, Any]] = {}
    for letter in letters:
        place = "qkv".index(letter) if len(teachers) == 3 else 0
        pair = maps.pair(owner, teachers[place], students[place], ranks=(3, 4))
        split[letter] = (_split(owner, pair[0], heads), _split(owner, pair[1], heads))
    keys, share = None, None
    if mask is not None:
        mask = arguments.check_mask(owner, mask, split[letters[0]][1][:, 0])
        keys = mask[:, None, None, :]
        share = ops.cast(mask, "float32")
        share = share / ops.maximum(ops.sum(share, axis=-1, keepdims=True), 1.0)
    total = 0.0
    for relation in relations:
        teacher, student = (
            ops.matmul(split[relation[0]][side], ops.transpose(split[relation[1]][side], (0, 1, 3, 2)))
            for side in (0, 1)
        )
        divergence = ops.mean(_kl_of_logits(teacher, student, keys), axis=1)
        total = total + (ops.mean(divergence, axis=-1) if share is None else ops.sum(share * divergence, axis=-1))
    return total


def _known_relations(owner: str, relations: Sequence[str]) -> list[str]:
    if isinstance(relations, str) or not relations:
        raise _checks.error(owner, "relations to be a list such as ('qq', 'kk', 'vv')", relations)
    return [_checks.choice(owner, "relations", each, [a + b for a in "qkv" for b in "qkv"]) for each in relations]


def _split(owner: str, features: Tensor, heads: int) -> Tensor:
    """Return (batch, heads, tokens, head size), divided by the fourth root of the head size."""
    shape = ops.shape(features)
    channels = features.shape[-1] if len(features.shape) == 3 else features.shape[-1] * features.shape[-2]
    if channels % heads:
        advice = "Choose num_heads that divides the channels of teacher and student"
        raise _checks.error(owner, f"channels that {heads} heads divide", channels, advice)
    features = ops.reshape(features, [shape[0], shape[1], heads, channels // heads])
    return ops.transpose(features, (0, 2, 1, 3)) / (channels // heads) ** 0.25


@keras.saving.register_keras_serializable(package="keras_distill")
class SelfAttentionRelation(FeatureTwin):
    """Class twin of ``self_attention_relation`` (MiniLM); see that function.

    Args:
        num_heads: >= 1, relation heads.
        relations: pairs of the letters q, k, v.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> states = [[[1.0, 2.0], [0.0, 1.0]]]
        >>> float(losses.SelfAttentionRelation(num_heads=1, relations=("vv",))(states, states))
        0.0

    Reference:
        Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation", ACL Findings 2021, arXiv:2012.15828.
        Differs: nothing.
    """

    def __init__(
        self,
        num_heads: int = 12,
        relations: Sequence[str] = ("qq", "kk", "vv"),
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "self_attention_relation",
    ) -> None:
        super().__init__(
            self_attention_relation,
            reduction,
            name,
            num_heads=_checks.integer("SelfAttentionRelation", "num_heads", num_heads, low=1),
            relations=_known_relations("SelfAttentionRelation", relations),
        )
