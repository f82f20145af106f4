"""Distillation through assistants of intermediate size."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_distill._checks import choice, error
from keras_distill.distiller import Distiller
from keras_distill.regimes._driver import Driver, Training
from keras_distill.teachers import Ensemble
from keras_distill.terms import DistillationLoss, LogitsDistillation


class AssistantChain(Driver):
    """A teacher teaches an assistant, which teaches a smaller one, and the last teaches the student (TAKD, DGKD).

    Choose it when the student is much smaller than its teacher and learns less from it than from a smaller one. The
    best single assistant has an accuracy about half-way between them.

    Formula: every model minimises share * CE(y) + (1 - share) * T**2 KL(guide || model). ``guides="nearest"``: the
    guide is the model before it; ``"all"``: the mean of that KL over every larger model.

    Args:
        teacher: a trained model or teacher.
        assistants: built, untrained models, the largest first; may be empty.
        student: a built, untrained model.
        guides: ``"nearest"`` (teacher assistants) or ``"all"`` (densely guided).
        term: term between a model and its guide; ``LogitsDistillation(4.0)`` if None. Every training gets a copy.
        student_loss_weight: 0 to 1, the share of the labels.
        directory: where finished models are kept for a killed run to resume; None keeps nothing.
        seed: >= 0, for the orders of the data; None does not change Keras' random state.
        store_answers: whether to compute each model's answers to all of ``x``, an array, once instead of in every
            epoch.

    Attributes:
        students: the trained assistants, then the student; ``student`` is the last one.

    Raises:
        ValueError: if ``guides="all"`` without assistants, or a model is not a Keras model or not built.

    Example:
        >>> import keras, numpy as np
        >>> teacher, assistant, student = (
        ...     keras.Sequential([keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dense(3)])
        ...     for units in (32, 8, 2)
        ... )
        >>> chain = AssistantChain(teacher, [assistant], student)
        >>> chain.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> history = chain.fit(np.ones((8, 4), "float32"), np.zeros(8, "int32"), verbose=0)
        >>> list(chain.histories)
        ['assistant_0', 'student']

    Reference:
        Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020, arXiv:1902.03393; Son et
        al., "Densely Guided Knowledge Distillation Using Multiple Teacher Assistants", ICCV 2021, arXiv:2009.08825.
        Differs: the dense variant takes the mean over guides where the paper takes their sum, and drops no guide.
    """

    owner = "AssistantChain"

    def __init__(
        self,
        teacher: Any,
        assistants: Sequence[keras.Model],
        student: keras.Model,
        guides: str = "nearest",
        *,
        term: DistillationLoss | None = None,
        student_loss_weight: float = 0.5,
        directory: str | Path | None = None,
        seed: int | None = None,
        store_answers: bool = False,
    ) -> None:
        super().__init__(directory, seed, store_answers)
        self.teacher = teacher
        self.assistants = list(assistants)
        self.guides = choice(self.owner, "guides", guides, ("nearest", "all"))
        if self.guides == "all" and not self.assistants:
            raise error(self.owner, "assistants with guides='all'", "none", "Use Distiller for one teacher alone")
        self._models = [*self.assistants, student]
        for model in (teacher, *self._models):
            if not isinstance(model, keras.Model):
                raise error(self.owner, "Keras models as teacher, assistants and student", type(model).__name__)
        for model in self._models:
            if not model.built:
                raise error(self.owner, "built models", f"{model.name!r}, which is not", "Call it once on a batch")
        self.term = term
        self.student_loss_weight = student_loss_weight
        sizes = [model.count_params() if model.built else None for model in (teacher, *self._models)]
        for large, small, model in zip(sizes, sizes[1:], self._models, strict=False):
            if large is not None and small is not None and small > large:
                warnings.warn(
                    f"AssistantChain: model {model.name!r} has {small} parameters, more than the {large} of its "
                    "teacher. Put the largest assistant first.",
                    stacklevel=2,
                )

    def trainings(self) -> Iterable[Training]:
        """Return one training for each assistant, then that of the student."""
        for number, model in enumerate(self._models):
            name = "student" if number == len(self.assistants) else f"assistant_{number}"
            yield Training(name, functools.partial(self._taught, model))

    def _taught(self, model: keras.Model, done: list[keras.Model]) -> Distiller:
        larger = [self.heard(f"teacher_{number}", each) for number, each in enumerate([self.teacher, *done])]
        guide = larger[-1] if self.guides == "nearest" or len(larger) == 1 else Ensemble(larger, combine="mean_loss")
        term = LogitsDistillation(4.0) if self.term is None else type(self.term).from_config(self.term.get_config())
        return Distiller(guide, model, term, student_loss_weight=self.student_loss_weight)
