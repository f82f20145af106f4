"""Losses on how the examples of a batch relate to each other: similarities, probabilities, correlations."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import FeatureLoss
from keras_distill.losses._features import maps
from keras_distill.losses._numerics import replicas

_EPSILON = 1e-7  # from the public code of PKT: added to the norms and inside the logarithm


class RelationLoss(FeatureLoss):
    """Base of the losses that compare examples with each other and return one scalar for the batch.

    Args:
        gather_replicas: True compares the examples of all replicas of a ``tf.distribute`` strategy as one big batch;
            False compares those of each replica separately.
        reduction: as in ``keras.losses.Loss``; a scalar is not changed.
        name: as in ``keras.losses.Loss``.
    """

    needs_batch = True

    def __init__(
        self, gather_replicas: bool = False, reduction: str | None = "sum_over_batch_size", name: str | None = None
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        self.gather_replicas = bool(gather_replicas)

    def values(self, teacher_features: Tensor, student_features: Tensor, *, mask: Tensor = None) -> Tensor:
        """Return the loss of the batch, a scalar."""
        if self.gather_replicas:
            teacher_features, student_features = replicas.gather(teacher_features), replicas.gather(student_features)
            mask = mask if mask is None else replicas.gather(ops.cast(mask, "bool"))
        return self.relation(teacher_features, student_features, mask)

    def relation(self, teacher_features: Tensor, student_features: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of these examples, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define relation().")

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "gather_replicas": self.gather_replicas}


def vectors(
    owner: str, teacher: Tensor, student: Tensor, mask: Tensor, *, teacher_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the features of both sides as one vector per example, with zeros at masked positions.

    Raises:
        ValueError: if a rank is not 2, 3 or 4, or the mask does not fit both sides or masks whole examples.
    """
    teacher, student = maps.pair(owner, teacher, student, teacher_gradient=teacher_gradient)
    if mask is not None and len(student.shape) == 2:
        raise _checks.error(owner, "a mask only for features with positions", "features of rank 2", "Leave it out")
    teacher, student, _ = maps.masked(owner, teacher, student, mask)
    return maps.flat(teacher), maps.flat(student)


def similarity_preserving(
    *, teacher_features: Tensor, student_features: Tensor, norm: str = "l2", mask: Tensor = None
) -> Tensor:
    """Mean squared difference of the row-normalised similarity matrices of a batch (SP).

    Choose it when shapes have nothing in common and no adapter is wanted. It compares only the examples of the local
    batch; its value changes with the batch size. Positive scaling of either side changes nothing. Usual weight 3000.

    Formula: sum over i, j of (G_student - G_teacher)_ij**2 / batch**2, G = F F^T with rows scaled to length 1, F the
    features flattened to one row per example.

    Args:
        teacher_features: (batch, ...), rank 2, 3 or 4. No gradient reaches it.
        student_features: (batch, ...), any shape of rank 2, 3 or 4.
        norm: the norm that scales the rows: "l2", or "l1" as in one public code.
        mask: the features' shape without the channels, bool, or None. Masked positions never count.

    Returns:
        (), float32, between 0 and 4 / batch ("l2"). Zero when all similarities agree; 0 for one example. Rounding in
        the difference of unit rows leaves an error of up to 1e-7 * sqrt(value).

    Raises:
        ValueError: if a rank or the mask does not fit, or the norm is unknown.

    Example:
        >>> from keras_distill import losses
        >>> teacher, student = [[1.0, 0.0], [0.0, 2.0]], [[5.0], [5.0]]  # unlike for the teacher, alike for the student
        >>> value = losses.similarity_preserving(teacher_features=teacher, student_features=student)
        >>> round(float(value), 5)  # each row: (1 - 0.7071)**2 + 0.7071**2, over two
        0.29289

    Reference:
        Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv:1907.09682, eq. 2-4.
        Differs: nothing.
    """
    owner = "similarity_preserving"
    _checks.choice(owner, "norm", norm, ("l2", "l1"))
    teacher, student = vectors(owner, teacher_features, student_features, mask)
    difference = _row_similarities(student, norm) - _row_similarities(teacher, norm)
    return ops.mean(ops.square(difference))


