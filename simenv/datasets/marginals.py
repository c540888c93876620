"""Marginals of a data set, and those of MovieLens-100K, to which synthetic worlds are calibrated.

A marginal is an aggregate: how unequal items are, how active users are, how ratings spread. Nothing here knows how a
data set was made, and the constants hold no row of anybody's data.

Source of the targets: MovieLens-100K (Harper and Konstan 2015, "The MovieLens Datasets: History and Context", ACM
TiiS 5(4)). Users, items, ratings and the minimum of 20 ratings a user are the publisher's own words (README and
u.info); the other figures are computed from the publisher's ``u.data`` by `measure`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import Dataset

QUANTILE_LEVELS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
MIN_RATINGS_FOR_A_MEAN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Marginals:
    """Aggregates of one data set; shares are fractions."""

    n_users: int
    n_items: int
    density: float  # interactions / (users x items)
    mean_activity: float  # interactions per user
    activity_quantiles: tuple[float, ...]  # of interactions per user, at QUANTILE_LEVELS
    item_count_quantiles: tuple[float, ...]  # of interactions per item, at QUANTILE_LEVELS
    item_gini: float  # of interactions per item, zeros included
    top1_share: float  # share of interactions on the most popular 1 % of items
    top10_share: float
    head_share: float  # share of the items that together hold 80 % of interactions
    rating_shares: tuple[float, ...]  # of each value of the rating scale
    rating_mean: float
    user_mean_sd: float  # SD over users of their mean rating
    item_mean_sd: float  # SD over items with at least 20 ratings of their mean rating
    count_rating_spearman: float  # rank correlation of count and mean rating, items with at least 20 ratings


ML_100K = Marginals(
    n_users=943,
    n_items=1682,
    density=0.0630,
    mean_activity=106.04,
    activity_quantiles=(20, 20, 21, 23, 29, 38, 50, 65, 93, 127.4, 171.6, 244.4, 310.6, 442.5, 737),
    item_count_quantiles=(1, 1, 1, 2, 5, 9, 16, 27, 43, 65, 100, 169, 229.9, 369.1, 583),
    item_gini=0.629,
    top1_share=0.0726,
    top10_share=0.427,
    head_share=0.319,
    rating_shares=(0.0611, 0.1137, 0.27145, 0.34174, 0.21201),
    rating_mean=3.530,
    user_mean_sd=0.445,
    item_mean_sd=0.533,
    count_rating_spearman=0.457,
)


def quantile_function(levels: NDArray[np.float64], quantiles: tuple[float, ...]) -> NDArray[np.float64]:
    """Log-linear interpolation of `quantiles` given at `QUANTILE_LEVELS`."""
    return np.exp(np.interp(levels, QUANTILE_LEVELS, np.log(quantiles)))


def measure(dataset: Dataset) -> Marginals:
    """The marginals of a data set's warm start. Rating marginals are NaN where nothing was rated."""
    from simenv.metrics.formulas import gini, spearman  # here: they import this package
    from simenv.metrics.reference import popularity_sets

    log = dataset.interactions
    counts, activity = log.item_counts(), log.user_counts()
    bins, top = popularity_sets(counts)
    rated = log.take(~np.isnan(log.ratings))
    values = dataset.rating_scale.values
    user_n, item_n = rated.user_counts(), rated.item_counts()
    many = item_n >= MIN_RATINGS_FOR_A_MEAN
    with np.errstate(invalid="ignore", divide="ignore"):
        user_means = (np.bincount(rated.users, rated.ratings, log.n_users) / user_n)[user_n > 0]
        item_means = (np.bincount(rated.items, rated.ratings, log.n_items) / item_n)[many]
        shares = np.array([np.mean(rated.ratings == value) if len(rated) else np.nan for value in values])
    return Marginals(
        n_users=log.n_users,
        n_items=log.n_items,
        density=len(log) / (log.n_users * log.n_items),
        mean_activity=float(activity.mean()),
        activity_quantiles=tuple(np.quantile(activity, QUANTILE_LEVELS).tolist()),
        item_count_quantiles=tuple(np.quantile(counts, QUANTILE_LEVELS).tolist()),
        item_gini=gini(counts),
        top1_share=float(counts[top].sum() / counts.sum()),
        top10_share=float(np.sort(counts)[-max(1, round(log.n_items / 10)) :].sum() / counts.sum()),
        head_share=float(np.mean(bins < 2)),
        rating_shares=tuple(shares.tolist()),
        rating_mean=float(rated.ratings.mean()) if len(rated) else np.nan,
        user_mean_sd=float(user_means.std()) if len(user_means) else np.nan,
        item_mean_sd=float(item_means.std()) if len(item_means) else np.nan,
        count_rating_spearman=spearman(item_n[many], item_means) if many.any() else np.nan,
    )
