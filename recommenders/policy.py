"""Any recommender as a policy of an environment, and any policy as a recommender.

The module knows the shape of an observation, not how users answer; a policy is any function from a batch of
observations to slates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from recommenders.base import Recommender, check_options
from simenv.candidates import Candidates
from simenv.datasets.base import Dataset, FloatArray, Interactions, LongArray
from simenv.envs.sessions import Who
from simenv.errors import ConfigError, MissingExtraError, RecommenderError
from simenv.metrics.profile import genre_shares, observable_profile
from simenv.metrics.reference import genre_counts
from simenv.numeric import places
from simenv.randomness import Key
from simenv.slates import SeesDataset, SeesTruth

Observation = dict[str, NDArray[Any]]
Policy = Callable[[Observation], NDArray[Any]]


class RecommenderPolicy:
    """A recommender that serves the sessions of a `SlateEnv` or `SlateVectorEnv`.

        policy = RecommenderPolicy(ALS(), env)
        action = policy(observation)

    It is fitted on the warm start, does not show an item twice in a session, nor one that would act as empty, and hands
    its propensities to the environment. Slots it leaves empty repeat the first item, which acts as empty.

    Args:
        recommender: unfitted. One that asks for the truth gets that of each session as it is at the moment.
        env: the environment, wrapped or not.
        seed: of what is random in it.
        learn_every: pages after which it is updated with the clicks since; None = it learns nothing from sessions.
    """

    def __init__(self, recommender: Recommender, env: Any, *, seed: int = 0, learn_every: int | None = None) -> None:
        if learn_every is not None:
            check_options("policy", low=1, learn_every=learn_every)
        self.recommender, self.env, self.seed, self.learn_every = recommender, env.unwrapped, seed, learn_every
        self.dataset: Dataset = self.env.dataset
        self._batched = isinstance(self.env, VectorEnv)
        n_rows, self._k = self.env.sessions.n_rows, self.env.sessions.slate_size
        self._shown = np.zeros((n_rows, self.dataset.n_items), np.bool_)
        self._calls = 0
        self._clicks: list[Interactions] = []
        self._rows: LongArray = np.zeros(self.dataset.n_users, np.int64)  # user -> row whose truth is asked for
        if isinstance(recommender, SeesDataset):
            recommender.bind_dataset(self.dataset)
        if isinstance(recommender, SeesTruth):
            recommender.bind_truth(self._truth)
        recommender.fit(self.dataset.interactions, key=Key(seed))

    def __call__(self, observation: Observation, _info: Any = None) -> NDArray[np.int64]:
        """The slate for this observation, (K,), or the slates of a batch, (B, K)."""
        pages = observation["page"].reshape(-1)
        self._learn(observation, pages)
        self._shown[pages == 0] = False
        users = self.env.sessions.who[:, Who.USER]
        out = self._shown | ~self.env.action_masks().reshape(self._shown.shape)
        candidates = Candidates.of(self.dataset.n_items, out=out)
        items = np.full((len(users), self._k), -1, np.int32)
        propensity = np.full(items.shape, np.nan)
        for rows in _distinct(users):  # two sessions of one user differ in state, so they are asked for one by one
            self._rows[users[rows]] = rows
            slates = self.recommender.recommend(
                users[rows], self._k, candidates.rows(rows), key=Key(self.seed, self._calls, 0)
            )
            items[rows] = slates.item_ids
            propensity[rows] = 1.0 if slates.propensity is None else slates.propensity
        self._calls += 1
        np.put_along_axis(self._shown, np.maximum(items, 0).astype(np.int64), True, axis=1)
        filled = np.where(items < 0, np.maximum(items[:, :1], 0), items).astype(np.int64)
        self.env.propensity = propensity if self._batched else propensity[0]
        return filled if self._batched else filled[0]

    def _truth(self, users: NDArray[Any]) -> FloatArray:
        utility = self.env.true_utility().reshape(self._shown.shape)
        return np.asarray(utility[self._rows[users]])

    def _learn(self, observation: Observation, pages: NDArray[Any]) -> None:
        if self.learn_every is None:
            return
        slates, clicks = (observation[name].reshape(len(pages), -1) for name in ("slate", "clicks"))
        row, rank = np.nonzero(clicks * (pages[:, None] > 0))
        ratings = observation["ratings"].reshape(slates.shape)[row, rank]
        self._clicks.append(
            Interactions(
                users=self.env.sessions.who[row, Who.USER].astype(np.int32),
                items=slates[row, rank].astype(np.int32),
                ratings=np.where(ratings < self.dataset.rating_scale.low, np.nan, ratings).astype(np.float32),
                times=np.full(len(row), self.dataset.interactions.times.max() + 1 + self._calls),
                n_users=self.dataset.n_users,
                n_items=self.dataset.n_items,
            )
        )
        if self._calls and self._calls % self.learn_every == 0:
            new = self._clicks[0].concat(*self._clicks[1:])
            self.recommender.update(new, key=Key(self.seed, self._calls))
            self._clicks = []


class PolicyRecommender(Recommender):
    """A policy as a recommender, so that a trained agent can be an arm of any experiment.

    The policy sees what it would see before the first page of a `SlateEnv` session of that user: features and history
    from the log so far. Its slate is served without the items that must not be shown; slots that are left over, or that
    it did not fill, go to the most popular items. What was shown without being clicked is not in a log, nor what
    happened on earlier pages of the same session.

    Args:
        policy: from a batch of observations, a dict of (B, ...) arrays, to slates (B, K) of items.
        history_size: as of the environment it was trained in.
        slate_size: likewise; the shape of ``slate``, ``clicks`` and ``ratings`` in the observation.
    """

    name = "policy"

    def __init__(self, policy: Policy, *, history_size: int = 30, slate_size: int = 10) -> None:
        if not callable(policy):
            raise ConfigError(f"policy: got {type(policy).__name__}; expected a function of observations")
        check_options(self.name, low=1, history_size=history_size, slate_size=slate_size)
        self.policy, self.history_size, self.slate_size = policy, history_size, slate_size
        self._dataset: Dataset | None = None

    def bind_dataset(self, dataset: Dataset) -> None:
        """Where genres, rating scale and the users' profiles come from."""
        self._dataset = dataset
        self._profile = observable_profile(dataset.interactions, dataset.catalog.genres, dataset.rating_scale)

    def _fit(self, log: Interactions, key: Key) -> None:
        if self._dataset is None:
            raise RecommenderError(f"{self.name}: fit before bind_dataset; the policy sees the items' genres")
        self._shares = genre_shares(
            genre_counts(log.users, log.items, self._dataset.catalog.genres, log.n_users).astype(np.float32)
        )
        order = np.argsort(log.users, kind="stable")
        self._items, self._ratings = log.items[order], log.ratings[order]
        self._ends = np.cumsum(log.user_counts())
        self._starts = self._ends - log.user_counts()

    def _score(self, users: LongArray) -> NDArray[Any]:
        slates = np.asarray(self.policy(self.observe(users)))
        if slates.ndim != 2 or len(slates) != len(users) or slates.dtype.kind not in "iu":
            raise RecommenderError(
                f"{self.name}: the policy returned {slates.dtype} {slates.shape}; expected items, ({len(users)}, K)"
            )
        if slates.size and (slates.min() < 0 or slates.max() >= self.n_items):
            raise RecommenderError(f"{self.name}: the policy chose an item outside 0 to {self.n_items - 1}")
        scores = np.tile(self._popularity / (1.0 + self._popularity.max()), (len(users), 1))
        for rank in range(slates.shape[1] - 1, -1, -1):  # of duplicates the first copy counts
            np.put_along_axis(scores, slates[:, rank : rank + 1], np.float32(1 + slates.shape[1] - rank), axis=1)
        return scores

    def observe(self, users: NDArray[Any]) -> Observation:
        """The observation of a first page for each of these users, as `SlateEnv.reset` would give it."""
        assert self._dataset is not None
        n, k, scale = len(users), self.slate_size, self._dataset.rating_scale
        nothing = np.float32(scale.low - scale.step)
        event = self._ends[users][:, None] - 1 - np.arange(self.history_size)
        past = event >= self._starts[users][:, None]
        ratings = np.where(past, self._ratings[np.maximum(event, 0)], np.nan)
        return {
            "user": np.hstack([self._shares[users], self._profile[users]]).astype(np.float32),
            "history_items": np.where(past, self._items[np.maximum(event, 0)], -1).astype(np.int32),
            "history_clicks": past.astype(np.int8),
            "history_ratings": np.where(np.isnan(ratings), nothing, ratings).astype(np.float32),
            "slate": np.full((n, k), -1, np.int32),
            "clicks": np.zeros((n, k), np.int8),
            "ratings": np.full((n, k), nothing, np.float32),
            "page": np.zeros((n, 1), np.int32),
        }


