"""Population: every simulated user as rows of arrays - profile, state, memory.

The Population does not decide anything: a UserModel reads it to respond, and tells it what happened through
`absorb`. It knows nothing of recommenders, rounds other than as numbers, or logs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from agents.population.traits import Traits
from simenv.datasets.base import Catalog, Dataset, FloatArray, Tastes
from simenv.errors import ConfigError, require_memory
from simenv.randomness import Key
from simenv.slates import Responses

REPEAT = ("never", "cooldown", "always")
COOLDOWN_ROUNDS = 5
_SLOTS = COOLDOWN_ROUNDS + 1  # the rounds that still count, and the one being played


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamics:
    """How consumption changes a user; 0 switches a term off.

    Attributes:
        drift: share by which the taste vector moves towards a clicked item's direction, keeping its length (Dean and
            Morgenstern 2022, "Preference dynamics under personalized recommendations", Eq. 2).
        drift_skip: the same, away from an item that was examined and not clicked (Jiang et al. 2019).
        satiation_gain: satiation added to each genre of a clicked item, split over its genres (Leqi et al. 2021,
            "Rebounding bandits for modeling satiation effects").
        satiation_decay: share of satiation left after a round, in [0, 1).
        fatigue_gain: fatigue added per examined item (Cao, Sun and Shen 2020, "Fatigue-aware bandits").
        fatigue_recovery: share of fatigue that goes away between rounds, in [0, 1].
        satisfaction_memory: weight of the past in the moving average of page satisfaction, in [0, 1).
    """

    drift: float = 0.0
    drift_skip: float = 0.0
    satiation_gain: float = 0.0
    satiation_decay: float = 0.5
    fatigue_gain: float = 0.0
    fatigue_recovery: float = 1.0
    satisfaction_memory: float = 0.5

    def __post_init__(self) -> None:
        for name, upper in (
            ("drift", 1.0),
            ("drift_skip", 1.0),
            ("satiation_decay", 1.0),
            ("fatigue_recovery", 1.0),
            ("satisfaction_memory", 1.0),
            ("satiation_gain", np.inf),
            ("fatigue_gain", np.inf),
        ):
            value = getattr(self, name)
            if not 0.0 <= value <= upper:
                raise ConfigError(f"agent.{name}={value}: expected a number in [0, {upper}]")

    def rest(self, satiation: FloatArray, fatigue: FloatArray, rounds: int | NDArray[Any] = 1) -> None:
        """What time does to users, in place: satiation decays, fatigue recovers.

        Args:
            satiation: (..., n_genres).
            fatigue: (...).
            rounds: that pass, one number or (...).
        """
        satiation *= (np.float32(self.satiation_decay) ** np.asarray(rounds, np.float32))[..., None]
        fatigue *= np.float32(1.0 - self.fatigue_recovery) ** np.asarray(rounds, np.float32)

    @property
    def rates(self) -> tuple[float, float, float, float, float]:
        """What compiled passes need: drift, drift_skip, satiation_gain, fatigue_gain, satisfaction_memory."""
        taste = float(self.drift), float(self.drift_skip)
        return *taste, float(self.satiation_gain), float(self.fatigue_gain), float(self.satisfaction_memory)


class Population:
    """The users of a world.

    Attributes:
        traits: the fixed profile, arrays over users.
        vectors: (n_users, d) float32, the choice taste as it is now.
        items_t: (d, n_items) float32, the choice head's item vectors, item by item in a row.
        satiation: (n_users, n_genres) float32.
        fatigue, satisfaction: (n_users,) float32.
        genre_counts: (n_users, n_genres) float32, what was consumed, each item spread over its genres.
        clicked_bits: (n_users, ceil(n_items / 8)) packed bits of everything ever consumed, warm start included.
        recent_bits: (6, n_users, ...) packed bits of the clicks of this round and the last 5; only under
            ``repeat=cooldown``.
        click_counts: (n_items,) int64, warm start plus clicks: the popularity that users can see.
        memory_items, memory_clicked, memory_rating, memory_round, memory_page: (n_users, memory_size) ring of what
            each user examined; entry j of user u was written j-th modulo memory_size. Warm start has round -1.
        memory_count: (n_users,) events ever written.
    """

    _STATE = (
        "vectors",
        "satiation",
        "fatigue",
        "satisfaction",
        "genre_counts",
        "clicked_bits",
        "recent_bits",
        "click_counts",
        "memory_items",
        "memory_clicked",
        "memory_rating",
        "memory_round",
        "memory_page",
        "memory_count",
    )

    def __init__(
        self,
        dataset: Dataset,
        tastes: Tastes,
        *,
        dynamics: Dynamics | None = None,
        repeat: str = "never",
        memory_size: int = 32,
        traits: Traits | None = None,
    ) -> None:
        if repeat not in REPEAT:
            raise ConfigError(f"repeat={repeat}: expected one of {', '.join(REPEAT)}")
        self.dynamics = dynamics or Dynamics()
        self.repeat = repeat
        self.catalog: Catalog = dataset.catalog
        self.tastes = tastes
        self.traits = Traits.from_dataset(dataset) if traits is None else traits
        self.n_users, self.n_items = dataset.n_users, dataset.n_items
        self.memory_size = memory_size
        self.genre_ptr, self.genre_ids = _genre_lists(dataset.catalog)

        n, log = self.n_users, dataset.interactions
        require_memory(f"memory_size={memory_size}: the memories of {n:,} users", 15 * n * memory_size)
        n_genres = dataset.catalog.n_genres
        self.vectors: FloatArray = np.ascontiguousarray(tastes.choice.user_vectors, dtype=np.float32).copy()
        self.items_t: FloatArray = np.ascontiguousarray(tastes.choice.item_vectors.T, dtype=np.float32)
        self.satiation = np.zeros((n, n_genres), np.float32)
        self.fatigue = np.zeros(n, np.float32)
        self.satisfaction = np.full(n, 0.5, np.float32)
        self.genre_counts = np.zeros((n, n_genres), np.float32)
        n_bytes = -(-self.n_items // 8)
        self.clicked_bits = np.zeros((n, n_bytes), np.uint8)
        self.recent_bits = np.zeros((_SLOTS if repeat == "cooldown" else 0, n, n_bytes), np.uint8)
        self.click_counts = log.item_counts().astype(np.int64)
        shape = (n, memory_size)
        self.memory_items = np.full(shape, -1, np.int32)
        self.memory_clicked = np.zeros(shape, np.bool_)
        self.memory_rating = np.full(shape, np.nan, np.float32)
        self.memory_round = np.full(shape, -1, np.int32)
        self.memory_page = np.zeros(shape, np.int16)
        self.memory_count = np.zeros(n, np.int64)
        _remember_warm_start(
            log.users,
            log.items,
            log.ratings,
            self.genre_ptr,
            self.genre_ids,
            self.genre_counts,
            self.clicked_bits,
            self.memory_items,
            self.memory_clicked,
            self.memory_rating,
            self.memory_count,
        )

    # -- what the loop asks ------------------------------------------------------------------------------------

    def excluded(self, users: NDArray[Any]) -> NDArray[np.uint8] | None:
        """Packed bits of the items these users must not be shown now, (B, ceil(n_items / 8)); None = nothing."""
        if self.repeat == "never":
            return self.clicked_bits[users]
        if self.repeat == "cooldown":
            return np.asarray(np.bitwise_or.reduce(self.recent_bits[:, users], axis=0))
        return None

    def absorb(self, users: NDArray[Any], slates: NDArray[np.int32], responses: Responses, key: Key) -> None:
        """Let what happened on one page change the users: memory, taste, satiation, fatigue, satisfaction.

        Args:
            users: (B,) distinct rows.
            slates: (B, K) items, -1 = empty.
            responses: aligned with the slates.
            key: round and page of the page.
        """
        recent = self.recent_bits[key.round % _SLOTS] if len(self.recent_bits) else self.clicked_bits[:0]
        before = self.satisfaction[users]
        _absorb(
            np.asarray(users, np.int64),
            slates,
            responses.examined,
            responses.clicked,
            responses.ratings,
            responses.utility,
            key.round,
            key.page,
            self.genre_ptr,
            self.genre_ids,
            self.tastes.choice.item_vectors,
            self.dynamics.rates,
            self.vectors,
            self.satiation,
            self.fatigue,
            self.satisfaction,
            self.genre_counts,
            self.clicked_bits,
            recent,
            self.click_counts,
            self.memory_items,
            self.memory_clicked,
            self.memory_rating,
            self.memory_round,
            self.memory_page,
            self.memory_count,
        )
        if responses.satisfaction is not None:
            stated, weight = ~np.isnan(responses.satisfaction), self.dynamics.satisfaction_memory
            mood = (weight * before + (1.0 - weight) * responses.satisfaction).astype(np.float32)
            self.satisfaction[np.asarray(users)[stated]] = mood[stated]

    def end_round(self, round: int) -> None:
        """Time passes after `round`: satiation decays, fatigue recovers, the oldest cooldown slot empties."""
        self.dynamics.rest(self.satiation, self.fatigue)
        if len(self.recent_bits):
            self.recent_bits[(round + 1) % _SLOTS] = 0

    def recent(self, user: int, n: int | None = None) -> Iterator[dict[str, Any]]:
        """The last `n` remembered events of one user, newest first (all that are kept by default)."""
        count = int(self.memory_count[user])
        kept = min(count, self.memory_size)
        for back in range(1, (kept if n is None else min(n, kept)) + 1):
            slot = (count - back) % self.memory_size
            yield {
                "item": int(self.memory_items[user, slot]),
                "clicked": bool(self.memory_clicked[user, slot]),
                "rating": float(self.memory_rating[user, slot]),
                "round": int(self.memory_round[user, slot]),
                "page": int(self.memory_page[user, slot]),
                "event": count - back,
            }

    # -- snapshots ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copies of every array that changes."""
        return {name: getattr(self, name).copy() for name in self._STATE}

    def restore(self, users: NDArray[Any], state: dict[str, NDArray[Any]]) -> None:
        """Put some users' rows back to what `state_dict` gave; counts of items stay."""
        for name in self._STATE:
            if name == "recent_bits":
                self.recent_bits[:, users] = state[name][:, users]
            elif name != "click_counts":
                getattr(self, name)[users] = state[name][users]

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore what `state_dict` gave."""
        for name in self._STATE:
            current, stored = getattr(self, name), state[name]
            if current.shape != stored.shape or current.dtype != stored.dtype:
                raise ConfigError(
                    f"population state '{name}' is {stored.dtype}{stored.shape}; "
                    f"expected {current.dtype}{current.shape}"
                )
            current[...] = stored


def _genre_lists(catalog: Catalog) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """CSR lists of each item's genres: pointers (n_items + 1,), genre ids."""
    items, genre_ids = np.nonzero(catalog.genres)
    ptr = np.zeros(catalog.n_items + 1, np.int64)
    np.cumsum(np.bincount(items, minlength=catalog.n_items), out=ptr[1:])
    return ptr, genre_ids.astype(np.int64)


