"""Several models as one teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill._checks import choice, error, nearest, number
from keras_distill.teachers import _combine
from keras_distill.teachers._base import Teacher, as_teacher, gradient, refuse_probabilities, resolved
from keras_distill.teachers._class_map import ClassMap
from keras_distill.teachers._gate import LearnedGate
from keras_distill.teachers._members import Members

_RULES: dict[str, Any] = {
    "mean_probs": _combine.MeanProbs,
    "mean_logits": _combine.MeanLogits,
    "mean_loss": _combine.MeanLoss,
    "entropy": _combine.EntropyWeighted,
    "confidence": _combine.ConfidenceWeighted,
    "gradient": _combine.GradientBased,
    "uncertainty": _combine.UncertaintyWeighted,
    "learned_gate": LearnedGate,
    "stochastic": _combine.Stochastic,
}
_WEIGHTED = ("mean_probs", "mean_logits", "mean_loss", "stochastic")


def combine_rule(
    owner: str, combine: str | _combine.Combine, weights: Sequence[float] | None = None
) -> _combine.Combine:
    """Return the rule for a name and fixed weights, or the rule itself if one was given."""
    if isinstance(combine, _combine.Combine):
        if weights is not None:
            raise error(owner, "weights=None with a rule object", weights, "Give the weights to the rule")
        return combine
    if not isinstance(combine, str) or combine not in _RULES:
        advice = f"Nearest: {nearest(str(combine), _RULES)}"
        raise error(owner, f"combine to be one of {', '.join(map(repr, _RULES))}", combine, advice)
    if weights is None:
        return _RULES[combine]()
    choice(owner, "combine with fixed weights", combine, _WEIGHTED)
    return _RULES[combine](weights=weights)


@keras.saving.register_keras_serializable(package="keras_distill")
class Ensemble(Teacher):
    """Several models as one teacher (multi-teacher distillation). All run in one graph, frozen, in inference mode.

    Choose ``combine="mean_probs"`` first. Members must agree only on the meaning of their outputs: wrap one in
    ``Preprocessed`` to give it other inputs, and use ``class_maps`` for other label spaces. A member may itself be a
    teacher. Feature terms reach a member's layers as ``"0/block3"``, ``"1/block3"``.

    Args:
        models: Keras models or teachers, which give logits.
        weights: one number >= 0 per member, for the four rules that take fixed weights; None for equal ones.
        combine: ``"mean_probs"``, ``"mean_logits"``, ``"mean_loss"``, ``"entropy"``, ``"confidence"``,
            ``"gradient"``, ``"uncertainty"``, ``"learned_gate"``, ``"stochastic"``, or an object of one of the classes
            behind these names, such as ``GradientBased(max_weight=1.0)``.
        temperatures: one number > 0 per member, by which its logits are divided before anything else, as fitted by
            ``calibration.TemperatureScaler``; the term's temperature comes on top. None for 1.0.
        class_maps: one entry per member: None, or for each of the member's classes the student's class (-1 if it lacks
            it), or a (member classes, student classes) matrix of shares. Applied before the term's temperature.
        num_classes: the student's number of classes; None for the largest in ``class_maps``.
        **kwargs: passed on to ``keras.Model`` (``name``).

    Raises:
        ValueError: if there are no models, one ends in softmax or sigmoid, or an argument has the wrong length.

    Example:
        >>> import keras, numpy as np
        >>> def always(*probabilities):
        ...     x = keras.Input((1,))
        ...     bias = keras.initializers.Constant(np.log(probabilities))
        ...     return keras.Model(x, keras.layers.Dense(2, kernel_initializer="zeros", bias_initializer=bias)(x))
        >>> both = Ensemble([always(0.9, 0.1), always(0.5, 0.5)])
        >>> np.exp(both(np.zeros((1, 1)))).round(3)
        array([[0.7, 0.3]], dtype=float32)
    """

    def __init__(
        self,
        models: Sequence[keras.Model],
        weights: Sequence[float] | None = None,
        combine: str | _combine.Combine = "mean_probs",
        temperatures: Sequence[float] | None = None,
        class_maps: Sequence[Any] | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(models, keras.Model) or not list(models):
            raise error("Ensemble", "a list of one or more models", models)
        self.models = [as_teacher(model, "Ensemble") for model in models]
        for member in self.models:
            refuse_probabilities("Ensemble", member)
        count = len(self.models)
        for name, given in (("weights", weights), ("temperatures", temperatures), ("class_maps", class_maps)):
            if given is not None and len(given) != count:
                raise error("Ensemble", f"{name} with {count} entries, one per model", f"{len(given)}")
        self.combine = combine_rule("Ensemble", combine, weights)
        given_temperatures = enumerate(temperatures or [1.0] * count)
        self.temperatures = tuple(number("Ensemble", f"temperatures[{m}]", t, above=0.0) for m, t in given_temperatures)
        given_maps = list(class_maps or [None] * count)
        found = [ClassMap(each, owner="Ensemble").num_classes for each in given_maps if each is not None]
        self.num_classes = num_classes or max(found, default=None)
        self.class_maps = tuple(
            None if each is None else ClassMap(each, self.num_classes, "Ensemble") for each in given_maps
        )
        self._check_maps()
        if isinstance(self.combine, _combine.Stochastic):
            self.draws = keras.random.SeedGenerator(self.combine.seed)
        self.gate = self.combine.make_layer(count) if isinstance(self.combine, LearnedGate) else None

    def _check_maps(self) -> None:
        gaps = [m for m, each in enumerate(self.class_maps) if each is not None and not each.complete]
        if gaps and isinstance(self.combine, _combine.MeanLogits):
            advice = "Use combine='mean_probs': a mean of logits rules out what one member does not know"
            raise error("Ensemble", "class maps that reach every class for 'mean_logits'", f"gaps in {gaps}", advice)

    def listen(
        self, teacher_x: Any, taps: Sequence[str] = (), *, differentiable: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Run the members once each (only the drawn one for ``"stochastic"``); see ``Teacher.listen``."""
        wanted = self._per_member(taps)
        if isinstance(self.combine, _combine.Stochastic):
            if taps:
                raise error("Ensemble", "no feature taps with combine='stochastic'", list(taps), "Use 'mean_loss'")
            return self._one_of(self.combine, teacher_x, differentiable), {}
        answers = [self._ask(m, teacher_x, wanted[m], differentiable) for m in range(len(self.models))]
        tapped = {f"{m}/{name}": tensor for m, answer in enumerate(answers) for name, tensor in answer[1].items()}
        structure = answers[0][0]
        leaves = [keras.tree.flatten(answer[0]) for answer in answers]
        if any(len(each) != len(leaves[0]) for each in leaves):
            raise error("Ensemble", "members with the same outputs", f"{[len(each) for each in leaves]} outputs")
        joined = [self._join([each[i] for each in leaves], teacher_x) for i in range(len(leaves[0]))]
        return keras.tree.pack_sequence_as(structure, joined), tapped

    def _per_member(self, taps: Sequence[str]) -> list[list[str]]:
        wanted: list[list[str]] = [[] for _ in self.models]
        for name in taps:
            member, _, rest = name.partition("/")
            if not rest or not member.isdigit() or int(member) >= len(self.models):
                advice = f"Write '0/{name}' for that layer of the first member"
                raise error("Ensemble", f"a tap 'member/layer' with member 0 to {len(self.models) - 1}", name, advice)
            wanted[int(member)].append(rest)
        return wanted

    def _ask(
        self, m: int, teacher_x: Any, taps: Sequence[str] = (), differentiable: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        member = self.models[m]
        outputs, tapped = member.listen(member.split(teacher_x)[1], taps, **gradient(differentiable))

        def translate(output: Any) -> Any:
            if isinstance(output, Members):
                return Members(translate(output.members), output.combine, output.spread, output.gate_inputs)
            output = output if self.temperatures[m] == 1.0 else ops.cast(output, "float32") / self.temperatures[m]
            translator = self.class_maps[m]
            return output if translator is None else translator(output)

        return keras.tree.map_structure(translate, outputs), tapped

    def _one_of(self, rule: _combine.Stochastic, teacher_x: Any, differentiable: bool) -> Any:
        drawn = rule.draw(len(self.models), self.draws)

        def branch(m: int) -> Any:
            return lambda: keras.tree.map_structure(
                lambda t: ops.cast(t, "float32"), resolved(self._ask(m, teacher_x, (), differentiable)[0])
            )

        outputs = ops.switch(drawn, [branch(m) for m in range(len(self.models))])
        return keras.tree.map_structure(lambda t: Members(ops.expand_dims(t, 1), rule), outputs)

    def _join(self, outputs: list[Any], teacher_x: Any) -> Members:
        spread = None
        if self.combine.needs_spread:
            if not all(isinstance(output, Members) for output in outputs):
                advice = "Make each member a MonteCarloDropout or an Ensemble"
                raise error("Ensemble", "members that report their uncertainty", "plain models", advice)
            variance = getattr(self.combine, "spread", "") == "variance"
            spread = ops.stack([_unsure(output, variance) for output in outputs], axis=1)
        logits = [ops.cast(each, "float32") for each in map(resolved, outputs)]
        sizes = {each.shape[-1] for each in logits}
        if len(sizes) > 1:
            advice = "Give class_maps to translate the members' classes into the student's"
            raise error("Ensemble", "members with the same number of classes", sorted(map(str, sizes)), advice)
        if sizes == {1} and not isinstance(self.combine, _combine.MeanLogits) and not self.combine.per_member:
            if getattr(self.combine, "spread", None) != "variance":
                advice = "Use combine='mean_logits' for regressions and one-logit heads"
                raise error("Ensemble", "at least 2 classes (softmax over one logit is always 1)", "1", advice)
        stacked = ops.stack(logits, axis=1)
        gate_inputs = None
        if isinstance(self.combine, LearnedGate):
            gate_inputs = self.combine.inputs(stacked, teacher_x)
            gate = self.combine.make_layer(len(outputs))
            if not gate.built:  # built, not called: a call would add its penalty
                gate.build(keras.tree.map_structure(lambda each: tuple(each.shape), gate_inputs))
        return Members(stacked, self.combine, spread, gate_inputs)

    @property
    def trainable_parts(self) -> list[keras.layers.Layer]:
        """The learned gate, if any, and the members' trainable parts."""
        own = [] if self.gate is None else [self.gate]
        return own + [part for member in self.models for part in member.trainable_parts]

    @property
    def seed_generators(self) -> list[keras.random.SeedGenerator]:
        """The sources of randomness of the ensemble and its members."""
        own = [self.draws] if isinstance(self.combine, _combine.Stochastic) else []
        return own + [generator for member in self.models for generator in member.seed_generators]

    def get_build_config(self) -> dict[str, Any]:
        """Return the input shape of the learned gate, needed to load its saved weights."""
        return {"gate_inputs": self.gate.input_shape_seen} if self.gate is not None and self.gate.built else {}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Build the learned gate as it was."""
        if config.get("gate_inputs") is not None and self.gate is not None:
            self.gate.build(tuple(config["gate_inputs"]))
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "models": [serialize(member) for member in self.models],
            "combine": serialize(self.combine),
            "temperatures": list(self.temperatures),
            "class_maps": [None if each is None else each.classes for each in self.class_maps],
            "num_classes": self.num_classes,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Ensemble:
        """Rebuild the teacher from ``get_config``."""
        deserialize = keras.saving.deserialize_keras_object
        models = [deserialize(each, custom_objects) for each in config["models"]]
        return cls(**{**config, "models": models, "combine": deserialize(config["combine"], custom_objects)})


def _unsure(output: Members, variance: bool) -> Any:
    if variance:
        return ops.mean(ops.var(ops.cast(output.members, "float32"), axis=1), axis=-1)
    return output.knowledge_uncertainty()
