"""Quality of rankings over the whole catalogue, with the conventions of keras-rs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from keras_distill._checks import array, error, integer
from keras_distill._typing import Tensor


class RankingQuality(NamedTuple):
    """Means over lists, each computed from the first k items of the list.

    Attributes:
        hit_rate: fraction of lists with a relevant item among the first k.
        recall: fraction of the relevant items that are among the first k.
        ndcg: normalised discounted cumulative gain, log(2) / log(position + 1) from position 1.
        mrr: reciprocal position of the first relevant item, 0 beyond k.
        map: average precision, with 0 for relevant items beyond k.
        per_list: (lists, 5), these values for each list, in this order.
    """

    hit_rate: float
    recall: float
    ndcg: float
    mrr: float
    map: float
    per_list: np.ndarray


def ranking_quality(scores: Tensor, relevant: Any, *, k: int = 10, exclude: Any = None) -> RankingQuality:
    """Rank the items of each list by score and compare the first k with the relevant ones (HR, NDCG, MRR, MAP).

    Report the protocol that you use: it is full ranking if the scores cover the catalogue, sampled ranking if they
    cover one held-out item and sampled others. In a Keras model ``keras_rs.metrics.NDCG(k=10)`` and the metrics beside
    it stream the same numbers.

    Args:
        scores: (lists, items), higher is better; -inf for items that cannot be recommended.
        relevant: (lists,) item indices, negative for a list that does not count, or (lists, items) bool.
        k: >= 1.
        exclude: (lists, items) bool, items left out of the ranking, such as those seen in training.

    Returns:
        ``RankingQuality`` over the lists with a relevant item. Among equal scores a relevant item comes last, so that
        a constant model is not rewarded.

    Raises:
        ValueError: if the shapes do not fit, a score is NaN, an item is out of range or no list counts.

    Example:
        >>> ranking_quality([[0.1, 0.9, 0.5]], [2], k=2).ndcg  # second of the list: log 2 / log 3
        0.6309297535714575

    Reference:
        Järvelin, Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002. Differs: binary relevance.
    """
    owner = "ranking_quality"
    scores = array(owner, scores).copy()
    k = integer(owner, "k", k, low=1)
    if scores.ndim != 2:
        raise error(owner, "scores of shape (lists, items)", scores.shape)
    if np.isnan(scores).any():
        raise error(owner, "scores without NaN", "NaN", "Check the model's weights and inputs")
    relevant = array(owner, relevant)
    if relevant.ndim == 1:
        if len(relevant) != len(scores) or (relevant != np.round(relevant)).any():
            raise error(owner, f"one item for each of the {len(scores)} lists", f"{len(relevant)} numbers")
        relevant = relevant.astype("int64")
        if relevant.max(initial=-1) >= scores.shape[1]:
            raise error(owner, f"items from 0 to {scores.shape[1] - 1}", int(relevant.max()))
        hot = np.zeros(scores.shape, bool)
        counted = np.flatnonzero(relevant >= 0)
        hot[counted, relevant[counted]] = True
        relevant = hot
    relevant = relevant.astype(bool)
    if relevant.shape != scores.shape:
        raise error(owner, f"relevant items of shape {scores.shape}, or one item per list", relevant.shape)
    if exclude is not None:
        exclude = np.asarray(exclude, bool)
        if exclude.shape != scores.shape:
            raise error(owner, f"exclude of shape {scores.shape}", exclude.shape)
        scores[exclude & ~relevant] = -np.inf
    kept = relevant.any(1)
    if not kept.any():
        raise error(owner, "a list with a relevant item", "none", "Users without a held-out item do not count")
    scores, relevant = scores[kept], relevant[kept]
    k = min(k, scores.shape[1])
    order = np.lexsort((relevant, -scores), axis=-1)[:, :k]
    hits = np.take_along_axis(relevant, order, 1).astype("float64")
    total = relevant.sum(1)
    position = np.arange(1, k + 1)
    gain = 1 / np.log2(position + 1)
    ideal = np.cumsum(gain)[np.minimum(total, k) - 1]
    each = np.stack(
        [
            hits.any(1),
            hits.sum(1) / total,
            hits @ gain / ideal,
            (hits / position).max(1),
            (hits * np.cumsum(hits, 1) / position).sum(1) / total,
        ],
        1,
    )
    hit_rate, recall, gain_share, reciprocal, precision = (float(value) for value in each.mean(0))
    return RankingQuality(hit_rate, recall, gain_share, reciprocal, precision, each)
