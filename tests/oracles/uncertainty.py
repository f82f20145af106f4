"""Float64 SciPy references of the losses of ensembles, evidence and uncertain regression, from the formulas."""

import numpy as np
from scipy import special, stats

from tests.oracles import log_softmax


def tempered(members, student, temperature):
    """Members' log-probabilities and the student's logits, float64, at a temperature for all or one per example."""
    t = np.asarray(temperature, "float64").reshape(-1)
    t = t.reshape(-1, *[1] * (np.ndim(student) - 1))
    return log_softmax(np.asarray(members, "float64") / t[:, None]), np.asarray(student, "float64") / t, t[..., 0]


def mean_log(logs):
    return special.logsumexp(logs, axis=1) - np.log(logs.shape[1])


def kl(log_p, log_q):
    return np.sum(np.exp(log_p) * (log_p - log_q), -1)


def ensemble_soft_targets(members, student, temperature=1.0):
    logs, student, t = tempered(members, student, temperature)
    return t**2 * kl(mean_log(logs), log_softmax(student))


def member_soft_targets(members, heads, temperature=1.0):
    t = np.asarray(temperature, "float64").reshape(-1, 1, 1)
    logs, heads = (log_softmax(np.asarray(each, "float64") / t) for each in (members, heads))
    return np.mean(t[..., 0] ** 2 * kl(logs, heads), 1)


def log_density(alpha, logs):
    """Logarithm of the Dirichlet density at exp(logs)."""
    norm = special.gammaln(alpha).sum(-1) - special.gammaln(alpha.sum(-1))
    return ((alpha - 1) * logs).sum(-1) - norm


def dirichlet_distillation(members, student, temperature=1.0, smoothing=1e-3, offset=0.0, epsilon=0.0):
    logs, student, t = tempered(members, student, temperature)
    if smoothing or epsilon:
        logs = np.log((1 - smoothing) * np.exp(logs) + smoothing / logs.shape[-1] + epsilon)
    alpha = np.exp(student) + offset
    if epsilon:  # where the public code adds it
        norm = special.gammaln(alpha + epsilon).sum(-1) - special.gammaln(alpha.sum(-1) + epsilon)
        return t**2 * (norm - ((alpha - 1) * logs.mean(1)).sum(-1))
    return -(t**2) * np.mean(log_density(alpha[:, None], logs), 1)


def proxy_precision(members, epsilon=2.0**-23):
    logs = log_softmax(np.asarray(members, "float64"))
    mean = mean_log(logs)
    return (logs.shape[-1] - 1) / (2 * np.mean(kl(mean[:, None], logs), 1) + epsilon)


def proxy_dirichlet(members, student, form="reverse", offset=1.0, target_offset=1.0):
    mean = np.exp(mean_log(log_softmax(np.asarray(members, "float64"))))
    beta = proxy_precision(members)[..., None] * mean + target_offset
    alpha = np.exp(np.asarray(student, "float64")) + offset
    if form == "forward":
        norm = [special.gammaln(x).sum(-1) - special.gammaln(x.sum(-1)) for x in (alpha, beta)]
        expected = special.digamma(beta) - special.digamma(beta.sum(-1, keepdims=True))
        return norm[0] - norm[1] + ((beta - alpha) * expected).sum(-1)
    expected = special.digamma(alpha) - special.digamma(alpha.sum(-1, keepdims=True))
    flat = alpha.reshape(-1, alpha.shape[-1])
    entropy = np.reshape([stats.dirichlet(row).entropy() for row in flat], alpha.shape[:-1])
    return -(mean * expected).sum(-1) - entropy / beta.sum(-1)


def evidential(teacher, student, temperature=1.0, form="mse", evidence="softplus", targets=None):
    if targets is None:
        t = np.asarray(temperature, "float64")
        t = t.reshape(t.shape + (1,) * (np.ndim(student) - t.ndim)) if t.ndim else t
        targets = np.exp(log_softmax(np.asarray(teacher, "float64") / t))
    alpha = made(student, evidence)
    total = alpha.sum(-1, keepdims=True)
    if form == "mse":
        variance = np.stack([stats.dirichlet(row).var() for row in alpha.reshape(-1, alpha.shape[-1])]).reshape(
            alpha.shape
        )
        return ((targets - alpha / total) ** 2 + variance).sum(-1)
    function = np.log if form == "log" else special.digamma
    return (targets * (function(total) - function(alpha))).sum(-1)


