"""What a student minimises: a supervised loss and weighted terms, with weights that may be scheduled."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops

from keras_distill import losses
from keras_distill._checks import error, number
from keras_distill._typing import Structure
from keras_distill.settings import Setting
from keras_distill.terms import DistillationLoss
from keras_distill.training._batch import Batch, Heard


class Parts(NamedTuple):
    """The loss of one batch and its components; every entry is a float32 scalar.

    Attributes:
        to_minimize: the loss that is differentiated: this replica's share of that of the global batch.
        total: the loss that the logs show.
        student_loss: the supervised loss, unweighted.
        distillation_loss: the weighted sum of the terms.
        terms: (name, value) of each term, unweighted.
        outputs: (name, value) of each output where there are several: the weighted sum of the terms there.
    """

    to_minimize: Any
    total: Any
    student_loss: Any
    distillation_loss: Any
    terms: tuple[tuple[str, Any], ...] = ()
    outputs: tuple[tuple[str, Any], ...] = ()


class Objective:
    """Terms, their weights and the share of the supervised loss.

    Formula: share * supervised + (1 - share) * sum_i weight_i * term_i, plus the model's own losses.

    Args:
        terms: a term or a list of terms; those of ``keras.distillation`` work too.
        weights: >= 0, one for each term: numbers or schedules of the optimizer's step; 1 each by default.
        share: 0 to 1, the weight of the supervised loss; a number or a schedule.
        owner: name shown in error messages.

    Raises:
        ValueError: if a term is not one, the number of weights differs from that of the terms, or a number is out of
            bounds.
    """

    def __init__(self, terms: Any, weights: Sequence[Any] | None = None, share: Any = 0.5, owner: str = "Distiller"):
        self.owner = owner
        self.terms: list[Any] = _as_terms(owner, terms)
        if weights is not None and not isinstance(weights, (list, tuple)):
            raise error(owner, "distillation_loss_weights to be a list with one weight per term", weights)
        weights = [1.0] * len(self.terms) if weights is None else list(weights)
        self._check_count(weights)
        self.share = Setting(share, lambda value: number(owner, "student_loss_weight", value, low=0.0, high=1.0))
        self.weights = tuple(Setting(weight, self._weight) for weight in weights)
        self.ignored: tuple[int | None, ...] = ()  # the classes that the supervised losses ignore, set by compile

    def _weight(self, value: Any) -> float:
        return number(self.owner, "each of distillation_loss_weights", value, low=0.0)

    def _check_count(self, weights: Sequence[Any]) -> None:
        if len(weights) != len(self.terms):
            expected = f"one distillation_loss_weights entry for each of the {len(self.terms)} terms"
            raise error(self.owner, expected, f"{len(weights)}")

    def assign_weights(self, values: Sequence[Any]) -> None:
        """Set the weight of every term.

        Args:
            values: >= 0, one for each term.
        """
        values = list(values)
        self._check_count(values)
        for setting, value in zip(self.weights, values, strict=True):
            setting.assign(value)

    @property
    def own_terms(self) -> list[DistillationLoss]:
        """The terms of this package; those of ``keras.distillation`` have no weights, shapes or settings."""
        return [term for term in self.terms if isinstance(term, DistillationLoss)]

    @property
    def settings(self) -> dict[str, Setting]:
        """Every number that the objective reads, by the name under which the logs show it."""
        found = {"student_loss_weight": self.share}
        for index, setting in enumerate(self.weights):
            found["distillation_loss_weight" if len(self.weights) == 1 else f"distillation_loss_weight_{index}"] = (
                setting
            )
        for index, term in enumerate(self.own_terms):
            for name, setting in term.settings.items():
                found[name if len(self.own_terms) == 1 else f"{name}_of_term_{index}"] = setting
        return found

    # ------------------------------------------------------------------ building

    def validate(self, teacher: Any, student: keras.Model) -> None:
        """Raise ``ValueError`` if a term certainly does not fit the two models.

        Args:
            teacher: a model or a teacher.
            student: the model to be trained.
        """
        for term in self.terms:
            term.validate_model_compatibility(teacher, student)

    def create(self, layer: keras.layers.Layer) -> None:
        """Create the variables of the weights, owned and saved by ``layer``, and build the terms that need no shapes.

        Args:
            layer: the model that is fitted.
        """
        self.share.create(layer, "student_loss_weight")
        for index, setting in enumerate(self.weights):
            setting.create(layer, f"distillation_loss_weight_{index}")
        for term in self.own_terms:
            if not term.needs_shapes and not term.built:
                term.build_from(None, None)

    @property
    def built(self) -> bool:
        """Whether every term has created its weights."""
        return all(term.built for term in self.own_terms)

    def build_from(self, teacher: Heard, student: Heard) -> None:
        """Build each term from the tensors that it will compare, symbolic or real.

        Args:
            teacher: the teacher's outputs and taps.
            student: the student's outputs and taps.
        """
        for term in self.own_terms:
            if not term.built:
                term.build_from(_side(term, "teacher", teacher), _side(term, "student", student))

    def taps(self, role: str) -> list[str]:
        """Return the names of all layers that the terms tap in one of the models, each once.

        Args:
            role: ``"teacher"`` or ``"student"``.
        """
        found = [name for term in self.terms for name in _taps(term, role) if name != _FINAL]
        return list(dict.fromkeys(found))

    # ------------------------------------------------------------------ the loss, the only copy

    def measure(
        self,
        batch: Batch,
        *,
        teacher: Heard | None,
        student: Heard,
        supervised: Any,
        own_losses: Sequence[Any] | Callable[[], Sequence[Any]] = (),
        training: bool,
    ) -> Parts:
        """Return the loss of a batch and its parts.

        Args:
            batch: inputs, labels, weights and extra fields.
            teacher: the teacher's outputs and taps; None leaves the terms out.
            student: the student's outputs and taps.
            supervised: the supervised loss of this batch, a scalar mean; 0 where there are no labels.
            own_losses: the trained layers' regularisers and ``add_loss`` terms; a function is called after the terms,
                some of which add to them (the penalty of a learned gate).
            training: whether this is a training step.

        Returns:
            The parts.
        """
        distillation, each = ops.zeros((), "float32"), []
        batch = batch._replace(ignored=self.ignored)
        outputs: dict[str, Any] = {}
        for index, term in enumerate(self.terms):
            if teacher is None:
                break
            by_output = self._values(term, batch, teacher, student, training)
            value = _sum(list(by_output.values()))
            each.append((f"distillation term {index} ({getattr(term, 'name', type(term).__name__)})", value))
            weight = self.weights[index].tensor
            distillation = distillation + weight * value
            if "" not in by_output:
                for name, part in by_output.items():
                    outputs[name] = outputs.get(name, 0.0) + weight * part
        own = [ops.sum(ops.cast(loss, "float32")) for loss in (own_losses() if callable(own_losses) else own_losses)]
        own_total = ops.sum(ops.stack(own)) if own else ops.zeros((), "float32")
        share = self.share.tensor
        mixed = share * supervised + (1.0 - share) * distillation
        return Parts(
            to_minimize=mixed * replica_share(student.outputs) + own_total / num_replicas(),
            total=mixed + own_total,
            student_loss=supervised,
            distillation_loss=distillation,
            terms=tuple(each),
            outputs=tuple(outputs.items()),
        )

    def _values(self, term: Any, batch: Batch, teacher: Heard, student: Heard, training: bool) -> dict[str, Any]:
        """Return a term's loss, per output where it compares several."""
        teacher_side, student_side = _side(term, "teacher", teacher), _side(term, "student", student)
        term.validate_outputs(teacher_side, student_side)
        if not isinstance(term, DistillationLoss):
            return {"": ops.cast(term.compute_loss(teacher_side, student_side), "float32")}
        if type(term).compute_loss is not DistillationLoss.compute_loss:  # a term that reduces by itself
            value = term.compute_loss(
                teacher_side, student_side, labels=batch.labels, sample_weight=batch.weights, training=training
            )
            return {"": ops.cast(value, "float32")}
        return term.losses_by_output(
            teacher_side,
            student_side,
            labels=batch.labels,
            sample_weight=batch.weights,
            training=training,
            batch=batch,
        )


