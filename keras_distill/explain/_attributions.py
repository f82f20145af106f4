"""Attributions, the contribution of each input number to one logit: five methods in one function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import taps
from keras_distill._checks import choice, error, integer, nearest, number
from keras_distill.explain._models import explained_model, logits_of, numeric_inputs, targets_of, traced

#: The methods of ``attributions``.
METHODS = ("gradient", "integrated", "smooth", "grad_cam", "occlusion")
_OWNER = "explain.attributions"
_STEPS = (32, 128, 512, 2048)  # tried in turn unless the user fixes the number
_SLACK = 1e-3  # logits; absolute tolerance of the completeness check, for outputs that hardly differ


def attributions(
    model: Any,
    x: Any,
    method: str = "gradient",
    *,
    target: Any = None,
    baseline: Any = None,
    steps: int | None = None,
    tolerance: float = 0.01,
    samples: int = 25,
    noise: float = 0.15,
    seed: int = 0,
    layer_name: str | None = None,
    patch_size: int | None = None,
    batch_size: int = 64,
) -> np.ndarray:
    """Return the contribution of each number of an input to a model's logit.

    ``"gradient"`` is the cheapest and the noisiest; ``"integrated"`` adds up to the difference of the logits and is
    the most reliable for tables and images; ``"smooth"`` is a gradient with less noise; ``"grad_cam"`` shows where a
    convolutional network looks, at the resolution of its maps; ``"occlusion"`` needs no gradients.

    Formula, for the logit f of the target class, input x and baseline b:
    gradient: df/dx. integrated: (x - b) * mean over steps of df/dx at b + a * (x - b), a = (i + 1/2) / steps.
    smooth: mean over samples of df/dx at x + noise * (max x - min x) * normal.
    grad_cam: max(0, sum_c mean_positions(df/dF_c) * F_c) of the layer's maps F, resized bilinearly to the input, equal
    in every channel. occlusion: f(x) - f(x with a patch set to the baseline), for each number of that patch.

    Args:
        model: a Keras model with one numeric input and one output, logits; or a teacher (``"occlusion"`` only, except
            for ``teachers.Single``).
        x: (examples, ...), at least one.
        method: ``"gradient"``, ``"integrated"``, ``"smooth"``, ``"grad_cam"`` or ``"occlusion"``.
        target: the class to explain, one id or one per example; None explains each predicted class.
        baseline: the uninformative input, a number or an array of an example's shape; None means zeros.
        steps: >= 1, for ``"integrated"``; None tries 32, 128, 512 and 2048 until complete.
        tolerance: > 0, largest error of completeness relative to the difference of the logits (plus 0.001 logits).
        samples: >= 1, number of noisy copies for ``"smooth"``.
        noise: > 0, standard deviation for ``"smooth"`` as a fraction of each example's range.
        seed: seed of that noise.
        layer_name: the tap whose maps ``"grad_cam"`` uses; None takes the last layer that outputs maps.
        patch_size: >= 1, side of the patches for ``"occlusion"``; None means a seventh of an image's longer side, and
            1 for tables and sequences.
        batch_size: >= 1, examples (or copies of them) per pass.

    Returns:
        float32 of the shape of ``x``.

    Raises:
        ValueError: if there are no examples, inputs are texts, the model has no gradient or outputs probabilities, the
            layer outputs no maps, or the integral is not complete within ``tolerance``.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.set_weights([np.array([[2.0], [-3.0]])])
        >>> attributions(model, np.array([[1.0, 2.0]]), method="integrated")
        array([[ 2., -6.]], dtype=float32)

    Reference:
        Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, arXiv:1703.01365; Smilkov et al.,
        "SmoothGrad", 2017, arXiv:1706.03825; Selvaraju et al., "Grad-CAM", ICCV 2017, arXiv:1610.02391; Zeiler,
        Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, arXiv:1311.2901.
        Differs: midpoint rule; occlusion patches do not overlap.
    """
    choice(_OWNER, "method", method, METHODS)
    integer(_OWNER, "batch_size", batch_size, low=1)
    integer(_OWNER, "samples", samples, low=1)
    number(_OWNER, "noise", noise, above=0)
    number(_OWNER, "tolerance", tolerance, above=0)
    known = explained_model(_OWNER, model, gradients=method != "occlusion")
    x = numeric_inputs(_OWNER, x)
    blank = _baseline(baseline, x)
    chosen = targets_of(_OWNER, target, logits_of(_OWNER, known, x, batch_size))
    if method == "occlusion":
        return _occlusion(known, x, chosen, blank, patch_size, batch_size)
    if method == "grad_cam":
        return _in_batches(grad_cam_function(known, layer_name, x), x, chosen, batch_size)
    traced = gradient_function(known)
    gradient = functools.partial(_in_batches, traced, batch_size=batch_size)
    if method == "gradient":
        return gradient(x, chosen)
    if method == "smooth":
        return _smooth(gradient, x, chosen, samples, noise, seed)
    return _integrated(known, traced, x, chosen, blank, steps, tolerance, batch_size)


def gradient_function(model: keras.Model) -> Callable[[Any, Any], Any]:
    """Return a traced function from inputs and classes to the gradient of these logits."""

    @traced
    def gradient(x: Any, target: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = model(x, training=False)
            picked = tf.gather(tf.cast(logits, tf.float32), target, axis=-1, batch_dims=1)
        found = tape.gradient(picked, x)
        if found is None:
            raise no_gradient(model)
        return tf.convert_to_tensor(found)

    return gradient


def no_gradient(model: keras.Model) -> ValueError:
    """Return the error for a model whose output is not differentiable in its input."""
    tree = getattr(model, "inference", None) == "greatest_path"
    advice = "Set tree.inference = 'mean'" if tree else "Use method='occlusion'"
    return error(_OWNER, "a model with gradients", f"{model.name!r}, which has no gradient for its input", advice)


def grad_cam_function(model: keras.Model, layer_name: str | None, x: np.ndarray) -> Callable[[Any, Any], Any]:
    """Return a traced function from images and classes to class-activation maps, resized to the images."""
    if x.ndim != 4:
        advice = "Use method='integrated' for tables"
        raise error(_OWNER, "images of shape (examples, height, width, channels)", f"shape {x.shape}", advice)
    shapes = taps.list_taps(model, print_fn=None)
    maps = [name for name, shape in shapes.items() if isinstance(shape, tuple) and len(shape) == 4]
    if layer_name is None:
        if not maps:
            advice = "Give layer_name, or use method='integrated'"
            raise error(_OWNER, "a model with a layer that gives maps", f"{model.name!r}, where none is known", advice)
        layer_name = maps[-1]
    tapped = taps.Taps(model, [layer_name], owner=_OWNER)

    @traced
    def cam(images: Any, target: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits, found = tapped(images, training=False)
            features = found[layer_name]
            if keras.tree.is_nested(features) or len(features.shape) != 4:
                known = f"Layers with maps: {nearest(layer_name, maps)}"
                raise error(_OWNER, "a layer that gives maps (examples, height, width, channels)", layer_name, known)
            picked = tf.gather(tf.cast(logits, tf.float32), target, axis=-1, batch_dims=1)
        slope = tape.gradient(picked, features)
        if slope is None:
            raise error(_OWNER, "a layer that the output depends on", layer_name)
        return tf.image.resize(class_activation(slope, features), tf.shape(images)[1:3]) * tf.ones_like(images)

    return cam


def class_activation(slope: Any, features: Any) -> Any:
    """Return Grad-CAM's map, (batch, height, width, 1) >= 0, from a layer's maps and the logit's gradient there."""
    weight = tf.reduce_mean(tf.cast(slope, tf.float32), axis=(1, 2), keepdims=True)
    return tf.nn.relu(tf.reduce_sum(weight * tf.cast(features, tf.float32), axis=-1, keepdims=True))


