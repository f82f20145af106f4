"""Users and items: leave-one-out splits, seen items, sampled and padded lists."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_distill._checks import choice, error, integer

_OWNER = "leave_one_out"


@dataclasses.dataclass(frozen=True, eq=False)
class Interactions:
    """Interactions of users with items, with one per user held out for validation and one for the test.

    Args:
        train: (interactions, 2), int32 pairs (user, item), sorted by user.
        validation: (users,), int32, the held-out item of each user; -1 if there is none.
        test: (users,), int32, the same for the test.
        num_items: number of items.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    num_items: int

    @property
    def num_users(self) -> int:
        """The number of users."""
        return len(self.test)

    def seen(self, *, validation: bool = False) -> np.ndarray:
        """Return which items each user has seen, to exclude them from the ranking.

        Args:
            validation: whether validation items count as seen, as in the test.

        Returns:
            (users, items), bool.
        """
        seen = np.zeros((self.num_users, self.num_items), bool)
        seen[self.train[:, 0], self.train[:, 1]] = True
        if validation:
            users = np.flatnonzero(self.validation >= 0)
            seen[users, self.validation[users]] = True
        return seen

    def histories(self) -> list[np.ndarray]:
        """Return each user's training items, in the order of ``train``."""
        bounds = np.searchsorted(self.train[:, 0], np.arange(self.num_users + 1))
        return [self.train[a:b, 1] for a, b in itertools.pairwise(bounds)]


def leave_one_out(
    users: Any,
    items: Any,
    *,
    times: Any = None,
    num_users: int | None = None,
    num_items: int | None = None,
    short_histories: str = "error",
    seed: int = 0,
) -> Interactions:
    """Split interactions by leaving out one item per user for the test and one for validation.

    Args:
        users: (interactions,) integers from 0.
        items: (interactions,) integers from 0.
        times: (interactions,) numbers: the last item is the test, the one before the validation. None draws both.
        num_users: number of users; None takes the greatest id plus 1.
        num_items: the same for items.
        short_histories: how to treat users with fewer than 3 interactions, who would keep no history: "error", or
            "train" (hold nothing out).
        seed: seed of the draws, if times is None.

    Returns:
        ``Interactions``. Repeated pairs count once, at their first time.

    Raises:
        ValueError: if a number is out of range, the lengths differ, or a user has too short a history.

    Example:
        >>> split = leave_one_out([0, 0, 0, 1, 1, 1], [0, 1, 2, 2, 1, 0], times=range(6))
        >>> split.test, split.validation, split.train.tolist()
        (array([2, 0], dtype=int32), array([1, 1], dtype=int32), [[0, 0], [1, 2]])
    """
    choice(_OWNER, "short_histories", short_histories, ("error", "train"))
    users, items = np.asarray(users), np.asarray(items)
    if users.ndim != 1 or users.shape != items.shape or users.size == 0:
        raise error(_OWNER, "as many users as items, at least one", f"{users.shape} and {items.shape}")
    counts = []
    for name, ids, count in (("users", users, num_users), ("items", items, num_items)):
        if not np.issubdtype(ids.dtype, np.integer):
            raise error(_OWNER, f"{name} to be integers from 0", ids.dtype.name, "Number them with np.unique")
        total = int(ids.max()) + 1 if count is None else integer(_OWNER, f"num_{name}", count, low=1)
        if ids.min() < 0 or ids.max() >= total:
            bad = ids.min() if ids.min() < 0 else ids.max()
            raise error(_OWNER, f"{name} from 0 to {total - 1}", int(bad))
        counts.append(total)
    rng = np.random.default_rng(seed)
    when = rng.random(len(users)) if times is None else np.asarray(list(times) if isinstance(times, range) else times)
    if when.shape != users.shape:
        raise error(_OWNER, f"{len(users)} times", when.shape)
    order = np.lexsort((when, users))
    pairs = np.stack([users, items], 1)[order].astype("int32")
    _, first = np.unique(pairs, axis=0, return_index=True)
    pairs = pairs[np.sort(first)]
    length = np.bincount(pairs[:, 0], minlength=counts[0])
    short = np.flatnonzero(length < 3)
    if len(short) and short_histories == "error":
        advice = "Leave such users out, or give short_histories='train'"
        got = f"{len(short)} users with fewer, user {short[0]} with {length[short[0]]}"
        raise error(_OWNER, "at least 3 different items of every user", got, advice)
    ends = np.cumsum(length)
    held = length >= 3
    test, validation = (np.where(held, pairs[np.maximum(ends - back, 0), 1], -1).astype("int32") for back in (1, 2))
    kept = np.ones(len(pairs), bool)
    for back in (1, 2):
        kept[(ends - back)[held]] = False
    return Interactions(pairs[kept], validation, test, counts[1])


def sample_unseen(seen: Any, count: int, *, seed: int = 0) -> np.ndarray:
    """Draw items that each user has not seen, without replacement: negatives for training or sampled evaluation.

    Args:
        seen: (users, items) bool.
        count: >= 1 items per user.
        seed: of the draws.

    Returns:
        (users, count), int32.

    Raises:
        ValueError: if a user has fewer unseen items than count.

    Example:
        >>> sample_unseen([[True, False, False]], 2).shape
        (1, 2)
    """
    owner = "sample_unseen"
    seen = np.asarray(seen, bool)
    count = integer(owner, "count", count, low=1)
    unseen = (~seen).sum(1)
    if unseen.min() < count:
        user = int(unseen.argmin())
        raise error(owner, f"at least {count} unseen items of every user", f"{unseen[user]} of user {user}")
    keys = np.random.default_rng(seed).random(seen.shape, dtype="float32")
    keys[seen] = -1.0
    return np.argpartition(-keys, count - 1, axis=1)[:, :count].astype("int32")


def pad_lists(lists: Sequence[Any], *, length: int | None = None, value: float = -1) -> np.ndarray:
    """Put lists of different lengths into one array, padded at their ends.

    Args:
        lists: one sequence of numbers per user.
        length: length of the rows; longer lists keep their last entries. None takes that of the longest list.
        value: value of the padding; -1 for item ids, ``-np.inf`` for a teacher's scores.

    Returns:
        (lists, length), int32 if entries and padding are integers, otherwise float32. The row of an empty list, of a
        user without a history, is padding.

    Example:
        >>> pad_lists([[3], [1, 2]]).tolist()
        [[3, -1], [1, 2]]
    """
    rows = [np.asarray(each) for each in lists]
    if not rows or any(row.ndim != 1 for row in rows):
        raise error("pad_lists", "at least one list of numbers", f"{len(rows)} lists", "Give one list per user")
    width = max(len(row) for row in rows) if length is None else integer("pad_lists", "length", length, low=1)
    filled = [row for row in rows if row.size] or [np.zeros(1, int)]  # an empty list would be of floats
    kind = np.result_type(*filled) if float(value).is_integer() else np.dtype("float32")
    kind = np.dtype("int32") if kind.kind in "iub" else np.dtype("float32")
    padded = np.full((len(rows), width), value, kind)
    for target, row in zip(padded, rows, strict=True):
        kept = row[-width:]
        target[: len(kept)] = kept
    return padded
