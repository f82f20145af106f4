"""The term for intermediate layers: named taps of both models, through an adapter."""

from __future__ import annotations

import logging
from typing import Any

import keras
from keras import ops

from keras_distill._checks import choice, error
from keras_distill._typing import Structure, Tensor
from keras_distill.losses._base import FeatureLoss
from keras_distill.losses._features.maps import pool
from keras_distill.losses._numerics import replicas
from keras_distill.terms._base import DistillationLoss, names_of
from keras_distill.terms._positions import mask_of
from keras_distill.terms._structures import check_layers, deserialized, flat_as, flat_with_none, is_leaf, map_with_none

_log = logging.getLogger(__name__)


def _as_feature_loss(loss: Any, owner: str) -> Any:
    """Return an object with ``values``: a feature loss as it is, a Keras loss wrapped."""
    if loss is None or isinstance(loss, FeatureLoss):
        return loss
    try:
        return _KerasLossOnFeatures(loss)
    except ValueError as problem:
        advice = "Use 'mse', 'mae', 'cosine_similarity' or a class of keras_distill.losses"
        raise error(owner, "a loss that Keras or keras_distill.losses knows", loss, advice) from problem


class _Shape:
    """A shape that counts as a leaf when structures are mapped."""

    def __init__(self, sizes: Any) -> None:
        self.sizes = tuple(sizes)


def _with_mask(tensor: Tensor, mask: Tensor) -> Any:
    """Return a copy of the tensor that carries a Keras mask."""
    tensor = ops.copy(tensor)
    tensor._keras_mask = mask
    return tensor


def _first_mask(tensors: Any) -> Any:
    """Return the mask of the first tensor that has one, or None."""
    masks = (mask_of(tensor) for tensor in keras.tree.flatten(tensors))
    return next((mask for mask in masks if mask is not None), None)


class _KerasLossOnFeatures(FeatureLoss):
    """A Keras loss (a name, an object, a function) between two tensors of one rank, one value per example."""

    same_channels = True

    def __init__(self, loss: Any) -> None:
        super().__init__(name="keras_loss_on_features")
        self.loss = loss
        resolved = keras.losses.get(loss)
        self._per_position = resolved.call if isinstance(resolved, keras.losses.Loss) else resolved

    def values(self, teacher_features: Tensor, student_features: Tensor, *, mask: Tensor = None) -> Any:
        # The larger map is pooled to the size of the smaller.
        sizes = zip(teacher_features.shape[1:-1], student_features.shape[1:-1], strict=True)
        size = [None if None in pair else min(pair) for pair in sizes]
        teacher_features, student_features = (
            pool(ops.cast(features, "float32"), size) for features in (teacher_features, student_features)
        )
        values = self._per_position(teacher_features, student_features)
        if len(values.shape) == 0:  # a user's function that already reduces
            return values
        if mask is not None and len(mask.shape) == len(values.shape) > 2:  # one row of positions for each example
            values, mask = (ops.reshape(each, (ops.shape(each)[0], -1)) for each in (values, mask))
        while len(values.shape) > 2:
            values = ops.mean(values, axis=-1)
        if len(values.shape) == 1:
            return values
        if mask is None or len(mask.shape) != 2:
            return ops.mean(values, axis=-1)
        # Every position has the same weight in whichever example, as in Keras' masked losses.
        kept = ops.cast(mask, "float32")
        examples, count = replicas.everywhere(ops.cast(ops.shape(values)[0], "float32"), ops.sum(kept))
        scale = ops.divide_no_nan(examples, count)
        return ops.sum(ops.where(kept > 0, values, 0.0), axis=-1) * scale