def _row_similarities(features: Tensor, norm: str) -> Tensor:
    gram = maps.gram(features)
    if norm == "l2":
        return maps.unit(gram, tiny=1e-36)  # fourth powers of the features
    total = ops.sum(ops.abs(gram), axis=-1, keepdims=True)
    return gram / ops.where(total > 0.0, total, 1.0)


@keras.saving.register_keras_serializable(package="keras_distill")
class SimilarityPreserving(RelationLoss):
    """Class twin of ``similarity_preserving`` (SP); see that function.

    Args:
        norm: "l2" or "l1", the norm that scales the rows.
        gather_replicas: True compares the examples of all replicas, False those of each replica.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> round(float(losses.SimilarityPreserving()([[1.0], [2.0]], [[3.0], [6.0]])), 6)
        0.0

    Reference:
        Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv:1907.09682. Differs: nothing.
    """

    def __init__(
        self,
        norm: str = "l2",
        gather_replicas: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "similarity_preserving",
    ) -> None:
        super().__init__(gather_replicas=gather_replicas, reduction=reduction, name=name)
        self.norm = _checks.choice("SimilarityPreserving", "norm", norm, ("l2", "l1"))

    def relation(self, teacher_features: Tensor, student_features: Tensor, mask: Tensor) -> Tensor:
        """Return ``similarity_preserving`` of these examples."""
        return similarity_preserving(
            teacher_features=teacher_features, student_features=student_features, norm=self.norm, mask=mask
        )

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "norm": self.norm}


def probabilistic_transfer(
    *, teacher_features: Tensor, student_features: Tensor, mode: str = "code", mask: Tensor = None
) -> Tensor:
    """Divergence between the neighbourhood probabilities of the examples of a batch (PKT).

    Choose it for embeddings whose direction matters. It compares only the examples of the local batch. Positive scaling
    of either side changes nothing (up to 1e-7). Usual weight 30000 in the default form.

    Formula: mean over i, j of P_ij log((P_ij + 1e-7) / (Q_ij + 1e-7)); P (teacher) and Q (student) are the rows of
    (cosine + 1) / 2, i = j included, divided by their sums.

    Args:
        teacher_features: (batch, ...), rank 2, 3 or 4. No gradient reaches it.
        student_features: (batch, ...), any shape of rank 2, 3 or 4.
        mode: "code" averages over all batch**2 pairs; "row" averages the row sums (batch times as much).
        mask: the features' shape without the channels, bool, or None. Masked positions never count.

    Returns:
        (), float32, nats. Zero when all cosines agree.

    Raises:
        ValueError: if a rank or the mask does not fit, or the mode is unknown.

    Example:
        >>> from math import log
        >>> from keras_distill import losses
        >>> teacher, student = [[1.0, 0.0], [0.0, 2.0]], [[5.0], [5.0]]  # rows (2/3, 1/3) against (1/2, 1/2)
        >>> value = losses.probabilistic_transfer(teacher_features=teacher, student_features=student, mode="row")
        >>> round(float(value), 5) == round(2 / 3 * log(4 / 3) + 1 / 3 * log(2 / 3), 5)
        True

    Reference:
        Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
        arXiv:1803.10837, eq. 3-6. Differs: mean over the pairs, as in the authors' code.
    """
    owner = "probabilistic_transfer"
    _checks.choice(owner, "mode", mode, ("code", "row"))
    teacher, student = vectors(owner, teacher_features, student_features, mask)
    teacher, student = _neighbours(teacher), _neighbours(student)
    each = teacher * (ops.log(teacher + _EPSILON) - ops.log(student + _EPSILON))
    return ops.mean(each) if mode == "code" else ops.mean(ops.sum(each, axis=-1))


