"""Checks data before training starts, as far as possible without reading a dataset from its source."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import error
from keras_distill._typing import Structure
from keras_distill.losses._base import LogitsLoss
from keras_distill.taps import gives_logits
from keras_distill.teachers import Teacher
from keras_distill.terms import DistillationLoss, LogitsDistillation
from keras_distill.training._batch import extra_fields

_SPARSE = {"sparse_categorical_crossentropy", "sparsecategoricalcrossentropy"}
_DENSE = {"categorical_crossentropy", "categoricalcrossentropy"}


def check_data(distiller: Any, x: Any, y: Any, where: str, sample_weight: Structure = None) -> None:
    """Raise ``ValueError`` if there is no data, or if labels or weights are certainly wrong.

    Args:
        distiller: a compiled distiller.
        x: as given to ``fit`` or ``evaluate``.
        y: as given to ``fit`` or ``evaluate``.
        where: ``"fit"`` or ``"evaluate"``, for the message.
        sample_weight: as given to ``fit``.

    Raises:
        ValueError: if a check fails; the message says what was expected.
    """
    owner = f"{distiller.owner}.{where}"
    targets: Any = y
    if x is None:
        raise error(owner, "data", "None")
    _check_text_inputs(distiller.student, x, owner)
    if isinstance(x, tf.data.Dataset):
        if x.cardinality().numpy() == 0:
            raise error(owner, "at least one batch of data", "an empty dataset")
        spec = x.element_spec
        targets = spec[1] if isinstance(spec, tuple) and len(spec) > 1 else None
        _check_batched(spec, targets, owner)
    elif isinstance(x, keras.utils.PyDataset):
        if x.num_batches == 0:
            raise error(owner, "at least one batch of data", "an empty dataset")
        return
    elif _is_arrays(x):
        if any(len(array) == 0 for array in keras.tree.flatten(x)):
            raise error(owner, "at least one example", "an empty array")
        fields = extra_fields(x, distiller.student)
        for term in distiller.distillation_losses if fields and where == "fit" else ():
            if isinstance(term, DistillationLoss):
                term.check_fields(fields)
    else:
        return  # a generator or a data loader: nothing is known before it runs
    _check_sizes(distiller, x, owner)
    _check_ids(distiller, x, owner)
    _check_weights(sample_weight, owner)
    if targets is None:
        missing = distiller.why_labels()
        if missing is not None:
            raise error(owner, missing[0], "none", missing[1])
        return
    _check_text(targets, owner)
    if not keras.tree.is_nested(targets) and not keras.tree.is_nested(distiller.loss):
        _check_labels(distiller, targets, owner)


def check_models(teacher: Any, student: Any) -> None:
    """Raise ``ValueError`` unless these are two models that share no weights; warn if the teacher has no weights yet.

    Args:
        teacher: a model or a teacher.
        student: the model to be trained.

    Raises:
        ValueError: if one of them is not a model, they are the same object, or they share weights.
    """
    for role, model in (("teacher", teacher), ("student", student)):
        if not isinstance(model, keras.Model):
            many = role == "teacher" and isinstance(model, (list, tuple))
            advice = "Combine several teachers: teachers.Ensemble([...])" if many else ""
            raise error("Distiller", f"a keras.Model as {role}", f"{type(model).__name__}: {model!r}"[:120], advice)
    if teacher is student:
        advice = "Make a second model: keras.models.clone_model(model)"
        raise error("Distiller", "teacher and student to be two models", "one object for both", advice)
    shared = {id(v) for v in teacher.variables} & {id(v) for v in student.trainable_variables}
    if shared:
        advice = "Training the student would change the teacher: give it its own layers"
        raise error("Distiller", "a student that shares no weights with its teacher", f"{len(shared)} shared", advice)
    frozen = [
        layer.name
        for layer in student._flatten_layers(include_self=False)
        if getattr(layer, "quantization_mode", None) not in (None, "float8")
        and not getattr(layer, "lora_enabled", False)
    ]
    if frozen:
        some = ", ".join(map(repr, frozen[:3])) + (", ..." if len(frozen) > 3 else "")
        warnings.warn(
            f"Distiller: {len(frozen)} layers of the student are quantised ({some}): their kernels are frozen and "
            "learn nothing. Distil first and quantise afterwards, or use students.quantization_aware.",
            stacklevel=4,
        )
    if not isinstance(teacher, Teacher) and not teacher.built:
        warnings.warn(
            f"Distiller: the teacher {teacher.name!r} is not built, so it has no trained weights yet. "
            "Train it, or load its weights, before you distil.",
            stacklevel=4,
        )


_RENAMED = {
    "alpha": "student_loss_weight",
    "student_loss_fn": "compile(loss=...)",
    "distillation_loss_fn": "distillation_losses=LogitsDistillation(temperature=...)",
    "distillation_loss": "distillation_losses",
    "temperature": "distillation_losses=LogitsDistillation(temperature=...)",
    "loss_weights": "distillation_loss_weights",
    "teachers": "teacher=teachers.Ensemble([...])",
}


_RENAMED_IN_COMPILE = {
    "alpha": "student_loss_weight in Distiller(...)",
    "student_loss_fn": "loss",
    "distillation_loss_fn": "distillation_losses=LogitsDistillation(...) in Distiller(...)",
    "temperature": "distillation_losses=LogitsDistillation(temperature=...) in Distiller(...)",
}


def unexpected_arguments(owner: str, arguments: dict[str, Any], *, compiling: bool = False) -> None:
    """Raise ``ValueError`` for an argument of another library's distiller, naming its counterpart here.

    Args:
        owner: name shown in the message.
        arguments: the keyword arguments that are left over.
        compiling: whether they were given to ``compile``, where Keras takes no others; the constructor passes others
            on.

    Raises:
        TypeError: for a name that is known nowhere, if ``compiling``.
        ValueError: for a name that is known elsewhere.
    """
    for name in arguments:
        here = (_RENAMED_IN_COMPILE if compiling else _RENAMED).get(name)
        if here is not None:
            raise error(owner, here, f"{name}=", f"That is the name of {name} here")
        if compiling:
            raise TypeError(f"{owner}() got an unexpected keyword argument {name!r}")


def warn_of_probabilities(loss: Any, student: keras.Model) -> None:
    """Warn if Keras will treat logits as probabilities, as its cross-entropies do without ``from_logits=True``.

    Args:
        loss: as given to ``compile``.
        student: the model whose outputs the loss sees.
    """
    if not gives_logits(student):
        return
    for each in keras.tree.flatten(loss):
        kind = _loss_kind(each)
        configured = each.get_config() if isinstance(each, keras.losses.Loss) else {}
        if "crossentropy" in kind and not configured.get("from_logits", False):
            warnings.warn(
                f"Distiller.compile: the student {student.name!r} gives logits, but the loss {kind} takes its outputs "
                "for probabilities. Give an object with from_logits=True, such as "
                "keras.losses.SparseCategoricalCrossentropy(from_logits=True).",
                stacklevel=3,
            )
            return


def _is_arrays(x: Any) -> bool:
    flat = keras.tree.flatten(x)
    return bool(flat) and all(hasattr(array, "shape") and hasattr(array, "__len__") for array in flat)


def _check_batched(spec: Any, targets: Any, owner: str) -> None:
    parts = keras.tree.flatten((spec[0] if isinstance(spec, tuple) else spec, targets))
    ranks = [each.shape.rank for each in parts if isinstance(each, tf.TensorSpec)]
    if None in ranks:
        advice = "Give Dataset.from_generator an output_signature, or set the shapes with tf.ensure_shape in a map"
        raise error(owner, "a dataset that knows the rank of inputs and labels", "an unknown shape", advice)
    if 0 in ranks:
        raise error(owner, "batches of examples", "single examples", "Batch the dataset: dataset.batch(32)")


def _check_sizes(distiller: Any, x: Any, owner: str) -> None:
    """Refuse a single input whose size does not fit the student, or a teacher that is a plain model."""
    if isinstance(x, tf.data.Dataset):
        x = x.element_spec[0] if isinstance(x.element_spec, tuple) else x.element_spec
    teacher = getattr(distiller, "teacher", None)
    if keras.tree.is_nested(x) or teacher is None or isinstance(teacher, Teacher):  # a teacher of ours may split inputs
        return
    for role, model in (("teacher", teacher), ("student", distiller.student)):
        inputs = getattr(model, "inputs", None)
        if not inputs or len(inputs) != 1:
            continue
        wanted, got = tuple(inputs[0].shape)[1:], tuple(x.shape)[1:]
        if len(wanted) == len(got) and any(None not in (a, b) and a != b for a, b in zip(wanted, got, strict=True)):
            advice = "Give each model its own view: teachers.Preprocessed(teacher, fn, student_fn)"
            raise error(owner, f"inputs of shape {wanted} for the {role} {model.name!r}", got, advice)


def _check_ids(distiller: Any, x: Any, owner: str) -> None:
    """Refuse ids beyond the table of an embedding that reads them as given: XLA would take the table's last row."""
    models: list[Any] = [getattr(distiller, "teacher", None), distiller.student]
    for model in models:
        inputs = getattr(model, "inputs", None) or []
        for layer in getattr(model, "layers", ()) if inputs else ():
            if not isinstance(layer, keras.layers.Embedding):
                continue
            for place, tensor in enumerate(inputs):
                if layer.input is not tensor:
                    continue
                found = x.get(tensor.name) if isinstance(x, dict) else keras.tree.flatten(x)[place : place + 1]
                for ids in keras.tree.flatten(found):
                    if isinstance(ids, np.ndarray) and ids.size and (ids.min() < 0 or ids.max() >= layer.input_dim):
                        bad = ids.min() if ids.min() < 0 else ids.max()
                        raise wrong_id(owner, layer.input_dim, f"the embedding {layer.name!r} of {model.name!r}", bad)


