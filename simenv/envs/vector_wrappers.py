"""The wrappers of `simenv.envs.wrappers` for `SlateVectorEnv`: one NumPy call for all sessions.

They work in every autoreset mode: what `info` keeps of a session that has ended, ``final_obs``, is turned too. The
module does not know how users answer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from simenv.datasets.base import FloatArray
from simenv.envs.errors import InvalidActionError, OptionError
from simenv.envs.vector import SlateVectorEnv
from simenv.envs.world import check_size
from simenv.envs.wrappers import checked_embedding, flat_features, flat_space, nearest_items, slot_masks

Envs = gym.vector.VectorEnv[Any, Any, Any]
Retriever = Callable[[SlateVectorEnv], NDArray[Any]]


def slate_vector_env(env: Envs) -> SlateVectorEnv:
    """The native vector inside wrappers.

    Raises:
        OptionError: there is another.
    """
    inner = env.unwrapped
    if not isinstance(inner, SlateVectorEnv):
        raise OptionError(f"{type(inner).__name__}: expected a SlateVectorEnv inside the wrapper")
    return inner


def stacked(rows: list[Any]) -> Any:
    """Observations of single sessions as one batch."""
    if isinstance(rows[0], dict):
        return {name: stacked([row[name] for row in rows]) for name in rows[0]}
    return np.stack(rows)


def at(batch: Any, row: Any) -> Any:
    """One row of a batch of observations, or some."""
    return {name: at(values, row) for name, values in batch.items()} if isinstance(batch, dict) else batch[row]


class _Wrapper(gym.vector.VectorWrapper[Any, Any, Any, Any, Any]):
    """Turns observations, final ones included, and actions; a subclass writes what it changes."""

    def __init__(self, env: Envs) -> None:
        super().__init__(env)
        self._inner = slate_vector_env(env)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin sessions, see `SlateVectorEnv.reset`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self.observations(observation, info), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Show a page to every row, see `SlateVectorEnv.step`."""
        observation, rewards, terminated, truncated, info = self.env.step(self.actions(actions))
        if "final_obs" in info:
            rows = np.flatnonzero(info["_final_obs"])
            last = self.final_observations(stacked([info["final_obs"][row] for row in rows]), rows)
            info["final_obs"] = np.full(self.num_envs, None, object)
            for place, row in enumerate(rows):
                info["final_obs"][row] = at(last, place)
        return self.observations(observation, info), rewards, terminated, truncated, info

    def observations(self, observations: Any, info: dict[str, Any]) -> Any:
        """The batch as the wrapper shows it."""
        return observations

    def final_observations(self, observations: Any, rows: NDArray[np.int64]) -> Any:
        """The last observations of the sessions of some rows, likewise."""
        return observations

    def actions(self, actions: Any) -> Any:
        """Slates (B, K) for what the wrapper is given."""
        return actions


class FlatObservation(_Wrapper):
    """One vector in [0, 1] a session, see `simenv.envs.wrappers.flat_features`."""

    def __init__(self, env: Envs) -> None:
        super().__init__(env)
        self.single_observation_space = flat_space(self._inner)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def observations(self, observations: Any, info: dict[str, Any]) -> FloatArray:
        """(B, F)."""
        return flat_features(observations, self._inner.dataset, max_pages=self._inner.max_pages)

    def final_observations(self, observations: Any, rows: NDArray[np.int64]) -> FloatArray:
        """(len(rows), F)."""
        return self.observations(observations, {})


class _Actions(_Wrapper):
    """A wrapper with an action space of its own."""

    def _set_actions(self, space: spaces.Space[Any]) -> None:
        self.single_action_space, self.action_space = space, batch_space(space, self.num_envs)

    def _checked(self, actions: Any, kinds: str) -> NDArray[Any]:
        """The actions as an array of the action space, of a dtype of these kinds."""
        given, shape = np.asarray(actions), self.action_space.shape
        if given.dtype.kind not in kinds or given.shape != shape or not np.isfinite(given).all():
            raise InvalidActionError(f"{given!r} invalid: expected {self.action_space!r:.90}, shape {shape}")
        return given

    @abstractmethod
    def actions(self, actions: Any) -> NDArray[np.int64]:
        """Slates (B, K) for what the wrapper is given."""


class SingleItem(_Actions):
    """``Discrete(n_items)`` a row, for one slot a page."""

    def __init__(self, env: Envs) -> None:
        super().__init__(env)
        if self._inner.single_action_space.shape != (1,):
            shape = self._inner.single_action_space.shape
            raise OptionError(f"SingleItem: slots {shape}; expected an environment with slate_size=1")
        self._set_actions(spaces.Discrete(self._inner.dataset.n_items))

    def actions(self, actions: Any) -> NDArray[np.int64]:
        """(B,) to (B, 1)."""
        return np.asarray(self._checked(actions, "iu")[:, None])


