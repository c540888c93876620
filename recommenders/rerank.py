"""Recommenders around a recommender, made to fight its biases: a penalty on popularity, exploration, calibration.

They know what the one inside scores or serves, never how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender, check_options
from recommenders.popularity import random_slates
from simenv.candidates import Candidates
from simenv.datasets.base import Dataset, Interactions, LongArray
from simenv.errors import ConfigError, RecommenderError
from simenv.events import Events
from simenv.metrics.reference import genre_weights
from simenv.randomness import Key, Purpose, uniforms
from simenv.slates import Rehearses, SeesDataset, SeesTruth, Slates, asks_model, measured


class Wrapper(Recommender):
    """A recommender around `base`, which learns, is saved and sees data set and truth together with it."""

    pads_batches = False

    def __init__(self, base: Recommender) -> None:
        if not isinstance(base, Recommender):
            raise ConfigError(f"{self.name}: base is a {type(base).__name__}; expected a Recommender")
        self.base = base

    def bind_dataset(self, dataset: Dataset) -> None:
        """Show `base` the data set, if it wants to see one."""
        if isinstance(self.base, SeesDataset):
            self.base.bind_dataset(dataset)

    def bind_truth(self, utility: Callable[[NDArray[Any]], NDArray[np.float32]]) -> None:
        """Show `base` the truth, if it wants to see it."""
        if isinstance(self.base, SeesTruth):
            self.base.bind_truth(utility)

    def remember(self, new: Interactions) -> None:
        super().remember(new)
        self.base.remember(new)

    def measures(self, events: Events) -> Mapping[str, float]:
        """What `base` measures of the impressions of a round, where it measures something."""
        return measured(self.base, events)

    @property
    def accounting(self) -> dict[str, Any] | None:
        """What `base` asked a language model; None where it asks none."""
        return self.base.accounting if asks_model(self.base) else None

    def rehearse(self) -> None:
        """From now on a stand-in answers, where `base` asks a language model."""
        if isinstance(self.base, Rehearses):
            self.base.rehearse()

    def dry_run(self, users: NDArray[Any], slates: NDArray[np.int32], key: Key, *, pages: int) -> object:
        """What `base` would ask for these pages; see `simenv.slates.AsksModel`."""
        if not asks_model(self.base):
            raise ConfigError(f"{self.name}: base {self.base.name} asks no language model")
        return self.base.dry_run(users, slates, key, pages=pages)

    def save(self, folder: Path) -> None:
        super().save(folder)
        self.base.save(Path(folder) / "base")

    def load(self, folder: Path) -> None:
        super().load(folder)
        self.base.load(Path(folder) / "base")

    def _fit(self, log: Interactions, key: Key) -> None:
        self.base.fit(log, key=key)

    def _update(self, new: Interactions, key: Key) -> None:
        self.base.update(new, key=key)

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """`base` restores itself."""

    def _score(self, users: LongArray) -> NDArray[Any]:
        return self.base.scores(users)


def _own(value: float | NDArray[Any], users: LongArray) -> NDArray[np.float64]:
    """An option of these users, (B,): one number for everybody, or (n_users,)."""
    values = np.asarray(value, np.float64)
    return values[users] if values.ndim else np.full(len(users), values)


class PopularityPenalty(Wrapper):
    """Re-ranks the whole catalogue by the base's score minus a penalty on popularity.

    score'(u, i) = z(u, i) - strength * log((n_i + 1/2) / sum_j (n_j + 1/2)), where z is the base's score standardised
    over the user's catalogue and n_i the interactions with item i so far. A post-processing correction in score space,
    as in the popularity compensation of Zhu et al. (2021) and the family surveyed by Klimashevskaia et al. (2024);
    Abdollahpouri, Burke and Mobasher (2019) re-rank for the same end, by list coverage.

    Args:
        base: any recommender with scores.
        strength: standard deviations of score that one unit of log popularity costs; 0 leaves the base's order.
    """

    name = "popularity-penalty"

    def __init__(self, base: Recommender, *, strength: float = 0.5) -> None:
        super().__init__(base)
        check_options(self.name, strength=strength)
        self.strength: float | NDArray[Any] = strength  # an array: of each user, (n_users,)

    def _score(self, users: LongArray) -> NDArray[Any]:
        scores = self.base.scores(users).astype(np.float64)
        scores -= scores.mean(axis=1, keepdims=True)
        spread = scores.std(axis=1, keepdims=True)
        scores /= np.where(spread > 0, spread, 1.0)
        smoothed = self._popularity.astype(np.float64) + 0.5
        return np.asarray(scores - _own(self.strength, users)[:, None] * np.log(smoothed / smoothed.sum()))


class EpsilonGreedy(Wrapper):
    """Serves the base's slate, but each slot explores with probability epsilon.

    At rank r, with C the user's candidates and S the items at earlier ranks: with probability epsilon a uniformly
    random item of C - S, else the base's best item of C - S. Hence the exact propensity, given the ranks before,

        P(i at r) = epsilon / (|C| - r) + (1 - epsilon) [i is the base's best of C - S],

    and 1 / (|C| - r) where the base has nothing left to offer. Whether a slot explores is drawn by (user, rank) with
    `Purpose.EXPLORE`, and what it explores is the next item of the slate `random` would serve. `scores` are the base's.

    Args:
        base: a recommender without randomness of its own in its slates.
        epsilon: share of explored slots, 0 to 1.

    Raises:
        RecommenderError: on recommend, if the base draws its slates: its propensities could not be combined exactly.
    """

    name = "epsilon-greedy"

    def __init__(self, base: Recommender, *, epsilon: float = 0.1) -> None:
        super().__init__(base)
        check_options(self.name, high=1, epsilon=epsilon)
        self.epsilon: float | NDArray[Any] = epsilon  # an array: of each user, (n_users,)

    def _recommend(self, users: LongArray, k: int, candidates: Candidates, key: Key) -> Slates:
        greedy = self.base.recommend(users, k, candidates, key=key)
        if greedy.propensity is not None:
            raise RecommenderError(
                f"{self.name}: base '{self.base.name}' draws its slates; expected a deterministic one"
            )
        drawn, n_candidates = random_slates(users, k, candidates, key)
        epsilon = _own(self.epsilon, users)
        explores = uniforms(key, Purpose.EXPLORE, users[:, None], np.arange(k)) < epsilon[:, None]
        items = np.full((len(users), k), -1, np.int32)
        propensity = np.ones((len(users), k))
        _explore(greedy.item_ids, drawn, explores, n_candidates, epsilon, items, propensity)
        return Slates(item_ids=items, propensity=propensity)


class Calibrated(Wrapper):
    """Re-ranks so that a slate's genres match the user's history (Steck 2018, "Calibrated recommendations").

    The slate is built greedily: each slot takes the candidate that maximises

        (1 - strength) * sum of scores - strength * KL(p || (1 - a) q + a p),   a = .01,

    with p(g) the user's history over genres, each interaction spread evenly over its item's genres, and q(g) the same
    of the slate so far. Scores are the base's, scaled to [0, 1] over the user's candidates, which are its `candidates`
    best allowed items. A user without genres in the history, and a candidate set without any, keep the base's order.

    Args:
        base: any recommender with scores.
        strength: lambda, 0 = the base's slates, 1 = calibration alone.
        candidates: items of each user that can enter the slate.
    """

    name = "calibrated"

    def __init__(self, base: Recommender, *, strength: float = 0.5, candidates: int = 100) -> None:
        super().__init__(base)
        check_options(self.name, high=1, strength=strength)
        check_options(self.name, low=1, whole=True, candidates=candidates)
        self.strength: float | NDArray[Any] = strength  # an array: of each user, (n_users,)
        self.candidates = candidates
        self._weights: NDArray[np.float32] | None = None  # (n_items, n_genres)

    def bind_dataset(self, dataset: Dataset) -> None:
        """Read the genres; show `base` the data set, if it wants to see one."""
        super().bind_dataset(dataset)
        self._weights = genre_weights(dataset.catalog.genres)

    def _fit(self, log: Interactions, key: Key) -> None:
        super()._fit(log, key)
        self._profile()

    def _update(self, new: Interactions, key: Key) -> None:
        super()._update(new, key)
        self._profile()

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._profile()

    def _profile(self) -> None:
        if self._weights is None:
            raise RecommenderError(f"{self.name}: fit before bind_dataset; it needs the items' genres")
        log = self._log
        sums = [np.bincount(log.users, column[log.items], self.n_users) for column in self._weights.T]
        profile = np.stack(sums, axis=1) if sums else np.zeros((self.n_users, 0))
        total = profile.sum(axis=1, keepdims=True)
        self._wanted = np.divide(profile, total, out=np.zeros_like(profile), where=total > 0)  # (n_users, n_genres)

    def _recommend(self, users: LongArray, k: int, candidates: Candidates, key: Key) -> Slates:
        items = np.full((len(users), k), -1, np.int32)
        n = min(max(self.candidates, k), self.n_items)
        for rows, scores in self._score_batches(users, key):
            best = self._best(scores, n, candidates.rows(rows), users[rows], key)
            value = np.take_along_axis(scores, np.maximum(best, 0), axis=1).astype(np.float64)
            strength = _own(self.strength, users[rows])
            _calibrate(best, value, self._weights, self._wanted[users[rows]], strength, items[rows])
        return Slates(item_ids=items)


@nb.njit(cache=True, nogil=True)
def _calibrate(
    candidates: Any, scores: Any, weights: Any, wanted: Any, strength: Any, out: Any
) -> None:  # pragma: no cover - compiled
    n_genres = weights.shape[1]
    for row in range(len(candidates)):
        n = 0
        while n < candidates.shape[1] and candidates[row, n] >= 0:
            n += 1
        if n == 0:
            continue
        low, high = scores[row, n - 1], scores[row, 0]
        spread = high - low if high > low else 1.0
        p = wanted[row]
        taken = np.zeros(n, np.bool_)
        mass = np.zeros(n_genres)
        for rank in range(min(out.shape[1], n)):
            best, best_value = -1, -np.inf
            for c in range(n):
                if taken[c]:
                    continue
                item = candidates[row, c]
                total = 0.0
                for g in range(n_genres):
                    total += mass[g] + weights[item, g]
                divergence = 0.0
                for g in range(n_genres):
                    if p[g] > 0.0:
                        q = (mass[g] + weights[item, g]) / total if total > 0.0 else 0.0
                        divergence += p[g] * np.log(p[g] / (0.99 * q + 0.01 * p[g]))
                value = (1.0 - strength[row]) * (scores[row, c] - low) / spread - strength[row] * divergence
                if value > best_value:
                    best, best_value = c, value
            taken[best] = True
            out[row, rank] = candidates[row, best]
            for g in range(n_genres):
                mass[g] += weights[candidates[row, best], g]


@nb.njit(cache=True, nogil=True)
def _explore(
    greedy: Any, drawn: Any, explores: Any, candidates: Any, epsilon: Any, items: Any, propensity: Any
) -> None:  # pragma: no cover - compiled
    """Of k ranked items at most r are taken before rank r, so the first k of each order are enough."""
    n_rows, k = items.shape
    for row in range(n_rows):
        for rank in range(min(k, candidates[row])):
            best = _first_new(greedy[row], items[row, :rank])
            other = _first_new(drawn[row], items[row, :rank])
            items[row, rank] = other if explores[row, rank] or best < 0 else best
            uniform = 1.0 / (candidates[row] - rank)
            if best < 0:
                propensity[row, rank] = uniform
            else:
                propensity[row, rank] = epsilon[row] * uniform + (1.0 - epsilon[row]) * (items[row, rank] == best)


@nb.njit(cache=True, nogil=True)
def _first_new(ranked: Any, taken: Any) -> Any:  # pragma: no cover - compiled
    for item in ranked:
        if item < 0:
            return -1
        new = True
        for other in taken:
            if other == item:
                new = False
                break
        if new:
            return item
    return -1