def wrong_id(owner: str, size: int, where: str, found: Any) -> ValueError:
    """Return the error for an id that is no row of a table; a step finds what was not seen before training."""
    advice = "Check that the ids in the data fit the table's size"
    return error(owner, f"ids from 0 to {size - 1} for {where}", f"{found}", advice)


def _check_weights(sample_weight: Structure, owner: str) -> None:
    for each in keras.tree.flatten(sample_weight):
        if isinstance(each, np.ndarray) and each.dtype.kind == "f" and np.isnan(each).any():
            raise error(owner, "sample_weight without NaN", f"{int(np.isnan(each).sum())} NaN", "Use 0 to leave out")


def _is_text(value: Any) -> bool:
    kind = getattr(value, "dtype", None)
    return isinstance(value, (str, bytes)) or (
        kind is not None and (kind == tf.string or getattr(kind, "kind", "") in ("U", "S", "O"))
    )


def _check_text_inputs(student: Any, x: Any, owner: str) -> None:
    """Refuse texts for a student whose inputs are numbers."""
    inputs = getattr(student, "inputs", None)
    if not inputs or any(keras.backend.standardize_dtype(each.dtype) == "string" for each in inputs):
        return
    if isinstance(x, tf.data.Dataset):
        x = x.element_spec[0] if isinstance(x.element_spec, tuple) else x.element_spec
    x = x["inputs"] if isinstance(x, dict) and set(x) == {"inputs", "stored_teacher"} else x
    if isinstance(x, dict):  # fields that the student does not take may be of any kind
        other = extra_fields(x, student)
        x = {name: value for name, value in x.items() if name not in other}
    first = x[:1] if isinstance(x, list) else []
    given = first if any(map(_is_text, first)) else x  # a list may hold very many texts
    if any(_is_text(each) for each in keras.tree.flatten(given)):
        advice = "Number the words first: data.tokens with keras.layers.TextVectorization, or keras-hub's preprocessor"
        raise error(owner, f"numbers as inputs of {student.name!r}", "text", advice)


