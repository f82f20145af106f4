"""A soft tree over a table, written as rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_distill._checks import error, number
from keras_distill.students._soft_tree._paths import nodes_of

_OWNER = "SoftDecisionTree.to_rules"


@dataclasses.dataclass(frozen=True)
class Rule:
    """Conditions, and the answer if all of them hold.

    Args:
        conditions: one text per condition; none means "always".
        answer: the name of the class, or the predicted number.
        distribution: probabilities of the classes; empty for numbers.
        share: share of the examples that the rule covers, 0 to 1; None if unknown.

    Example:
        >>> str(Rule(("age > 30", "hours <= 40"), "yes", (0.25, 0.75), 0.5))
        'if age > 30 and hours <= 40 then yes (75%), 50.0% of the examples'
    """

    conditions: tuple[str, ...]
    answer: str
    distribution: tuple[float, ...] = ()
    share: float | None = None

    def __str__(self) -> str:
        when = f"if {' and '.join(self.conditions)} then " if self.conditions else ""
        sure = f" ({100 * max(self.distribution):.0f}%)" if self.distribution else ""
        share = f", {100 * self.share:.1f}% of the examples" if self.share is not None else ""
        return f"{when}{self.answer}{sure}{share}"


def names_or_default(owner: str, what: str, names: Sequence[str] | None, count: int, default: str) -> list[str]:
    """Return ``count`` names: those given, or ``default`` followed by a number.

    Args:
        owner: name shown in the error message.
        what: the argument's name.
        names: the user's names, or None.
        count: required number of names.
        default: prefix of the number.

    Returns:
        The names.

    Raises:
        ValueError: if another number of names was given.
    """
    if names is None:
        return [f"{default}{index}" for index in range(count)]
    if len(names) != count:
        raise error(owner, f"{count} {what}", f"{len(names)}")
    return [str(name) for name in names]


def condition(weights: np.ndarray, bias: float, right: bool, names: Sequence[str], threshold: float) -> str:
    """Write ``weights . x + bias > 0`` (or ``<= 0``) with the columns that matter."""
    kept = np.flatnonzero(np.abs(weights) >= threshold * np.abs(weights).max())
    kept = kept[np.argsort(-np.abs(weights[kept]), kind="stable")]
    text = ""
    for index in map(int, kept):
        sign = "-" if weights[index] < 0 else "+"
        text += f" {sign} " if text else ("-" if sign == "-" else "")
        text += f"{abs(weights[index]):.3g}*{names[index]}"
    return f"{text or '0'} {'>' if right else '<='} {0.0 - bias:.3g}"


def rules_of(tree: Any, threshold: float, features: Any, classes: Any, data: Any) -> list[Rule]:
    """Build the rules of ``SoftDecisionTree.to_rules``, whose arguments these are."""
    number(_OWNER, "threshold", threshold, low=0, high=1)
    if len(tree.sizes) != 1:
        advice = "Use draw() for images"
        raise error(_OWNER, "a tree over a table, inputs (examples, columns)", f"inputs {tree.sizes}", advice)
    columns = names_or_default(_OWNER, "feature_names", features, tree.sizes[0], "x")
    names = names_or_default(_OWNER, "class_names", classes, tree.classes, "class ")
    shares = tree.shares if data is None else tree.shares_of(data)
    kernel, bias = (ops.convert_to_numpy(ops.convert_to_tensor(each)) for each in (tree.kernel, tree.bias))
    found = []
    for leaf, distribution in enumerate(tree.leaf_distributions()):
        nodes, directions = nodes_of(leaf, tree.depth)
        found.append(
            Rule(
                tuple(
                    condition(kernel[node], float(bias[node]), bool(right), columns, threshold)
                    for node, right in zip(nodes, directions, strict=True)
                ),
                names[int(distribution.argmax())],
                tuple(float(each) for each in distribution),
                None if shares is None else float(shares[tree.num_nodes + leaf]),
            )
        )
    return found
