"""Splits of a log: what may be learned from, what is held out, and the unseen items it is compared with.

`last_share` is the one rule behind every `holdout`: each user's last interactions by time, ties in file order. The
module does not know who learns or who is judged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import BoolArray, Dataset, FloatArray, IntArray, Interactions, LongArray
from simenv.errors import ConfigError, DataError
from simenv.numeric import places_in_groups

SAMPLING_ROUNDS = 50
FEWEST = 3  # of a user with fewer interactions nothing is held out


def pair_keys(users: NDArray[Any], items: NDArray[Any], n_items: int) -> LongArray:
    """One integer per (user, item) pair."""
    return np.asarray(users, dtype=np.int64) * n_items + np.asarray(items, dtype=np.int64)


def distinct(keys: LongArray) -> LongArray:
    """The different keys, sorted (for long arrays several times as fast as `np.unique`)."""
    keys = np.sort(keys)
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys


def contains(sorted_keys: LongArray, keys: LongArray) -> BoolArray:
    """Which of `keys` are among `sorted_keys`."""
    if not len(sorted_keys):
        return np.zeros(len(keys), dtype=np.bool_)
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.asarray(sorted_keys[at] == keys)


# -- the last share of everybody's ------------------------------------------------------------------------------


def is_late(owners: NDArray[Any], share: float, by: NDArray[Any] | None = None) -> BoolArray:
    """Which rows are among the last `share` of their owner's.

    An owner of n rows has floor(n * share) late ones, at least one if n >= 3, none if n < 3.

    Args:
        owners: (n,) whole numbers from 0.
        share: in (0, 1).
        by: (n,) what an owner's rows are ordered by, ties in the order of the rows; None = the order of the rows.
    """
    counts = np.bincount(owners)
    n_late = np.where(counts >= FEWEST, np.maximum(1, np.floor(counts * share + 1e-9)), 0)
    return np.asarray(places_in_groups(owners, by) >= (counts - n_late)[owners])


def last_share(log: Interactions, share: float) -> tuple[Interactions, Interactions]:
    """Each user's last interactions by time (see `is_late`) apart from the others.

    Held-out pairs that the user had before, and repeats among them, are in neither part: a second viewing says nothing
    about choosing, and where nothing is shown twice it could not be found.

    Returns:
        What may be known, and the held-out choices.
    """
    late = is_late(log.users, share, log.times)
    train, held = log.take(~late), log.take(late)
    keys = pair_keys(held.users, held.items, log.n_items)
    first = np.zeros(len(held), dtype=np.bool_)
    first[np.unique(keys, return_index=True)[1]] = True
    before = distinct(pair_keys(train.users, train.items, log.n_items))
    return train, held.take(first & ~contains(before, keys))


def hold_out(dataset: Dataset, share: float) -> Dataset:
    """The data set with the last `share` of each user's interactions kept from everyone, in `holdout`; 0 = none.

    Raises:
        ConfigError: `share` is none. DataError: nothing is left to be found, since every user has fewer than three
            interactions, or had all of the last ones before.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"holdout={share}: expected a share in [0, 1)")
    if share == 0:
        return dataset
    log, held = last_share(dataset.interactions, share)
    if not len(held):
        late = len(dataset.interactions) - len(log)
        why = f"each of the last {late} repeats an earlier one" if late else f"no user has {FEWEST} interactions"
        raise DataError(f"{dataset.name}: holdout={share} holds nothing out, since {why}; expected holdout=0")
    return replace(dataset, interactions=log, holdout=held)


# -- one later item per user ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What may be learned from, and of each test user what is kept back: one target, and all of it."""

    name: str
    train: Interactions
    users: LongArray  # (m,)
    targets: IntArray  # (m,), the first of what is kept back
    ratings: FloatArray  # (m,) of the targets, NaN where there is none
    held: Interactions  # all that is kept back of these users, the targets among it
    shown: BoolArray | None = None  # (n_items,), what is ranked; None = the whole catalogue

    def digest(self) -> str:
        """A fingerprint of what is learned from and what is asked, to tell whether two tables had the same split."""
        content = hashlib.sha256(self.name.encode())
        parts = (self.train.users, self.train.items, self.train.ratings, self.users, self.targets, self.held.items)
        for array in parts:
            content.update(np.ascontiguousarray(array).tobytes())
        return content.hexdigest()[:12]


def leave_one_out(log: Interactions, *, minimum: int = 3, repeats: bool = True) -> Split:
    """Each user's last interaction is the target; all before it, the validation item included, is for learning.

    Args:
        log: the interactions.
        minimum: users with fewer interactions are not tested.
        repeats: keep users whose target is among the items they consumed before; with a seen-item filter those
            targets can never be found.
    """
    order = np.lexsort((log.times, log.users))
    counts = log.user_counts()
    last = order[np.cumsum(counts)[counts > 0] - 1]
    last = last[counts[log.users[last]] >= minimum]
    if len(last) == 0:
        raise DataError(f"leave-one-out: no user has {minimum} interactions; expected at least one")
    keep = np.ones(len(log), np.bool_)
    keep[last] = False
    return _split("leave-one-out", log.take(keep), log.take(last), repeats=repeats)


