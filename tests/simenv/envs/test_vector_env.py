"""Many sessions of one world: equality with single sessions, autoreset, what is shared, errors, snapshots."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode

import simenv  # noqa: F401 - registers the environments
from simenv.datasets import Dataset
from simenv.envs.slate import SlateEnv
from simenv.envs.vector import SlateVectorEnv
from simenv.errors import ConfigError

B = 6
STAYS = {"name": "choice", "exit_base": -50.0}
ALONE = {"name": "choice", "conformity": 0.0}  # no row can feel what another one clicked


def make(world: Dataset, **options: Any) -> SlateVectorEnv:
    return SlateVectorEnv(
        **({"num_envs": B, "dataset": world, "slate_size": 5, "history_size": 8, "details": True} | options)
    )


def single(world: Dataset, **options: Any) -> SlateEnv:
    return SlateEnv(**({"dataset": world, "slate_size": 5, "history_size": 8} | options))


def slates(rng: np.random.Generator, n: int = B) -> np.ndarray:
    return rng.integers(0, 60, (n, 5))


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return np.array_equal(left, right, equal_nan=isinstance(left, np.ndarray) and left.dtype.kind == "f")


def play(envs: SlateVectorEnv, n: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [envs.step(slates(rng)) for _ in range(n)]


# -- Gymnasium's contract -------------------------------------------------------------------------------------


def test_make_vec_gives_the_native_environment() -> None:
    envs = gym.make_vec("simenv/Slate-v0", num_envs=3, vectorization_mode="vector_entry_point", n_users=20, n_items=30)
    assert isinstance(envs, SlateVectorEnv)
    assert envs.num_envs == 3
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observation, info = envs.reset(seed=0)
    assert observation in envs.observation_space
    assert info["user"].shape == (3,)
    envs.close()


def test_spaces_are_the_batched_single_spaces(small_world: Dataset) -> None:
    envs, env = make(small_world), single(small_world)
    assert envs.single_observation_space == env.observation_space
    assert envs.single_action_space == env.action_space
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(30):
        observation, rewards, terminated, truncated, _ = envs.step(envs.action_space.sample())
        assert observation in envs.observation_space
        assert (rewards.shape, rewards.dtype) == ((B,), np.float64)
        assert (terminated.dtype, truncated.dtype) == (np.bool_, np.bool_)


def test_same_seed_same_batch_and_nothing_returned_is_touched_again(small_world: Dataset) -> None:
    envs, other = make(small_world), make(small_world)
    steps = [envs.reset(seed=1), *play(envs, 20)]
    kept = pickle.loads(pickle.dumps(steps))
    play(envs, 5)
    assert same(steps, kept)
    other.reset(seed=8)
    play(other, 3)
    assert same([other.reset(seed=1), *play(other, 20)], kept)


def test_gymnasiums_vector_wrappers_apply(small_world: Dataset) -> None:
    envs = gym.wrappers.vector.RecordEpisodeStatistics(make(small_world, agent=STAYS, max_pages=3))
    envs.reset(seed=0)
    returns = [play(envs, 3)[-1][4]["episode"]["l"] for _ in range(1)]
    np.testing.assert_array_equal(returns[0], np.full(B, 3))


# -- equality with single sessions ----------------------------------------------------------------------------


@pytest.mark.parametrize("repeat", ["never", "always"])
def test_rows_equal_single_environments_where_nothing_is_shared(small_world: Dataset, repeat: str) -> None:
    options: dict[str, Any] = {"agent": ALONE, "repeat": repeat, "max_pages": 4, "reward": {"clicks": 1, "utility": 1}}
    envs, alone = make(small_world, **options), [single(small_world, texts=False, **options) for _ in range(B)]
    batch, info = envs.reset(seed=7)
    firsts = [env.reset(seed=7 + row) for row, env in enumerate(alone)]
    ended = np.zeros(B, np.bool_)
    rng = np.random.default_rng(0)
    for row, (observation, own) in enumerate(firsts):
        assert same({name: values[row] for name, values in batch.items()}, observation)
        assert info["user"][row] == own["user"]
    for _ in range(60):
        actions = slates(rng)
        batch, rewards, terminated, truncated, info = envs.step(actions)
        for row, env in enumerate(alone):
            if ended[row]:
                observation, own = env.reset()
                expected: tuple[Any, ...] = (observation, 0.0, False, False)
            else:
                observation, *rest, own = env.step(actions[row])
                expected = (observation, *rest)
                np.testing.assert_array_equal(info["utility"][row], own["utility"])
                assert info["_utility"][row]
                assert info["reward_parts"]["rating"][row] == own["reward_parts"]["rating"]
            got = ({name: v[row] for name, v in batch.items()}, rewards[row], terminated[row], truncated[row])
            assert same(got, expected)
            assert info["user"][row] == own["user"]
            assert info["_utility"][row] != ended[row]
        ended = terminated | truncated


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_native_batch_equals_gymnasiums_own_vector_environment(small_world: Dataset, mode: AutoresetMode) -> None:
    options: dict[str, Any] = {"agent": ALONE, "max_pages": 3}
    envs = make(small_world, autoreset_mode=mode, **options)
    sync = gym.vector.SyncVectorEnv(
        [lambda: single(small_world, texts=False, **options)] * B, autoreset_mode=mode, observation_mode="same"
    )
    assert data_equivalence(envs.reset(seed=2)[0], sync.reset(seed=2)[0], exact=True)
    rng, ends = np.random.default_rng(1), 0
    for step in range(40):
        actions = slates(rng)
        got, expected = envs.step(actions), sync.step(actions)
        assert same(got[:4], expected[:4])
        assert {name for name in got[4] if _told(got[4], name)} == {n for n in expected[4] if _told(expected[4], n)}
        for name, values in expected[4].items():
            told = expected[4].get(f"_{name}")
            if told is not None and told.any():
                np.testing.assert_array_equal(got[4][f"_{name}"], told)
                assert same(_rows(got[4][name], told), _rows(values, told)), name
        ended = got[2] | got[3]
        ends += ended.sum()
        if mode is AutoresetMode.DISABLED and (ended.any() or step % 5 == 0):
            mask = ended | (rng.random(B) < 0.3)
            mask[0] |= not mask.any()
            again = envs.reset(options={"reset_mask": mask}), sync.reset(options={"reset_mask": mask.copy()})
            assert same(again[0][0], again[1][0])
            np.testing.assert_array_equal(again[0][1]["_user"], again[1][1]["_user"])
            np.testing.assert_array_equal(again[0][1]["user"][mask], again[1][1]["user"][mask])
            np.testing.assert_array_equal(again[0][1]["user"][~mask], got[4]["user"][~mask])
    assert ends > B


def _told(info: dict[str, Any], name: str) -> bool:
    """Whether an info says anything under a name."""
    return not name.startswith("_") and bool(info[f"_{name}"].any())


def _rows(values: Any, rows: np.ndarray) -> Any:
    if isinstance(values, dict):
        return {name: _rows(v, rows) for name, v in values.items()}
    return list(values[rows]) if values.dtype == object else values[rows]


def test_details_change_nothing_but_info(small_world: Dataset) -> None:
    full, lean = make(small_world), make(small_world, details=False)
    full.reset(seed=0)
    lean.reset(seed=0)
    for left, right in zip(play(full, 30), play(lean, 30), strict=True):
        assert same(left[:4], right[:4])
        assert "utility" not in right[4]
        assert "reward_parts" not in right[4]


# -- what is shared -------------------------------------------------------------------------------------------


def test_popularity_is_shared_and_conformity_feels_it(small_world: Dataset) -> None:
    agent = {"name": "choice", "base": 60.0, "exit_base": 50.0, "examination": "all"}  # everything clicked, then gone
    envs = make(small_world, num_envs=20, agent=agent, repeat="always")
    envs.reset(seed=0)
    before = envs.sessions.popularity.copy()
    rarest = np.argsort(small_world.interactions.item_counts())[:5]
    envs.step(np.tile(rarest, (20, 1)))
    assert (envs.sessions.popularity[rarest] > before[rarest]).all()
    np.testing.assert_array_equal(
        envs.sessions.click_counts[rarest], small_world.interactions.item_counts()[rarest] + 20
    )
    envs.reset()
    np.testing.assert_array_equal(envs.sessions.popularity, before)


def test_sessions_of_one_user_do_not_touch_each_other(small_world: Dataset) -> None:
    envs = make(small_world, agent=STAYS | {"base": 60.0, "examination": "all"})
    observation, info = envs.reset(seed=0, options={"user": 4})
    assert (info["user"] == 4).all()
    assert (observation["user"] == observation["user"][0]).all()
    free = np.flatnonzero(envs.action_masks()[0])
    envs.step(np.stack([free[row : row + 5] for row in range(B)]))
    for row in range(B):
        assert not envs.action_masks()[row, free[row : row + 5]].any()
        assert envs.action_masks()[row].sum() == len(free) - 5


# -- autoreset ------------------------------------------------------------------------------------------------


def test_same_step_keeps_the_last_observation(small_world: Dataset) -> None:
    options: dict[str, Any] = {"agent": ALONE, "max_pages": 3}
    same_step = make(small_world, autoreset_mode=AutoresetMode.SAME_STEP, **options)
    assert same_step.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    sync = gym.vector.SyncVectorEnv(
        [lambda: single(small_world, texts=False, **options)] * B, autoreset_mode=AutoresetMode.SAME_STEP
    )
    same_step.reset(seed=5)
    sync.reset(seed=5)
    rng, seen = np.random.default_rng(0), 0
    for _ in range(30):
        actions = slates(rng)
        got, expected = same_step.step(actions), sync.step(actions)
        assert same(got[:4], expected[:4])
        assert ("final_obs" in got[4]) == ("final_obs" in expected[4])
        if "final_obs" in expected[4]:
            ended = expected[4]["_final_obs"]
            seen += ended.sum()
            np.testing.assert_array_equal(got[4]["_final_obs"], ended)
            for row in np.flatnonzero(ended):
                assert same(got[4]["final_obs"][row], expected[4]["final_obs"][row])
                utility = got[4]["final_info"]["utility"][row], expected[4]["final_info"]["utility"][row]
                np.testing.assert_array_equal(*utility)
    assert seen > B


def test_disabled_waits_for_a_reset_mask(small_world: Dataset) -> None:
    envs = make(small_world, autoreset_mode="Disabled", agent=STAYS, max_pages=2)
    envs.reset(seed=0)
    play(envs, 1)
    observation, *_ = envs.reset(options={"reset_mask": np.arange(B) == 2})
    assert observation["page"].ravel().tolist() == [1, 1, 0, 1, 1, 1]
    _, _, _, truncated, _ = play(envs, 1)[0]
    np.testing.assert_array_equal(truncated, np.arange(B) != 2)
    with pytest.raises(gym.error.ResetNeeded, match=r"rows \[0, 1, 3, 4, 5\]"):
        play(envs, 1)
    envs.reset(options={"reset_mask": truncated})
    assert play(envs, 1)[0][3].tolist() == [row == 2 for row in range(B)]


def test_kept_world_brings_users_back_as_they_left(small_world: Dataset) -> None:
    agent = STAYS | {"base": 60.0, "examination": "all"}
    envs = make(small_world, agent=agent, max_pages=1, keep_world=True, num_envs=1)
    envs.reset(seed=0, options={"user": 4})
    slate = np.flatnonzero(envs.action_masks()[0])[:5]
    envs.step(slate[None])
    observation, _ = envs.reset(options={"user": 4})
    np.testing.assert_array_equal(observation["history_items"][0, :5], slate)


# -- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "actions", [np.zeros((B, 4), int), np.zeros((B, 5)), np.full((B, 5), 60), np.full((B, 5), -1), np.zeros(5, int)]
)
def test_actions_outside_the_space_are_refused_and_change_nothing(small_world: Dataset, actions: np.ndarray) -> None:
    envs = make(small_world, agent={"name": "choice", "exit_base": 0.0})
    envs.reset(seed=0)
    for _ in range(3):
        before = envs.get_state()["sessions"]
        with pytest.raises(gym.error.InvalidAction, match="items 0 to 59"):
            envs.step(actions)
        assert same(envs.get_state()["sessions"], before)
        play(envs, 1)


def test_one_bad_row_is_refused_even_while_others_restart(small_world: Dataset) -> None:
    envs = make(small_world, agent=STAYS, max_pages=2)
    envs.reset(seed=0)
    play(envs, 1)
    envs.reset(options={"reset_mask": np.arange(B) == 2})
    play(envs, 1)
    before = envs.get_state()["sessions"]
    actions = np.zeros((B, 5), int)
    actions[2, 3] = 99
    with pytest.raises(gym.error.InvalidAction, match="99"):
        envs.step(actions)
    assert same(envs.get_state()["sessions"], before)
    actions[2, 3] = 1
    actions[0, 0] = 99  # row 0 restarts: its action is not read
    assert envs.step(actions)[0]["page"].ravel().tolist() == [0, 0, 2, 0, 0, 0]


def test_steps_out_of_turn_and_bad_options_are_refused(small_world: Dataset) -> None:
    envs = make(small_world, render_mode="ansi")
    with pytest.raises(gym.error.ResetNeeded, match="before calling envs"):
        play(envs, 1)
    with pytest.raises(gym.error.ResetNeeded, match="render"):
        envs.render()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"reset_mask": [True] * B}, "reset_mask"),
        ({"reset_mask": np.zeros(B, np.bool_)}, "reset_mask"),
        ({"user": [1, 2]}, "user="),
        ({"users": 1}, "'users'"),
    ]
    for options, message in cases:
        with pytest.raises(gym.error.Error, match=message):
            envs.reset(seed=0, options=options)
    with pytest.raises(ConfigError, match="seed="):
        envs.reset(seed=[1, 2])
    for bad in ({"num_envs": 0}, {"autoreset_mode": "Never"}, {"reward": "click"}, {"render_mode": "human"}):
        with pytest.raises(gym.error.Error, match=next(iter(bad))):
            make(small_world, **bad)
    envs.reset(seed=[3, None, 3, 4, 5, 6])
    assert len(envs.render()) == B


def test_users_of_a_slow_model_are_served_one_session_at_a_time(small_world: Dataset) -> None:
    envs = make(small_world, agent="rank", num_envs=20)
    _, info = envs.reset(seed=0)
    assert len(set(info["user"])) == 20
    observation, rewards, terminated, _, _ = envs.step(slates(np.random.default_rng(0), 20))
    assert observation in envs.observation_space
    assert rewards.sum() > 0
    assert terminated.all()
    _, _, _, _, info = envs.step(slates(np.random.default_rng(1), 20))
    assert len(set(info["user"])) == 20
    with pytest.raises(ConfigError, match="num_envs=21"):
        make(small_world, agent="rank", num_envs=21)


# -- snapshots ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(AutoresetMode)[:2])
def test_a_restored_state_goes_on_bit_for_bit(small_world: Dataset, mode: AutoresetMode) -> None:
    envs, other = make(small_world, autoreset_mode=mode), make(small_world, autoreset_mode=mode)
    envs.reset(seed=0)
    play(envs, 7)
    state = pickle.loads(pickle.dumps(envs.get_state()))
    branches = envs.fork(2)
    went_on = play(envs, 20, seed=1)
    other.set_state(state)
    for again in (other, *branches):
        assert all(same(a[:4], b[:4]) for a, b in zip(play(again, 20, seed=1), went_on, strict=True))
    envs.set_state(state)
    fresh = play(envs.fork(1, luck="fresh")[0], 20, seed=1)
    assert not all(same(a[:4], b[:4]) for a, b in zip(fresh, went_on, strict=True))
