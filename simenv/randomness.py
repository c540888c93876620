"""Keyed random numbers: one 64-bit hash of (seed, purpose, user, round, page, item) per draw.

A draw depends on what it is for and on nothing else, so that arms share their luck, the order of users does not
matter and a batch can be split anywhere. The mixing function is the finaliser of SplitMix64 (Steele, Lea and
Flood 2014, "Fast splittable pseudorandom number generators"), folded once per key field.

The module does not know what a user or an item is: fields are integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import ArrayLike, NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST_MIX = np.uint64(0xBF58476D1CE4E5B9)
SECOND_MIX = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S11 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(11)
TO_UNIT = 2.0**-53


class Purpose(IntEnum):
    """What a draw decides. Numbers are part of the hash: never renumber, only append."""

    ACTIVE = 1
    EXAMINE = 2
    CLICK = 3
    RATING = 4
    EXIT = 5
    RANDOM_SLATE = 6
    EXPLORE = 7
    ARRIVAL = 8
    UNAIDED = 9
    ADOPT = 10
    PAIRS = 11
    FIT = 12
    SESSION_USER = 13
    PLACKETT_LUCE = 14
    RATING_SECOND = 15
    PROMPT_ORDER = 16
    DRIFT = 17
    AUDIT = 18
    REVIEW = 19
    FAIR_PROMPT = 20
    SHOTS = 21
    CANDIDATE_ORDER = 22
    RETURN = 23
    ASSIGN = 24
    POST = 25
    CHAT = 26


@dataclass(frozen=True, slots=True)
class Key:
    """Where in a run a draw happens: world seed, round and page (both from 0).

    `first` is the row, in the whole population, of the first user of a shard of it (`simenv.shards`): draws are keyed
    by `first` plus the user's row in the shard, and so do not depend on how the population is cut.
    """

    seed: int
    round: int = 0
    page: int = 0
    first: int = 0

    def at(self, **changes: int) -> Key:
        """The same key with some fields changed."""
        return replace(self, **changes)


@nb.njit(inline="always", cache=True)
def fold(state: Any, value: Any) -> Any:  # pragma: no cover - compiled
    """One step of the hash, on uint64 scalars: absorb `value` into `state`."""
    x = np.uint64(state) ^ (np.uint64(value) * GOLDEN + GOLDEN)
    x = (x ^ (x >> _S30)) * FIRST_MIX
    x = (x ^ (x >> _S27)) * SECOND_MIX
    return x ^ (x >> _S31)


@nb.njit(inline="always", cache=True)
def to_uniform(state: Any) -> Any:  # pragma: no cover - compiled
    """The upper 53 bits as a float64 in [0, 1)."""
    return (state >> _S11) * TO_UNIT


def _as_uint64(value: ArrayLike) -> NDArray[np.uint64]:
    return np.asarray(value).astype(np.int64).astype(np.uint64)


def _fold_array(state: NDArray[np.uint64], value: ArrayLike) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        x = state ^ (_as_uint64(value) * GOLDEN + GOLDEN)
        x = (x ^ (x >> _S30)) * FIRST_MIX
        x = (x ^ (x >> _S27)) * SECOND_MIX
        return np.asarray(x ^ (x >> _S31))


def hash64(
    seed: ArrayLike, purpose: ArrayLike, user: ArrayLike, round: ArrayLike, page: ArrayLike, item: ArrayLike
) -> NDArray[np.uint64]:
    """The written hash: integers (negative ones as two's complement), broadcast together, to uint64."""
    state = np.zeros((), dtype=np.uint64)
    for field in (seed, purpose, user, round, page, item):
        state = _fold_array(state, field)
    return state


def uniforms(key: Key, purpose: Purpose, users: ArrayLike, items: ArrayLike) -> NDArray[np.float64]:
    """Uniforms in [0, 1), one per broadcast (user, item) pair.

    Args:
        key: seed, round and page.
        purpose: what is decided.
        users, items: integer arrays that broadcast, e.g. (B, 1) and (B, K).
    """
    rows = np.asarray(users) + key.first if key.first else users
    state = hash64(key.seed, int(purpose), rows, key.round, key.page, items)
    return np.asarray((state >> _S11) * TO_UNIT)


def prefix(seed: int, purpose: Purpose) -> np.uint64:
    """The hash state after seed and purpose, from which compiled kernels go on with `fold`."""
    return np.uint64(_fold_array(_fold_array(np.zeros((), dtype=np.uint64), seed), int(purpose)))


def generator(key: Key, purpose: Purpose) -> np.random.Generator:
    """A NumPy generator for bulk work outside the loop (fitting, making worlds), seeded by the key."""
    return np.random.default_rng([key.seed & 0xFFFFFFFFFFFFFFFF, int(purpose), key.round, key.page])
