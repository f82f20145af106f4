"""Tests of attributions: deletion and insertion curves, and maps of a model with random weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_distill import taps
from keras_distill._checks import choice, error, integer
from keras_distill.explain._attributions import METHODS, attributions
from keras_distill.explain._maps import spearman
from keras_distill.explain._models import compiled_call, explained_model, logits_of, numeric_inputs, targets_of
from keras_distill.explain._untrained import untrained


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Probability of the explained class while numbers are removed or restored, most important first.

    Args:
        fractions: (steps + 1,), fraction of the numbers changed so far.
        probabilities: (steps + 1,), mean over the examples.
        random: (steps + 1,), the same in random order: the floor of an insertion, the ceiling of a deletion.

    Example:
        >>> Curve(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 0.0]), np.array([1.0, 1.0, 0.0])).area
        0.5
    """

    fractions: np.ndarray
    probabilities: np.ndarray
    random: np.ndarray

    @property
    def area(self) -> float:
        """Area under the curve: small is good for a deletion, large for an insertion."""
        return float(np.trapezoid(self.probabilities, self.fractions))

    @property
    def random_area(self) -> float:
        """Area under the curve of the random order."""
        return float(np.trapezoid(self.random, self.fractions))


def importance_curve(
    model: Any,
    x: Any,
    maps: Any,
    *,
    kind: str = "deletion",
    target: Any = None,
    steps: int = 20,
    baseline: float = 0.0,
    seed: int = 0,
) -> Curve:
    """Remove or restore numbers in order of their attribution and record the probability of the answer.

    Args:
        model: a Keras model or a teacher, with logits.
        x: (examples, ...), at least one.
        maps: attributions of the same shape; the channels of an image's position are changed together.
        kind: ``"deletion"`` (from the input to the baseline) or ``"insertion"`` (from the baseline to the input).
        target: class ids; None takes the model's answer to ``x``.
        steps: >= 1, points of the curve besides the first.
        baseline: value that replaces a removed number.
        seed: seed of the random order.

    Returns:
        The curve, with that of a random order.

    Raises:
        ValueError: if shapes differ, or an argument does not fit.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
        >>> model.set_weights([np.array([[9.0, 0.0], [0.0, 0.0], [0.0, 0.0]])])
        >>> importance_curve(model, np.ones((1, 3)), np.array([[1.0, 0.0, 0.0]]), steps=3).probabilities.round(2)
        array([1. , 0.5, 0.5, 0.5])

    Reference:
        Petsiuk, Das, Saenko, "RISE", BMVC 2018, arXiv:1806.07421, section 4.2. Differs: a constant baseline for both.
    """
    owner = "explain.importance_curve"
    choice(owner, "kind", kind, ("deletion", "insertion"))
    integer(owner, "steps", steps, low=1)
    known = explained_model(owner, model, gradients=False)
    x, maps = numeric_inputs(owner, x), np.asarray(maps, "float64")
    if maps.shape != x.shape:
        raise error(owner, f"maps of shape {x.shape}", str(maps.shape))
    chosen = targets_of(owner, target, logits_of(owner, known, x))
    summed = maps.sum(-1, keepdims=True) if x.ndim == 4 else maps
    flat = summed.reshape(len(x), -1)
    rank = np.argsort(np.argsort(-flat, axis=-1, kind="stable"), axis=-1)
    shuffled = np.random.default_rng(seed).permuted(np.broadcast_to(np.arange(flat.shape[1]), flat.shape), axis=-1)
    fractions = np.linspace(0, 1, steps + 1)
    call, curves = compiled_call(known), []
    for position in (rank, shuffled):
        points = []
        for fraction in fractions:
            changed = (position < round(fraction * flat.shape[1])).reshape(summed.shape)
            shown = np.where(changed if kind == "deletion" else ~changed, np.float32(baseline), x)
            logits = np.concatenate([np.asarray(call(shown[i : i + 256]), "float64") for i in range(0, len(x), 256)])
            odds = np.exp(logits - logits.max(-1, keepdims=True))
            points.append((odds / odds.sum(-1, keepdims=True))[np.arange(len(x)), chosen].mean())
        curves.append(np.array(points))
    return Curve(fractions, *curves)


@dataclasses.dataclass(frozen=True)
class SanityCheck:
    """Similarity between the maps of a model and those of the same model with random weights.

    Args:
        randomized: paths of the layers, from the output down, whose weights were random at each stage.
        similarity: mean signed Spearman correlation with the model's maps at each stage.
        passed: whether the last value, with all weights random, is below the threshold.
    """

    randomized: tuple[tuple[str, ...], ...]
    similarity: tuple[float, ...]
    passed: bool


def sanity_check(
    model: keras.Model,
    x: Any,
    method: str = "gradient",
    *,
    stages: int = 3,
    threshold: float = 0.5,
    seed: int = 0,
    **settings: Any,
) -> SanityCheck:
    """Check that a method explains the model, not only the image: random weights must change its maps.

    Args:
        model: a Keras model with logits that can be recreated from its configuration.
        x: (examples, ...), at least one.
        method: as in ``attributions``.
        stages: >= 1; weights are randomised from the output down in this many equal parts.
        threshold: the correlation must be below it if all weights are random.
        seed: seed of the random weights.
        **settings: passed on to ``attributions``.

    Returns:
        The similarity at each stage, and whether the check passed.

    Raises:
        ValueError: if the model cannot be explained or copied.

    Reference:
        Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, arXiv:1810.03292. Differs: a few stages.
    """
    owner = "explain.sanity_check"
    choice(owner, "method", method, METHODS)
    integer(owner, "stages", stages, low=1)
    known = explained_model(owner, model, gradients=method != "occlusion")
    x = numeric_inputs(owner, x)
    answers = logits_of(owner, known, x).argmax(-1)
    own = attributions(known, x, method, target=answers, **settings)
    fresh, copy = untrained(known, x, seed), untrained(known, x, seed + 1)
    copy.set_weights(known.get_weights())
    pairs = [
        (path, layer, other)
        for (path, layer), (_, other) in zip(taps.walk(copy), taps.walk(fresh), strict=True)
        if layer.weights and next(taps.walk(layer), None) is None
    ]
    pairs = pairs[::-1] or [(copy.name, copy, fresh)]
    done, names, similarity = 0, [], []
    for end in np.unique(np.linspace(0, len(pairs), stages + 1).astype(int))[1:]:
        for _, layer, other in pairs[done:end]:
            layer.set_weights(other.get_weights())
        done = int(end)
        maps = attributions(copy, x, method, target=answers, **settings)
        names.append(tuple(path for path, _, _ in pairs[:done]))
        similarity.append(float(spearman(own, maps).mean()))
    return SanityCheck(tuple(names), tuple(similarity), similarity[-1] < threshold)
