"""Losses on how features change from layer to layer: Gram matrices (FSP) and singular vectors."""

from __future__ import annotations

import itertools
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import FeatureTwin
from keras_distill.losses._features import maps
from keras_distill.losses._numerics import arguments

_DISTANCES = ("mean_square", "sum_square", "column_norm")
_GAP = 1e-6  # eigenvalues closer than this fraction of the largest count as equal: their order is rounding error


def solution_flow(
    *,
    teacher_features: Tensor,
    student_features: Tensor,
    pooling: str = "average",
    distance: str = "mean_square",
    mask: Tensor = None,
) -> Tensor:
    """Distance between the Gram matrices of consecutive layers (FSP, flow of solution procedure).

    Choose it to initialise a student of the same layout as its teacher: corresponding layers need equally many
    channels. Usual weight 50.

    Formula: sum over consecutive layers (1, 2) of mean((G_student - G_teacher)**2), G = F1^T F2 / positions, the larger
    of the two maps pooled to the smaller one's size first.

    Args:
        teacher_features: list of >= 2 layers, each (batch, ..., channels), rank 3 or 4. No gradient reaches them.
        student_features: list of as many layers; the teacher's channels, any sizes.
        pooling: "average", or "max" as in the paper.
        distance: "mean_square"; "sum_square", the paper's; "column_norm", the sum over the second layer's channels of
            the 2-norm over the first's (torchdistill).
        mask: (batch, time) bool for sequences, or None. Masked positions never count.

    Returns:
        (batch,), float32, not reduced.

    Raises:
        ValueError: if there are fewer than two layers, shapes or the mask do not fit, or an option is unknown.

    Example:
        >>> from keras_distill import losses
        >>> one, two = [[[1.0]]], [[[2.0]]]  # one position, one channel
        >>> losses.solution_flow(teacher_features=[one, two], student_features=[two, two]).numpy()
        array([4.], dtype=float32)

    Reference:
        Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
        CVPR 2017, eq. 1-2. Differs: average pooling and the mean by default, as in public code.
    """
    owner = "solution_flow"
    _checks.choice(owner, "pooling", pooling, ("average", "max"))
    _checks.choice(owner, "distance", distance, _DISTANCES)
    teachers, students = maps.lists(owner, teacher_features, student_features, least=2)
    flows = [_flows(owner, side, pooling, mask) for side in (teachers, students)]
    total = 0.0
    for teacher, student in zip(*flows, strict=True):
        if tuple(teacher.shape[1:]) != tuple(student.shape[1:]):
            got = f"{tuple(teacher.shape[1:])} and {tuple(student.shape[1:])}"
            advice = "Give each student layer an adapter, such as adapters.Conv1x1"
            raise _checks.error(owner, "equally many channels in corresponding layers", got, advice)
        gap = student - ops.stop_gradient(teacher)
        if distance == "column_norm":
            total = total + ops.sum(maps.length(gap, axis=1), axis=-1)
        else:
            reduce = ops.mean if distance == "mean_square" else ops.sum
            total = total + reduce(ops.square(gap), axis=(1, 2))
    return total


def _flows(owner: str, layers: list[Any], pooling: str, mask: Tensor) -> list[Any]:
    """Return the Gram matrix of each pair of consecutive layers: (batch, channels, next channels)."""
    out = []
    for first, second in itertools.pairwise(layers):
        # Both belong to one network here; the caller stops the gradient.
        first, second = arguments.float32(first), arguments.float32(second)
        if len(first.shape) != len(second.shape) or len(first.shape) not in (3, 4):
            got = f"shapes {tuple(first.shape)} and {tuple(second.shape)}"
            raise _checks.error(owner, "consecutive layers of one rank, 3 or 4", got)
        size = [
            None if own is None or other is None else min(own, other)
            for own, other in zip(first.shape[1:-1], second.shape[1:-1], strict=True)
        ]
        first, second = maps.pool(first, size, pooling), maps.pool(second, size, pooling)
        first, second, seen = maps.masked(owner, first, second, mask)
        first, second = maps.positions(first), maps.positions(second)
        count = ops.cast(ops.shape(first)[1], "float32")
        if seen is not None:
            kept = ops.cast(ops.reshape(seen, ops.shape(first)[:2]), "float32")
            count = ops.maximum(ops.sum(kept, axis=1), 1.0)[:, None, None]
        out.append(ops.matmul(ops.transpose(first, (0, 2, 1)), second) / count)
    return out


