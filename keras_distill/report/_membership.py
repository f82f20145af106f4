"""Membership inference audit: the loss attack, calibrated by shadow models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_distill._checks import error, integer

_FALSE_POSITIVE_RATE = 0.01
Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Membership:
    """How well an attacker separates training examples from others by their loss, with 95% bootstrap intervals.

    Args:
        auc: 0..1, probability that a member scores higher than a non-member; 0.5 is guessing.
        auc_interval: its lower and upper bound.
        advantage: 0..1, largest difference of true and false positive rate. It is never negative, so guessing gives a
            value slightly above zero.
        advantage_interval: its lower and upper bound.
        true_positive_rate: 0..1, fraction of members found at a false positive rate of at most 1%; 0.01 is guessing.
        true_positive_rate_interval: its lower and upper bound.
        num_members: number of examples on which the model was trained.
        num_non_members: number of other examples.
        num_shadow_models: number of models that calibrate the scores; 0 is the plain loss attack.
    """

    auc: float
    auc_interval: Interval
    advantage: float
    advantage_interval: Interval
    true_positive_rate: float
    true_positive_rate_interval: Interval
    num_members: int
    num_non_members: int
    num_shadow_models: int = 0

    def __str__(self) -> str:
        """Return the three numbers with their intervals, as one line."""
        shown = ", ".join(
            f"{name} {value:.3f} ({low:.3f} to {high:.3f})"
            for name, value, (low, high) in (
                ("AUC", self.auc, self.auc_interval),
                ("advantage", self.advantage, self.advantage_interval),
                ("true positives at 1% false positives", self.true_positive_rate, self.true_positive_rate_interval),
            )
        )
        return f"Membership: {shown}"


def membership(
    model: keras.Model,
    members: Any,
    non_members: Any,
    shadow_models: Sequence[keras.Model] = (),
    *,
    from_logits: bool = True,
    batch_size: int = 256,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Membership:
    """Audit whether a classifier's losses reveal on which examples it, or its teacher, was trained.

    Choose it to compare models on the same examples. A low value is no guarantee: a stronger attack may exist, and
    single examples may be exposed even if the average is not. ``regimes.PrivateVotes`` gives a guarantee.

    Formula: score(x, y) = -loss(x, y), or with shadow models mean_s loss_s(x, y) - loss(x, y); losses are -log p(y|x).

    Args:
        model: outputs (examples, classes).
        members: ``(inputs, labels)`` of the training data, integer labels; or any ``data`` of ``report.evaluate``.
        non_members: the same kind of examples, never seen in training. They must come from the same distribution as
            the members; otherwise the audit measures the difference between the distributions.
        shadow_models: models of the same kind that saw neither; they measure the difficulty of each example.
        from_logits: whether the models output logits (the default) or probabilities.
        batch_size: >= 1, for predictions.
        num_resamples: >= 1, number of bootstrap resamples.
        seed: >= 0, seed of the bootstrap.

    Returns:
        The frozen ``Membership``.

    Raises:
        ValueError: if an example is in both sets, a loss is NaN, or an argument does not fit.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Activation("linear")])
        >>> known = np.array([[3.0, 0.0], [2.0, 0.0]]), np.array([0, 0])
        >>> membership(model, known, (np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 0]))).auc
        1.0

    Reference:
        Yeom et al., "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting", 2018,
        arXiv:1709.01604 (the loss attack, its advantage); Watson et al., "On the Importance of Difficulty Calibration
        in Membership Inference Attacks", 2022, arXiv:2111.08440 (shadow models). Differs: the threshold is the best
        one for these examples, which favours the attacker.
    """
    from keras_distill.report._evaluate import _groups  # it uses what this module defines

    owner = "report.membership"
    integer(owner, "batch_size", batch_size, low=1)
    _groups(owner, {"model": model}, from_logits)
    audit = Audit(owner, members, non_members, shadow_models, from_logits, batch_size, num_resamples, seed)
    return audit(model)


class Audit:
    """Members and non-members with the difficulty of each example, for audits of several models.

    Args:
        owner: name shown in the error messages.
        members: see ``membership``, as for all other arguments.
        non_members: never seen in training.
        shadow_models: trained on neither.
        from_logits: whether models output logits.
        batch_size: for predictions.
        num_resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.
    """

    def __init__(
        self,
        owner: str,
        members: Any,
        non_members: Any,
        shadow_models: Sequence[keras.Model],
        from_logits: bool,
        batch_size: int,
        num_resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        from keras_distill.regimes._fingerprints import fingerprints
        from keras_distill.report._evaluate import _arrays, _groups  # it uses what this module defines

        self.owner, self.from_logits, self.batch_size = owner, from_logits, batch_size
        self.num_resamples = integer(owner, "num_resamples", num_resamples, low=1)
        self.seed = integer(owner, "seed", seed, low=0)
        if members is None or non_members is None:
            got = "no members" if members is None else "no non_members"
            raise error(owner, "members and non_members together", got)
        self.members, self.non_members = (_arrays(owner, each) for each in (members, non_members))
        both = set(fingerprints(self.members[0])) & set(fingerprints(self.non_members[0]))
        if both:
            got = f"{len(both)} example{'s' if len(both) > 1 else ''} in both"
            raise error(owner, "members and non_members that do not overlap", got, "Remove duplicates first")
        shadows = [shadow_models] if isinstance(shadow_models, keras.Model) else list(shadow_models)
        if shadows:
            _groups(owner, {"shadow_models": shadows}, from_logits)
        self.num_shadow_models = len(shadows)
        losses = [self._losses(each) for each in shadows]
        self._hardness = [np.mean([pair[i] for pair in losses], axis=0) if losses else 0.0 for i in (0, 1)]

    def __call__(self, model: keras.Model) -> Membership:
        """Return the audit of one model."""
        inside, outside = (hard - loss for hard, loss in zip(self._hardness, self._losses(model), strict=True))
        values, intervals = attack(inside, outside, self.num_resamples, self.seed)
        return Membership(
            values[0], intervals[0], values[1], intervals[1], values[2], intervals[2],
            len(inside), len(outside), self.num_shadow_models,
        )  # fmt: skip

    def _losses(self, model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
        from keras_distill.report._evaluate import _outputs

        found = []
        for inputs, labels in (self.members, self.non_members):
            outputs = _outputs(self.owner, model, inputs, self.batch_size).astype("float64")
            if labels.min() < 0 or labels.max() >= outputs.shape[1]:
                raise error(self.owner, f"labels in 0..{outputs.shape[1] - 1}", f"{labels.min()}..{labels.max()}")
            chosen = outputs[np.arange(len(labels)), labels]
            if self.from_logits:
                top = outputs.max(-1)
                loss = top + np.log(np.exp(outputs - top[:, None]).sum(-1)) - chosen
            else:
                loss = -np.log(np.maximum(chosen, 1e-45))  # the smallest positive float32
            if not np.isfinite(loss).all():
                raise error(self.owner, f"finite losses of {model.name!r}", "NaN or infinity")
            found.append(loss)
        return found[0], found[1]


def attack(
    members: np.ndarray, non_members: np.ndarray, num_resamples: int, seed: int
) -> tuple[tuple[float, ...], list[Interval]]:
    """Return AUC, advantage and true positive rate of scores, and their intervals.

    Args:
        members: (members,), scores; higher means that the attacker assumes membership.
        non_members: (non-members,), scores.
        num_resamples: number of bootstrap resamples; members and non-members are drawn separately.
        seed: seed of the bootstrap.

    Returns:
        The three values, and the three pairs of percentiles 2.5 and 97.5.
    """
    thresholds, places = np.unique(-np.concatenate([members, non_members]), return_inverse=True)
    inside, outside = np.split(places, [len(members)])
    rng = np.random.default_rng(seed)
    values = _curve(inside, outside, len(thresholds))
    resampled = np.array([
        _curve(rng.choice(inside, len(inside)), rng.choice(outside, len(outside)), len(thresholds))
        for _ in range(num_resamples)
    ])  # fmt: skip
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0).tolist()
    return values, list(zip(low, high, strict=True))


def _curve(inside: np.ndarray, outside: np.ndarray, size: int) -> tuple[float, float, float]:
    """Return the three values from each example's index among the thresholds, highest score first."""
    found, accused = (
        np.concatenate([[0.0], np.cumsum(np.bincount(each, minlength=size)) / len(each)]) for each in (inside, outside)
    )
    area = float(np.sum(np.diff(accused) * (found[1:] + found[:-1])) / 2)
    few = found[accused <= _FALSE_POSITIVE_RATE].max()
    return area, float((found - accused).max()), float(few)


def membership_of(fields: Any, need: Any) -> Membership | None:
    """Return the audit from parsed, untrusted JSON."""
    if fields is None:
        return None
    names = {field.name for field in dataclasses.fields(Membership)}
    need(isinstance(fields, dict) and set(fields) == names, "membership")
    for name, value in fields.items():
        if name.startswith("num_"):
            need(type(value) is int and 0 <= value < 2**63, name)
            continue
        numbers = value if name.endswith("_interval") else [value]
        need(isinstance(numbers, list) and len(numbers) == (2 if name.endswith("_interval") else 1), name)
        need(all(type(each) in (int, float) and 0 <= each <= 1 for each in numbers), name)
    values: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in fields.items()}
    return Membership(**values)
