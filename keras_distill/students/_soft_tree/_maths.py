"""The mathematics of a soft tree, level by level; the children of node i are 2i + 1 (left) and 2i + 2 (right)."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_distill._checks import choice
from keras_distill._typing import Tensor

LOSSES = ("leafwise", "mixture")
_CLIP = 1e-6  # keeps the logarithm of a saturated share finite


def path_log_probabilities(scores: Tensor, depth: int) -> list[Any]:
    """Return log P of the nodes, level by level from root to leaves: (batch, 2**level) each.

    Args:
        scores: (batch, 2**depth - 1): log-odds of the right branch of each inner node.
        depth: number of levels of inner nodes.

    Returns:
        ``depth + 1`` tensors.
    """
    levels = [ops.zeros_like(scores[:, :1])]
    for level in range(depth):
        here = scores[:, 2**level - 1 : 2 ** (level + 1) - 1]
        both = ops.stack([ops.log_sigmoid(-here), ops.log_sigmoid(here)], axis=-1)
        reached = ops.expand_dims(levels[-1], -1) + both
        levels.append(ops.reshape(reached, (-1, 2 ** (level + 1))))
    return levels


def leafwise(log_paths: Any, log_leaves: Any) -> Any:
    """Return sum over leaves of P * log Q, (batch, classes): the mean of the leaves' log-probabilities."""
    return ops.matmul(ops.exp(log_paths), log_leaves)


def mixture(log_paths: Any, log_leaves: Any) -> Any:
    """Return log of the sum over leaves of P * Q, (batch, classes): the log-probabilities of the mixture."""
    return ops.logsumexp(ops.expand_dims(log_paths, -1) + ops.expand_dims(log_leaves, 0), axis=1)


def soft_tree_loss(*, scores: Tensor, leaf_logits: Any, targets: Any, kind: str = "leafwise") -> Any:
    """Loss of a soft decision tree, one value per example (Frosst and Hinton's tree).

    Use it to train a tree in your own loop; ``SoftDecisionTree`` has it built in.

    Formula: leafwise: -sum_l P_l sum_k t_k log Q_lk; mixture: -sum_k t_k log sum_l P_l Q_lk, with P_l the product of
    sigmoid(score) or 1 - sigmoid(score) along the path to leaf l, and Q_l = softmax(leaf_logits_l).

    Args:
        scores: (batch, 2**depth - 1), log-odds of the right branch of each inner node, level by level.
        leaf_logits: (2**depth, classes), unnormalised log-probabilities of each leaf, left to right.
        targets: (batch, classes), one-hot labels or a teacher's probabilities.
        kind: ``"leafwise"`` (the expected cross-entropy of the leaves) or ``"mixture"`` (never larger).

    Returns:
        (batch,), nats.

    Raises:
        ValueError: if ``kind`` is unknown.

    Example:
        >>> import numpy as np
        >>> value = soft_tree_loss(
        ...     scores=np.zeros((1, 1)), leaf_logits=np.log([[0.5, 0.5], [0.25, 0.75]]), targets=np.array([[0.0, 1.0]])
        ... )
        >>> round(float(value[0]), 4)  # (log 2 + log 4/3) / 2
        0.4904

    Reference:
        Frosst, Hinton, "Distilling a Neural Network Into a Soft Decision Tree", 2017, arXiv:1711.09784.
        Differs: the paper prints one logarithm too many, which published code drops; the mixture is an addition.
    """
    choice("soft_tree_loss", "kind", kind, LOSSES)
    scores, leaf_logits = ops.convert_to_tensor(scores), ops.convert_to_tensor(leaf_logits)
    depth = int(scores.shape[-1] + 1).bit_length() - 1
    log_paths = path_log_probabilities(scores, depth)[-1]
    log_leaves = ops.log_softmax(leaf_logits, axis=-1)
    answers = (leafwise if kind == "leafwise" else mixture)(log_paths, log_leaves)
    return -ops.sum(ops.convert_to_tensor(targets, answers.dtype) * answers, axis=-1)


def right_shares(scores: Tensor, levels: list[Any]) -> tuple[Any, Any]:
    """Return, for each inner node, the mean over the batch of P * p(right) and of P: (nodes,) each."""
    reached = ops.exp(ops.concatenate(levels[:-1], axis=-1))
    return ops.mean(reached * ops.sigmoid(scores), axis=0), ops.mean(reached, axis=0)


def balance_penalty(shares: Any, weights: Any) -> Any:
    """Return -sum_i weight_i * (log a_i + log(1 - a_i)) / 2 for the shares a_i that go right; a scalar."""
    shares = ops.clip(shares, _CLIP, 1.0 - _CLIP)
    return -ops.sum(weights * 0.5 * (ops.log(shares) + ops.log(1.0 - shares)))
