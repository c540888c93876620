"""Social: what friends clicked, and what is popular where they are silent.

It knows the friendship graph of the data set and the log; no tastes and no content.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender, user_items
from simenv.datasets.base import Dataset, Interactions, LongArray
from simenv.datasets.friends import Friends
from simenv.errors import ConfigError, RecommenderError
from simenv.randomness import Key


def friends_of(dataset: Dataset, name: str) -> Friends:
    """Who knows whom, for the arm `name`.

    Raises:
        ConfigError: the data set does not know.
    """
    if dataset.friends is None:
        raise ConfigError(
            f"arm '{name}': {dataset.name} knows no friends; expected a data set with friends, such as "
            "lastfm-2k or synthetic with dataset.mean_degree=8"
        )
    return dataset.friends


class Social(Recommender):
    """Recommends what friends consumed: friends in the place of collaborative filtering's similar users, as in Konstas,
    Stathopoulos and Jose 2009 ("On social networks and collaborative recommendation"), without their random walk.

    score(u, i) = friends of u who consumed i + popularity_i / (1 + the largest popularity): friends decide, popularity
    breaks their ties and serves those whose friends are silent.

    Needs `bind_dataset` before `fit`. Learning: of friends binary, of popularity every interaction. `update` equals a
    refit. New users are served by their friends all the same.
    """

    name = "social"
    pads_batches = False
    _friends: Friends | None = None

    def bind_dataset(self, dataset: Dataset) -> None:
        """Learn who knows whom.

        Raises:
            ConfigError: the data set does not know.
        """
        self._friends = friends_of(dataset, self.name)

    def _fit(self, log: Interactions, key: Key) -> None:
        from scipy import sparse

        friends = self._friends
        if friends is None or friends.n_users != log.n_users:
            known = "nobody's friends" if friends is None else f"the friends of {friends.n_users} users"
            raise RecommenderError(
                f"{self.name}: fit on {log.n_users} users with {known}; expected bind_dataset before"
            )
        ones = np.ones(len(friends.ids), np.float32)
        graph = sparse.csr_matrix((ones, friends.ids, friends.ptr), shape=(log.n_users, log.n_users))
        self._heard = graph @ user_items(log, binary=True)
        self._fallback = self._popularity / (1.0 + self._popularity.max())

    def _score(self, users: LongArray) -> NDArray[Any]:
        return np.asarray(self._heard[users].toarray() + self._fallback, np.float32)
