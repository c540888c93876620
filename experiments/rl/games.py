"""What the benchmark is played on: the environments, what is known of them exactly, and how a policy is judged.

The module knows no learner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import simenv  # noqa: F401 - makes simenv/... known to Gymnasium
from simenv.envs.retention import SMALL, small_value
from simenv.envs.sessions import Observed
from simenv.envs.tasks import TASKS
from simenv.envs.vector import SlateVectorEnv
from simenv.metrics.formulas import gini

EXACT = ("random", "popularity", "myopic", "oracle", "optimal")  # what is computed rather than played, where it can be
HELD_OUT = 10_000_000  # the seed of sessions that no agent is trained on
Policy = Callable[[SlateVectorEnv, Observed], NDArray[np.int64]]  # from a batch of observations to slates (B, K)


@dataclass(frozen=True, kw_only=True)
class Game:
    """One environment of the benchmark.

    Attributes:
        name: of the id ``simenv/<name>-v0``.
        options: of the environment.
        value: the exact return of one of `EXACT`; None = nothing is known but by playing.
        own_world: whether each seed plays a world of its own; else only agents and luck differ.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    value: Callable[[str], float] | None = None
    own_world: bool = False

    def open(self, num_envs: int, seed: int) -> SlateVectorEnv:
        """Episodes side by side, each beginning anew in the step that ends it."""
        options = self.options | ({"seed": seed} if self.own_world else {})
        envs = gym.make_vec(
            f"simenv/{self.name}-v0",
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            autoreset_mode="SameStep",
            **options,
        )
        assert isinstance(envs, SlateVectorEnv)
        return envs


SLATE = Game(name="Slate", options={"n_users": 200, "n_items": 100, "slate_size": 5, "max_pages": 10}, own_world=True)
GAMES = {
    game.name: game
    for game in (
        *(Game(name=name, value=task.value) for name, task in TASKS.items()),
        Game(name="Retention", options=SMALL, value=small_value),
        SLATE,
    )
}


def judge(policy: Policy, envs: SlateVectorEnv, *, seed: int, episodes: int) -> dict[str, float]:
    """Return and pages per episode, and the Gini of impressions per item; luck is the same for every policy.

    Every row plays the same number of whole episodes: counting the episodes that end first would count short ones.
    """
    each = -(-episodes // envs.num_envs)
    observation, _ = envs.reset(seed=seed)
    finished = np.zeros(envs.num_envs, np.int64)
    rewards, pages, shown = 0.0, 0, np.zeros(envs.dataset.n_items, np.int64)
    while (finished < each).any():
        counted = finished < each
        actions = policy(envs, observation)
        observation, reward, terminated, truncated, _ = envs.step(actions)
        rewards += float(reward[counted].sum())
        pages += int(counted.sum())
        shown += np.bincount(actions[counted].ravel(), minlength=len(shown))
        finished += terminated | truncated
    total = each * envs.num_envs
    return {"return": rewards / total, "pages_per_episode": pages / total, "gini": gini(shown)}