def _neighbours(features: Tensor) -> Tensor:
    norm = maps.length(features)[:, None]
    # An all-zero example would have a gradient of 1e7, so it gets none.
    features = features * ops.where(norm > 0.0, 1.0 / (norm + _EPSILON), 0.0)
    similarity = 0.5 * (maps.gram(features) + 1.0)
    return similarity / ops.sum(similarity, axis=-1, keepdims=True)


@keras.saving.register_keras_serializable(package="keras_distill")
class ProbabilisticTransfer(RelationLoss):
    """Class twin of ``probabilistic_transfer`` (PKT); see that function.

    Args:
        mode: "code" or "row".
        gather_replicas: True compares the examples of all replicas, False those of each replica.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> float(losses.ProbabilisticTransfer()([[1.0, 2.0], [2.0, 3.0]], [[1.0, 2.0], [2.0, 3.0]]))
        0.0

    Reference:
        Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
        arXiv:1803.10837. Differs: see ``probabilistic_transfer``.
    """

    def __init__(
        self,
        mode: str = "code",
        gather_replicas: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "probabilistic_transfer",
    ) -> None:
        super().__init__(gather_replicas=gather_replicas, reduction=reduction, name=name)
        self.mode = _checks.choice("ProbabilisticTransfer", "mode", mode, ("code", "row"))

    def relation(self, teacher_features: Tensor, student_features: Tensor, mask: Tensor) -> Tensor:
        """Return ``probabilistic_transfer`` of these examples."""
        return probabilistic_transfer(
            teacher_features=teacher_features, student_features=student_features, mode=self.mode, mask=mask
        )

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "mode": self.mode}


def correlation_congruence(
    *,
    teacher_features: Tensor,
    student_features: Tensor,
    gamma: float = 0.4,
    order: int = 2,
    kernel: str = "gaussian",
    variant: str = "squared",
    normalize: bool = True,
    teacher_gradient: bool = False,
    mask: Tensor = None,
) -> Tensor:
    """Distance between the kernel matrices of a batch's embeddings (CC, CCKD).

    Choose it with an embedding of the same width on each side (``adapters.Embedding``). It compares only the examples
    of the local batch.

    Formula: sum over i, j of (psi_student - psi_teacher)_ij**2 / batch**2, with
    psi_ij = exp(-2 gamma) * sum_{p=0..order} (2 gamma)**p / p! * (f_i . f_j)**p on vectors of length 1: the Taylor form
    of a Gaussian kernel.

    Args:
        teacher_features: (batch, ...), rank 2, 3 or 4, usually an embedding.
        student_features: (batch, ...), any shape; the same as the teacher's for ``variant="neighbour"``.
        gamma: > 0, of the Gaussian kernel.
        order: >= 1, the last term of the expansion.
        kernel: "gaussian", or "bilinear": psi_ij = f_i . f_j.
        variant: "squared", the formula; "frobenius", the norm without the square, over batch**2 (torchdistill);
            "neighbour", the mean over consecutive examples of sum_d |D_i| |D_{i+1}|, D = student - teacher
            (RepDistiller), which ignores kernel and normalisation and depends on the order of the batch.
        normalize: whether the vectors are scaled to length 1 first; the expansion is valid only then.
        teacher_gradient: True lets the gradient through to the teacher's features, for an embedding trained there.
        mask: the features' shape without the channels, bool, or None. Masked positions never count.

    Returns:
        (), float32. Zero when the kernel matrices agree.

    Raises:
        ValueError: if a shape or the mask does not fit, or an option is out of range.

    Example:
        >>> from math import exp
        >>> from keras_distill import losses
        >>> teacher, student = [[1.0, 0.0], [0.0, 2.0]], [[5.0, 0.0], [5.0, 0.0]]
        >>> value = losses.correlation_congruence(
        ...     teacher_features=teacher, student_features=student, gamma=0.5, order=1
        ... )
        >>> round(float(value), 5) == round(2 * exp(-1.0) ** 2 / 4, 5)  # two of four pairs differ, by exp(-1) * 1
        True

    Reference:
        Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, arXiv:1904.01802, eq. 5-9.
        Differs: nothing by default; ``variant`` offers what public codes compute.
    """
    owner = "correlation_congruence"
    gamma = _checks.number(owner, "gamma", gamma, above=0.0)
    order = _checks.integer(owner, "order", order, low=1)
    _checks.choice(owner, "kernel", kernel, ("gaussian", "bilinear"))
    _checks.choice(owner, "variant", variant, ("squared", "frobenius", "neighbour"))
    teacher, student = vectors(owner, teacher_features, student_features, mask, teacher_gradient=teacher_gradient)
    if variant == "neighbour":
        if None not in (teacher.shape[-1], student.shape[-1]) and teacher.shape[-1] != student.shape[-1]:
            got = f"{teacher.shape[-1]} and {student.shape[-1]}"
            raise _checks.error(owner, "embeddings of equal width", got, "Give the term an adapters.Embedding")
        gap = ops.abs(student - teacher)
        pairs = ops.sum(gap[:-1] * gap[1:])
        return pairs / ops.maximum(ops.cast(ops.shape(gap)[0], "float32") - 1.0, 1.0)
    if normalize:
        teacher, student = maps.unit(teacher), maps.unit(student)
    difference = _kernel_matrix(student, kernel, gamma, order) - _kernel_matrix(teacher, kernel, gamma, order)
    if variant == "squared":
        return ops.mean(ops.square(difference))
    return maps.length(difference, axis=(0, 1)) / ops.cast(ops.size(difference), "float32")