def sb3_policy(
    path: str, *, algorithm: str = "PPO", observe: Policy | None = None, act: Policy | None = None
) -> Policy:
    """A model saved by Stable-Baselines3, as a policy for `PolicyRecommender`; deterministic.

    Args:
        path: of the zip file.
        algorithm: the class's name in stable_baselines3.
        observe: turns a batch of observations into what the model was trained on, if it saw them through wrappers.
        act: turns the model's actions into slates, likewise.

    Raises:
        MissingExtraError: stable-baselines3 is not installed.
    """
    try:
        import stable_baselines3
    except ModuleNotFoundError as error:
        raise MissingExtraError("sb3_policy", "rl") from error
    if not hasattr(stable_baselines3, algorithm):
        raise ConfigError(f"algorithm={algorithm!r}: stable_baselines3 has no such class")
    model = getattr(stable_baselines3, algorithm).load(path)

    def policy(observation: Any) -> NDArray[Any]:
        seen = observation if observe is None else observe(observation)
        actions = model.predict(seen, deterministic=True)[0]
        return actions if act is None else act(actions)

    return policy


def _distinct(users: NDArray[Any]) -> list[LongArray]:
    """The rows in as few parts as it takes for no user to be twice in one."""
    order = np.argsort(users, kind="stable")
    wave = places(np.unique(users, return_counts=True)[1])
    return [order[wave == n] for n in range(int(wave.max()) + 1)] if len(users) else []
