"""What every user model has to be compared with: plain scores that know nothing of users as users.

Each is fitted on the training part alone. Dense matrices: meant for catalogues of up to some ten thousand items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import Interactions

Scores = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]  # users and items that broadcast, to scores

ITEMKNN_NEIGHBOURS = 50
EASE_REG = 300.0
SVD_RANK = 32


def baselines(log: Interactions) -> Iterator[tuple[str, Callable[[], Scores]]]:
    """Names and fits: popularity, item neighbours by cosine, EASE (Steck 2019), truncated SVD of the binary matrix."""
    yield "popularity", lambda: popularity(log)
    yield "itemknn", lambda: itemknn(log, ITEMKNN_NEIGHBOURS)
    yield "ease", lambda: ease(log, EASE_REG)
    yield "svd", lambda: svd(log, SVD_RANK)


def popularity(log: Interactions) -> Scores:
    """Interactions per item."""
    counts = log.item_counts().astype(np.float32)
    return lambda users, items: np.broadcast_arrays(counts[items], users)[0]


def itemknn(log: Interactions, neighbours: int | None) -> Scores:
    """Sum of cosines to the user's items, over each item's nearest neighbours; None = over all."""
    binary = _binary(log)
    norms = np.sqrt(np.maximum(log.item_counts(), 1)).astype(np.float32)
    similarity = binary.T @ binary / np.outer(norms, norms)
    np.fill_diagonal(similarity, 0.0)
    if neighbours is not None and neighbours < log.n_items:
        similarity[similarity < np.sort(similarity, axis=1)[:, -neighbours, None]] = 0.0
    return _looked_up(binary @ similarity.T)


def ease(log: Interactions, reg: float) -> Scores:
    """EASE^R (Steck 2019, eq. 8)."""
    binary = _binary(log)
    inverse = np.linalg.inv((binary.T @ binary).astype(np.float64) + reg * np.eye(log.n_items))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return _looked_up(binary @ weights.astype(np.float32))


def svd(log: Interactions, rank: int) -> Scores:
    """The rank-`rank` approximation of the binary matrix (PureSVD; Cremonesi, Koren and Turrin 2010)."""
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import svds

    binary = _binary(log)
    start = np.ones(min(binary.shape), np.float32)
    left, values, right = svds(csr_array(binary), min(rank, min(binary.shape) - 1), v0=start)
    return _looked_up((left * values) @ right)


def item_mean(log: Interactions) -> Scores:
    """Each item's mean rating; the mean over all ratings where it has none, NaN where nobody rated."""
    rated = log.take(~np.isnan(log.ratings))
    counts = rated.item_counts()
    sums = np.bincount(rated.items, weights=rated.ratings, minlength=log.n_items)
    overall = rated.ratings.mean() if len(rated) else np.nan
    means = np.where(counts > 0, sums / np.maximum(counts, 1), overall)
    return lambda users, items: np.broadcast_arrays(means[items], users)[0]


def _binary(log: Interactions) -> NDArray[np.float32]:
    dense = np.zeros((log.n_users, log.n_items), np.float32)
    dense[log.users, log.items] = 1.0
    return dense


def _looked_up(scores: NDArray[Any]) -> Scores:
    return lambda users, items: scores[users, items]