@nb.njit(cache=True, nogil=True)
def _remember_warm_start(
    users: Any,
    items: Any,
    ratings: Any,
    genre_ptr: Any,
    genre_ids: Any,
    genre_counts: Any,
    clicked_bits: Any,
    memory_items: Any,
    memory_clicked: Any,
    memory_rating: Any,
    memory_count: Any,
) -> None:  # pragma: no cover - compiled
    size = memory_items.shape[1]
    for row in range(len(users)):
        user, item = users[row], items[row]
        clicked_bits[user, item >> 3] |= np.uint8(1 << (item & 7))
        first, last = genre_ptr[item], genre_ptr[item + 1]
        for g in range(first, last):
            genre_counts[user, genre_ids[g]] += np.float32(1.0 / (last - first))
        slot = memory_count[user] % size
        memory_items[user, slot] = item
        memory_clicked[user, slot] = True
        memory_rating[user, slot] = ratings[row]
        memory_count[user] += 1


@nb.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _absorb(
    users: Any,
    slates: Any,
    examined: Any,
    clicked: Any,
    ratings: Any,
    utility: Any,
    round_: int,
    page: int,
    genre_ptr: Any,
    genre_ids: Any,
    item_vectors: Any,
    rates: Any,
    vectors: Any,
    satiation: Any,
    fatigue: Any,
    satisfaction: Any,
    genre_counts: Any,
    clicked_bits: Any,
    recent_bits: Any,
    click_counts: Any,
    memory_items: Any,
    memory_clicked: Any,
    memory_rating: Any,
    memory_round: Any,
    memory_page: Any,
    memory_count: Any,
) -> None:  # pragma: no cover - compiled
    fatigue_gain, satisfaction_memory = rates[3], rates[4]
    size = memory_items.shape[1]
    for row in range(len(users)):
        user = users[row]
        missed = 1.0
        for rank in range(slates.shape[1]):
            if not examined[row, rank]:
                continue
            item = slates[row, rank]
            click = clicked[row, rank]
            missed *= 1.0 - utility[row, rank]
            fatigue[user] += np.float32(fatigue_gain)
            slot = memory_count[user] % size
            memory_items[user, slot] = item
            memory_clicked[user, slot] = click
            memory_rating[user, slot] = ratings[row, rank]
            memory_round[user, slot] = round_
            memory_page[user, slot] = page
            memory_count[user] += 1
            live_through(
                user,
                item,
                click,
                rates,
                (item_vectors, genre_ptr, genre_ids),
                (vectors, satiation, genre_counts, clicked_bits),
                click_counts,
            )
            if click and recent_bits.shape[0] > 0:
                recent_bits[user, item >> 3] |= np.uint8(1 << (item & 7))
        satisfaction[user] = np.float32(
            satisfaction_memory * satisfaction[user] + (1.0 - satisfaction_memory) * (1.0 - missed)
        )


