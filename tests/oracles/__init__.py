"""Float64 NumPy references of the losses on logits, from the formulas: one value per position, without clipping."""

import numpy as np
from scipy.special import log_expit, logsumexp, xlogy


def log_softmax(z):
    """Log-probabilities; -inf stays -inf."""
    z = np.asarray(z, "float64")
    return z - logsumexp(z, axis=-1, keepdims=True)


def _logs(teacher, student, temperature):
    t = np.asarray(temperature, "float64")
    t = t if t.ndim == 0 else t.reshape(t.shape + (1,) * (np.ndim(student) - t.ndim))
    return log_softmax(np.asarray(teacher, "float64") / t), log_softmax(np.asarray(student, "float64") / t)


def _square(temperature, student):
    t = np.asarray(temperature, "float64")
    return t**2 if t.ndim == 0 else (t**2).reshape(t.shape + (1,) * (np.ndim(student) - 1 - t.ndim))


def expectation(p, values):
    with np.errstate(invalid="ignore", over="ignore"):
        return np.sum(np.where(p > 0, p * np.where(p > 0, values, 0.0), 0.0), -1)


def kl(log_p, log_q):
    with np.errstate(invalid="ignore"):
        return expectation(np.exp(log_p), log_p - log_q)


def soft_targets(teacher, student, temperature=1.0):
    return _square(temperature, student) * kl(*_logs(teacher, student, temperature))


def reverse_soft_targets(teacher, student, temperature=1.0):
    log_p, log_q = _logs(teacher, student, temperature)
    return _square(temperature, student) * kl(log_q, log_p)


def jensen_shannon(teacher, student, temperature=1.0, beta=0.5):
    if beta in (0.0, 1.0):
        return (reverse_soft_targets if beta else soft_targets)(teacher, student, temperature)
    log_p, log_q = _logs(teacher, student, temperature)
    log_m = np.logaddexp(log_p + np.log(beta), log_q + np.log1p(-beta))
    return _square(temperature, student) * (beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m))


def total_variation(teacher, student, temperature=1.0):
    log_p, log_q = _logs(teacher, student, temperature)
    return _square(temperature, student) * 0.5 * np.abs(np.exp(log_p) - np.exp(log_q)).sum(-1)


def probability_matching(teacher, student, temperature=1.0):
    log_p, log_q = _logs(teacher, student, temperature)
    return _square(temperature, student) * np.square(np.exp(log_p) - np.exp(log_q)).sum(-1)


def logit_matching(teacher, student, temperature=1.0, center=False):
    gap = np.asarray(student, "float64") - np.asarray(teacher, "float64")
    return 0.5 * np.square(gap - gap.mean(-1, keepdims=True) * center).sum(-1)


def standardize(z):
    z = np.asarray(z, "float64")
    return (z - z.mean(-1, keepdims=True)) / (z.std(-1, ddof=1, keepdims=True) + 1e-7)


def standardized_soft_targets(teacher, student, temperature=1.0):
    return soft_targets(standardize(teacher), standardize(student), temperature)


def _rest(z, labels):
    """The logits without the labels' column."""
    z = np.asarray(z, "float64")
    keep = np.arange(z.shape[-1]) != np.asarray(labels)[..., None]
    return z[keep].reshape(*z.shape[:-1], z.shape[-1] - 1)


def _at(values, labels):
    return np.take_along_axis(values, np.asarray(labels)[..., None], -1)[..., 0]


def decoupled_soft_targets(teacher, student, temperature=1.0, labels=None, target_weight=1.0, non_target_weight=8.0):
    def bernoulli(z):
        z = np.asarray(z, "float64") / temperature
        logit = _at(z, labels) - logsumexp(_rest(z, labels), axis=-1)
        return np.stack([log_expit(logit), log_expit(-logit)], -1)

    binary = kl(bernoulli(teacher), bernoulli(student))
    rest = kl(*_logs(_rest(teacher, labels), _rest(student, labels), temperature))
    return temperature**2 * (target_weight * binary + non_target_weight * rest)


def normalized_soft_targets(teacher, student, temperature=1.0, labels=None, non_target_weight=1.5):
    target = -_at(np.exp(log_softmax(teacher)), labels) * _at(log_softmax(student), labels)
    log_r, log_s = _logs(_rest(teacher, labels), _rest(student, labels), temperature)
    return target - non_target_weight * temperature**2 * expectation(np.exp(log_r), log_s)


def weighted_soft_labels(teacher, student, temperature=1.0, labels=None, weight_from=None):
    """``weight_from``: student logits from which the weight is computed, without gradient."""
    own = student if weight_from is None else weight_from
    weight = -np.expm1(_at(log_softmax(own), labels) / (-_at(log_softmax(teacher), labels) + 1e-7))
    log_p, log_q = _logs(teacher, student, temperature)
    return -weight * _square(temperature, student) * expectation(np.exp(log_p), log_q)


