"""Comparisons on top of the metrics, for notebooks: profile against recommendation, one list against another.

Pure functions over arrays (`examples/notebook_bias.py` uses them). Popularity is whatever frozen value per item the
caller passes (a share, a percentile, a log). The module knows neither events nor run directories. Formulas and
pitfalls: docs/metrics.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simenv.numeric import DoubleArray

# --- popularity: profile against recommendation ----------------------------------------------------------------------


def user_means(values: NDArray[Any], users: NDArray[Any], n_users: int) -> DoubleArray:
    """Mean of `values` (n,) over the rows of each user, (n_users,); NaN for users without rows."""
    counts = np.bincount(users, minlength=n_users)
    sums = np.bincount(users, weights=values, minlength=n_users)
    return np.asarray(np.divide(sums, counts, out=np.full(n_users, np.nan), where=counts > 0))


def gap(popularity: NDArray[Any], users: NDArray[Any], items: NDArray[Any], group: NDArray[np.bool_]) -> float:
    """Group average popularity: mean over the group's users of the mean popularity of their items.

    Abdollahpouri et al. 2019, "The unfairness of popularity bias in recommendation".

    Args:
        popularity: (n_items,) frozen popularity.
        users: (n,) who consumed, or was shown.
        items: (n,) what.
        group: (n_users,) mask. Users without rows are left out; NaN if that leaves nobody.
    """
    means = user_means(popularity[items], users, len(group))
    return _mean_known(means[group])


def delta_gap(profile_gap: float, recommended_gap: float) -> float:
    """(GAP_r - GAP_p) / GAP_p: 0 = as popular as the profile, 1 = twice. NaN if the profile's is 0."""
    return (recommended_gap - profile_gap) / profile_gap if profile_gap else math.nan


def popularity_lift(profile_means: NDArray[Any], recommended_means: NDArray[Any]) -> DoubleArray:
    """`delta_gap` of each user, (n_users,); NaN where either mean is unknown or the profile's is 0."""
    known = np.isfinite(profile_means) & np.isfinite(recommended_means) & (profile_means != 0)
    change = recommended_means - profile_means
    return np.asarray(np.divide(change, profile_means, out=np.full(len(known), np.nan), where=known))


def lift_slope(lift: NDArray[Any], history: NDArray[Any]) -> float:
    """Least-squares slope of popularity lift on log history length: < 0 = light users are pushed most.

    Args:
        lift: (n_users,) from `popularity_lift`.
        history: (n_users,) interactions at round 0; users with none, or with an unknown lift, are left out.
    """
    known = np.isfinite(lift) & (history > 0)
    x, y = np.log(history[known].astype(np.float64)), lift[known].astype(np.float64)
    x -= x.mean() if len(x) else 0.0
    spread = float(x @ x)
    return float(x @ y) / spread if spread > 0 else math.nan


def one_step_identity(popularity: NDArray[Any], before: NDArray[Any], accepted: NDArray[Any]) -> tuple[float, float]:
    """Both sides of P_{t+1} - P_t = K theta_t / (|D| + K), equal up to rounding.

    P is the mean frozen popularity over the interactions in the log and theta_t = mean popularity of the accepted
    items - P_t (Mansoury et al. 2020, "Feedback loop and bias amplification in recommender systems").

    Args:
        popularity: (n_items,) frozen popularity.
        before: (|D|,) items of the log before the round.
        accepted: (K,) items added by the round.
    """
    p_before = float(np.mean(popularity[before], dtype=np.float64))
    p_after = float(np.mean(popularity[np.concatenate([before, accepted])], dtype=np.float64))
    if not len(accepted):
        return p_after - p_before, 0.0
    theta = float(np.mean(popularity[accepted], dtype=np.float64)) - p_before
    return p_after - p_before, len(accepted) * theta / (len(before) + len(accepted))


# --- distributions ---------------------------------------------------------------------------------------------------


def lorenz(counts: NDArray[Any]) -> tuple[DoubleArray, DoubleArray]:
    """The Lorenz curve: share of items (ascending by count, zeros included) and share of counts, each (n + 1,).

    The Gini coefficient is 1 - 2 x the area under it by the trapezoid rule. Counts that sum to 0 give NaN shares.
    """
    held = np.concatenate([[0.0], np.cumsum(np.sort(counts), dtype=np.float64)])
    shares = held / held[-1] if held[-1] > 0 else np.full(len(held), np.nan)
    return np.linspace(0.0, 1.0, len(held)), shares


