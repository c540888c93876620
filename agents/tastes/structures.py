"""Tastes fitted from a log: one head for choice from who consumed what, one for ratings from who rated how.

Choice. A structure (`FactorTastes`, `NeighbourhoodTastes`, `ContentTastes`) turns the log into user and item vectors
whose product orders items; a logistic regression on held-out choices against unseen items turns that order into a
logit. Logs without impressions do not identify two things, which are therefore stated: `base_rate`, the mean
utility over the catalogue, and `exposure`, how much of popularity was being seen rather than being liked.
Ratings are fitted apart, in `agents.tastes.ratings`.

The module does not know slates, rounds or traits, and it never reads `dataset.holdout`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numba as nb
import numpy as np
from numpy.typing import NDArray

from agents.tastes.choice import Affinity, Logit, Probes, choice_errors
from agents.tastes.ratings import fit_ratings
from simenv.datasets.base import Catalog, Dataset, FloatArray, Head, Interactions, Tastes
from simenv.datasets.splits import distinct, last_share, pair_keys
from simenv.errors import ConfigError, DataError
from simenv.numeric import DoubleArray, sigmoid
from simenv.randomness import Key, Purpose, generator

LEVEL_PAIRS = 1 << 17  # random (user, item) pairs over which the mean utility is set


@dataclass(frozen=True, kw_only=True)
class TasteModel(ABC):
    """How tastes are fitted; a subclass says what makes a user like an item.

    Args:
        dims: length of the vectors, a multiple of 8.
        base_rate: mean utility over users and catalogue, in (0, 1). A log of choices does not tell how many items
            were looked at and passed over, so the level is a premise: by default an examined random item
            is taken once in twelve (real positive rates are below .10).
        exposure: an item is taken to have been seen in proportion to popularity ** exposure, so unseen items are
            drawn that way when the logit is fitted. 0: all of popularity is liking; 1: all of it is
            exposure; 0.5, the default, is the usual propensity of implicit feedback (Saito et al. 2020,
            "Unbiased recommender learning from missing-not-at-random implicit feedback").
        recency: an interaction that m others of the user have followed counts (1 + m) ** -recency in the user's
            taste, so that tastes are those at the end of the log. 0: all count alike. The default was chosen on the
            last tenth of the training part of ml-100k and ml-1m, not on what the fits are judged by.
        heldout: last share of each user's interactions by time on which the fit is calibrated and judged.
        rating_dims: length of the rating vectors, a multiple of 8.
    """

    name: ClassVar[str] = ""
    least: ClassVar[Mapping[str, float]] = {}  # further options and the smallest value each may take

    dims: int = 32
    base_rate: float = 0.08
    exposure: float = 0.5
    recency: float = 0.6
    heldout: float = 0.1
    rating_dims: int = 8

    def __post_init__(self) -> None:
        for name in ("dims", "rating_dims"):
            if getattr(self, name) < 8 or getattr(self, name) % 8:
                raise ConfigError(f"tastes.{name}={getattr(self, name)}: expected a positive multiple of 8")
        for name in ("base_rate", "heldout"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"tastes.{name}={getattr(self, name)}: expected a number between 0 and 1")
        if not 0 <= self.exposure <= 1:
            raise ConfigError(f"tastes.exposure={self.exposure}: expected a number from 0 to 1")
        if not self.recency >= 0:
            raise ConfigError(f"tastes.recency={self.recency}: expected a number, at least 0")
        for name, least in self.least.items():
            if getattr(self, name) < least:
                raise ConfigError(f"tastes.{name}={getattr(self, name)}: expected at least {least}")

    @abstractmethod
    def vectors(
        self, catalog: Catalog, log: Interactions, rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """User (n_users, d) and item (n_items, d) vectors, d <= dims, whose product orders items for a user."""

    def fit(self, dataset: Dataset, *, seed: int) -> Tastes:
        """Both heads, fitted on all interactions; `errors` come from a fit without each user's last ones.

        The errors, each left out where the data do not allow it: `n_heldout` pairs; `choice_auc` against random
        unseen items, with `choice_auc_popularity` for popularity alone; `choice_auc_popularity_matched` and
        `choice_pairs_popularity_matched` (share of pairs in the right order) against unseen items of the same
        popularity; `choice_logloss` of the calibrated logit against exposed unseen items, 1:1 (chance is .693);
        `n_ratings`, `n_ratings_heldout`, `rating_rmse`, `rating_rmse_item_mean`, `rating_mae`.
        """
        rng = generator(Key(seed), Purpose.FIT)
        log = dataset.interactions
        train, held = last_share(log, self.heldout)
        draft = self._affinity(dataset.catalog, train, rng)
        probes = Probes.draw(log, train, held, self.exposure, rng)
        logit = Logit.fit(draft, probes)
        final = self._affinity(dataset.catalog, log, rng)
        choice = self._level(logit.head(final), rng)
        rating, noise, rating_errors = fit_ratings(
            log, train, held, dataset.rating_scale, choice, self.rating_dims, rng
        )
        errors = {**choice_errors(draft, probes), **rating_errors, "base_rate": self.base_rate}
        return Tastes(choice=choice, rating=rating, rating_noise=noise, kind="fitted", errors=errors)

    def _affinity(self, catalog: Catalog, log: Interactions, rng: np.random.Generator) -> Affinity:
        users, items = self.vectors(catalog, log, rng)
        return Affinity.standardised(_padded(users, self.dims), _padded(items, self.dims), log)

    def _level(self, head: Head, rng: np.random.Generator) -> Head:
        """The head with its intercept moved so that the mean utility is the base rate."""
        users = rng.integers(0, len(head.user_bias), LEVEL_PAIRS)
        items = rng.integers(0, len(head.item_bias), LEVEL_PAIRS)
        scores = head.pairs(users, items).astype(np.float64)
        low, high = -50.0 - scores.max(), 50.0 - scores.min()
        for _ in range(60):
            middle = (low + high) / 2
            too_high = sigmoid(scores + middle).mean() > self.base_rate
            low, high = (low, middle) if too_high else (middle, high)
        return Head(
            user_vectors=head.user_vectors,
            item_vectors=head.item_vectors,
            user_bias=(head.user_bias + middle).astype(np.float32),
            item_bias=head.item_bias,
        )


@dataclass(frozen=True, kw_only=True)
class FactorTastes(TasteModel):
    """Users and items meet in few latent dimensions: truncated SVD of the degree-normalised interaction matrix.

    With P S Q' the leading triplets of D_u^-1/4 X D_i^-1/4 (half the normalisation of spectral collaborative
    filtering; Nikolakopoulos et al. 2019, "EigenRec") and s the last singular value kept, which is taken for noise, an
    item's vector is Q_i and a user's is sum over the user's items of weight * D_i^-1/4 Q_i S^-1 (S^2 - s^2)^1/2,
    weights by `recency`. Without the normalisation the factors are about popularity.
    """

    name: ClassVar[str] = "factor"

    def vectors(
        self, catalog: Catalog, log: Interactions, rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        from scipy.sparse import diags_array

        item_scale = _inverse_root(np.sqrt(log.item_counts()))
        history = diags_array(np.sqrt(np.sqrt(log.user_counts()))) @ history_matrix(log)  # D_u^-1/4 X
        _, values, right = _truncated_svd(history.multiply(item_scale[None, :]).tocsr(), self.dims, rng)
        trusted = np.sqrt(1.0 - np.square(values.min() / np.maximum(values, 1e-12)))
        return profile_matrix(log, self.recency).multiply(item_scale[None, :]).tocsr() @ (right * trusted), right


@dataclass(frozen=True, kw_only=True)
class NeighbourhoodTastes(TasteModel):
    """Users like what is near to what they had: item-item neighbours, stored as a product of `dims` columns.

    The score before truncation is the share of an item's `neighbours`, weighted by shrunk cosine, that the user has
    consumed (Deshpande and Karypis 2004; shrinkage as in Koren 2010). The compiled choice step wants vectors,
    so the neighbour matrix is replaced by its leading singular triplets; docs/user-models.md says what that costs.

    Args:
        neighbours: neighbours kept per item.
        shrink: common users at which a cosine is halved.
    """

    name: ClassVar[str] = "neighbourhood"
    least: ClassVar[Mapping[str, float]] = {"neighbours": 1, "shrink": 0.0}

    dims: int = 128
    neighbours: int = 100
    shrink: float = 20.0

    def vectors(
        self, catalog: Catalog, log: Interactions, rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        left, values, right = _truncated_svd(self.weights(log).T.tocsr(), self.dims, rng)
        return profile_matrix(log, self.recency) @ (left * values), right

    def weights(self, log: Interactions) -> Any:
        """Sparse (n_items, n_items); row i holds the weights of i's neighbours, which sum to at most 1."""
        from scipy.sparse import csr_array, diags_array, vstack

        history = history_matrix(log)
        binary = csr_array((np.ones_like(history.data), history.indices, history.indptr), shape=history.shape)
        by_item, binary_by_item = history.tocsc(), binary.tocsc()
        norms = np.asarray(history.power(2).sum(axis=0)).ravel()
        scale = _inverse_root(norms)
        blocks = []
        for first in range(0, log.n_items, 512):
            rows = slice(first, min(first + 512, log.n_items))
            block = (by_item[:, rows].T @ history).tocsr()
            common = (binary_by_item[:, rows].T @ binary).tocsr()
            block.sort_indices()
            common.sort_indices()  # the two products now list the same pairs in the same order
            of_row = np.repeat(np.arange(rows.start, rows.stop), np.diff(block.indptr))
            similarity = block.data * scale[of_row] * scale[block.indices] * common.data / (common.data + self.shrink)
            similarity[of_row == block.indices] = 0.0
            _keep_largest(block.indptr, similarity, self.neighbours)
            kept = csr_array((similarity, block.indices, block.indptr), shape=block.shape)
            kept.eliminate_zeros()
            blocks.append(kept)
        weights = vstack(blocks).tocsr()
        sums = np.asarray(weights.sum(axis=1)).ravel()
        return (diags_array(1.0 / (sums + 0.05 * sums.mean() + 1e-12)) @ weights).tocsr()


