"""The rating head: what users would rate an item, from the ratings of a log alone.

Biased matrix factorisation (Koren, Bell and Volinsky 2009, "Matrix factorization techniques for recommender systems",
eq. 4 and 5). Without ratings there is nothing to fit, and the head says so in its errors. The module does not know
what makes users choose.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import Head, Interactions, RatingScale

SWEEPS = 10
VECTOR_PRIOR = 8.0  # ridge on the vectors, ratings in units of their SD; RMSE is flat from 6 to 12 on MovieLens
ITEM_BIAS_PRIOR, USER_BIAS_PRIOR = 10.0, 5.0  # ratings' worth of zero
SCALE_PER_LOGIT = 0.05  # share of the rating scale that one logit of choice is worth where nobody rated


def fit_ratings(
    log: Interactions,
    train: Interactions,
    held: Interactions,
    scale: RatingScale,
    choice: Head,
    dims: int,
    rng: np.random.Generator,
) -> tuple[Head, float, dict[str, float]]:
    """The rating head, the SD around it, and its held-out errors."""
    rated, rated_train, rated_held = (part.take(~np.isnan(part.ratings)) for part in (log, train, held))
    errors = {"n_ratings": float(len(rated))}
    if not len(rated):
        return _ratings_from_choice(choice, scale), (scale.high - scale.low) / 4, errors
    head = _factorise_ratings(rated, dims, rng)
    if not len(rated_held) or not len(rated_train):
        residual = rated.ratings - head.pairs(rated.users, rated.items)
        return head, float(max(np.sqrt(np.mean(np.square(residual))), scale.step / 4)), errors
    draft = _factorise_ratings(rated_train, dims, rng)
    miss = draft.pairs(rated_held.users, rated_held.items).clip(scale.low, scale.high) - rated_held.ratings
    counts = rated_train.item_counts()
    sums = np.bincount(rated_train.items, weights=rated_train.ratings, minlength=log.n_items)
    item_mean = np.where(counts > 0, sums / np.maximum(counts, 1), rated_train.ratings.mean())
    rmse = float(np.sqrt(np.mean(np.square(miss, dtype=np.float64))))
    errors |= {
        "n_ratings_heldout": float(len(rated_held)),
        "rating_rmse": rmse,
        "rating_mae": float(np.mean(np.abs(miss))),
        "rating_rmse_item_mean": float(np.sqrt(np.mean(np.square(item_mean[rated_held.items] - rated_held.ratings)))),
    }
    return head, rmse, errors


def _ratings_from_choice(choice: Head, scale: RatingScale) -> Head:
    """Where nobody rated: the middle of the scale, and a little more for what is more likely to be chosen."""
    worth = SCALE_PER_LOGIT * (scale.high - scale.low)
    item_bias = worth * (choice.item_bias - choice.item_bias.mean())
    return Head(
        user_vectors=(worth * choice.user_vectors).astype(np.float32),
        item_vectors=choice.item_vectors,
        user_bias=np.full(len(choice.user_bias), (scale.low + scale.high) / 2, dtype=np.float32),
        item_bias=item_bias.astype(np.float32),
    )


def _factorise_ratings(rated: Interactions, dims: int, rng: np.random.Generator) -> Head:
    """Biased matrix factorisation by alternating ridge regressions, vectors and bias of a side solved together.

    Ratings are standardised first, so that the regularisation does not depend on the scale.
    """
    mean = float(rated.ratings.mean(dtype=np.float64))
    sd = max(float(rated.ratings.std(dtype=np.float64)), 1e-6)
    targets = (rated.ratings.astype(np.float64) - mean) / sd
    by_user = _grouped(rated.users, rated.items, targets, rated.n_users)
    by_item = _grouped(rated.items, rated.users, targets, rated.n_items)
    n_rated = rated.item_counts()
    item_bias = np.bincount(rated.items, weights=targets, minlength=rated.n_items) / (n_rated + ITEM_BIAS_PRIOR)
    items = rng.normal(0, 0.5, (rated.n_items, dims)) * (n_rated > 0)[:, None]
    users, user_bias = np.zeros((rated.n_users, dims)), np.zeros(rated.n_users)
    for _ in range(SWEEPS):
        _regress(*by_user, items, item_bias, VECTOR_PRIOR, USER_BIAS_PRIOR, users, user_bias)
        _regress(*by_item, users, user_bias, VECTOR_PRIOR, ITEM_BIAS_PRIOR, items, item_bias)
    return Head(
        user_vectors=(sd * users).astype(np.float32),
        item_vectors=items.astype(np.float32),
        user_bias=(mean + sd * user_bias).astype(np.float32),
        item_bias=(sd * item_bias).astype(np.float32),
    )


def _grouped(rows: NDArray[Any], columns: NDArray[Any], targets: NDArray[Any], n_rows: int) -> tuple[Any, Any, Any]:
    """Row starts, columns and targets in compressed sparse row order."""
    order = np.argsort(rows, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_rows))])
    return starts, columns[order].astype(np.int64), targets[order]


@nb.njit(cache=True, nogil=True)
def _regress(
    starts: Any,
    columns: Any,
    targets: Any,
    fixed: Any,
    fixed_bias: Any,
    vector_prior: float,
    bias_prior: float,
    vectors: Any,
    bias: Any,
) -> None:  # pragma: no cover - compiled
    """Ridge regression of each row's targets on the fixed vectors and a constant, into `vectors` and `bias`."""
    dims = fixed.shape[1]
    for row in range(len(starts) - 1):
        if starts[row + 1] == starts[row]:
            continue
        normal = np.zeros((dims + 1, dims + 1))
        moment = np.zeros(dims + 1)
        for at in range(starts[row], starts[row + 1]):
            column = columns[at]
            rest = targets[at] - fixed_bias[column]
            for a in range(dims):
                value = fixed[column, a]
                moment[a] += value * rest
                for b in range(a + 1):
                    normal[a, b] += value * fixed[column, b]
                normal[dims, a] += value
            moment[dims] += rest
            normal[dims, dims] += 1.0
        for a in range(dims + 1):
            for b in range(a):
                normal[b, a] = normal[a, b]
            normal[a, a] += vector_prior if a < dims else bias_prior
        solution = np.linalg.solve(normal, moment)
        vectors[row] = solution[:dims]
        bias[row] = solution[dims]
