"""What learners have in common: flat features, and held-out episodes played on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.rl.games import HELD_OUT, Policy, judge
from simenv.datasets.base import FloatArray
from simenv.envs.sessions import Observed
from simenv.envs.vector import SlateVectorEnv
from simenv.envs.wrappers import flat_features

Watch = Callable[[int, Policy], None]  # told the training pages so far, and the policy as it is


def features(envs: SlateVectorEnv, observation: Observed) -> FloatArray:
    """A batch of observations as (B, F)."""
    return flat_features(observation, envs.dataset, max_pages=envs.max_pages)


class HeldOut:
    """Judges a policy before training and then `points` times, every pages / points training pages.

    Args:
        envs: where it is judged.
        pages: of the whole training.
        points: on the way; the last is the end.
        episodes: at each point.
        last: episodes at the end.
    """

    def __init__(self, envs: SlateVectorEnv, *, pages: int, points: int, episodes: int, last: int) -> None:
        self.envs, self.points, self.episodes, self.last = envs, points, episodes, last
        self.places = np.arange(points + 1) * (pages // points)
        self.curve: list[dict[str, Any]] = []

    def __call__(self, pages: int, policy: Policy) -> None:
        """Judge, if it is time."""
        while len(self.curve) <= self.points and pages >= self.places[len(self.curve)]:
            at = len(self.curve)
            figures = judge(
                policy, self.envs, seed=HELD_OUT, episodes=self.last if at == self.points else self.episodes
            )
            self.curve.append({"pages": int(self.places[at]), **figures})
