"""Losses on the geometry of a batch: distances and angles between its examples."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill._typing import Tensor
from keras_distill.losses._features import maps
from keras_distill.losses._features.relations import RelationLoss, vectors

_LEAST = 1e-12  # lower bound of the squared distance of different examples, as in the public codes
_ROUNDING = 5e-7  # a float32 squared distance below this fraction of the squared lengths is rounding error
_VERTICES = 8  # vertices of angles handled at a time


def _squared_distances(features: Tensor, dtype: str, rounding: float, floor: Any = 0.0) -> Tensor:
    """Return (batch, batch) squared distances by one matrix product; ``floor`` where they are only rounding error."""
    features = ops.cast(features - ops.stop_gradient(ops.mean(features, axis=0, keepdims=True)), dtype)
    gram = maps.gram(features)
    squares = ops.diagonal(gram)  # from the same product, so that equal rows cancel exactly
    squared = squares[:, None] + squares[None, :] - 2.0 * gram
    least = ops.stop_gradient(rounding * squares + 0.5 * _LEAST)
    return ops.where(squared > least[:, None] + least[None, :], squared, ops.cast(floor, dtype))


def _relative_distances(features: Tensor, squared: bool) -> Tensor:
    """Return the distances divided by their mean over pairs of different examples; zeros on the diagonal."""
    index = ops.arange(ops.shape(features)[0])
    floor = ops.where(ops.equal(index[:, None], index[None, :]), 0.0, _LEAST)
    distances = _squared_distances(features, "float32", _ROUNDING, floor)
    if not squared:
        distances = ops.sqrt(distances)  # the floor above is a constant, so the infinite derivative at 0 is not used
    count = ops.cast(ops.shape(distances)[0], "float32")
    mean = ops.sum(distances) / ops.maximum(count * (count - 1.0), 1.0)
    return distances / ops.where(mean > 0.0, mean, 1.0)


def relational_distance(
    *, teacher_features: Tensor, student_features: Tensor, squared: bool = False, mask: Tensor = None
) -> Tensor:
    """Smooth-L1 distance between the relative distances of all pairs of a batch (RKD-D).

    Choose it for embeddings of any width, without an adapter. It compares only the examples of the local batch.
    Scaling, rotating or shifting either side changes nothing. Usual weight 25, with 50 for ``relational_angle``.

    Formula: mean over all batch**2 pairs of h(d_student / m_student - d_teacher / m_teacher), d_ij = ||f_i - f_j||, m
    the mean of d over pairs i != j, h(x) = x**2 / 2 up to |x| = 1, |x| - 1/2 beyond.

    Args:
        teacher_features: (batch, ...), rank 2, 3 or 4. No gradient reaches it.
        student_features: (batch, ...), any shape of rank 2, 3 or 4.
        squared: True compares squared distances.
        mask: the features' shape without the channels, bool, or None. Masked positions never count.

    Returns:
        (), float32. Zero when all distances agree up to one factor. Coincident examples count as 1e-6 apart and receive
        a gradient of zero from each other.

    Raises:
        ValueError: if a rank or the mask does not fit.

    Example:
        >>> from keras_distill import losses
        >>> teacher, student = [[0.0], [1.0], [2.0]], [[0.0], [3.0], [12.0]]  # distances 1, 1, 2 and 3, 9, 12
        >>> value = losses.relational_distance(teacher_features=teacher, student_features=student)
        >>> round(float(value), 5)  # relative distances 3/4, 3/4, 3/2 and 3/8, 9/8, 3/2: two gaps of 3/8, each twice
        0.03125

    Reference:
        Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068, eq. 5-7.
        Differs: nothing.
    """
    teacher, student = vectors("relational_distance", teacher_features, student_features, mask)
    difference = _relative_distances(student, squared) - _relative_distances(teacher, squared)
    return ops.mean(maps.smooth_l1(difference))


@keras.saving.register_keras_serializable(package="keras_distill")
class RelationalDistance(RelationLoss):
    """Class twin of ``relational_distance`` (RKD-D); see that function.

    Args:
        squared: True compares squared distances.
        gather_replicas: True compares the examples of all replicas, False those of each replica.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> float(losses.RelationalDistance()([[0.0], [1.0], [2.0]], [[4.0], [7.0], [10.0]]))
        0.0

    Reference:
        Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068. Differs: nothing.
    """

    def __init__(
        self,
        squared: bool = False,
        gather_replicas: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "relational_distance",
    ) -> None:
        super().__init__(gather_replicas=gather_replicas, reduction=reduction, name=name)
        self.squared = bool(squared)

    def relation(self, teacher_features: Tensor, student_features: Tensor, mask: Tensor) -> Tensor:
        """Return ``relational_distance`` of these examples."""
        return relational_distance(
            teacher_features=teacher_features, student_features=student_features, squared=self.squared, mask=mask
        )

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "squared": self.squared}


def relational_angle(*, teacher_features: Tensor, student_features: Tensor, mask: Tensor = None) -> Tensor:
    """Smooth-L1 distance between the angles of all triples of a batch (RKD-A).

    Choose it beside ``relational_distance`` (usual weights 50 and 25). It compares only the examples of the local
    batch. Scaling, rotating or shifting either side changes nothing. Costs O(batch**3) time and O(batch**2) memory;
    only first derivatives are supported.

    Formula: mean over all batch**3 triples of h(a_student - a_teacher), a_ijk the cosine of the angle at j between i
    and k, 0 where i = j or k = j; h(x) = x**2 / 2 up to |x| = 1, |x| - 1/2 beyond.

    Args:
        teacher_features: (batch, ...), rank 2, 3 or 4. No gradient reaches it.
        student_features: (batch, ...), any shape of rank 2, 3 or 4.
        mask: the features' shape without the channels, bool, or None. Masked positions never count.

    Returns:
        (), float32. Zero when all angles agree. Angles with a side of length zero count as cosine 0.

    Raises:
        ValueError: if a rank or the mask does not fit.

    Example:
        >>> from keras_distill import losses
        >>> teacher, student = [[0.0], [1.0], [2.0]], [[1.0], [0.0], [2.0]]  # the middle one is another
        >>> value = losses.relational_angle(teacher_features=teacher, student_features=student)
        >>> round(float(value), 5) == round(4 * 1.5 / 27, 5)  # at two points -1 meets 1; each angle counts twice
        True

    Reference:
        Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068, eq. 8-10.
        Differs: nothing.
    """
    teacher, student = vectors("relational_angle", teacher_features, student_features, mask)
    # This product is in double precision to resolve the angles of tight clusters; float32 is enough for the triples.
    squared = [ops.cast(_squared_distances(side, "float64", 1e-13), "float32") for side in (teacher, student)]
    return _angle_gap(*squared)


@ops.custom_gradient
def _angle_gap(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean smooth-L1 gap between the angles of two matrices of squared distances, with its gradient from the same pass.

    By the law of cosines, angle_jik = (s_ij + s_kj - s_ik) r_ij r_kj / 2 with r = 1 / sqrt(s): the features themselves
    are not needed, and a few vertices j at a time keep the memory O(batch**2).
    """
    count = ops.shape(student)[0]
    inverse_teacher, inverse_student = _inverse_root(teacher), _inverse_root(student)

    def step(index: Any, state: tuple[Any, Any]) -> tuple[Any, Any]:
        total, gradient = state
        vertex = index * _VERTICES + ops.arange(_VERTICES)
        here = ops.cast(vertex < count, "float32")[:, None]  # vertices beyond the last one get sides of zero
        vertex = ops.minimum(vertex, count - 1)
        target, _ = _angles(teacher, ops.take(inverse_teacher, vertex, axis=0) * here, vertex)
        inverse = ops.take(inverse_student, vertex, axis=0) * here
        angle, outer = _angles(student, inverse, vertex)
        difference = angle - target
        slope = ops.clip(difference, -1.0, 1.0)
        total = total + ops.sum(slope * (difference - 0.5 * slope), axis=-1)
        pull = ops.squeeze(ops.matmul(slope, inverse[..., None]), -1)
        sides = inverse * pull - ops.square(inverse) * ops.sum(slope * angle, axis=-1)
        rows = ops.cast(ops.equal(vertex[:, None], ops.arange(count)[None, :]), "float32")
        return total, gradient - ops.sum(slope * outer, axis=0) + ops.matmul(ops.transpose(rows), sides)

    steps = (count + _VERTICES - 1) // _VERTICES
    # Row by row: one float32 sum over all triples would round too much.
    start = (ops.zeros((_VERTICES, count), "float32"), 0.0 * student)
    total, gradient = ops.fori_loop(0, steps, step, start)
    triples = ops.cast(count, "float32") ** 3

    def grad(*args: Any, upstream: Tensor = None) -> tuple[Tensor, Tensor]:
        (upstream,) = args or (upstream,)
        return ops.zeros_like(teacher), upstream * gradient / triples

    return ops.sum(total) / triples, grad