class ProtoAction(_Actions):
    """A point in item space for every slot, ``Box(-1, 1, (slate_size, d))`` a row; the nearest items are shown.

    Args:
        env: the vector.
        embedding: (n_items, d) rows to be near to; default `simenv.envs.wrappers.item_embedding`.
    """

    def __init__(self, env: Envs, embedding: FloatArray | None = None) -> None:
        super().__init__(env)
        self.embedding = checked_embedding(embedding, self._inner.dataset)
        self._set_actions(spaces.Box(-1.0, 1.0, (self._inner.sessions.slate_size, self.embedding.shape[1]), np.float32))

    def actions(self, actions: Any) -> NDArray[np.int64]:
        """(B, K, d) to (B, K)."""
        return nearest_items(self._checked(actions, "f"), self.embedding, self._inner.action_masks())


class CandidateSlates(_Actions):
    """Actions are places in each row's list of retrieved candidates, see `simenv.envs.wrappers.CandidateSlates`.

    With `features` the last observation of a session that has ended has the candidates of its last page.

    Args:
        env: the vector.
        n: candidates a page.
        retrieve: from the `SlateVectorEnv` to scores (B, n_items), or (n_items,) for all rows; default popularity.
        features: whether the candidates are part of the observation.
    """

    def __init__(self, env: Envs, n: int = 50, *, retrieve: Retriever | None = None, features: bool = False) -> None:
        super().__init__(env)
        inner = self._inner
        self._n, self._features = check_size("n", n, 1, inner.dataset.n_items), features
        self._retrieve: Retriever = visible_popularity if retrieve is None else retrieve
        self._candidates = np.zeros((self.num_envs, self._n), np.int64)
        self._set_actions(spaces.MultiDiscrete([self._n] * inner.sessions.slate_size))
        if features:
            items = spaces.Box(0, inner.dataset.n_items - 1, (self._n,), np.int64)
            whole = spaces.Dict({"observation": env.single_observation_space, "candidates": items})
            self.single_observation_space, self.observation_space = whole, batch_space(whole, self.num_envs)

    def action_masks(self) -> NDArray[np.bool_]:
        """(B, slate_size * n), see `simenv.envs.wrappers.slot_masks`."""
        allowed = np.take_along_axis(self._inner.action_masks(), self._candidates, axis=1)
        return slot_masks(allowed, self._inner.sessions.slate_size)

    def actions(self, actions: Any) -> NDArray[np.int64]:
        """Places (B, K) to items (B, K)."""
        places = self._checked(actions, "iu")
        if not ((places >= 0) & (places < self._n)).all():
            raise InvalidActionError(f"{places!r} invalid: expected places 0 to {self._n - 1}")
        return np.take_along_axis(self._candidates, places.astype(np.int64), axis=1)

    def observations(self, observations: Any, info: dict[str, Any]) -> Any:
        """With the candidates retrieved for the page to come."""
        scores = np.where(self._inner.action_masks(), self._retrieve(self._inner), -np.inf)
        self._candidates = np.argsort(-scores, axis=1, kind="stable")[:, : self._n]
        info |= {"candidates": self._candidates.copy(), "_candidates": np.ones(self.num_envs, np.bool_)}
        return self._with(observations, slice(None))

    def final_observations(self, observations: Any, rows: NDArray[np.int64]) -> Any:
        """With those of the last page."""
        return self._with(observations, rows)

    def _with(self, observations: Any, rows: Any) -> Any:
        if not self._features:
            return observations
        return {"observation": observations, "candidates": self._candidates[rows].copy()}


def visible_popularity(env: SlateVectorEnv) -> NDArray[np.float32]:
    """What `CandidateSlates` retrieves by default: popularity as users see it, (n_items,)."""
    return env.sessions.popularity


class SlotMasks(_Wrapper):
    """`action_masks()` by slot, (B, slate_size * n_items), for sb3-contrib's `MaskablePPO`; nothing else changes."""

    def action_masks(self) -> NDArray[np.bool_]:
        """See `simenv.envs.wrappers.slot_masks`."""
        return slot_masks(self._inner.action_masks(), self._inner.sessions.slate_size)


def make_flat_vec(num_envs: int = 1, **options: Any) -> Envs:
    """``simenv/SlateFlat-v0`` as a vector of sessions."""
    return FlatObservation(SlateVectorEnv(num_envs, **options))


def make_proto_vec(num_envs: int = 1, **options: Any) -> Envs:
    """``simenv/SlateProto-v0`` as a vector of sessions."""
    return ProtoAction(make_flat_vec(num_envs, **options))


def make_masked_vec(num_envs: int = 1, **options: Any) -> Envs:
    """``simenv/SlateMasked-v0`` as a vector of sessions."""
    return SlotMasks(make_flat_vec(num_envs, **options))
