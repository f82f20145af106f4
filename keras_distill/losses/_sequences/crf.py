"""Linear-chain conditional random fields: likelihood, marginals and best tags, from one tensor of potentials."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._numerics import arguments
from keras_distill.losses._sequences.base import SequenceLoss


def crf_negative_log_likelihood(*, labels: Tensor, potentials: Tensor, mask: Tensor = None) -> Tensor:
    """Negative log-likelihood of tag sequences under a linear-chain CRF (CRF).

    Choose it when neighbouring tags depend on each other, as in BIO tagging. ``adapters.LinearChainCrf`` produces the
    potentials. Cost: one loop over the tokens, and tags * tags numbers per token.

    Formula: log sum_y' exp(score(y')) - score(y), score(y) = sum_t potentials[t, y_(t-1), y_t].

    Args:
        labels: (batch, tokens), integers from 0 to tags - 1; negative ones are left out like masked tokens.
        potentials: (batch, tokens, tags, tags), float: third axis the previous tag, fourth axis the current tag. At the
            first unmasked token only row 0 is read, the start scores.
        mask: (batch, tokens) bool or None. Masked tokens are left out, at any position.

    Returns:
        (batch,), float32, nats, >= 0; 0 for a sequence without tokens.

    Raises:
        ValueError: if the shapes do not fit, or a label is known to be out of range.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> flat = np.zeros((1, 3, 2, 2), "float32")  # all 8 sequences are alike
        >>> value = losses.crf_negative_log_likelihood(labels=[[0, 1, 1]], potentials=flat)
        >>> round(float(value[0]), 4)  # log 8
        2.0794

    Reference:
        Lafferty, McCallum, Pereira, "Conditional Random Fields: Probabilistic Models for Segmenting and Labeling
        Sequence Data", ICML 2001. Differs: nothing.
    """
    return _negative_log_likelihood("crf_negative_log_likelihood", labels, potentials, mask)


def crf_log_marginals(*, potentials: Tensor, mask: Tensor = None) -> Tensor:
    """Return the log-probability of each tag at each token, over all tag sequences (forward-backward).

    With them a CRF teaches token by token, as logits for ``losses.SoftTargets`` and a student without a CRF.

    Args:
        potentials: (batch, tokens, tags, tags); see ``crf_negative_log_likelihood``.
        mask: (batch, tokens) bool or None.

    Returns:
        (batch, tokens, tags), float32; rows sum to 1 after exp; 0 where masked. No gradient.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> potentials = np.zeros((1, 2, 2, 2), "float32")
        >>> potentials[0, 1] = np.log([[1.0, 1.0], [1.0, 5.0]])  # tag 1 likes to follow tag 1
        >>> np.exp(losses.crf_log_marginals(potentials=potentials)).round(3)[0].tolist()
        [[0.25, 0.75], [0.25, 0.75]]

    Reference:
        Lafferty, McCallum, Pereira, "Conditional Random Fields", ICML 2001. Differs: nothing.
    """
    potentials, mask = _checked("crf_log_marginals", potentials, mask)
    potentials = ops.stop_gradient(potentials)
    forward = _forward(potentials, mask)
    backward = _backward(potentials, mask)
    log_marginals = ops.log_softmax(forward + backward, axis=-1)
    return ops.where(mask[..., None], log_marginals, 0.0)


def crf_decode(*, potentials: Tensor, mask: Tensor = None) -> Tensor:
    """Return the likeliest tag sequence (Viterbi).

    Args:
        potentials: (batch, tokens, tags, tags); see ``crf_negative_log_likelihood``.
        mask: (batch, tokens) bool or None.

    Returns:
        (batch, tokens), int32; -1 where masked.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> potentials = np.zeros((1, 2, 2, 2), "float32")
        >>> potentials[0, 1, 1, 1] = 1.0
        >>> losses.crf_decode(potentials=potentials).numpy().tolist()
        [[1, 1]]
    """
    potentials, mask = _checked("crf_decode", potentials, mask)
    best = _forward(potentials, mask, combine=ops.max)
    following = _backward(potentials, mask, combine=ops.max)
    # Max-marginals: the score of the best sequence through each tag. In a tie ``argmax`` takes the first tag.
    together = best + following
    return _traced(potentials, mask, best, together)


def _checked(owner: str, potentials: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    potentials = arguments.float32(potentials)
    shape = tuple(potentials.shape)
    if len(shape) != 4 or shape[2] != shape[3]:
        advice = "End the model in adapters.LinearChainCrf"
        raise _checks.error(owner, "potentials of shape (batch, tokens, tags, tags)", str(shape), advice)
    mask = arguments.check_mask(owner, mask, potentials[..., 0])
    mask = ops.ones_like(potentials[..., 0, 0], dtype="bool") if mask is None else mask
    return ops.where(mask[..., None, None], potentials, 0.0), mask


def _logsumexp(x: Tensor, axis: int) -> Tensor:
    return ops.logsumexp(x, axis=axis)


def _packed(potentials: Tensor, mask: Tensor) -> Tensor:
    """Return (tokens, batch, tags, tags + 1): the potentials, and in the last column the mask."""
    flag = ops.broadcast_to(ops.cast(mask, "float32")[..., None, None], (*ops.shape(potentials)[:3], 1))
    return ops.transpose(ops.concatenate([potentials, flag], axis=-1), (1, 0, 2, 3))


def _forward(potentials: Tensor, mask: Tensor, combine: Any = _logsumexp) -> Tensor:
    """Return the combined score of all prefixes that end in each tag, (batch, tokens, tags)."""
    zero = ops.zeros_like(potentials[:, 0, 0])

    def step(carry: Tensor, now: Any) -> Any:
        alpha, begun = carry
        scores, keep = now[..., :-1], now[:, 0, -1:] > 0.0
        come = ops.where(begun, combine(alpha[:, :, None] + scores, axis=1), scores[:, 0])
        alpha, begun = ops.where(keep, come, alpha), ops.logical_or(begun, keep)
        return (alpha, begun), (alpha, begun)

    start = (zero, ops.zeros_like(zero[:, :1], dtype="bool"))
    _, (stacked, _) = ops.scan(step, start, _packed(potentials, mask))
    return ops.transpose(stacked, (1, 0, 2))


def _backward(potentials: Tensor, mask: Tensor, combine: Any = _logsumexp) -> Tensor:
    """Return the combined score of all suffixes that follow each tag, (batch, tokens, tags)."""
    zero = ops.zeros_like(potentials[:, 0, 0])

    def step(carry: Tensor, now: Any) -> Any:
        beta, scores_after, any_after = carry
        scores, keep = now[..., :-1], now[:, 0, -1:] > 0.0
        after = ops.where(any_after, combine(beta[:, None, :] + scores_after, axis=2), zero)
        beta = ops.where(keep, after, beta)
        scores_after = ops.where(keep[..., None], scores, scores_after)
        carry = (beta, scores_after, ops.logical_or(any_after, keep))
        return carry, (after, scores_after, carry[2])

    start = (zero, ops.zeros_like(potentials[:, 0]), ops.zeros_like(zero[:, :1], dtype="bool"))
    _, (stacked, _, _) = ops.scan(step, start, _packed(potentials, mask), reverse=True)
    return ops.transpose(stacked, (1, 0, 2))


def _traced(potentials: Tensor, mask: Tensor, best: Any, together: Any) -> Tensor:
    """Return the tags of the best sequence, choosing from left to right the best successor of each tag."""
    following = together - best
    tags = potentials.shape[-1]

    def step(carry: Tensor, now: Any) -> Any:
        tag, begun = carry
        scores, keep, ahead = now[:, :tags, :tags], now[:, 0, tags] > 0.0, now[:, :, tags + 1]
        chosen = ops.one_hot(tag, tags, dtype="float32")
        row = ops.where(begun[:, None], ops.sum(chosen[:, :, None] * scores, axis=1), scores[:, 0])
        found = ops.cast(ops.argmax(row + ahead, axis=-1), "int32")
        tag = ops.where(keep, found, tag)
        return (tag, ops.logical_or(begun, keep)), (ops.where(keep, found, -1), begun)

    packed = ops.concatenate([_packed(potentials, mask), ops.transpose(following, (1, 0, 2))[..., None]], axis=-1)
    start = (ops.zeros_like(potentials[:, 0, 0, 0], dtype="int32"), ops.zeros_like(mask[:, 0]))
    _, (found, _) = ops.scan(step, start, packed)
    return ops.transpose(found)


def _negative_log_likelihood(owner: str, labels: Tensor, potentials: Tensor, mask: Tensor) -> Tensor:
    potentials, mask = _checked(owner, potentials, mask)
    labels = ops.convert_to_tensor(labels)
    static, tags = tuple(potentials.shape)[:2], potentials.shape[-1]
    differ = [len({*pair} - {None}) > 1 for pair in zip(labels.shape, static, strict=False)]
    if len(labels.shape) != 2 or any(differ):
        raise _checks.error(owner, f"labels of shape {static}", str(tuple(labels.shape)))
    known = arguments.concrete(labels)
    if known is not None and known.size and known.max() >= tags:
        raise _checks.error(owner, f"labels from 0 to {tags - 1}, negative ones as padding", int(known.max()))
    labels = ops.cast(labels, "int32")
    mask = ops.logical_and(mask, labels >= 0)
    kept = ops.where(mask[..., None, None], potentials, 0.0)
    return _log_partition(kept, mask) - _score(labels, kept, mask)


def _log_partition(potentials: Tensor, mask: Tensor) -> Tensor:
    """Return the log partition function, (batch,); its gradient is the marginals of tag pairs."""
    held = ops.stop_gradient(potentials)
    forward, backward = _forward(held, mask), _backward(held, mask)
    total = ops.where(ops.any(mask, axis=1), ops.logsumexp(forward[:, -1], axis=-1), 0.0)
    begun = ops.cumsum(ops.cast(mask, "int32"), axis=1) - ops.cast(mask, "int32") > 0
    before = ops.concatenate([ops.zeros_like(forward[:, :1]), forward[:, :-1]], axis=1)
    at_start = ops.where(ops.arange(ops.shape(before)[2]) == 0, 0.0, -np.inf)
    before = ops.where(begun[..., None], before, at_start)
    log_pairs = before[..., :, None] + held + backward[..., None, :] - total[:, None, None, None]
    pairs = ops.where(mask[..., None, None], ops.exp(ops.minimum(log_pairs, 0.0)), 0.0)
    expected = ops.sum(ops.stop_gradient(pairs) * potentials, axis=(1, 2, 3))
    return total + (expected - ops.stop_gradient(expected))


def _score(labels: Tensor, potentials: Tensor, mask: Tensor) -> Tensor:
    """Return the score of the labelled sequence, (batch,)."""
    tags = potentials.shape[-1]
    place = ops.cumsum(ops.ones_like(labels), axis=1) - 1
    seen = ops.where(mask, place, -1)
    # The last unmasked token before this one, as a running maximum of positions.
    earlier = place[:, None, :] < place[:, :, None]
    before = ops.max(ops.where(earlier, seen[:, None, :], -1), axis=2)
    tag_before = ops.where(before >= 0, ops.take_along_axis(labels, ops.maximum(before, 0), axis=1), 0)
    pair = ops.one_hot(ops.maximum(tag_before, 0), tags)[..., :, None] * ops.one_hot(labels, tags)[..., None, :]
    return ops.sum(ops.where(mask, ops.sum(pair * potentials, axis=(2, 3)), 0.0), axis=1)


@keras.saving.register_keras_serializable(package="keras_distill")
class CrfNegativeLogLikelihood(SequenceLoss):
    """Class twin of ``crf_negative_log_likelihood``: the supervised loss of a model that ends in ``LinearChainCrf``.

    Args:
        reduction: as in ``keras.losses.Loss``: a mean over sequences by default.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> flat = np.zeros((1, 3, 2, 2), "float32")
        >>> round(float(losses.CrfNegativeLogLikelihood()(np.array([[0, 1, 1]]), flat)), 4)
        2.0794
    """

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = "crf_negative_log_likelihood"
    ) -> None:
        super().__init__(reduction=reduction, name=name)

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Tensor = 1.0,
        labels: Tensor = None,
        mask: Tensor = None,
    ) -> Tensor:
        """Return the loss of each sequence; the labels are the first argument, as for every supervised loss."""
        return _negative_log_likelihood("CrfNegativeLogLikelihood", teacher_logits, student_logits, mask)