@dataclass(frozen=True, kw_only=True)
class ContentTastes(TasteModel):
    """Users like what resembles what they had, by genres, attributes and words, whoever else had it.

    score = sum over features f of x_if (p_uf - p_f) / (p_f + rare), with x_if the item's feature, p_uf its share in the
    user's history and p_f its share in everybody's: a smoothed lift over content features.

    Args:
        rare: share below which a feature's lift is damped.
        min_items: items a word or category must occur in to be a feature.
        item_vectors: further features, what a language model makes of the items' texts: ``smollm2``, a model or an
            ``.npy`` file, see `simenv.language_models.item_vectors`; they take half of `dims`. None = none.
        vector_weight: of these features' score beside the others', both at unit spread; the default was the best of
            three on the last tenth of ml-100k.
    """

    name: ClassVar[str] = "content"
    least: ClassVar[Mapping[str, float]] = {"rare": 1e-6, "min_items": 1, "vector_weight": 0.0}

    dims: int = 64
    rare: float = 0.01
    min_items: int = 5
    item_vectors: str | None = None
    vector_weight: float = 0.25

    def vectors(
        self, catalog: Catalog, log: Interactions, rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        features = content_features(catalog, self.min_items)
        counts = log.item_counts() / max(len(log), 1)
        share = counts @ features
        scaled = features * (1.0 / np.sqrt(share + self.rare))[None, :]
        own = self.dims if self.item_vectors is None else self.dims // 2
        left, values, _ = _truncated_svd(scaled.tocsr(), own, rng)
        items = left * values
        if self.item_vectors is not None:
            from simenv.language_models.item_vectors import item_vectors

            read = item_vectors(catalog, self.item_vectors, self.dims - own).astype(np.float64)
            weight = np.sqrt(self.vector_weight)  # a score is a product of two of these
            items = np.concatenate([items / _spread(items), weight * read / _spread(read)], axis=1)
        everybody = counts @ items
        profiles = profile_matrix(log, self.recency) @ items
        return np.where(log.user_counts()[:, None] > 0, profiles - everybody, 0.0), items


def fit_tastes(dataset: Dataset, *, seed: int, model: TasteModel | None = None) -> Tastes:
    """Tastes of every user of `dataset`, fitted from its interactions; deterministic in `seed`.

    Args:
        dataset: any data set; known true tastes are ignored.
        seed: decides the split's negatives and the starting points.
        model: `FactorTastes()` by default.

    Returns:
        `Tastes` of kind "fitted", with held-out `errors` as listed in `TasteModel.fit`.

    Raises:
        DataError: the model needs content that the catalogue does not have.
    """
    return (model or FactorTastes()).fit(dataset, seed=seed)


def history_matrix(log: Interactions) -> Any:
    """Sparse (n_users, n_items): 1 / sqrt(number of items the user had) where consumed."""
    from scipy.sparse import csr_array, diags_array

    keys = distinct(pair_keys(log.users, log.items, log.n_items))
    users, items = keys // log.n_items, keys % log.n_items
    matrix = csr_array((np.ones(len(keys), np.float32), (users, items)), shape=(log.n_users, log.n_items))
    return (diags_array(_inverse_root(np.bincount(users, minlength=log.n_users))) @ matrix).tocsr()


def profile_matrix(log: Interactions, recency: float) -> Any:
    """Sparse (n_users, n_items): what each user's taste is made of, rows of sum 1 (0 where there is no history).

    An interaction followed by m others of its user weighs (1 + m) ** -recency; those of one moment share the middle
    of their places, so that a log without times weighs all alike.
    """
    from scipy.sparse import csr_array, diags_array

    order = np.lexsort((log.times, log.users))
    users, times = log.users[order], log.times[order]
    first = np.ones(len(log), np.bool_)
    first[1:] = (users[1:] != users[:-1]) | (times[1:] != times[:-1])
    starts = np.flatnonzero(first)
    sizes = np.diff(np.append(starts, len(log)))
    followed_by = np.cumsum(log.user_counts())[users] - np.repeat(starts + (sizes + 1) / 2, sizes)
    weights = np.empty(len(log))
    weights[order] = (1.0 + followed_by) ** -recency
    totals = np.bincount(log.users, weights=weights, minlength=log.n_users)
    matrix = csr_array((weights, (log.users, log.items)), shape=(log.n_users, log.n_items))
    return (diags_array(1.0 / np.where(totals > 0, totals, 1.0)) @ matrix).astype(np.float32).tocsr()


def content_features(catalog: Catalog, min_items: int) -> Any:
    """Sparse (n_items, n_features): genres, attributes and words; within each of the three a row sums to 1 or 0.

    Numeric attributes of more than 20 values become tenths; words are those of titles and texts in at least
    `min_items` and at most a fifth of the items.
    """
    from scipy.sparse import csr_array, diags_array, hstack

    blocks = [csr_array(catalog.genres.astype(np.float32))] if catalog.n_genres else []
    coded = [_categories(values, min_items) for values in catalog.attributes.values()]
    blocks += [csr_array(np.concatenate(coded, axis=1))] if coded else []
    blocks.append(_words(catalog, min_items))
    blocks = [block for block in blocks if block.shape[1]]
    if not blocks:
        raise DataError("content tastes: the catalogue has no genres, attributes or words shared by enough items")
    normalised = []
    for block in blocks:
        sums = np.asarray(block.sum(axis=1)).ravel()
        normalised.append(diags_array(1.0 / np.where(sums > 0, sums, 1.0)) @ block)
    return hstack(normalised).tocsr()


def _categories(values: NDArray[Any], min_items: int) -> FloatArray:
    if values.dtype.kind in "if" and len(np.unique(values)) > 20:
        known = ~np.isnan(values.astype(np.float64))
        edges = np.unique(np.quantile(values[known], np.arange(0.1, 1.0, 0.1)))
        codes = np.where(known, np.searchsorted(edges, values, side="right"), -1)
    else:
        codes = np.unique(values.astype(str), return_inverse=True)[1]
    names, counts = np.unique(codes[codes >= 0], return_counts=True)
    return (codes[:, None] == names[counts >= min_items][None, :]).astype(np.float32)


def _words(catalog: Catalog, min_items: int) -> Any:
    from scipy.sparse import csr_array

    texts = catalog.texts or ("",) * catalog.n_items
    bags = [
        sorted(set(re.findall(r"[a-z0-9]{2,}", f"{title} {text}".lower())))
        for title, text in zip(catalog.titles, texts, strict=True)
    ]
    counts = Counter(word for bag in bags for word in bag)
    kept = sorted(w for w, n in counts.items() if min_items <= n <= max(min_items, catalog.n_items / 5))
    column = {word: j for j, word in enumerate(kept)}
    pairs = [(i, column[word]) for i, bag in enumerate(bags) for word in bag if word in column]
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return csr_array((np.ones(len(pairs), np.float32), (rows, columns)), shape=(catalog.n_items, len(kept)))


def _inverse_root(counts: NDArray[Any]) -> FloatArray:
    """counts ** -1/2, and 0 where the count is 0."""
    return np.where(counts > 0, np.maximum(counts, 1e-12) ** -0.5, 0.0).astype(np.float32)


def _truncated_svd(matrix: Any, dims: int, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """The leading singular triplets: left (n, k), values (k,), right (m, k), with k <= dims."""
    from scipy.sparse.linalg import svds

    start = rng.standard_normal(min(matrix.shape)).astype(np.float32)
    if dims < min(matrix.shape):
        left, values, right = svds(matrix.astype(np.float32), dims, v0=start)
    else:
        left, values, right = np.linalg.svd(matrix.toarray(), full_matrices=False)
    return left, values, right.T


@nb.njit(cache=True, nogil=True)
def _keep_largest(starts: Any, values: Any, k: int) -> None:  # pragma: no cover - compiled
    """Set all but the `k` largest values of each CSR row (ties kept) to zero, in place."""
    for row in range(len(starts) - 1):
        own = values[starts[row] : starts[row + 1]]
        if len(own) > k:
            least = np.sort(own)[len(own) - k]
            for at in range(len(own)):
                if own[at] < least:
                    own[at] = 0.0


def _spread(vectors: NDArray[Any]) -> float:
    """By which to divide vectors so that the products of two rows have a standard deviation of 1."""
    centred = vectors - vectors.mean(axis=0)
    return float(np.sqrt(np.linalg.norm(centred.T @ centred / len(vectors))) + 1e-12)


def _padded(vectors: NDArray[Any], dims: int) -> DoubleArray:
    """The vectors with zero columns up to `dims`."""
    return np.pad(np.asarray(vectors, dtype=np.float64), ((0, 0), (0, dims - vectors.shape[1])))