@keras.saving.register_keras_serializable(package="keras_distill")
class SolutionFlow(FeatureTwin):
    """Class twin of ``solution_flow`` (FSP); see that function.

    Args:
        pooling: "average" or "max".
        distance: "mean_square", "sum_square" or "column_norm".
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> one, two = [[[1.0]]], [[[2.0]]]
        >>> losses.SolutionFlow().values([one, two], [two, two]).numpy()
        array([4.], dtype=float32)

    Reference:
        Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
        CVPR 2017. Differs: see ``solution_flow``.
    """

    def __init__(
        self,
        pooling: str = "average",
        distance: str = "mean_square",
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "solution_flow",
    ) -> None:
        super().__init__(
            solution_flow,
            reduction,
            name,
            pooling=_checks.choice("SolutionFlow", "pooling", pooling, ("average", "max")),
            distance=_checks.choice("SolutionFlow", "distance", distance, _DISTANCES),
        )


def singular_vectors(
    *, teacher_features: Tensor, student_features: Tensor, num_vectors: int = 1, mask: Tensor = None
) -> Tensor:
    """Distance between the affinities of consecutive layers' leading singular vectors (KDSVD).

    Choose it rarely: it needs one eigendecomposition per layer and example in double precision, which is slow. Positive
    scaling of a layer changes nothing.

    Formula: sum over consecutive layers of ||R_student - R_teacher||**2, R_abi = exp(-(v_ai - w_bi)**2 / 8) for
    vector i of one layer (v) and the next (w). Vectors are right singular vectors of the (positions, channels) matrix
    times the teacher's singular values, which are scaled to length 1; each of the teacher's is matched with that of the
    student's first num_vectors + 3 with the largest |cosine|, with its sign.

    Args:
        teacher_features: list of >= 2 layers, each (batch, ..., channels), rank 3 or 4. No gradient reaches them.
        student_features: list of as many layers; the teacher's channels, any sizes.
        num_vectors: >= 1, singular vectors compared per layer.
        mask: (batch, time) bool for sequences, or None. Masked positions never count.

    Returns:
        (batch,), float32, not reduced. The sign of a singular vector is arbitrary and affects the value, so the
        teacher's are flipped to make their largest component positive. No gradient flows between directions whose
        singular values coincide.

    Raises:
        ValueError: if there are fewer than two layers, or shapes, the mask or num_vectors do not fit.

    Example:
        >>> from keras_distill import losses
        >>> layers = [[[[2.0, 0.0]]], [[[0.0, 1.0]]]]  # one position, two channels
        >>> float(losses.singular_vectors(teacher_features=layers, student_features=layers)[0])
        0.0

    Reference:
        Lee, Kim, Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018,
        arXiv:1807.06819, section 3. Differs: signs as above; gradients between coincident singular values are 0.
    """
    owner = "singular_vectors"
    count = _checks.integer(owner, "num_vectors", num_vectors, low=1)
    teachers, students = maps.lists(owner, teacher_features, student_features, least=2)
    total, before = 0.0, None
    for teacher, student in zip(teachers, students, strict=True):
        teacher, student = maps.pair(owner, teacher, student, ranks=(3, 4))
        if teacher.shape[-1] != student.shape[-1]:
            got = f"{teacher.shape[-1]} and {student.shape[-1]}"
            raise _checks.error(owner, "equally many channels", got, "Give the student's layer adapters.Conv1x1")
        teacher, student = (maps.masked(owner, side, side, mask)[0] for side in (teacher, student))
        target, strength = _right_vectors(maps.positions(teacher), count)
        target = ops.stop_gradient(_turned(target))
        strength = ops.stop_gradient(maps.unit(strength))[:, None, :]
        found, _ = _right_vectors(maps.positions(student), count + 3)
        here = (target * strength, _matched(found, target) * strength)
        if before is not None:
            goal, made = (
                ops.exp(-0.125 * ops.square(now[:, :, None, :] - last[:, None, :, :]))
                for now, last in zip(here, before, strict=True)
            )
            total = total + ops.sum(ops.square(made - goal), axis=(1, 2, 3))
        before = here
    return ops.cast(total, "float32")


