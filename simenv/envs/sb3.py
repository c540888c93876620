"""SlateVectorEnv for Stable-Baselines3: its own vector interface over one native batch. Needs the extra ``rl``.

SB3 knows nothing of Gymnasium's vector environments; stepping one native batch is some fifty times faster than SB3's
wrappers around single ones. The module knows no algorithm, only what their common interface asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorWrapper
from numpy.typing import NDArray

from simenv.envs.errors import OptionError
from simenv.envs.vector_wrappers import Envs, SingleItem, at, slate_vector_env, stacked
from simenv.errors import MissingExtraError

try:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import VecEnv
except ModuleNotFoundError as missing:
    raise MissingExtraError("simenv.envs.sb3", "rl") from missing


class SB3VecEnv(VecEnv):
    """A `SlateVectorEnv` in mode ``SAME_STEP`` as a VecEnv; infos have ``episode`` with reward and length at the end.

    Args:
        env: the vector, wrapped or not (`simenv.envs.vector_wrappers`).
        observe: from a batch of observations to what the policy sees; None = as they are.
        observation_space: of what `observe` returns for one session.
        single_item: actions are ``Discrete(n_items)``, as DQN needs them; for one slot a page.
        cap_ends: what reaching the page cap means to a learner. False: the session was cut short, and SB3 adds the
            value it estimates for the rest. True: that was all of it, which is so where the cap is part of the task and
            the observation tells the page (Pardo, Tavakoli, Levdik and Kormushev 2018, "Time limits in reinforcement
            learning"); with a discount of 1 anything else has no finite value.

    `set_options` takes the reset options of `SlateEnv`, ``user`` and ``keep_world``, one dict for all rows or one each.

    Raises:
        OptionError: another autoreset mode; one of `observe` and `observation_space` alone; `single_item` with more
            slots than one.
    """

    def __init__(
        self,
        env: Envs,
        *,
        observe: Callable[[Any], Any] | None = None,
        observation_space: spaces.Space[Any] | None = None,
        single_item: bool = False,
        cap_ends: bool = False,
    ) -> None:
        mode = slate_vector_env(env).autoreset_mode
        if mode is not AutoresetMode.SAME_STEP:
            raise OptionError(f"autoreset_mode={mode.value}: Stable-Baselines3 expects SameStep")
        if (observe is None) != (observation_space is None):
            raise OptionError("observe and observation_space: expected both or neither")
        self.env = SingleItem(env) if single_item else env
        self._cap_ends = cap_ends
        self._observe = observe
        self.render_mode = env.render_mode
        self._returns, self._lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)
        space = env.single_observation_space if observation_space is None else observation_space
        super().__init__(env.num_envs, space, self.env.single_action_space)

    def reset(self) -> Any:
        observation, _ = self.env.reset(seed=self._first_seed(), options=self._reset_options_of_all())
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._lengths[:] = 0.0, 0
        return self._seen(observation)

    def _first_seed(self) -> int | None:
        """SB3 numbers its environments from one seed on, as the vector does."""
        return None if self._seeds[0] is None else int(self._seeds[0])

    def _reset_options_of_all(self) -> dict[str, Any] | None:
        if not any(self._options):
            return None
        worlds = {options.get("keep_world") for options in self._options}
        if len(worlds) > 1:
            raise OptionError(f"keep_world={sorted(map(str, worlds))}: rows share a world; expected one value for all")
        users: list[Any] = [options.get("user") for options in self._options]
        known: dict[str, Any] = {"user": users} if any(user is not None for user in users) else {}
        other = {name: value for options in self._options for name, value in options.items() if name != "user"}
        return known | {name: value for name, value in other.items() if value is not None}

    def _seen(self, observation: Any) -> Any:
        return observation if self._observe is None else self._observe(observation)

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        observation, rewards, terminated, truncated, info = self.env.step(self._actions)
        done = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            rows = np.flatnonzero(done)
            seen = self._seen(stacked([info["final_obs"][row] for row in rows]))
            for place, row in enumerate(rows):
                infos[row] = {
                    "terminal_observation": at(seen, place),
                    "TimeLimit.truncated": bool(truncated[row]) and not self._cap_ends,
                    "episode": {"r": float(self._returns[row]), "l": int(self._lengths[row]), "t": 0.0},
                }
            self._returns[rows], self._lengths[rows] = 0.0, 0
        return self._seen(observation), rewards.astype(np.float32), done, infos

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        pages: Any = self.env.render() if self.render_mode == "rgb_array" else None
        return [None] * self.num_envs if pages is None else list(pages)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self._owner(attr_name), attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise OptionError(f"set_attr {attr_name!r}: the rows are one environment; expected indices=None")
        setattr(self._owner(attr_name), attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """What the vector's method gives, row by row where it has a row each, else once for every row."""
        given = getattr(self._owner(method_name), method_name)(*args, **kwargs)
        by_row = isinstance(given, (np.ndarray, list, tuple)) and len(given) == self.num_envs
        return [given[row] if by_row else given for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """Whether episodes are recorded as that wrapper would; the rows have no wrappers of their own."""
        return [issubclass(Monitor, wrapper_class)] * len(list(self._get_indices(indices)))

    def _owner(self, name: str) -> Any:
        """The outermost of the wrappers and the vector that has an attribute; the vector where none has."""
        env: Any = self.env
        while not hasattr(env, name) and isinstance(env, VectorWrapper):
            env = env.env
        return env
