"""Text before training: token ids with masks, masked-language-model examples, augmentation, texts without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import choice, error, integer, number

IGNORED = -1


def tokens(
    texts: Sequence[str],
    words: Callable[[Any], Any],
    *,
    pairs: Sequence[str] | None = None,
    length: int | None = None,
    long: str = "cut",
    empty: str = "raise",
    unknown_id: int = 1,
) -> dict[str, np.ndarray]:
    """Return texts, or pairs of texts, as inputs of BERT-like models: token ids, segments and a padding mask.

    Args:
        texts: the texts.
        words: function from texts to integer ids (texts, tokens), 0 for padding, such as an adapted
            ``keras.layers.TextVectorization``.
        pairs: second texts, one per text, appended to the first as segment 1.
        length: >= 1, number of tokens of the result; None: that of the longest text.
        long: treatment of longer texts: ``"cut"`` their ends off (of a pair, the longer text first), or ``"raise"``.
        empty: treatment of a text without tokens, or of only unknown words: ``"raise"``, or ``"keep"``.
        unknown_id: the id of out-of-vocabulary words.

    Returns:
        ``token_ids``, ``segment_ids`` and ``padding_mask``, each (texts, length), int32.

    Raises:
        ValueError: naming the text by its number, if there is no text, one is empty, has only unknown words or is too
            long; or if the numbers of texts differ.

    Example:
        >>> words = keras.layers.TextVectorization(vocabulary=["good", "film"])
        >>> found = tokens(["good film", "film"], words)
        >>> found["token_ids"].tolist(), found["padding_mask"].tolist()
        ([[2, 3], [3, 0]], [[1, 1], [1, 0]])
    """
    owner = "data.tokens"
    choice(owner, "long", long, ("cut", "raise"))
    choice(owner, "empty", empty, ("raise", "keep"))
    if not len(texts):
        raise error(owner, "at least one text", "none")
    if pairs is not None and len(pairs) != len(texts):
        raise error(owner, f"pairs for each of the {len(texts)} texts", f"{len(pairs)}")
    sides = [_ids(owner, side, words, empty, unknown_id) for side in (texts, pairs) if side is not None]
    limit = None if length is None else integer(owner, "length", length, low=1)
    rows = []
    for index, row in enumerate(zip(*sides, strict=True)):
        parts = [part.tolist() for part in row]
        if limit is not None and sum(map(len, parts)) > limit:
            if long == "raise":
                got = f"{sum(map(len, parts))} in number {index}"
                raise error(owner, f"texts of at most {limit} tokens", got, "Cut it, or give long='cut'")
            while sum(map(len, parts)) > limit:
                max(parts, key=len).pop()
        rows.append(parts)
    size = limit or max(1, *(sum(map(len, parts)) for parts in rows))
    out = {name: np.zeros((len(rows), size), "int32") for name in ("token_ids", "segment_ids", "padding_mask")}
    for index, parts in enumerate(rows):
        count, first = sum(map(len, parts)), len(parts[0])
        out["token_ids"][index, :count] = [token for part in parts for token in part]
        out["segment_ids"][index, first:count] = 1
        out["padding_mask"][index, :count] = 1
    return out


def _ids(owner: str, texts: Sequence[str], words: Any, empty: str, unknown_id: int) -> list[np.ndarray]:
    array = np.asarray(words(np.asarray(list(texts), dtype=object).astype(str)))
    rows = [row[row > 0] for row in array]
    for index, row in enumerate(rows):
        if empty == "raise" and not len(row):
            got = f"no token in number {index}: {str(texts[index])[:40]!r}"
            raise error(owner, "texts with at least one token", got, "Drop it, or give empty='keep'")
        if empty == "raise" and (row == unknown_id).all():
            got = f"only unknown words in number {index}: {str(texts[index])[:40]!r}"
            raise error(owner, "texts with a known word", got, "Drop it, or give empty='keep'")
    return rows


def mask_tokens(
    token_ids: Any, *, mask_id: int, vocabulary_size: int, first_id: int = 2, rate: float = 0.15, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Mask some tokens and return them as labels (masked language modelling).

    Args:
        token_ids: (texts, tokens), integers; ids below ``first_id`` (padding, unknown words) are never chosen.
        mask_id: id that replaces most chosen tokens.
        vocabulary_size: > ``first_id``, for random tokens.
        first_id: first id of a word.
        rate: probability of choosing a token, 0 to 1; of those 80% are masked, 10% become random, 10% stay.
        seed: seed of the choice.

    Returns:
        The ids to train on, and labels: the original id of chosen tokens, -1 elsewhere, for
        ``keras.losses.SparseCategoricalCrossentropy(ignore_class=-1)``.

    Raises:
        ValueError: if a number is out of bounds.

    Example:
        >>> shown, labels = mask_tokens([[5, 6, 7, 0]], mask_id=9, vocabulary_size=10, rate=1.0, seed=1)
        >>> labels.tolist()
        [[5, 6, 7, -1]]

    Reference:
        Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", 2019, arXiv:1810.04805, section 3.1.
        Differs: nothing.
    """
    owner = "data.mask_tokens"
    number(owner, "rate", rate, low=0.0, high=1.0)
    integer(owner, "vocabulary_size", vocabulary_size, low=first_id + 1)
    ids = np.asarray(token_ids)
    random = np.random.default_rng(seed)
    chosen = (random.random(ids.shape) < rate) & (ids >= first_id)
    kind = random.random(ids.shape)
    shown = np.where(chosen & (kind < 0.8), mask_id, ids)
    shown = np.where(chosen & (kind >= 0.9), random.integers(first_id, vocabulary_size, ids.shape), shown)
    return shown.astype("int32"), np.where(chosen, ids, IGNORED).astype("int32")


