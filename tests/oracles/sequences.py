"""Float64 NumPy twins of the losses on sequences: forward-backward loops over one sequence at a time, enumeration."""

import itertools

import numpy as np

from tests.oracles import kl, log_softmax


def extended(labels, blank=0):
    """Blank, label, blank, ..., blank."""
    states = [blank]
    for label in labels:
        states += [int(label), blank]
    return states


def real(labels, blank=0):
    return [int(label) for label in labels if label >= 0 and label != blank]


def ctc_lattice(labels, log_q, blank=0):
    """Return alpha, beta (frames, states) and the states: Graves' recursions, in logarithms."""
    states, frames = extended(labels, blank), len(log_q)
    alpha = np.full((frames, len(states)), -np.inf)
    beta = np.full((frames, len(states)), -np.inf)
    alpha[0, :2] = log_q[0, states[:2]]
    beta[-1, -2:] = 0.0

    def may_skip(s):
        return s >= 2 and states[s] != blank and states[s] != states[s - 2]

    with np.errstate(divide="ignore"):
        for t in range(1, frames):
            for s, k in enumerate(states):
                come = (
                    [alpha[t - 1, s]] + [alpha[t - 1, s - 1]] * (s >= 1) + [alpha[t - 1, s - 2 if may_skip(s) else s]]
                )
                come = come if may_skip(s) else come[:-1]
                alpha[t, s] = np.logaddexp.reduce(come) + log_q[t, k]
        for t in range(frames - 2, -1, -1):
            for s in range(len(states)):
                after = [beta[t + 1, n] + log_q[t + 1, states[n]] for n in (s, s + 1) if n < len(states)]
                if s + 2 < len(states) and may_skip(s + 2):
                    after.append(beta[t + 1, s + 2] + log_q[t + 1, states[s + 2]])
                beta[t, s] = np.logaddexp.reduce(after)
    return alpha, beta, states


def ctc(labels, logits, mask=None, blank=0):
    """Values, (batch,)."""
    logits = np.asarray(logits, "float64")
    mask = np.ones(logits.shape[:2], bool) if mask is None else np.asarray(mask, bool)
    values = []
    for row, z, kept in zip(labels, logits, mask, strict=True):
        alpha, _, _ = ctc_lattice(real(row, blank), log_softmax(z[kept]), blank)
        values.append(-np.logaddexp.reduce(alpha[-1, -2:]))
    return np.array(values)


def ctc_gradient(labels, logits, blank=0):
    """The gradient of each value to its logits: q minus the posterior of each class at each frame (Graves' eq. 16)."""
    gradients = []
    for row, z in zip(labels, np.asarray(logits, "float64"), strict=True):
        log_q = log_softmax(z)
        alpha, beta, states = ctc_lattice(real(row, blank), log_q, blank)
        total = np.logaddexp.reduce(alpha[-1, -2:])
        gradient = np.exp(log_q)
        for s, k in enumerate(states):
            gradient[:, k] -= np.exp(alpha[:, s] + beta[:, s] - total)
        gradients.append(gradient)
    return np.array(gradients)


def collapse(path, blank=0):
    """Merge repeats, drop blanks."""
    return tuple(k for k, _ in itertools.groupby(path) if k != blank)


def all_label_sequences(logits, blank=0):
    """Return {labels: probability} over every path: for a handful of frames and classes."""
    q = np.exp(log_softmax(logits))
    found = {}
    for path in itertools.product(range(q.shape[1]), repeat=len(q)):
        key = collapse(path, blank)
        found[key] = found.get(key, 0.0) + np.prod(q[np.arange(len(q)), path])
    return found


def frame_soft_targets(
    teacher, student, temperature=1.0, mask=None, blank=0, keep="all", blank_threshold=0.9, neighbours=1
):
    """Mean over kept frames, (batch,)."""
    teacher, student = np.asarray(teacher, "float64"), np.asarray(student, "float64")
    mask = np.ones(teacher.shape[:2], bool) if mask is None else np.asarray(mask, bool)
    values = []
    for t, s, kept in zip(teacher, student, mask, strict=True):
        kept = kept.copy()
        if keep == "without_blanks":
            kept &= np.exp(log_softmax(t))[:, blank] <= blank_threshold
        if keep == "around_spikes":
            spikes = [i for i in np.flatnonzero(kept) if t[i].argmax() != blank]
            kept &= np.array([any(abs(i - j) <= neighbours for j in spikes) for i in range(len(t))])
        each = temperature**2 * kl(log_softmax(t / temperature), log_softmax(s / temperature))
        values.append(each[kept].mean() if kept.any() else 0.0)
    return np.array(values)


def guided_ctc(teacher, student, mask=None, blank=0):
    teacher, q = np.asarray(teacher, "float64"), np.exp(log_softmax(student))
    mask = np.ones(teacher.shape[:2], bool) if mask is None else np.asarray(mask, bool)
    best = teacher.argmax(-1)
    chosen = np.take_along_axis(q, best[..., None], -1)[..., 0]
    return -np.sum(np.where(mask & (best != blank), chosen, 0.0), 1)


def crf_scores(potentials):
    """Return {tags: score} of one sequence by enumeration; row 0 of the first token is the start."""
    potentials = np.asarray(potentials, "float64")
    tokens, tags = potentials.shape[0], potentials.shape[-1]
    found = {}
    for path in itertools.product(range(tags), repeat=tokens):
        before = (0, *path[:-1])
        found[path] = sum(potentials[t, i, j] for t, (i, j) in enumerate(zip(before, path, strict=True)))
    return found


def crf_negative_log_likelihood(labels, potentials, mask=None):
    """Values, (batch,), by the forward recursion; ``crf_scores`` gives the same by enumeration."""
    potentials, labels = np.asarray(potentials, "float64"), np.asarray(labels)
    kept = labels >= 0 if mask is None else (labels >= 0) & mask
    values = []
    for row, scores, keep in zip(labels, potentials, kept, strict=True):
        tags, scores = row[keep], scores[keep]
        alpha, score = scores[0, 0], scores[0, 0, tags[0]]
        for before, tag, each in zip(tags[:-1], tags[1:], scores[1:], strict=True):
            alpha = np.logaddexp.reduce(alpha[:, None] + each, axis=0)
            score += each[before, tag]
        values.append(np.logaddexp.reduce(alpha) - score)
    return np.array(values)


def crf_marginals(potentials):
    """Return (tokens, tags) probabilities of one sequence."""
    found = crf_scores(potentials)
    paths, scores = np.array(list(found)), np.array(list(found.values()))
    weights = np.exp(scores - np.logaddexp.reduce(scores))
    return np.array(
        [[weights[paths[:, t] == k].sum() for k in range(potentials.shape[-1])] for t in range(len(potentials))]
    )
