"""``surrogate``: a readable model that imitates a teacher, and its fidelity."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_distill._checks import choice, error, integer, number
from keras_distill.explain._surrogates._answers import log_probabilities, sampled_rows, table_of, wilson
from keras_distill.explain._surrogates._fitted import KINDS, Additive, Fitted, Linear, Rules, Tree
from keras_distill.explain._surrogates._hard_tree import HardTree
from keras_distill.students import Rule

_OWNER = "explain.surrogate"


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How often a surrogate gives the teacher's answer.

    Args:
        value: fraction of the rows, 0 to 1.
        low: lower end of Wilson's 95% interval.
        high: upper end.
        floor: the fraction that the teacher's most frequent answer alone would reach.

    Example:
        >>> str(Fidelity(0.9, 0.88, 0.92, 0.6))
        '0.900 [0.880, 0.920], constant answer 0.600'
    """

    value: float
    low: float
    high: float
    floor: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], constant answer {self.floor:.3f}"


def fidelity_of(scores: np.ndarray, targets: np.ndarray) -> Fidelity:
    """Return the fidelity of scores to a teacher's log-probabilities."""
    answers = targets.argmax(-1)
    alike = float((scores.argmax(-1) == answers).sum())
    return Fidelity(
        alike / len(answers), *wilson(alike, len(answers)), float(np.bincount(answers).max() / len(answers))
    )


class Surrogate:
    """A readable model fitted to a teacher's answers, returned by ``explain.surrogate``.

    Args:
        kind: ``"tree"``, ``"rules"``, ``"linear"`` or ``"additive"``.
        fitted: the underlying model.
        fidelity: fidelity on held-out rows.
        sampled_fidelity: fidelity on sampled rows not used for fitting.
        feature_names: one per column.
        class_names: one per class.
        parts: training, held-out and sampled rows with the teacher's log-probabilities, for ``curve``.
        settings: settings of the fit, for ``curve``.
    """

    def __init__(
        self,
        kind: str,
        fitted: Fitted,
        fidelity: Fidelity,
        sampled_fidelity: Fidelity,
        feature_names: list[str],
        class_names: list[str],
        parts: dict[str, tuple[np.ndarray, np.ndarray]],
        settings: dict[str, Any],
    ) -> None:
        self.kind, self.fitted = kind, fitted
        self.fidelity, self.sampled_fidelity = fidelity, sampled_fidelity
        self.feature_names, self.class_names = feature_names, class_names
        self._parts, self._settings = parts, settings

    @property
    def size(self) -> int:
        """Leaves of a tree, rules of a list, columns of a linear or additive model."""
        return self.fitted.size

    def __repr__(self) -> str:
        """Return kind, size and fidelity."""
        unit = f"{self.size} {self.fitted.unit}"
        return f"Surrogate({self.kind}, {unit}, held out: {self.fidelity}; sampled: {self.sampled_fidelity})"

    def predict(self, x: Any) -> np.ndarray:
        """Return scores for rows, (rows, classes); their argmax is the answer."""
        return self.fitted.predict(table_of("Surrogate.predict", x))

    def rules(self) -> list[Rule]:
        """Return the rules of a tree (a partition) or of a list (the first rule that holds applies)."""
        return self.fitted.rules(self.feature_names, self.class_names)

    def to_code(self, name: str = "predict") -> str:
        """Return a tree or a list of rules as a Python function of plain ``if`` statements on a row.

        Args:
            name: name of the function, which takes a sequence of numbers and returns the class id.

        Returns:
            The source code.
        """
        columns = [f"row[{index}]" for index in range(len(self.feature_names))]
        ids = [str(index) for index in range(len(self.class_names))]
        lines = [f"def {name}(row):"]
        *rules, last = self.fitted.rules(columns, ids, digits=17)
        for rule in rules:
            lines += [f"    if {' and '.join(rule.conditions)}:", f"        return {rule.answer}"]
        lines.append(f"    return {last.answer}")  # the rules cover every row
        return "\n".join([*lines, ""])

    def coefficients(self) -> dict[str, dict[str, float]]:
        """Return the weight of each column for each class; for linear surrogates only."""
        if not isinstance(self.fitted, Linear):
            raise error("Surrogate.coefficients", "a surrogate of kind 'linear'", repr(self.kind))
        kernel = self.fitted.kernel
        return {
            self.feature_names[column]: dict(zip(self.class_names, map(float, kernel[column]), strict=True))
            for column in self.fitted.columns
        }

    def curve(self, sizes: Sequence[int] = (2, 4, 8, 16, 32)) -> list[tuple[int, Fidelity, Fidelity]]:
        """Fit surrogates of several sizes, to show what readability costs.

        Args:
            sizes: leaves, rules or columns, each >= 1.

        Returns:
            For each size the actual size of the surrogate and its fidelity on held-out and on sampled rows.
        """
        found = []
        for size in sizes:
            integer("Surrogate.curve", "sizes", size, low=1)
            fitted = KINDS[self.kind](*self._parts["train"], size, **self._settings)
            held, fresh = (
                fidelity_of(fitted.predict(x), y) for x, y in (self._parts["held_out"], self._parts["sampled"])
            )
            found.append((fitted.size, held, fresh))
        return found

    def to_model(self) -> keras.Model:
        """Return a Keras model with the surrogate's answers, for export and serving.

        Returns:
            A model from rows to logits.

        Raises:
            ValueError: for additive models and lists of rules.
        """
        inputs = keras.Input((len(self.feature_names),), name="inputs")
        if isinstance(self.fitted, Linear):
            dense = keras.layers.Dense(len(self.class_names), name="linear")
            model = keras.Model(inputs, dense(inputs), name="surrogate")
            dense.set_weights([self.fitted.kernel, self.fitted.bias])
            return model
        if not isinstance(self.fitted, Tree):
            raise error("Surrogate.to_model", "a surrogate of kind 'tree' or 'linear'", repr(self.kind))
        tree = self.fitted.model.tree_
        layer = HardTree(
            np.where(tree.children_left < 0, -1, tree.feature),
            tree.threshold,
            tree.children_left.clip(0),
            tree.children_right.clip(0),
            self.fitted.node_logits(),
            name="tree",
        )
        return keras.Model(inputs, layer(inputs), name="surrogate")


