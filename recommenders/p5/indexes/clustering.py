"""Codes from co-occurrence: recursive spectral clustering (CID) and quantised singular vectors (GPTRec).

Everything stays sparse: a cluster's co-occurrence is multiplied, never formed as a dense matrix. The module does not
know what the items are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommenders.p5.indexes.base import IndexSource, Paths, digits, with_collision_token
from simenv.errors import ConfigError
from simenv.numeric import DoubleArray


def cooccurrence(source: IndexSource, window: int | None) -> Any:
    """How often two items occur within `window` places of one training history (None = anywhere in it).

    Returns:
        A symmetric scipy CSR array (n_items, n_items) with an empty diagonal.
    """
    from scipy import sparse

    histories = source.histories
    if window is None:
        users_by_items = histories.matrix()
        counts = sparse.csr_array(users_by_items.T @ users_by_items)
    else:
        user = np.repeat(np.arange(histories.n_users), histories.lengths)
        counts = sparse.csr_array((source.n_items, source.n_items), dtype=np.float32)
        for gap in range(1, window + 1):
            same = user[gap:] == user[:-gap]
            left, right = histories.items[:-gap][same], histories.items[gap:][same]
            ones = np.ones(len(left), np.float32)
            pairs = sparse.csr_array((ones, (left, right)), shape=counts.shape)
            counts = counts + pairs + pairs.T
    counts = sparse.csr_array(counts)
    counts.setdiag(0)
    counts.eliminate_zeros()
    return counts


def collaborative_codes(
    source: IndexSource,
    rng: np.random.Generator,
    *,
    clusters: int = 20,
    leaf_size: int = 50,
    window: int | None = None,
) -> Paths:
    """CID: items that co-occur share a prefix (Hua et al. 2023, section 4.2).

    Clusters larger than `leaf_size` are split again, `clusters` ways at most, by spectral clustering of their own
    co-occurrence (Ng, Jordan and Weiss 2001). Shorter paths are padded with token 0 before the last token, which
    numbers the items of a leaf, most frequent first. Items without interactions share a branch, which is cut by number
    where they are more than `clusters` leaves hold.

    Args:
        source: training prefixes.
        rng: starts the k-means.
        clusters: branches of a node.
        leaf_size: the largest cluster that is not split.
        window: places between two items that still co-occur; None = the whole history.
    """
    if clusters < 2 or leaf_size < 2:
        raise ConfigError(f"index=collaborative: clusters={clusters}, leaf_size={leaf_size}; expected at least 2")
    counts = cooccurrence(source, window)
    frequency = source.item_counts()
    warm = np.flatnonzero(counts.sum(axis=1) > 0)
    paths: dict[int, tuple[int, ...]] = {}
    _split(counts, warm, (), clusters, leaf_size, rng, paths)
    cold = np.setdiff1d(np.arange(source.n_items), warm)
    branch = 1 + max((path[0] for path in paths.values() if path), default=-1)
    further: Any = [()] * len(cold)
    if len(cold) > clusters * leaf_size:  # one node for all of them would make every node as wide
        numbers = np.arange(len(cold)) // leaf_size
        further = map(tuple, digits(numbers, len(numbers), clusters).tolist())
    paths.update({int(item): (branch, *below) for item, below in zip(cold, further, strict=True)})
    depth = max(1, max(map(len, paths.values())))
    table = np.zeros((source.n_items, depth), np.int64)
    for item, path in paths.items():
        table[item, : len(path)] = path
    order = np.argsort(-frequency, kind="stable")
    codes = np.empty((source.n_items, depth + 1), np.int64)
    codes[order] = with_collision_token(table[order])
    return codes


def _split(
    counts: Any,
    items: NDArray[Any],
    path: tuple[int, ...],
    clusters: int,
    leaf_size: int,
    rng: np.random.Generator,
    paths: dict[int, tuple[int, ...]],
) -> None:
    """Write into `paths` the cluster path of each of `items`, all of which lie under `path`."""
    if len(items) <= leaf_size:
        paths.update({int(item): path for item in items})
        return
    n_clusters = min(clusters, max(2, -(-len(items) // leaf_size) * 2))
    labels = spectral_clusters(counts[items][:, items], n_clusters, rng)
    if len(np.unique(labels)) == 1:  # no structure left to find: cut by number
        labels = np.arange(len(items)) * n_clusters // len(items)
    for number, label in enumerate(np.unique(labels)):
        _split(counts, items[labels == label], (*path, number), clusters, leaf_size, rng, paths)


def spectral_clusters(counts: Any, n_clusters: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Normalised spectral clustering of a symmetric sparse count matrix, (n,) labels.

    Eigenvectors of D^-1/2 A D^-1/2, rows scaled to unit length, then k-means.
    """
    from scipy import sparse
    from scipy.cluster.vq import kmeans2

    n = counts.shape[0]
    degree = np.asarray(counts.sum(axis=1)).ravel()
    scale = 1 / np.sqrt(np.maximum(degree, 1e-9))
    normalised = sparse.csr_array(counts.multiply(scale[:, None]).multiply(scale[None, :]), dtype=np.float64)
    vectors = leading_vectors(normalised, min(n_clusters, n - 2), rng)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    _, labels = kmeans2(vectors, n_clusters, minit="++", iter=20, rng=rng)
    return labels.astype(np.int64)


