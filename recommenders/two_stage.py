"""TwoStage: candidates from a nearest-neighbour index over item vectors, then exact scores of these alone.

What a catalogue of a million items asks for: a slate costs as many products as there are candidates. The index is
usearch's; the module does not know how vectors are learned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender, check_options
from recommenders.factors import FactorRecommender
from simenv.candidates import Candidates, is_out
from simenv.datasets.base import Interactions, LongArray
from simenv.errors import ConfigError, MissingExtraError
from simenv.randomness import Key
from simenv.slates import Slates

_BATCH = 1024  # users whose candidates are in memory together


class TwoStage(Recommender):
    """The best of the items that an approximate index finds for a user's vector.

    Inner products are made distances by one more coordinate (Bachrach et al. 2014, "Speeding up the Xbox recommender
    system using a Euclidean transformation for inner-product spaces"), for a graph index (Malkov and Yashunin 2018,
    "Efficient and robust approximate nearest neighbor search using hierarchical navigable small world graphs"). Of what
    is found, items a user must not be shown are left out; where fewer than a slate are left, the most popular fill it.

    Learning: the base's; the index is built anew with it, of the items whose vector is not zero. New users get the
    most popular.

    Args:
        base: learns the vectors, e.g. `recommenders.factors.ALS`.
        candidates: items asked of the index for each user.
        connectivity: links of an item in the index.
        expansion: items looked at while one is added or searched for; more = slower and nearer to exact.

    Raises:
        ConfigError: an option out of range, or a base without vectors. MissingExtraError: usearch is not installed.
    """

    name = "two-stage"

    def __init__(
        self, base: FactorRecommender, *, candidates: int = 300, connectivity: int = 16, expansion: int = 128
    ) -> None:
        if not isinstance(base, FactorRecommender):
            raise ConfigError(f"{self.name}: base is a {type(base).__name__}; expected als, bpr or mf")
        check_options(
            self.name, low=1, whole=True, candidates=candidates, connectivity=connectivity, expansion=expansion
        )
        try:
            import usearch.index as usearch
        except ImportError as error:
            raise MissingExtraError(f"recommender {self.name}", "ann") from error
        self._usearch = usearch
        self.base = base
        self.candidates, self.connectivity, self.expansion = candidates, connectivity, expansion

    def __getstate__(self) -> dict[str, Any]:
        """The index is built anew where it is needed: it cannot be pickled."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_index", "_usearch")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import usearch.index as usearch

        self.__dict__.update(state, _usearch=usearch)
        if self.n_items:
            self._build()

    def save(self, folder: Path) -> None:
        super().save(folder)
        self.base.save(Path(folder) / "base")

    def load(self, folder: Path) -> None:
        self.base.load(Path(folder) / "base")
        super().load(folder)

    def _fit(self, log: Interactions, key: Key) -> None:
        self.base.fit(log, key=key)
        self._build()

    def _restore(self, state: Any) -> None:
        """The base restored itself."""
        self._build()

    def _build(self) -> None:
        vectors = np.ascontiguousarray(self.base.item_factors.T)
        squares = np.einsum("id,id->i", vectors, vectors)
        rest = np.sqrt(np.maximum(squares.max() - squares, 0.0))
        self._index = self._usearch.Index(
            ndim=vectors.shape[1] + 1,
            metric="l2sq",
            dtype="f32",
            connectivity=self.connectivity,
            expansion_add=self.expansion,
            expansion_search=max(self.expansion, self.candidates),
        )
        # Items nobody consumed are most of a very large catalogue, and their vectors and scores are zero. One thread:
        # what an index finds depends on the order in which items come.
        known = np.flatnonzero(squares)
        known = known if len(known) else np.arange(len(vectors))
        points = np.column_stack([vectors[known], rest[known]]).astype(np.float32)
        self._index.add(known, points, threads=1)
        self._order = np.argsort(-self._popularity, kind="stable").astype(np.int32)

    def _score(self, users: LongArray) -> NDArray[Any]:
        return self.base.scores(users)

    def _recommend(self, users: LongArray, k: int, candidates: Candidates, key: Key) -> Slates:
        slates = np.full((len(users), k), -1, np.int32)
        popular = self._order[candidates.available[self._order]]
        for start in range(0, len(users), _BATCH):
            rows = slice(start, start + _BATCH)
            found = self._found(users[rows])
            allowed = candidates.rows(rows)
            _fill(found, popular, allowed.bits, candidates.available, slates[rows])
        return Slates(item_ids=slates)

    def _found(self, users: LongArray) -> NDArray[np.int32]:
        """What the index finds, best first by exact score, (B, candidates); -1 for users without any history."""
        vectors, items = self.base.user_factors[users], self.base.item_factors.T
        query = np.column_stack([vectors, np.zeros(len(users), np.float32)])
        # A row of its own for each user: a single query would come back in another shape.
        found = self._index.search(np.ascontiguousarray(query), min(self.candidates, len(self._index)), threads=1)
        keys = np.asarray(found.keys).reshape(len(users), -1).astype(np.int64)
        keys.sort(axis=1)  # ties go to the smaller item row
        scores = np.einsum("bd,bcd->bc", vectors.astype(np.float64), items[keys].astype(np.float64))
        best = np.take_along_axis(keys, np.argsort(-scores, axis=1, kind="stable"), axis=1).astype(np.int32)
        best[~self._has_history[users]] = -1
        return best


@nb.njit(cache=True, nogil=True)
def _fill(found: Any, popular: Any, bits: Any, available: Any, slates: Any) -> None:  # pragma: no cover - compiled
    """The first allowed items of each row of `found`, then of `popular`, into `slates`."""
    k = slates.shape[1]
    for row in range(slates.shape[0]):
        own = row if bits.shape[0] > 1 else 0
        filled = 0
        for item in found[row]:
            if item >= 0 and filled < k and available[item] and not is_out(bits, own, item):
                slates[row, filled] = item
                filled += 1
        chosen = filled
        for item in popular:
            if filled == k:
                break
            if is_out(bits, own, item):
                continue
            again = False
            for place in range(chosen):
                again |= slates[row, place] == item
            if not again:
                slates[row, filled] = item
                filled += 1
