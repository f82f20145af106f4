"""The base class of all terms."""

from __future__ import annotations

import inspect
from typing import Any

import keras
from keras import ops

from keras_distill._checks import error, integer, nearest, number
from keras_distill._typing import Structure, Tensor
from keras_distill.settings import Setting
from keras_distill.terms._positions import (
    mask_of,
    warn_of_padding,
    weighted_mean,
    with_input_mask,
    without_unlabelled,
    without_void,
)


@keras.saving.register_keras_serializable(package="keras_distill")
class DistillationLoss(keras.layers.Layer, keras.distillation.DistillationLoss):
    """Base of the terms: compares teacher and student tensors, one value per example.

    A term is a Keras layer, so that its weights (adapters) and scheduled numbers (temperature) are tracked, trained and
    saved by the distiller. It is also a ``keras.distillation.DistillationLoss``, so that it works inside Keras' own
    ``Distiller``. To write one, subclass and define ``values``.

    Args:
        name: shown in logs and error messages; unique within one distiller.
        ignore_label: the label of positions to leave out (void pixels, tokens without a label), for outputs and
            features with positions; labels of another resolution are resized by nearest neighbour. ``"auto"``: for
            outputs, the ``ignore_class`` of the supervised loss, where each position has a label. None: all positions
            count.
        mask_input: name of the input, (batch, time), that is true at valid positions, for models that pass their mask
            on without Keras (those of keras-hub). ``"auto"`` takes ``padding_mask``, ``decoder_padding_mask`` or
            ``attention_mask``, and warns if tokens come without a mask. None: no input is used.
        counted_fraction: share of all positions in the data, padding included, that count; above 0 and at most 1.
            Needed when gradients are accumulated, which averages the means of batches: dividing by batch size times
            this number instead gives every position the same weight. None divides by each batch's own number.
        **kwargs: as for ``keras.layers.Layer``.

    Attributes:
        teacher_layer_name: the teacher's tap, a list of taps, or None for the final outputs.
        student_layer_name: the same for the student.
        needs_shapes: True if ``build_from`` must see the compared tensors (adapters, shape checks).
        masks_values: True if ``values`` applies the mask itself, as each loss of ``keras_distill.losses`` does when
            given one. If False, the mean over ``values`` applies it.
    """

    teacher_layer_name: Any = None
    student_layer_name: Any = None
    needs_shapes: bool = False
    masks_values: bool = False

    def __init__(
        self,
        name: str | None = None,
        ignore_label: int | str | None = "auto",
        mask_input: str | None = "auto",
        counted_fraction: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if ignore_label is not None and ignore_label != "auto":
            ignore_label = integer(type(self).__name__, "ignore_label", ignore_label, low=-(2**31))
        if mask_input is not None and not isinstance(mask_input, str):
            raise error(type(self).__name__, "mask_input to be the name of an input, 'auto' or None", mask_input)
        if counted_fraction is not None:
            advice = "Leave it out to count the positions of each batch"
            owner = type(self).__name__
            number(owner, "counted_fraction", counted_fraction, above=0.0, high=1.0, advice=advice)
        self.counted_fraction = counted_fraction
        self.ignore_label = ignore_label
        self.mask_input = mask_input
        self._warned_of_padding = False

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        positions = {"ignore_label": self.ignore_label, "mask_input": self.mask_input}
        fraction = {} if self.counted_fraction is None else {"counted_fraction": self.counted_fraction}
        chosen = {name: value for name, value in positions.items() if value != "auto"}
        return {**super().get_config(), **chosen, **fraction}

    @property
    def teacher_taps(self) -> list[str]:
        """Names of the teacher's tensors that this term needs besides the final outputs."""
        return names_of(self.teacher_layer_name)

    @property
    def student_taps(self) -> list[str]:
        """Names of the student's tensors that this term needs besides the final outputs."""
        return names_of(self.student_layer_name)

    @property
    def settings(self) -> dict[str, Setting]:
        """The numbers of this term that can be assigned or scheduled, by the name under which logs show them."""
        return {}

    def validate_model_compatibility(self, teacher: Any, student: keras.Model) -> None:
        """Raise ``ValueError`` if this term cannot work for these two models, as far as is known before they run."""

    def check_fields(self, fields: dict[str, Any]) -> None:
        """Raise ``ValueError`` before training if the fields given to ``fit`` as arrays are wrong.

        Args:
            fields: whole arrays by name, of all fields that the student does not take (boxes, domains).
        """

    def validate_outputs(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Raise ``ValueError`` if the two structures differ; not checked for a term that overrides its taps.

        Args:
            teacher_outputs: the teacher's tensors for this term.
            student_outputs: the student's tensors for this term.
        """
        own = (names_of(self.teacher_layer_name), names_of(self.student_layer_name))
        if (self.teacher_taps, self.student_taps) == own:
            super().validate_outputs(teacher_outputs, student_outputs)

    def build_from(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Create the weights of this term, once, from the tensors it compares or from their specs.

        Args:
            teacher_outputs: structure of objects with ``shape`` and ``dtype``.
            student_outputs: the same for the student.
        """
        self.built = True

    def values(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        *,
        labels: Structure = None,
        mask: Tensor = None,
        training: bool = True,
    ) -> Any:
        """Return the loss of each example.

        Args:
            teacher_outputs: the teacher's final outputs, or its taps ``teacher_layer_name``.
            student_outputs: the same for the student.
            labels: the targets of ``fit``, or None.
            mask: (batch, ...) bool: positions that count, or None; a list of these, one per output, where there are
                several.
            training: whether this is a training step.

        Returns:
            (batch, ...), or a scalar for a loss that needs the whole batch, or a list of these, one per output. With
            ``masks_values``, masked positions are 0 and the others scaled, so that the plain mean equals the masked
            one.
        """
        raise NotImplementedError(f"{type(self).__name__} must define values().")

    def compute_loss(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        labels: Structure = None,
        sample_weight: Structure = None,
        training: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Return the scalar loss of a batch: the weighted mean of ``values``, summed over outputs.

        Args:
            teacher_outputs: as in ``values``.
            student_outputs: as in ``values``.
            labels: as in ``values``.
            sample_weight: (batch,), (batch, ...), or a structure of these, one per output; or None.
            training: as in ``values``.
            **kwargs: ignored; Keras' own ``Distiller`` may pass more.

        Returns:
            A scalar, float32.
        """
        kwargs.setdefault("batch", None)
        parts = self.losses_by_output(
            teacher_outputs,
            student_outputs,
            labels=labels,
            sample_weight=sample_weight,
            training=training,
            batch=kwargs["batch"],
        )
        means = list(parts.values())
        return ops.sum(ops.stack(means)) if len(means) > 1 else means[0]

    def losses_by_output(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        *,
        labels: Structure = None,
        sample_weight: Structure = None,
        training: bool = True,
        batch: Any = None,
    ) -> dict[str, Any]:
        """Return the weighted mean of ``values`` for each output that is compared.

        Args:
            teacher_outputs: as in ``values``.
            student_outputs: as in ``values``.
            labels: as in ``values``.
            sample_weight: as in ``compute_loss``.
            training: as in ``values``.
            batch: the whole batch (``training.Batch``: inputs, labels, weights, extra fields) or None; passed on if
                ``values`` has an argument of this name.

        Returns:
            Scalars, float32, by the output's key, or by its index as text; ``""`` where there is only one.
        """
        if not self.built:  # Keras' own Distiller does not build it
            self.build_from(teacher_outputs, student_outputs)
        student_outputs, unknown = with_input_mask(type(self).__name__, student_outputs, batch, self.mask_input)
        if isinstance(self.ignore_label, int):
            student_outputs, labels = without_void(type(self).__name__, student_outputs, labels, self.ignore_label)
        elif self.ignore_label is not None and batch is not None and batch.ignored and not self.student_taps:
            student_outputs, labels = without_unlabelled(student_outputs, labels, batch.ignored)
        unknown = unknown and any(mask_of(tensor) is None for tensor in keras.tree.flatten(student_outputs))
        if unknown and sample_weight is None and self.mask_input == "auto" and not self._warned_of_padding:
            self._warned_of_padding = True
            warn_of_padding(type(self).__name__, self.name)
        students = keras.tree.flatten(student_outputs)
        mask = mask_of(students[0]) if len(students) == 1 else [mask_of(tensor) for tensor in students]
        more = {"batch": batch} if "batch" in inspect.signature(self.values).parameters else {}
        values = self.values(teacher_outputs, student_outputs, labels=labels, mask=mask, training=training, **more)
        if not isinstance(values, list):
            values, mask = [values], [mask if not isinstance(mask, list) else None]
        weights = keras.tree.flatten(sample_weight) if sample_weight is not None else [None]
        weights = weights * len(values) if len(weights) == 1 else weights
        keys = sorted(student_outputs) if isinstance(student_outputs, dict) else map(str, range(len(values)))
        names = [""] if len(values) == 1 else list(keys)
        count = students[0].shape[0] if students[0].shape[0] is not None else ops.shape(students[0])[0]
        how: dict[str, Any] = {"masked": self.masks_values, "fraction": self.counted_fraction}
        return {
            name: _of_some(weighted_mean(value, weight, each_mask, **how), count)
            for name, value, weight, each_mask in zip(names, values, weights, mask, strict=True)
            if value is not None
        }


def _of_some(mean: Any, count: Any) -> Any:
    """Return the loss of a batch, or 0 for an empty one, which a replica may get at the end of an epoch."""
    return mean if isinstance(count, int) and count > 0 else ops.where(ops.greater(count, 0), mean, 0.0)


def field_of(owner: str, batch: Any, name: str) -> Any:
    """Return a field of the batch that no model takes, from the dictionary of inputs or of labels.

    Args:
        owner: name shown in the error message.
        batch: a ``training.Batch``, or None inside Keras' own ``Distiller``.
        name: name of the field.

    Returns:
        The tensor.

    Raises:
        ValueError: if the batch has no such field.
    """
    places = [] if batch is None else [batch.extra, batch.inputs, batch.labels]
    if places and isinstance(batch.inputs, dict):  # a stored teacher's answers are next to the inputs
        places.append(batch.inputs.get("inputs"))
    known: list[str] = []
    for place in places:
        if isinstance(place, dict):
            if name in place:
                return place[name]
            known += [key for key in place if key not in known]
    got = f"only {nearest(name, known)}" if known else "no dictionary of fields"
    advice = f"Give inputs as a dict: {{'image': x, {name!r}: ...}}; the student takes only its own inputs"
    raise error(owner, f"a field {name!r} in the batch", got, advice)


def names_of(layer_name: Any) -> list[str]:
    """Return the names of no, one or several taps as a list."""
    if layer_name is None:
        return []
    return [layer_name] if isinstance(layer_name, str) else list(layer_name)
