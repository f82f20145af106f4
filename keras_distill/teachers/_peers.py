"""Teachers computed from the student's own outputs in the same pass: its other outputs, or its deepest one."""

from __future__ import annotations

import abc
from typing import Any

import keras
from keras import ops

from keras_distill._checks import choice, error
from keras_distill._typing import Structure
from keras_distill.teachers._base import Teacher, silent
from keras_distill.teachers._combine import MeanLoss, MeanProbs
from keras_distill.teachers._members import Members


class HearsStudent(Teacher, abc.ABC):
    """Base of teachers that answer after the student's pass, from its several outputs, without gradients."""

    @property
    def hears_student(self) -> bool:
        """True: it answers through ``listen_to``."""
        return True

    def listen(self, teacher_x: Any, taps: Any = (), *, differentiable: bool = False) -> tuple[Any, dict[str, Any]]:
        """Raise: it cannot answer before the student has run."""
        raise error(type(self).__name__, "to be the teacher of a Distiller", "a call without a student")

    def listen_to(
        self, student_outputs: Structure, taps: dict[str, Any], batch: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        """Answer each of the student's outputs; see ``Teacher.listen_to``."""
        flat = keras.tree.flatten(student_outputs)
        if len(flat) < 2:
            raise error(type(self).__name__, "a student with two or more outputs", len(flat))
        answers = self.answers([ops.stop_gradient(tensor) for tensor in flat])
        return keras.tree.pack_sequence_as(student_outputs, answers), silent(taps)

    @abc.abstractmethod
    def answers(self, outputs: list[Any]) -> list[Any]:
        """Return the targets of each output, from all of them.

        Args:
            outputs: the student's outputs, without gradients, in Keras' order.
        """


@keras.saving.register_keras_serializable(package="keras_distill")
class Peers(HearsStudent):
    """Each output of a student learns from its other outputs (online distillation between branches, KDCL).

    Choose it for branches on a common trunk, trained together in one ``Distiller``; for separate students, each with
    its own optimizer, use ``regimes.MutualLearning``.

    Args:
        combine: ``"pairwise"``: an output is compared with each of the others and the values are averaged (DML);
            ``"mean"``: it is compared with the mean of the others' probabilities (KDCL).
        **kwargs: passed on to ``keras.Model`` (``name``).

    Raises:
        ValueError: if ``combine`` is unknown; in ``fit``, if the student has a single output.

    Example:
        >>> import keras, numpy as np
        >>> from keras_distill import Distiller, LogitsDistillation
        >>> x = keras.Input((4,))
        >>> student = keras.Model(x, [keras.layers.Dense(3)(x), keras.layers.Dense(3)(x)])
        >>> distiller = Distiller(Peers(), student, LogitsDistillation(1.0), student_loss_weight=0.0)
        >>> distiller.compile("sgd")
        >>> history = distiller.fit(np.ones((8, 4), "float32"), verbose=0)

    Reference:
        Zhang et al., "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384; Guo et al., "Online Knowledge Distillation
        via Collaborative Learning", CVPR 2020 (KDCL-Linear's plain mean). Differs: branches of one model.
    """

    def __init__(self, combine: str = "pairwise", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.combine = choice("Peers", "combine", combine, ("pairwise", "mean"))

    def answers(self, outputs: list[Any]) -> list[Any]:
        """Return, for each output, all the others as members of an ensemble."""
        rule = MeanLoss() if self.combine == "pairwise" else MeanProbs()
        others = [[each for j, each in enumerate(outputs) if j != i] for i in range(len(outputs))]
        if len(outputs) == 2:
            return [each[0] for each in others]
        return [Members(ops.stack(each, axis=1), rule) for each in others]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"name": self.name, "combine": self.combine}


@keras.saving.register_keras_serializable(package="keras_distill")
class DeepestExit(HearsStudent):
    """The last output of a student teaches its earlier ones (be your own teacher, BYOT).

    Choose it with ``students.with_exits``: a single training run gives a model and cheaper versions of it. Give the
    terms ``None`` for the last output, which learns from the labels alone. A ``FeatureDistillation`` names layers of
    the student on both sides; the paper's hint is ``FeatureDistillation("mse", "<bottleneck>", "features_<layer>")``.

    Args:
        **kwargs: passed on to ``keras.Model`` (``name``).

    Example:
        >>> import keras
        >>> from keras_distill import Distiller, LogitsDistillation
        >>> x = keras.Input((4,))
        >>> student = keras.Model(x, [keras.layers.Dense(3)(x), keras.layers.Dense(3)(x)])
        >>> term = LogitsDistillation(3.0, loss=["kl_divergence", None])
        >>> distiller = Distiller(DeepestExit(), student, term, student_loss_weight=0.9)

    Reference:
        Zhang et al., "Be Your Own Teacher", ICCV 2019, arXiv:1905.08094, eq. 1-3. Differs: the hint between features is
        a separate term with its own weight.
    """

    def answers(self, outputs: list[Any]) -> list[Any]:
        """Return the last output for every output."""
        return [outputs[-1]] * len(outputs)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"name": self.name}


@keras.saving.register_keras_serializable(package="keras_distill")
class GatedPeers(HearsStudent):
    """A gated ensemble of a student's outputs teaches each of them (on-the-fly native ensemble, ONE).

    The student's last output is the gate: logits over the branches, (batch, branches). It is not taught itself but
    learns through the supervised loss of the mixture, an output between branches and gate that ``students.with_gate``
    adds; without one the gate does not learn.

    Formula: teacher = log sum_m softmax(gate)_m * softmax(logits_m), the same for every branch.

    Args:
        **kwargs: passed on to ``keras.Model`` (``name``).

    Example:
        >>> import numpy as np
        >>> branches = [np.log([[0.9, 0.1]]), np.log([[0.5, 0.5]])]
        >>> gate = np.log([[0.75, 0.25]])
        >>> np.exp(np.asarray(GatedPeers.ensemble(branches, gate))).round(3)
        array([[0.8, 0.2]], dtype=float32)

    Reference:
        Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, arXiv:1806.04606, eq. 5-7.
        Differs: probabilities are mixed where the paper mixes logits, so that the teacher is a mixture.
    """

    def answers(self, outputs: list[Any]) -> list[Any]:
        """Return the gated ensemble for every branch and the mixture; the gate gets itself, which teaches nothing."""
        *others, gate = outputs
        if gate.shape[-1] not in (len(others), len(others) - 1):
            expected = f"the student's last output to be a gate over its {len(others)} other outputs"
            raise error("GatedPeers", expected, f"{gate.shape[-1]} columns", "See students.with_gate")
        teacher = self.ensemble(others[: gate.shape[-1]], gate)
        return [*[teacher] * len(others), gate]

    @staticmethod
    def ensemble(branches: list[Any], gate: Any) -> Any:
        """Return the logits of the gated mixture.

        Args:
            branches: tensors of shape (batch, classes), float.
            gate: (batch, branches), logits.

        Returns:
            (batch, classes), float32: logarithms of the mixture's probabilities.
        """
        log_probs = ops.stack([ops.log_softmax(ops.cast(each, "float32"), axis=-1) for each in branches], axis=1)
        weights = ops.log_softmax(ops.cast(gate, "float32"), axis=-1)
        return ops.logsumexp(log_probs + ops.expand_dims(weights, -1), axis=1)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"name": self.name}
