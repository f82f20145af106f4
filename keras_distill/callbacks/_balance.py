"""Term weights that are balanced during training."""

from __future__ import annotations

import math
from typing import Any

from keras_distill._checks import choice, error, number
from keras_distill.callbacks import _steering
from keras_distill.callbacks._policy import Plateau, Policy, Probe
from keras_distill.settings import Setting
from keras_distill.training import Trainer


class AdaptiveWeights(Policy):
    """Balances the terms during training, by the norms of their gradients or by uncertainty weighting.

    Choose it for terms of very different or drifting scales (logits with features of several layers); with one term, or
    with known scales, plain weights suffice. After each epoch the magnitude m_i of each term is measured on held-out
    data and smoothed (an exponential moving average of its logarithm); then

    Formula: weight_i = start_i * M / m_i, with M = sum_j start_j * m_j / sum_j start_j, or the supervised loss'
    magnitude for ``relative_to="student_loss"``.

    * ``method="gradient_norm"``: m_i is the norm of the term's gradient with respect to the student's weights: all
      terms then contribute in proportion to their initial weights.
    * ``method="uncertainty"``: m_i is the term's loss (> 0): 1 / (2 m_i) is the precision that minimises
      sum_i exp(-s_i) * m_i + s_i / 2, uncertainty weighting with its log-variances s_i found in closed form instead of
      by gradient steps; only their ratios are kept, since the common factor belongs to the learning rate.

    ``logs`` get the weights. Costs, per epoch, a forward pass over ``steps`` batches and a backward pass for each term.
    Resuming: see ``AdaptiveTemperature``.

    Args:
        validation_data: (x, y), (x, y, sample_weight) or (x,) of arrays, or a ``tf.data.Dataset`` or ``PyDataset``.
        method: ``"gradient_norm"`` or ``"uncertainty"``.
        relative_to: ``"terms"``: balance the terms among themselves; ``"student_loss"``: each against the supervised
            loss.
        smoothing: 0 to 1, weight of the past per epoch.
        min_weight: >= 0, lower bound.
        max_weight: upper bound.
        patience: >= 1, consecutive epochs that must call for a change.
        min_delta: >= 0, smallest relative change of any weight that counts.
        cooldown: >= 0, epochs to wait after a change, as in ``keras.callbacks.ReduceLROnPlateau``.
        batch_size: >= 1, for arrays.
        steps: number of batches to use; None uses all.
        verbose: 0 is silent, 1 prints a line when a weight changes.

    Attributes:
        state: the callback's state, a JSON-ready dictionary; may be assigned.

    Raises:
        ValueError: if an argument is out of bounds, there is nothing to balance, or a loss is not above 0 with
            ``method="uncertainty"``.

    Example:
        >>> import keras, numpy as np
        >>> from keras_distill import Distiller, LogitsDistillation
        >>> teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in "ts")
        >>> terms = [LogitsDistillation(2.0, name="two"), LogitsDistillation(2.0, name="same")]
        >>> distiller = Distiller(teacher, student, terms, [1.0, 3.0], student_loss_weight=0.0)
        >>> distiller.compile("sgd")
        >>> x = np.ones((8, 4), "float32")
        >>> balance = AdaptiveWeights((x,))  # equal terms: the weights they started with are right
        >>> history = distiller.fit(x, epochs=2, verbose=0, callbacks=[balance])
        >>> [round(weight, 5) for weight in distiller.distillation_loss_weights]
        [1.0, 3.0]

    Reference:
        Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", 2018, arXiv:1705.07115; Chen et
        al., "GradNorm", 2018, arXiv:1711.02257. Differs: log-variances in closed form on held-out data; norms are
        equalised once per epoch without GradNorm's training rates (its alpha = 0), over all the student's weights.
    """

    def __init__(
        self,
        validation_data: Any,
        method: str = "gradient_norm",
        *,
        relative_to: str = "terms",
        smoothing: float = 0.5,
        min_weight: float = 1e-3,
        max_weight: float = 1e3,
        patience: int = 1,
        min_delta: float = 0.05,
        cooldown: int = 0,
        batch_size: int = 256,
        steps: int | None = 1,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        owner = self._owner
        self.method = choice(owner, "method", method, ("gradient_norm", "uncertainty"))
        self.relative_to = choice(owner, "relative_to", relative_to, ("terms", "student_loss"))
        self.smoothing = number(owner, "smoothing", smoothing, low=0.0, high=1.0)
        self.min_weight = number(owner, "min_weight", min_weight, low=0.0)
        self.max_weight = number(owner, "max_weight", max_weight, low=self.min_weight)
        self._plateau = Plateau(owner, "", "min", patience, min_delta, cooldown)
        self._probe = Probe(owner, validation_data, batch_size, steps)

    def _find(self, distiller: Trainer) -> dict[str, Setting]:
        found = _steering.distillation_weights(self._owner, distiller)
        if self.relative_to == "student_loss" and not distiller.is_supervised:
            raise error(self._owner, "a supervised loss to balance against", "None", "Give compile(loss=...)")
        if self.relative_to == "terms" and len(found) < 2:
            raise error(self._owner, "at least 2 terms to balance", "1", "Use relative_to='student_loss'")
        return found

    def _fresh(self) -> dict[str, Any]:
        start = {name: setting.number for name, setting in self._targets.items()}
        if not any(start.values()):
            raise error(self._owner, "a distillation loss weight above 0 at the start", list(start.values()))
        return {**Plateau.fresh(), "start": start, "logarithms": None}

    def _decide(self, epoch: int, logs: dict[str, Any]) -> None:
        state, past = self.state, self.smoothing
        new = [math.log(each) for each in self._magnitudes()]
        old = state["logarithms"] or new
        state["logarithms"] = [past * before + (1.0 - past) * now for before, now in zip(old, new, strict=True)]
        supervised, *terms = (math.exp(each) for each in state["logarithms"])
        start = list(state["start"].values())
        common = supervised
        if self.relative_to == "terms":
            common = sum(w * m for w, m in zip(start, terms, strict=True)) / sum(start)
        wanted = {
            name: self._bounded(weight * common / magnitude) if weight else 0.0
            for (name, weight), magnitude in zip(state["start"].items(), terms, strict=True)
        }
        changes = [abs(wish - self._targets[name].number) / (wish or 1.0) for name, wish in wanted.items()]
        if self._plateau.patient(state, max(changes) > self._plateau.min_delta):
            self._assign(epoch, wanted)

    def _magnitudes(self) -> list[float]:
        """Return the positive magnitudes of the supervised loss and of the terms."""
        values = self._probe.gradient_norms(self.model)
        if self.method == "uncertainty":
            values = self._probe.losses(self.model)
        unused = 1 if self.relative_to == "terms" else 0
        for index, value in enumerate(values):
            if not math.isfinite(value) or (value < 0 and index >= unused):
                what = "the supervised loss" if index == 0 else f"term {index - 1}"
                advice = "Use method='gradient_norm' for losses that may be negative"
                raise error(self._owner, f"{self.method} of {what} >= 0", float(value), advice)
        return [max(float(value), 1e-12) for value in values]

    def _bounded(self, weight: float) -> float:
        return min(max(weight, self.min_weight), self.max_weight)
