"""Friends: who knows whom, as an undirected graph over the users, and a generator of homophilous small worlds.

The module does not know what friends tell each other, nor where tastes come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from simenv.errors import DataError
from simenv.numeric import FloatArray, IntArray, LongArray

_LOOKED_AT = 256  # users among whom the most similar one is sought, so that the cost grows with the users only


@dataclass(frozen=True, slots=True)
class Friends:
    """An undirected graph in compressed rows: friends of user u are ``ids[ptr[u]:ptr[u + 1]]``, ascending.

    Raises:
        DataError: from `of`, a tie to an unknown user or to oneself.
    """

    ptr: LongArray  # (n_users + 1,)
    ids: IntArray  # (2 * n_ties,)

    @classmethod
    def of(cls, n_users: int, ties: NDArray[Any]) -> Self:
        """The graph of these ties.

        Args:
            n_users: how many there are, with friends or without.
            ties: (m, 2) rows of users, in either or both directions; repeats count once.
        """
        ties = np.asarray(ties, np.int64).reshape(-1, 2)
        if len(ties) and (ties.min() < 0 or ties.max() >= n_users):
            raise DataError(f"friends: users lie in [{ties.min()}, {ties.max()}]; expected [0, {n_users - 1}]")
        if len(own := np.flatnonzero(ties[:, 0] == ties[:, 1])):
            raise DataError(f"friends: user {ties[own[0], 0]} is a friend of itself; expected ties between two users")
        both = np.unique(np.concatenate([ties, ties[:, ::-1]]), axis=0)
        ptr = np.zeros(n_users + 1, np.int64)
        np.cumsum(np.bincount(both[:, 0], minlength=n_users), out=ptr[1:])
        return cls(ptr, both[:, 1].astype(np.int32))

    @property
    def n_users(self) -> int:
        return len(self.ptr) - 1

    @property
    def degrees(self) -> LongArray:
        """Friends of each user, (n_users,)."""
        return np.diff(self.ptr)

    @property
    def ties(self) -> LongArray:
        """Each tie once, (n_ties, 2), the smaller row first."""
        users = np.repeat(np.arange(self.n_users), self.degrees)
        return np.stack([users, self.ids], axis=1)[users < self.ids]

    def __getitem__(self, user: int) -> IntArray:
        return self.ids[self.ptr[user] : self.ptr[user + 1]]

    def take(self, rows: NDArray[Any]) -> Friends:
        """The graph among these users, renumbered in this order."""
        to_new = np.full(self.n_users, -1, np.int64)
        to_new[rows] = np.arange(len(rows))
        ties = to_new[self.ties]
        return Friends.of(len(rows), ties[(ties >= 0).all(axis=1)])

    def shuffled(self, seed: int) -> Friends:
        """The same graph between users drawn at random: shape and degrees stay, who is who does not."""
        relabel = np.random.default_rng([seed & (2**64 - 1), 0xF121]).permutation(self.n_users)
        return Friends.of(self.n_users, relabel[self.ties])

    def clusters(self, seed: int) -> LongArray:
        """The cluster of each user, (n_users,), numbered from 0 in the order of their first members.

        Clusters maximise modularity by the Louvain method (Blondel et al. 2008, "Fast unfolding of communities in large
        networks"), by networkx; a user without friends is one of its own. Time grows with the ties: seconds for ten
        thousand users, minutes for a million.
        """
        import networkx as nx

        graph = nx.Graph()
        graph.add_nodes_from(range(self.n_users))
        graph.add_edges_from(self.ties.tolist())
        found = sorted(map(sorted, nx.community.louvain_communities(graph, seed=seed % 2**32)))
        cluster = np.empty(self.n_users, np.int64)
        for number, members in enumerate(found):
            cluster[members] = number
        return cluster


def small_world(
    tastes: FloatArray, *, mean_degree: float, rewiring: float, homophily: float, rng: np.random.Generator
) -> Friends:
    """A homophilous small world: users on a ring, tied to their nearest neighbours, and some ties thrown anywhere.

    Ring and rewiring are Watts and Strogatz 1998 ("Collective dynamics of 'small-world' networks"). Homophily, that
    similarity breeds connection (McPherson, Smith-Lovin and Cook 2001, "Birds of a feather"), is in who sits beside
    whom: each next place goes with probability `homophily` to the user most like the one before, of 256 drawn from
    those left, and otherwise to anyone.

    Args:
        tastes: (n_users, d) by whose cosine users are alike, about their mean.
        mean_degree: friends of a user on average, in [0, n_users - 2].
        rewiring: share of ties of which one end is thrown anywhere, in [0, 1].
        homophily: in [0, 1]; 0 = friendship does not depend on taste.
        rng: what is drawn from.
    """
    n = len(tastes)
    ring = _ring(tastes, homophily, rng)
    pairs = []
    whole, part = divmod(mean_degree / 2, 1.0)
    for step in range(1, int(whole) + 1 + (part > 0)):
        kept = np.arange(n) if step <= whole else np.flatnonzero(rng.random(n) < part)
        pairs.append(np.stack([ring[kept], ring[(kept + step) % n]], axis=1))
    ties = np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)
    known = {(min(tie), max(tie)) for tie in ties.tolist()}
    for row in np.flatnonzero(rng.random(len(ties)) < rewiring).tolist():
        one, other = map(int, ties[row])
        for stranger in rng.integers(0, n, 20).tolist():
            new = min(one, stranger), max(one, stranger)
            if stranger != one and new not in known:
                known.discard((min(one, other), max(one, other)))
                known.add(new)
                break
    return Friends.of(n, np.array(sorted(known), np.int64).reshape(-1, 2))


def _ring(tastes: FloatArray, homophily: float, rng: np.random.Generator) -> LongArray:
    """Users in the order in which they sit, (n,)."""
    centred = tastes - tastes.mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    left = rng.permutation(len(tastes))  # those who have no place yet are left[place:]
    for place in range(1, len(left)):
        if rng.random() >= homophily:
            continue
        rest = len(left) - place
        some = place + (np.arange(rest) if rest <= _LOOKED_AT else rng.integers(0, rest, _LOOKED_AT))
        best = some[np.argmax(centred[left[some]] @ centred[left[place - 1]])]
        left[place], left[best] = left[best], left[place]
    return left