_FINAL = "final_output"


def _as_terms(owner: str, terms: Any) -> list[Any]:
    advice = ""
    if terms is None:
        raise error(owner, "a term such as LogitsDistillation(), or a list of terms", "None")
    found = list(terms) if isinstance(terms, (list, tuple)) else [terms]
    for term in found:
        if not isinstance(term, keras.distillation.DistillationLoss):
            if isinstance(term, (losses.LogitsLoss, keras.losses.Loss, str)) or callable(term):
                advice = (
                    "Wrap a loss in a term: LogitsDistillation(loss=...), or FeatureDistillation(loss=...) for layers"
                )
            raise error(owner, "terms such as LogitsDistillation() in distillation_losses", term, advice)
        _warn_of_the_built_in(owner, term)
    return found


def _warn_of_the_built_in(owner: str, term: Any) -> None:
    """Warn if this is Keras' own term with its default loss, which skips the softmax and the squared temperature."""
    built_in = isinstance(term, keras.distillation.LogitsDistillation) and not isinstance(term, DistillationLoss)
    if built_in and getattr(term.loss, "__name__", "") == "kl_divergence":
        warnings.warn(
            f"{owner}: keras.distillation.LogitsDistillation with its default loss compares raw logits as if they were "
            "probabilities. Import LogitsDistillation from keras_distill, or give loss=keras.losses.KLDivergence().",
            stacklevel=5,
        )


def _sum(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else ops.sum(ops.stack(values))


def _taps(term: Any, role: str) -> list[str]:
    """Return the taps that a term compares on one side; empty for the final outputs."""
    if isinstance(term, DistillationLoss):
        return list(getattr(term, f"{role}_taps"))
    name = getattr(term, f"{role}_layer_name", None)
    return [] if name is None else [name]


def _side(term: Any, role: str, heard: Heard) -> Any:
    """Return what a term compares on one side: the outputs, one tap, or a list of taps."""
    names, single = _taps(term, role), getattr(term, f"{role}_layer_name", None)
    if not names:
        return heard.outputs
    if isinstance(single, str) and names == [single]:
        return heard.taps[single]
    return [heard.outputs if name == _FINAL else heard.taps[name] for name in names]


# ---------------------------------------------------------------------- replicas


def num_replicas() -> int:
    """Return how many replicas train together; 1 without a strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def replica_share(outputs: Structure) -> Any:
    """Return this replica's share of the global batch, the factor of its mean loss before gradients are summed.

    It is 1 with one replica, else the local number of examples over the global one, which also holds for a ragged last
    batch.

    Args:
        outputs: a structure of tensors whose first axis is the batch.
    """
    if num_replicas() == 1 or tf.distribute.in_cross_replica_context():
        return 1.0
    local = tf.cast(tf.shape(keras.tree.flatten(outputs)[0])[0], tf.float32)
    everywhere = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, local)
    return tf.math.divide_no_nan(local, everywhere)
