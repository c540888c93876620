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

from agents.population.scoring import score_part, sigmoid
from simenv.candidates import Candidates, insert, is_out, pack
from simenv.datasets.base import FloatArray, LongArray

if TYPE_CHECKING:
    from agents.population.rows import Population

MOST_BYTES = 2**29  # of all lists; above it nothing is kept
_TILE, _TOGETHER = 1024, 32  # items whose vectors stay in the cache, and users they are scored for meanwhile
_STRIDE = 64  # items passed over at once where none is good enough
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
    best, items = np.empty((_TOGETHER, max(k, size)), np.float32), np.empty((_TOGETHER, max(k, size)), np.int32)
    scores = np.empty(min(n_items, _TILE), np.float32)
    rows, floors = np.empty(_TOGETHER, np.int64), np.empty(_TOGETHER, np.float32)
    filled, wanted = np.empty(_TOGETHER, np.int64), np.empty(_TOGETHER, np.int64)
    n = 0  # rows that the catalogue is looked through for next
    for row in range(len(users)):
        user = users[row]
        own = row if out.shape[0] > 1 else 0
        length = lengths[user] if len(lengths) > 0 else _STRANGER
        found, floor = -1, np.float32(-np.inf)
        if length >= 0:
            found = _from_list(
                user, own, vectors, items_of, item_bias, out, longest, largest_bias, lists, best[n, :k], items[n, :k]
            )
            if found < 0:
                floor = _least(user, own, vectors, items_of, item_bias, out, lists, k)
        if found >= 0:
            result[row] = _mean(best[n], found, user_bias[user])
        else:
            rows[n], floors[n], filled[n] = row, floor, 0
            wanted[n] = k if length == _STRANGER else size
            n += 1
        if n < _TOGETHER and (n == 0 or row + 1 < len(users)):
            continue
        for start in range(0, n_items, _TILE):
            stop = min(start + _TILE, n_items)
            for i in range(n):
                own = rows[i] if out.shape[0] > 1 else 0
                score_part(vectors[users[rows[i]]], items_t, item_bias, start, stop, scores)
                filled[i] = _keep_best(
                    scores[: stop - start], start, floors[i], out, own, best[i, : wanted[i]], items[i], filled[i]
                )
        for i in range(n):
            user = users[rows[i]]
            if len(lengths) > 0 and lengths[user] == _STRANGER:
                lengths[user] = _ASKED
            elif len(lengths) > 0:
                own = rows[i] if out.shape[0] > 1 else 0
                for place in range(filled[i]):
                    kept[user, place] = items[i, place]
                    kept_scores[user, place] = best[i, place]
                for byte in range(out.shape[1]):
                    was_out[user, byte] = out[own, byte]
                for j in range(d):
                    tastes[user, j] = vectors[user, j]
                bounds[user] = best[i, filled[i] - 1] if filled[i] == wanted[i] else floors[i]
                lengths[user] = filled[i]
            result[rows[i]] = _mean(best[i], min(filled[i], k), user_bias[user])
        n = 0
    return result


@nb.njit(inline="always", cache=True)
def _mean(best: Any, filled: int, bias: Any) -> Any:  # pragma: no cover - compiled
    """Mean utility of the first scores; NaN of none."""
    total = 0.0
    for place in range(filled):
        total += sigmoid(best[place] + bias)
    return total / filled if filled else np.nan


@nb.njit(cache=True, nogil=True)
def _keep_best(
    scores: Any, first: int, floor: Any, out: Any, own: int, best: Any, items: Any, filled: int
) -> int:  # pragma: no cover - compiled
    """Insert the scores of items `first` and on that are not out, nor below `floor`; how many places are filled."""
    wanted = len(best)
    for start in range(0, len(scores), _STRIDE):
        stop = min(start + _STRIDE, len(scores))
        if filled == wanted:
            any_better, least = False, best[wanted - 1]
            for place in range(start, stop):
                any_better |= scores[place] > least
            if not any_better:
                continue
        for place in range(start, stop):
            score, item = scores[place], first + place
            if score < floor or (filled == wanted and score <= best[wanted - 1]) or is_out(out, own, item):
                continue
            filled = insert(best, items, filled, score, item)
    return filled


@nb.njit(inline="always", cache=True)
def _score(user: int, item: int, vectors: Any, items_of: Any, item_bias: Any) -> Any:  # pragma: no cover - compiled
    """One score, summed as in `score_part`."""
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