def surrogate(
    teacher: Any,
    data: Any,
    kind: str = "tree",
    *,
    samples: int = 0,
    size: int = 32,
    max_depth: int | None = None,
    held_out: float = 0.25,
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    engine: str = "ebm",
    seed: int = 0,
) -> Surrogate:
    """Fit a readable model to a teacher's answers on a table, and measure its fidelity.

    Choose ``"tree"`` for a partition that can be served, ``"rules"`` for a short ordered list, ``"linear"`` for signs
    and weights, ``"additive"`` for a curve per column (the most faithful of the four if columns do not interact).
    It shows what the teacher does, not whether that is right. For images use ``SoftDecisionTree``.

    Args:
        teacher: a Keras model or a teacher, with logits (one unit counts as two classes).
        data: (examples, columns), numbers; labels are not needed.
        kind: ``"tree"`` (CART), ``"rules"`` (sequential covering), ``"linear"`` (ridge on the logits) or
            ``"additive"``.
        samples: >= 0, additional rows that the teacher labels for the fit, mixed from the columns of two rows (as in
            TREPAN).
        size: >= 2, maximum number of leaves, rules or columns.
        max_depth: >= 1, for ``"tree"``: maximum number of conditions to a leaf; None sets no limit.
        held_out: between 0 and 1, fraction of the rows held out to measure fidelity.
        feature_names: one per column.
        class_names: one per class.
        engine: for ``"additive"``: ``"ebm"`` (interpret-core) or ``"splines"`` (scikit-learn).
        seed: seed of the split, the samples and the fit.

    Returns:
        The surrogate: ``predict``, ``rules``, ``curve``, ``to_code``, ``to_model``, ``fidelity``.

    Raises:
        ValueError: if the data are empty, not a table or texts, the teacher gives all rows the same answer, or a
            library is missing.

    Example:
        >>> teacher = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
        >>> teacher.set_weights([np.array([[0.0, 1.0], [0.0, 0.0]])])
        >>> found = surrogate(teacher, np.random.default_rng(0).normal(size=(400, 2)), size=2)
        >>> found.fidelity.value > 0.98, len(found.rules())
        (True, 2)

    Reference:
        Craven, Shavlik, "Extracting Tree-Structured Representations of Trained Networks" (TREPAN), NeurIPS 1995; Tan et
        al., "Distill-and-Compare", AIES 2018, arXiv:1710.06169. Differs: samples mix rows; trees are CART.
    """
    choice(_OWNER, "kind", kind, KINDS)
    choice(_OWNER, "engine", engine, ("ebm", "splines"))
    integer(_OWNER, "samples", samples, low=0)
    integer(_OWNER, "size", size, low=2)
    if max_depth is not None:
        integer(_OWNER, "max_depth", max_depth, low=1)
    share = number(_OWNER, "held_out", held_out, above=0, high=0.9)
    x = table_of(_OWNER, data)
    if len(x) < 8:
        raise error(_OWNER, "at least eight examples", f"{len(x)}")
    targets = log_probabilities(_OWNER, teacher, x)
    if len(np.unique(targets.argmax(-1))) < 2:
        advice = "Give rows that the teacher answers differently"
        raise error(_OWNER, "a teacher with at least two different answers", "a single class", advice)
    columns = _names("feature_names", feature_names, x.shape[1], "x")
    classes = _names("class_names", class_names, targets.shape[1], "class ")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    kept = max(2, int(share * len(x)))
    held, train = order[:kept], order[kept:]
    fresh = sampled_rows(x[train], max(1000, samples), rng)
    sampled = fresh, log_probabilities(_OWNER, teacher, fresh)
    known = x[train], targets[train]
    if samples:
        more = sampled_rows(x[train], samples, rng)
        known = (
            np.concatenate([x[train], more]),
            np.concatenate([targets[train], log_probabilities(_OWNER, teacher, more)]),
        )
    if len(np.unique(known[1].argmax(-1))) < 2:
        raise error(_OWNER, "two answers among the training rows", "a single class", "Give more rows, or samples")
    own: dict[str, dict[str, Any]] = {"additive": {"engine": engine}, "tree": {"max_depth": max_depth}}
    settings: dict[str, Any] = {"seed": seed, **own.get(kind, {})}
    parts = {"train": known, "held_out": (x[held], targets[held]), "sampled": sampled}
    fitted = KINDS[kind](*known, size, **settings)
    on_held, on_sampled = (fidelity_of(fitted.predict(rows), answers) for rows, answers in (parts["held_out"], sampled))
    return Surrogate(kind, fitted, on_held, on_sampled, columns, classes, parts, settings)


def _names(what: str, names: Sequence[str] | None, count: int, default: str) -> list[str]:
    if names is None:
        return [f"{default}{index}" for index in range(count)]
    if len(names) != count:
        raise error(_OWNER, f"{count} {what}", f"{len(names)}")
    return [str(name) for name in names]


__all__ = ["Additive", "Fidelity", "Linear", "Rules", "Surrogate", "Tree", "fidelity_of", "surrogate"]
