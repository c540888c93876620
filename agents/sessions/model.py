"""ModelSessions: sessions of any user model, one call of its `respond` for each batch of pages.

It knows no user model by name: whatever a model remembers of its users, it restores and forgets itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agents.sessions.base import Sessions
from agents.sessions.rows import finish_rows, observe_rows, serve_rows
from simenv.datasets.base import FloatArray, LongArray
from simenv.envs.sessions import Observation, Parts, Who
from simenv.errors import ConfigError
from simenv.randomness import Key, Purpose, uniforms

if TYPE_CHECKING:
    from agents.base import UserModel


class ModelSessions(Sessions):
    """Sessions of any user model, through its `respond`; rows of the same episode and page are one batch.

    The model's own population changes, so two sessions cannot be of the same user: `n_rows` is at most half the users,
    and a user who is being served already makes way for the next free one. Draws are keyed by (seed of the first row,
    episode, page, user).
    """

    def __init__(self, users: UserModel, n_rows: int, **options: Any) -> None:
        if n_rows > 1 and 2 * n_rows > users.population.n_users:
            raise ConfigError(
                f"num_envs={n_rows}: {users.name} users are served one session at a time, and there are "
                f"{users.population.n_users}; expected at most {users.population.n_users // 2}"
            )
        super().__init__(users, n_rows, **options)
        self._start = users.state_dict()

    def begin(self, rows: NDArray[np.bool_], users: LongArray | None = None, *, keep: bool = False) -> None:
        chosen = np.full(self.n_rows, -1) if users is None else users.copy()
        taken = set(self.who[~rows, Who.USER].tolist())
        for row in np.flatnonzero(rows):
            user = int(chosen[row])
            if user < 0:
                key = Key(int(self.who[row, Who.SEED]), int(self.who[row, Who.EPISODE]) + 1)
                user = int(uniforms(key, Purpose.SESSION_USER, 0, 0) * self.n_users)
            while user in taken:
                user = (user + 1) % self.n_users
            taken.add(user)
            chosen[row] = user
        super().begin(rows, chosen, keep=keep)
        if keep:
            self.users.end_round(int(self.who[rows, Who.EPISODE].max()) - 1)
        else:
            self.users.forget(self.who[rows, Who.USER], self._start)

    def restore_world(self) -> None:
        super().restore_world()
        self.users.load_state_dict(self._start)

    def renew_popularity(self) -> None:
        np.copyto(self.click_counts, self.users.population.click_counts)
        super().renew_popularity()

    def satisfaction(self) -> FloatArray:
        return self.users.satisfaction[self.who[:, Who.USER]]

    def _rest(self, rows: LongArray, rounds: LongArray) -> None:
        population, users = self.users.population, self.who[rows, Who.USER]
        satiation, fatigue = population.satiation[users], population.fatigue[users]
        self.users.dynamics.rest(satiation, fatigue, rounds)
        population.satiation[users], population.fatigue[users] = satiation, fatigue

    def true_utility(self) -> FloatArray:
        return self.users.utility(self.who[:, Who.USER])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"users": self.users.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.users.load_state_dict(state["users"])

    def copy(self) -> ModelSessions:
        other = super().copy()
        assert isinstance(other, ModelSessions)
        other.users = self.users.twin()
        return other

    def _play(self, slates: LongArray, playing: NDArray[np.bool_], observation: Observation) -> int:
        bad = self.first_unknown(slates, playing)
        if bad >= 0:
            return bad
        served = np.empty(slates.shape, np.int32)
        serve_rows(playing, slates, self.bits, self.repeat == "never", np.zeros(self.n_items, np.bool_), served)
        population = self.users.population
        stamps = np.unique(self.who[playing][:, [Who.EPISODE, Who.PAGE]], axis=0)
        for episode, page in stamps:
            rows = np.flatnonzero(playing & (self.who[:, Who.EPISODE] == episode) & (self.who[:, Who.PAGE] == page))
            key = Key(int(self.who[0, Who.SEED]), int(episode), int(page))
            users = self.who[rows, Who.USER]
            responses = self.users.respond(users, served[rows], key)
            self.examined[rows], self.clicked[rows] = responses.examined, responses.clicked
            self.ratings[rows], self.utility[rows] = responses.ratings, np.nan_to_num(responses.utility)
            self.parts[rows, Parts.LEFT] = responses.exited
            self.bits[rows] = population.clicked_bits[users]
            self.genre_counts[rows] = population.genre_counts[users]
        left, page = self.parts[:, Parts.LEFT] > 0, (self.clicked, self.ratings, self.utility)
        finish_rows(playing, slates, left, self.no_rating, self.history_size, self.who, self._seen, page, self.parts)
        out = tuple(observation)
        observe_rows(playing, False, self.who, self.genre_counts, self._profile, self.no_rating, self._seen, out)
        return -1
