"""Scores of items for users, compiled: one pair, a row of the whole catalogue, and what is drawn from it.

The kernels know arrays only.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from simenv.candidates import insert, is_out
from simenv.randomness import fold, to_uniform


@nb.njit(inline="always", cache=True)
def row_dot(a: Any, row: int, b: Any, other: int) -> Any:  # pragma: no cover - compiled
    """Inner product of row `row` of `a` and row `other` of `b`, float32."""
    total = np.float32(0.0)
    for j in range(a.shape[1]):
        total += a[row, j] * b[other, j]
    return total


@nb.njit(inline="always", cache=True)
def sigmoid(x: Any) -> Any:  # pragma: no cover - compiled
    """The logistic function of a float."""
    return 1.0 / (1.0 + np.exp(-x))


@nb.njit(inline="always", cache=True)
def score_row(vector: Any, items_t: Any, item_bias: Any, out: Any) -> None:  # pragma: no cover - compiled
    """<vector, q_i> + item_bias[i] for every item, into `out` (n_items,); `items_t` is (d, n_items)."""
    for item in range(items_t.shape[1]):
        out[item] = item_bias[item]
    for j in range(items_t.shape[0]):
        weight = vector[j]
        for item in range(items_t.shape[1]):
            out[item] += weight * items_t[j, item]


@nb.njit(cache=True, nogil=True, fastmath={"contract"})
def utility(users: Any, vectors: Any, items_t: Any, user_bias: Any, item_bias: Any) -> Any:  # pragma: no cover
    out = np.empty((len(users), items_t.shape[1]), np.float32)
    for row in range(len(users)):
        user = users[row]
        score_row(vectors[user], items_t, item_bias, out[row])
        for item in range(items_t.shape[1]):
            out[row, item] = sigmoid(out[row, item] + user_bias[user])
    return out


@nb.njit(cache=True, nogil=True, fastmath={"contract"})
def unaided_slates(
    users: Any,
    vectors: Any,
    items_t: Any,
    weights: Any,
    taste: float,
    bits: Any,
    allowed: Any,
    state: Any,
    first: int,
    round_: int,
    page: int,
    k: int,
) -> Any:  # pragma: no cover - compiled
    n_items = items_t.shape[1]
    out = np.full((len(users), k), -1, np.int32)
    best = np.empty(k, np.float64)
    scores = np.empty(n_items, np.float32)
    for row in range(len(users)):
        user = users[row]
        own = row if bits.shape[0] > 1 else 0
        key = fold(fold(fold(state, first + user), round_), page)
        score_row(np.float32(taste) * vectors[user], items_t, weights, scores)
        filled = 0
        for item in range(n_items):
            if not allowed[item] or is_out(bits, own, item):
                continue
            draw = to_uniform(fold(key, item)) + 2.0**-54
            if filled == k:
                gap = best[k - 1] - scores[item]
                if gap > 0 and 1.0 - draw > np.exp(
                    -gap
                ):  # Gumbel noise above gap needs 1 - u <= 1 - e^(-e^-gap) <= e^-gap
                    continue
            score = scores[item] - np.log(-np.log(draw))
            if filled == k and score <= best[k - 1]:
                continue
            filled = insert(best, out[row], filled, score, item)
    return out
