"""REINFORCE with top-K off-policy correction.

Chen, Beutel, Covington, Jain, Belletti and Chi 2019, "Top-K off-policy correction for a REINFORCE recommender system".
A behaviour policy, a copy of the learner that is renewed now and then, fills the log; the learner takes several passes
over each log with capped importance ratios and the multiplier K (1 - pi(a))^(K - 1).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from experiments.rl.games import Policy
from experiments.rl.watching import Watch, features
from simenv.envs.sessions import Observed
from simenv.envs.vector import SlateVectorEnv


@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """How it learns.

    Attributes:
        num_envs: sessions side by side.
        log: pages of each that the behaviour policy fills before the learner takes over.
        passes, batch: over the log, and rows at a time.
        cap: of importance ratios.
        clicked_only: what earns a page's reward and what later pages bring. True: its clicked items, so that on a slate
            an item without a click is no evidence against it. False: whatever was shown, against the mean; where not
            every page is clicked, and what an item does to those who do not click it matters.
        discount: of a page.
        learning_rate, hidden, entropy: of the network; the weight of the policy's entropy.
    """

    num_envs: int = 256
    log: int = 16
    passes: int = 3
    batch: int = 1024
    cap: float = 10.0
    clicked_only: bool = True
    discount: float = 0.97
    learning_rate: float = 1e-3
    hidden: int = 64
    entropy: float = 0.01

    def learn(self, envs: SlateVectorEnv, *, pages: int, seed: int, watch: Watch) -> Policy:
        """A policy, from about so many pages."""
        torch.manual_seed(seed)
        k = envs.sessions.slate_size
        observation, _ = envs.reset(seed=seed)
        state = torch.from_numpy(features(envs, observation))
        policy = nn.Sequential(
            nn.Linear(state.shape[1], self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, envs.dataset.n_items),
            nn.LogSoftmax(-1),
        )
        optimiser = torch.optim.Adam(policy.parameters(), lr=self.learning_rate)

        def act(envs: SlateVectorEnv, observation: Observed) -> NDArray[np.int64]:
            with torch.no_grad():
                return policy(torch.from_numpy(features(envs, observation))).topk(k).indices.numpy()

        watch(0, act)
        updates = max(1, pages // (self.log * envs.num_envs))
        for update in range(updates):
            behaviour = copy.deepcopy(policy)
            states, slates, clicks, rewards, ends = [], [], [], [], []
            for _ in range(self.log):
                with torch.no_grad():
                    noisy = behaviour(state) - torch.log(-torch.log(torch.rand(len(state), envs.dataset.n_items)))
                slate = noisy.topk(k).indices
                observation, reward, terminated, truncated, _ = envs.step(slate.numpy())
                states.append(state)
                slates.append(slate)
                clicks.append(torch.from_numpy(envs.sessions.clicked.copy()).float())
                rewards.append(torch.from_numpy(reward).float())
                ends.append(torch.from_numpy(terminated | truncated))
                state = torch.from_numpy(features(envs, observation))
            returns: list[torch.Tensor] = []
            later = torch.zeros(envs.num_envs)
            for page in reversed(range(self.log)):
                later = torch.where(ends[page], 0.0, later)
                share = clicks[page] / clicks[page].sum(1, keepdim=True).clamp(min=1)
                after = self.discount * later[:, None]
                credit = clicks[page] * after if self.clicked_only else after
                returns.insert(0, share * rewards[page][:, None] + credit)
                later = rewards[page] + self.discount * later
            s, a, r = torch.cat(states), torch.cat(slates), torch.cat(returns)
            r = r / r.mean().clamp(min=1e-6) if self.clicked_only else (r - r.mean()) / r.std().clamp(min=1e-6)
            with torch.no_grad():
                logged = behaviour(s).gather(1, a)
            for _ in range(self.passes):
                for rows in torch.randperm(len(s)).split(self.batch):  # type: ignore[no-untyped-call]
                    everything = policy(s[rows])
                    log_p = everything.gather(1, a[rows])
                    p = log_p.exp()
                    ratio = (p / logged[rows].exp()).clamp(max=self.cap).detach()
                    top_k = (k * (1 - p) ** (k - 1)).detach()
                    entropy = -(everything.exp() * everything).sum(1).mean()
                    loss = -(ratio * top_k * r[rows] * log_p).mean() - self.entropy * entropy
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
            watch(pages * (update + 1) // updates, act)
        return act
