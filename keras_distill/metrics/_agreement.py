"""Fidelity of a student to its teacher: ``y_true`` is the teacher's output, ``y_pred`` the student's."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill._checks import choice, error, integer, number, tensor
from keras_distill._typing import Structure, Tensor
from keras_distill.metrics._examples import as_float, keras_mask, one_batch, read_weights
from keras_distill.metrics._streaming import MeanOverExamples, float64
from keras_distill.metrics._top_class import checked_probability, first_largest


class _AgreementMetric(MeanOverExamples):
    """Base: reads two outputs of equal shape as rows."""

    def rows(self, teacher: Any, student: Any, sample_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return teacher's and student's rows (n, classes) and float64 weights (n,)."""
        owner, mask = type(self).__name__, keras_mask(student)
        teacher, student = as_float(teacher), as_float(student)
        if len(student.shape) < 2 or len(teacher.shape) != len(student.shape) or teacher.shape[-1] != student.shape[-1]:
            raise error(
                owner,
                "outputs of teacher and student of one shape (..., classes)",
                f"{tuple(teacher.shape)} and {tuple(student.shape)}",
            )
        one_batch(owner, teacher, student)
        weights = read_weights(owner, sample_weight, ops.shape(student)[:-1], len(student.shape) - 1, mask)
        classes = student.shape[-1]
        return ops.reshape(teacher, (-1, classes)), ops.reshape(student, (-1, classes)), weights


def _unless_nan(values: Tensor, *largest: Any) -> Tensor:
    """Return the values as float64, NaN where a row's largest entry is NaN: no decision, so no agreement."""
    values = float64(values)
    for each in largest:
        values = ops.where(ops.isnan(each), float("nan"), values)
    return values


@keras.saving.register_keras_serializable(package="keras_distill")
class TopKAgreement(_AgreementMetric):
    """Fraction of the teacher's k likeliest classes that are among the student's; for k = 1, of equal decisions.

    Choose it first for fidelity: it needs no labels and is the same for logits and probabilities. Among equal outputs
    the first counts as larger.

    Formula: |top_k(teacher) and top_k(student)| / k, mean over examples.

    Args:
        k: >= 1, number of classes.
        name: name in the logs; None: "top_<k>_agreement".
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> agreement = TopKAgreement()
        >>> agreement.update_state([[2.0, 1.0], [0.0, 3.0]], [[0.9, 0.1], [0.8, 0.2]])  # alike, different
        >>> print(float(agreement.result()))
        0.5

    Reference:
        Stanton et al., "Does Knowledge Distillation Really Work?", 2021, arXiv:2106.05945, eq. 5.
        Differs: k above 1.
    """

    def __init__(self, k: int = 1, name: str | None = None, dtype: Any = None) -> None:
        self.k = integer(type(self).__name__, "k", k, low=1)
        super().__init__(name=name or f"top_{self.k}_agreement", dtype=dtype)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Add a batch of teacher's and student's outputs."""
        teacher, student, weights = self.rows(y_true, y_pred, sample_weight)
        classes = student.shape[-1]
        if self.k > classes:
            raise error(type(self).__name__, f"k of at most {classes} classes", self.k)
        if self.k == 1:
            (most, theirs), (ours_most, ours) = first_largest(teacher), first_largest(student)
            values = _unless_nan(ops.equal(theirs, ours), most, ours_most)
        else:
            _, ours = ops.top_k(student, self.k)
            _, theirs = ops.top_k(teacher, self.k)
            common = ops.equal(ours[:, :, None], theirs[:, None, :])
            overlap = ops.sum(float64(common), axis=(1, 2)) / self.k
            values = _unless_nan(overlap, ops.max(teacher, axis=-1), ops.max(student, axis=-1))
        self.add(values, weights)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().get_config(), "k": self.k}


@keras.saving.register_keras_serializable(package="keras_distill")
class TeacherKL(_AgreementMetric):
    """Kullback-Leibler divergence from the teacher's to the student's distribution, in nats, mean over examples.

    Choose it to see how well the student matches the teacher's distribution, not only its decision. For logits it is
    exact; for probabilities it is infinite if the student gives 0 to a class that the teacher allows.

    Formula: sum_k p_k (log p_k - log q_k), p of the teacher, q of the student, both at ``temperature`` (no factor).

    Args:
        from_logits: False (as in Keras): both are probabilities. True: both are logits.
        temperature: > 0, divides logits; 1.0 for probabilities.
        name: name in the logs.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> kl = TeacherKL()
        >>> kl.update_state([[1.0, 0.0]], [[0.5, 0.5]])
        >>> print(f"{float(kl.result()):.4f}")  # log 2
        0.6931

    Reference:
        Stanton et al., "Does Knowledge Distillation Really Work?", 2021, arXiv:2106.05945, section 3.
        Differs: nothing.
    """

    def __init__(
        self, from_logits: bool = False, temperature: float = 1.0, name: str = "teacher_kl", dtype: Any = None
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.from_logits = bool(from_logits)
        self.temperature = number(type(self).__name__, "temperature", temperature, above=0.0)
        if self.temperature != 1.0 and not self.from_logits:
            raise error(type(self).__name__, "temperature 1.0 for probabilities", self.temperature, "Pass logits")

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Add a batch of teacher's and student's outputs."""
        teacher, student, weights = self.rows(y_true, y_pred, sample_weight)
        if self.from_logits:
            log_p = ops.log_softmax(float64(teacher) / self.temperature, axis=-1)
            log_q = ops.log_softmax(float64(student) / self.temperature, axis=-1)
            p = ops.exp(log_p)
        else:
            p = checked_probability(float64(teacher))
            log_p, log_q = ops.log(p), ops.log(checked_probability(float64(student)))
        values = ops.sum(ops.where(ops.equal(p, 0.0), ops.zeros_like(p), p * (log_p - log_q)), axis=-1)
        self.add(values, weights)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().get_config(), "from_logits": self.from_logits, "temperature": self.temperature}


