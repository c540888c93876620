"""What the metrics compute: pure functions over arrays, each standing alone; undefined is NaN.

Rows need no order, except where a docstring says so; input already sorted by user and slate, as the log is, saves a
sort. The module knows neither events nor data sets. Formulas, directions and pitfalls: docs/metrics.md.
"""

from __future__ import annotations

import math
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from simenv.metrics.reference import item_sets, midranks

CALIBRATION_ALPHA = 0.01


def sorted_by(keys: NDArray[Any], *arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """The arrays in stable order of `keys`; untouched where already so, which is the log's usual order."""
    if len(keys) < 2 or bool(np.all(keys[1:] >= keys[:-1])):
        return arrays
    order = np.argsort(keys, kind="stable")
    return tuple(array[order] for array in arrays)


# --- answers and worth -----------------------------------------------------------------------------------------------


def mean(values: NDArray[Any]) -> float:
    """The mean of the finite values; NaN where there is none."""
    total = float(np.sum(values, dtype=np.float64))
    if math.isfinite(total):
        return total / len(values) if len(values) else math.nan
    finite = values[np.isfinite(values)]
    return float(np.mean(finite, dtype=np.float64)) if len(finite) else math.nan


def ctr(clicked: NDArray[np.bool_]) -> float:
    """Clicked / shown, in [0, 1]; the denominator is what was shown, examined or not."""
    return int(np.count_nonzero(clicked)) / len(clicked) if len(clicked) else math.nan


def regret(
    users: NDArray[Any], slates: NDArray[Any], items: NDArray[Any], utility: NDArray[Any], best: NDArray[Any]
) -> float:
    """Mean over users of (best - slate) / best, the mean over a user's slates first; <= 1.

    Args:
        users: (n,) user of each impression.
        slates: (n,) any integer that tells one slate from another; greater for later users.
        items: (n,) item of each impression. A second copy in a slate brings nothing but still takes a slot.
        utility: (n,) positive utility of each impression before the choice.
        best: (n,) mean utility of the best K of the same candidates, repeated over the slate; slates where it is
            NaN or not positive are left out.
    """
    users, slates, items, utility, best = sorted_by(slates, users, slates, items, utility, best)
    return float(_mean_regret(users, slates, items, utility, best))


@nb.njit(cache=True, nogil=True)
def _mean_regret(users: Any, slates: Any, items: Any, utility: Any, best: Any) -> float:  # pragma: no cover - compiled
    n, total, n_users = len(users), 0.0, 0
    user_sum, user_slates, start = 0.0, 0, 0
    for end in range(1, n + 1):
        if end < n and slates[end] == slates[start]:
            continue
        top = np.float64(best[start])
        if top > 0.0 and np.isfinite(top):
            worth = 0.0
            for i in range(start, end):
                copy = False
                for j in range(start, i):
                    copy = copy or items[j] == items[i]
                if not copy:
                    worth += utility[i]
            gap = 1.0 - worth / (end - start) / top
            if np.isfinite(gap):
                user_sum += gap
                user_slates += 1
        if end == n or users[end] != users[start]:
            if user_slates > 0:
                total += user_sum / user_slates
                n_users += 1
            user_sum, user_slates = 0.0, 0
        start = end
    return total / n_users if n_users > 0 else np.nan


# --- exposure --------------------------------------------------------------------------------------------------------


def coverage(impressions: NDArray[Any]) -> float:
    """Distinct items shown / catalogue size, in [0, 1]; `impressions` counts per item, (n_items,)."""
    return float(np.count_nonzero(impressions) / len(impressions)) if impressions.any() else math.nan


def gini(impressions: NDArray[Any]) -> float:
    """Gini coefficient of counts per item, zeros included: 0 = equal, (n - 1) / n = one item has all."""
    ordered = np.sort(impressions).astype(np.float64)
    n, total = len(ordered), float(ordered.sum())
    if total == 0:
        return math.nan
    weights = np.arange(1 - n, n, 2, dtype=np.float64)  # 2 j - n - 1
    return float(weights @ ordered) / (n * total)


def entropy(impressions: NDArray[Any]) -> float:
    """Shannon entropy of impressions per item, nats, in [0, log n_items]."""
    positive = impressions[impressions > 0].astype(np.float64)
    total = float(positive.sum())
    return max(0.0, math.log(total) - float(positive @ np.log(positive)) / total) if total else math.nan


def spearman(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Spearman's rank correlation with mid-ranks; NaN where either side is constant."""
    a, b = midranks(x), midranks(y)
    a -= a.mean()
    b -= b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return max(-1.0, min(1.0, float(a @ b) / scale)) if scale > 0 else math.nan


# --- variety ---------------------------------------------------------------------------------------------------------


def ild(slates: NDArray[Any], items: NDArray[Any], genre_bits: NDArray[np.uint64]) -> float:
    """Intra-list diversity: mean over slates of the mean pairwise Jaccard distance of genre sets, in [0, 1].

    Args:
        slates: (n,) any integer that tells one slate from another.
        items: (n,) item of each impression.
        genre_bits: (n_items, words) from `reference.pack_genres`. Items without a genre take no part; slates left
            with fewer than two items are ignored.
    """
    slates, items = sorted_by(slates, slates, items)
    return float(_mean_ild(slates, items, genre_bits))


@nb.njit(inline="always", cache=True)
def _popcount(x: Any) -> Any:  # pragma: no cover - compiled
    x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


@nb.njit(cache=True, nogil=True)
def _mean_ild(slates: Any, items: Any, bits: Any) -> float:  # pragma: no cover - compiled
    n, total, n_slates, start = len(slates), 0.0, 0, 0
    for end in range(1, n + 1):
        if end < n and slates[end] == slates[start]:
            continue
        distance, n_pairs = 0.0, 0
        for i in range(start, end):
            for j in range(start, i):
                both, either, size_i, size_j = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
                for w in range(bits.shape[1]):
                    a, b = bits[items[i], w], bits[items[j], w]
                    both += _popcount(a & b)
                    either += _popcount(a | b)
                    size_i |= a
                    size_j |= b
                if size_i != 0 and size_j != 0:
                    distance += 1.0 - both / either
                    n_pairs += 1
        if n_pairs > 0:
            total += distance / n_pairs
            n_slates += 1
        start = end
    return total / n_slates if n_slates > 0 else np.nan


def calibration_kl(p: NDArray[Any], q: NDArray[Any], alpha: float = CALIBRATION_ALPHA) -> NDArray[np.float64]:
    """Steck's miscalibration KL(p || (1 - alpha) q + alpha p), nats, over the last axis; in [0, -log alpha].

    Args:
        p: (..., n_genres) the profile.
        q: (..., n_genres) what was consumed or shown.
        alpha: the smoothing that keeps it finite (Steck 2018, "Calibrated recommendations").
    """
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    mixed = (1 - alpha) * q + alpha * p
    ratio = np.divide(p, mixed, out=np.ones(np.broadcast_shapes(p.shape, q.shape)), where=p > 0)
    return np.asarray(np.sum(p * np.log(ratio), axis=-1))


def genre_kl(
    users: NDArray[Any],
    items: NDArray[Any],
    profile: NDArray[Any],
    weights: NDArray[Any],
    alpha: float = CALIBRATION_ALPHA,
) -> float:
    """Mean over users of `calibration_kl` between the round-0 profile and the genres of these items.

    Args:
        users: (n,) who clicked.
        items: (n,) what was clicked.
        profile: (n_users, n_genres), NaN rows for users without one, who are left out.
        weights: (n_items, n_genres), each item's weight spread over its genres.
        alpha: see `calibration_kl`.
    """
    users, items = sorted_by(users, users, items)
    return float(_mean_genre_kl(users, items, profile, weights, alpha))


@nb.njit(cache=True, nogil=True)
def _mean_genre_kl(users: Any, items: Any, profile: Any, weights: Any, alpha: Any) -> float:  # pragma: no cover
    n, n_genres, total, n_users = len(users), profile.shape[1], 0.0, 0
    taken = np.zeros(n_genres)
    for i in range(n):
        for g in range(n_genres):
            taken[g] += weights[items[i], g]
        if i + 1 < n and users[i + 1] == users[i]:
            continue
        mass, known = taken.sum(), True
        for g in range(n_genres):
            known = known and not np.isnan(profile[users[i], g])
        if mass > 0.0 and known:
            for g in range(n_genres):
                p = np.float64(profile[users[i], g])
                if p > 0.0:
                    total += p * np.log(p / ((1.0 - alpha) * taken[g] / mass + alpha * p))
            n_users += 1
        taken[:] = 0.0
    return total / n_users if n_users > 0 else np.nan


def pair_jaccards(
    users: NDArray[Any], items: NDArray[Any], pairs: NDArray[np.int64], n_users: int
) -> NDArray[np.float64]:
    """Jaccard overlap of the item sets of each pair of users, (n_pairs,); NaN where both sets are empty."""
    starts, sets = item_sets(users, items, n_users)
    return np.asarray(_pair_jaccards(starts, sets, pairs))


@nb.njit(cache=True, nogil=True)
def _pair_jaccards(starts: Any, sets: Any, pairs: Any) -> Any:  # pragma: no cover - compiled
    out = np.full(len(pairs), np.nan)
    for p in range(len(pairs)):
        a, b = pairs[p, 0], pairs[p, 1]
        i, j, both = starts[a], starts[b], 0
        while i < starts[a + 1] and j < starts[b + 1]:
            if sets[i] == sets[j]:
                both += 1
                i += 1
                j += 1
            elif sets[i] < sets[j]:
                i += 1
            else:
                j += 1
        either = starts[a + 1] - starts[a] + starts[b + 1] - starts[b] - both
        if either > 0:
            out[p] = both / either
    return out


# --- accuracy --------------------------------------------------------------------------------------------------------


def ranking_accuracy(
    users: NDArray[Any],
    positions: NDArray[Any],
    items: NDArray[Any],
    held: tuple[NDArray[Any], NDArray[Any]],
    k: int,
) -> tuple[float, float]:
    """NDCG@k (binary gains, 1 / log2(rank + 2)) and recall@k, means over users with held-out items.

    Args:
        users: (n,) the user of each impression.
        positions: (n,) non-negative, below 2**31, growing along a user's list; later copies of an item gain nothing.
        items: (n,) the item of each impression.
        held: row pointers (n_users + 1,) and held-out items, ascending within a user (`reference.item_sets`).
        k: the cut, at least 1. The ideal list of a user with h held-out items has min(k, h) hits; recall divides by h.
    """
    keys = users.astype(np.int64) << 31 | positions
    users, items = sorted_by(keys, users, items)
    ndcg, recall = _mean_accuracy(users, items, held[0], held[1], k)
    return float(ndcg), float(recall)


@nb.njit(cache=True, nogil=True)
def _mean_accuracy(users: Any, items: Any, starts: Any, held: Any, k: Any) -> Any:  # pragma: no cover - compiled
    n, ndcg, recall, n_users, start = len(users), 0.0, 0.0, 0, 0
    discount = 1.0 / np.log2(np.arange(k) + 2.0)
    ideal = np.cumsum(discount)
    for end in range(1, n + 1):
        if end < n and users[end] == users[start]:
            continue
        relevant = held[starts[users[start]] : starts[users[start] + 1]]
        if len(relevant) > 0:
            gain, hits = 0.0, 0
            for i in range(start, min(end, start + k)):
                at = np.searchsorted(relevant, items[i])
                hit = at < len(relevant) and relevant[at] == items[i]
                for j in range(start, i if hit else start):
                    hit = hit and items[j] != items[i]
                if hit:
                    gain += discount[i - start]
                    hits += 1
            ndcg += gain / ideal[min(k, len(relevant)) - 1]
            recall += hits / len(relevant)
            n_users += 1
        start = end
    if n_users == 0:
        return np.nan, np.nan
    return ndcg / n_users, recall / n_users
