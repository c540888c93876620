"""Recommenders that the replicated papers need beside the usual ones: by attributes, by friends, and with new items
put in between.

They know nothing of users beyond the log and what the data set says of items and users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender, check_options, user_items
from recommenders.rerank import Wrapper
from simenv.candidates import Candidates, is_out
from simenv.datasets.base import Dataset, Interactions, LongArray
from simenv.errors import ConfigError, RecommenderError
from simenv.randomness import Key, Purpose, uniforms
from simenv.slates import Slates


class AttributeProfile(Recommender):
    """Content filtering with known item attributes and learnt non-negative user weights (Chaney et al. 2018).

    The weights of a user minimise |y_u - A w|^2, w >= 0, with y_u the user's counts and A the (n_items, d) catalogue
    attributes whose names begin with `prefix`; score = A w. Solved by coordinate descent on the normal equations.

    Args:
        prefix: of the names in `catalog.attributes` that are taken, in alphabetical order.
        sweeps: passes of the coordinate descent.
    """

    name = "attribute-profile"

    def __init__(self, *, prefix: str = "attribute", sweeps: int = 100) -> None:
        check_options(self.name, low=1, whole=True, sweeps=sweeps)
        self.prefix, self.sweeps = prefix, sweeps
        self._attributes: NDArray[np.float64] | None = None

    def bind_dataset(self, dataset: Dataset) -> None:
        """Read the items' attributes.

        Raises:
            ConfigError: the catalogue has none with this prefix.
        """
        names = sorted(name for name in dataset.catalog.attributes if name.startswith(self.prefix))
        if not names:
            raise ConfigError(f"{self.name}: {dataset.name} has no item attributes named {self.prefix}...")
        self._attributes = np.stack([dataset.catalog.attributes[name] for name in names], axis=1).astype(np.float64)

    def profiles(self) -> NDArray[np.float64]:
        """The users' weights, (n_users, d)."""
        self._require_fit()
        return self._weights

    def _fit(self, log: Interactions, key: Key) -> None:
        if self._attributes is None:
            raise RecommenderError(f"{self.name}: fit before bind_dataset; it needs the items' attributes")
        a = self._attributes
        self._weights = np.zeros((self.n_users, a.shape[1]))
        target = np.asarray(user_items(log, binary=False) @ a, dtype=np.float64)
        _non_negative_least_squares(a.T @ a, target, self.sweeps, self._weights)

    def _score(self, users: LongArray) -> NDArray[Any]:
        assert self._attributes is not None
        return np.asarray(np.einsum("bd,id->bi", self._weights[users], self._attributes))


@nb.njit(cache=True, nogil=True)
def _non_negative_least_squares(gram: Any, target: Any, sweeps: int, out: Any) -> None:  # pragma: no cover - compiled
    """min |A w - y|^2, w >= 0, for every row of `target` = y A, given gram = A' A."""
    n, d = out.shape
    for row in range(n):
        w = out[row]
        for _ in range(sweeps):
            change = 0.0
            for j in range(d):
                if gram[j, j] == 0.0:
                    continue
                slope = target[row, j]
                for other in range(d):
                    slope -= gram[j, other] * w[other]
                value = max(0.0, w[j] + slope / gram[j, j])
                change = max(change, abs(value - w[j]))
                w[j] = value
            if change < 1e-10:
                break


class SocialFiltering(Recommender):
    """Recommends what friends consumed: score(u, i) = consumptions of i by friends of u (Chaney et al. 2018).

    Friends are users whose tastes covary most: the threshold on the covariance between two users' taste vectors is the
    largest at which everybody has a friend. The network is made from the true tastes, as in the paper, and does not
    change.
    """

    name = "social"

    _network: NDArray[np.float32] | None = None

    def bind_dataset(self, dataset: Dataset) -> None:
        """Make the network.

        Raises:
            ConfigError: the world has no true tastes, or fewer than two users.
        """
        if dataset.tastes is None or dataset.n_users < 2:
            raise ConfigError(f"{self.name}: {dataset.name} has no known tastes of two users to make friends by")
        covariance = np.cov(dataset.tastes.choice.user_vectors.astype(np.float64))
        np.fill_diagonal(covariance, -np.inf)
        self._network = (covariance >= covariance.max(axis=1).min()).astype(np.float32)

    @property
    def network(self) -> NDArray[np.float32]:
        """(n_users, n_users), 1 between friends."""
        if self._network is None:
            raise RecommenderError(f"{self.name}: fit before bind_dataset; it needs the users' network")
        return self._network

    def _fit(self, log: Interactions, key: Key) -> None:
        self._consumed = np.asarray(self.network @ user_items(log, binary=False).toarray(), dtype=np.float32)

    def _score(self, users: LongArray) -> NDArray[Any]:
        return self._consumed[users]


