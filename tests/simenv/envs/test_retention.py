"""A user's life over sessions: planned values against played lives, the vector against single lives, what time does."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import simenv  # noqa: F401 - registers the environments
from simenv.datasets import Dataset
from simenv.envs.retention import SMALL, Life, RetentionEnv, RetentionVectorEnv, small_plan, small_value
from simenv.envs.tasks import POLICIES
from simenv.envs.wrappers import FlatObservation
from simenv.errors import ConfigError

ALONE = {"name": "choice", "conformity": 0.0}
N = 3000


def make(world: Dataset, **options: Any) -> RetentionEnv:
    return RetentionEnv(**({"dataset": world, "slate_size": 4, "max_pages": 3, "days": 12, "texts": False} | options))


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return np.array_equal(left, right, equal_nan=isinstance(left, np.ndarray) and left.dtype.kind == "f")


def test_gymnasiums_own_check_passes(small_world: Dataset) -> None:
    check_env(gym.make("simenv/Retention-v0", n_users=20, n_items=30, slate_size=3).unwrapped, skip_render_check=True)
    check_env(make(small_world, agent="rank"), skip_render_check=True)
    env = FlatObservation(make(small_world))
    assert env.reset(seed=0)[0] in env.observation_space
    assert env.reset(seed=0)[0][-1] == 0.0


@pytest.mark.parametrize("policy", POLICIES)
def test_played_lives_are_worth_what_planning_says(policy: str) -> None:
    envs = RetentionVectorEnv(N, autoreset_mode="SameStep", **SMALL)
    items = {"popularity": 0, "myopic": 0, "oracle": 3}
    observation, _ = envs.reset(seed=1)
    rng = np.random.default_rng(0)
    total, alive = np.zeros(N), np.ones(N, np.bool_)
    best = small_plan() if policy == "optimal" else None
    while alive.any():
        if best is not None:
            day = np.round(observation["day"][:, 0] * SMALL["days"]).astype(int)
            actions = best[np.minimum(day, len(best) - 1), observation["page"][:, 0]][:, None]
        elif policy == "random":
            actions = rng.integers(0, 4, (N, 1))
        else:
            actions = np.full((N, 1), items[policy])
        observation, rewards, terminated, truncated, _ = envs.step(actions)
        assert not truncated.any()
        total += np.where(alive, rewards, 0.0)
        alive &= ~terminated
    assert abs(total.mean() - small_value(policy)) < 4 * total.std() / np.sqrt(N)


def test_the_trap_is_one() -> None:
    values = {policy: small_value(policy) for policy in POLICIES}
    assert values["myopic"] < values["random"] < values["oracle"] < values["optimal"]
    plan = small_plan()
    assert small_value(lambda day, page: int(plan[day, page])) == pytest.approx(values["optimal"])
    assert (plan[:, :-1] == 2).all()  # clicks on the way
    assert (plan[:-1, -1] == 3).all()  # but a session should end well
    assert plan[-1, -1] == 0  # unless nothing comes after it
    with pytest.raises(ConfigError, match="policy='best'"):
        small_value("best")


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_rows_equal_single_lives_where_nothing_is_shared(small_world: Dataset, mode: str) -> None:
    options: dict[str, Any] = {"agent": ALONE, "repeat": "always", "reward": {"clicks": 0.1}}
    envs = RetentionVectorEnv(
        4, dataset=small_world, slate_size=4, max_pages=3, days=12, autoreset_mode=mode, details=True, **options
    )
    sync = gym.vector.SyncVectorEnv(
        [lambda: make(small_world, **options)] * 4, autoreset_mode=gym.vector.AutoresetMode(mode)
    )
    assert same(envs.reset(seed=3)[0], sync.reset(seed=3)[0])
    rng, returns, ends = np.random.default_rng(0), 0, 0
    for _ in range(60):
        actions = rng.integers(0, 60, (4, 4))
        got, expected = envs.step(actions), sync.step(actions)
        assert same(got[:4], expected[:4])
        assert got[0] in envs.observation_space
        told = expected[4].get("_returned", np.zeros(4, np.bool_))
        np.testing.assert_array_equal(got[4].get("_returned", np.zeros(4, np.bool_)), told)
        np.testing.assert_array_equal(got[4].get("returned", told)[told], expected[4].get("returned", told)[told])
        returns += told.sum()
        ends += got[2].sum()
        for row in np.flatnonzero(got[4].get("_final_obs", np.zeros(4))):
            assert same(got[4]["final_obs"][row], expected[4]["final_obs"][row])
    assert returns > 10
    assert ends > 4


@pytest.mark.parametrize("agent", ["choice", "rank"])
def test_users_rest_between_sessions_and_remember_them(small_world: Dataset, agent: str) -> None:
    options = (
        {"base": 60.0, "examination": "all", "exit_base": 50.0, "fatigue_recovery": 0.25} if agent == "choice" else {}
    )
    env = make(small_world, agent={"name": agent} | options, return_base=50.0, days=5)
    env.reset(seed=0, options={"user": 4})
    slate = np.flatnonzero(env.action_masks())[:4]
    observation, reward, terminated, _, info = env.step(slate)
    assert (reward, terminated, info["returned"], info["gap"], info["day"]) == (1.0, False, True, 1, 1)
    assert (observation["page"][0], observation["day"][0]) == (0, np.float32(0.2))
    np.testing.assert_array_equal(observation["history_items"][:4], slate)
    assert (observation["slate"] == -1).all()
    if agent == "choice":
        assert env.sessions.mood[0, 0] == np.float32(4 * 0.05) * np.float32(0.75)
        assert not env.action_masks()[slate].any()
    assert [env.step(slate)[2] for _ in range(4)] == [False, False, False, True]
    with pytest.raises(gym.error.ResetNeeded):
        env.step(slate)


def test_satisfied_users_come_back_sooner(small_world: Dataset) -> None:
    life, who = Life(), np.zeros((20_000, 5), np.int64)
    who[:, 1] = np.arange(20_000)
    for satisfaction in (0.1, 0.5, 0.9):
        mood = np.full(20_000, satisfaction)
        gaps, chance = life.gaps(who, mood), float(life.chance(mood)[0])
        assert gaps.min() == 1
        assert gaps.mean() == pytest.approx(1 / chance, rel=0.05)
    for bad in ({"days": 0}, {"return_base": np.nan}, {"return_value": "one"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            make(small_world, **bad)
