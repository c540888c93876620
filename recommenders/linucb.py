"""LinUCB: a linear bandit over what is known of the items, one model per user.

It learns from what it served, clicked or not, and from the clicks of the warm start; it knows no other user.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender, check_options
from simenv.candidates import Candidates
from simenv.datasets.base import Dataset, Interactions, LongArray
from simenv.errors import RecommenderError
from simenv.metrics.reference import genre_weights
from simenv.randomness import Key
from simenv.slates import Slates


class LinUCB(Recommender):
    """Disjoint LinUCB with users as the arms' owners (Li, Chu, Langford and Schapire 2010, algorithm 1).

    With x_i the item's features - genres, share of the log's maximal popularity, 1 - every user has A_u = reg I +
    sum x x' over the items tried and b_u = sum x over those clicked, and

        score(u, i) = x_i' theta_u + alpha sqrt(x_i' A_u^-1 x_i),   theta_u = A_u^-1 b_u.

    A trial is an item it served since the last `update`, or a click it did not serve.

    Args:
        alpha: width of the confidence bound; 0 = greedy ridge regression.
        reg: of the ridge regression.
    """

    name = "linucb"
    pads_batches = False

    def __init__(self, *, alpha: float = 0.5, reg: float = 1.0) -> None:
        check_options(self.name, alpha=alpha)
        check_options(self.name, open_low=True, reg=reg)
        self.alpha, self.reg = alpha, reg
        self._genres: NDArray[np.float32] | None = None
        self._served: dict[tuple[int, int, int], NDArray[np.int32]] = {}  # (round, page, user) -> its slate

    def bind_dataset(self, dataset: Dataset) -> None:
        """Read the genres."""
        self._genres = genre_weights(dataset.catalog.genres)

    def _fit(self, log: Interactions, key: Key) -> None:
        if self._genres is None:
            raise RecommenderError(f"{self.name}: fit before bind_dataset; it needs the items' genres")
        self._served = {}
        popularity = self._popularity / max(float(self._popularity.max()), 1.0)
        self._features = np.column_stack([self._genres, popularity, np.ones(log.n_items)]).astype(np.float64)
        d = self._features.shape[1]
        self._a = np.tile(self.reg * np.eye(d), (log.n_users, 1, 1))
        self._b = np.zeros((log.n_users, d))
        self._count(log.users, log.items, np.ones(len(log)))
        self._solve()

    def _update(self, new: Interactions, key: Key) -> None:
        clicked = set(zip(new.users.tolist(), new.items.tolist(), strict=True))
        tried = [(user, item) for (_, _, user), slate in self._served.items() for item in slate.tolist() if item >= 0]
        self._served = {}
        pairs = tried + sorted(clicked - set(tried))
        if pairs:
            users, items = np.array(pairs).T
            rewards = np.array([pair in clicked for pair in pairs], np.float64)
            self._count(users, items, rewards)
            self._solve()

    def _count(self, users: NDArray[Any], items: NDArray[Any], rewards: NDArray[np.float64]) -> None:
        order = np.argsort(users, kind="stable")
        x, users = self._features[items[order]], users[order]
        starts = np.flatnonzero(np.r_[True, users[1:] != users[:-1]]) if len(users) else np.zeros(0, np.int64)
        for start, end in zip(starts, np.r_[starts[1:], len(users)].astype(np.int64), strict=True):
            rows = x[start:end]
            self._a[users[start]] += rows.T @ rows
            self._b[users[start]] += rows.T @ rewards[order[start:end]]

    def _solve(self) -> None:
        self._inverse = np.linalg.inv(self._a)
        self._theta = np.einsum("uij,uj->ui", self._inverse, self._b)

    def _score(self, users: LongArray) -> NDArray[Any]:
        x = self._features
        mean = np.einsum("id,ud->ui", x, self._theta[users])
        width = np.stack([np.einsum("id,de,ie->i", x, self._inverse[user], x, optimize=True) for user in users])
        return np.asarray(mean + self.alpha * np.sqrt(np.maximum(width, 0.0)))

    def _recommend(self, users: LongArray, k: int, candidates: Candidates, key: Key) -> Slates:
        if len(users) == 0:
            return Slates(item_ids=np.zeros((0, k), np.int32))
        slates = super()._recommend(users, k, candidates, key)
        for user, slate in zip(users.tolist(), slates.item_ids, strict=True):
            self._served[(key.round, key.page, user)] = slate
        return slates

    def _state(self) -> Mapping[str, NDArray[Any]]:
        served = [(r, p, u, *slate.tolist()) for (r, p, u), slate in self._served.items()]
        width = max((len(row) for row in served), default=3)
        padded = np.array([[*row, *[-1] * (width - len(row))] for row in served], np.int64).reshape(-1, width)
        return {"features": self._features, "a": self._a, "b": self._b, "served": padded}

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._features, self._a, self._b = state["features"], state["a"].copy(), state["b"].copy()
        self._served = {tuple(row[:3].tolist()): row[3:].astype(np.int32) for row in state["served"]}
        self._solve()
