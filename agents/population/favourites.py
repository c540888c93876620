"""Favourites: the best items of each user, kept from round to round, and how good the best that may be shown are.

Regret asks every round for the best of a catalogue, while tastes hardly move. A list of a user's best items answers as
long as it can prove that it does: nothing that was out has come back, and the k best of those looked at lie above a
bound on all others, which is the score of the next one when the list was made, plus how far taste has moved since
(Cauchy and Schwarz), plus rounding. Else the whole catalogue is scored again. The figures are those of the whole
catalogue to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from agents.population.scoring import score_row, sigmoid
from simenv.candidates import Candidates, insert, is_out, pack
from simenv.datasets.base import FloatArray, LongArray

if TYPE_CHECKING:
    from agents.population.rows import Population

MOST_BYTES = 2**29  # of all lists; above it nothing is kept
_STRANGER, _ASKED = -2, -1  # instead of a length: nobody asked yet; asked once, so that a list begins to pay


class Favourites:
    """Lists of the users of a population, each made when it is asked for the second time.

    Args:
        population: whose taste vectors are read as they are at each call.
        spare: places of a list beyond the k asked for first, for items that go out.
    """

    def __init__(self, population: Population, *, spare: int = 22) -> None:
        self.population, self.spare = population, spare
        self._items_of = np.ascontiguousarray(population.items_t.T)  # (n_items, d)
        head = population.tastes.choice
        self._longest = float(np.sqrt(np.square(self._items_of.astype(np.float64)).sum(axis=1).max(initial=0.0)))
        self._largest_bias = float(np.abs(head.item_bias).max(initial=0.0))
        self._lists: tuple[NDArray[Any], ...] | None = None

    def mean_utility(self, users: LongArray, k: int, candidates: Candidates) -> FloatArray:
        """Mean true utility of the `k` best candidates of each user, (B,); of fewer where fewer are left, NaN of none.

        Args:
            users: (B,) distinct rows.
            k: how many.
            candidates: what is allowed.
        """
        population = self.population
        head = population.tastes.choice
        out = candidates.bits if candidates.available.all() else candidates.bits | ~pack(candidates.available[None, :])
        if self._lists is None or self._lists[0].shape[1] < min(k + 1, population.n_items):
            self._lists = self._empty(k)
        return _mean_utility(
            users,
            population.vectors,
            population.items_t,
            self._items_of,
            head.user_bias,
            head.item_bias,
            out,
            self._longest,
            self._largest_bias,
            self._lists,
            k,
        )

    def _empty(self, k: int) -> tuple[NDArray[Any], ...]:
        """Items and their scores, what was out, the taste and a bound on all else when it was made, and its length."""
        n, size = self.population.n_users, min(k + self.spare, self.population.n_items)
        shapes: list[tuple[int, type]] = [
            (size, np.int32),
            (size, np.float32),
            (-(-self.population.n_items // 8), np.uint8),
            (self._items_of.shape[1], np.float32),
        ]
        if n * sum(width * np.dtype(kind).itemsize for width, kind in shapes) > MOST_BYTES:
            n = 0
        arrays: list[NDArray[Any]] = [np.zeros((n, width), kind) for width, kind in shapes]
        return *arrays, np.zeros(n, np.float32), np.full(n, _STRANGER, np.int32)


@nb.njit(cache=True, nogil=True, fastmath={"contract"})
def _mean_utility(
    users: Any,
    vectors: Any,
    items_t: Any,
    items_of: Any,
    user_bias: Any,
    item_bias: Any,
    out: Any,
    longest: float,
    largest_bias: float,
    lists: Any,
    k: int,
) -> Any:  # pragma: no cover - compiled
    kept, kept_scores, was_out, tastes, bounds, lengths = lists
    n_items, d, size = items_t.shape[1], items_t.shape[0], kept.shape[1]
    result = np.empty(len(users), np.float32)
    best, items = np.empty(max(k, size), np.float32), np.empty(max(k, size), np.int32)
    scores = np.empty(n_items, np.float32)
    for row in range(len(users)):
        user = users[row]
        own = row if out.shape[0] > 1 else 0
        length = lengths[user] if len(lengths) > 0 else _STRANGER
        filled, floor = -1, np.float32(-np.inf)
        if length >= 0:
            filled = _from_list(
                user, own, vectors, items_of, item_bias, out, longest, largest_bias, lists, best[:k], items[:k]
            )
            if filled < 0:
                floor = _least(user, own, vectors, items_of, item_bias, out, lists, k)
        if filled < 0:
            wanted = k if length == _STRANGER else size
            score_row(vectors[user], items_t, item_bias, scores)
            filled = 0
            for item in range(n_items):
                score = scores[item]
                if score < floor or (filled == wanted and score <= best[wanted - 1]):
                    continue
                if is_out(out, own, item):
                    continue
                filled = insert(best[:wanted], items[:wanted], filled, score, item)
            if len(lengths) > 0 and length == _STRANGER:
                lengths[user] = _ASKED
            elif len(lengths) > 0:
                for place in range(filled):
                    kept[user, place] = items[place]
                    kept_scores[user, place] = best[place]
                for byte in range(out.shape[1]):
                    was_out[user, byte] = out[own, byte]
                for j in range(d):
                    tastes[user, j] = vectors[user, j]
                bounds[user] = best[filled - 1] if filled == wanted else floor
                lengths[user] = filled
            filled = min(filled, k)
        total = 0.0
        for place in range(filled):
            total += sigmoid(best[place] + user_bias[user])
        result[row] = total / filled if filled else np.nan
    return result


@nb.njit(inline="always", cache=True)
def _score(user: int, item: int, vectors: Any, items_of: Any, item_bias: Any) -> Any:  # pragma: no cover - compiled
    """One score, summed as in `score_row`."""
    score = item_bias[item]
    for j in range(vectors.shape[1]):
        score += vectors[user, j] * items_of[item, j]
    return score


@nb.njit(cache=True, nogil=True, fastmath={"contract"})
def _from_list(
    user: int,
    own: int,
    vectors: Any,
    items_of: Any,
    item_bias: Any,
    out: Any,
    longest: float,
    largest_bias: float,
    lists: Any,
    best: Any,
    items: Any,
) -> int:  # pragma: no cover - compiled
    """Fill `best` from the list of this user; how many there are, -1 = the list cannot tell."""
    kept, kept_scores, was_out, tastes, bounds, lengths = lists
    d, k = vectors.shape[1], len(best)
    back = np.uint8(0)
    for byte in range(out.shape[1]):
        back |= was_out[user, byte] & ~out[own, byte]
    if back != 0:
        return -1
    moved, length = 0.0, 0.0
    for j in range(d):
        step = np.float64(vectors[user, j]) - np.float64(tastes[user, j])
        moved += step * step
        length += np.float64(vectors[user, j]) ** 2
    moved, length = np.sqrt(moved), np.sqrt(length)
    rounding = (d + 2) * 2.0**-22 * ((2.0 * length + moved) * longest + largest_bias)
    reach = moved * longest * (1.0 + 1e-9) + rounding  # by which a score can have grown
    filled = 0
    for place in range(lengths[user]):
        if filled == k and best[k - 1] >= kept_scores[user, place] + reach:
            return filled
        item = kept[user, place]
        if is_out(out, own, item):
            continue
        score = _score(user, item, vectors, items_of, item_bias)
        if filled < k or score > best[k - 1]:
            filled = insert(best, items, filled, score, item)
    if bounds[user] == -np.inf or (filled == k and best[k - 1] >= bounds[user] + reach):
        return filled
    return -1


@nb.njit(cache=True, nogil=True, fastmath={"contract"})
def _least(
    user: int, own: int, vectors: Any, items_of: Any, item_bias: Any, out: Any, lists: Any, k: int
) -> Any:  # pragma: no cover - compiled
    """The lowest score of what is left of a list; -inf where too little is left to make a new one of."""
    kept, lengths = lists[0], lists[5]
    least, n = np.float32(np.inf), 0
    for place in range(lengths[user]):
        item = kept[user, place]
        if not is_out(out, own, item):
            least = min(least, _score(user, item, vectors, items_of, item_bias))
            n += 1
    return least if n > k + (kept.shape[1] - k) // 2 else np.float32(-np.inf)