def hard_targets(teacher, student, temperature=1.0, label_smoothing=0.0):
    log_q = _logs(teacher, student, temperature)[1]
    hard = -_at(log_q, np.argmax(teacher, -1))
    smooth = -log_q.mean(-1) * label_smoothing if label_smoothing else 0.0
    return _square(temperature, student) * ((1 - label_smoothing) * hard + smooth)


def binary_soft_targets(teacher, student, temperature=1.0, label_reduction="sum"):
    a, b = (np.asarray(z, "float64") / temperature for z in (teacher, student))
    one = expectation(np.exp(log_expit(a))[..., None], (log_expit(a) - log_expit(b))[..., None])
    each = one + expectation(np.exp(log_expit(-a))[..., None], (log_expit(-a) - log_expit(-b))[..., None])
    return temperature**2 * (each.sum(-1) if label_reduction == "sum" else each.mean(-1))


def class_correlation(teacher, student, temperature=1.0, inter_weight=1.0, intra_weight=1.0, beside=0.0):
    log_p, log_q = _logs(teacher, student, temperature)
    p, q = (np.exp(x).reshape(-1, x.shape[-1]) for x in (log_p, log_q))

    def mean_correlation(u, v):
        u, v = u - u.mean(-1, keepdims=True), v - v.mean(-1, keepdims=True)
        norms = np.linalg.norm(u, axis=-1) * np.linalg.norm(v, axis=-1) + beside
        return np.where(norms > 0, (u * v).sum(-1) / np.where(norms > 0, norms, 1.0), 0.0).mean()

    inter, intra = 1 - mean_correlation(p, q), 1 - mean_correlation(p.T, q.T)
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def top_k(teacher, k, missing):
    """Dense log-probabilities of the k likeliest classes, the rest spread or left out."""
    log_p = log_softmax(teacher)
    kept = np.argsort(-log_p, -1, kind="stable")[..., :k]
    mask = np.zeros(log_p.shape, bool)
    np.put_along_axis(mask, kept, True, -1)
    others = logsumexp(np.where(mask, -np.inf, log_p), axis=-1, keepdims=True)  # not 1 - kept, which would cancel
    rest = others - np.log(max(log_p.shape[-1] - k, 1)) if missing == "spread" else np.full_like(others, -np.inf)
    return np.where(mask, log_p, rest)


def top_k_soft_targets(teacher, student, temperature=1.0, k=5, missing="spread"):
    if missing == "tail":  # one class for all classes outside the teacher's top k, on both sides
        order = np.argsort(-np.asarray(teacher, "float64"), axis=-1, kind="stable")

        def joined(logits):
            sorted_ = np.take_along_axis(np.asarray(logits, "float64"), order, -1)
            return np.concatenate([sorted_[..., :k], logsumexp(sorted_[..., k:], axis=-1, keepdims=True)], -1)

        return soft_targets(joined(teacher), joined(student), temperature)
    return soft_targets(top_k(teacher, k, missing), student, temperature)


def gaussian_kl(teacher, student, temperature=1.0):
    """Last axis: means, then log-variances."""
    t, s = np.asarray(teacher, "float64"), np.asarray(student, "float64")
    half = t.shape[-1] // 2
    (m_t, v_t), (m_s, v_s) = ((x[..., :half], np.exp(x[..., half:])) for x in (t, s))
    return (np.log(v_s / v_t) / 2 + (v_t + (m_t - m_s) ** 2) / (2 * v_s) - 0.5).sum(-1)


def regression_matching(teacher, student, temperature=1.0, labels=None, margin=None):
    t, s = np.asarray(teacher, "float64"), np.asarray(student, "float64")
    if margin is None:
        return np.square(s - t).sum(-1)
    own, bound = (np.square(x - np.asarray(labels, "float64")).sum(-1) for x in (s, t))
    return np.where(own + margin > bound, own, 0.0)


def entropy(log_p):
    return -xlogy(np.exp(log_p), np.exp(log_p)).sum(-1)


def slope(function, x, step=1e-4):
    """Central differences of fourth order of a float64 function, entry by entry."""
    x = np.asarray(x, "float64")
    out = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        at = []
        for move in (1, -1, 2, -2):
            moved = x.copy()
            moved[index] += move * step
            at.append(np.sum(function(moved)))
        out[index] = (8 * (at[0] - at[1]) - (at[2] - at[3])) / (12 * step)
    return out


def policy_targets(teacher, student, temperature=1.0, sharpness=0.01, target="kl"):
    """The temperature of a term is not used: the loss has its own, ``sharpness``, for the teacher alone."""
    teacher, student = np.asarray(teacher, "float64"), np.asarray(student, "float64")
    if target == "kl":
        return kl(log_softmax(teacher / sharpness), log_softmax(student))
    if target == "nll":
        return -np.take_along_axis(log_softmax(student), teacher.argmax(-1)[..., None], -1)[..., 0]
    return np.square(teacher - student).sum(-1)
