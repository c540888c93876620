"""Named tasks: exact values against played episodes, traps that are traps."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import simenv  # noqa: F401 - registers the environments
from simenv.envs.slate import SlateEnv
from simenv.envs.tasks import POLICIES, TASKS, Task
from simenv.errors import ConfigError

NAMES = list(TASKS)


def played(task: Task, policy: str, n: int, seed: int = 0) -> np.ndarray:
    """Clicks of `n` sessions, played in a vector of sessions with states tracked as the task defines them."""
    envs = gym.make_vec(f"simenv/{task.name}-v0", num_envs=n, vectorization_mode="vector_entry_point")
    inner: Any = envs.unwrapped
    _, info = envs.reset(seed=seed)
    states = [start_of(task, int(user)) for user in info["user"]]
    rng, total, alive = np.random.default_rng(seed), np.zeros(n), np.ones(n, np.bool_)
    popular = int(task.dataset.interactions.item_counts().argmax())
    for page in range(task.max_pages):
        if policy == "random":
            items = rng.integers(0, task.dataset.n_items, n)
        elif policy == "popularity":
            items = np.full(n, popular)
        elif policy == "oracle":
            items = inner.true_utility().argmax(axis=1)
        elif policy == "myopic":
            items = np.array([task.chances(state)[0].argmax() for state in states])
        else:
            items = np.array([task.best_item(state, page) for state in states])
        observation, rewards, terminated, truncated, _ = envs.step(items[:, None])
        total += rewards * alive
        alive &= ~(terminated | truncated)
        clicked = observation["clicks"][:, 0] > 0
        states = [task.after(s, int(i), bool(c)) for s, i, c in zip(states, items, clicked, strict=True)]
    assert not alive.any()
    return total


def start_of(task: Task, user: int) -> Any:
    """The state in which this user begins: its group in PopularityTrap, the one there is elsewhere."""
    return user // 2 if task.name == "PopularityTrap" else task.starts[0][1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("policy", POLICIES)
def test_exact_values_are_those_of_played_sessions(name: str, policy: str) -> None:
    task = TASKS[name]
    clicks = played(task, policy, 3000)
    error = clicks.std() / np.sqrt(len(clicks))
    assert abs(clicks.mean() - task.value(policy)) < 4 * error + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_no_policy_beats_the_ceiling_and_none_of_the_floors_reaches_it(name: str) -> None:
    task = TASKS[name]
    best = task.value("optimal")
    assert all(task.value(policy) <= best + 1e-9 for policy in ("random", "popularity", "myopic"))
    assert max(task.value("random"), task.value("popularity")) < 0.9 * best
    assert task.value(lambda state, page: task.best_item(state, page)) == pytest.approx(best)


def test_the_myopic_oracle_loses_fifteen_per_cent_and_more() -> None:
    for name in ("SatiationTrap", "ChurnTrap", "Drift"):  # by true utility
        assert TASKS[name].value("oracle") < 0.85 * TASKS[name].value("optimal")
    for name in ("ChurnTrap", "Drift"):  # by the likeliest click, even with every circumstance known
        assert TASKS[name].value("myopic") < 0.85 * TASKS[name].value("optimal")


def test_knowing_the_newcomer_is_worth_more_than_any_policy_can_find_out() -> None:
    assert TASKS["ColdStart"].value("oracle") > 1.2 * TASKS["ColdStart"].value("optimal")


@pytest.mark.parametrize("name", NAMES)
def test_gymnasiums_own_check_passes(name: str) -> None:
    check_env(gym.make(f"simenv/{name}-v0").unwrapped)


def test_what_defines_a_task_cannot_be_changed() -> None:
    with pytest.raises(ConfigError, match="slate_size: simenv/Drift-v0 sets it"):
        gym.make("simenv/Drift-v0", slate_size=2)
    assert isinstance(gym.make("simenv/Drift-v0", render_mode="ansi").unwrapped, SlateEnv)
    with pytest.raises(ConfigError, match="policy='best'"):
        TASKS["Drift"].value("best")
