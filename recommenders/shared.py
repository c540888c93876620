"""One platform shared by two recommenders: a share of the users is served by the one, the others by the other.

It is what a company's A/B test is. The module does not know what is measured in which group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender
from simenv import checks
from simenv.candidates import Candidates
from simenv.datasets.base import Dataset, FloatArray, Interactions, LongArray
from simenv.datasets.friends import Friends
from simenv.errors import ConfigError, RecommenderError
from simenv.randomness import Key, Purpose, uniforms
from simenv.slates import SeesDataset, SeesTruth, Slates, asks_model

LOGS = ("pooled", "own")
USERS = ("hash", "friends")


def treated(seed: int, n_users: int, share: float) -> NDArray[np.bool_]:
    """Which users are served by the treatment, (n_users,): a hash of seed and user, the same in every arm."""
    return uniforms(Key(seed), Purpose.ASSIGN, np.arange(n_users), 0) < share


def treated_clusters(seed: int, clusters: LongArray, share: float) -> NDArray[np.bool_]:
    """Which users are served by the treatment where whole clusters are, (n_users,).

    Clusters stand in the order of a hash of seed and cluster, and those are treated whose middle lies within the first
    `share` of the users: as many users as whole clusters allow, and each cluster with about that chance.

    Args:
        seed: of the world.
        clusters: (n_users,) numbers from 0.
        share: of the users, in (0, 1).

    Raises:
        ConfigError: that leaves one of the two groups empty.
    """
    sizes = np.bincount(clusters)
    order = np.argsort(uniforms(Key(seed), Purpose.ASSIGN, np.arange(len(sizes)), 0), kind="stable")
    middle = np.empty(len(sizes))
    middle[order] = np.cumsum(sizes[order]) - sizes[order] / 2
    chosen = (middle < share * len(clusters))[clusters]
    if chosen.all() or not chosen.any():
        raise ConfigError(
            f"shared.users=friends: {len(sizes)} clusters of friends leave one of the two groups empty at "
            f"share={share}; expected more clusters, or users=hash"
        )
    return chosen


class Shared(Recommender):
    """Serves `share` of the users with `treatment`, the others with `control`.

    Both learn from what came before the first fit. Of what comes after, with ``log: pooled`` both learn from all users'
    feedback, as A/B tests on one training log do; with ``log: own`` each from that of the users it serves
    ("data-diverted"). Brennan et al. (2025), "Reducing symbiosis bias through better A/B tests of recommendation
    algorithms", say how the first biases the difference between the groups.

    Args:
        control: recommender of the users who are not treated.
        treatment: recommender of the users who are.
        share: chance of a user to be treated, in (0, 1).
        log: ``pooled`` or ``own``.
        users: ``hash``, each user by a draw of its own; ``friends``, whole clusters of friends, so that those who
            influence each other are mostly served alike (Ugander et al. 2013, "Graph cluster randomization"). Needs
            `bind_dataset` with a data set that knows friends.

    Raises:
        ConfigError: an option out of range; both recommenders ask a language model, and their costs could not be
            told apart.
    """

    name = "shared"
    pads_batches = False

    def __init__(
        self,
        control: Recommender,
        treatment: Recommender,
        *,
        share: float = 0.5,
        log: str = "pooled",
        users: str = "hash",
    ) -> None:
        for part, one in (("control", control), ("treatment", treatment)):
            if not isinstance(one, Recommender):
                raise ConfigError(f"{self.name}: {part} is a {type(one).__name__}; expected a Recommender")
        checks.share("shared.share", share, open_low=True, open_high=True)
        checks.one_of("shared.log", log, LOGS)
        checks.one_of("shared.users", users, USERS)
        if asks_model(control) and asks_model(treatment):
            raise ConfigError(f"{self.name}: both recommenders ask a language model; expected one that does at most")
        self.parts = {"control": control, "treatment": treatment}
        self.share, self.learns_from, self.assigned = share, log, users
        self._friends: Friends | None = None
        self._n_before: int | None = None  # rows of the first log

    def bind_dataset(self, dataset: Dataset) -> None:
        """Show the data set to whichever of the two wants to see it, and learn who knows whom.

        Raises:
            ConfigError: clusters of friends are assigned, and the data set knows none.
        """
        if self.assigned == "friends" and dataset.friends is None:
            raise ConfigError(
                f"shared.users=friends: {dataset.name} knows no friends; expected a data set with friends, such as "
                "lastfm-2k or synthetic with dataset.mean_degree=8"
            )
        self._friends = dataset.friends
        for part in self.parts.values():
            if isinstance(part, SeesDataset):
                part.bind_dataset(dataset)

    def bind_truth(self, utility: Callable[[NDArray[Any]], NDArray[np.float32]]) -> None:
        """Show the truth to whichever of the two wants to see it."""
        for part in self.parts.values():
            if isinstance(part, SeesTruth):
                part.bind_truth(utility)

    @property
    def accounting(self) -> dict[str, Any] | None:
        """What one of the two asked a language model; None where none does."""
        return next((part.accounting for part in self.parts.values() if asks_model(part)), None)

    def dry_run(self, users: NDArray[Any], slates: NDArray[np.int32], key: Key, *, pages: int) -> object:
        """What these pages would take; see `simenv.slates.AsksModel`."""
        for name, part in self.parts.items():
            if asks_model(part):
                share = self.share if name == "treatment" else 1 - self.share
                return part.dry_run(users, slates, key, pages=round(pages * share))
        raise ConfigError(f"{self.name}: neither recommender asks a language model")

    def remember(self, new: Interactions) -> None:
        super().remember(new)
        for name, part in self.parts.items():
            part.remember(self._seen(new, name, 0))

    def save(self, folder: Path) -> None:
        super().save(folder)
        for name, part in self.parts.items():
            part.save(Path(folder) / name)

    def load(self, folder: Path) -> None:
        super().load(folder)
        for name, part in self.parts.items():
            part.load(Path(folder) / name)

    def _fit(self, log: Interactions, key: Key) -> None:
        if key.round == 0 or self._n_before is None:
            self._treated, self._n_before = self._assign(key.seed, log.n_users), len(log)
        for name, part in self.parts.items():
            part.fit(self._seen(log, name, self._n_before), key=key)

    def _assign(self, seed: int, n_users: int) -> NDArray[np.bool_]:
        if self.assigned == "hash":
            return treated(seed, n_users, self.share)
        if self._friends is None or self._friends.n_users != n_users:
            raise RecommenderError(f"{self.name}: fitted on {n_users} users whose friends it was not shown")
        return treated_clusters(seed, self._friends.clusters(seed), self.share)

    def _update(self, new: Interactions, key: Key) -> None:
        for name, part in self.parts.items():
            part.update(self._seen(new, name, 0), key=key)

    def _seen(self, log: Interactions, name: str, n_before: int) -> Interactions:
        """What a part learns from: everything, or the first `n_before` rows and those of the users it serves."""
        if self.learns_from == "pooled":
            return log
        own = self._treated[log.users] == (name == "treatment")
        own[:n_before] = True
        return log.take(own)

    def _state(self) -> Mapping[str, NDArray[Any]]:
        return {"treated": self._treated, "n_before": np.array(self._n_before)}

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The two restore themselves."""
        self._treated, self._n_before = state["treated"], int(state["n_before"])

    def _served(self, users: LongArray) -> Iterator[tuple[Recommender, NDArray[np.bool_]]]:
        for name, part in self.parts.items():
            rows = self._treated[users] == (name == "treatment")
            if rows.any():
                yield part, rows

    def _score(self, users: LongArray) -> FloatArray:
        scores = np.empty((len(users), self.n_items), np.float32)
        for part, rows in self._served(users):
            scores[rows] = part.scores(users[rows])
        return scores

    def _recommend(self, users: LongArray, k: int, candidates: Candidates, key: Key) -> Slates:
        items = np.full((len(users), k), -1, np.int32)
        propensity = np.ones((len(users), k))
        for part, rows in self._served(users):
            slates = part.recommend(users[rows], k, candidates.rows(rows), key=key)
            items[rows] = slates.item_ids
            if slates.propensity is not None:
                propensity[rows] = slates.propensity
        return Slates(item_ids=items, propensity=propensity)
