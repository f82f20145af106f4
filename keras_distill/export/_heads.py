"""Interprets a student's outputs: logits or probabilities, one class, several labels or plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import taps
from keras_distill._checks import choice, error, nearest

TASKS = ("classification", "binary", "regression")
_FLOAT32_TINY = float(np.finfo(np.float32).tiny)
_FLOAT32_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


@dataclass(frozen=True)
class Head:
    """One output of a student and its interpretation.

    Args:
        prefix: prefix of every served name: empty for a student with one output, else ``"<output>_"``.
        task: ``"classification"`` (softmax over the last axis), ``"binary"`` (sigmoid per unit) or ``"regression"``.
        from_logits: whether the student returns logits rather than probabilities.
        certain: whether ``from_logits`` was given or read from the model; if not, values are checked before export.
        labels: class names, or None.
        temperature: logits are divided by it before they become probabilities.
        uncertainty: whether entropy and confidence are served.
    """

    prefix: str
    task: str
    from_logits: bool
    certain: bool
    labels: tuple[str, ...] | None = None
    temperature: float = 1.0
    uncertainty: bool = False

    def outputs(self, raw: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turn the student's output into the served tensors, in float32, inside the graph.

        Args:
            raw: the student's output.

        Returns:
            Tensors by served name, prefix included.
        """
        raw = tf.cast(raw, tf.float32)
        if self.task == "regression":
            return {f"{self.prefix}values": raw}
        if self.from_logits:
            logits = raw
        elif self.task == "classification":
            logits = tf.math.log(tf.maximum(raw, _FLOAT32_TINY))
        else:
            inside = tf.clip_by_value(raw, _FLOAT32_TINY, _FLOAT32_BELOW_ONE)
            logits = tf.math.log(inside) - tf.math.log1p(-inside)
        as_given = not self.from_logits and self.temperature == 1.0
        scaled = logits / self.temperature if self.temperature != 1.0 else logits
        if self.task == "classification":
            out = _softmax_outputs(logits, raw if as_given else None, scaled)
        else:
            out = _sigmoid_outputs(logits, raw if as_given else None, scaled)
        entropy, confidence = out.pop("entropy"), out.pop("confidence")
        if self.uncertainty:
            out.update(entropy=entropy, confidence=confidence)
        if self.labels is not None:
            named = out["probabilities"]
            if self.task == "binary" and named.shape[-1] == 1:
                named = tf.concat([1.0 - named, named], axis=-1)
            scores, order = tf.math.top_k(named, k=len(self.labels))
            out.update(scores=scores, labels=tf.gather(tf.constant(self.labels), order))
        return {f"{self.prefix}{name}": value for name, value in out.items()}

    def expected(self, raw: np.ndarray) -> dict[str, np.ndarray]:
        """Recompute the numeric outputs in float64 NumPy, as a reference for an export.

        Args:
            raw: what the Keras student gives.

        Returns:
            Arrays by served name, without labels and their order.
        """
        raw = np.asarray(raw).astype(np.float64)
        if self.task == "regression":
            return {f"{self.prefix}values": raw}
        if self.from_logits:
            logits = raw
        elif self.task == "classification":
            logits = np.log(np.maximum(raw, _FLOAT32_TINY))
        else:
            inside = np.clip(raw, _FLOAT32_TINY, _FLOAT32_BELOW_ONE)
            logits = np.log(inside) - np.log1p(-inside)
        scaled = logits / self.temperature
        if self.task == "classification":
            with np.errstate(over="ignore"):
                shifted = np.exp(scaled - scaled.max(-1, keepdims=True))
            probabilities = shifted / shifted.sum(-1, keepdims=True)
        else:
            probabilities = np.exp(-np.logaddexp(0.0, -scaled))
        if not self.from_logits and self.temperature == 1.0:
            probabilities = raw
        out = {"probabilities": probabilities, "logits": logits}
        if self.uncertainty:
            out.update(_expected_uncertainty(self.task, probabilities))
        return {f"{self.prefix}{name}": value for name, value in out.items()}

    def check_values(self, owner: str, raw: np.ndarray) -> None:
        """Refuse outputs that contradict ``from_logits``, or that look like probabilities from an opaque model.

        Args:
            owner: name shown in the error message.
            raw: the Keras student's outputs for the check inputs.

        Raises:
            ValueError: if a value is not finite, or ``from_logits`` must be given.
        """
        raw = np.asarray(raw).astype(np.float64)
        where = f"output '{self.prefix[:-1]}'" if self.prefix else "the student's output"
        finite = np.isfinite(raw) | (np.isneginf(raw) & (self.task == "classification" and self.from_logits))
        if not finite.all():
            raise error(
                owner,
                f"finite values from {where} for the check inputs",
                f"{int((~finite).sum())} that are not",
                "Pass check_inputs with real examples, and check that the student's weights are finite",
            )
        if self.task == "regression":
            return
        unit = bool(((raw >= 0) & (raw <= 1)).all())
        if self.task == "classification":
            unit = unit and bool((abs(raw.sum(-1) - 1) < 1e-2).all())
        if self.from_logits and not self.certain and unit:
            raise error(
                owner,
                "from_logits to be given for a model whose last activation is unknown",
                f"None, and {where} that is a probability for every check input",
                "Pass from_logits=False for a softmax or sigmoid head, from_logits=True for logits",
            )
        if not self.from_logits and not unit:
            raise error(
                owner, f"probabilities from {where} (from_logits=False)", "other values", "Pass from_logits=True"
            )


