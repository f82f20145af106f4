"""The four kinds of surrogates, each fitted to a teacher's log-probabilities with a given size."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_distill._checks import error, optional
from keras_distill.explain._surrogates._answers import wilson
from keras_distill.students import Rule

_OWNER = "explain.surrogate"
_LEAST = 1e-6  # probability mass given to classes that do not occur in a leaf


class Fitted(abc.ABC):
    """A fitted surrogate, which predicts log-probabilities and knows its size.

    Args:
        size: requested number of leaves, rules or columns.
    """

    unit = ""

    def __init__(self, size: int) -> None:
        self.size = size

    @abc.abstractmethod
    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return scores, (rows, classes), whose argmax is the answer."""

    def rules(self, names: Sequence[str], classes: Sequence[str], digits: int = 6) -> list[Rule]:
        """Return the surrogate as rules, if it consists of rules."""
        raise error("Surrogate.rules", "a surrogate of kind 'tree' or 'rules'", type(self).__name__)


def smoothed_log(probabilities: np.ndarray) -> np.ndarray:
    """Return log-probabilities in which every class is possible; each row's argmax is kept."""
    mixed = (1 - _LEAST) * probabilities + _LEAST / probabilities.shape[-1]
    return np.log(mixed / mixed.sum(-1, keepdims=True))