def _inverse_root(squared: Any) -> Tensor:
    alive = squared > 0.0
    return ops.where(alive, ops.rsqrt(ops.where(alive, squared, 1.0)), 0.0)


def _angles(squared: Any, inverse: Any, vertex: Any) -> tuple[Tensor, Tensor]:
    """Return the cosines at some vertices (vertices, batch, batch), and half the products of their inverse sides."""
    near = ops.take(squared, vertex, axis=0)
    outer = (0.5 * inverse)[:, :, None] * inverse[:, None, :]
    return (near[:, :, None] + near[:, None, :] - squared) * outer, outer


@keras.saving.register_keras_serializable(package="keras_distill")
class RelationalAngle(RelationLoss):
    """Class twin of ``relational_angle`` (RKD-A); see that function.

    Args:
        gather_replicas: True compares the examples of all replicas, False those of each replica.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> round(float(losses.RelationalAngle()([[0.0], [1.0], [2.0]], [[4.0], [7.0], [10.0]])), 6)
        0.0

    Reference:
        Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068. Differs: nothing.
    """

    def __init__(
        self,
        gather_replicas: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "relational_angle",
    ) -> None:
        super().__init__(gather_replicas=gather_replicas, reduction=reduction, name=name)

    def relation(self, teacher_features: Tensor, student_features: Tensor, mask: Tensor) -> Tensor:
        """Return ``relational_angle`` of these examples."""
        return relational_angle(teacher_features=teacher_features, student_features=student_features, mask=mask)
