"""Neighbourhood recommenders: items like those the user consumed, items of like users, items that followed.

All are products of two sparse matrices, row by row. They know no content and no ratings.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender, check_options, user_items
from simenv.datasets.base import Interactions, LongArray
from simenv.randomness import Key


class SparseSums(Recommender):
    """A recommender whose scores are user rows times a sparse matrix: subclasses set `_rows` and `_columns`.

    Items without any evidence come after all others, the most popular first; a new user has evidence for none and
    so gets the most popular items.
    """

    pads_batches = False
    keeps_shortlists = True
    _rows: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # CSR (n_users, m): indptr, indices, weights
    _columns: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # CSR (m, n_items): indptr, indices, weights

    def _score(self, users: LongArray) -> NDArray[Any]:
        out = np.zeros((len(users), self.n_items), np.float32)
        unsupported = (-1e-6 / (1.0 + self._popularity)).astype(np.float32)
        _sparse_sums(users, *self._rows, *self._columns, unsupported, out)
        return out


class ItemKNN(SparseSums):
    """Item-based k-nearest neighbours with cosine similarity (Sarwar et al. 2001; Deshpande and Karypis 2004).

    score(u, j) = sum over the items i of u that have j among their neighbours of
    |U_i and U_j| / (sqrt(|U_i| |U_j|) + shrinkage).

    Learning: binary; an item consumed again counts once. `update` equals a refit.

    Args:
        neighbours: neighbours kept per item.
        shrinkage: added to the denominator; pulls similarities that rest on few users towards 0.
    """

    name = "itemknn"

    def __init__(self, *, neighbours: int = 50, shrinkage: float = 10.0) -> None:
        check_options(self.name, low=1, whole=True, neighbours=neighbours)
        check_options(self.name, shrinkage=shrinkage)
        self.neighbours = neighbours
        self.shrinkage = shrinkage

    def _fit(self, log: Interactions, key: Key) -> None:
        self._remember()
        self._columns = nearest_rows(user_items(log, binary=True).T.tocsr(), self.neighbours, self.shrinkage)

    def _remember(self) -> None:
        matrix = user_items(self._log, binary=True)
        self._rows = matrix.indptr, matrix.indices, matrix.data


class UserKNN(SparseSums):
    """User-based k-nearest neighbours with cosine similarity (Resnick et al. 1994; Herlocker et al. 1999).

    score(u, i) = sum over the neighbours v of u that have i of |I_u and I_v| / (sqrt(|I_u| |I_v|) + shrinkage).

    Learning: binary; an item consumed again counts once. `update` equals a refit.

    Args:
        neighbours: neighbours kept per user.
        shrinkage: added to the denominator; pulls similarities that rest on few items towards 0.
    """

    name = "userknn"

    def __init__(self, *, neighbours: int = 50, shrinkage: float = 0.0) -> None:
        check_options(self.name, low=1, whole=True, neighbours=neighbours)
        check_options(self.name, shrinkage=shrinkage)
        self.neighbours = neighbours
        self.shrinkage = shrinkage

    def _fit(self, log: Interactions, key: Key) -> None:
        matrix = user_items(log, binary=True)
        self._rows = nearest_rows(matrix, self.neighbours, self.shrinkage)
        self._columns = matrix.indptr, matrix.indices, matrix.data


class SeqKNN(SparseSums):
    """Sequential item-kNN: what followed the user's last items in other histories, within a short window.

    The support of i -> j is the sum of gap_decay^(g - 1) over the places where j came g = 1 .. window steps after i
    in a user's history; score(u, j) = sum over the m-th last item i of u (m from 0) of
    recency_decay^m * support(i -> j)^power. A directed, recency-weighted relative of item-kNN in the family of
    sequential rules (Kamehkhosh, Jannach and Ludewig 2017; Ludewig and Jannach 2018).

    Learning: the order of the log's rows, which is time order; every repetition is a step. `update` equals a refit.

    Args:
        window: how many later items an item is linked to.
        gap_decay: weight of one further step of distance while counting, in (0, 1].
        recency_decay: weight of one further step back in the user's own history, in (0, 1].
        power: exponent of the support; below 1 dampens frequent transitions.
        history: how many of the user's last items count.
    """

    name = "seqknn"

    def __init__(
        self,
        *,
        window: int = 3,
        gap_decay: float = 0.7,
        recency_decay: float = 0.7,
        power: float = 0.5,
        history: int = 20,
    ) -> None:
        check_options(self.name, low=1, whole=True, window=window, history=history)
        check_options(self.name, high=1, open_low=True, gap_decay=gap_decay, recency_decay=recency_decay)
        check_options(self.name, open_low=True, power=power)
        self.window = window
        self.gap_decay = gap_decay
        self.recency_decay = recency_decay
        self.power = power
        self.history = history

    def _fit(self, log: Interactions, key: Key) -> None:
        order = np.argsort(log.users, kind="stable")
        users, items = log.users[order], log.items[order]
        support = self._support(users, items)
        self._columns = support.indptr, support.indices, (support.data**self.power).astype(np.float32)
        self._remember()

    def _remember(self) -> None:
        log = self._log
        order = np.argsort(log.users, kind="stable")
        users, items = log.users[order], log.items[order]
        ends = np.cumsum(log.user_counts())
        back = ends[users] - 1 - np.arange(len(users))  # steps before the user's last item
        recent = back < self.history
        kept = np.bincount(users[recent], minlength=self.n_users)
        weights = (self.recency_decay ** back[recent]).astype(np.float32)
        self._rows = np.concatenate(([0], np.cumsum(kept))), items[recent], weights

    def _support(self, users: NDArray[Any], items: NDArray[Any]) -> Any:
        from scipy import sparse

        heads, tails, weights = [], [], []
        for gap in range(1, min(self.window, len(users) - 1) + 1):
            same_user = users[:-gap] == users[gap:]
            heads.append(items[:-gap][same_user])
            tails.append(items[gap:][same_user])
            weights.append(np.full(int(same_user.sum()), self.gap_decay ** (gap - 1)))
        if not heads:
            return sparse.csr_matrix((self.n_items, self.n_items))
        pairs = np.concatenate(weights), (np.concatenate(heads), np.concatenate(tails))
        return sparse.csr_matrix(pairs, shape=(self.n_items, self.n_items))


def nearest_rows(
    matrix: Any, neighbours: int, shrinkage: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]]:
    """Each row's nearest other rows by cosine of their supports, best first: CSR (n, n) indptr, indices, similarities.

    Args:
        matrix: binary CSR (n, m).
        neighbours: kept per row; rows without a common column are none.
        shrinkage: added to the denominator.
    """
    transposed = matrix.T.tocsr()
    n = matrix.shape[0]
    near = np.empty((n, min(neighbours, n)), np.int32)
    similarity = np.empty(near.shape, np.float32)
    found = np.empty(n, np.int64)
    _cosine_neighbours(
        transposed.indptr,
        transposed.indices,
        matrix.indptr,
        matrix.indices,
        shrinkage,
        near,
        similarity,
        found,
    )
    kept = np.arange(near.shape[1]) < found[:, None]
    return np.concatenate(([0], np.cumsum(found))), near[kept], similarity[kept]


@nb.njit(cache=True, nogil=True)
def _sparse_sums(
    users: Any, indptr: Any, indices: Any, weights: Any, colptr: Any, columns: Any, values: Any, rest: Any, out: Any
) -> None:  # pragma: no cover - compiled
    for row in range(len(users)):
        scores = out[row]
        for p in range(indptr[users[row]], indptr[users[row] + 1]):
            weight, middle = weights[p], indices[p]
            for q in range(colptr[middle], colptr[middle + 1]):
                scores[columns[q]] += weight * values[q]
        for item in range(len(rest)):
            if scores[item] == 0.0:
                scores[item] = rest[item]


@nb.njit(cache=True, nogil=True)
def _cosine_neighbours(
    user_ptr: Any,
    user_items: Any,
    item_ptr: Any,
    item_users: Any,
    shrinkage: Any,
    near: Any,
    similarity: Any,
    found: Any,
) -> None:  # pragma: no cover - compiled
    """Exact: one dense row of co-counts at a time, so memory stays linear in the items; of which only what has been
    counted is looked at where that is little, so time does too.
    """
    n_items, size = near.shape
    counts = np.diff(item_ptr)
    together = np.zeros(n_items, np.int64)
    touched = np.empty(n_items, np.int32)
    for item in range(n_items):
        n_touched = 0
        for p in range(item_ptr[item], item_ptr[item + 1]):
            user = item_users[p]
            for q in range(user_ptr[user], user_ptr[user + 1]):
                if together[user_items[q]] == 0:
                    touched[n_touched] = user_items[q]
                    n_touched += 1
                together[user_items[q]] += 1
        together[item] = 0
        filled = 0
        few = n_touched * 16 < n_items
        if few:
            touched[:n_touched] = np.sort(touched[:n_touched])  # ties go to the smaller item
        for look in range(n_touched if few else n_items):
            other = touched[look] if few else look
            if together[other] == 0:
                continue
            value = np.float32(together[other] / (np.sqrt(counts[item] * counts[other]) + shrinkage))
            together[other] = 0
            if filled == size and value <= similarity[item, size - 1]:
                continue
            place = filled if filled < size else size - 1
            filled = min(filled + 1, size)
            while place > 0 and similarity[item, place - 1] < value:
                similarity[item, place] = similarity[item, place - 1]
                near[item, place] = near[item, place - 1]
                place -= 1
            similarity[item, place] = value
            near[item, place] = other
        found[item] = filled
