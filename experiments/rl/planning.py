"""What knowing the user is worth: rollout planning over forks of the environment, for worlds too large to be solved.

Each page, a few slates are proposed from the true utilities; each is tried in branches with luck of their own, which go
on with the likeliest slates until the episode ends; the best is shown, but the likeliest where none is better beyond
noise (Bertsekas, Tsitsiklis and Wu 1997, "Rollout algorithms for combinatorial optimization"). No agent can know what
the planner knows, so it is the mark to measure agents by. It is not the optimum: that may lie higher.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simenv.envs.sessions import Observed
from simenv.envs.vector import SlateVectorEnv
from simenv.metrics.reference import genre_weights

Slates = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Planner:
    """A policy that plans with forks; the vector's autoreset mode is ``SAME_STEP``.

    Attributes:
        horizon: pages a branch goes on for, the proposed one included; 1 = what the page itself earns.
        branches: for each proposal.
        variety: how much utility a slot gives up for a genre that the page does not have yet; a proposal each.
    """

    horizon: int
    branches: int = 8
    variety: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0)

    def __call__(self, envs: SlateVectorEnv, observation: Observed) -> Slates:
        """Slates (B, K)."""
        proposals = np.stack([likeliest(envs, weight) for weight in self.variety])
        gains = np.stack([self._returns(envs, slates) for slates in proposals])
        gains -= gains[0]
        sure = gains.mean(axis=1) - 2 * gains.std(axis=1, ddof=1) / self.branches**0.5  # 0 for the likeliest
        return np.asarray(proposals[sure.argmax(axis=0), np.arange(envs.num_envs)])

    def _returns(self, envs: SlateVectorEnv, slates: Slates) -> NDArray[np.float64]:
        """Of the page and those that follow in each branch, (branches, B); every proposal meets the same luck."""
        total = np.zeros((self.branches, envs.num_envs))
        for row, branch in zip(total, envs.fork(self.branches, luck="fresh"), strict=True):
            shown, going = slates, np.ones(envs.num_envs, np.bool_)
            for page in range(self.horizon):
                if page:
                    shown = likeliest(branch)
                _, reward, terminated, truncated, _ = branch.step(shown)
                row += np.where(going, reward, 0.0)
                going &= ~(terminated | truncated)
                if not going.any():
                    break
        return total


def likeliest(envs: SlateVectorEnv, variety: float = 0.0) -> Slates:
    """The items of the highest true utility (B, K), a genre that the page already has counting less."""
    k = envs.sessions.slate_size
    utility = np.where(envs.action_masks(), envs.true_utility(), -np.inf)
    if not variety:
        return np.argsort(-utility, axis=1)[:, :k]
    genres = genre_weights(envs.dataset.catalog.genres)
    rows, slates = np.arange(len(utility)), np.empty((len(utility), k), np.int64)
    seen = np.zeros((len(utility), genres.shape[1]))
    for slot in range(k):
        slates[:, slot] = (utility - variety * (seen @ genres.T)).argmax(axis=1)
        utility[rows, slates[:, slot]] = -np.inf
        seen += genres[slates[:, slot]]
    return slates
