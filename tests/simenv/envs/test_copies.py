"""Copies, pickles, branches and other processes: whatever is copied goes on like the original, draw by draw."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest

import simenv  # noqa: F401 - registers the environments
from simenv.datasets import Dataset
from simenv.envs import fork
from simenv.envs.platform_env import PlatformEnv
from simenv.envs.rewards import Page
from simenv.envs.slate import SlateEnv
from simenv.envs.vector import SlateVectorEnv
from simenv.envs.wrappers import (
    ActionMask,
    CandidateSlates,
    EventRecorder,
    FlatObservation,
    HiddenState,
    ProtoAction,
    SingleItem,
)
from simenv.errors import ConfigError
from simenv.registration import TASKS

STAYS = {"name": "choice", "exit_base": -3.0, "base": 1.0}
HOW: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "cloudpickle": lambda env: pickle.loads(cloudpickle.dumps(env)),
}


def five_a_click(page: Page) -> np.ndarray:
    return 5.0 * page.clicked.sum(axis=1) + page.utility.sum(axis=1)


def slate(world: Dataset, **options: Any) -> SlateEnv:
    return SlateEnv(**({"dataset": world, "agent": STAYS, "slate_size": 4, "history_size": 6} | options))


ENVS: dict[str, Callable[[Dataset], Any]] = {
    "slate": lambda world: slate(world, reward=five_a_click),
    "kept": lambda world: slate(world, keep_world=True, repeat="always"),
    "rank": lambda world: slate(world, agent="rank"),
    "drifting": lambda world: slate(world, agent="drifting-interest", keep_world=True, max_pages=3),
    "vector": lambda world: SlateVectorEnv(
        3, dataset=world, agent=STAYS, slate_size=4, details=True, reward=five_a_click, autoreset_mode="SameStep"
    ),
    "vector of asked users": lambda world: SlateVectorEnv(3, dataset=world, agent="rank", slate_size=4, details=True),
    "platform": lambda world: PlatformEnv(dataset=world, slate_size=4, rounds=3),
    "flat": lambda world: FlatObservation(slate(world)),
    "recorder": lambda world: EventRecorder(slate(world, reward=five_a_click)),
    "candidates": lambda world: CandidateSlates(slate(world), 9, features=True),
    "proto": lambda world: ProtoAction(ActionMask(slate(world))),
    "hidden": lambda world: HiddenState(slate(world)),
    "single": lambda world: SingleItem(slate(world, slate_size=1)),
    "made": lambda world: gym.make("simenv/Slate-v0", dataset=world, slate_size=4),
} | {name: lambda _, name=name: gym.make(f"simenv/{name}-v0") for name in TASKS}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, (list, tuple)) or (isinstance(left, np.ndarray) and left.dtype == object):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return np.array_equal(left, right, equal_nan=isinstance(left, np.ndarray) and left.dtype.kind == "f")


def play(env: Any, n: int) -> list[Any]:
    """Steps and resets under actions of the environment's own space."""
    seen: list[Any] = []
    for _ in range(n):
        seen.append(env.step(env.action_space.sample()))
        if isinstance(seen[-1][2], (bool, np.bool_)) and (seen[-1][2] or seen[-1][3]):
            seen.append(env.reset())
    return seen


def begun(make: Callable[[Dataset], Any], world: Dataset, steps: int = 3) -> Any:
    env = make(world)
    env.action_space.seed(1)
    env.reset(seed=3)
    play(env, steps)
    return env


@pytest.mark.parametrize("name", ENVS)
def test_copies_and_branches_go_on_like_the_original(small_world: Dataset, name: str) -> None:
    env = begun(ENVS[name], small_world)
    copies = [how(env) for how in HOW.values()] + fork(env, 2)
    untouched, fresh = copy.deepcopy(env), fork(env, 1, luck="fresh")[0]
    steps = 4 if name == "platform" else 12
    went_on = play(env, steps)
    for other in copies:
        assert type(other) is type(env)
        assert same(play(other, steps), went_on)
    if name not in ("ColdStart", "PopularityTrap"):  # whose luck a page may well share
        assert not same(play(fresh, steps), went_on)
    assert same(play(untouched, steps), went_on)
    if name == "recorder":
        assert same(copies[0].events().clicked, env.events().clicked)
        assert env.events().clicked.any()


