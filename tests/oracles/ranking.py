"""Float64 NumPy references of the ranking losses, one list at a time, from the formulas."""

import numpy as np
from scipy.special import expit, logsumexp


def by_teacher(teacher, student, keep):
    """The student's scores of the kept items, in the teacher's order."""
    order = [i for i in np.argsort(-np.asarray(teacher, "float64"), kind="stable") if keep[i]]
    return np.asarray(student, "float64")[order]


def list_mle(teacher, student, keep, top_k=None):
    s = by_teacher(teacher, student, keep)
    return sum(logsumexp(s[k:]) - s[k] for k in range(len(s) if top_k is None else min(top_k, len(s))))


def rank_distil(teacher, student, keep, top_k=10, num_items=None):
    s = by_teacher(teacher, student, keep)
    head, tail = s[:top_k], s[top_k:]
    share = 1.0 if num_items is None or not len(tail) else (num_items - top_k) / len(tail)
    return sum(np.log(np.exp(head[k:]).sum() + share * np.exp(tail).sum()) - head[k] for k in range(len(head)))


def relaxed_order(interesting, uninteresting):
    head, tail = np.asarray(interesting, "float64"), np.asarray(uninteresting, "float64")
    return sum(logsumexp(np.concatenate([head[k:], tail])) - head[k] for k in range(len(head)))


def relaxed_ranking(teacher, student, keep, num_interesting=40):
    s = by_teacher(teacher, student, keep)
    return relaxed_order(s[:num_interesting], s[num_interesting:])


def rank_net(teacher, student, keep, targets="order", top_k=None, temperature=1.0, mean=False):
    t, s = np.asarray(teacher, "float64"), np.asarray(student, "float64")
    items = [i for i in np.argsort(-t, kind="stable") if keep[i]]
    total, pairs = 0.0, 0
    for i in items[:top_k]:
        for j in items:
            if t[i] > t[j]:
                pairs += 1
                if targets == "order":
                    total += np.log1p(np.exp(-(s[i] - s[j])))
                else:
                    p, q = expit((t[i] - t[j]) / temperature), expit((s[i] - s[j]) / temperature)
                    total += temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    return total / max(pairs, 1) if mean else total


def ranked_items(teacher, student, keep, top_k=10, weighting="static", decay=1.0, scale=0.1):
    """Dynamic weights from exact ranks among all kept items."""
    s = by_teacher(teacher, student, keep)
    head = s[:top_k]
    r = np.arange(len(head))
    weights = np.ones(len(head))
    if weighting != "dynamic":
        weights = np.exp(-r / decay) / np.exp(-r / decay).sum()
    if weighting != "static":
        ranks = (s[None] > head[:, None]).sum(1)
        weights = weights * np.maximum(np.tanh(scale * (ranks - r)), 0)
    return (weights * np.log1p(np.exp(-head))).sum()
