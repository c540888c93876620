"""Biases of a recommender's own lists: popularity by rank and by history length, and what user states give away.

The first two are the figures by which popularity bias of language-model recommenders is usually shown; the third is the
attacker of UP5 (Hua et al. 2024, "UP5: unbiased foundation model for fairness-aware recommendation"). The module does
not know which recommender made the lists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import FloatArray, IntArray, LongArray
from simenv.errors import DataError
from simenv.numeric import logistic_regression

if TYPE_CHECKING:
    import polars as pl


def popularity_by_rank(slates: IntArray, percentile: FloatArray) -> FloatArray:
    """Mean popularity percentile at each rank, (K,); empty places (-1) are left out, NaN where all are."""
    shown = slates >= 0
    sums = np.where(shown, percentile[slates.clip(min=0)], 0).sum(axis=0)
    return np.asarray(np.divide(sums, shown.sum(axis=0), out=np.full(slates.shape[1], np.nan), where=shown.any(axis=0)))


def popularity_by_history(
    slates: IntArray, percentile: FloatArray, lengths: LongArray, *, bins: int = 5
) -> tuple[FloatArray, FloatArray]:
    """Mean popularity percentile of the lists of users with short to long histories.

    Args:
        slates: (B, K), -1 = empty.
        percentile: (n_items,).
        lengths: (B,) interactions of each user.
        bins: equal-sized groups of users.

    Returns:
        Mean history length and mean percentile of each group, (bins,) each.
    """
    if not 1 <= bins <= len(lengths):
        raise DataError(f"bins={bins}: {len(lengths)} users; expected 1 to as many bins as users")
    groups = np.array_split(np.argsort(lengths, kind="stable"), bins)
    shown = slates >= 0
    values = np.where(shown, percentile[slates.clip(min=0)], 0).sum(axis=1) / np.maximum(shown.sum(axis=1), 1)
    return (
        np.array([lengths[group].mean() for group in groups], np.float32),
        np.array([values[group].mean() for group in groups], np.float32),
    )


def list_events(slates: IntArray, users: LongArray, percentile: FloatArray, arm: str) -> pl.DataFrame:
    """Lists as one frame of impressions in the columns that `simenv.figures` reads.

    Args:
        slates: (B, K), -1 = empty.
        users: (B,).
        percentile: (n_items,) popularity percentile of each item.
        arm: the recommender's name.
    """
    import polars as pl

    rows, ranks = np.nonzero(slates >= 0)
    items = slates[rows, ranks]
    columns = {"user": users[rows], "item": items, "rank": ranks, "popularity0_pct": percentile[items]}
    constants = {"seed": 0, "arm": arm, "mode": "none", "round": 0}
    return pl.DataFrame(columns).with_columns(**{name: pl.lit(value) for name, value in constants.items()})


def popularity_row(slates: IntArray, percentile: FloatArray, lengths: LongArray, own: FloatArray) -> dict[str, float]:
    """The two figures in five numbers: percentile at the first and last rank, overall, and the lift over users' own.

    Args:
        slates: (B, K), -1 = empty.
        percentile: (n_items,).
        lengths: (B,) interactions of each user.
        own: (B,) mean percentile of what each user consumed.

    Returns:
        `first`, `last` rank, `all` ranks, and the lift over `own` of the tenth of users with the `short`est and the
        `long`est histories.
    """
    by_rank = popularity_by_rank(slates, percentile)
    shown = slates >= 0
    means = np.where(shown, percentile[slates.clip(min=0)], 0).sum(axis=1) / np.maximum(shown.sum(axis=1), 1)
    groups = np.array_split(np.argsort(lengths, kind="stable"), min(10, len(lengths)))
    lift = means - own
    return {
        "first": float(by_rank[0]),
        "last": float(by_rank[-1]),
        "all": float(means.mean()),
        "short": float(lift[groups[0]].mean()),
        "long": float(lift[groups[-1]].mean()),
    }


def attacker_auc(
    states: NDArray[Any], attribute: NDArray[Any], rng: np.random.Generator, *, folds: int = 5, reg: float = 1.0
) -> float:
    """How well a logistic attacker tells a user attribute from user states: held-out AUC, .5 = not at all.

    The mean of `attacker_parts`, whose arguments these are.
    """
    return float(attacker_parts(states, attribute, rng, folds=folds, reg=reg).mean())


def attacker_parts(
    states: NDArray[Any],
    attribute: NDArray[Any],
    rng: np.random.Generator,
    *,
    folds: int = 5,
    reg: float = 1.0,
    fewest: int = 20,
) -> NDArray[np.float64]:
    """Each user's part in `attacker_auc`, (n_users,): their mean is the AUC, so that users can be resampled.

    With more than two values it is the mean of one value against the rest, weighted by users; see `auc_parts`.

    Args:
        states: (n_users, d) what the recommender knows of each user.
        attribute: (n_users,) two values or more.
        rng: shuffles users into folds.
        folds: every user is attacked once, by an attacker who did not see them.
        reg: L2 penalty on standardised features.
        fewest: of more than two values, those that fewer users have are told from nobody; their users stay in the rest.

    Raises:
        DataError: the attribute has one value, none that enough users have, or a fold holds one kind of users only.
    """
    values, counts = np.unique(attribute, return_counts=True)
    if len(values) < 2:
        raise DataError("attacker: the attribute has 1 value; expected two or more")
    x = np.asarray(states, np.float64)
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
    told = counts >= fewest if len(values) > 2 else np.array([False, True])
    wanted, weights = values[told], counts[told]
    if not len(wanted):
        raise DataError(f"attacker: no value of the attribute has {fewest} users; expected one at least")
    parts = np.array_split(rng.permutation(len(x)), folds)
    found = [_parts_of_one(x, attribute == value, parts, reg) for value in wanted]
    return np.average(found, axis=0, weights=weights)


def _parts_of_one(
    x: NDArray[np.float64], truth: NDArray[np.bool_], parts: list[LongArray], reg: float
) -> NDArray[np.float64]:
    found = np.empty(len(x))
    for held in parts:
        kept = np.setdiff1d(np.arange(len(x)), held)
        design = np.column_stack([np.ones(len(x)), x])
        weights, _ = logistic_regression(
            design[kept], truth[kept], prior=np.zeros(design.shape[1]), precision=np.array([1e-6, *[reg] * x.shape[1]])
        )
        found[held] = auc_parts(design[held] @ weights, truth[held])
    if np.isnan(found).any():
        raise DataError("attacker: a fold holds one value of the attribute only; expected fewer folds or more users")
    return found


def auc_parts(scores: NDArray[Any], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Each row's part in the AUC of scores (n,) for a truth (n,): their mean is the AUC, ties half; NaN of one kind.

    A part is the share of rows of the other kind that the row is ranked rightly against, its deviation from the AUC
    over the share of its own kind, so that their variance is that of the AUC (DeLong et al. 1988, "Comparing the areas
    under two or more correlated receiver operating characteristic curves").
    """
    from scipy.stats import rankdata

    n, n_true = len(scores), int(truth.sum())
    if n_true in (0, n):
        return np.full(n, np.nan)
    right = rankdata(scores)
    right[truth] = (right[truth] - rankdata(scores[truth])) / (n - n_true)
    right[~truth] = 1 - (right[~truth] - rankdata(scores[~truth])) / n_true
    auc = right[truth].mean()
    return np.asarray(auc + (right - auc) * n / np.where(truth, n_true, n - n_true))
