"""Sessions: users of one world who are being served, each in a row of its own.

A session is a user who has come to the platform and is shown page after page. Its row holds a copy of the user's state,
so that any number of sessions can run at once, two of the same user included, over one world: one catalogue and one
popularity. How a page is answered is the subclasses' matter: `agents.sessions.choice` plays all rows in one compiled
pass, `agents.sessions.model` asks any other `UserModel`.

The module knows neither rewards' weights nor Gymnasium's spaces, and nothing of recommenders.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agents.sessions.rows import begin_rows, first_unknown, observe_rows
from simenv.datasets.base import FloatArray, Interactions, LongArray
from simenv.envs.sessions import Observation, Parts, Who
from simenv.errors import ConfigError
from simenv.metrics.profile import observable_profile
from simenv.metrics.reference import midrank_percentile
from simenv.numeric import sigmoid

if TYPE_CHECKING:
    from agents.base import UserModel

_STATE = (
    "who",
    "vectors",
    "satiation",
    "genre_counts",
    "mood",
    "bits",
    "seen_items",
    "seen_clicks",
    "seen_ratings",
    "click_counts",
    "popularity",
)
_ROWS = _STATE[1:9]  # what a user takes along from one session to the next


class Sessions(ABC):
    """Rows of sessions over one world.

    Draws are keyed by (seed of the row, purpose, user, episode, page, item), the hash of `simenv.randomness` with the
    episode as its round. Which user comes is drawn from (seed, `SESSION_USER`, 0, episode, 0, 0).

    Slots that repeat an item of the page, or under ``repeat=never`` an item the user has consumed before, act as empty:
    they are never examined, and their utility is 0.

    Args:
        users: a bound user model; its population as it is now is where every session starts.
        n_rows: sessions at once.
        slate_size: items a page.
        history_size: impressions an observation looks back.
        repeat: ``never`` or ``always``.
        every_utility: whether the utility of slots that were not examined is wanted, a third of the work; without it
            they and the page's utility are not known (0 and NaN).

    Attributes:
        who: (n_rows, len(Who)) int64.
        examined, clicked: (n_rows, K) bool, of the last page.
        ratings, utility: (n_rows, K) float32, of the last page; NaN = no rating; utility before the choice.
        parts: (n_rows, len(Parts)) of the last page: clicks; sum of ratings; mean utility of the slots; 1 if the user
            stays; 1 if the user leaves.
        no_rating: how an observation writes "no rating": one step below the scale.
    """

    def __init__(
        self,
        users: UserModel,
        n_rows: int,
        *,
        slate_size: int,
        history_size: int = 30,
        repeat: str = "never",
        every_utility: bool = True,
    ) -> None:
        population = users.population
        if repeat not in ("never", "always"):
            raise ConfigError(f"repeat={repeat}: expected never or always")
        self.users, self.n_rows = users, n_rows
        self.slate_size, self.history_size, self.repeat = slate_size, history_size, repeat
        self.every_utility = every_utility
        self.n_users, self.n_items = population.n_users, population.n_items
        self.scale = users.rating_scale
        self.no_rating = float(self.scale.low - self.scale.step)
        self._profile = observable_profile(users.warm_start, population.catalog.genres, self.scale)
        n_genres = population.genre_counts.shape[1]
        self.n_features = n_genres + self._profile.shape[1]
        self._home = (population.vectors.copy(), population.genre_counts.copy(), population.clicked_bits.copy())
        self._past = _newest(users.warm_start, population.n_users, history_size, self.no_rating)
        self._counts0 = population.click_counts.copy()
        self._popularity0 = midrank_percentile(self._counts0)

        d, n_bytes = population.vectors.shape[1], population.clicked_bits.shape[1]
        self.who = np.zeros((n_rows, len(Who)), np.int64)
        self.who[:, Who.EPISODE] = -1
        self.vectors = np.zeros((n_rows, d), np.float32)
        self.satiation = np.zeros((n_rows, n_genres), np.float32)
        self.genre_counts = np.zeros((n_rows, n_genres), np.float32)
        self.mood = np.zeros((n_rows, 2), np.float32)  # fatigue, satisfaction
        self.bits = np.zeros((n_rows, n_bytes), np.uint8)
        # Impressions are written from the end towards the front, so that the newest ones are one stretch in order; what
        # does not fit any more is moved back to the end.
        width = max(history_size, slate_size) + 2 * slate_size
        self.seen_items = np.full((n_rows, width), -1, np.int32)
        self.seen_clicks = np.zeros((n_rows, width), np.int8)
        self.seen_ratings = np.full((n_rows, width), self.no_rating, np.float32)
        self.click_counts = self._counts0.copy()
        self.popularity = self._popularity0.copy()
        self._kept: dict[int, dict[str, NDArray[Any]]] = {}

        shape = (n_rows, slate_size)
        self._flags, self._floats = np.zeros((2, *shape), np.bool_), np.zeros((2, *shape), np.float32)
        self.parts = np.zeros((n_rows, len(Parts)))
        self._everyone, self._nobody = np.ones(n_rows, np.bool_), np.full(n_rows, -1, np.int64)
        self._bind()

    # -- playing ----------------------------------------------------------------------------------------------

    def begin(self, rows: NDArray[np.bool_], users: LongArray | None = None, *, keep: bool = False) -> None:
        """Start the next session of some rows.

        Args:
            rows: (n_rows,) which.
            users: (n_rows,) who comes; None, or -1 in a row, = drawn.
            keep: users go on as their last session left them, one round later; False = as in the warm start.
        """
        if keep:
            self.leave(rows)
        begin_rows(rows, self._nobody if users is None else users, self.no_rating, self.who, *self._fresh)
        if keep:
            for row in np.flatnonzero(rows):
                self._recall(row)

    def leave(self, rows: NDArray[np.bool_]) -> None:
        """Keep the state in which the sessions of some rows leave their users, a round later, for `begin` to recall."""
        for row in np.flatnonzero(rows):
            if self.who[row, Who.EPISODE] >= 0:
                self._store(row)

    def come_back(self, rows: NDArray[np.bool_], rounds: LongArray) -> None:
        """Start the next session of some rows with the same users as their last one left them, some rounds later.

        Args:
            rows: (n_rows,) which.
            rounds: (n_rows,) that have passed.
        """
        self._rest(np.flatnonzero(rows), rounds[rows])
        self.who[rows, Who.EPISODE] += 1
        self.who[rows, Who.PAGE] = 0

    def satisfaction(self) -> FloatArray:
        """Moving average of page satisfaction of the user of each row, (n_rows,), in [0, 1]."""
        return self.mood[:, 1].copy()

    def restore_world(self) -> None:
        """The world as it was at first: popularity of the warm start, users who remember no session."""
        self._kept.clear()
        np.copyto(self.click_counts, self._counts0)
        np.copyto(self.popularity, self._popularity0)

    def renew_popularity(self) -> None:
        """Let everybody see the clicks so far."""
        self.popularity[...] = midrank_percentile(self.click_counts)

    def first_unknown(self, slates: LongArray, playing: NDArray[np.bool_]) -> int:
        """The flat index of the first slot of the rows in `playing` that names no item of the catalogue; -1 = none."""
        return int(first_unknown(slates, playing, self.n_items))

    def play(
        self, slates: LongArray, playing: NDArray[np.bool_] | None = None, *, out: Observation | None = None
    ) -> tuple[Observation, int]:
        """Show a page to every row, or to those in `playing`, and say what is observed of all.

        Args:
            slates: (n_rows, K) int64 items.
            playing: (n_rows,); rows left out see nothing, and `slates` is not read there.
            out: arrays of an earlier observation to write into; fresh ones by default.

        Returns:
            the observation, and -1; or, when a slate names an unknown item, the flat index of the first such slot,
            and nothing has happened.
        """
        observation = self.blank() if out is None else out
        if playing is None:
            return observation, self._play(slates, self._everyone, observation)
        bad = self._play(slates, playing, observation)
        self._observe(~playing, observation)
        return observation, bad

    def observe(self, *, out: Observation | None = None) -> Observation:
        """What is observed of every row now: before its first page, or after its last one."""
        observation = self.blank() if out is None else out
        new = self.who[:, Who.PAGE] == 0
        self._observe(new, observation)
        if not new.all():
            self._observe(~new, observation, first=False)
        return observation

    def blank(self) -> Observation:
        """Fresh, unset arrays of an observation."""
        n, h, k = self.n_rows, self.history_size, self.slate_size
        return Observation(
            user=np.empty((n, self.n_features), np.float32),
            history_items=np.empty((n, h), np.int32),
            history_clicks=np.empty((n, h), np.int8),
            history_ratings=np.empty((n, h), np.float32),
            slate=np.empty((n, k), np.int32),
            clicks=np.empty((n, k), np.int8),
            ratings=np.empty((n, k), np.float32),
            page=np.empty((n, 1), np.int32),
        )

    def allowed(self) -> NDArray[np.bool_]:
        """Items that do not act as empty, (n_rows, n_items)."""
        if self.repeat == "always":
            return np.ones((self.n_rows, self.n_items), np.bool_)
        return ~np.unpackbits(self.bits, axis=1, count=self.n_items, bitorder="little").view(np.bool_)

    def true_utility(self) -> FloatArray:
        """Utility of every item for the user of each row as it is now, (n_rows, n_items); the oracle's view."""
        head = self.users.population.tastes.choice
        logits = self.vectors @ head.item_vectors.T + head.user_bias[self.who[:, Who.USER], None] + head.item_bias
        return sigmoid(logits).astype(np.float32)

    # -- snapshots ---------------------------------------------------------------------------------------------

    def copy(self) -> Sessions:
        """The same sessions in the same state, going their own way over the same immutable arrays."""
        other = copy.copy(self)
        for name in (*_STATE, "_flags", "_floats", "parts"):
            setattr(other, name, getattr(self, name).copy())
        other._kept = dict(self._kept)
        other._bind()
        return other

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies and pickles hold arrays whole: views of them are taken anew."""
        self.__dict__.update(state)
        self._bind()

    def state_dict(self) -> dict[str, Any]:
        """Copies of everything that changes."""
        state: dict[str, Any] = {name: getattr(self, name).copy() for name in _STATE}
        state["page"] = (self._flags.copy(), self._floats.copy(), self.parts.copy())
        state["kept"] = dict(self._kept)  # the stored arrays are never written to
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was called, in a Sessions made with the same arguments."""
        for name in _STATE:
            current, stored = getattr(self, name), state[name]
            if current.shape != stored.shape:
                raise ConfigError(f"state '{name}' has shape {stored.shape}; expected {current.shape}")
            np.copyto(current, stored)
        flags, floats, parts = state["page"]
        np.copyto(self._flags, flags)
        np.copyto(self._floats, floats)
        np.copyto(self.parts, parts)
        self._kept = dict(state["kept"])

    # -- for subclasses ----------------------------------------------------------------------------------------

    def _bind(self) -> None:
        """Collect the arrays that keep their place between two calls: gathering them costs more than a page."""
        self.examined, self.clicked = self._flags
        self.ratings, self.utility = self._floats
        self._seen = (self.seen_items, self.seen_clicks, self.seen_ratings)
        self._state = (self.vectors, self.satiation, self.genre_counts, self.mood, self.bits)
        self._fresh = (self._state, self._seen, self._home, self._past)

    def _observe(self, rows: NDArray[np.bool_], observation: Observation, *, first: bool = True) -> None:
        """What is observed of some rows before their first page, or after a later one."""
        out = tuple(observation)  # Numba recognises a plain tuple sooner
        observe_rows(rows, first, self.who, self.genre_counts, self._profile, self.no_rating, self._seen, out)

    @abstractmethod
    def _play(self, slates: LongArray, playing: NDArray[np.bool_], observation: Observation) -> int:
        """See `play`."""

    def _store(self, row: Any) -> None:
        kept = {name: getattr(self, name)[row].copy() for name in _ROWS}
        self.users.dynamics.rest(kept["satiation"], kept["mood"][:1])
        self._kept[int(self.who[row, Who.USER])] = kept | {"newest": self.who[row, Who.NEWEST].copy()}

    def _rest(self, rows: LongArray, rounds: LongArray) -> None:
        satiation, mood = self.satiation[rows], self.mood[rows]
        self.users.dynamics.rest(satiation, mood[:, 0], rounds)
        self.satiation[rows], self.mood[rows] = satiation, mood

    def _recall(self, row: Any) -> None:
        kept = self._kept.get(int(self.who[row, Who.USER]))
        if kept is not None:
            for name in _ROWS:
                getattr(self, name)[row] = kept[name]
            self.who[row, Who.NEWEST] = kept["newest"]


def _newest(log: Interactions, n_users: int, n: int, no_rating: float) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Items and ratings of the last `n` interactions of each user, newest first, (n_users, n) each; -1 = none."""
    items, ratings = np.full((n_users, n), -1, np.int32), np.full((n_users, n), no_rating, np.float32)
    order = np.argsort(log.users, kind="stable")
    users, ends = log.users[order], np.cumsum(log.user_counts())
    back = ends[users] - 1 - np.arange(len(order))
    kept = back < n
    items[users[kept], back[kept]] = log.items[order[kept]]
    ratings[users[kept], back[kept]] = np.nan_to_num(log.ratings[order[kept]], nan=no_rating)
    return items, ratings
