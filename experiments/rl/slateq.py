"""A SlateQ-style decomposition.

Ie, Jain, Wang, Narvekar, Agarwal, Wu, Cheng, Chandra and Boutilier 2019, "SlateQ: a tractable decomposition for
reinforcement learning with recommendation sets". The value of a slate is the sum over its items of P(click) times the
item's long-term value given a click, plus the value of going on without one; both are learnt, by classification and by
temporal differences, and the slate is the K items of the highest products. Clicks here are independent of each other
given the page, so the sum stands for the choice probabilities of the paper. What an item does to a user who does not
click it is nobody's value: that is the method's assumption.
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
class SlateQ:
    """How it learns.

    Attributes:
        num_envs: sessions side by side, a page each before every update.
        discount: of a page.
        learning_rate, hidden: of the networks.
        batch, buffer: pages of an update, and pages remembered.
        renew: updates between copies of the target network.
    """

    num_envs: int = 128
    discount: float = 0.97
    learning_rate: float = 1e-3
    hidden: int = 64
    batch: int = 1024
    buffer: int = 60_000
    renew: int = 40

    def learn(self, envs: SlateVectorEnv, *, pages: int, seed: int, watch: Watch) -> Policy:
        """A policy, from about so many pages."""
        torch.manual_seed(seed)
        k, n = envs.sessions.slate_size, envs.dataset.n_items
        observation, _ = envs.reset(seed=seed)
        state = torch.from_numpy(features(envs, observation))

        def network(outputs: int) -> nn.Module:
            return nn.Sequential(nn.Linear(state.shape[1], self.hidden), nn.ReLU(), nn.Linear(self.hidden, outputs))

        click, value = network(n), network(n + 1)  # logits of a click; value after a click on each item, or after none
        target = copy.deepcopy(value)
        optimiser = torch.optim.Adam([*click.parameters(), *value.parameters()], lr=self.learning_rate)

        def gains(s: torch.Tensor, q: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
            """P(click) * (value after it - value without), by item, and the value without."""
            values = q(s)
            return torch.sigmoid(click(s)) * (values[:, :n] - values[:, n:]), values[:, n]

        def act(envs: SlateVectorEnv, observation: Observed) -> NDArray[np.int64]:
            with torch.no_grad():
                return gains(torch.from_numpy(features(envs, observation)), value)[0].topk(k).indices.numpy()

        memory: dict[str, torch.Tensor] = {}
        updates, oldest, size = max(1, pages // envs.num_envs), 0, 0
        watch(0, act)
        for update in range(updates):
            exploring = max(0.05, 1.0 - 2.0 * update / updates)
            with torch.no_grad():
                slate = gains(state, value)[0].topk(k).indices
            random = torch.rand(len(state), n).topk(k).indices
            slate = torch.where(torch.rand(len(state), 1) < exploring, random, slate)
            observation, reward, terminated, truncated, _ = envs.step(slate.numpy())
            following = torch.from_numpy(features(envs, observation))
            page = {
                "state": state,
                "slate": slate,
                "clicks": torch.from_numpy(envs.sessions.clicked.copy()).float(),
                "reward": torch.from_numpy(reward).float(),
                "end": torch.from_numpy(terminated | truncated).float(),
                "following": following,
            }
            if not memory:
                length = -(-self.buffer // len(state)) * len(state)
                memory = {name: v.new_zeros((length, *v.shape[1:])) for name, v in page.items()}
            for name, v in page.items():
                memory[name][oldest : oldest + len(v)] = v
            oldest = (oldest + len(state)) % len(memory["state"])
            size = min(size + len(state), len(memory["state"]))
            state = following
            rows = torch.randint(size, (self.batch,))
            s, a, c, r, end, then = (memory[name][rows] for name in page)
            with torch.no_grad():
                gain, rest = gains(then, target)
                wanted = r + self.discount * (1 - end) * (rest + gain.topk(k).values.sum(1))
            values = value(s)
            reached = values[:, n] + (c * (values.gather(1, a) - values[:, n:])).sum(1)
            loss = nn.functional.mse_loss(reached, wanted)
            loss = loss + nn.functional.binary_cross_entropy_with_logits(click(s).gather(1, a), c)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if update % self.renew == 0:
                target = copy.deepcopy(value)
            watch(pages * (update + 1) // updates, act)
        return act