def test_a_branch_samples_actions_of_its_own(small_world: Dataset) -> None:
    for make in (ENVS["slate"], ENVS["vector"], ENVS["platform"]):
        env = begun(make, small_world, 1)
        branch = env.fork(1)[0]
        expected = copy.deepcopy(env.action_space).sample()
        branch.action_space.sample()
        np.testing.assert_array_equal(env.action_space.sample(), expected)


def test_candidates_follow_a_state_set_inside(small_world: Dataset) -> None:
    env = begun(ENVS["candidates"], small_world)
    state, other = env.unwrapped.get_state(), ENVS["candidates"](small_world)
    other.reset(seed=9)
    other.unwrapped.set_state(state)
    places = np.array([0, 1, 2, 3])
    assert same(other.step(places), env.step(places))


def test_a_state_of_another_world_is_refused(small_world: Dataset) -> None:
    for make, other in (
        (ENVS["slate"], slate(small_world, agent="choice")),
        (ENVS["slate"], slate(small_world, repeat="always")),
        (ENVS["slate"], SlateEnv(agent=STAYS, n_users=40, n_items=60, seed=5, slate_size=4, history_size=6)),
        (ENVS["vector"], SlateVectorEnv(3, dataset=small_world, agent=STAYS, slate_size=4)),
        (ENVS["platform"], PlatformEnv(dataset=small_world, slate_size=4, rounds=3, seed=1)),
        (ENVS["platform"], PlatformEnv(dataset=small_world, slate_size=4, rounds=3, activity=0.5)),
    ):
        state = begun(make, small_world, 1).get_state()
        other.reset(seed=0)
        with pytest.raises(ConfigError, match="not of an environment with these options"):
            other.set_state(state)
        other.step(other.action_space.sample())  # nothing has changed


def test_branches_of_asked_users_share_the_language_model(small_world: Dataset) -> None:
    from simenv.language_models.fake_server import LLMServer

    with LLMServer() as server:
        model = {"name": "openai", "model": "test", "base_url": server.base_url, "budget_calls": 99}
        env = begun(lambda world: slate(world, agent={"name": "llm", "language_model": model}), small_world)
        other = copy.deepcopy(env)
        assert other.sessions.users.language_model is env.sessions.users.language_model  # type: ignore[attr-defined]
        assert same(play(other, 6), play(env, 6))


def _in_a_process(pickled: bytes, pipe: Any) -> None:
    pipe.send([play(env, 3) for env in pickle.loads(pickled)])


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_other_processes_see_what_this_one_sees(small_world: Dataset, method: str) -> None:
    envs = [begun(ENVS[name], small_world) for name in ("slate", "vector", "candidates")]
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=_in_a_process, args=(pickle.dumps(envs), there))
    process.start()
    assert here.poll(120)
    seen = here.recv()
    process.join()
    assert same(seen, [play(env, 3) for env in envs])


@pytest.mark.slow
def test_vectors_of_processes_step_a_given_environment(small_world: Dataset) -> None:
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    env, twin = slate(small_world, texts=False), slate(small_world, texts=False)
    env.reset(seed=5)
    twin.reset(seed=5)
    subprocesses = vec_env.SubprocVecEnv([lambda: env], start_method="spawn")
    batch = gym.vector.AsyncVectorEnv([lambda: env, lambda: env], context="spawn", shared_memory=False)
    for vector, seed in ((subprocesses, None), (batch, 8)):
        first = vector.reset() if seed is None else vector.reset(seed=seed)[0]
        own = twin.reset()[0] if seed is None else twin.reset(seed=seed)[0]
        for page in range(4):
            assert all(np.array_equal(first[name][0], own[name]) for name in own)
            action = np.arange(4) + 4 * page
            first, *_ = vector.step(np.tile(action, (len(first["page"]), 1)))
            own, _, terminated, truncated, _ = twin.step(action)
            if terminated or truncated:
                break
        vector.close()
