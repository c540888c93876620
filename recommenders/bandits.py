"""Bandits with one arm per (user, item): they learn from what they served, clicked or not.

A log holds clicks only, so a bandit remembers the slates it served itself. It knows no other user, no content and no
ratings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender, check_options, top_k
from simenv.candidates import Candidates
from simenv.datasets.base import Interactions, LongArray
from simenv.errors import RecommenderError
from simenv.randomness import Key, Purpose, generator
from simenv.slates import Slates


class Bandit(Recommender):
    """Counts successes and trials of every (user, item); subclasses turn them into scores.

    A trial is an item it served since the last `update`, or a click it did not serve. `fit` forgets what was served, so
    that each logged interaction is one success in one trial: use `retrain=update`.
    """

    pads_batches = False
    _later: list[Interactions]
    _served: dict[tuple[int, int, int], tuple[LongArray, LongArray]]  # (round, page, user) -> one slate
    _successes: NDArray[np.float64]  # (n_users, n_items)
    _trials: NDArray[np.float64]

    def update(self, new: Interactions, *, key: Key | None = None) -> None:
        """Count what was served and clicked; the same as `Recommender.update`, without copying the log each time."""
        self._require_fit()
        for what, fitted, got in (("users", self.n_users, new.n_users), ("items", self.n_items, new.n_items)):
            if got != fitted:
                raise RecommenderError(f"{self.name}: update with a log of {got} {what}; expected {fitted}, as fitted")
        self._later.append(new)
        clicks = self._counts(new)
        trials = np.zeros_like(clicks)
        for users, items in self._served.values():
            np.add.at(trials, (users, items), 1)
        self._served = {}
        self._successes += clicks
        self._trials += np.maximum(trials, clicks)
        self._has_history |= new.user_counts() > 0
        self._popularity += new.item_counts()

    @property
    def log(self) -> Interactions:
        self._require_fit()
        if self._later:
            self._log = self._log.concat(*self._later)
            self._later = []
        return self._log

    def save(self, folder: Any) -> None:
        _ = self.log  # the parts join the log that is written
        super().save(folder)

    def _fit(self, log: Interactions, key: Key) -> None:
        self._later = []
        self._served = {}
        self._successes = self._counts(log)
        self._trials = self._successes.copy()

    def _counts(self, log: Interactions) -> NDArray[np.float64]:
        cells = log.users.astype(np.int64) * self.n_items + log.items
        counts = np.bincount(cells, minlength=self.n_users * self.n_items)
        return counts.reshape(self.n_users, self.n_items).astype(np.float64)

    def _recommend(self, users: LongArray, k: int, candidates: Candidates, key: Key) -> Slates:
        items = top_k(self._index(users, key), k, candidates)
        for user, row in zip(users.tolist(), items):
            served = row[row >= 0].astype(np.int64)
            self._served[key.round, key.page, user] = np.full(len(served), user), served
        return Slates(item_ids=items, propensity=self._propensity(items))

    def _score(self, users: LongArray) -> NDArray[Any]:
        return (self._successes[users] + 1) / (self._trials[users] + 2)

    def _index(self, users: LongArray, key: Key) -> NDArray[Any]:
        """What slates are ranked by, (B, n_items); the posterior mean by default."""
        return self._score(users)

    def _propensity(self, items: NDArray[np.int32]) -> NDArray[np.float64] | None:
        """None = deterministic given the counts."""
        return None

    def _state(self) -> Mapping[str, NDArray[Any]]:
        served = [(*where, item) for where, (_, items) in self._served.items() for item in items.tolist()]
        return {
            "successes": self._successes,
            "trials": self._trials,
            "served": np.array(served, np.int64).reshape(-1, 4),
        }

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._later = []
        self._successes, self._trials = state["successes"].copy(), state["trials"].copy()
        self._served = {}
        rows = state["served"]
        for where in dict.fromkeys(map(tuple, rows[:, :3].tolist())):
            items = rows[(rows[:, :3] == where).all(axis=1), 3]
            self._served[where] = np.full(len(items), where[2]), items


class GreedyBandit(Bandit):
    """Serves the items with the best posterior mean click rate under a uniform prior: no exploration beyond it."""

    name = "greedy-bandit"


class UCB(Bandit):
    """Upper confidence bounds: mean + exploration * sqrt(2 log t / n), unseen items first (UCB1, Auer et al. 2002).

    t counts the user's trials so far, n those of the item; both per user.

    Args:
        exploration: factor on the bound; 1 is UCB1.
    """

    name = "ucb"

    def __init__(self, *, exploration: float = 1.0) -> None:
        check_options(self.name, exploration=exploration)
        self.exploration = exploration

    def _index(self, users: LongArray, key: Key) -> NDArray[Any]:
        trials = self._trials[users]
        total = np.maximum(trials.sum(axis=1, keepdims=True), 1.0)
        seen = np.maximum(trials, 1.0)
        bound = self._successes[users] / seen + self.exploration * np.sqrt(2 * np.log(total) / seen)
        return np.where(trials > 0, bound, 1e6)


class Thompson(Bandit):
    """Thompson sampling: ranks by one draw per item from Beta(1 + successes, 1 + failures) (Thompson 1933).

    The probability of a slate has no closed form, so its propensities are NaN.
    """

    name = "thompson"

    def _index(self, users: LongArray, key: Key) -> NDArray[Any]:
        rng = generator(key, Purpose.EXPLORE)
        draws = rng.beta(1 + self._successes, 1 + np.maximum(self._trials - self._successes, 0.0))
        return np.asarray(draws[users])

    def _propensity(self, items: NDArray[np.int32]) -> NDArray[np.float64]:
        return np.full(items.shape, np.nan)