def _kernel_matrix(features: Tensor, kernel: str, gamma: float, order: int) -> Tensor:
    gram = maps.gram(features)
    if kernel == "bilinear":
        return gram
    weights = [math.exp(-2.0 * gamma) * (2.0 * gamma) ** p / math.factorial(p) for p in range(order + 1)]
    total = ops.full_like(gram, weights[-1])
    for weight in reversed(weights[:-1]):
        total = total * gram + weight
    return total


@keras.saving.register_keras_serializable(package="keras_distill")
class CorrelationCongruence(RelationLoss):
    """Class twin of ``correlation_congruence`` (CC, CCKD); see that function.

    Args:
        gamma: > 0, of the Gaussian kernel.
        order: >= 1, the last term of the expansion.
        kernel: "gaussian" or "bilinear".
        variant: "squared", "frobenius" or "neighbour".
        normalize: whether the vectors are scaled to length 1 first.
        teacher_gradient: True if the teacher's side has an embedding to train.
        gather_replicas: True compares the examples of all replicas, False those of each replica.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> float(losses.CorrelationCongruence()([[1.0], [2.0]], [[3.0], [6.0]]))
        0.0

    Reference:
        Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, arXiv:1904.01802.
        Differs: see ``correlation_congruence``.
    """

    def __init__(
        self,
        gamma: float = 0.4,
        order: int = 2,
        kernel: str = "gaussian",
        variant: str = "squared",
        normalize: bool = True,
        teacher_gradient: bool = False,
        gather_replicas: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "correlation_congruence",
    ) -> None:
        super().__init__(gather_replicas=gather_replicas, reduction=reduction, name=name)
        owner = "CorrelationCongruence"
        self.gamma = _checks.number(owner, "gamma", gamma, above=0.0)
        self.order = _checks.integer(owner, "order", order, low=1)
        self.kernel = _checks.choice(owner, "kernel", kernel, ("gaussian", "bilinear"))
        self.variant = _checks.choice(owner, "variant", variant, ("squared", "frobenius", "neighbour"))
        self.normalize, self.teacher_gradient = bool(normalize), bool(teacher_gradient)

    def relation(self, teacher_features: Tensor, student_features: Tensor, mask: Tensor) -> Tensor:
        """Return ``correlation_congruence`` of these examples."""
        options = {name: getattr(self, name) for name in self._options}
        return correlation_congruence(
            teacher_features=teacher_features, student_features=student_features, mask=mask, **options
        )

    _options = ("gamma", "order", "kernel", "variant", "normalize", "teacher_gradient")

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), **{name: getattr(self, name) for name in self._options}}