@keras.saving.register_keras_serializable(package="keras_distill")
class FeatureDistillation(DistillationLoss):
    """Distillation of an intermediate layer (FitNet hints, and every loss of ``losses`` that compares features).

    One pass of the student gives logits and features together; an adapter makes unequal shapes comparable.

    Args:
        loss: a Keras loss (``"mse"``, ``"cosine_similarity"``, an object), a feature loss of ``keras_distill.losses``,
            or a structure with one per output where whole outputs are compared; ``None`` skips one.
        teacher_layer_name: the tap (``taps.list_taps(teacher)`` shows them), a list of taps, or None for the outputs.
        student_layer_name: the same for the student.
        adapter: ``"auto"``, a layer that fits one side to the other (see ``keras_distill.adapters``), or None.
        adapter_side: ``"student"`` (the adapter is applied to the student's tensor) or ``"teacher"``.
        teacher_adapter: a layer for the teacher's side in addition to the student's. It is trained with the student if
            the loss has ``teacher_gradient=True`` (the embeddings of CC and CRD); otherwise it must have no trainable
            weights, or be trained beforehand and frozen (``adapters.Paraphraser``).
        mask_layer_name: a tap of the student that is true at valid positions, for models that pass their mask between
            layers as an argument: ``"transformer_layer_0:padding_mask"`` in keras-hub. None uses the Keras mask of the
            student's tensor.
        name: shown in logs and error messages.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if every loss is None, a layer is unknown, shapes differ and there is no adapter, or a teacher's
            adapter has weights to train and the loss does not train them.

    Example:
        >>> import numpy as np
        >>> term = FeatureDistillation(loss="mse")
        >>> float(term.compute_loss(np.zeros((2, 3)), np.ones((2, 3))))
        1.0

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550.
        Differs: one stage, and any loss.
    """

    needs_shapes = True
    masks_values = True

    def __init__(
        self,
        loss: Any = "mse",
        teacher_layer_name: Any = None,
        student_layer_name: Any = None,
        adapter: Any = None,
        adapter_side: str = "student",
        teacher_adapter: Any = None,
        mask_layer_name: str | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        owner = type(self).__name__
        if all(each is None for each in flat_with_none(loss)):
            raise error(owner, "at least one loss that is not None", loss)
        if adapter is not None and adapter != "auto" and not isinstance(adapter, keras.layers.Layer):
            raise error(owner, "adapter to be 'auto', a keras.layers.Layer or None", adapter)
        if len(names_of(teacher_layer_name)) != len(names_of(student_layer_name)) and None not in (
            teacher_layer_name,
            student_layer_name,
        ):
            got = f"{teacher_layer_name!r} and {student_layer_name!r}"
            raise error(owner, "as many teacher layers as student layers", got)
        if teacher_adapter is not None and not isinstance(teacher_adapter, keras.layers.Layer):
            raise error(owner, "teacher_adapter to be a keras.layers.Layer or None", teacher_adapter)
        if mask_layer_name is not None and student_layer_name is None:
            raise error(owner, "a student_layer_name beside mask_layer_name", "None", "Outputs carry Keras' own mask")
        object.__setattr__(self, "_spec", {"loss": map_with_none(lambda each: _as_feature_loss(each, owner), loss)})
        self.teacher_layer_name = teacher_layer_name
        self.mask_layer_name = mask_layer_name
        self._student_names = student_layer_name
        self.adapter_side = choice(owner, "adapter_side", adapter_side, ("student", "teacher"))
        if teacher_adapter is not None and self.adapter_side == "teacher":
            raise error(owner, "adapter on the student's side beside teacher_adapter", "adapter_side='teacher'")
        self.adapter = None if isinstance(adapter, str) else adapter
        self.teacher_adapter = teacher_adapter
        self._auto = isinstance(adapter, str)
        self._reason = "chosen when the shapes are known" if self._auto else ""

    def __repr__(self) -> str:
        """Show what is compared, and which adapter ``"auto"`` has chosen and why."""
        chosen = type(self.adapter).__name__ if self.adapter is not None else "None"
        adapter = f"'auto' ({self._reason})" if self._reason else chosen
        sides = f"{self.teacher_layer_name!r} -> {self._student_names!r}"
        return f"<{type(self).__name__} {self.name!r}, {sides}, adapter={adapter}>"

    @property
    def student_layer_name(self) -> Any:
        """The student's taps as given, followed by the tap of the mask if there is one."""
        if self.mask_layer_name is None:
            return self._student_names
        return [*names_of(self._student_names), self.mask_layer_name]

    def _without_mask(self, student_outputs: Structure) -> tuple[Any, Any]:
        """Return the student's taps to compare, and the mask that came with them or None."""
        if self.mask_layer_name is None:
            return student_outputs, None
        *compared, mask = student_outputs
        return (compared[0] if isinstance(self._student_names, str) else compared), mask

    @property
    def loss(self) -> Any:
        """The loss, or the structure of losses, that compares the features."""
        return self._spec["loss"]

    def validate_model_compatibility(self, teacher: Any, student: keras.Model) -> None:
        """Raise ``ValueError`` if a named layer does not exist."""
        check_layers(type(self).__name__, teacher, self.teacher_taps, student, self.student_taps)

    def validate_outputs(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Raise ``ValueError`` if the two structures differ from each other or from that of the losses."""
        student_outputs, _ = self._without_mask(student_outputs)
        keras.tree.assert_same_structure(teacher_outputs, student_outputs)
        if not is_leaf(self.loss):
            flat_as(self.loss, student_outputs, type(self).__name__, "loss")

    def build_from(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Choose the adapter if it is ``"auto"``, create its variables, and check that the shapes then agree."""
        sides = [teacher_outputs, self._without_mask(student_outputs)[0]]
        nested = any(keras.tree.is_nested(side) for side in sides)
        shapes = [keras.tree.map_structure(lambda tensor: _Shape(tensor.shape), side) for side in sides]
        if self._auto and self.adapter is None:
            if nested:
                advice = "Give adapter=None, or one term for each pair of layers (HierarchicalDistillation)"
                raise error(type(self).__name__, "one tensor on each side for adapter='auto'", "several", advice)
            from keras_distill import adapters

            self.adapter, self.adapter_side, reason = adapters.auto(*(shape.sizes for shape in shapes))
            self._reason = reason
            _log.info("%s: %s", self.name, reason)
        for index, adapter in enumerate(self._adapters()):
            if adapter is None:
                continue
            given = keras.tree.map_structure(lambda shape: shape.sizes, shapes[index])
            if not adapter.built:
                adapter.build(given)
            self._check_training(index, adapter)
            adapted = adapter.compute_output_shape(given)
            if keras.tree.is_nested(adapted) and not isinstance(adapted[0], (int, type(None))):
                self.built = True  # an adapter with several outputs feeds a loss that expects them
                return
            shapes[index] = _Shape(adapted)
        if getattr(self.loss, "same_channels", False) and all(isinstance(shape, _Shape) for shape in shapes):
            self._check_shapes(*(shape.sizes for shape in shapes))
        self.built = True

    def _adapters(self) -> tuple[Any, Any]:
        """Return the teacher's adapter and the student's, None where there is none."""
        return (self.adapter, None) if self.adapter_side == "teacher" else (self.teacher_adapter, self.adapter)

    def _check_training(self, index: int, adapter: keras.layers.Layer) -> None:
        """Raise ``ValueError`` if a teacher's adapter has weights to train and its loss does not train them."""
        stops = isinstance(self.loss, FeatureLoss) and not isinstance(self.loss, _KerasLossOnFeatures)
        if index == 0 and adapter.trainable_weights and stops and not self.loss.teacher_gradient:
            advice = "Give the loss teacher_gradient=True if possible, or train the adapter first and freeze it"
            expected = "a teacher's adapter that its loss trains, or that has trainable=False"
            raise error(
                type(self).__name__, expected, f"{type(adapter).__name__} and {type(self.loss).__name__}", advice
            )

    def _check_shapes(self, teacher_shape: tuple[Any, ...], student_shape: tuple[Any, ...]) -> None:
        channels = teacher_shape[-1], student_shape[-1]
        if len(teacher_shape) != len(student_shape) or (None not in channels and channels[0] != channels[1]):
            raise error(
                type(self).__name__,
                "teacher and student features of one rank and number of channels",
                f"{teacher_shape} at {self.teacher_layer_name!r} and {student_shape} at {self.student_layer_name!r}",
                "Give adapter='auto', a layer of keras_distill.adapters, or a loss that needs no equal channels",
            )

    def get_build_config(self) -> dict[str, Any] | None:
        """Return what ``build_from_config`` needs to rebuild the adapter before its weights are loaded."""
        if not self.built:
            return None
        return {
            key: None if adapter is None else adapter.get_build_config()
            for key, adapter in (("adapter", self.adapter), ("teacher_adapter", self.teacher_adapter))
        }

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Make the adapters' variables."""
        for key, adapter in (("adapter", self.adapter), ("teacher_adapter", self.teacher_adapter)):
            if config.get(key) and adapter is not None and not adapter.built:
                adapter.build_from_config(config[key])
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
        """Return the loss of each example; a list with one entry per output if each has its own loss."""
        student_outputs, tapped = self._without_mask(student_outputs)
        mask = _first_mask(student_outputs) if isinstance(mask, list) and isinstance(self.loss, FeatureLoss) else mask
        mask = mask if tapped is None else ops.cast(tapped, "bool")
        for_teacher, for_student = self._adapters()
        if for_teacher is not None:
            teacher_outputs = for_teacher(teacher_outputs, training=training)
        if for_student is not None:
            if mask is not None:
                student_outputs = keras.tree.map_structure(lambda tensor: _with_mask(tensor, mask), student_outputs)
            student_outputs = for_student(student_outputs, training=training)
            mask = self._mask_after(mask, student_outputs)
        if isinstance(self.loss, FeatureLoss) and not isinstance(self.loss, _KerasLossOnFeatures):
            return self.loss.values(teacher_outputs, student_outputs, mask=mask)
        if not keras.tree.is_nested(student_outputs):
            return flat_with_none(self.loss)[0].values(teacher_outputs, student_outputs, mask=mask)
        students, teachers_side = keras.tree.flatten(student_outputs), keras.tree.flatten(teacher_outputs)
        losses = [self.loss] * len(students) if is_leaf(self.loss) else self.loss
        return [
            None if loss is None else loss.values(teacher, student, mask=mask_of(student))
            for loss, teacher, student in zip(
                flat_as(losses, student_outputs, type(self).__name__, "loss"), teachers_side, students, strict=True
            )
        ]

    def _mask_after(self, mask: Tensor, adapted: Any) -> Any:
        """Return the mask of the positions after the student's adapter."""
        first = keras.tree.flatten(adapted)[0]
        found = mask_of(first)
        if mask is None or found is not None or len(first.shape) < 3:
            return None if len(first.shape) < 3 else found
        positions = zip(first.shape[1:-1], mask.shape[1:], strict=False)
        if len(mask.shape) < len(first.shape) and all(a == b or None in (a, b) for a, b in positions):
            return mask
        expected = "an adapter that defines the mask when it changes the number of positions"
        advice = "Use adapters.SequenceInterpolation, or define compute_mask and supports_masking"
        raise error(type(self).__name__, expected, type(self._adapters()[1]).__name__, advice)

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""

        def describe(loss: Any) -> Any:
            loss = loss.loss if isinstance(loss, _KerasLossOnFeatures) else loss
            return keras.saving.serialize_keras_object(loss)

        # A chosen adapter is stored as it is, so that its weights can be restored.
        adapter = "auto" if self._auto and self.adapter is None else self.adapter
        return {
            **super().get_config(),
            "loss": map_with_none(describe, self.loss),
            "teacher_layer_name": self.teacher_layer_name,
            "student_layer_name": self._student_names,
            "adapter": keras.saving.serialize_keras_object(adapter),
            "adapter_side": self.adapter_side,
            "teacher_adapter": keras.saving.serialize_keras_object(self.teacher_adapter),
            "mask_layer_name": self.mask_layer_name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FeatureDistillation:
        """Rebuild the term that ``get_config`` described."""
        config = dict(config)
        config["loss"] = deserialized(config["loss"])
        for key in ("adapter", "teacher_adapter"):
            config[key] = deserialized(config[key])
        return cls(**config)