@keras.saving.register_keras_serializable(package="keras_distill")
class RankCorrelation(_AgreementMetric):
    """Rank correlation of the teacher's and the student's outputs over the classes, mean over examples.

    Choose it to see whether the student orders the wrong classes as the teacher does; it is the same for logits and
    probabilities. "kendall" compares classes**2 pairs per example. If one side is constant, the correlation is 0.

    Formula: "spearman": correlation of ranks, equal outputs sharing their mean rank. "kendall": tau-b, (concordant -
    discordant pairs) / sqrt(pairs untied in the teacher * pairs untied in the student).

    Args:
        kind: "spearman" or "kendall".
        name: name in the logs; None: ``kind``.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> spearman = RankCorrelation()
        >>> spearman.update_state([[1.0, 2.0, 3.0]], [[0.1, 0.3, 0.2]])  # 1 - 6 * 2 / 24
        >>> print(float(spearman.result()))
        0.5
    """

    def __init__(self, kind: str = "spearman", name: str | None = None, dtype: Any = None) -> None:
        self.kind = choice(type(self).__name__, "kind", kind, ("spearman", "kendall"))
        super().__init__(name=name or kind, dtype=dtype)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Add a batch of teacher's and student's outputs."""
        teacher, student, weights = self.rows(y_true, y_pred, sample_weight)
        values = rank_correlation_rows(teacher, student, self.kind)
        self.add(_unless_nan(values, ops.max(teacher, axis=-1), ops.max(student, axis=-1)), weights)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().get_config(), "kind": self.kind}


@keras.saving.register_keras_serializable(package="keras_distill")
class AgreementOnErrors(_AgreementMetric):
    """Fraction of the teacher's errors on which the student predicts the same wrong class.

    Choose it to see whether the student copies the teacher's mistakes, which agreement over all examples hides.
    ``update_state`` also takes the labels; ``callbacks.CalibrationMonitor`` passes them. NaN if the teacher is never
    wrong.

    Args:
        name: name in the logs.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> metric = AgreementOnErrors()
        >>> teacher, student = [[0.9, 0.1], [0.8, 0.2]], [[0.7, 0.3], [0.4, 0.6]]
        >>> metric.update_state(teacher, student, labels=[1, 1])  # both teacher's errors; the student shares the first
        >>> print(float(metric.result()))
        0.5
    """

    def __init__(self, name: str = "agreement_on_errors", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None, labels: Tensor = None) -> None:
        """Add a batch of teacher's and student's outputs, with class ids or one-hot rows as ``labels``."""
        if labels is None:
            raise error(type(self).__name__, "labels beside the outputs of teacher and student", "None")
        teacher, student, weights = self.rows(y_true, y_pred, sample_weight)
        labels = tensor(type(self).__name__, labels, ops.convert_to_tensor)
        one_batch(type(self).__name__, labels, student)
        if len(labels.shape) == len(ops.shape(y_pred)) and labels.shape[-1] == student.shape[-1]:
            labels = ops.argmax(labels, axis=-1)
        known = tuple(labels.shape), tuple(student.shape)[:1]
        if None not in (*known[0], *known[1]) and math.prod(known[0]) != known[1][0]:
            expected = "one class id, or a one-hot row, for each example"
            raise error(type(self).__name__, f"labels: {expected}", f"labels {known[0]} for outputs {student.shape}")
        (most, decided), (ours_most, ours) = first_largest(teacher), first_largest(student)
        wrong = ops.not_equal(decided, ops.reshape(ops.cast(labels, "int32"), (-1,)))
        known = _unless_nan(wrong, most, ours_most)
        self.add(ops.equal(decided, ours), ops.where(ops.equal(weights, 0.0), 0.0, weights * known))


def average_ranks(rows: Any) -> Tensor:
    """Return the rank of each entry in its row, from 0; equal entries share their mean rank.

    Args:
        rows: (n, classes).

    Returns:
        (n, classes), float64.
    """
    classes = rows.shape[-1]
    order = ops.argsort(rows, axis=-1)
    ordered = ops.take_along_axis(rows, order, axis=-1)
    steps = ops.cast(ops.not_equal(ordered[:, 1:], ordered[:, :-1]), "int32")
    run = ops.concatenate([ops.zeros_like(order[:, :1]), ops.cast(ops.cumsum(steps, axis=-1), order.dtype)], axis=-1)
    same = ops.cast(ops.arange(ops.shape(rows)[0]), run.dtype)[:, None] * classes + run
    flat = ops.cast(ops.reshape(same, (-1,)), "int32")
    places = ops.zeros_like(rows, dtype="float64") + ops.arange(classes, dtype="float64")
    pair = ops.stack([ops.reshape(places, (-1,)), ops.ones_like(ops.reshape(places, (-1,)))], axis=-1)
    sums = ops.take(ops.segment_sum(pair, flat, num_segments=ops.shape(rows)[0] * classes), flat, axis=0)
    ranks = ops.reshape(sums[:, 0] / sums[:, 1], ops.shape(rows))
    return ops.take_along_axis(ranks, ops.argsort(order, axis=-1), axis=-1)


def _correlation(a: Any, b: Any) -> Tensor:
    """Return the correlation of each row, 0 if one side is constant."""
    a, b = (side - ops.mean(side, axis=-1, keepdims=True) for side in (a, b))
    scale = ops.sqrt(ops.sum(a * a, axis=-1) * ops.sum(b * b, axis=-1))
    return ops.sum(a * b, axis=-1) / ops.where(scale > 0, scale, ops.ones_like(scale))


def rank_correlation_rows(a: Any, b: Any, kind: str) -> Tensor:
    """Return Spearman's or Kendall's correlation of each row: (n,), float64."""
    if kind == "spearman":
        return _correlation(average_ranks(a), average_ranks(b))
    a, b = float64(a), float64(b)

    def pairs_with(index: Any, sums: Any) -> Tensor:
        first = ops.sign(a - ops.take(a, [index], axis=-1))
        second = ops.sign(b - ops.take(b, [index], axis=-1))
        parts = [ops.sum(x * y, axis=-1) for x, y in ((first, second), (first, first), (second, second))]
        return sums + ops.stack(parts)

    sums = ops.fori_loop(0, a.shape[-1], pairs_with, ops.zeros_like(ops.stack([a[:, 0]] * 3)))
    scale = ops.sqrt(sums[1] * sums[2])
    return sums[0] / ops.where(scale > 0, scale, ops.ones_like(scale))


def rank_correlation(a: Any, b: Any, *, kind: str = "spearman") -> float:
    """Rank correlation of two lists of numbers, for instance of a teacher's and a student's uncertainties.

    Args:
        a: (n,).
        b: (n,).
        kind: "spearman" or "kendall" (tau-b, which compares n**2 pairs).

    Returns:
        -1 to 1; 0 if one side is constant.

    Raises:
        ValueError: if the lengths differ or ``kind`` is unknown.

    Example:
        >>> print(rank_correlation([0.1, 0.2, 0.9], [5.0, 6.0, 70.0]))
        1.0
    """
    choice("rank_correlation", "kind", kind, ("spearman", "kendall"))
    first, second = (
        ops.reshape(float64(tensor("rank_correlation", side, ops.convert_to_tensor)), (1, -1)) for side in (a, b)
    )
    if first.shape != second.shape:
        raise error("rank_correlation", "two lists of equal length", f"{first.shape[1]} and {second.shape[1]}")
    return float(rank_correlation_rows(first, second, kind)[0])


def top_k_agreement(
    teacher_outputs: Structure, student_outputs: Structure, *, k: int = 1, sample_weight: Tensor = None
) -> float:
    """Top-k agreement of arrays or tensors; see ``TopKAgreement``.

    Args:
        teacher_outputs: (..., classes), logits or probabilities.
        student_outputs: the same shape.
        k: >= 1, number of classes.
        sample_weight: weight of each example, or None.

    Returns:
        0 to 1.

    Raises:
        ValueError: if the shapes differ or k does not fit.

    Example:
        >>> print(top_k_agreement([[3.0, 2.0, 1.0]], [[3.0, 1.0, 2.0]], k=2))  # {0, 1} and {0, 2}
        0.5
    """
    metric = TopKAgreement(k, dtype="float64")
    metric.update_state(teacher_outputs, student_outputs, sample_weight)
    return float(metric.result())


def teacher_kl(
    teacher_outputs: Structure,
    student_outputs: Structure,
    *,
    from_logits: bool = False,
    temperature: float = 1.0,
    sample_weight: Tensor = None,
) -> float:
    """Mean KL divergence from teacher to student of arrays or tensors; see ``TeacherKL``.

    Args:
        teacher_outputs: (..., classes), probabilities, or logits with ``from_logits``.
        student_outputs: the same shape and kind.
        from_logits: whether both are logits.
        temperature: > 0, divides logits.
        sample_weight: weight of each example, or None.

    Returns:
        Nats.

    Raises:
        ValueError: if the shapes differ or an option does not fit.

    Example:
        >>> print(f"{teacher_kl([[1.0, 0.0]], [[0.5, 0.5]]):.4f}")
        0.6931
    """
    metric = TeacherKL(from_logits, temperature, dtype="float64")
    metric.update_state(teacher_outputs, student_outputs, sample_weight)
    return float(metric.result())


def agreement_on_errors(
    labels: Tensor, teacher_outputs: Structure, student_outputs: Structure, *, sample_weight: Tensor = None
) -> float:
    """Fraction of the teacher's errors that the student shares; see ``AgreementOnErrors``.

    Args:
        labels: (...,) class ids, or one-hot rows.
        teacher_outputs: (..., classes), logits or probabilities.
        student_outputs: the same shape.
        sample_weight: weight of each example, or None.

    Returns:
        0 to 1; NaN if the teacher is never wrong.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> print(agreement_on_errors([1, 1], [[0.9, 0.1], [0.8, 0.2]], [[0.7, 0.3], [0.4, 0.6]]))
        0.5
    """
    metric = AgreementOnErrors(dtype="float64")
    metric.update_state(teacher_outputs, student_outputs, sample_weight, labels=labels)
    return float(metric.result())