def _check_text(targets: Any, owner: str) -> None:
    for each in keras.tree.flatten(targets):
        if _is_text(each):
            advice = "Number the classes: keras.layers.StringLookup, or np.unique(y, return_inverse=True)"
            raise error(owner, "numeric labels", "text", advice)


def _loss_kind(loss: Any) -> str:
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return str(name).lower()


def _check_labels(distiller: Any, targets: Any, owner: str) -> None:
    outputs = getattr(distiller.student, "outputs", None)
    if not outputs or len(outputs) != 1:
        return
    shape, kind = tuple(outputs[0].shape), _loss_kind(distiller.loss)
    if isinstance(targets, (np.ndarray, tf.Tensor)):
        of_terms = [getattr(term, "loss", None) for term in distiller.distillation_losses]
        for loss in keras.tree.flatten([distiller.loss, *of_terms]):
            if isinstance(loss, LogitsLoss):
                loss.check_labels(np.asarray(targets), shape)
    got, rank, classes = tuple(targets.shape), len(targets.shape), shape[-1]
    column = rank == len(shape) and got[-1] == 1
    if kind in _SPARSE and rank != len(shape) - 1 and not column:
        advice = "Use CategoricalCrossentropy for one-hot labels" if got[-1] == classes else "Check the shape of y"
        raise error(owner, f"integer labels of rank {len(shape) - 1} for {kind}", f"shape {got}", advice)
    places, wanted = got[1 : len(shape) - 1], shape[1:-1]
    if kind in _SPARSE and any(None not in (a, b) and a != b for a, b in zip(places, wanted, strict=True)):
        raise error(owner, f"labels of shape {wanted} for each example, as the outputs have", f"{places}")
    if kind in _DENSE and (rank != len(shape) or got[-1] != classes):
        advice = "Use SparseCategoricalCrossentropy for integer labels"
        raise error(owner, f"one-hot labels with {classes} columns for {kind}", f"shape {got}", advice)
    if kind not in _SPARSE and not distiller.terms_that_need_labels:
        return
    if isinstance(targets, (np.ndarray, tf.Tensor)) and classes is not None and (rank == len(shape) - 1 or column):
        ids = np.asarray(targets)
        ignored = getattr(distiller.loss, "ignore_class", None)
        ids = ids[ids != ignored] if ignored is not None else ids
        terms = distiller.distillation_losses
        if not ids.size and rank > 1 and not column and terms and all(map(_leaves_void_out, terms)):
            raise error(owner, "a label that is not void", f"only {ignored}", "Nothing would be learned from such data")
        if kind not in _SPARSE and ids.ndim > 1:
            ids = ids[ids >= 0]  # negative labels mark padding, which no term reads
        if ids.size and not np.issubdtype(ids.dtype, np.bool_) and (ids.min() < 0 or ids.max() >= classes):
            raise wrong_label(owner, classes, (ids.min() if ids.min() < 0 else ids.max()).item())


def _leaves_void_out(term: Any) -> bool:
    return isinstance(term, LogitsDistillation) and term.ignore_label is not None


def wrong_label(owner: str, classes: int, label: Any) -> ValueError:
    """Return the error for a label that is no class of the student; a step finds what was not seen before training."""
    advice = "Check that the labels fit the number of classes of the student's output"
    return error(owner, f"labels from 0 to {classes - 1}", label, advice)
