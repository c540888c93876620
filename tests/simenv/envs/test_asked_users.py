"""Sessions of users who are asked page by page: language models behind slates, over a real wire."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import simenv  # noqa: F401 - registers the environments
from agents.choice.model import ChoiceModel
from agents.llm.user import LLMUser
from simenv.datasets import Dataset, synthetic
from simenv.envs.platform_env import PlatformEnv
from simenv.envs.sessions import Who
from simenv.envs.slate import SlateEnv
from simenv.envs.vector import SlateVectorEnv
from simenv.errors import BudgetExhausted, ConfigError
from simenv.language_models import LanguageModelError, openai
from simenv.language_models.fake_server import LLMServer

B = 4
STAYS = {"exit_base": -50.0}
SLATES = [np.arange(first, first + 5) for first in range(0, 60, 5)]
Users = Callable[..., LLMUser]


@pytest.fixture(scope="module")
def server() -> Iterator[LLMServer]:
    with LLMServer() as running:
        yield running


@pytest.fixture
def ask(server: LLMServer) -> Users:
    """Makes users who ask the server, which has seen nothing yet."""
    server.seen.clear()

    def users(llm: dict[str, Any] | None = None, **options: Any) -> LLMUser:
        model = openai("test", server.base_url, **({"backoff": 0.001, "timeout": 10} | (llm or {})))
        return LLMUser(model, embedded=ChoiceModel(**STAYS), digest_every=1, **options)

    return users


def make(world: Dataset, agent: Any, **options: Any) -> SlateEnv:
    return SlateEnv(**({"dataset": world, "agent": agent, "slate_size": 5, "max_pages": 4, "texts": False} | options))


def make_vec(world: Dataset, agent: Any, **options: Any) -> SlateVectorEnv:
    return SlateVectorEnv(**({"num_envs": B, "dataset": world, "agent": agent, "slate_size": 5} | options))


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return np.array_equal(left, right, equal_nan=isinstance(left, np.ndarray) and left.dtype.kind == "f")


def go_on(env: SlateEnv, n: int = 2) -> list[Any]:
    return [env.step(slate) for slate in SLATES[3 : 3 + n]]


def batch(start: int) -> np.ndarray:
    return (start + np.arange(5 * B).reshape(B, 5)) % 60


# -- playing --------------------------------------------------------------------------------------------------


def test_gymnasiums_own_check_passes(small_world: Dataset, ask: Users) -> None:
    check_env(make(small_world, ask()), skip_render_check=True)


@pytest.mark.parametrize("name", ["llm", "mixed", "user-lm"])
def test_they_are_made_by_name(small_world: Dataset, server: LLMServer, name: str) -> None:
    server.seen.clear()
    model = {"language_model": {"name": "openai", "model": "test", "base_url": server.base_url}}
    agent = {"name": name, "share": 0.9, "sample": model} if name == "mixed" else {"name": name} | model
    env = gym.make("simenv/Slate-v0", dataset=small_world, slate_size=5, agent=agent)
    for seed in range(4 if name == "mixed" else 1):
        env.reset(seed=seed)
        observation, reward, *_ = env.step(SLATES[0])
        assert reward == observation["clicks"].sum()
    assert any("# The page" in seen.prompt for seen in server.seen) or name == "user-lm"
    with pytest.raises(ConfigError, match="in Python the option language_model of agent"):
        gym.make("simenv/Slate-v0", dataset=small_world, agent=name)


def test_a_page_is_one_question_about_its_items(small_world: Dataset, ask: Users, server: LLMServer) -> None:
    env = gym.make("simenv/Slate-v0", dataset=small_world, agent=ask(), slate_size=5)
    env.reset(seed=0)
    assert not server.seen
    observation, reward, _, _, info = env.step(SLATES[0])
    assert len(server.seen) == 1
    assert all(title in server.seen[0].prompt for title in info["titles"])
    assert reward == observation["clicks"].sum()
    assert not (observation["clicks"] & ~info["examined"]).any()


def test_rows_are_asked_side_by_side_and_are_different_users(
    small_world: Dataset, ask: Users, server: LLMServer
) -> None:
    envs = make_vec(small_world, ask(), max_pages=2)
    _, info = envs.reset(seed=0)
    assert len(set(info["user"])) == B
    for step in range(5):
        observation, _, _, truncated, info = envs.step(batch(20 * step))
        assert observation in envs.observation_space
        assert len(set(info["user"])) == B
        assert truncated.all() == (step in (1, 4))
    assert len(server.seen) == 4 * B  # the third step only begins sessions


# -- forgetting -----------------------------------------------------------------------------------------------


def test_a_reset_forgets_and_a_kept_world_remembers(small_world: Dataset, ask: Users, server: LLMServer) -> None:
    env = make(small_world, ask(), repeat="always")

    def session(**options: Any) -> list[str]:
        server.seen.clear()
        env.reset(options={"user": 7} | options)
        env.sessions.who[0, Who.EPISODE] = 0  # the same luck every time
        for slate in SLATES[:2]:
            env.step(slate)
        return [seen.prompt for seen in server.seen]

    env.reset(seed=0)
    first = session()
    assert session() == first
    assert session(keep_world=True)[0] != first[0]
    assert session() == first


def test_whoever_comes_again_into_a_batch_has_forgotten(small_world: Dataset, ask: Users, server: LLMServer) -> None:
    envs = make_vec(small_world, ask(), max_pages=1, repeat="always", num_envs=2)
    envs.reset(seed=0, options={"user": [3, 4]})
    envs.step(batch(0)[:2])
    first = sorted(seen.prompt for seen in server.seen)
    for start in (10, 20):  # other sessions meanwhile
        envs.step(batch(start)[:2])
        envs.step(batch(start)[:2])
    server.seen.clear()
    envs.reset(options={"user": [3, 4], "reset_mask": np.ones(2, np.bool_)})
    memory = envs.sessions.users.population.memory_count[[3, 4]]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(memory, small_world.interactions.user_counts()[[3, 4]])
    envs.sessions.who[:, Who.EPISODE] = 0  # the same luck again
    envs.step(batch(0)[:2])
    assert sorted(seen.prompt for seen in server.seen) == first


@pytest.mark.parametrize("agent", ["rank", "llm"])
def test_a_kept_world_brings_asked_users_back_as_they_left(small_world: Dataset, ask: Users, agent: str) -> None:
    env = make(small_world, ask() if agent == "llm" else agent, keep_world=True)
    env.reset(seed=0, options={"user": 7})
    slate = np.flatnonzero(env.action_masks())[:5]
    last, *_ = env.step(slate)
    observation, _ = env.reset(options={"user": 7})
    np.testing.assert_array_equal(observation["history_items"], last["history_items"])
    np.testing.assert_allclose(observation["user"], last["user"], rtol=1e-6)
    assert not env.action_masks()[slate[last["clicks"] > 0]].any()
    env.step(slate)
    assert not (env.sessions.examined[0] & (last["clicks"] > 0)).any()


# -- what goes wrong ------------------------------------------------------------------------------------------


def test_a_spent_budget_is_named_and_ends_the_session(small_world: Dataset, ask: Users) -> None:
    env = make(small_world, ask({"budget_calls": 2}))
    env.reset(seed=0)
    go_on(env, 2)
    with pytest.raises(BudgetExhausted, match=r"budget_calls=2 \(spent 2\)"):
        env.step(SLATES[0])
    with pytest.raises(gym.error.ResetNeeded, match="a page has failed"):
        env.step(SLATES[0])
    env.reset()
    with pytest.raises(BudgetExhausted):
        env.step(SLATES[0])  # a reset brings no money back


def test_a_batch_stops_as_one_and_can_be_restored(small_world: Dataset, ask: Users) -> None:
    envs = make_vec(small_world, ask({"budget_calls": B + 2}), max_pages=3)
    envs.reset(seed=0)
    envs.step(batch(0))
    state = envs.get_state()
    with pytest.raises(BudgetExhausted):
        envs.step(batch(20))
    for _ in range(2):
        with pytest.raises(gym.error.ResetNeeded, match="after a page has failed"):
            envs.step(batch(20))
    other = make_vec(small_world, ask(), max_pages=3)
    other.set_state(state)
    assert other.step(batch(20))[0]["page"].ravel().tolist() == [2] * B
    envs.set_state(state)
    with pytest.raises(BudgetExhausted):
        envs.step(batch(20))
    envs.reset()
    with pytest.raises(BudgetExhausted):
        envs.step(batch(20))


def test_a_language_model_out_of_reach_is_one_clear_error(small_world: Dataset) -> None:
    lost = openai("test", "http://127.0.0.1:9/v1", backoff=0.001, timeout=1, max_retries=0)
    env = make(small_world, LLMUser(lost))
    env.reset(seed=0)
    with pytest.raises(LanguageModelError, match="test") as caught:
        env.step(SLATES[0])
    assert "\n" not in str(caught.value)


def test_users_of_another_world_are_refused(small_world: Dataset, ask: Users) -> None:
    agent = ask()
    make(small_world, agent)
    for other in (make, make_vec):
        with pytest.raises(ConfigError, match="serves a world already"):
            other(small_world, agent)


# -- snapshots ------------------------------------------------------------------------------------------------


def test_a_restored_session_goes_on_bit_for_bit(small_world: Dataset, ask: Users, server: LLMServer) -> None:
    env, other = make(small_world, ask(reflection_every=2)), make(small_world, ask(reflection_every=2))
    env.reset(seed=3)
    env.step(SLATES[0])
    state = pickle.loads(pickle.dumps(env.get_state()))
    server.seen.clear()
    went_on, prompts = go_on(env), [seen.prompt for seen in server.seen]
    other.set_state(state)
    server.seen.clear()
    assert same(go_on(other), went_on)
    assert [seen.prompt for seen in server.seen] == prompts


def test_branches_go_their_own_way(small_world: Dataset, ask: Users) -> None:
    env = make(small_world, ask(), max_pages=30)
    env.reset(seed=3)
    env.step(SLATES[0])
    same_luck, again = env.fork(2)
    fresh = env.fork(1, luck="fresh")[0]
    before = copy.deepcopy(env.get_state()["sessions"])
    went_on = go_on(same_luck, 6)
    other = go_on(fresh, 6)
    now = env.get_state()["sessions"]
    for state in (before, now):
        state["users"].pop("llm_texts")  # holds the ledger, which all branches share: the money is one
    assert same(now, before)
    assert same(go_on(again, 6), went_on)
    assert same(go_on(env, 6), went_on)
    assert not same(other, went_on)


def test_a_restored_batch_goes_on_bit_for_bit(small_world: Dataset, ask: Users) -> None:
    envs = make_vec(small_world, ask(), max_pages=2)
    envs.reset(seed=1)
    envs.step(batch(0))
    state = pickle.loads(pickle.dumps(envs.get_state()))
    branch = envs.fork(1)[0]
    went_on = [envs.step(batch(10 * step)) for step in range(1, 5)]
    assert same([branch.step(batch(10 * step)) for step in range(1, 5)], went_on)
    envs.set_state(state)
    assert same([envs.step(batch(10 * step)) for step in range(1, 5)], went_on)


def test_a_platform_of_asked_users_can_be_restored(ask: Users) -> None:
    world = synthetic(n_users=8, n_items=30, seed=5)
    platform = PlatformEnv(dataset=world, agent=ask(), recommender="popularity", slate_size=5, rounds=3)
    platform.reset(seed=0)
    knobs = np.full(3, 0.2, np.float32)
    platform.step(knobs)
    saved = pickle.loads(pickle.dumps(platform.get_state()))
    after = platform.step(knobs)
    platform.set_state(saved)
    branch = platform.fork(1)[0]
    assert same(platform.step(knobs), after)
    assert same(branch.step(knobs), after)
