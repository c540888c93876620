"""Traits: what the warm start says about each user before the first round.

Every trait is computed from `dataset.interactions` alone, never from the holdout. The module does not know how a
behaviour model uses a trait, and nothing here is random.

Fallbacks, where a user's data do not define a trait: conformity is the population's median, diversity and popularity
propensity its mean, rating mean and SD shrink to the population's, favourite genres are -1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import Dataset, FloatArray, Interactions, LongArray
from simenv.metrics.reference import genre_counts, midrank_percentile
from simenv.numeric import DoubleArray

TierArray = NDArray[np.int8]

ACTIVITY_CUTS = (60.0, 90.0)
CONFORMITY_CUTS = (25.0, 80.0)
RATING_PRIOR = 5.0  # a user's rating mean and variance count as if this many population ratings came with them
LIFT_PRIOR = 1.0  # pseudo-count of the genre lift


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """One row per user. Percentiles are mid-rank, in (0, 1); tiers are 0 low, 1 middle, 2 high.

    Activity, conformity and diversity are the social traits of Agent4Rec (Zhang et al. 2024, "On Generative Agents
    in Recommendation"); diversity is an entropy here, and conformity leaves the user's own rating out of the mean.
    """

    activity: LongArray  # (n_users,), interactions
    activity_pct: FloatArray  # (n_users,)
    activity_tier: TierArray  # (n_users,), cut at P60 and P90
    conformity: FloatArray  # (n_users,), mean_i (r_ui - mean of the others' r_i)^2: LOW = conformist
    conformity_pct: FloatArray  # (n_users,), of that deviation: 0 = the most conformist
    conformity_tier: TierArray  # (n_users,), of that deviation, cut at P25 and P80: 0 = conformist
    diversity: FloatArray  # (n_users,), genre entropy / log(n_genres), in [0, 1]
    diversity_pct: FloatArray  # (n_users,)
    rating_mean: FloatArray  # (n_users,), shrunk to the population's
    rating_sd: FloatArray  # (n_users,), shrunk to the population's within-user SD
    popularity: FloatArray  # (n_users,), mean popularity percentile of the items consumed, in (0, 1)
    popularity_pct: FloatArray  # (n_users,)
    top_genres: TierArray  # (n_users, m), genre rows of lift above 1, best first, -1 = none
    bottom_genres: TierArray  # (n_users, m), genre rows of lift below 1, worst first, -1 = none

    @classmethod
    def from_dataset(cls, dataset: Dataset, *, n_genres: int = 3) -> Traits:
        """Traits of every user of `dataset`; `n_genres` is how many top and bottom genres are kept."""
        log = dataset.interactions
        activity = log.user_counts()
        conformity = rating_deviation(log)
        profile = genre_counts(log.users, log.items, dataset.catalog.genres, dataset.n_users)
        diversity = normalised_entropy(profile)
        popularity = popularity_propensity(log)
        mean, sd = rating_style(dataset)
        log_lift = np.log(genre_lift(profile))
        return cls(
            activity=activity,
            activity_pct=midrank_percentile(activity),
            activity_tier=tiers(activity, ACTIVITY_CUTS),
            conformity=conformity,
            conformity_pct=midrank_percentile(conformity),
            conformity_tier=tiers(conformity, CONFORMITY_CUTS),
            diversity=diversity,
            diversity_pct=midrank_percentile(diversity),
            rating_mean=mean,
            rating_sd=sd,
            popularity=popularity,
            popularity_pct=midrank_percentile(popularity),
            top_genres=_lowest(-log_lift, n_genres),
            bottom_genres=_lowest(log_lift, n_genres),
        )

    @property
    def n_users(self) -> int:
        return len(self.activity)

    def take(self, rows: NDArray[Any]) -> Traits:
        """These users' rows, with the percentiles and tiers they had in the whole population."""
        return Traits(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def columns(self) -> dict[str, NDArray[Any]]:
        """The one-dimensional traits by name, for a table of users."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name).ndim == 1}


def tiers(values: NDArray[Any], cuts: tuple[float, float]) -> TierArray:
    """0 up to the first percentile cut (inclusive), 2 above the second, 1 between."""
    return np.searchsorted(np.percentile(values, cuts), values, side="left").astype(np.int8)


def rating_deviation(log: Interactions) -> FloatArray:
    """Mean squared distance of a user's ratings to what the others gave the same items, (n_users,).

    d_u = mean over the items u rated, and someone else too, of (r_ui - mean of the others' ratings of i)^2.
    Users without such an item get the median; where nobody has one, everybody gets 0.
    """
    rated = log.take(~np.isnan(log.ratings))
    ratings = rated.ratings.astype(np.float64)
    sums = np.bincount(rated.items, weights=ratings, minlength=log.n_items)[rated.items]
    others = rated.item_counts()[rated.items] - 1
    shared = others > 0
    squared = np.square(ratings[shared] - (sums[shared] - ratings[shared]) / others[shared])
    deviation = _mean_by_user(rated.users[shared], squared, log.n_users)
    known = deviation[~np.isnan(deviation)]
    fallback = np.median(known) if len(known) else 0.0
    return np.where(np.isnan(deviation), fallback, deviation).astype(np.float32)


def normalised_entropy(profile: DoubleArray) -> FloatArray:
    """Shannon entropy of each row over log(columns), in [0, 1]; empty rows get the mean of the others."""
    totals = profile.sum(axis=1)
    if profile.shape[1] < 2 or not totals.any():
        return np.zeros(len(profile), np.float32)
    share = profile / np.where(totals > 0, totals, 1.0)[:, None]
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1) / np.log(profile.shape[1])
    entropy = np.where(totals > 0, entropy, entropy[totals > 0].mean())
    return np.asarray(entropy.clip(0.0, 1.0), dtype=np.float32)


def genre_lift(profile: DoubleArray, prior: float = LIFT_PRIOR) -> DoubleArray:
    """Observed over expected interactions by genre, (n_users, n_genres), 1 = as everybody.

    lift = (c_ug + prior) / (c_u p_g + prior), where p_g is the genre's share of all interactions: a genre never
    consumed counts as disliked only as far as it was to be expected.
    """
    total = profile.sum()
    share = profile.sum(axis=0) / total if total else np.zeros(profile.shape[1])
    return np.asarray((profile + prior) / (profile.sum(axis=1, keepdims=True) * share + prior))


def rating_style(dataset: Dataset) -> tuple[FloatArray, FloatArray]:
    """Each user's rating mean and SD (pickiness), shrunk as if `RATING_PRIOR` population ratings came with them.

    Where nobody rated anything: the middle of the scale, and a quarter of its span.
    """
    log, scale = dataset.interactions, dataset.rating_scale
    rated = log.take(~np.isnan(log.ratings))
    ratings, counts = rated.ratings.astype(np.float64), rated.user_counts()
    if not len(rated):
        middle, spread = (scale.low + scale.high) / 2, (scale.high - scale.low) / 4
        return np.full(log.n_users, middle, np.float32), np.full(log.n_users, spread, np.float32)
    own = _mean_by_user(rated.users, ratings, log.n_users)
    squares = np.bincount(rated.users, weights=np.square(ratings - own[rated.users]), minlength=log.n_users)
    freedom = len(rated) - np.count_nonzero(counts)
    variance = squares.sum() / freedom if freedom else ratings.var()
    sums = np.bincount(rated.users, weights=ratings, minlength=log.n_users)
    mean = (sums + RATING_PRIOR * ratings.mean()) / (counts + RATING_PRIOR)
    sd = np.sqrt((squares + RATING_PRIOR * variance) / (np.maximum(counts - 1, 0) + RATING_PRIOR))
    return mean.astype(np.float32), sd.astype(np.float32)


def popularity_propensity(log: Interactions) -> FloatArray:
    """Mean popularity percentile of each user's items, (n_users,); users without any get the population's mean."""
    mean = _mean_by_user(log.users, midrank_percentile(log.item_counts())[log.items], log.n_users)
    return np.nan_to_num(mean, nan=float(np.nanmean(mean))).astype(np.float32)


def _mean_by_user(users: NDArray[Any], values: NDArray[Any], n_users: int) -> DoubleArray:
    counts = np.bincount(users, minlength=n_users)
    sums = np.bincount(users, weights=values, minlength=n_users)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _lowest(key: DoubleArray, m: int) -> TierArray:
    """Columns of the `m` smallest negative entries of each row, smallest first, -1 where there are fewer."""
    order = np.argsort(key, axis=1, kind="stable")[:, :m]
    found = np.full((len(key), m), -1, np.int8)
    found[:, : order.shape[1]] = np.where(np.take_along_axis(key, order, axis=1) < -1e-9, order, -1)
    return found