def _right_vectors(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the leading right singular vectors (batch, channels, count) and values (batch, count), in float64."""
    features = ops.cast(maps.scaled(features, axis=(1, 2)), "float64")
    places, channels = features.shape[1], features.shape[2]
    count = min(count, places, channels)
    across = ops.transpose(features, (0, 2, 1))
    if channels <= places:
        values, vectors = _eigen(ops.matmul(across, features))
        vectors = vectors[:, :, -count:]
    else:
        values, vectors = _eigen(ops.matmul(features, across))
        vectors = maps.unit(ops.matmul(across, vectors[:, :, -count:]), axis=1)
    return ops.flip(vectors, axis=2), ops.sqrt(ops.maximum(ops.flip(values[:, -count:], axis=1), 0.0))


@ops.custom_gradient
def _eigen(matrix: Any) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues, without gradient, and eigenvectors of symmetric matrices; gradients are always finite."""
    values, vectors = ops.eigh(matrix)

    def grad(*args: Any, upstream: Tensor = None) -> Tensor:
        _, to_vectors = args or upstream
        gap = values[:, None, :] - values[:, :, None]
        apart = ops.abs(gap) > _GAP * ops.max(ops.abs(values), axis=-1)[:, None, None]
        inner = ops.matmul(ops.transpose(vectors, (0, 2, 1)), to_vectors)
        inner = ops.where(apart, inner / ops.where(apart, gap, 1.0), 0.0)
        full = ops.matmul(ops.matmul(vectors, inner), ops.transpose(vectors, (0, 2, 1)))
        return 0.5 * (full + ops.transpose(full, (0, 2, 1)))

    return (values, vectors), grad


def _turned(vectors: Any) -> Tensor:
    """Flip each vector, (batch, channels, count), so that its component of largest magnitude is positive."""
    largest = ops.argmax(ops.abs(vectors), axis=1)[:, None, :]
    return vectors * ops.sign(ops.take_along_axis(vectors, largest, axis=1))


def _matched(vectors: Any, targets: Any) -> Tensor:
    """Return for each target the vector of largest |cosine|, with the sign of that cosine."""
    cosine = ops.matmul(ops.transpose(vectors, (0, 2, 1)), targets)
    best = ops.argmax(ops.abs(cosine), axis=1)[:, None, :]
    sign = ops.stop_gradient(ops.sign(ops.take_along_axis(cosine, best, axis=1)))
    return ops.take_along_axis(vectors, ops.broadcast_to(best, ops.shape(targets)), axis=2) * sign


@keras.saving.register_keras_serializable(package="keras_distill")
class SingularVectors(FeatureTwin):
    """Class twin of ``singular_vectors`` (KDSVD); see that function.

    Args:
        num_vectors: >= 1, singular vectors compared per layer.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> layers = [[[[2.0, 0.0]]], [[[0.0, 1.0]]]]
        >>> float(losses.SingularVectors().values(layers, layers)[0])
        0.0

    Reference:
        Lee, Kim, Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018,
        arXiv:1807.06819. Differs: see ``singular_vectors``.
    """

    def __init__(
        self,
        num_vectors: int = 1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "singular_vectors",
    ) -> None:
        super().__init__(
            singular_vectors,
            reduction,
            name,
            num_vectors=_checks.integer("SingularVectors", "num_vectors", num_vectors, low=1),
        )
