"""Wrappers around `SlateEnv`: other actions, flat observations, masks, the hidden state, a log of events.

Built on Gymnasium's own wrapper classes; each works on anything that ends in a `SlateEnv`, the named tasks included,
and records its arguments, so that ``gym.make(env.spec)`` makes it again. `simenv.envs.vector_wrappers` has the same for
vectors. The functions `flat_features` and `nearest_items` also take batches, so that what was trained through a wrapper
can serve elsewhere (`recommenders.policy.PolicyRecommender`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from simenv.datasets.base import Dataset, FloatArray
from simenv.envs.errors import InvalidActionError, OptionError
from simenv.envs.sessions import Observed, Who
from simenv.envs.slate import SlateEnv
from simenv.envs.world import check_size
from simenv.events import Events
from simenv.metrics.reference import genre_weights, midrank_percentile

Retriever = Callable[[SlateEnv], NDArray[Any]]


def _slate_env(env: gym.Env[Any, Any]) -> SlateEnv:
    inner = env.unwrapped
    if not isinstance(inner, SlateEnv):
        raise OptionError(f"{type(inner).__name__}: expected a SlateEnv inside the wrapper")
    return inner


def flat_features(observation: Observed, dataset: Dataset, *, max_pages: int) -> FloatArray:
    """An observation, or a batch of them, as one vector: (F,) or (B, F), every entry in [0, 1].

    User features; genres of the impressions looked back on, and of those clicked, as shares of the history; genres of
    the last page, shown and clicked, as shares of the page; clicks of the last page, slot by slot; share of pages
    shown; the share of a life that is over, where the environment tells it. Items enter by their genres alone.

    Args:
        observation: of `SlateEnv`, or its batch.
        dataset: whose genres they are.
        max_pages: pages that count as 1.
    """
    weights = np.vstack([genre_weights(dataset.catalog.genres), np.zeros((1, dataset.catalog.n_genres), np.float32)])

    def shares(items: NDArray[Any], clicks: NDArray[Any]) -> list[NDArray[Any]]:
        genres = weights[items]  # -1 is the last row: nothing
        return [genres.mean(axis=-2), (genres * clicks[..., None]).mean(axis=-2)]

    parts = [
        observation["user"],
        *shares(observation["history_items"], observation["history_clicks"]),
        *shares(observation["slate"], observation["clicks"]),
        observation["clicks"],
        np.minimum(observation["page"] / max_pages, 1.0),
        *([observation["day"]] if "day" in observation else []),
    ]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def flat_space(env: Any) -> spaces.Space[Any]:
    """The space of `flat_features` for one session of a `SlateEnv` or `SlateVectorEnv`."""
    space: Any = env.single_observation_space if isinstance(env, gym.vector.VectorEnv) else env.observation_space
    blank = {name: np.zeros(one.shape, one.dtype) for name, one in space.items()}
    return spaces.Box(0.0, 1.0, flat_features(blank, env.dataset, max_pages=env.max_pages).shape, np.float32)


class FlatObservation(gym.ObservationWrapper[FloatArray, Any, Observed], RecordConstructorArgs):
    """The observation as one vector in [0, 1], see `flat_features`; for policies without an item embedding.

    For the Dict as it is, end to end, `gymnasium.wrappers.FlattenObservation` does.
    """

    def __init__(self, env: gym.Env[Observed, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        inner = _slate_env(env)
        self._dataset, self._max_pages = inner.dataset, inner.max_pages
        self.observation_space = flat_space(inner)

    def observation(self, observation: Observed) -> FloatArray:
        """The vector."""
        return flat_features(observation, self._dataset, max_pages=self._max_pages)


class SingleItem(gym.ActionWrapper[Any, np.int64, NDArray[np.int64]], RecordConstructorArgs):
    """``Discrete(n_items)`` for environments with one slot a page."""

    def __init__(self, env: gym.Env[Any, NDArray[np.int64]]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        size = env.action_space.shape
        if size != (1,):
            raise OptionError(f"SingleItem: slots {size}; expected an environment with slate_size=1")
        self.action_space = spaces.Discrete(int(env.action_space.nvec[0]))  # type: ignore[attr-defined]

    def action(self, action: Any) -> NDArray[np.int64]:
        """The item as a slate."""
        if isinstance(action, (bool, np.bool_)) or not isinstance(action, (int, np.integer, np.ndarray)):
            raise InvalidActionError(
                f"{action!r} ({type(action).__name__}) invalid: expected an item of {self.action_space}"
            )
        return np.asarray(action).reshape(1)


class CandidateSlates(gym.Wrapper[Any, NDArray[np.int64], Any, NDArray[np.int64]], RecordConstructorArgs):
    """Actions are places in a list of retrieved candidates: ``MultiDiscrete([n] * slate_size)``.

    Candidates are retrieved once for each page and are in ``info["candidates"]`` (n,), at `reset` too. With `features`
    the observation becomes a Dict of ``observation`` and ``candidates``, the items themselves.

    Args:
        env: the environment.
        n: candidates a page.
        retrieve: from the `SlateEnv` to (n_items,) scores; the n best allowed items are the candidates. Default: the
            visible popularity.
        features: whether the candidates are part of the observation.
    """

    def __init__(
        self, env: gym.Env[Any, Any], n: int = 50, *, retrieve: Retriever | None = None, features: bool = False
    ) -> None:
        RecordConstructorArgs.__init__(self, n=n, retrieve=retrieve, features=features)
        gym.Wrapper.__init__(self, env)
        inner = _slate_env(env)
        self._n = check_size("n", n, 1, inner.dataset.n_items)
        self._inner, self._features = inner, features
        self._retrieve: Retriever = visible_popularity if retrieve is None else retrieve
        self._candidates: NDArray[np.int64] = np.zeros(self._n, np.int64)
        self._retrieved_at = b""
        self.action_space = spaces.MultiDiscrete([self._n] * inner.sessions.slate_size)
        if features:
            items = spaces.Box(0, inner.dataset.n_items - 1, (self._n,), np.int64)
            self.observation_space = spaces.Dict({"observation": env.observation_space, "candidates": items})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a session, and retrieve for its first page."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_candidates(observation, info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Show the candidates at these places."""
        places = np.asarray(action)
        if (
            places.dtype.kind not in "iu"
            or places.shape != self.action_space.shape
            or not self.action_space.contains(places)
        ):
            raise InvalidActionError(f"{action!r} ({type(action).__name__}) invalid: expected {self.action_space}")
        if self._retrieved_at != self._inner.sessions.who.tobytes():  # a state has been set inside
            self._candidates = self._retrieved()
        observation, reward, terminated, truncated, info = self.env.step(self._candidates[places])
        observation, info = self._with_candidates(observation, info)
        return observation, reward, terminated, truncated, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Which candidate may stand in which slot, (slate_size * n,), as sb3-contrib's `MaskablePPO` reads it."""
        return slot_masks(self._inner.action_masks()[self._candidates], self._inner.sessions.slate_size)

    def _with_candidates(self, observation: Any, info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._candidates = self._retrieved()
        info["candidates"] = self._candidates.copy()
        if self._features:
            observation = {"observation": observation, "candidates": self._candidates.copy()}
        return observation, info

    def _retrieved(self) -> NDArray[np.int64]:
        self._retrieved_at = self._inner.sessions.who.tobytes()
        scores = np.where(self._inner.action_masks(), self._retrieve(self._inner), -np.inf)
        return np.argsort(-scores, kind="stable")[: self._n]


def visible_popularity(env: SlateEnv) -> NDArray[np.float32]:
    """What `CandidateSlates` retrieves by default: popularity as users see it, (n_items,)."""
    return env.sessions.popularity


def item_embedding(dataset: Dataset) -> FloatArray:
    """What is known of each item, one row of unit length each: genres, and popularity in the warm start."""
    popularity = midrank_percentile(dataset.interactions.item_counts())
    rows = np.column_stack([genre_weights(dataset.catalog.genres), popularity - 0.5]).astype(np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6))


