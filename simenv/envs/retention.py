"""The retention task: a user's life over many sessions, in which what counts is that he comes back.

An episode is the first `days` days of a user. A session ends as in `SlateEnv`; how soon the next one begins depends
on how satisfied it left the user, and coming back is rewarded (the cross-session task of Zhao et al. 2023, "KuaiSim:
a comprehensive simulator for recommender systems"). Between sessions satiation decays and fatigue recovers, a round a
day. The module does not know how a user answers a page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from simenv.checks import number
from simenv.datasets.base import LongArray
from simenv.envs.errors import OptionError
from simenv.envs.sessions import Observation, Observed, Who
from simenv.envs.slate import SlateEnv
from simenv.envs.tasks import POLICIES, TASKS
from simenv.envs.vector import SlateVectorEnv
from simenv.envs.world import check_size
from simenv.randomness import Purpose, hash64

_ALL = np.ones(1, np.bool_)
Rule = Callable[[int, int], int]  # day and page to item


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """When users come back.

    Attributes:
        days: that an episode lasts; a session takes no time.
        return_base, return_satisfaction: each day the user comes back with probability sigmoid(return_base +
            return_satisfaction * satisfaction), satisfaction in [0, 1] as the last session left it.
        return_value: reward of a return before the last day.
    """

    days: int = 30
    return_base: float = -3.0
    return_satisfaction: float = 5.0
    return_value: float = 1.0

    def __post_init__(self) -> None:
        check_size("days", self.days)
        for name in ("return_base", "return_satisfaction", "return_value"):
            number(name, getattr(self, name), error=OptionError)

    def chance(self, satisfaction: NDArray[Any]) -> NDArray[np.float64]:
        """Probability of coming back on any one day."""
        logit = self.return_base + self.return_satisfaction * np.asarray(satisfaction, np.float64)
        return np.clip(1.0 / (1.0 + np.exp(-np.clip(logit, -50, 50))), 1e-9, 1 - 1e-9)

    def gaps(self, who: LongArray, satisfaction: NDArray[Any]) -> LongArray:
        """Days until each user comes back, at least 1, (n,); geometric, keyed by the row's seed, user and episode."""
        state = hash64(who[:, Who.SEED], int(Purpose.RETURN), who[:, Who.USER], who[:, Who.EPISODE], 0, 0)
        luck = (state >> np.uint64(11)) * 2.0**-53
        return 1 + np.floor(np.log1p(-luck) / np.log1p(-self.chance(satisfaction))).astype(np.int64)


def _with_day(space: spaces.Dict[Any]) -> spaces.Dict[Any]:
    return spaces.Dict({**space.spaces, "day": spaces.Box(0.0, 1.0, (1,), np.float32)})


class RetentionEnv(SlateEnv):
    """One user's first days on the platform; see the module.

    Action, options, randomness and errors are those of `SlateEnv`, and so is the observation, with ``day`` (1,), the
    share of the days that is over. On a return the observation is that of the new session's first page.

    Reward: `return_value` where the page ended a session and the user comes back before the last day, plus what
    `reward` says of the page itself; nothing by default.

    Termination: the user does not come back before the last day. There is no truncation.

    Info: that of `SlateEnv`, and ``day``; where a session ended ``returned`` and ``gap`` in days.

    Args:
        days, return_base, return_satisfaction, return_value: see `Life`.
        reward: of each page, as in `SlateEnv`.
        options: of `SlateEnv`.
    """

    def __init__(
        self,
        *,
        days: int = 30,
        return_base: float = -3.0,
        return_satisfaction: float = 5.0,
        return_value: float = 1.0,
        reward: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(reward={"clicks": 0.0} if reward is None else reward, **options)
        self.life = Life(
            days=days, return_base=return_base, return_satisfaction=return_satisfaction, return_value=return_value
        )
        self.observation_space = _with_day(self.observation_space)  # type: ignore[arg-type,assignment]
        self._day = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observed, dict[str, Any]]:
        """Begin the next user's life."""
        observation, info = super().reset(seed=seed, options=options)
        self._day = 0
        return self._dated(observation), info | {"day": 0}

    def step(self, action: Any) -> tuple[Observed, float, bool, bool, dict[str, Any]]:
        """Show one page; after the last of a session the user may come back."""
        observation, reward, left, capped, info = super().step(action)
        over = False
        if left or capped:
            gap = int(self.life.gaps(self.sessions.who, self.sessions.satisfaction())[0])
            self._day = min(self._day + gap, self.life.days)
            over = self._day >= self.life.days
            info |= {"returned": not over, "gap": gap}
            if not over:
                reward += self.life.return_value
                self.sessions.come_back(_ALL, np.array([gap]))
                self._playing = True
                observation = {name: values[0] for name, values in self.sessions.observe()._asdict().items()}
        return self._dated(observation), reward, over, False, info | {"day": self._day}

    def get_state(self) -> dict[str, Any]:
        """As in `SlateEnv`."""
        return super().get_state() | {"day": self._day}

    def set_state(self, state: dict[str, Any]) -> None:
        """As in `SlateEnv`."""
        super().set_state(state)
        self._day = state["day"]

    def _dated(self, observation: Observed) -> Observed:
        return observation | {"day": np.array([self._day / self.life.days], np.float32)}


