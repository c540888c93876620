"""A training-free walk on the graph of transitions, ranked by what items are.

It knows the order of histories and the items' content; it learns nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender, check_options
from recommenders.content import Content
from simenv.datasets.base import Dataset, Interactions, LongArray
from simenv.errors import RecommenderError
from simenv.randomness import Key


class TransitionGraph(Recommender):
    """TGH: rings of neighbours around a user's last items, each ring ordered by likeness of content.

    Two items are neighbours where one came right after the other in some history. Ring 1 holds the neighbours of the
    last `sources` items, ring r what lies r steps away; a nearer ring goes before a farther one, and within a ring
    score = the cosine of content to the last item, plus `recency` to the power of m times that to the m-th before it
    (Han et al. 2026, "An embarrassingly simple graph heuristic reveals shortcut-solvable benchmarks for sequential
    recommendation"; `sources` 1 with `rings` 3 and `sources` 2 with `rings` 2 are its two variants). With `support`
    how often the step was made counts too: support * log(1 + count) is added in ring 1. Items beyond the last ring
    follow by popularity.

    Needs `bind_dataset` before `fit` and before `load`. `update` equals a refit.

    Args:
        sources: last items of the user from which rings are drawn.
        rings: steps that are walked, 1 to 3.
        recency: weight of one further step back in the user's history, in (0, 1].
        support: weight of the number of transitions; 0 = the paper.
        directed: walk from an item to what came after it only; the paper walks both ways.
        item_vectors: content beside genres and words, as in `content`; the paper takes a language model's alone.
    """

    name = "tgh"
    pads_batches = False

    def __init__(
        self,
        *,
        sources: int = 2,
        rings: int = 2,
        recency: float = 0.7,
        support: float = 0.0,
        directed: bool = False,
        item_vectors: str | None = None,
    ) -> None:
        check_options(self.name, low=1, whole=True, sources=sources)
        check_options(self.name, low=1, high=3, whole=True, rings=rings)
        check_options(self.name, high=1, open_low=True, recency=recency)
        check_options(self.name, support=support)
        self.sources, self.rings, self.recency = sources, rings, recency
        self.support, self.directed, self.item_vectors = support, directed, item_vectors
        self._vectors: Any = None  # CSR (n_items, n_features), rows of unit length or empty

    def bind_dataset(self, dataset: Dataset) -> None:
        """Read the items' genres, titles and texts."""
        self._vectors = Content(item_vectors=self.item_vectors).item_vectors(dataset.catalog)

    def _fit(self, log: Interactions, key: Key) -> None:
        from scipy import sparse

        if self._vectors is None or self._vectors.shape[0] != log.n_items:
            raise RecommenderError(f"{self.name}: knows no content of {log.n_items} items; bind_dataset first")
        order = np.argsort(log.users, kind="stable")
        users, items = log.users[order], log.items[order]
        steps = np.flatnonzero(users[:-1] == users[1:])
        ones = np.ones(len(steps), np.float32)
        shape = log.n_items, log.n_items
        counts = sparse.csr_matrix((ones, (items[steps], items[steps + 1])), shape=shape)
        self._graph = counts if self.directed else sparse.csr_matrix(counts + counts.T)
        self._fallback = self._popularity / (1.0 + self._popularity.max())
        self._remember()

    def _remember(self) -> None:
        from scipy import sparse

        log = self._log
        order = np.argsort(log.users, kind="stable")
        users, items = log.users[order], log.items[order]
        ends = np.cumsum(log.user_counts())
        back = ends[users] - 1 - np.arange(len(users))
        recent = back < self.sources
        weights = (self.recency ** back[recent]).astype(np.float32)
        self._last = sparse.csr_matrix((weights, (users[recent], items[recent])), shape=(log.n_users, log.n_items))

    def _score(self, users: LongArray) -> NDArray[Any]:
        last = self._last[users]
        alike = np.asarray((last @ self._vectors @ self._vectors.T).todense())
        alike /= 1.0 + alike.max(initial=0.0, axis=1, keepdims=True)  # below 1: no likeness outweighs a ring
        reach, scores = last, np.tile(self._fallback, (len(users), 1))
        nearest = np.zeros(scores.shape, np.float32)
        for ring in range(self.rings):
            reach = reach @ self._graph
            rows, columns = reach.nonzero()
            nearest[rows, columns] = np.maximum(nearest[rows, columns], self.rings - ring)
        scores = np.where(nearest > 0, nearest + alike, scores)
        if self.support:
            scores += self.support * np.log1p(np.asarray((last @ self._graph).todense()))
        return np.asarray(scores, np.float32)
