"""Peers that teach each other while all of them learn from the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill._checks import choice, error, number
from keras_distill.regimes._base import Regime
from keras_distill.regimes._exchange import Exchanging, PeerExchange, checked_exchange
from keras_distill.regimes._rounds import Measured, Round
from keras_distill.settings import Setting
from keras_distill.teachers import Snapshot
from keras_distill.terms import DistillationLoss, LogitsDistillation
from keras_distill.training import Batch


@keras.saving.register_keras_serializable(package="keras_distill")
class MutualLearning(Regime):
    """Several students that learn from the labels and from each other (deep mutual learning, DML).

    Choose it when there is no teacher: two small networks trained together often both beat the same network trained
    alone. It costs one training per student, without a teacher's pass. Keep the best one, or their ensemble.

    Formula: student k minimises supervised_k + mutual_weight * mean over the others l of term(l -> k); the peers'
    outputs carry no gradient. The default term is KL(p_l || p_k) at temperature 1.

    Args:
        students: two or more built models with outputs of one shape; they may differ in everything else.
        term: term on final outputs between a student and a peer; ``LogitsDistillation(1.0)`` if None.
        mutual_weight: >= 0, weight of the mean over peers; a number, or a schedule of the optimizer's step.
        update: ``"together"``: one pass of each and one update of all; ``"in_turn"``, the paper's: each student is
            updated before the next one uses it. The others then run in inference mode, so that BatchNorm is updated
            once per step.
        exchange_every_steps: >= 1: peers learn from each other's weights as of the last multiple of this many steps, in
            inference mode (co-distillation); None uses the current weights. Old weights teach nearly as well, and are
            sent less often. Costs one more pass of each student.
        exchange: a ``regimes.PeerExchange``: this process trains one of the students and gets the others' weights from
            their processes every ``exchange_every_steps``; None trains all of them here.
        name: name of this model.

    Attributes:
        students: the students, ordinary Keras models after ``fit``. With ``exchange``, those of other processes have
            their state at the last exchange.
        student: the first student trained here, whose outputs metrics and callbacks see.
        mutual_weight: assign a number at any time; the next step uses it.

    Raises:
        ValueError: if there are fewer than two students, they share weights or differ in their outputs, or an argument
            is out of bounds.

    Example:
        >>> import keras, numpy as np
        >>> peers = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(2)]
        >>> mutual = MutualLearning(peers)
        >>> mutual.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> history = mutual.fit(np.ones((8, 4), "float32"), np.zeros(8, "int32"), verbose=0)
        >>> sorted(history.history)
        ['loss', 'mutual_loss', 'student_0_loss', 'student_1_loss', 'total_loss']

    Reference:
        Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384, eq. 4-6; Anil et al., "Large
        Scale Distributed Neural Network Training through Online Distillation", ICLR 2018, arXiv:1804.03235 (exchange).
        Differs: peers not updated in a student's turn run in inference mode; workers wait for each other at an
        exchange. For the second paper's start without distillation make ``mutual_weight`` a schedule.
    """

    owner = "MutualLearning"

    def __init__(
        self,
        students: Sequence[keras.Model],
        term: DistillationLoss | None = None,
        mutual_weight: Any = 1.0,
        update: str = "together",
        exchange_every_steps: int | None = None,
        exchange: PeerExchange | None = None,
        name: str = "mutual_learning",
    ) -> None:
        if not isinstance(students, (list, tuple)) or len(students) < 2:
            count = len(students) if isinstance(students, (list, tuple)) else type(students).__name__
            raise error(self.owner, "at least 2 students", count, "One student alone has no peer")
        _check_outputs(self.owner, students)
        self.update = choice(self.owner, "update", update, ("together", "in_turn"))
        self.exchange_every_steps = checked_exchange(self.owner, students, update, exchange_every_steps, exchange)
        every = {f"student_{index}": student for index, student in enumerate(students)}
        self._names = list(every)
        self.exchange = exchange
        own = every if exchange is None else {f"student_{exchange.index}": students[exchange.index]}
        echoes = {}
        if exchange_every_steps is not None:  # the peers' teachers: copies that are updated at every exchange
            heard = [name for name in every if exchange is None or name not in own]
            echoes = {f"echo_of_{name}": Snapshot(every[name], 0.0, exchange_every_steps) for name in heard}
        parts = [*(f"{each}_loss" for each in own), "mutual_loss"]
        super().__init__(own, teachers=echoes, part_names=parts, name=name)
        self.term = LogitsDistillation(temperature=1.0) if term is None else term
        if not isinstance(self.term, DistillationLoss) or self.term.student_taps or self.term.teacher_taps:
            raise error(self.owner, "a term on final outputs, such as LogitsDistillation(1.0)", self.term)
        self.distillation_losses = [self.term]
        for student in students:
            self.term.validate_model_compatibility(students[0], student)
        if not self.term.built:
            self.term.build_from(None, None)
        setting = Setting(mutual_weight, lambda value: number(self.owner, "mutual_weight", value, low=0.0))
        object.__setattr__(self, "_mutual", setting)
        setting.create(self, "mutual_weight")

    @property
    def students(self) -> list[keras.Model]:
        """The students, in the order in which they were given."""
        if self.exchange is None:
            return list(self.players.values())
        return [self.players.get(name) or self._member(f"echo_of_{name}").model for name in self._names]

    @property
    def student(self) -> keras.Model:
        """The first student trained here, whose outputs metrics and callbacks see."""
        return next(iter(self.players.values()))

    @property
    def mutual_weight(self) -> float:
        """Weight of the mean over peers, >= 0. Assign a number at any time; the next step uses it."""
        return self._mutual.number

    @mutual_weight.setter
    def mutual_weight(self, value: Any) -> None:
        self._mutual.assign(value)

    @property
    def settings(self) -> dict[str, Setting]:
        """The weight and the term's numbers, by name in the logs."""
        return {"mutual_weight": self._mutual, **self.term.settings}

    def rounds(self) -> list[Round]:
        """Return one round for all students, or one per student."""
        if self.update == "together":
            return [Round(tuple(self.players), self._together)]
        return [Round((name,), self._turn_of(name)) for name in self.players]

    def after_update(self, step: Any) -> None:
        """Update the copies that teach the peers from their students, if these are trained here.

        Args:
            step: number of steps so far.
        """
        if self.exchange_every_steps is not None and self.exchange is None:
            for name, student in self.players.items():
                self._member(f"echo_of_{name}").after_update(student, step)

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Train, synchronised with other workers if there is an ``exchange``; arguments and result are as in Keras.

        Args:
            x: as in Keras.
            y: as in Keras.
            *args: as in Keras.
            **kwargs: as in Keras.

        Returns:
            The history.
        """
        if self.exchange is not None and self.exchange_every_steps is not None:
            if self.exchange_every_steps % self.steps_per_execution:
                expected = f"exchange_every_steps to be a multiple of steps_per_execution={self.steps_per_execution}"
                raise error(self.owner, expected, self.exchange_every_steps)
            copies = {each: member.model for each, member in self._hidden.members.items()}
            meeting = Exchanging(self.exchange, self.student, copies, self.exchange_every_steps)
            # Before a backup, which would otherwise hold weights from before the exchange.
            kwargs["callbacks"] = [meeting, *(kwargs.get("callbacks") or [])]
        return super().fit(x, y, *args, **kwargs)

    def _loss_of(
        self, batch: Batch, name: str, outputs: dict[str, Any], said: dict[str, Any], training: bool
    ) -> tuple[Any, Any]:
        """Return the supervised and the mutual loss of one student, given the others' outputs."""
        heard = [keras.tree.map_structure(ops.stop_gradient, said[other]) for other in said if other != name]
        values = [
            self.term.compute_loss(
                each, outputs[name], labels=batch.labels, sample_weight=batch.weights, training=training
            )
            for each in heard
        ]
        return self.supervised(batch, outputs[name]), ops.mean(ops.stack(values))

    def _together(self, batch: Batch, training: bool) -> Measured:
        outputs = {name: model(batch.inputs, training=training) for name, model in self.players.items()}
        said = outputs
        if self.exchange_every_steps is not None:
            echoes = {name: self._hidden.members.get(f"echo_of_{name}") for name in self._names}
            said = {name: echo.listen(batch.inputs)[0] for name, echo in echoes.items() if echo is not None}
        each = {name: self._loss_of(batch, name, outputs, said, training) for name in outputs}
        losses = {name: own + self._mutual.tensor * mutual for name, (own, mutual) in each.items()}
        parts = [(f"{name}_loss", own) for name, (own, _) in each.items()]
        mutual = ops.mean(ops.stack([value for _, value in each.values()]))
        return Measured(losses, (*parts, ("mutual_loss", mutual)), next(iter(outputs.values())))

    def _turn_of(self, name: str) -> Any:
        def measure(batch: Batch, training: bool) -> Measured:
            outputs = {
                other: model(batch.inputs, training=training and other == name) for other, model in self.players.items()
            }
            own, mutual = self._loss_of(batch, name, outputs, outputs, training)
            parts = ((f"{name}_loss", own), ("mutual_loss", mutual))
            return Measured({name: own + self._mutual.tensor * mutual}, parts, outputs[name])

        return measure

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "students": [serialize(student) for student in self.students],
            "term": serialize(self.term),
            "mutual_weight": self._mutual.config,
            "update": self.update,
            "exchange_every_steps": self.exchange_every_steps,
            "exchange": None if self.exchange is None else serialize(self.exchange),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MutualLearning:
        """Rebuild the regime from ``get_config``."""
        deserialize = keras.saving.deserialize_keras_object
        students = [deserialize(each, custom_objects) for each in config["students"]]
        made = {"students": students, "term": deserialize(config["term"], custom_objects)}
        made["exchange"] = deserialize(config["exchange"], custom_objects) if config.get("exchange") else None
        return cls(**{**config, **made})


def _check_outputs(owner: str, students: Sequence[Any]) -> None:
    """Raise if the students' outputs certainly differ in number or classes."""
    shapes = [[tuple(t.shape) for t in getattr(model, "outputs", None) or []] for model in students]
    for index, shape in enumerate(shapes[1:], 1):
        if shape and shapes[0] and [each[-1] for each in shape] != [each[-1] for each in shapes[0]]:
            got = f"{shapes[0]} and {shape} of student {index}"
            raise error(owner, "students with outputs of one shape", got, "Give every student the same classes")
