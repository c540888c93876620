"""SlateVectorEnv for Stable-Baselines3: its own vector interface over one native batch. Needs the extra ``rl``.

SB3 knows nothing of Gymnasium's vector environments; stepping one native batch is some fifty times faster than SB3's
wrappers around single ones. The module knows no algorithm, only what their common interface asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from simenv.envs.errors import OptionError
from simenv.envs.vector import SlateVectorEnv
from simenv.errors import MissingExtraError

try:
    from stable_baselines3.common.vec_env import VecEnv
except ModuleNotFoundError as missing:
    raise MissingExtraError("simenv.envs.sb3", "rl") from missing


class SB3VecEnv(VecEnv):
    """A `SlateVectorEnv` in mode ``SAME_STEP`` as a VecEnv; infos have ``episode`` with reward and length at the end.

    Args:
        env: the environment.
        observe: from a batch of observations, a dict of (B, ...) arrays, to what the policy sees, e.g.
            `simenv.envs.wrappers.flat_features`; None = the Dict itself.
        observation_space: of what `observe` returns for one session.
        single_item: actions are ``Discrete(n_items)``, as DQN needs them; for one slot a page.
        cap_ends: what reaching the page cap means to a learner. False: the session was cut short, and SB3 adds the
            value it estimates for the rest. True: that was all of it, which is so where the cap is part of the task and
            the observation tells the page (Pardo, Tavakoli, Levdik and Kormushev 2018, "Time limits in reinforcement
            learning"); with a discount of 1 anything else has no finite value.

    Raises:
        OptionError: another autoreset mode; one of `observe` and `observation_space` alone; `single_item` with more
            slots than one.
    """

    def __init__(
        self,
        env: SlateVectorEnv,
        *,
        observe: Callable[[dict[str, NDArray[Any]]], Any] | None = None,
        observation_space: spaces.Space[Any] | None = None,
        single_item: bool = False,
        cap_ends: bool = False,
    ) -> None:
        if env.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise OptionError(f"autoreset_mode={env.autoreset_mode.value}: Stable-Baselines3 expects SameStep")
        if (observe is None) != (observation_space is None):
            raise OptionError("observe and observation_space: expected both or neither")
        if single_item and env.single_action_space.shape != (1,):
            raise OptionError(f"single_item: slots {env.single_action_space.shape}; expected slate_size=1")
        self.env = env
        self._cap_ends = cap_ends
        self._observe = observe
        self.render_mode = env.render_mode
        self._returns, self._lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)
        self._seed: int | None = None
        space = env.single_observation_space if observation_space is None else observation_space
        items = spaces.Discrete(env.dataset.n_items) if single_item else env.single_action_space
        super().__init__(env.num_envs, space, items)

    def reset(self) -> Any:
        observation, _ = self.env.reset(seed=self._seed)
        self._seed = None
        self._returns[:], self._lengths[:] = 0.0, 0
        return self._seen(observation)

    def _seen(self, observation: dict[str, NDArray[Any]]) -> Any:
        return observation if self._observe is None else self._observe(observation)

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions[:, None] if isinstance(self.action_space, spaces.Discrete) else actions

    def step_wait(self) -> Any:
        observation, rewards, terminated, truncated, info = self.env.step(self._actions)
        done = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            rows = np.flatnonzero(done)
            last = {name: np.stack([info["final_obs"][row][name] for row in rows]) for name in observation}
            seen = self._seen(last)
            for at, row in enumerate(rows):
                final = {name: v[at] for name, v in seen.items()} if isinstance(seen, dict) else seen[at]
                infos[row] = {
                    "terminal_observation": final,
                    "TimeLimit.truncated": bool(truncated[row]) and not self._cap_ends,
                    "episode": {"r": float(self._returns[row]), "l": int(self._lengths[row]), "t": 0.0},
                }
            self._returns[rows], self._lengths[rows] = 0.0, 0
        return self._seen(observation), rewards.astype(np.float32), done, infos

    def seed(self, seed: int | None = None) -> list[int | None]:
        self._seed = seed
        return [None if seed is None else seed + row for row in range(self.num_envs)]

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [getattr(self.env, method_name)(*args, **kwargs)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))
