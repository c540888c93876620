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
    score_part(vector, items_t, item_bias, 0, items_t.shape[1], out)


@nb.njit(inline="always", cache=True)
def score_part(
    vector: Any, items_t: Any, item_bias: Any, start: int, stop: int, out: Any
) -> None:  # pragma: no cover - compiled
    """The same for items `start` to `stop`, into the first places of `out`, summed in the same order.

    Whole slices and four rows at a time: what the compiler makes vectors of, and fewer ways to memory.
    """
    d, j = items_t.shape[0], 0
    out, bias = out[: stop - start], item_bias[start:stop]
    for place in range(len(out)):
        out[place] = bias[place]
    while j + 4 <= d:
        w, x, y, z = vector[j], vector[j + 1], vector[j + 2], vector[j + 3]
        of_w, of_x = items_t[j][start:stop], items_t[j + 1][start:stop]
        of_y, of_z = items_t[j + 2][start:stop], items_t[j + 3][start:stop]
        for place in range(len(out)):
            out[place] = (((out[place] + w * of_w[place]) + x * of_x[place]) + y * of_y[place]) + z * of_z[place]
        j += 4
    while j < d:
        w, of_w = vector[j], items_t[j][start:stop]
        for place in range(len(out)):
            out[place] += w * of_w[place]
        j += 1


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