def checked_embedding(embedding: FloatArray | None, dataset: Dataset) -> FloatArray:
    """An embedding of the data set's items, (n_items, d); by default `item_embedding`."""
    rows = item_embedding(dataset) if embedding is None else np.asarray(embedding, np.float32)
    if rows.ndim != 2 or len(rows) != dataset.n_items:
        raise OptionError(f"embedding has shape {rows.shape}; expected ({dataset.n_items}, d)")
    return rows


def nearest_items(
    proto: NDArray[Any], embedding: FloatArray, allowed: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """For each point of (..., slate_size, d) the nearest item by inner product, each item at most once a slate.

    Args:
        proto: (..., slate_size, d).
        embedding: (n_items, d).
        allowed: (..., n_items) items that may be chosen; all by default.

    Returns:
        items, (..., slate_size).
    """
    scores = np.asarray(proto) @ embedding.T
    if allowed is not None:
        scores = np.where(allowed[..., None, :], scores, -np.inf)
    items = np.empty(scores.shape[:-1], np.int64)
    for rank in range(scores.shape[-2]):
        items[..., rank] = scores[..., rank, :].argmax(axis=-1)
        np.put_along_axis(
            scores, np.broadcast_to(items[..., rank, None, None], (*scores.shape[:-1], 1)), -np.inf, axis=-1
        )
    return items


class ProtoAction(gym.ActionWrapper[Any, FloatArray, NDArray[np.int64]], RecordConstructorArgs):
    """A point in item space for every slot, ``Box(-1, 1, (slate_size, d))``; the nearest items are shown.

    After Dulac-Arnold et al. 2015, "Deep reinforcement learning in large discrete action spaces", with one neighbour.

    Args:
        env: the environment.
        embedding: (n_items, d) rows to be near to; default `item_embedding`.
    """

    def __init__(self, env: gym.Env[Any, NDArray[np.int64]], embedding: FloatArray | None = None) -> None:
        RecordConstructorArgs.__init__(self, embedding=embedding)
        gym.ActionWrapper.__init__(self, env)
        self._inner = _slate_env(env)
        self.embedding = checked_embedding(embedding, self._inner.dataset)
        shape = (self._inner.sessions.slate_size, self.embedding.shape[1])
        self.action_space = spaces.Box(-1.0, 1.0, shape, np.float32)

    def action(self, action: Any) -> NDArray[np.int64]:
        """The items nearest to the points."""
        points = np.asarray(action)
        if points.shape != self.action_space.shape or points.dtype.kind != "f" or not np.isfinite(points).all():
            raise InvalidActionError(f"{action!r} ({type(action).__name__}) invalid: expected {self.action_space}")
        return nearest_items(points, self.embedding, self._inner.action_masks())


def slot_masks(allowed: NDArray[np.bool_], slate_size: int) -> NDArray[np.bool_]:
    """What may stand in each slot, slot after slot, (..., slate_size * n), as sb3-contrib wants ``action_masks()``.

    Where nothing is allowed everything is, since some item must be shown; it acts as empty.

    Args:
        allowed: (..., n) items, or candidates.
        slate_size: slots.
    """
    possible = allowed | ~allowed.any(axis=-1, keepdims=True)
    return np.tile(possible, (*(1,) * (allowed.ndim - 1), slate_size))


class SlotMasks(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """`action_masks()` by slot, (slate_size * n_items,), for sb3-contrib's `MaskablePPO`; nothing else changes."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._inner = _slate_env(env)

    def action_masks(self) -> NDArray[np.bool_]:
        """See `slot_masks`."""
        return slot_masks(self._inner.action_masks(), self._inner.sessions.slate_size)


class ActionMask(gym.ObservationWrapper[dict[str, Any], Any, Any], RecordConstructorArgs):
    """Adds ``action_mask`` (n_items,) int8 to the observation: 0 where an item would act as an empty slot.

    The observation becomes a Dict of ``observation`` and ``action_mask``, as RLlib and PettingZoo write it;
    sb3-contrib's `MaskablePPO` wants `SlotMasks`.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self._inner = _slate_env(env)
        mask = spaces.Box(0, 1, (self._inner.dataset.n_items,), np.int8)
        self.observation_space = spaces.Dict({"observation": env.observation_space, "action_mask": mask})

    def observation(self, observation: Any) -> dict[str, Any]:
        """The observation with its mask."""
        return {"observation": observation, "action_mask": self._inner.action_masks().astype(np.int8)}


class HiddenState(gym.ObservationWrapper[dict[str, Any], Any, Any], RecordConstructorArgs):
    """Adds the true utility of every item, and what moves the user's mood, to the observation: for debugging only.

    ``utility`` (n_items,) and ``mood`` (2,), fatigue squashed to [0, 1) by f / (1 + f), and satisfaction.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self._inner = _slate_env(env)
        n = self._inner.dataset.n_items
        self.observation_space = spaces.Dict(
            {
                "observation": env.observation_space,
                "utility": spaces.Box(0.0, 1.0, (n,), np.float32),
                "mood": spaces.Box(0.0, 1.0, (2,), np.float32),
            }
        )

    def observation(self, observation: Any) -> dict[str, Any]:
        """The observation with what no policy may know."""
        fatigue, satisfaction = self._inner.sessions.mood[0].tolist()
        mood = np.array([fatigue / (1.0 + fatigue), satisfaction], np.float32)
        return {"observation": observation, "utility": self._inner.true_utility(), "mood": mood}

    def image(self) -> NDArray[np.uint8]:
        """The hidden state as an image, (120, n_items, 3) uint8: true utility by item, red where it acts as empty."""
        utility, allowed = self._inner.true_utility(), self._inner.action_masks()
        filled = np.arange(120)[::-1, None] < np.ceil(utility * 120)
        picture = np.full((120, len(utility), 3), 255, np.uint8)
        picture[filled] = (73, 80, 87)
        picture[filled & ~allowed] = (224, 49, 49)
        return picture


class EventRecorder(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Keeps every impression as `simenv.events.Events`; episodes count as rounds.

    `propensity` is what the policy set on the environment before the step, else NaN. The log is that of one (seed, arm,
    mode), and can be written with `simenv.events.EventWriter`.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._inner = _slate_env(env)
        self._popularity0 = midrank_percentile(self._inner.dataset.interactions.item_counts())
        self._pages: list[Events] = []
        self._episode = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode of the log."""
        self._episode += 1
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Show a page and log it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        inner = self._inner
        slate, k = inner.slate, inner.sessions.slate_size
        self._pages.append(
            Events(
                round=np.full(k, self._episode, np.int32),
                page=np.full(k, inner.sessions.who[0, Who.PAGE] - 1, np.int16),
                user=np.full(k, info["user"], np.int32),
                item=slate.astype(np.int32),
                rank=np.arange(k, dtype=np.int16),
                propensity=info.get("propensity", np.full(k, np.nan)).copy(),
                examined=info["examined"].copy(),
                clicked=inner.sessions.clicked[0].copy(),
                rating=inner.sessions.ratings[0].copy(),
                true_utility=info["utility"].copy(),
                best_utility=np.full(k, np.nan, np.float32),
                popularity0_pct=self._popularity0[slate],
            )
        )
        return observation, reward, terminated, truncated, info

    def events(self) -> Events:
        """Everything logged so far."""
        return Events.concat(self._pages) if self._pages else Events.empty()


def make_flat(**options: Any) -> gym.Env[Any, Any]:
    """``simenv/SlateFlat-v0``: a `SlateEnv` whose observation is one vector."""
    return FlatObservation(SlateEnv(**options))


def make_proto(**options: Any) -> gym.Env[Any, Any]:
    """``simenv/SlateProto-v0``: the same, and actions are points in item space."""
    return ProtoAction(make_flat(**options))


def make_masked(**options: Any) -> gym.Env[Any, Any]:
    """``simenv/SlateMasked-v0``: a vector, and `action_masks()` by slot."""
    return SlotMasks(make_flat(**options))