class RetentionVectorEnv(SlateVectorEnv):
    """Many lives in one shared world; row b is a `RetentionEnv` as rows of `SlateVectorEnv` are `SlateEnv`s.

    Info has ``day`` in all rows, and ``returned`` and ``gap`` in those whose session has ended.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        days: int = 30,
        return_base: float = -3.0,
        return_satisfaction: float = 5.0,
        return_value: float = 1.0,
        reward: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(num_envs, reward={"clicks": 0.0} if reward is None else reward, **options)
        self.life = Life(
            days=days, return_base=return_base, return_satisfaction=return_satisfaction, return_value=return_value
        )
        self.single_observation_space = _with_day(self.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._day = np.zeros(self.num_envs, np.int64)

    def get_state(self) -> dict[str, Any]:
        """As in `SlateVectorEnv`."""
        return super().get_state() | {"day": self._day.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        """As in `SlateVectorEnv`."""
        super().set_state(state)
        self._day = state["day"].copy()

    def fork(self, n: int, *, luck: str = "same") -> list[SlateVectorEnv]:
        """As in `SlateVectorEnv`."""
        branches = super().fork(n, luck=luck)
        for branch in branches:
            branch.__dict__["_day"] = self._day.copy()
        return branches

    def _begin(self, rows: NDArray[np.bool_], users: NDArray[np.int64] | None = None, *, keep: bool) -> None:
        super()._begin(rows, users, keep=keep)
        self._day[rows] = 0

    def _seen(self, observation: Observation) -> Observed:
        return super()._seen(observation) | {"day": (self._day / self.life.days).astype(np.float32)[:, None]}

    def _after_page(
        self,
        playing: NDArray[np.bool_],
        observation: Observed,
        rewards: NDArray[np.float64],
        ends: tuple[NDArray[np.bool_], NDArray[np.bool_]],
        info: dict[str, Any],
    ) -> Observed:
        terminated, truncated = ends
        ended = playing & (terminated | truncated)
        info |= {"day": self._day.copy(), "_day": np.ones(self.num_envs, np.bool_)}
        if not ended.any():
            return observation
        gaps = np.where(ended, self.life.gaps(self.sessions.who, self.sessions.satisfaction()), 0)
        self._day = np.minimum(self._day + gaps, self.life.days)
        terminated[:] = ended & (self._day >= self.life.days)
        truncated[:] = False
        back = ended & ~terminated
        rewards[back] += self.life.return_value
        self.sessions.come_back(back, gaps)
        self._n_ended += int(back.sum())
        for name, values in self._seen(self.sessions.observe()).items():
            observation[name] = np.where(back[:, None], values, observation[name]) if name != "day" else values
        info |= {"day": self._day.copy(), "returned": back, "gap": gaps}
        info |= {"_returned": ended.copy(), "_gap": ended.copy()}
        return observation


# -- a life so small that it can be planned exactly -----------------------------------------------------------

SMALL: dict[str, Any] = {
    **TASKS["ChurnTrap"].options(),
    "max_pages": 5,
    "days": 15,
    "return_base": -3.0,
    "return_satisfaction": 5.0,
    "reward": {"clicks": 0.2},
}


def small_value(policy: str | Rule = "optimal") -> float:
    """Expected reward of a life in the small world, exactly: `RetentionEnv` or its vector with the options `SMALL`.

    The items are those of ChurnTrap: what is clicked most disappoints, so the user leaves and stays away; near the last
    day there is no return to lose, and clicks are all that is left.

    Args:
        policy: one of `simenv.envs.tasks.POLICIES`, or a function of day and page (from 0) to item.
    """
    if isinstance(policy, str) and policy not in POLICIES:
        raise OptionError(f"policy={policy!r}: expected one of {', '.join(POLICIES)}, or a function")
    return _planned(policy)[0]


def small_plan() -> NDArray[np.int64]:
    """The best item by day and page of the session, (days, max_pages)."""
    values = _planned("optimal")[1]
    return np.array(
        [[values(day, page).argmax() for page in range(SMALL["max_pages"])] for day in range(SMALL["days"])]
    )


def _planned(policy: str | Rule) -> tuple[float, Callable[[int, int], NDArray[np.float64]]]:
    """What a life is worth under a policy, and what each item is worth at a day and page."""
    task = TASKS["ChurnTrap"]
    clicks, leaves = task.chances(())
    utility = task.utility(())
    life = Life(days=SMALL["days"], return_base=SMALL["return_base"], return_satisfaction=SMALL["return_satisfaction"])
    chance, weight, last = life.chance(utility), SMALL["reward"]["clicks"], SMALL["max_pages"] - 1
    fixed = {
        "popularity": int(task.dataset.interactions.item_counts().argmax()),
        "oracle": int(utility.argmax()),
        "myopic": int(clicks.argmax()),
    }

    def values(day: int, page: int) -> NDArray[np.float64]:
        days = np.arange(1, life.days - day)  # gaps after which there is another session
        later = np.array([life.return_value + worth(day + int(gap), 0) for gap in days])
        back = np.array([((1 - p) ** (days - 1) * p * later).sum() for p in chance])
        stay = 0.0 if page == last else worth(day, page + 1)
        ends = np.ones(len(clicks)) if page == last else leaves
        return np.asarray(weight * clicks + (1 - ends) * stay + ends * back)

    @cache
    def worth(day: int, page: int) -> float:
        by_item = values(day, page)
        if callable(policy):
            return float(by_item[policy(day, page)])
        if policy in fixed:
            return float(by_item[fixed[policy]])
        return float(by_item.mean() if policy == "random" else by_item.max())

    return worth(0, 0), values
