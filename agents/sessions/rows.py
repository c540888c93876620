"""What happens to rows of sessions, compiled: where they begin, what counts as served, what is left behind and seen.

Everything is a pass over rows by a mask. Nothing here knows how users decide.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from simenv.envs.sessions import Parts, Who
from simenv.randomness import Purpose, fold, to_uniform

USER, SEED, EPISODE, PAGE, NEWEST = map(int, Who)
CLICKS, RATING, UTILITY, RETENTION, LEFT = map(int, Parts)
_SESSION_USER = int(Purpose.SESSION_USER)
_rows = nb.njit(cache=True, nogil=True, _nrt=False, error_model="numpy")  # type: ignore[call-overload]


@_rows
def begin_rows(
    rows: Any, chosen: Any, no_rating: float, who: Any, state: Any, seen: Any, home: Any, past: Any
) -> None:  # pragma: no cover - compiled
    """Start the next session of some rows, with users as they are at home.

    Args:
        rows: (n_rows,) bool.
        chosen: (n_rows,) who comes; -1 = drawn.
        no_rating: how an observation writes it.
        who: see `Sessions`.
        state: vectors, satiation, genre counts, mood and consumed bits of the rows.
        seen: impressions of the rows: items, clicks, ratings.
        home: vectors, genre counts and consumed bits of the users.
        past: (n_users, history_size) items and ratings of the warm start, newest first; -1 = none.
    """
    vectors, satiation, genre_counts, mood, bits = state
    seen_items, seen_clicks, seen_ratings = seen
    home_vectors, home_counts, home_bits = home
    past_items, past_ratings = past
    n_users, history_size = past_items.shape
    place = seen_items.shape[1] - history_size
    for row in range(len(rows)):
        if not rows[row]:
            continue
        who[row, EPISODE] += 1
        user = chosen[row]
        if user < 0:
            key = fold(fold(np.uint64(0), who[row, SEED]), _SESSION_USER)
            key = fold(fold(fold(fold(key, 0), who[row, EPISODE]), 0), 0)
            user = np.int64(to_uniform(key) * n_users)
        who[row, USER] = user
        who[row, PAGE] = 0
        who[row, NEWEST] = place
        mood[row, 0] = np.float32(0.0)
        mood[row, 1] = np.float32(0.5)
        for j in range(vectors.shape[1]):
            vectors[row, j] = home_vectors[user, j]
        for g in range(satiation.shape[1]):
            satiation[row, g] = np.float32(0.0)
        for g in range(satiation.shape[1]):
            genre_counts[row, g] = home_counts[user, g]
        for byte in range(bits.shape[1]):
            bits[row, byte] = home_bits[user, byte]
        items, clicks, ratings = seen_items[row, place:], seen_clicks[row, place:], seen_ratings[row, place:]
        for back in range(history_size):
            items[back] = past_items[user, back]
        for back in range(history_size):
            clicks[back] = past_items[user, back] >= 0
        for back in range(history_size):
            ratings[back] = past_ratings[user, back]


@_rows
def first_unknown(slates: Any, playing: Any, n_items: int) -> int:  # pragma: no cover - compiled
    """The flat index of the first slot of the `playing` rows that names no item; -1 = none."""
    for row in range(len(slates)):
        if playing[row]:
            unknown = 0
            for rank in range(slates.shape[1]):
                unknown |= (slates[row, rank] < 0) | (slates[row, rank] >= n_items)
            if unknown:
                for rank in range(slates.shape[1]):
                    if slates[row, rank] < 0 or slates[row, rank] >= n_items:
                        return row * slates.shape[1] + rank
    return -1


@_rows
def serve_rows(
    playing: Any, slates: Any, bits: Any, never: bool, marked: Any, served: Any
) -> None:  # pragma: no cover - compiled
    """Slates as users consider them: -1 for later copies and, with `never`, for what was consumed before.

    `marked`, (n_items,) bool, is False before and afterwards.
    """
    k = slates.shape[1]
    for row in range(len(slates)):
        if not playing[row]:
            continue
        for rank in range(k):
            item = slates[row, rank]
            empty = marked[item] | (never & ((bits[row, item >> 3] >> (item & 7)) & 1 > 0))
            marked[item] = True
            served[row, rank] = -1 if empty else item
        for rank in range(k):
            marked[slates[row, rank]] = False


@_rows
def finish_rows(
    playing: Any,
    slates: Any,
    left: Any,
    no_rating: float,
    history_size: int,
    who: Any,
    seen: Any,
    page: Any,
    parts: Any,
) -> None:  # pragma: no cover - compiled
    """Parts of the reward and the impressions of pages that have been answered; the parts of other rows are 0.

    Args:
        playing: (n_rows,) bool.
        slates: (n_rows, K) as they were shown.
        left: (n_rows,) bool, who leaves.
        no_rating: how an observation writes it.
        history_size: impressions that must stay.
        who: see `Sessions`.
        seen: impressions of the rows: items, clicks, ratings.
        page: clicked, ratings and utility, (n_rows, K) each.
        parts: see `Sessions`.
    """
    clicked, ratings, utility = page
    seen_items, seen_clicks, seen_ratings = seen
    k = slates.shape[1]
    end = seen_items.shape[1] - history_size
    for row in range(len(who)):
        if not playing[row]:
            for part in range(parts.shape[1]):
                parts[row, part] = 0.0
            continue
        newest = who[row, NEWEST]
        if newest < k:
            for back in range(history_size - 1, -1, -1):
                seen_items[row, end + back] = seen_items[row, newest + back]
                seen_clicks[row, end + back] = seen_clicks[row, newest + back]
                seen_ratings[row, end + back] = seen_ratings[row, newest + back]
            newest = end
        newest -= k
        who[row, NEWEST] = newest
        who[row, PAGE] += 1
        items = seen_items[row, newest : newest + k]
        clicks = seen_clicks[row, newest : newest + k]
        rated = seen_ratings[row, newest : newest + k]
        n_clicks, total, liked = 0, np.float64(0.0), np.float64(0.0)
        for rank in range(k):
            items[rank] = slates[row, rank]
        for rank in range(k):
            clicks[rank] = clicked[row, rank]
            n_clicks += clicked[row, rank]
        for rank in range(k):
            rating = ratings[row, rank]
            total += rating if rating == rating else np.float32(0.0)
            rated[rank] = rating if rating == rating else np.float32(no_rating)
        for rank in range(k):
            liked += utility[row, rank]
        parts[row, CLICKS] = n_clicks
        parts[row, RATING] = total
        parts[row, UTILITY] = liked / k
        parts[row, RETENTION] = 0.0 if left[row] else 1.0
        parts[row, LEFT] = 1.0 if left[row] else 0.0


@_rows
def _sum_in_order(values: Any, row: int) -> Any:  # pragma: no cover - compiled
    total = np.float32(0.0)
    for j in range(values.shape[1]):
        total += values[row, j]
    return total


@nb.njit(cache=True, nogil=True, _nrt=False, fastmath={"reassoc"})  # type: ignore[call-overload]
def _sum_in_lanes(values: Any, row: int) -> Any:  # pragma: no cover - compiled
    total = np.float32(0.0)
    for j in range(values.shape[1]):
        total += values[row, j]
    return total


@_rows
def observe_rows(
    rows: Any, first: bool, who: Any, genre_counts: Any, profile: Any, no_rating: float, seen: Any, out: Any
) -> None:  # pragma: no cover - compiled
    """What is observed of some rows.

    Args:
        rows: (n_rows,) bool.
        first: whether it is before their first page.
        who: see `Sessions`.
        genre_counts: (n_rows, n_genres).
        profile: (n_users, n) figures of users.
        no_rating: how an observation writes it.
        seen: impressions of the rows: items, clicks, ratings.
        out: the arrays of a `simenv.envs.sessions.Observation`.
    """
    o_user, o_items, o_hclicks, o_hratings, o_slate, o_clicks, o_ratings, o_page = out
    seen_items, seen_clicks, seen_ratings = seen
    n_genres, h, k = genre_counts.shape[1], o_items.shape[1], o_slate.shape[1]
    for row in range(len(who)):
        if not rows[row]:
            continue
        user, newest = who[row, USER], who[row, NEWEST]
        # Two orders of summation, which differ in the last bit: the fast one is for every page, and the other keeps the
        # first observations of sessions what they have always been.
        total = _sum_in_order(genre_counts, row) if first else _sum_in_lanes(genre_counts, row)
        share = np.float32(1.0) / total if total > 0 else np.float32(0.0)
        for g in range(n_genres):
            o_user[row, g] = min(genre_counts[row, g] * share, np.float32(1.0))
        for j in range(profile.shape[1]):
            o_user[row, n_genres + j] = profile[user, j]
        items = seen_items[row, newest : newest + h]
        clicks = seen_clicks[row, newest : newest + h]
        ratings = seen_ratings[row, newest : newest + h]
        for back in range(h):
            o_items[row, back] = items[back]
        for back in range(h):
            o_hclicks[row, back] = clicks[back]
        for back in range(h):
            o_hratings[row, back] = ratings[back]
        o_page[row, 0] = who[row, PAGE]
        if first:
            for rank in range(k):
                o_slate[row, rank] = -1
            for rank in range(k):
                o_clicks[row, rank] = 0
            for rank in range(k):
                o_ratings[row, rank] = no_rating
        else:
            page_items = seen_items[row, newest : newest + k]
            page_clicks = seen_clicks[row, newest : newest + k]
            page_ratings = seen_ratings[row, newest : newest + k]
            for rank in range(k):
                o_slate[row, rank] = page_items[rank]
            for rank in range(k):
                o_clicks[row, rank] = page_clicks[rank]
            for rank in range(k):
                o_ratings[row, rank] = page_ratings[rank]