def augment_tokens(
    token_ids: Any,
    fill: Callable[[np.ndarray], Any],
    *,
    mask_id: int,
    copies: int = 10,
    probability: float = 0.4,
    candidates: int = 15,
    first_id: int = 2,
    seed: int = 0,
) -> np.ndarray:
    """Return texts with some words replaced by predictions of a masked language model (TinyBERT augmentation).

    Args:
        token_ids: (texts, tokens), integers; ids below ``first_id`` stay as they are.
        fill: function from ids (texts, tokens) to logits (texts, tokens, vocabulary) of a masked language model.
        mask_id: id of the mask token.
        copies: >= 1, number of new texts for each text.
        probability: probability of replacing a word, 0 to 1.
        candidates: >= 1, number of the model's likeliest words from which the replacement is drawn.
        first_id: first id of a word.
        seed: seed of the choices.

    Returns:
        (texts * copies, tokens), int32: the copies of the first text, then those of the second. They have no labels, so
        the teacher must answer for them.

    Raises:
        ValueError: if a number is out of bounds.

    Example:
        >>> always_seven = lambda ids: np.eye(9)[np.full(ids.shape, 7)]
        >>> augment_tokens([[3, 4, 0]], always_seven, mask_id=8, copies=1, probability=1.0, candidates=1).tolist()
        [[7, 7, 0]]

    Reference:
        Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2020, arXiv:1909.10351, algorithm
        1. Differs: one masked word per position at a time, no GloVe neighbours for words of several pieces.
    """
    owner = "data.augment_tokens"
    copies = integer(owner, "copies", copies, low=1)
    count = integer(owner, "candidates", candidates, low=1)
    number(owner, "probability", probability, low=0.0, high=1.0)
    random = np.random.default_rng(seed)
    out = np.repeat(np.asarray(token_ids, "int32"), copies, axis=0)
    source = out.copy()
    for position in range(out.shape[1]):
        rows = np.flatnonzero((random.random(len(out)) < probability) & (source[:, position] >= first_id))
        if not len(rows):
            continue
        hidden = source[rows].copy()
        hidden[:, position] = mask_id
        logits = np.array(keras.ops.convert_to_numpy(fill(hidden)), "float64")[:, position]
        logits[:, [*range(first_id), mask_id]] = -np.inf  # no padding, no unknown word, no mask
        best = np.argsort(-logits, axis=1)[:, :count]
        out[rows, position] = best[np.arange(len(rows)), random.integers(0, best.shape[1], len(rows))]
    return out


def unlabelled(
    inputs: Any, *, batch_size: int, exclude: Sequence[str] | None = None, shuffle_seed: int | None = None
) -> tf.data.Dataset:
    """Return unlabelled inputs as batches: a transfer set answered only by the teacher.

    Use it with ``student_loss_weight=0``. Empty, repeated and excluded texts are left out.

    Args:
        inputs: an array, texts or a structure of arrays, examples first.
        batch_size: >= 1.
        exclude: texts to exclude, such as those of the test set.
        shuffle_seed: shuffle anew in each epoch, reproducibly; None keeps the order.

    Returns:
        A dataset of inputs only.

    Raises:
        ValueError: if nothing is left, or ``exclude`` is given for inputs that are not texts.

    Example:
        >>> texts = unlabelled(["a film", "", "a film", "a test"], batch_size=2, exclude=["a test"])
        >>> [batch.numpy().tolist() for batch in texts]
        [[b'a film']]
    """
    owner = "data.unlabelled"
    integer(owner, "batch_size", batch_size, low=1)
    if _are_texts(inputs):
        left_out = {" ".join(str(text).split()).lower() for text in exclude or ()} | {""}
        kept = []
        for text in inputs:
            key = " ".join(str(text).split()).lower()
            if key not in left_out:
                left_out.add(key)
                kept.append(str(text))
        inputs = np.array(kept, dtype=object).astype(str) if kept else np.array([], dtype=str)
    elif exclude is not None:
        raise error(owner, "texts where exclude is given", type(inputs).__name__)
    count = len(keras.tree.flatten(inputs)[0]) if not isinstance(inputs, np.ndarray) else len(inputs)
    if not count:
        raise error(owner, "at least one example that is left", "none")
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_tensor_slices(inputs)
    if shuffle_seed is not None:
        dataset = dataset.shuffle(count, seed=shuffle_seed, reshuffle_each_iteration=True)
    return dataset.batch(batch_size).with_options(options).prefetch(2)


def _are_texts(inputs: Any) -> bool:
    if isinstance(inputs, np.ndarray):
        return inputs.dtype.kind in "UO" and inputs.ndim == 1
    return isinstance(inputs, (list, tuple)) and all(isinstance(each, str) for each in inputs)
