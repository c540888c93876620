"""PlackettLuce: any recommender made stochastic, with exact propensities of items and slates.

It knows its base's scores and nothing of rewards; estimates from its logs are
`recommenders.evaluation.off_policy`'s business.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender, check_options
from recommenders.rerank import Wrapper
from simenv.candidates import Candidates, insert, is_out
from simenv.datasets.base import LongArray
from simenv.errors import RecommenderError
from simenv.randomness import Key, Purpose, fold, prefix, to_uniform
from simenv.slates import Slates


class PlackettLuce(Wrapper):
    """Draws slates without replacement in proportion to exp(score / temperature).

    With z the base's scores standardised over the whole catalogue and C the user's candidates, the item at rank r is
    drawn from those left, P(i at r | ranks before) = exp(z_i / temperature) / sum_{j in C, not yet drawn} exp(z_j /
    temperature) (Plackett 1975; Luce 1959), by Gumbel top-k (Kool, van Hoof and Welling 2019). That is the item's
    propensity; the slate's is the product over ranks (`slate_propensity`). Draws are keyed by (user, item) with
    `Purpose.PLACKETT_LUCE`. `scores` are the base's.

    Args:
        base: a recommender with scores.
        temperature: above 0; large = uniform, small = the base's own slates.
    """

    name = "plackett-luce"

    def __init__(self, base: Recommender, *, temperature: float = 1.0) -> None:
        super().__init__(base)
        check_options(self.name, open_low=True, temperature=temperature)
        self.temperature = temperature

    def _recommend(self, users: LongArray, k: int, candidates: Candidates, key: Key) -> Slates:
        items = np.full((len(users), k), -1, np.int32)
        state = prefix(key.seed, Purpose.PLACKETT_LUCE)
        weights = self._log_weights(users)
        bits, available = candidates.bits, candidates.available
        _draw(users, weights, bits, available, state, key.round, key.page, items)
        propensity = np.ones((len(users), k))
        _probabilities(weights, bits, available, items.astype(np.int64), propensity)
        return Slates(item_ids=items, propensity=propensity)

    def propensity(
        self, users: NDArray[Any], slates: NDArray[Any], candidates: Candidates | None = None
    ) -> NDArray[np.float64]:
        """Probability of each item at its rank given the ranks before, for any slates, (B, K).

        0 where an item is no candidate or already on the slate; 1 at empty slots (-1).

        Args:
            users: (B,) rows.
            slates: (B, K) items.
            candidates: as in `recommend`.
        """
        self._require_fit()
        users, slates = np.asarray(users, np.int64), np.asarray(slates, np.int64)
        if slates.ndim != 2 or len(slates) != len(users) or (slates >= self.n_items).any():
            raise RecommenderError(
                f"{self.name}: slates {slates.shape}; expected ({len(users)}, K) items below {self.n_items}"
            )
        out = np.ones(slates.shape)
        candidates = candidates or Candidates.of(self.n_items)
        _probabilities(self._log_weights(users), candidates.bits, candidates.available, slates, out)
        return out

    def _log_weights(self, users: LongArray) -> NDArray[np.float64]:
        scores = self.base.scores(users).astype(np.float64)
        scores -= scores.mean(axis=1, keepdims=True)
        spread = scores.std(axis=1, keepdims=True)
        return np.asarray(scores / np.where(spread > 0, spread, 1.0) / self.temperature)


def slate_propensity(propensity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of whole slates, (B,), from the items' conditional ones (B, K)."""
    return np.asarray(propensity.prod(axis=1))


@nb.njit(cache=True, nogil=True)
def _draw(
    users: Any, weights: Any, bits: Any, allowed: Any, state: Any, round_: int, page: int, out: Any
) -> None:  # pragma: no cover - compiled
    k = out.shape[1]
    best = np.empty(k)
    for row in range(len(users)):
        own = row if bits.shape[0] > 1 else 0
        key = fold(fold(fold(state, users[row]), round_), page)
        filled = 0
        for item in range(weights.shape[1]):
            if not allowed[item] or is_out(bits, own, item):
                continue
            draw = to_uniform(fold(key, item)) + 2.0**-54
            score = weights[row, item] - np.log(-np.log(draw))
            if filled == k and score <= best[k - 1]:
                continue
            filled = insert(best, out[row], filled, score, item)


@nb.njit(cache=True, nogil=True)
def _probabilities(weights: Any, bits: Any, allowed: Any, slates: Any, out: Any) -> None:  # pragma: no cover - compiled
    n_items = weights.shape[1]
    left = np.empty(n_items)
    for row in range(len(slates)):
        own = row if bits.shape[0] > 1 else 0
        highest = -np.inf
        for item in range(n_items):
            candidate = allowed[item] and not is_out(bits, own, item)
            left[item] = weights[row, item] if candidate else -np.inf
            highest = max(highest, left[item])
        for item in range(n_items):
            left[item] = np.exp(left[item] - highest) if left[item] > -np.inf else 0.0
        for rank in range(slates.shape[1]):
            item = slates[row, rank]
            if item < 0:
                continue
            total = 0.0  # summed anew at each rank: a running difference loses the small weights
            for other in range(n_items):
                total += left[other]
            out[row, rank] = left[item] / total if total > 0.0 else 0.0
            left[item] = 0.0