class NewestInterleaved(Wrapper):
    """Puts the items that were released in this round at random places between the base's recommendations.

    The base ranks the items released before it was last trained; the others are reached only in their own round
    (Chaney et al. 2018; the reading of Lucherini et al. 2021, "T-RECS"). With N candidates left, n of them new, a slot
    gets each new item with probability 1 / N and otherwise the base's next best: the places that a random merge of
    the two full lists gives. Releases are the catalogue attribute ``release``, in rounds; below 0 = before the loop.
    """

    name = "newest-interleaved"

    def __init__(self, base: Recommender) -> None:
        super().__init__(base)
        self._release: NDArray[np.int64] | None = None

    def bind_dataset(self, dataset: Dataset) -> None:
        """Read the releases; show `base` the data set, if it wants to see one."""
        super().bind_dataset(dataset)
        release = dataset.catalog.attributes.get("release")
        if release is None:
            raise ConfigError(f"{self.name}: {dataset.name} has no item attribute 'release'")
        self._release = np.asarray(release, dtype=np.int64)

    def _fit(self, log: Interactions, key: Key) -> None:
        super()._fit(log, key)
        self._trained_at = key.round

    def _update(self, new: Interactions, key: Key) -> None:
        super()._update(new, key)
        self._trained_at = key.round

    def _state(self) -> Mapping[str, NDArray[Any]]:
        return {"trained_at": np.array(self._trained_at)}

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._trained_at = int(state["trained_at"])

    def _recommend(self, users: LongArray, k: int, candidates: Candidates, key: Key) -> Slates:
        if self._release is None:
            raise RecommenderError(f"{self.name}: recommend before bind_dataset; it needs the items' releases")
        allowed = candidates.available
        known = allowed & (self._release < self._trained_at)
        new = allowed & (self._release == key.round) & ~known
        older = replace(candidates, available=known)
        base = self.base.recommend(users, k, older, key=key)
        n_known = np.broadcast_to(older.count(), len(users))
        draws = uniforms(key, Purpose.EXPLORE, users[:, None], np.arange(k))
        items = np.full((len(users), k), -1, np.int32)
        propensity = np.ones((len(users), k))
        own = np.ones((len(users), k)) if base.propensity is None else base.propensity
        _interleave(base.item_ids, own, np.flatnonzero(new), candidates.bits, n_known, draws, items, propensity)
        return Slates(item_ids=items, propensity=propensity)


@nb.njit(cache=True, nogil=True)
def _interleave(
    base: Any, own: Any, new: Any, bits: Any, n_known: Any, draws: Any, items: Any, propensity: Any
) -> None:  # pragma: no cover - compiled
    n_rows, k = items.shape
    left = np.empty(len(new), np.int64)
    for row in range(n_rows):
        n_new = 0
        listed = row if bits.shape[0] > 1 else 0
        for item in new:
            if not is_out(bits, listed, item):
                left[n_new] = item
                n_new += 1
        total = n_known[row] + n_new
        place = 0
        for rank in range(min(k, total)):
            pick = int(draws[row, rank] * (total - rank))
            if pick < n_new:
                items[row, rank] = left[pick]
                n_new -= 1
                left[pick] = left[n_new]
                propensity[row, rank] = 1.0 / (total - rank)
            else:
                items[row, rank] = base[row, place]
                propensity[row, rank] = own[row, place] * (total - rank - n_new) / (total - rank)
                place += 1
