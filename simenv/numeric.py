"""Small mathematics that several packages need, each written once.

The module knows arrays only: no users, items or data sets.
"""

from __future__ import annotations

from typing import Any

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
    of_each = group_auc(
        np.tile(users[usable], 2),
        np.concatenate([chosen[usable], other[usable]]),
        np.repeat([True, False], usable.sum()),
    )
    return float(np.mean(of_each[~np.isnan(of_each)])) if len(of_each) else float("nan")


def group_auc(groups: NDArray[Any], scores: NDArray[Any], truth: NDArray[Any], n_groups: int = 0) -> DoubleArray:
    """Area under the ROC curve within each group; ties count one half (Mann and Whitney).

    Args:
        groups: (n,) whole numbers from 0; rows of one group need not lie together.
        scores: (n,), none of them NaN.
        truth: (n,) what high scores should go with.
        n_groups: at least; groups without rows are counted too.

    Returns:
        (number of groups,), NaN where a group is without true or without false rows.
    """
    order = np.lexsort((scores, groups))
    groups, scores, truth = groups[order], scores[order], truth[order].astype(np.bool_)
    n = np.bincount(groups, minlength=n_groups)
    n_true = np.bincount(groups[truth], minlength=len(n))
    first = np.ones(len(groups), np.bool_)
    first[1:] = (np.diff(groups) != 0) | (scores[1:] != scores[:-1])
    starts = np.flatnonzero(first)
    ties = np.diff(starts, append=len(groups))
    midrank = np.repeat(starts + (ties + 1) / 2, ties) - (np.cumsum(n) - n)[groups]
    above = np.bincount(groups[truth], weights=midrank[truth], minlength=len(n)) - n_true * (n_true + 1) / 2
    pairs = n_true * (n - n_true)
    return np.divide(above, pairs, out=np.full(len(n), np.nan), where=pairs > 0)


def logistic_regression(
    x: DoubleArray,
    y: NDArray[Any],
    *,
    prior: DoubleArray,
    precision: DoubleArray,
    offset: DoubleArray | float = 0.0,
    tolerance: float = 1e-8,
) -> tuple[DoubleArray, DoubleArray]:
    """Logistic regression with a normal prior, by Newton's method; steps that lead uphill are halved.

    Args:
        x: (n, d), with a column of ones where an intercept is wanted.
        y: (n,) 0 or 1.
        prior: (d,) means of the prior, and where it starts.
        precision: (d,) of the prior: the L2 penalty of each weight.
        offset: (n,) or one for all, added to the logit.
        tolerance: it ends when no weight moves by more.

    Returns:
        The weights, (d,), and the Hessian of the last step, (d, d).
    """

    def loss(weights: DoubleArray) -> float:
        z = x @ weights + offset
        return float(np.sum(np.logaddexp(0, z) - y * z) + np.sum(precision * np.square(weights - prior)) / 2)

    weights = prior.astype(np.float64)
    for _ in range(100):
        p = sigmoid(x @ weights + offset)
        gradient = x.T @ (y - p) - precision * (weights - prior)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag(precision)
        step = np.linalg.solve(hessian, gradient)
        while loss(weights + step) > loss(weights) and np.abs(step).max() > tolerance / 1000:
            step /= 2
        weights = weights + step
        if np.abs(step).max() < tolerance:
            break
    return weights, hessian