def _softmax_outputs(logits: tf.Tensor, given: tf.Tensor | None, scaled: tf.Tensor) -> dict[str, tf.Tensor]:
    probabilities = tf.nn.softmax(scaled) if given is None else given
    log_probabilities = tf.nn.log_softmax(scaled)
    entropy = -tf.reduce_sum(tf.math.multiply_no_nan(log_probabilities, probabilities), axis=-1)
    return {
        "probabilities": probabilities,
        "logits": tf.identity(logits),
        "classes": tf.argmax(logits, axis=-1),
        "entropy": entropy,
        "confidence": tf.reduce_max(probabilities, axis=-1),
    }


def _sigmoid_outputs(logits: tf.Tensor, given: tf.Tensor | None, scaled: tf.Tensor) -> dict[str, tf.Tensor]:
    probabilities = tf.sigmoid(scaled) if given is None else given
    classes = tf.cast(logits > 0, tf.int64)
    # H(p) = p * softplus(-z) + (1 - p) * softplus(z), for p = sigmoid(z)
    entropy = probabilities * tf.nn.softplus(-scaled) + (1.0 - probabilities) * tf.nn.softplus(scaled)
    confidence = tf.maximum(probabilities, 1.0 - probabilities)
    out = {"probabilities": probabilities, "logits": tf.identity(logits)}
    per_unit = {"classes": classes, "entropy": entropy, "confidence": confidence}
    if logits.shape[-1] == 1:
        per_unit = {name: tf.squeeze(value, -1) for name, value in per_unit.items()}
    return {**out, **per_unit}


