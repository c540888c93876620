"""Hearsay: what friends did lately, as they remember it.

Nothing is kept for it: every user's memory holds what was clicked in which round. The module does not know what hearing
of an item does to anybody, nor what friends say in words.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from agents.population.rows import Population
from simenv.datasets.base import LongArray
from simenv.datasets.friends import Friends
from simenv.heard import Heard
from simenv.randomness import Key


def friends_who_clicked(
    population: Population, friends: Friends, users: LongArray, slates: NDArray[np.int32], round: int, rounds: int
) -> NDArray[np.int32]:
    """How many friends of each user clicked each item of a page in the last rounds, (B, K).

    Only rounds before this one count, so that nothing depends on the order in which users are served, and not the warm
    start. A friend counts once for an item, and as far as his memory goes.

    Args:
        population: whose memories are read.
        friends: the graph.
        users: (B,) rows.
        slates: (B, K) items, -1 = empty.
        round: the one being played.
        rounds: how many before it count.
    """
    out = np.zeros(slates.shape, np.int32)
    _friends_who_clicked(*_picks(population, friends, users, slates, round, rounds), out, _NOBODY)
    return out


def heard_on(
    population: Population, friends: Friends, users: LongArray, slates: NDArray[np.int32], key: Key, rounds: int
) -> Heard:
    """Who was heard to have clicked what is on these pages: a row for each click that `friends_who_clicked` counts.

    Arguments as there; `key` has round and page.
    """
    given = _picks(population, friends, users, slates, key.round, rounds)
    counts = np.zeros(slates.shape, np.int32)
    _friends_who_clicked(*given, counts, _NOBODY)
    n = int(counts.sum())
    row, speaker, item = (np.empty(n, np.int32) for _ in range(3))
    rating = np.empty(n, np.float32)
    _friends_who_clicked(*given, counts, (row, speaker, item, rating, population.memory_rating))
    return Heard(
        round=np.full(n, key.round, np.int32),
        page=np.full(n, key.page, np.int16),
        user=users[row].astype(np.int32),
        speaker=speaker,
        kind=np.zeros(n, np.int8),
        item=item,
        rating=rating,
        text=np.zeros(n, "U1"),
    )


_NOBODY: Any = (*(np.empty(0, np.int32) for _ in range(3)), np.empty(0, np.float32), np.empty((0, 0), np.float32))


def _picks(
    population: Population, friends: Friends, users: LongArray, slates: NDArray[np.int32], round: int, rounds: int
) -> tuple[Any, Any, Any, Any, Any, Any, Any, int, int]:
    memory = population.memory_items, population.memory_clicked, population.memory_round
    return users, slates, friends.ptr, friends.ids, *memory, max(0, round - rounds), round


@nb.njit(cache=True, nogil=True)
def _friends_who_clicked(
    users: Any,
    slates: Any,
    ptr: Any,
    ids: Any,
    items: Any,
    clicked: Any,
    rounds: Any,
    first: int,
    end: int,
    out: Any,
    told: Any,
) -> None:  # pragma: no cover - compiled
    """Count into `out`; where there is room, a row for each count into the first four arrays of `told`, too."""
    row_out, speaker_out, item_out, rating_out, ratings = told
    told_by, n = np.full(slates.shape[1], -1, np.int64), 0
    for row in range(len(users)):
        told_by[:] = -1
        for friend in ids[ptr[users[row]] : ptr[users[row] + 1]]:
            for slot in range(items.shape[1]):
                if not clicked[friend, slot] or rounds[friend, slot] < first or rounds[friend, slot] >= end:
                    continue
                for rank in range(slates.shape[1]):
                    if slates[row, rank] == items[friend, slot] and told_by[rank] != friend:
                        told_by[rank] = friend
                        out[row, rank] += 1
                        if len(row_out):
                            row_out[n], speaker_out[n], item_out[n] = row, friend, slates[row, rank]
                            rating_out[n] = ratings[friend, slot]
                            n += 1


def said(population: Population, friends: Friends, user: int, round: int, rounds: int) -> list[tuple[int, int, float]]:
    """What friends have to tell of the last rounds: (friend, item, rating) of what they clicked, the newest first
    and friends in turn; a rating of NaN is none.

    Arguments as of `friends_who_clicked`.
    """
    told = []
    for friend in friends[user].tolist():
        own = [
            event
            for event in population.recent(friend)
            if event["clicked"] and max(0, round - rounds) <= event["round"] < round
        ]
        told += [(turn, friend, event["item"], event["rating"]) for turn, event in enumerate(own)]
    return [(friend, item, rating) for _, friend, item, rating in sorted(told, key=lambda each: each[:2])]
