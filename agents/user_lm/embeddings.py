"""Where the embeddings of a new network start: tokens that appear in the same memories are near each other.

Positive pointwise mutual information of tokens within a memory, factorised (Levy and Goldberg 2014, "Neural word
embedding as implicit matrix factorization"). A page of training data tells a decoder little about each of thousands of
titles; their co-occurrence tells it at once. The module knows neither users nor networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

FEWEST = 3  # memories in which two tokens must meet
OVERSAMPLED = 16
POWER_ITERATIONS = 3


def co_occurrence_vectors(
    documents: Sequence[NDArray[np.int64]], n_tokens: int, size: int, seed: int
) -> NDArray[np.float32]:
    """Singular vectors of the tokens' positive pointwise mutual information, times the roots of the singular values.

    Args:
        documents: the tokens of each memory, in any order.
        n_tokens: of the vocabulary.
        size: dimensions.
        seed: of the randomised factorisation (Halko, Martinsson and Tropp 2011).

    Returns:
        (n_tokens, size) with a root mean square of 1 over the rows that are not zero; tokens that met none are zero.
    """
    distinct = [np.unique(each) for each in documents]
    starts = np.concatenate([[0], np.cumsum([len(each) for each in distinct])])
    found = sparse.csr_matrix(
        (np.ones(starts[-1], np.float32), np.concatenate(distinct), starts), shape=(len(distinct), n_tokens)
    )
    counts = np.asarray(found.sum(axis=0)).ravel()
    together = (found.T @ found).tocoo()
    kept = (together.row != together.col) & (together.data >= FEWEST)
    rows, columns = together.row[kept], together.col[kept]
    information = np.log(together.data[kept] * len(distinct) / (counts[rows] * counts[columns]))
    positive = information > 0
    matrix = sparse.csr_matrix(
        (information[positive].astype(np.float32), (rows[positive], columns[positive])), shape=together.shape
    )
    vectors = _factorised(matrix, size, np.random.default_rng([seed, 0x5BD]))
    known = np.abs(vectors).sum(axis=1) > 0
    scale = np.sqrt(np.mean(np.square(vectors[known]))) if known.any() else 1.0
    return np.asarray(vectors / scale, np.float32)


def _factorised(matrix: sparse.csr_matrix, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Left singular vectors times the roots of the singular values, of a symmetric matrix, (n, size)."""
    n = matrix.shape[0]
    width = min(size + OVERSAMPLED, n)
    basis = np.linalg.qr(matrix @ rng.standard_normal((n, width)).astype(np.float32))[0]
    for _ in range(POWER_ITERATIONS):
        basis = np.linalg.qr(matrix @ basis)[0]
    small, values, _ = np.linalg.svd((matrix @ basis).T @ basis)
    found = np.zeros((n, size), np.float32)
    k = min(size, width)
    found[:, :k] = (basis @ small[:, :k]) * np.sqrt(values[:k])
    return found