def _in_batches(function: Callable[..., Any], x: np.ndarray, target: np.ndarray, batch_size: int) -> np.ndarray:
    parts = []
    for start in range(0, len(x), batch_size):
        stop = start + batch_size
        parts.append(np.asarray(function(tf.constant(x[start:stop]), tf.constant(target[start:stop]))))
    return np.concatenate(parts).astype("float32")


def _baseline(baseline: Any, x: np.ndarray) -> np.ndarray:
    try:
        return np.broadcast_to(np.asarray(0.0 if baseline is None else baseline, "float32"), x.shape[1:])
    except ValueError:
        expected = f"baseline to be a number or an array of shape {x.shape[1:]}"
        raise error(_OWNER, expected, f"shape {np.shape(baseline)}") from None


def _smooth(
    gradient: Callable[..., np.ndarray], x: np.ndarray, target: np.ndarray, samples: int, noise: float, seed: int
) -> np.ndarray:
    axes = tuple(range(1, x.ndim))
    scale = noise * (x.max(axes, keepdims=True) - x.min(axes, keepdims=True))
    rng, total = np.random.default_rng(seed), np.zeros_like(x)
    for _ in range(samples):
        total += gradient(x + scale * rng.standard_normal(x.shape, "float32"), target)
    return total / np.float32(samples)