def global_time_split(log: Interactions, *, share: float = 0.1, repeats: bool = True) -> Split:
    """The latest `share` of all interactions lies in the future; the target is each user's first item in it.

    Nothing after the cut is learned from, not even other users' behaviour. Users unknown before the cut are not tested.
    """
    if not 0 < share < 1:
        raise ConfigError(f"share={share}: expected a share in (0, 1)")
    cut = np.sort(log.times, kind="stable")[int(np.floor(len(log) * (1 - share)))]
    past = log.times < cut
    train, future = log.take(past), log.take(~past)
    future = future.take((train.user_counts() > 0)[future.users])
    if len(train) == 0 or len(future) == 0:
        raise DataError(f"global-time split at {cut}: no user has interactions on both sides; expected at least one")
    return _split("global-time", train, future, repeats=repeats)


def cold_items(log: Interactions, *, share: float = 0.1, seed: int = 0) -> Split:
    """A seeded `share` of the items that occur is unknown: nobody's interactions with them are learned from.

    The target is each user's first interaction with one of them, for users who have others; ranked are these items
    alone, since nothing that counts would put one of them before an item it has seen.
    """
    known = np.flatnonzero(log.item_counts())
    cold = np.zeros(log.n_items, np.bool_)
    cold[_some(known, share, seed)] = True
    late = cold[log.items]
    train, held = log.take(~late), log.take(late)
    held = held.take((train.user_counts() > 0)[held.users])
    if len(held) == 0:
        raise DataError(f"cold items: nobody has one of {cold.sum()} items and others too; expected a larger log")
    return replace(_split("cold-items", train, held), shown=cold)


def cold_users(log: Interactions, *, share: float = 0.1, known: int = 1, seed: int = 0) -> Split:
    """Of a seeded `share` of the users, with more than `known` interactions, only the first `known` are known.

    The target is the next one.
    """
    counts = log.user_counts()
    some = np.zeros(log.n_users, np.bool_)
    some[_some(np.flatnonzero(counts > known), share, seed)] = True
    late = some[log.users] & (places_in_groups(log.users, log.times) >= known)
    return _split("cold-users", log.take(~late), log.take(late))


def random_share(log: Interactions, groups: LongArray, *, share: float = 0.1, seed: int = 0) -> Split:
    """A seeded `share` of the groups of interactions is kept back, whole; P5 tests ratings and explanations like this.

    Args:
        log: the interactions.
        groups: (n,) whole numbers; interactions of one group, such as those under which one text was pasted, stay
            together.
        share, seed: of the groups that are kept back.
    """
    late = np.isin(groups, _some(np.unique(groups), share, seed))
    return _split("random", log.take(~late), log.take(late))


def _random(dataset: Dataset) -> Split:
    log, reviews = dataset.interactions, dataset.reviews
    return random_share(log, np.arange(len(log)) if reviews is None else reviews.groups(log))


def _some(rows: LongArray, share: float, seed: int) -> LongArray:
    """A seeded share of these rows, at least one."""
    if not 0 < share < 1:
        raise ConfigError(f"share={share}: expected a share in (0, 1)")
    if len(rows) < 2:
        raise DataError(f"split: {len(rows)} rows to draw from; expected at least two")
    n = max(1, round(share * len(rows)))
    return np.sort(np.random.default_rng([seed, 0xC01D]).choice(rows, n, replace=False))


def _split(name: str, train: Interactions, held: Interactions, *, repeats: bool = True) -> Split:
    """A split whose targets are the first of each user's interactions in `held`."""
    if not repeats:
        fresh = ~np.isin(
            pair_keys(held.users, held.items, held.n_items), pair_keys(train.users, train.items, train.n_items)
        )
        held = held.take(fresh)
    order = np.lexsort((held.times, held.users))
    users, first = np.unique(held.users[order], return_index=True)
    first = order[first]
    return Split(
        name=name,
        train=train,
        users=users.astype(np.int64),
        targets=held.items[first],
        ratings=held.ratings[first],
        held=held,
    )


SPLITS: Mapping[str, Callable[[Dataset], Split]] = {
    "last": lambda dataset: leave_one_out(dataset.interactions),
    "time": lambda dataset: global_time_split(dataset.interactions),
    "cold_items": lambda dataset: cold_items(dataset.interactions),
    "cold_users": lambda dataset: cold_users(dataset.interactions),
    "random": _random,
    "leave_one_out": lambda dataset: leave_one_out(dataset.interactions),  # as runs of before have it
    "global_time": lambda dataset: global_time_split(dataset.interactions),
}


# -- unseen items -----------------------------------------------------------------------------------------------


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
