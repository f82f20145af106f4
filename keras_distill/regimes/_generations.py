"""Students of one architecture, each taught by the previous one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_distill._checks import choice, error, integer
from keras_distill.distiller import Distiller
from keras_distill.losses._numerics import replicas
from keras_distill.losses._numerics.distributions import class_ids, surprise
from keras_distill.regimes._driver import Alone, Driver, Training, made
from keras_distill.teachers import Ensemble, PermutedDarkKnowledge
from keras_distill.terms import DistillationLoss, LogitsDistillation


@keras.saving.register_keras_serializable(package="keras_distill")
class LabelsByConfidence(DistillationLoss):
    """Cross-entropy to the labels, each example weighted by its teacher's largest probability; see ``BornAgain``."""

    def values(
        self,
        teacher_outputs: Any,
        student_outputs: Any,
        *,
        labels: Any = None,
        mask: Any = None,
        training: bool = True,
    ) -> Any:
        """Return the weighted cross-entropy of each example; the weights have mean 1 over the global batch."""
        labels = class_ids("BornAgain with knowledge='confidence'", labels, student_outputs, mask)
        confidence = ops.max(ops.softmax(ops.cast(teacher_outputs, "float32"), axis=-1), axis=-1)
        weights = confidence / ops.mean(replicas.gather(confidence))
        return weights * surprise(ops.cast(student_outputs, "float32"), labels)


class BornAgain(Driver):
    """Generations of one architecture: each student is taught by the previous one (BAN, CWTM, DKPP).

    Choose born-again networks when a model of the same size can be trained several times: the first generation usually
    gains most, and the ensemble of all generations gains more. It costs one training per generation, plus the teacher's
    passes.

    Formula: generation 0 minimises CE(y); generation k minimises share * CE(y) + (1 - share) * KL(p_{k-1} || p_k) at
    temperature 1, with share 0.5. With ``knowledge="confidence"`` the KL is replaced by w / mean(w) * CE(y), where w is
    the largest probability that generation k - 1 gives the example, and the mean is that of the batch.

    Args:
        make_student: returns a new, built model; called once for every generation.
        num_generations: >= 1, number of taught generations; generation 0 is additional unless there is a ``teacher``.
        teacher: a trained model that teaches the first generation instead of generation 0; None trains one.
        term: term between a student and the previous generation; ``LogitsDistillation(1.0)`` if None.
        student_loss_weight: 0 to 1, the share of the labels; None: 0.5, and 0 with ``knowledge="confidence"``.
        knowledge: ``"all"``; ``"permuted"``: the teacher's probabilities of all classes but its first are permuted anew
            for each example (DKPP), which keeps its confidence and removes its knowledge of the other classes;
            ``"confidence"``: only the teacher's confidence in each example, as its weight in the batch (CWTM). The last
            two are controls: a gain that they share does not come from the teacher's knowledge of the other classes.
        directory: where finished generations are kept for a killed run to resume; None keeps nothing.
        seed: >= 0, for weights and orders of the data; None does not change Keras' random state.
        store_answers: whether to compute each generation's answers to all of ``x``, an array, once instead of in every
            epoch.

    Attributes:
        students: every trained generation, oldest first; ``student`` is the last one.
        histories: the history of each training, by name (``"generation_0"`` and so on).

    Raises:
        ValueError: if an argument is out of bounds, ``make_student`` returns no built model, or ``knowledge`` does not
            use the given term.

    Example:
        >>> import keras, numpy as np
        >>> born_again = BornAgain(lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]), 2)
        >>> born_again.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> history = born_again.fit(np.ones((8, 4), "float32"), np.zeros(8, "int32"), verbose=0)
        >>> len(born_again.students), list(born_again.histories)
        (3, ['generation_0', 'generation_1', 'generation_2'])

    Reference:
        Furlanello et al., "Born-Again Neural Networks", ICML 2018, arXiv:1805.04770, eq. 7 and section 3.3.
        Differs: the two losses have a share of one half each instead of weight one each; double SGD's learning rate for
        the paper's step.
    """

    owner = "BornAgain"

    def __init__(
        self,
        make_student: Callable[[], keras.Model],
        num_generations: int = 1,
        *,
        teacher: Any = None,
        term: DistillationLoss | None = None,
        student_loss_weight: float | None = None,
        knowledge: str = "all",
        directory: str | Path | None = None,
        seed: int | None = None,
        store_answers: bool = False,
    ) -> None:
        super().__init__(directory, seed, store_answers)
        if not callable(make_student):
            raise error(self.owner, "make_student to be a function that returns a model", make_student)
        self.make_student = make_student
        self.num_generations = integer(self.owner, "num_generations", num_generations, low=1)
        self.teacher = teacher
        self.term = term
        self.knowledge = choice(self.owner, "knowledge", knowledge, ("all", "permuted", "confidence"))
        by_confidence = self.knowledge == "confidence"
        if by_confidence and term is not None:
            advice = "Only the labels are compared: leave term out"
            raise error(self.owner, "no term with knowledge='confidence'", term, advice)
        usual = 0.0 if by_confidence else 0.5
        self.student_loss_weight = usual if student_loss_weight is None else student_loss_weight

    def trainings(self) -> Iterable[Training]:
        """Return generation 0, unless there is a teacher, and those that are taught."""
        if self.teacher is None:
            yield Training("generation_0", lambda _: Alone(made(self.owner, self.make_student, "make_student")))
        for number in range(1, self.num_generations + 1):
            yield Training(f"generation_{number}", self._taught)

    def _taught(self, students: list[keras.Model]) -> Distiller:
        number = len(students) - (self.teacher is None)  # of the teaching generation; 0 is a given teacher
        teacher = self.heard(f"teacher_{number}", students[-1] if students else self.teacher)
        if self.knowledge == "permuted":
            teacher = PermutedDarkKnowledge(teacher)
        student = made(self.owner, self.make_student, "make_student")
        if self.knowledge == "confidence":
            term: DistillationLoss = LabelsByConfidence(name="labels_by_confidence")
        else:  # a copy, because a term belongs to one distiller
            term = LogitsDistillation(1.0) if self.term is None else type(self.term).from_config(self.term.get_config())
        return Distiller(teacher, student, term, student_loss_weight=self.student_loss_weight)

    def ensemble(self) -> Ensemble:
        """Return the ensemble of all generations, which usually beats the last one.

        Returns:
            A teacher, which can be evaluated and distilled like any model.
        """
        return Ensemble([*([] if self.teacher is None else [self.teacher]), *self.students])
