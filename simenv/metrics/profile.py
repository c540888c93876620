"""What a platform can know of a user from the log alone, as numbers a policy can read.

Nothing here is true taste: the same figures come from a simulated user's row and from a real log.
"""

from __future__ import annotations

import numpy as np

from simenv.datasets.base import BoolArray, FloatArray, Interactions, RatingScale
from simenv.metrics.reference import genre_counts, midrank_percentile

N_FIGURES = 3


def observable_profile(log: Interactions, genres: BoolArray, scale: RatingScale) -> FloatArray:
    """Three figures per user, (n_users, 3), each in [0, 1].

    Percentile of the number of interactions among the users; entropy of the genres consumed over its maximum; mean
    rating, from the scale's lowest (0) to its highest (1), with five average ratings added to everybody's.

    Args:
        log: the warm start.
        genres: (n_items, n_genres).
        scale: of the ratings.
    """
    activity = midrank_percentile(log.user_counts())
    shares = genre_shares(genre_counts(log.users, log.items, genres, log.n_users).astype(np.float32))
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1)
    rated = ~np.isnan(log.ratings)
    overall = float(log.ratings[rated].mean()) if rated.any() else (scale.low + scale.high) / 2
    sums = np.bincount(log.users[rated], weights=log.ratings[rated], minlength=log.n_users)
    means = (sums + 5 * overall) / (np.bincount(log.users[rated], minlength=log.n_users) + 5)
    span = max(scale.high - scale.low, scale.step)
    figures = [activity, entropy / np.log(max(genres.shape[1], 2)), (means - scale.low) / span]
    return np.clip(np.stack(figures, axis=1), 0.0, 1.0).astype(np.float32)


def genre_shares(counts: FloatArray) -> FloatArray:
    """Rows of counts as shares of their sum; zeros where there is nothing."""
    total = counts.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(counts, total, out=np.zeros_like(counts), where=total > 0))
