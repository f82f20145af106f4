"""Merges models of one architecture by averaging their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_distill._checks import error, number
from keras_distill.teachers._copied import copied


def average_weights(
    models: Sequence[keras.Model], weights: Sequence[float] | None = None, *, recompute: Any = None
) -> keras.Model:
    """Return a new model whose weights are the mean of those of several models (weight averaging, model soup).

    Choose it for models trained from a common start: models from different starts lie in different basins, and their
    mean is useless. Averaged BatchNormalization statistics are wrong: give data to recompute them.

    Args:
        models: one or more built models of one architecture.
        weights: >= 0, one for each model, scaled to sum 1; equal if None (federated averaging uses example counts).
        recompute: batches of inputs, ``tf.data.Dataset`` or a list of arrays, on which the moving statistics are
            recomputed as plain means over batches; None averages them too.

    Returns:
        A new model; the given ones are not changed.

    Raises:
        ValueError: if there is no model, the architectures differ, or the weights do not fit.

    Example:
        >>> import keras, numpy as np
        >>> one, two = (keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)]) for _ in "ab")
        >>> one.set_weights([np.array([[1.0]])]), two.set_weights([np.array([[3.0]])])
        (None, None)
        >>> float(average_weights([one, two], [1, 3]).get_weights()[0][0, 0])
        2.5

    Reference:
        Wortsman et al., "Model Soups", ICML 2022, arXiv:2203.05482 (the uniform soup); McMahan et al., "Communication-
        Efficient Learning of Deep Networks from Decentralized Data", 2017, arXiv:1602.05629. Differs: nothing.
    """
    owner = "average_weights"
    models = _same_architecture(owner, models)
    shares = (
        np.ones(len(models)) if weights is None else np.array([number(owner, "weights", w, low=0) for w in weights])
    )
    if len(shares) != len(models) or not shares.sum():
        raise error(owner, f"{len(models)} weights that are not all 0", list(shares))
    shares = shares / shares.sum()
    made = copied(owner, models[0])
    mixed = []
    for parts in zip(*(model.get_weights() for model in models), strict=True):
        if np.issubdtype(parts[0].dtype, np.integer) or parts[0].dtype == bool:
            mixed.append(parts[0])
        else:
            total = sum(share * part.astype("float64") for share, part in zip(shares, parts, strict=True))
            mixed.append(total.astype(parts[0].dtype))
    made.set_weights(mixed)
    if recompute is not None:
        recompute_statistics(made, recompute)
    return made


def recompute_statistics(model: keras.Model, batches: Any) -> None:
    """Recompute BatchNormalization's moving statistics as plain means over batches.

    Args:
        model: a built model, changed in place.
        batches: inputs, ``tf.data.Dataset`` or a list of arrays.
    """
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    before = [layer.momentum for layer in norms]
    try:
        for number_of, batch in enumerate(batches):
            inputs = keras.utils.unpack_x_y_sample_weight(batch)[0]
            for layer in norms:
                layer.momentum = number_of / (number_of + 1)
            model(inputs, training=True)
    finally:
        for layer, momentum in zip(norms, before, strict=True):
            layer.momentum = momentum


def greedy_soup(models: Sequence[keras.Model], validation_data: tuple[Any, Any], *, recompute: Any = None) -> Any:
    """Return the average of those models that do not lower the held-out accuracy (greedy soup).

    Models are tried in the order of their own accuracy; each is kept if the average with it is at least as accurate as
    before.

    Args:
        models: two or more built models of one architecture, whose outputs are logits or probabilities.
        validation_data: (inputs, integer labels) that no model was trained on. The soup's accuracy on them is biased,
            because they selected it.
        recompute: as in ``average_weights``.

    Returns:
        A new model.

    Raises:
        ValueError: if there are fewer than two models or the architectures differ.

    Reference:
        Wortsman et al., "Model Soups", ICML 2022, arXiv:2203.05482, recipe 1. Differs: nothing.
    """
    models = _same_architecture("greedy_soup", models)
    if len(models) < 2:
        raise error("greedy_soup", "two or more models", len(models))
    x, y = validation_data
    ordered = sorted(models, key=lambda model: -accuracy(model, x, y))
    kept, soup = [ordered[0]], ordered[0]
    best = accuracy(soup, x, y)
    for model in ordered[1:]:
        tried = average_weights([*kept, model], recompute=recompute)
        score = accuracy(tried, x, y)
        if score >= best:
            kept, soup, best = [*kept, model], tried, score
    return average_weights(kept, recompute=recompute)


def accuracy(model: keras.Model, x: Any, y: Any) -> float:
    """Return the share of examples whose largest output is the label.

    Args:
        model: a model with one output per class.
        x: inputs.
        y: integer labels.
    """
    return float(np.mean(np.asarray(model.predict(x, verbose=0)).argmax(-1) == np.asarray(y).reshape(-1)))


def same_shapes(models: Sequence[keras.Model]) -> bool:
    """Return whether models have weights of the same shapes, in the same order.

    Args:
        models: built models.
    """
    shapes = [[tuple(weight.shape) for weight in model.weights] for model in models]
    return all(each == shapes[0] for each in shapes)


def _computes(layer: Any) -> tuple[str, Any, Any]:
    """Return what distinguishes layers that compute different functions of the same weights."""
    activation = getattr(layer, "activation", None)
    return type(layer).__name__, getattr(activation, "__name__", activation), getattr(layer, "negative_slope", None)


def _same_architecture(owner: str, models: Any) -> list[keras.Model]:
    if not isinstance(models, (list, tuple)) or not models:
        raise error(owner, "a list of models", models)
    for model in models:
        if not isinstance(model, keras.Model) or not model.built:
            raise error(owner, "built Keras models", model, "Call each once on a batch")
    kinds = [[_computes(layer) for layer in model._flatten_layers()] for model in models]
    if not same_shapes(models) or any(kind != kinds[0] for kind in kinds):
        raise error(
            owner, "models of one architecture", "layers or weights that differ", "Distil instead: regimes.fuse"
        )
    return list(models)