class Tree(Fitted):
    """CART on the teacher's answers."""

    unit = "leaves"

    def __init__(self, x: np.ndarray, targets: np.ndarray, size: int, seed: int, max_depth: int | None = None) -> None:
        with optional(_OWNER, "scikit-learn", "explain"):
            from sklearn.tree import DecisionTreeClassifier
        super().__init__(size)
        self.classes = targets.shape[1]
        least = max(1, len(x) // 2000)
        limits = {"max_leaf_nodes": max(2, size), "max_depth": max_depth, "min_samples_leaf": least}
        self.model = DecisionTreeClassifier(**limits, random_state=seed)
        self.model.fit(x, targets.argmax(-1))
        self.size = int(self.model.get_n_leaves())

    def node_logits(self) -> np.ndarray:
        """Return the logits of each node of the tree, (nodes, classes)."""
        counts = np.zeros((self.model.tree_.node_count, self.classes))
        counts[:, self.model.classes_] = self.model.tree_.value[:, 0]
        return smoothed_log(counts / counts.sum(-1, keepdims=True))

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.node_logits()[self.model.apply(x)]

    def rules(self, names: Sequence[str], classes: Sequence[str], digits: int = 6) -> list[Rule]:
        tree, logits, found = self.model.tree_, self.node_logits(), []

        def visit(node: int, bounds: dict[int, tuple[float, float]]) -> None:
            if tree.children_left[node] < 0:
                probabilities = np.exp(logits[node])
                share = float(tree.n_node_samples[node] / tree.n_node_samples[0])
                answer = classes[int(probabilities.argmax())]
                found.append(
                    Rule(interval_texts(bounds, names, digits), answer, tuple(map(float, probabilities)), share)
                )
                return
            column, bound = int(tree.feature[node]), float(tree.threshold[node])
            low, high = bounds.get(column, (-np.inf, np.inf))
            visit(tree.children_left[node], {**bounds, column: (low, min(high, bound))})
            visit(tree.children_right[node], {**bounds, column: (max(low, bound), high)})

        visit(0, {})
        return found


def interval_texts(bounds: dict[int, tuple[float, float]], names: Sequence[str], digits: int) -> tuple[str, ...]:
    """Return the text ``low < column <= high`` for each bounded column."""
    texts = []
    for column, (low, high) in bounds.items():
        left = f"{low:.{digits}g} < " if np.isfinite(low) and np.isfinite(high) else ""
        right = f" <= {high:.{digits}g}" if np.isfinite(high) else f" > {low:.{digits}g}"
        texts.append(f"{left}{names[column]}{right}")
    return tuple(texts)


class Rules(Fitted):
    """An ordered list of rules by sequential covering: the best leaf of a small tree, then the rest of the rows."""

    unit = "rules"

    def __init__(self, x: np.ndarray, targets: np.ndarray, size: int, seed: int) -> None:
        with optional(_OWNER, "scikit-learn", "explain"):
            from sklearn.tree import DecisionTreeClassifier
        super().__init__(size)
        answers, left = targets.argmax(-1), np.ones(len(x), bool)
        self.steps: list[tuple[dict[int, tuple[float, float]], np.ndarray, float]] = []
        self.classes = targets.shape[1]
        while left.any() and len(self.steps) < size - 1 and len(np.unique(answers[left])) > 1:
            rows, kinds = x[left], answers[left]
            small = DecisionTreeClassifier(max_depth=3, min_samples_leaf=max(1, len(x) // 200), random_state=seed)
            leaf = small.fit(rows, kinds).apply(rows)
            if small.get_n_leaves() < 2:
                break
            best = max(np.unique(leaf), key=lambda node: _worth(kinds[leaf == node], self.classes))
            shares = np.bincount(kinds[leaf == best], minlength=self.classes) / (leaf == best).sum()
            self.steps.append((_bounds_of(small.tree_, int(best)), smoothed_log(shares), (leaf == best).sum() / len(x)))
            left[np.flatnonzero(left)[leaf == best]] = False
        rest = answers[left] if left.any() else answers
        self.default = smoothed_log(np.bincount(rest, minlength=self.classes) / len(rest)), float(left.mean())
        self.size = len(self.steps) + 1

    def predict(self, x: np.ndarray) -> np.ndarray:
        found = np.broadcast_to(self.default[0], (len(x), self.classes)).copy()
        open_ = np.ones(len(x), bool)
        for bounds, logits, _ in self.steps:
            holds = open_.copy()
            for column, (low, high) in bounds.items():
                holds &= (x[:, column] > low) & (x[:, column] <= high)
            found[holds] = logits
            open_ &= ~holds
        return found

    def rules(self, names: Sequence[str], classes: Sequence[str], digits: int = 6) -> list[Rule]:
        steps = [*self.steps, ({}, *self.default)]
        return [
            Rule(
                interval_texts(bounds, names, digits),
                classes[int(logits.argmax())],
                tuple(map(float, np.exp(logits))),
                float(share),
            )
            for bounds, logits, share in steps
        ]


def _worth(kinds: np.ndarray, classes: int) -> float:
    """Score a rule: the lower bound of its precision times the square root of its coverage."""
    most = np.bincount(kinds, minlength=classes).max()
    return (wilson(float(most), len(kinds))[0] - 1 / classes) * len(kinds) ** 0.5


def _bounds_of(tree: Any, leaf: int) -> dict[int, tuple[float, float]]:
    bounds: dict[int, tuple[float, float]] = {}
    node = leaf
    while node:
        above = np.flatnonzero((tree.children_left == node) | (tree.children_right == node))[0]
        column, bound = int(tree.feature[above]), float(tree.threshold[above])
        low, high = bounds.get(column, (-np.inf, np.inf))
        bounds[column] = (low, min(high, bound)) if tree.children_left[above] == node else (max(low, bound), high)
        node = int(above)
    return bounds


def centred(targets: np.ndarray) -> np.ndarray:
    """Return log-probabilities as logits of mean 0, at most 15 below the largest, as targets of a regression."""
    floored = np.maximum(targets, targets.max(-1, keepdims=True) - 15.0)
    return floored - floored.mean(-1, keepdims=True)


class Linear(Fitted):
    """Ridge regression of the teacher's logits on the most important columns."""

    unit = "columns"

    def __init__(self, x: np.ndarray, targets: np.ndarray, size: int, seed: int) -> None:
        del seed
        super().__init__(min(size, x.shape[1]))
        logits, scale = centred(targets), np.where(x.std(0) > 0, x.std(0), 1.0)
        full = _ridge(x / scale, logits)[0]
        self.columns = np.sort(np.argsort(-np.linalg.norm(full, axis=1), kind="stable")[: self.size])
        weights, bias = _ridge(x[:, self.columns] / scale[self.columns], logits)
        self.kernel = np.zeros((x.shape[1], targets.shape[1]))
        self.kernel[self.columns] = weights / scale[self.columns, None]
        self.bias = bias

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x.astype("float64") @ self.kernel + self.bias


def _ridge(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with optional(_OWNER, "scikit-learn", "explain"):
        from sklearn.linear_model import Ridge
    fitted = Ridge(alpha=1.0).fit(x, y)
    return np.reshape(fitted.coef_, (y.shape[1], -1)).T, np.asarray(fitted.intercept_)


class Additive(Fitted):
    """A sum of one curve per column, by boosting (EBM of interpret-core) or splines of scikit-learn."""

    unit = "columns"

    def __init__(self, x: np.ndarray, targets: np.ndarray, size: int, seed: int, engine: str = "ebm") -> None:
        super().__init__(min(size, x.shape[1]))
        self.engine, self.classes = engine, targets.shape[1]
        linear = Linear(x, targets, self.size, seed)
        self.columns = linear.columns
        kept = x[:, self.columns]
        if engine == "splines":
            with optional(_OWNER, "scikit-learn", "explain"):
                from sklearn.linear_model import Ridge
                from sklearn.pipeline import make_pipeline
                from sklearn.preprocessing import SplineTransformer, StandardScaler
            splines = SplineTransformer(n_knots=6, knots="quantile", extrapolation="linear")
            self.model = make_pipeline(StandardScaler(), splines, Ridge(alpha=1.0))
            self.model.fit(kept, centred(targets))
            return
        with optional(_OWNER, "interpret-core", "explain"):
            from interpret.glassbox import ExplainableBoostingClassifier
        settings = {"interactions": 0, "outer_bags": 2, "max_rounds": 1000, "n_jobs": 1, "random_state": seed}
        self.model = ExplainableBoostingClassifier(**settings).fit(kept, targets.argmax(-1))

    def predict(self, x: np.ndarray) -> np.ndarray:
        kept = x[:, self.columns]
        if self.engine == "splines":
            return self.model.predict(kept)
        found = np.zeros((len(x), self.classes))
        found[:, self.model.classes_] = self.model.predict_proba(kept)
        return smoothed_log(found)


KINDS: dict[str, Callable[..., Fitted]] = {"tree": Tree, "rules": Rules, "linear": Linear, "additive": Additive}
