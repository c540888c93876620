"""Content-based recommendation: items that resemble in genre and words what the user consumed.

It knows the catalogue and each user's own history, never what other users did, except to order items alike in nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np

from recommenders.base import check_options, user_items
from recommenders.neighbours import SparseSums
from simenv.datasets.base import Catalog, Dataset, Interactions
from simenv.errors import RecommenderError
from simenv.randomness import Key

VECTOR_DIMS = 64  # principal components of the vectors of a language model
_WORD = re.compile(r"\w\w+")


class Content(SparseSums):
    """Cosine of item vectors and user profiles over genres and TF-IDF words (Pazzani and Billsus 2007).

    An item's vector has two blocks: its genres, weighted by inverse document frequency, and the words of title and
    text by TF-IDF (Salton and Buckley 1988), each block of unit length, the second scaled by `text_weight`, the whole
    again of unit length. A user's profile is the sum of the vectors of the items consumed, at unit length. Items
    that nobody consumed yet are scored like all others, which is the point of it.

    Needs `bind_dataset` before `fit` and before `load`. Learning: counts; an item consumed twice weighs twice in the
    profile. `update` equals a refit. New users get the most popular items.

    Args:
        text_weight: weight of the words against the genres; 0 for genres alone.
        min_df: words in fewer items are dropped.
        max_df: words in more than this share of the items are dropped.
        item_vectors: a third block, what a language model makes of the items' texts: ``smollm2``, a model or an
            ``.npy`` file, see `simenv.language_models.item_vectors`; None = none.
        vector_weight: weight of that block against the genres.
    """

    name = "content"

    def __init__(
        self,
        *,
        text_weight: float = 0.5,
        min_df: int = 2,
        max_df: float = 0.2,
        item_vectors: str | None = None,
        vector_weight: float = 1.0,
    ) -> None:
        check_options(self.name, text_weight=text_weight, vector_weight=vector_weight)
        check_options(self.name, low=1, whole=True, min_df=min_df)
        check_options(self.name, open_low=True, high=1, max_df=max_df)
        self.text_weight = text_weight
        self.min_df = min_df
        self.max_df = max_df
        self.item_vectors_from = item_vectors
        self.vector_weight = vector_weight
        self._vectors: Any = None  # CSR (n_items, n_features), rows of unit length or empty

    def bind_dataset(self, dataset: Dataset) -> None:
        """Read the items' genres, titles and texts."""
        self._vectors = self.item_vectors(dataset.catalog)

    def item_vectors(self, catalog: Catalog) -> Any:
        from scipy import sparse

        blocks = [_unit_rows(_idf_weighted(sparse.csr_matrix(catalog.genres, dtype=np.float32)))]
        if self.text_weight > 0:
            blocks.append(self.text_weight * _unit_rows(_idf_weighted(self._word_counts(catalog))))
        if self.item_vectors_from is not None:
            from simenv.language_models.item_vectors import item_vectors

            read = item_vectors(catalog, self.item_vectors_from, VECTOR_DIMS)
            blocks.append(self.vector_weight * sparse.csr_matrix(read))
        return _unit_rows(sparse.hstack(blocks, format="csr"))

    def _word_counts(self, catalog: Catalog) -> Any:
        """(n_items, n_words) counts of the words kept, in alphabetical order."""
        from scipy import sparse

        texts = catalog.texts or ("",) * catalog.n_items
        words = [Counter(_WORD.findall(f"{a} {b}".lower())) for a, b in zip(catalog.titles, texts, strict=True)]
        spread = Counter(word for counts in words for word in counts)
        limit = self.max_df * catalog.n_items
        kept = {
            word: column
            for column, word in enumerate(sorted(w for w, n in spread.items() if self.min_df <= n <= limit))
        }
        found = [(row, kept[word], n) for row, counts in enumerate(words) for word, n in counts.items() if word in kept]
        rows, columns, counts = np.array(found, dtype=np.int64).reshape(-1, 3).T
        return sparse.csr_matrix((counts.astype(np.float32), (rows, columns)), shape=(catalog.n_items, len(kept)))

    def _fit(self, log: Interactions, key: Key) -> None:
        if self._vectors is None:
            raise RecommenderError("content: used before bind_dataset(dataset); it needs the items' genres and texts")
        if self._vectors.shape[0] != log.n_items:
            raise RecommenderError(
                f"content: bound to {self._vectors.shape[0]} items, fitted on {log.n_items}; expected one catalogue"
            )
        by_feature = self._vectors.T.tocsr()
        self._columns = by_feature.indptr, by_feature.indices, by_feature.data
        self._remember()

    def _remember(self) -> None:
        profiles = _unit_rows(user_items(self._log, binary=False) @ self._vectors)
        self._rows = profiles.indptr, profiles.indices, profiles.data


def _idf_weighted(counts: Any) -> Any:
    """Counts times log((1 + n) / (1 + df)) + 1 of their column."""
    from scipy import sparse

    n, spread = counts.shape[0], np.bincount(counts.indices, minlength=counts.shape[1])
    idf = (np.log((1 + n) / (1 + spread)) + 1).astype(np.float32)
    return counts @ sparse.diags(idf, format="csr")


def _unit_rows(matrix: Any) -> Any:
    """Rows scaled to Euclidean length 1; empty rows stay empty."""
    from scipy import sparse

    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0).astype(np.float32)
    scaled = sparse.csr_matrix(sparse.diags(scale, format="csr") @ matrix)
    scaled.sort_indices()
    return scaled
