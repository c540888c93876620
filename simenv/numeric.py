"""Small mathematics that several packages need, each written once.

The module knows arrays only: no users, items or data sets.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
LongArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def sigmoid(x: Any) -> NDArray[Any]:
    """The logistic function, in the precision of `x`; beyond 60 on either side it no longer changes."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -60.0, 60.0))))


def places(counts: NDArray[Any]) -> LongArray:
    """0, 1, ... within each of several groups that lie one after the other.

    Args:
        counts: (g,) rows of each group.

    Returns:
        (sum of counts,) each row's place in its group.
    """
    counts = np.asarray(counts, np.int64)
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def places_in_groups(groups: NDArray[Any], by: NDArray[Any] | None = None) -> LongArray:
    """Each row's place in its group, from 0.

    Args:
        groups: (n,) whole numbers from 0; rows of one group need not lie together.
        by: (n,) what rows of a group are ordered by, ties in the order of the rows; None = the order of the rows.

    Returns:
        (n,) places.
    """
    order = np.argsort(groups, kind="stable") if by is None else np.lexsort((by, groups))
    found = np.empty(len(groups), np.int64)
    found[order] = places(np.bincount(groups))
    return found


def mean_user_auc(users: NDArray[Any], chosen: NDArray[Any], other: NDArray[Any]) -> float:
    """AUC of chosen against other scores within each user, averaged over users; ties count one half.

    Args:
        users: (n,) whose pair each row is.
        chosen, other: (n,) score of the chosen item and of the one it is compared with; NaN rows are left out.

    Returns:
        The mean, NaN where there is no pair.
    """
    usable = ~(np.isnan(chosen) | np.isnan(other))
    users, chosen, other = users[usable], chosen[usable], other[usable]
    if not len(users):
        return float("nan")
    order = np.argsort(users, kind="stable")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(users[order])) + 1, [len(users)]])
    return float(_auc(starts, chosen[order].astype(np.float64), other[order].astype(np.float64)).mean())


@nb.njit(cache=True, nogil=True)
def _auc(starts: Any, chosen: Any, other: Any) -> Any:  # pragma: no cover - compiled
    n_users = len(starts) - 1
    auc = np.empty(n_users)
    for user in range(n_users):
        first, last = starts[user], starts[user + 1]
        negatives = np.sort(other[first:last])
        wins = 0.0
        for row in range(first, last):
            below = np.searchsorted(negatives, chosen[row], side="left")
            up_to = np.searchsorted(negatives, chosen[row], side="right")
            wins += (below + up_to) / 2
        auc[user] = wins / (last - first) ** 2
    return auc