def _integral(gradient: Callable[[Any, Any], Any], blank: np.ndarray, count: int) -> Callable[[Any, Any], Any]:
    """Return a traced function from inputs and classes to the integrated gradient, by the midpoint rule."""

    @traced
    def integral(x: Any, target: Any) -> Any:
        way = x - blank
        total = tf.zeros_like(x)
        for step in tf.range(count):
            total += gradient(blank + way * ((tf.cast(step, tf.float32) + 0.5) / float(count)), target)
        return way * total / float(count)

    return integral


def _integrated(
    model: keras.Model,
    gradient: Callable[[Any, Any], Any],
    x: np.ndarray,
    target: np.ndarray,
    blank: np.ndarray,
    steps: int | None,
    tolerance: float,
    batch_size: int,
) -> np.ndarray:
    """Integrate with increasing numbers of steps until every example is complete; raise if some never are."""
    plan = _STEPS if steps is None else (integer(_OWNER, "steps", steps, low=1),)
    at_input = np.take_along_axis(logits_of(_OWNER, model, x), target[:, None], 1)[:, 0]
    at_blank = logits_of(_OWNER, model, blank[None])[0][target]
    difference = at_input - at_blank
    found, missing = np.zeros_like(x), np.arange(len(x))
    for count in plan:
        found[missing] = _in_batches(_integral(gradient, blank, count), x[missing], target[missing], batch_size)
        wrong = np.abs(found[missing].reshape(len(missing), -1).sum(1, dtype="float64") - difference[missing])
        failed = wrong > tolerance * np.abs(difference[missing]) + _SLACK
        worst = float((wrong / np.maximum(np.abs(difference[missing]), 1e-12))[failed].max()) if failed.any() else 0.0
        missing = missing[failed]
        if not len(missing):
            return found
    got = f"{len(missing)} of {len(x)} examples that do not, up to {100 * worst:.1f}% off at {plan[-1]} steps"
    expected = f"attributions that add up to the difference of the logits within {100 * tolerance:g}%"
    raise error(_OWNER, expected, got, "Raise steps (ReLU and BatchNorm need hundreds), or tolerance")


def _occlusion(
    model: keras.Model, x: np.ndarray, target: np.ndarray, blank: np.ndarray, patch_size: int | None, batch_size: int
) -> np.ndarray:
    image = x.ndim == 4
    side = max(1, max(x.shape[1:3]) // 7) if image else 1
    side = side if patch_size is None else integer(_OWNER, "patch_size", patch_size, low=1)
    before = np.take_along_axis(logits_of(_OWNER, model, x, batch_size), target[:, None], 1)[:, 0]
    found = np.zeros_like(x)
    rows = [(slice(i, i + side),) for i in range(0, x.shape[1], side)]
    patches: list[tuple[slice, ...]] = list(rows)
    if image:
        columns = [slice(j, j + side) for j in range(0, x.shape[2], side)]
        patches = [(row, column) for (row,) in rows for column in columns]
    call = traced(lambda batch: model(batch, training=False))
    for patch in patches:
        hidden = x.copy()
        hidden[(slice(None), *patch)] = blank[patch]
        parts = [np.asarray(call(hidden[i : i + batch_size])) for i in range(0, len(x), batch_size)]
        after = np.take_along_axis(np.concatenate(parts), target[:, None], 1)[:, 0]
        found[(slice(None), *patch)] = (before - after).reshape(-1, *(1,) * (x.ndim - 1))
    return found