@nb.njit(inline="always", cache=True)
def live_through(
    row: int, item: int, click: bool, rates: Any, items: Any, rows: Any, click_counts: Any
) -> None:  # pragma: no cover - compiled
    """What one examined item does to the user in `row`: taste, and after a click satiation and counts.

    The one place where drift and satiation are written.

    Args:
        row: of `rows`.
        item: examined.
        click: whether it was clicked.
        rates: drift, drift_skip, satiation_gain, ... of `Dynamics`.
        items: choice vectors, genre lists.
        rows: vectors, satiation, genre counts, clicked bits.
        click_counts: (n_items,).
    """
    item_vectors, genre_ptr, genre_ids = items
    vectors, satiation, genre_counts, clicked_bits = rows
    drift, drift_skip, satiation_gain = rates[0], rates[1], rates[2]
    d = vectors.shape[1]
    rate = drift if click else -drift_skip
    if rate != 0.0:
        length, item_length = 0.0, 0.0
        for j in range(d):
            length += vectors[row, j] ** 2
            item_length += item_vectors[item, j] ** 2
        if length > 0.0 and item_length > 0.0:
            pull = rate * np.sqrt(length / item_length)
            moved = 0.0
            for j in range(d):
                value = (1.0 - rate) * vectors[row, j] + pull * item_vectors[item, j]
                vectors[row, j] = np.float32(value)
                moved += value * value
            if moved > 0.0:
                scale = np.float32(np.sqrt(length / moved))
                for j in range(d):
                    vectors[row, j] *= scale
    if click:
        click_counts[item] += 1
        clicked_bits[row, item >> 3] |= np.uint8(1 << (item & 7))
        first, last = genre_ptr[item], genre_ptr[item + 1]
        for g in range(first, last):
            share = np.float32(1.0 / (last - first))
            genre_counts[row, genre_ids[g]] += share
            satiation[row, genre_ids[g]] += np.float32(satiation_gain) * share