def _expected_uncertainty(task: str, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    def plogp(p: np.ndarray) -> np.ndarray:
        return p * np.log(np.where(p > 0, p, 1.0))

    if task == "classification":
        return {"entropy": -plogp(probabilities).sum(-1), "confidence": probabilities.max(-1)}
    other = 1.0 - probabilities
    out = {"entropy": -plogp(probabilities) - plogp(other), "confidence": np.maximum(probabilities, other)}
    if probabilities.shape[-1] == 1:
        out = {name: value[..., 0] for name, value in out.items()}
    return out


def describe_heads(
    owner: str,
    student: keras.Model,
    output_specs: Mapping[str, Any],
    *,
    task: Any = None,
    from_logits: Any = None,
    labels: Any = None,
    temperature: float = 1.0,
    uncertainty: bool = False,
) -> list[Head]:
    """Determine how to interpret each output of ``student``, from the arguments or from its last layers.

    Args:
        owner: name shown in the error message.
        student: a built model.
        output_specs: shape and dtype by output name, in order; one entry for a student with one output.
        task: one of ``TASKS`` for every output, or a dictionary by output name; None decides from the model.
        from_logits: True, False, a dictionary by output name, or None to inspect the last activation.
        labels: class names, or a dictionary of them by output name, or None.
        temperature: calibration temperature, above 0.
        uncertainty: whether entropy and confidence are served.

    Returns:
        One head per output, in order.

    Raises:
        ValueError: if an argument names an unknown output or does not fit the output's shape.
    """
    several = len(output_specs) > 1
    activations = _seen_activations(student, len(output_specs))
    heads = []
    for (name, spec), activation in zip(output_specs.items(), activations, strict=True):
        units = spec.shape[-1] if len(spec.shape) > 1 else None
        stated_task = _per_output(owner, "task", task, name, output_specs, several)
        stated_logits = _per_output(owner, "from_logits", from_logits, name, output_specs, several)
        class_names = _per_output(owner, "labels", labels, name, output_specs, several)
        if stated_task is not None:
            choice(owner, "task", stated_task, TASKS)
        if stated_logits not in (None, True, False):
            raise error(owner, "from_logits to be True, False or None", stated_logits)
        if stated_logits is True and activation in ("softmax", "sigmoid"):
            raise error(owner, f"from_logits=False for a head that ends in {activation}", True)
        chosen = stated_task or ("binary" if activation == "sigmoid" or units == 1 else "classification")
        if units is None and stated_task is None:
            chosen = "regression"
        if chosen == "classification" and units == 1:
            raise error(owner, "task='binary' or 'regression' for a one-unit output", "'classification'")
        read_as_logits = stated_logits if stated_logits is not None else activation not in ("softmax", "sigmoid")
        certain = stated_logits is not None or activation is not None
        class_names = None if chosen == "regression" else _check_labels(owner, class_names, chosen, units)
        prefix = f"{name}_" if several else ""
        heads.append(Head(prefix, chosen, read_as_logits, certain, class_names, temperature, uncertainty))
    return heads


def _per_output(owner: str, argument: str, value: Any, name: str, known: Mapping[str, Any], several: bool) -> Any:
    if isinstance(value, Mapping):
        for key in value:
            if key not in known:
                raise error(owner, f"{argument} by output name ({nearest(str(key), known)})", repr(key))
        return value.get(name)
    if several and argument == "labels" and value is not None:
        raise error(owner, "labels as a dictionary by output name for several outputs", type(value).__name__)
    return value


def _check_labels(owner: str, labels: Any, task: str, units: int | None) -> tuple[str, ...] | None:
    if labels is None:
        return None
    if isinstance(labels, str | bytes) or not isinstance(labels, Sequence | np.ndarray):
        raise error(owner, "labels to be a list of class names", labels)
    names = tuple(str(label) for label in labels)
    if any(0xD800 <= ord(letter) < 0xE000 for name in names for letter in name):
        raise error(owner, "labels that UTF-8 can hold", list(names))
    count = 2 if task == "binary" and units == 1 else units
    if len(names) != count:
        raise error(owner, f"{count} labels, one per class", len(names))
    if len(set(names)) != len(names):
        raise error(owner, "distinct labels", list(names))
    return names


def _seen_activations(student: keras.Model, count: int) -> list[str | None]:
    """Return for each output whether it certainly ends in softmax, sigmoid or linear; None if unknown."""
    found = taps.final_activation(student)
    if len(found) != count:
        return [None] * count
    layers = {layer.name: layer for layer in student.layers}
    if isinstance(student, keras.Sequential):
        names = [student.layers[-1].name]
    else:
        names = list(getattr(student, "output_names", [])) or [""] * count
    for position, name in enumerate(names):
        layer = layers.get(name)
        # an Activation("linear") only casts; the layer before it, which is not inspected, decides
        opaque = layer is None or isinstance(layer, keras.layers.Activation)
        if found[position] is None and not opaque and getattr(layer, "activation", None) is keras.activations.linear:
            found[position] = "linear"
    return found
