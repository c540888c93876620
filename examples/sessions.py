"""What the examples have in common: a small world, flat features, and how a policy is judged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

import simenv  # noqa: F401 - makes simenv/... known to Gymnasium
from simenv.envs.vector import SlateVectorEnv
from simenv.envs.wrappers import flat_features
from simenv.metrics.formulas import gini

WORLD: dict[str, Any] = {"n_users": 200, "n_items": 100, "slate_size": 5, "max_pages": 10}


def make(num_envs: int, seed: int, **options: Any) -> SlateVectorEnv:
    """`num_envs` sessions of the world of this seed."""
    envs = gym.make_vec(
        "simenv/Slate-v0",
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        **(WORLD | {"seed": seed, "autoreset_mode": "SameStep"} | options),
    )
    assert isinstance(envs, SlateVectorEnv)
    return envs


def features(envs: SlateVectorEnv) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """From a batch of observations to (B, F)."""
    return partial(flat_features, dataset=envs.dataset, max_pages=envs.max_pages)


def judge(
    policy: Callable[[dict[str, np.ndarray]], np.ndarray], envs: SlateVectorEnv, *, seed: int, sessions: int = 2000
) -> dict[str, float]:
    """Reward and pages per session, and the Gini of impressions per item; luck is the same for every policy.

    Every row plays the same number of whole sessions: counting the sessions that end first would count short ones.
    """
    each = -(-sessions // envs.num_envs)
    observation, _ = envs.reset(seed=seed)
    finished = np.zeros(envs.num_envs, np.int64)
    rewards, pages, shown = 0.0, 0, np.zeros(envs.dataset.n_items, np.int64)
    while (finished < each).any():
        counted = finished < each
        actions = policy(observation)
        observation, reward, terminated, truncated, _ = envs.step(actions)
        rewards += float(reward[counted].sum())
        pages += int(counted.sum())
        shown += np.bincount(actions[counted].ravel(), minlength=len(shown))
        finished += terminated | truncated
    total = each * envs.num_envs
    return {"reward": rewards / total, "pages": pages / total, "gini": gini(shown)}
