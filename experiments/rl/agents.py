"""The agents of the benchmark, each with what it is trained with; Stable-Baselines3 has most of them.

Settings are those of the method where they suit sessions of ten to twenty pages, and the same on every task; the large
catalogue has its own. Agents see genres, not items' identity.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.wrappers.vector import TransformReward
from numpy.typing import NDArray
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from experiments.rl.games import Game, Policy
from experiments.rl.reinforce import Reinforce
from experiments.rl.slateq import SlateQ
from experiments.rl.watching import Watch, features
from simenv.envs.sb3 import SB3VecEnv
from simenv.envs.sessions import Observed
from simenv.envs.vector import SlateVectorEnv
from simenv.envs.vector_wrappers import FlatObservation, ProtoAction
from simenv.envs.wrappers import item_embedding, nearest_items


class Recipe(NamedTuple):
    """How an agent of Stable-Baselines3 learns.

    Attributes:
        algorithm: its class.
        num_envs: sessions side by side.
        options: what differs from its defaults.
        reward: what a unit of reward is worth in training.
        deterministic: whether it is judged by its mode; slots are drawn independently of each other, so that on slates
            the mode of a categorical policy may be one item many times.
    """

    algorithm: type[BaseAlgorithm]
    num_envs: int
    options: dict[str, Any]
    reward: float = 1.0
    deterministic: bool = True

    def learn(self, envs: SlateVectorEnv, *, pages: int, seed: int, watch: Watch) -> Policy:
        """A policy, from about so many pages."""
        on_points = self.algorithm is SAC
        seen: Any = FlatObservation(envs)
        seen = ProtoAction(seen) if on_points else seen
        seen = TransformReward(seen, lambda reward: reward * self.reward) if self.reward != 1 else seen
        vector = SB3VecEnv(
            seen,
            single_item=self.algorithm is DQN,
            cap_ends=True,  # the cap is part of the game, and the agent sees the page
        )
        model = self.algorithm("MlpPolicy", vector, seed=seed, device="cpu", **self.options)
        embedding = item_embedding(envs.dataset)

        def act(envs: SlateVectorEnv, observation: Observed) -> NDArray[np.int64]:
            given = np.asarray(model.predict(features(envs, observation), deterministic=self.deterministic)[0])
            if on_points:
                return nearest_items(given, embedding, envs.action_masks())
            return given.reshape(envs.num_envs, -1)

        model.learn(pages, callback=_Watching(watch, act))
        watch(pages, act)
        return act


class _Watching(BaseCallback):
    def __init__(self, watch: Watch, act: Policy) -> None:
        super().__init__()
        self.watch, self.act = watch, act

    def _on_training_start(self) -> None:
        self.watch(0, self.act)

    def _on_step(self) -> bool:
        self.watch(self.num_timesteps, self.act)
        return True


Learner = Recipe | Reinforce | SlateQ
_SMALL = {"net_arch": [32]}
_OFF_POLICY = {"learning_rate": 1e-3, "learning_starts": 2000, "batch_size": 128, "buffer_size": 100_000}
# Huber loss is linear beyond 1: it would fit a median, to which a user who leaves one time in six stays.
_DQN = _OFF_POLICY | {
    "policy_kwargs": _SMALL,
    "gamma": 1.0,
    "train_freq": 4,
    "gradient_steps": 4,
    "target_update_interval": 1000,
    "exploration_fraction": 0.3,
}
_SAC = _OFF_POLICY | {"policy_kwargs": {"net_arch": [64]}, "gamma": 0.97, "ent_coef": "auto_0.1", "train_freq": 1}
ON_TASKS: dict[str, Learner] = {
    "PPO": Recipe(
        PPO,
        16,
        {
            "policy_kwargs": _SMALL,
            "n_steps": 64,
            "batch_size": 256,
            "n_epochs": 6,
            "learning_rate": 3e-3,
            "gamma": 1.0,
            "ent_coef": 0.05,
        },
    ),
    "A2C": Recipe(
        A2C,
        64,
        {
            "policy_kwargs": _SMALL,
            "n_steps": 8,
            "learning_rate": 7e-3,
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "ent_coef": 0.02,
        },
    ),
    "DQN": Recipe(DQN, 16, _DQN, reward=0.1),
    "SAC": Recipe(SAC, 16, _SAC | {"gradient_steps": 1}),
    "REINFORCE": Reinforce(
        num_envs=32, batch=128, clicked_only=False, learning_rate=3e-3, hidden=32, entropy=0.05, discount=1.0
    ),
    "SlateQ": SlateQ(num_envs=16, batch=256, hidden=32, renew=100, discount=1.0),
}
ON_SLATES: dict[str, Learner] = {
    "PPO": Recipe(
        PPO,
        64,
        {
            "policy_kwargs": {"net_arch": [64]},
            "n_steps": 32,
            "batch_size": 512,
            "n_epochs": 4,
            "learning_rate": lambda left: 1e-3 * left,
            "gamma": 0.97,
            "ent_coef": 0.005,
        },
        deterministic=False,
    ),
    "A2C": Recipe(
        A2C,
        64,
        {"policy_kwargs": {"net_arch": [64]}, "n_steps": 8, "learning_rate": 1e-3, "gamma": 0.97, "ent_coef": 0.005},
        deterministic=False,
    ),
    "SAC": Recipe(SAC, 64, _SAC | {"gradient_steps": 4}),
    "REINFORCE": Reinforce(),
    "SlateQ": SlateQ(),
}


def learner(game: Game, agent: str) -> Learner | None:
    """How an agent learns a game; None = it cannot: DQN needs one slot a page."""
    return (ON_SLATES if game.options.get("slate_size", 1) > 1 else ON_TASKS).get(agent)


def train(game: Game, agent: str, seed: int, *, pages: int, watch: Watch) -> Policy:
    """Train an agent; the same seed gives the same policy."""
    how = learner(game, agent)
    assert how is not None
    torch.set_num_threads(1)
    return how.learn(game.open(how.num_envs, seed), pages=pages, seed=1000 * seed, watch=watch)