def made(student, evidence):
    student = np.asarray(student, "float64")
    return 1 + (np.maximum(student, 0) if evidence == "relu" else np.logaddexp(student, 0))


def misleading_evidence(teacher, student, temperature=1.0, labels=None, evidence="softplus"):
    alpha = made(student, evidence)
    alpha = np.where(np.arange(alpha.shape[-1]) == np.asarray(labels)[..., None], 1.0, alpha)
    expected = special.digamma(alpha) - special.digamma(alpha.sum(-1, keepdims=True))
    flat = -special.gammaln(alpha.shape[-1])
    norm = special.gammaln(alpha).sum(-1) - special.gammaln(alpha.sum(-1))
    return flat - norm + ((alpha - 1) * expected).sum(-1)


def trust(teacher, members=False, kind="total"):
    """1 - uncertainty / log(classes)."""
    logs = log_softmax(np.asarray(teacher, "float64"))
    entropy = lambda x: -np.sum(np.exp(x) * x, -1)  # noqa: E731
    unsure = entropy(mean_log(logs) if members else logs)
    if kind == "knowledge":
        unsure = unsure - entropy(logs).mean(1)
    return 1 - unsure / np.log(logs.shape[-1])


def trust_weighted(teacher, student, temperature=1.0):
    from tests import oracles

    return trust(teacher) * oracles.soft_targets(teacher, student, temperature)


def split(outputs, parts):
    outputs = np.asarray(outputs, "float64")
    return np.split(outputs, parts, axis=-1)


def normal_inverse_gamma(members, student):
    means, logs = split(members, 2)
    m, v, a, b = (each[:, None] for each in split(student, 4))
    v, a, b, variance = np.exp(v), np.exp(a) + 1, np.exp(b), np.exp(logs)
    value = stats.norm(m, np.sqrt(variance / v)).logpdf(means) + stats.invgamma(a, scale=b).logpdf(variance)
    return -np.mean(value.sum(-1), 1)


def evidential_regression(labels, student, regularizer=0.01):
    m, v, a, b = split(student, 4)
    v, a, b, labels = np.exp(v), np.exp(a) + 1, np.exp(b), np.asarray(labels, "float64")
    value = -stats.t(2 * a, m, np.sqrt(b * (1 + v) / (v * a))).logpdf(labels)
    return (value + regularizer * np.abs(labels - m) * (2 * v + a)).sum(-1)


def mixture_at(members, student, grid, density):
    """The cross-entropy from members to the student's mixture, from points of a standard normal and their weights."""
    means, logs = split(members, 2)
    outputs = means.shape[-1]
    weights, centers, spreads = split(student, 3)
    shape = (*weights.shape[:-1], -1, outputs)
    weights = log_softmax(np.swapaxes(weights.reshape(shape), -1, -2))
    centers, spreads = (np.swapaxes(each.reshape(shape), -1, -2) for each in (centers, spreads))
    y = means[..., None] + np.exp(0.5 * logs)[..., None] * grid  # (batch, members, outputs, points)
    each = stats.norm.logpdf(y[..., None, :], centers[:, None, ..., None], np.exp(0.5 * spreads)[:, None, ..., None])
    inside = special.logsumexp(weights[:, None, ..., None] + each, axis=-2)
    return -np.mean((inside * density / density.sum()).sum(-1).sum(-1), 1)


def gaussian_mixture(members, student):
    return mixture_at(members, student, *special.roots_hermitenorm(15))


def mixture_integral(members, student):
    grid = np.linspace(-9, 9, 4001)
    return mixture_at(members, student, grid, stats.norm.pdf(grid))


def ensemble_gaussian_kl(members, student):
    """KL from the Gaussian with the ensemble's two moments to the student's."""
    means, logs = split(members, 2)
    mean, variance = means.mean(1), np.exp(logs).mean(1) + means.var(1)
    m, v = split(student, 2)
    v = np.exp(v)
    return 0.5 * (np.log(v / variance) + (variance + (mean - m) ** 2) / v - 1).sum(-1)