def leading_vectors(matrix: Any, n_vectors: int, rng: np.random.Generator) -> DoubleArray:
    """Eigenvectors of the largest eigenvalues of a symmetric matrix, (n, n_vectors)."""
    from scipy.sparse.linalg import eigsh

    n = matrix.shape[0]
    if n <= 64:
        return np.linalg.eigh(matrix.toarray())[1][:, -n_vectors:]
    return np.asarray(eigsh(matrix, k=n_vectors, which="LA", v0=rng.random(n), tol=1e-4)[1])


def singular_vectors(source: IndexSource, n_vectors: int, rng: np.random.Generator) -> DoubleArray:
    """Items as the leading right singular vectors of the users x items matrix, columns degree-normalised.

    Returns:
        (n_items, n_vectors), scaled by the singular values; zeros for items without interactions.
    """
    from scipy import sparse
    from scipy.sparse.linalg import svds

    matrix = source.histories.matrix().astype(np.float64)
    degree = np.asarray(matrix.sum(axis=0)).ravel()
    matrix = sparse.csr_array(matrix.multiply(1 / np.sqrt(np.maximum(degree, 1))[None, :]))
    n_vectors = min(n_vectors, min(matrix.shape) - 1)
    _, values, right = svds(matrix, k=n_vectors, v0=rng.random(min(matrix.shape)))
    order = np.argsort(-values)
    return np.asarray(right[order].T * values[order])


def svd_codes(source: IndexSource, rng: np.random.Generator, *, levels: int = 3, bins: int = 32) -> Paths:
    """SVD tokens (Petrov and Macdonald 2023, "Generative sequential recommendation with GPTRec", section 4.2).

    Each of the `levels` leading singular vectors is cut into `bins` quantiles, the strongest first; a last token tells
    items of the same quantiles apart. A little noise breaks ties among rare items, as in the paper.
    """
    if levels < 1 or bins < 2:
        raise ConfigError(f"index=svd: levels={levels}, bins={bins}; expected at least 1 and 2")
    vectors = singular_vectors(source, levels, rng)
    vectors = (vectors - vectors.min(axis=0)) / np.maximum(np.ptp(vectors, axis=0), 1e-12)
    vectors += rng.normal(scale=1e-5, size=vectors.shape)
    ranks = vectors.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    return with_collision_token(ranks * bins // source.n_items)


def nearest_by_cooccurrence(source: IndexSource, items: NDArray[Any], *, window: int = 3) -> NDArray[np.int64]:
    """For each of `items` the other item it co-occurs with most, (m,); -1 where there is none."""
    rows = cooccurrence(source, window)[np.asarray(items, np.int64)]
    rows.sum_duplicates()
    rows.data[np.isin(rows.indices, items)] = 0
    most = np.asarray(rows.max(axis=1).todense()).ravel()
    return np.where(most > 0, np.asarray(rows.argmax(axis=1)).ravel(), -1)
