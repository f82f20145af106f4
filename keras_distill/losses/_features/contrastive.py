"""Losses that tell an example's own features from those of others: contrastive representation distillation."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._features import maps
from keras_distill.losses._features.relations import RelationLoss, vectors
from keras_distill.losses._numerics import arguments


def contrastive_representation(
    *,
    teacher_features: Tensor,
    student_features: Tensor,
    contrast_temperature: float = 0.07,
    teacher_gradient: bool = False,
    mask: Tensor = None,
) -> Tensor:
    """Contrast of each student embedding with the teacher's embeddings of the batch, and the reverse (CRD, in-batch).

    Choose it for embeddings that must tell examples apart, with batches of 64 or more. It sees only the examples of the
    local batch and needs no sample index; ``contrastive_noise`` is the published form with a memory.
    ``adapters.Embedding`` gives both sides embeddings of one width.

    Formula: -log softmax_j(s_i . t_j / contrast_temperature)_i - log softmax_j(t_i . s_j / contrast_temperature)_i, on
    vectors scaled to length 1.

    Args:
        teacher_features: (batch, ...), rank 2, 3 or 4.
        student_features: (batch, ...), as wide as the teacher's.
        contrast_temperature: > 0, usually 0.07 to 0.1.
        teacher_gradient: True lets the gradient through to the teacher's features, for an embedding trained there.
        mask: the features' shape without the channels, bool, or None. Masked positions never count.

    Returns:
        (batch,), float32, nats, not reduced; each value depends on the whole batch. Not zero when the features are
        equal. Zero for one example.

    Raises:
        ValueError: if widths or the mask do not fit, or the temperature is not positive.

    Example:
        >>> from math import exp, log
        >>> from keras_distill import losses
        >>> rows = [[1.0, 0.0], [0.0, 2.0]]  # orthogonal: one logit of 1, one of 0, on each side
        >>> value = losses.contrastive_representation(
        ...     teacher_features=rows, student_features=rows, contrast_temperature=1.0
        ... )
        >>> round(float(value[0]), 5) == round(2 * log(1 + exp(-1.0)), 5)
        True

    Reference:
        Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699;
        van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018, arXiv:1807.03748,
        eq. 4. Differs: negatives are the other examples of the batch, and a softmax takes the place of noise contrast.
    """
    owner = "contrastive_representation"
    heat = _checks.number(owner, "contrast_temperature", contrast_temperature, above=0.0)
    teacher, student = vectors(owner, teacher_features, student_features, mask, teacher_gradient=teacher_gradient)
    ours, theirs = student.shape[-1], teacher.shape[-1]
    if None not in (ours, theirs) and ours != theirs:
        raise _checks.error(owner, "embeddings of equal width", f"{theirs} and {ours}", "Give it an adapters.Embedding")
    teacher, student = maps.unit(teacher), maps.unit(student)
    logits = ops.matmul(student, ops.transpose(teacher)) / heat
    return ops.logsumexp(logits, axis=1) + ops.logsumexp(logits, axis=0) - 2.0 * ops.diagonal(logits)


def contrastive_noise(
    *,
    anchors: Tensor,
    candidates: Any,
    num_examples: int,
    normalizer: Any = None,
    contrast_temperature: float = 0.07,
) -> Tensor:
    """Noise-contrastive loss with one positive and many negatives from a memory (CRD, one side).

    Choose it over ``contrastive_representation`` for small batches and stable sample indices. The term
    ``ContrastiveMemory`` keeps the memory and adds both sides: student against the teacher's memory, and the reverse.

    Formula: -log(h_0 / (h_0 + c)) - sum_{k=1..K} log((K / num_examples) / (h_k + c)), with
    h_k = exp(anchor . candidate_k / contrast_temperature) / normalizer and c = K / num_examples + 1e-7.

    Args:
        anchors: (batch, units), of length 1.
        candidates: (batch, 1 + K, units), of length 1: the positive, then K negatives. No gradient reaches it.
        num_examples: >= 1, size of the training set.
        normalizer: () > 0, constant during training; None uses that of this batch: mean of exp(...) * num_examples.
        contrast_temperature: > 0.

    Returns:
        (batch,), float32, nats, not reduced.

    Raises:
        ValueError: if num_examples or the temperature is out of range.

    Example:
        >>> from math import log
        >>> anchor = [[1.0, 0.0]]  # both candidates are orthogonal to it: h = 1 / normalizer = 1 / 4
        >>> value = contrastive_noise(
        ...     anchors=anchor, candidates=[[[0.0, 1.0], [0.0, -1.0]]], num_examples=4, normalizer=4.0
        ... )
        >>> round(float(value[0]), 5) == round(-2 * log(1 / 2), 5)
        True

    Reference:
        Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699, eq. 17-19.
        Differs: nothing; computed with log-sum-exp, which never overflows.
    """
    owner = "contrastive_noise"
    total = _checks.integer(owner, "num_examples", num_examples, low=1)
    heat = _checks.number(owner, "contrast_temperature", contrast_temperature, above=0.0)
    anchors, candidates = arguments.float32(anchors), ops.stop_gradient(arguments.float32(candidates))
    scores = ops.einsum("bd,bkd->bk", anchors, candidates) / heat
    log_normalizer = log_mean_score(scores) + math.log(total) if normalizer is None else ops.log(normalizer)
    scores = scores - ops.stop_gradient(ops.cast(log_normalizer, "float32"))
    negatives = ops.cast(ops.shape(scores)[1] - 1, "float32")
    noise = negatives / total
    both = ops.logaddexp(scores, ops.log(noise + 1e-7) + ops.zeros_like(scores))
    return ops.sum(both, axis=1) - scores[:, 0] - negatives * ops.log(noise)


def log_mean_score(scores: Tensor) -> Tensor:
    """Return log(mean(exp(scores))) over all elements."""
    return ops.logsumexp(scores) - ops.log(ops.cast(ops.size(scores), "float32"))


@keras.saving.register_keras_serializable(package="keras_distill")
class ContrastiveRepresentation(RelationLoss):
    """Class twin of ``contrastive_representation`` (CRD, in-batch); see that function.

    Args:
        contrast_temperature: > 0.
        teacher_gradient: True if the teacher's side has an embedding to train.
        gather_replicas: True contrasts the examples of all replicas and returns their mean, a scalar; False contrasts
            those of each replica and returns one value per example.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> rows = [[1.0, 0.0], [0.0, 2.0]]
        >>> round(float(losses.ContrastiveRepresentation(contrast_temperature=1.0)(rows, rows)), 4)
        0.6265

    Reference:
        Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699.
        Differs: see ``contrastive_representation``.
    """

    needs_batch = False

    def __init__(
        self,
        contrast_temperature: float = 0.07,
        teacher_gradient: bool = False,
        gather_replicas: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "contrastive_representation",
    ) -> None:
        super().__init__(gather_replicas=gather_replicas, reduction=reduction, name=name)
        owner = "ContrastiveRepresentation"
        self.contrast_temperature = _checks.number(owner, "contrast_temperature", contrast_temperature, above=0.0)
        self.teacher_gradient = bool(teacher_gradient)
        self.needs_batch = self.gather_replicas

    def relation(self, teacher_features: Tensor, student_features: Tensor, mask: Tensor) -> Tensor:
        """Return ``contrastive_representation`` of each example, or their mean over all replicas."""
        values = contrastive_representation(
            teacher_features=teacher_features,
            student_features=student_features,
            contrast_temperature=self.contrast_temperature,
            teacher_gradient=self.teacher_gradient,
            mask=mask,
        )
        return ops.mean(values) if self.gather_replicas else values

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {
            **super().get_config(),
            "contrast_temperature": self.contrast_temperature,
            "teacher_gradient": self.teacher_gradient,
        }
