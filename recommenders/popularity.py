"""The references every result is read against: uniformly random slates and the most popular items.

Neither knows one user from another; both cost next to nothing.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender
from simenv.candidates import Candidates, insert, is_out
from simenv.datasets.base import Interactions, LongArray
from simenv.randomness import Key, Purpose, fold, prefix
from simenv.slates import Slates


class Random(Recommender):
    """Uniformly random slates without replacement.

    An item's draw is `simenv.randomness.uniforms(key, Purpose.RANDOM_SLATE, user, item)` and the slate is the allowed
    items with the largest draws, so that a slate depends on (seed, round, page, user) and on the candidates alone.
    The propensity at rank r (from 0) is 1 / (candidates - r). Its `scores` are all zero: it prefers nothing.

    Learning: none. New users are served like everybody.
    """

    name = "random"
    pads_batches = False

    def fit_counts(self, counts: LongArray, n_users: int) -> None:
        """See `simenv.slates.LearnsCounts`."""
        self._learnt_counts(counts, n_users)

    def _fit(self, log: Interactions, key: Key) -> None:
        """Nothing to learn."""

    def _score(self, users: LongArray) -> NDArray[Any]:
        return np.zeros((len(users), self.n_items), np.float32)

    def _recommend(self, users: LongArray, k: int, candidates: Candidates, key: Key) -> Slates:
        items, n_candidates = random_slates(users, k, candidates, key)
        left = n_candidates[:, None] - np.arange(k)
        return Slates(item_ids=items, propensity=1.0 / np.maximum(left, 1))


class Popularity(Recommender):
    """The items with the most interactions so far, the same for everybody; ties to the smaller item row.

    Learning: every interaction counts, repeated ones too. New users are served like everybody.
    """

    name = "popularity"
    pads_batches = False

    def fit_counts(self, counts: LongArray, n_users: int) -> None:
        """See `simenv.slates.LearnsCounts`."""
        self._learnt_counts(counts, n_users)
        self._rank_items()

    def _fit(self, log: Interactions, key: Key) -> None:
        self._rank_items()

    def _rank_items(self) -> None:
        self._order = np.argsort(-self._popularity, kind="stable").astype(np.int32)

    def _score(self, users: LongArray) -> NDArray[Any]:
        return np.tile(self._popularity, (len(users), 1))

    def _recommend(self, users: LongArray, k: int, candidates: Candidates, key: Key) -> Slates:
        order = self._order[candidates.available[self._order]]
        out = np.full((len(candidates.bits), k), -1, np.int32)
        _first_allowed(order, candidates.bits, out)
        return Slates(item_ids=out if len(out) == len(users) else np.repeat(out, len(users), axis=0))


def random_slates(users: LongArray, k: int, candidates: Candidates, key: Key) -> tuple[NDArray[np.int32], LongArray]:
    """The allowed items with the k largest uniforms, (B, k), -1 where they run out, and candidates per user, (B,)."""
    out = np.full((len(users), k), -1, np.int32)
    count = np.zeros(len(users), np.int64)
    state = prefix(key.seed, Purpose.RANDOM_SLATE)
    _random_slates(state, users, key.round, key.page, candidates.bits, candidates.available, out, count)
    return out, count


@nb.njit(cache=True, nogil=True)
def _first_allowed(order: Any, bits: Any, out: Any) -> None:  # pragma: no cover - compiled
    k = out.shape[1]
    for row in range(out.shape[0]):
        filled = 0
        for item in order:
            if is_out(bits, row, item):
                continue
            out[row, filled] = item
            filled += 1
            if filled == k:
                break


@nb.njit(cache=True, nogil=True)
def _random_slates(
    state: Any, users: Any, round: Any, page: Any, bits: Any, allowed: Any, out: Any, count: Any
) -> None:  # pragma: no cover - compiled
    k = out.shape[1]
    best = np.empty(k, np.uint64)
    for row in range(len(users)):
        own = row if bits.shape[0] > 1 else 0
        here = fold(fold(fold(state, users[row]), round), page)
        filled = 0
        for item in range(len(allowed)):
            if not allowed[item] or is_out(bits, own, item):
                continue
            count[row] += 1
            draw = fold(here, item) >> np.uint64(11)  # the order of the uniforms, before they are scaled
            if filled == k and draw <= best[k - 1]:
                continue
            filled = insert(best, out[row], filled, draw, item)