def bin_shares(bins: NDArray[Any], users: NDArray[Any], items: NDArray[Any], n_users: int) -> DoubleArray:
    """Each user's shares of frozen popularity bins 0, 1, 2, (n_users, 3); NaN rows for users without rows."""
    counts = np.bincount(users.astype(np.int64) * 3 + bins[items], minlength=3 * n_users).reshape(n_users, 3)
    totals = counts.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0))


def js_divergence(p: ArrayLike, q: ArrayLike) -> DoubleArray:
    """Jensen-Shannon divergence over the last axis, nats, in [0, log 2]; NaN passes through.

    It is the square of `scipy.spatial.distance.jensenshannon`. Inputs are distributions.
    """
    p, q = np.broadcast_arrays(np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64))
    middle = (p + q) / 2

    def kl(a: DoubleArray) -> DoubleArray:
        ratio = np.divide(a, middle, out=np.ones_like(middle), where=a > 0)
        return np.asarray(np.sum(a * np.log(ratio), axis=-1))

    return np.maximum((kl(p) + kl(q)) / 2, 0.0)


def popularity_deviation(
    profile_shares: DoubleArray, shown_shares: DoubleArray, groups: Sequence[NDArray[np.bool_]]
) -> float:
    """UPD: mean over groups of the users' mean JS divergence between two `bin_shares`; groups of unknowns are left out.

    Abdollahpouri et al. 2021, "User-centered evaluation of popularity bias in recommender systems".
    """
    divergence = js_divergence(profile_shares, shown_shares)
    return _mean_known(np.array([_mean_known(divergence[group]) for group in groups]))


# --- between lists ----------------------------------------------------------------------------------


def snsr(similarities: ArrayLike) -> float:
    """Sensitive-to-neutral similarity range: max - min over the values of an attribute (FaiRLLM, Zhang et al. 2023)."""
    return float(np.ptp(np.asarray(similarities, dtype=np.float64)))


def snsv(similarities: ArrayLike) -> float:
    """Sensitive-to-neutral similarity variance: the population SD over the values of an attribute (FaiRLLM)."""
    return float(np.std(np.asarray(similarities, dtype=np.float64)))


def list_jaccard(a: Sequence[int], b: Sequence[int]) -> float:
    """Jaccard similarity of two lists as sets; NaN when both are empty."""
    first, second = set(a), set(b)
    return len(first & second) / len(first | second) if first | second else math.nan


def serp(sensitive: Sequence[int], neutral: Sequence[int]) -> float:
    """Weighted overlap of a list with the neutral one, in [0, 1]; the same items in any order have 1.

    The sum over the items that both have of K - r + 1, with r the rank in the sensitive list of K items, divided by
    K (K + 1) / 2: SERP* of FaiRLLM (Zhang et al. 2023). NaN if the sensitive list is empty.
    """
    k, known = len(sensitive), set(neutral)
    if k == 0:
        return math.nan
    return sum(k - rank for rank, item in enumerate(sensitive) if item in known) / (k * (k + 1) / 2)


def prag(sensitive: Sequence[int], neutral: Sequence[int]) -> float:
    """Pairwise ranking agreement of two lists of distinct items, in [0, 1]; identical lists have 1.

    The share of ordered pairs (v above w) of the sensitive list for which the neutral list has v, and has it above
    w or lacks w. This is PRAG* of FaiRLLM (Zhang et al. 2023) divided by the number of pairs,
    K (K - 1) / 2, so that 1 can be reached. Lists of one item are compared for equality; NaN if the sensitive list is
    empty.
    """
    if len(sensitive) < 2:
        return float(list(sensitive) == list(neutral)) if len(sensitive) else math.nan
    place = {item: rank for rank, item in enumerate(neutral)}
    at = [place.get(item, math.inf) for item in sensitive]
    return sum(v < w for v, w in combinations(at, 2)) / math.comb(len(at), 2)


def _mean_known(values: NDArray[Any]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan
