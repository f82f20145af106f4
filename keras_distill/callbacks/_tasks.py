"""Policies for students of several tasks: annealing from teacher to labels, and weights that follow the losses."""

from __future__ import annotations

import math
from typing import Any

import keras

from keras_distill._checks import error, integer, number
from keras_distill.callbacks import _steering
from keras_distill.callbacks._policy import Policy, Probe
from keras_distill.settings import Setting
from keras_distill.training import Trainer


class TeacherAnnealing(keras.callbacks.Callback):
    """Moves gradually from the teacher to the labels: ``student_loss_weight`` rises linearly (teacher annealing).

    Choose it where the student can become better than its teachers, as one student of several single-task teachers
    often does: it begins by imitating them and ends by learning from the labels alone. For cross-entropies at
    temperature 1 this is the gradient of the mixed target share * one_hot + (1 - share) * teacher. Nothing is retraced;
    a resumed run needs only the epoch's number.

    Formula: share = start + (end - start) * step / num_steps, constant after ``num_steps``.

    Args:
        start: 0 to 1, share of the labels at the first step.
        end: 0 to 1, share of the labels at the last step.
        num_steps: >= 1, length of the ramp; None: all steps of ``fit``, whose number must then be known.
        verbose: 0 is silent, 1 prints a line per epoch.

    Raises:
        ValueError: if a number is out of bounds; before training, if the distiller has no supervised loss, or the
            number of steps is unknown.

    Example:
        >>> import keras, numpy as np
        >>> from keras_distill import Distiller, LogitsDistillation
        >>> teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in "ts")
        >>> distiller = Distiller(teacher, student, LogitsDistillation(temperature=1.0))
        >>> distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> x, y, annealing = np.ones((8, 4), "float32"), np.zeros(8), TeacherAnnealing()
        >>> history = distiller.fit(x, y, batch_size=2, epochs=2, verbose=0, callbacks=[annealing])
        >>> [round(share, 4) for share in history.history["student_loss_weight"]]  # of the last steps of each epoch
        [0.4286, 1.0]

    Reference:
        Clark, Luong, Khandelwal, Manning, Le, "BAM! Born-Again Multi-Task Networks for Natural Language Understanding",
        ACL 2019, arXiv:1907.04829, section 3.2. Differs: it mixes the losses, not the targets.
    """

    def __init__(self, start: float = 0.0, end: float = 1.0, num_steps: int | None = None, verbose: int = 0) -> None:
        super().__init__()
        owner = "TeacherAnnealing"
        self.start = number(owner, "start", start, low=0.0, high=1.0)
        self.end = number(owner, "end", end, low=0.0, high=1.0)
        self.num_steps = None if num_steps is None else integer(owner, "num_steps", num_steps, low=1)
        self.verbose = verbose
        self._setting: Setting | None = None
        self._first = 0

    def set_model(self, model: Any) -> None:
        """Look up the weight; Keras calls this before training."""
        super().set_model(model)
        distiller = _steering.as_distiller("TeacherAnnealing", model)
        if not distiller.is_supervised:
            raise error("TeacherAnnealing", "a supervised loss to anneal to", "None", "Give compile(loss=...)")
        (self._setting,) = _steering.student_weight(distiller).values()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the steps of earlier epochs."""
        steps = (self.params or {}).get("steps")
        if not steps:
            if epoch == 0 and self.num_steps is not None:
                self._first = 0
                return
            advice = "Give fit steps_per_epoch, or a dataset whose length is known"
            raise error("TeacherAnnealing", "a known number of steps per epoch", "none", advice)
        self._first = epoch * int(steps)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the share of the labels for this step."""
        if self._setting is None:
            return
        total = self.num_steps or int(self.params["epochs"]) * int(self.params["steps"])
        done = min((self._first + batch) / max(total - 1, 1), 1.0)
        self._setting.assign(self.start + (self.end - self.start) * done)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the share of the labels to ``logs``."""
        if logs is not None and self._setting is not None:
            logs["student_loss_weight"] = self._setting.number
            if self.verbose:
                _steering.say(f"Epoch {epoch + 1}: the labels have a share of {self._setting.number:g}.")


class DynamicWeightAverage(Policy):
    """Gives more weight to terms whose loss falls more slowly from epoch to epoch (DWA).

    Choose it for several tasks or terms that learn at different speeds; it needs no gradients. Losses are measured on
    held-out data after each epoch. Each weight is its initial value times a factor; the factors sum to the number of
    terms.

    Formula: factor_i = K * softmax_i(r_i / temperature), r_i = loss_i(epoch - 1) / loss_i(epoch - 2); 1 in the first
    two epochs.

    Args:
        validation_data: (x, y), (x, y, sample_weight) or (x,) of arrays, or a ``tf.data.Dataset`` or ``PyDataset``.
        temperature: > 0; large values keep the factors near 1.
        batch_size: >= 1, for arrays.
        steps: number of batches to use; None uses all.
        verbose: 0 is silent, 1 prints a line when a weight changes.

    Attributes:
        state: the callback's state, a JSON-ready dictionary; may be assigned.

    Raises:
        ValueError: if an argument is out of bounds, or there are fewer than two terms.

    Example:
        >>> import keras, numpy as np
        >>> from keras_distill import Distiller, LogitsDistillation
        >>> teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in "ts")
        >>> terms = [LogitsDistillation(2.0, name="two"), LogitsDistillation(2.0, name="same")]
        >>> distiller = Distiller(teacher, student, terms, student_loss_weight=0.0)
        >>> distiller.compile("sgd")
        >>> x = np.ones((8, 4), "float32")
        >>> history = distiller.fit(x, epochs=3, verbose=0, callbacks=[DynamicWeightAverage((x,))])
        >>> distiller.distillation_loss_weights  # equal terms fall equally fast
        [1.0, 1.0]

    Reference:
        Liu, Johns, Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, arXiv:1803.10704, eq. 7.
        Differs: losses on held-out data; the initial weights are kept as factors.
    """

    def __init__(
        self,
        validation_data: Any,
        temperature: float = 2.0,
        *,
        batch_size: int = 256,
        steps: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.temperature = number(self._owner, "temperature", temperature, above=0.0)
        self._probe = Probe(self._owner, validation_data, batch_size, steps)

    def _find(self, distiller: Trainer) -> dict[str, Setting]:
        found = _steering.distillation_weights(self._owner, distiller)
        if len(found) < 2:
            raise error(self._owner, "at least 2 terms to balance", f"{len(found)}")
        return found

    def _fresh(self) -> dict[str, Any]:
        return {"start": {name: setting.number for name, setting in self._targets.items()}, "losses": []}

    def _decide(self, epoch: int, logs: dict[str, Any]) -> None:
        state = self.state
        losses = [float(each) for each in self._probe.losses(self.model)[1:]]
        state["losses"] = [*state["losses"][-1:], losses]
        if len(state["losses"]) < 2:
            return
        before, now = state["losses"]
        rates = [b / a if a > 0.0 else 1.0 for a, b in zip(before, now, strict=True)]
        largest = max(rates)
        shares = [math.exp((rate - largest) / self.temperature) for rate in rates]
        factors = [len(rates) * share / sum(shares) for share in shares]
        wanted = zip(state["start"].items(), factors, strict=True)
        self._assign(epoch, {name: weight * factor for (name, weight), factor in wanted})
