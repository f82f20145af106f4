"""Distil and compare: where a teacher's decisions deviate from the outcomes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_distill._checks import choice, error, integer
from keras_distill.explain._surrogates._answers import log_probabilities, table_of, wilson
from keras_distill.explain._surrogates._fitted import KINDS, Tree, smoothed_log
from keras_distill.students import Rule

_OWNER = "explain.audit"


@dataclasses.dataclass(frozen=True, eq=False)
class Audit:
    """Comparison of a surrogate of the teacher's answers with one of the outcomes, on the same rows.

    Args:
        differ: fraction of the rows on which the two surrogates differ.
        low: lower end of Wilson's 95% interval.
        high: upper end.
        where: rules that locate these rows, largest group first; the answer is ``"differ"`` or ``"agree"``.
        changes: for each pair (outcome's answer, teacher's answer) that differs, its fraction of the rows.
    """

    differ: float
    low: float
    high: float
    where: tuple[Rule, ...]
    changes: dict[tuple[str, str], float]

    def __str__(self) -> str:
        lines = [
            f"the two differ on {100 * self.differ:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}] of the rows"
        ]
        lines += [f"outcome {a}, teacher {b}: {100 * share:.1f}%" for (a, b), share in self.changes.items()]
        return "\n".join([*lines, *map(str, self.where)])


def audit(
    teacher: Any,
    data: Any,
    outcomes: Any,
    kind: str = "tree",
    *,
    size: int = 16,
    num_rules: int = 8,
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> Audit:
    """Compare a teacher with the true outcomes, through two surrogates of the same kind (distill and compare).

    Both surrogates are equally simple, so where they differ the teacher weights a column differently from the outcomes
    instead of only being more detailed. Rules are fitted on half of the rows and fractions counted on the other half.

    Args:
        teacher: a Keras model or a teacher, with logits.
        data: (examples, columns), numbers.
        outcomes: (examples,), class ids of the true outcomes.
        kind: as in ``surrogate``.
        size: >= 2, size of both surrogates.
        num_rules: >= 2, maximum number of rules that describe the differences.
        feature_names: one per column.
        class_names: one per class.
        seed: seed of the split and the fits.

    Returns:
        The fraction of rows on which the two differ, and rules that locate them.

    Raises:
        ValueError: if there are too few rows, an outcome without a class, or a single class.

    Reference:
        Tan, Caruana, Hooker, Lou, "Distill-and-Compare: Auditing Black-Box Models Using Transparent Model
        Distillation", AIES 2018, arXiv:1710.06169. Differs: any kind of surrogate; rules describe the difference.
    """
    choice(_OWNER, "kind", kind, KINDS)
    integer(_OWNER, "size", size, low=2)
    integer(_OWNER, "num_rules", num_rules, low=2)
    x, labels = table_of(_OWNER, data), np.asarray(outcomes)
    targets = log_probabilities(_OWNER, teacher, x)
    classes = targets.shape[1]
    if len(x) < 8 or labels.shape != (len(x),):
        raise error(_OWNER, "at least eight rows with an outcome each", f"{len(x)} rows, outcomes {labels.shape}")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise error(_OWNER, f"outcomes from 0 to {classes - 1}", f"{labels.dtype}, {labels.min()} to {labels.max()}")
    for who, each in (("teacher", targets.argmax(-1)), ("outcomes", labels)):
        if len(np.unique(each)) < 2:
            raise error(_OWNER, f"at least two classes among the {who}", "a single class")
    order = np.random.default_rng(seed).permutation(len(x))
    fit, count = order[::2], order[1::2]
    happened = smoothed_log(np.eye(classes)[labels])
    pair = [KINDS[kind](x[fit], y[fit], size, seed).predict(x).argmax(-1) for y in (happened, targets)]
    differs = pair[0] != pair[1]
    rate = float(differs[count].mean())
    names = [f"x{i}" for i in range(x.shape[1])] if feature_names is None else list(feature_names)
    kinds = [f"class {i}" for i in range(classes)] if class_names is None else list(class_names)
    rules: list[Rule] = []
    if 0 < differs[fit].mean() < 1:
        flags = smoothed_log(np.eye(2)[differs[fit].astype(int)])
        found = Tree(x[fit], flags, num_rules, seed).rules(names, ["agree", "differ"])
        rules = sorted(found, key=lambda rule: -rule.distribution[1] * (rule.share or 0.0))
    changes = {}
    for a in range(classes):
        for b in range(classes):
            moved = float(((pair[0] == a) & (pair[1] == b))[count].mean())
            if a != b and moved:
                changes[kinds[a], kinds[b]] = moved
    return Audit(rate, *wilson(float(differs[count].sum()), len(count)), tuple(rules), changes)
