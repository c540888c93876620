"""Can scores tell what users chose from what they did not: held-out choices, unseen items beside them, the AUC.

The hard protocol matches each chosen item with an unseen one of nearest popularity, so that popularity alone
scores one half. The module does not know where the scores come from.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import Interactions, LongArray

SAMPLING_ROUNDS = 50


def pair_keys(users: NDArray[Any], items: NDArray[Any], n_items: int) -> LongArray:
    """One integer per (user, item) pair."""
    return np.asarray(users, dtype=np.int64) * n_items + np.asarray(items, dtype=np.int64)


def distinct(keys: LongArray) -> LongArray:
    """The different keys, sorted (for long arrays several times as fast as `np.unique`)."""
    keys = np.sort(keys)
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys


def contains(sorted_keys: LongArray, keys: LongArray) -> NDArray[np.bool_]:
    """Which of `keys` are among `sorted_keys`."""
    if not len(sorted_keys):
        return np.zeros(len(keys), dtype=np.bool_)
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.asarray(sorted_keys[at] == keys)


def leave_last_out(log: Interactions, share: float) -> tuple[Interactions, Interactions]:
    """Each user's last interactions by time (ties in file order) apart from the others.

    A user of n interactions gives floor(n * share), at least one if n >= 3, none if n < 3. Held-out pairs the
    user had before, and repeats among them, are dropped: a second viewing says nothing about choosing.
    """
    order = np.lexsort((np.arange(len(log)), log.times, log.users))
    counts = log.user_counts()
    rank = np.empty(len(log), np.int64)
    rank[order] = np.arange(len(log)) - np.repeat(np.cumsum(counts) - counts, counts)
    n_held = np.where(counts >= 3, np.maximum(1, np.floor(counts * share)), 0)
    late = rank >= (counts - n_held)[log.users]
    train, held = log.take(~late), log.take(late)
    keys = pair_keys(held.users, held.items, log.n_items)
    first = np.zeros(len(held), dtype=np.bool_)
    first[np.unique(keys, return_index=True)[1]] = True
    before = distinct(pair_keys(train.users, train.items, log.n_items))
    return train, held.take(first & ~contains(before, keys))


def sample_unseen(
    log: Interactions, users: NDArray[Any], rng: np.random.Generator, weights: NDArray[Any] | None = None
) -> LongArray:
    """For each of `users` an item that is not in their part of `log`, drawn in proportion to `weights`.

    Returns:
        (n,) item rows; -1 where rejection sampling found none (the user has seen nearly everything).
    """
    seen = distinct(pair_keys(log.users, log.items, log.n_items))
    cumulative = np.cumsum(np.ones(log.n_items) if weights is None else weights)
    found = np.full(len(users), -1, dtype=np.int64)
    open_rows = np.arange(len(users))
    for _ in range(SAMPLING_ROUNDS):
        draws = np.searchsorted(cumulative, rng.random(len(open_rows)) * cumulative[-1], side="right")
        draws = np.minimum(draws, log.n_items - 1)
        fresh = ~contains(seen, pair_keys(users[open_rows], draws, log.n_items))
        found[open_rows[fresh]] = draws[fresh]
        open_rows = open_rows[~fresh]
        if not len(open_rows):
            break
    return found


def match_popularity(
    log: Interactions, popularity: NDArray[Any], users: NDArray[Any], items: NDArray[Any]
) -> LongArray:
    """For each (user, item) the item of nearest popularity rank that is not in the user's part of `log`.

    Matched without replacement within a user; of two equally near, less and more popular take turns. Ties in
    popularity are ranked by item row.

    Args:
        log: everything the users are known to have consumed, the pairs to be matched included.
        popularity: (n_items,) counts to match by, from the training part.
        users, items: (n,) the chosen pairs.

    Returns:
        (n,) item rows; -1 where nothing unseen is left.
    """
    by_rank = np.argsort(popularity, kind="stable")
    rank = np.empty(log.n_items, dtype=np.int64)
    rank[by_rank] = np.arange(log.n_items)
    history = np.argsort(log.users, kind="stable")
    starts = np.concatenate([[0], np.cumsum(log.user_counts())])
    order = np.argsort(users, kind="stable")
    matched = np.full(len(users), -1, dtype=np.int64)
    matched[order] = _match(by_rank, rank, starts, log.items[history].astype(np.int64), users[order], items[order])
    return matched


@nb.njit(cache=True, nogil=True)
def _match(
    by_rank: Any, rank: Any, starts: Any, history: Any, users: Any, items: Any
) -> Any:  # pragma: no cover - compiled
    n_items = len(rank)
    taken_by = np.full(n_items, -1, dtype=np.int64)
    matched = np.full(len(users), -1, dtype=np.int64)
    current = -1
    for row in range(len(users)):
        user = users[row]
        if user != current:
            current = user
            for at in range(starts[user], starts[user + 1]):
                taken_by[history[at]] = user
        side = 1 if row % 2 else -1
        for distance in range(1, n_items):
            for direction in (side, -side):
                place = rank[items[row]] + direction * distance
                if 0 <= place < n_items and taken_by[by_rank[place]] != user and matched[row] < 0:
                    matched[row] = by_rank[place]
            if matched[row] >= 0:
                taken_by[matched[row]] = user
                break
    return matched


def mean_user_auc(users: NDArray[Any], chosen: NDArray[Any], other: NDArray[Any]) -> float:
    """AUC of chosen against other scores within each user, averaged over users; ties count one half.

    Args:
        users: (n,) whose pair each row is.
        chosen, other: (n,) score of the chosen item and of the one it is compared with; NaN rows are left out.

    Returns:
        The mean, NaN where there is no pair.
    """
    usable = ~(np.isnan(chosen) | np.isnan(other))
    users, chosen, other = users[usable], chosen[usable], other[usable]
    if not len(users):
        return float("nan")
    order = np.argsort(users, kind="stable")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(users[order])) + 1, [len(users)]])
    return float(_auc(starts, chosen[order].astype(np.float64), other[order].astype(np.float64)).mean())


@nb.njit(cache=True, nogil=True)
def _auc(starts: Any, chosen: Any, other: Any) -> Any:  # pragma: no cover - compiled
    n_users = len(starts) - 1
    auc = np.empty(n_users)
    for user in range(n_users):
        first, last = starts[user], starts[user + 1]
        negatives = np.sort(other[first:last])
        wins = 0.0
        for row in range(first, last):
            below = np.searchsorted(negatives, chosen[row], side="left")
            up_to = np.searchsorted(negatives, chosen[row], side="right")
            wins += (below + up_to) / 2
        auc[user] = wins / (last - first) ** 2
    return auc
