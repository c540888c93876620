"""The platform as an environment: Gymnasium's checks, what each knob does, rewards, errors."""

from __future__ import annotations

import gc
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import simenv  # noqa: F401 - registers the environments
from simenv.datasets import Dataset
from simenv.envs.platform_env import OBSERVED, PlatformEnv
from simenv.errors import ConfigError
from simenv.platform import Platform

SMALL: dict[str, Any] = {"n_users": 30, "n_items": 50, "slate_size": 5, "rounds": 4}
NOTHING = np.zeros(3, np.float32)


def make(world: Dataset, **options: Any) -> PlatformEnv:
    return PlatformEnv(**({"dataset": world, "slate_size": 5, "rounds": 4} | options))


def episode(env: PlatformEnv, action: Any, seed: int = 0) -> list[dict[str, Any]]:
    env.reset(seed=seed)
    infos = []
    while True:
        _, reward, terminated, truncated, info = env.step(np.array(action, np.float32))
        infos.append(info | {"reward": reward})
        if terminated or truncated:
            return infos


def mean(infos: list[dict[str, Any]], name: str) -> float:
    return float(np.mean([info[name] for info in infos]))


@pytest.mark.parametrize(
    "options", [{}, {"harm": "group_gap", "attrition": 0.5, "per_group": True}, {"recommender": "als", "harm": None}]
)
def test_gymnasiums_own_check_passes(options: dict[str, Any]) -> None:
    check_env(gym.make("simenv/Platform-v0", **(SMALL | options)).unwrapped)


def test_same_seed_same_rounds_and_other_seeds_differ(small_world: Dataset) -> None:
    env, other = make(small_world), make(small_world)
    first = episode(env, [0.3, 0.2, 0.1], seed=1)
    episode(other, [1, 1, 1], seed=4)
    assert episode(other, [0.3, 0.2, 0.1], seed=1) == first
    assert episode(env, [0.3, 0.2, 0.1], seed=2) != first


def test_zero_knobs_are_the_base_recommender_in_the_loop(small_world: Dataset) -> None:
    from agents.choice.model import ChoiceModel
    from recommenders.neighbours import ItemKNN
    from simenv.platform import Schedule

    env = make(small_world)
    env.reset(seed=3)
    users = ChoiceModel()
    assert small_world.tastes is not None
    users.bind(small_world, small_world.tastes, seed=0)
    plain = Platform(small_world, users, ItemKNN(), seed=env.platform.world_seed, schedule=Schedule(slate_size=5))
    for _ in range(4):
        env.step(NOTHING)
        plain.step()
        assert env.platform.round_events is not None
        assert plain.round_events is not None
        np.testing.assert_array_equal(env.platform.round_events.item, plain.round_events.item)
        np.testing.assert_array_equal(env.platform.round_events.clicked, plain.round_events.clicked)


def test_every_knob_does_what_it_says(small_world: Dataset) -> None:
    env = make(small_world)
    plain = episode(env, [0, 0, 0])
    assert mean(episode(env, [1, 0, 0]), "gini") < mean(plain, "gini") - 0.1
    assert mean(episode(env, [0, 1, 0]), "arp_pct") < mean(plain, "arp_pct") - 0.1
    assert mean(episode(env, [0, 0, 1]), "genre_kl") < mean(plain, "genre_kl")


@pytest.mark.parametrize(
    ("options", "engagement", "harm"),
    [
        ({"engagement": "utility", "harm": "gini", "harm_weight": 2.0}, "true_utility", "gini"),
        ({"engagement": "satisfaction", "harm": "calibration"}, "satisfaction", "genre_kl"),
    ],
)
def test_reward_is_engagement_minus_weighted_harm(
    small_world: Dataset, options: dict[str, Any], engagement: str, harm: str
) -> None:
    env = make(small_world, **options)
    for info in episode(env, [0.5, 0.5, 0.5]):
        assert info["engagement"] == info[engagement]
        assert info["harm"] == info[harm]
        assert info["reward"] == pytest.approx(info["engagement"] - options.get("harm_weight", 0.5) * info["harm"])


def test_no_corner_of_the_knobs_is_best_under_the_default_reward() -> None:
    env = PlatformEnv(n_users=150, n_items=300, rounds=8)

    def value(action: Any) -> float:
        return mean(episode(env, action), "reward")

    corners = [value(action) for action in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))]
    assert value((0.75, 0, 0.8)) > max(corners) + 0.01


def test_clicks_group_gap_and_a_function_of_the_events(small_world: Dataset) -> None:
    env = make(small_world, harm="group_gap")
    env.reset(seed=0)
    info = env.step(NOTHING)[4]
    events = env.platform.round_events
    assert events is not None
    assert info["engagement"] == events.clicked.sum() / 40
    minority = small_world.user_attributes["taste"][events.user] == "minority"
    gap = events.true_utility[minority].mean() - events.true_utility[~minority].mean()
    assert info["harm"] == pytest.approx(abs(gap), rel=1e-5)
    counting = make(small_world, harm=lambda events: len(events), harm_weight=1.0)
    counting.reset(seed=0)
    assert counting.step(NOTHING)[4]["harm"] == 200


def test_groups_have_knobs_of_their_own(small_world: Dataset) -> None:
    env, plain = make(small_world, per_group=True), make(small_world)
    assert env.groups == ("taste=majority", "taste=minority")
    minority = small_world.user_attributes["taste"] == "minority"
    knobs = np.array([0.4, 0.3, 0.6], np.float32)
    both, one = episode(env, [knobs, knobs]), episode(plain, knobs)
    assert both == one  # equal rows are the knobs of everybody
    for knob, figure in ((0, "gini"), (1, "arp_pct")):
        action = np.zeros((2, 3), np.float32)
        action[1, knob] = 1
        env.reset(seed=0)
        plain.reset(seed=0)
        observation, *_ = env.step(action)
        plain.step(NOTHING)
        mine, theirs = env.platform.round_events, plain.platform.round_events
        assert mine is not None
        assert theirs is not None
        changed = np.unique(mine.user[mine.item != theirs.item])
        assert len(changed) > 0, figure
        assert minority[changed].all(), figure  # the majority is served as before
        assert observation[-6:].tolist() == action.ravel().tolist()
    assert (mine.popularity0_pct[minority[mine.user]].mean()) < theirs.popularity0_pct[minority[theirs.user]].mean()
    assert "taste=minority: exploration 0.00, popularity_penalty 1.00" in str(make_text(env, action))


def make_text(env: PlatformEnv, action: Any) -> str | None:
    other = make(env.dataset, per_group=True, render_mode="ansi")
    other.reset(seed=0)
    other.step(action)
    return other.render()


def test_it_ends_after_the_rounds_or_when_everybody_has_left(small_world: Dataset) -> None:
    assert len(episode(make(small_world), [0, 0, 0])) == 4
    angry = {"name": "choice", "satisfaction_memory": 0.0, "taste": 0.0, "base": -50.0}
    env = make(small_world, attrition=1.0, agent=angry, rounds=200)
    infos = episode(env, [0, 0, 0])
    assert len(infos) < 200
    assert infos[-1]["present"] == 0


def test_observation_has_the_figures_of_the_round(small_world: Dataset) -> None:
    env = make(small_world)
    first, _ = env.reset(seed=0)
    assert not first.any()
    observation, _, _, _, info = env.step(np.array([0.1, 0.2, 0.3], np.float32))
    expected = [min(info[name], 1.0) for name in OBSERVED]
    np.testing.assert_allclose(observation, [*expected, 0.25, 0.1, 0.2, 0.3], rtol=1e-6)


def test_no_model_is_built_for_an_episode(small_world: Dataset) -> None:
    env = make(small_world)
    gc.collect()
    models = sum(type(thing) is Platform for thing in gc.get_objects())
    for seed in range(5):
        episode(env, [0, 0, 0], seed=seed)
    assert sum(type(thing) is Platform for thing in gc.get_objects()) <= models


def test_text_names_knobs_and_figures(small_world: Dataset) -> None:
    env = make(small_world, render_mode="ansi")
    env.reset(seed=0)
    assert "nothing played yet" in str(env.render())
    env.step(np.array([0.5, 0, 0], np.float32))
    assert "round 1 of 4: exploration 0.50" in str(env.render())


@pytest.mark.parametrize("action", [np.zeros(2), np.array([0, 0, 1.1]), np.array([0, 0, np.nan]), "abc", None])
def test_actions_outside_the_space_are_refused(small_world: Dataset, action: Any) -> None:
    env = make(small_world)
    env.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match="expected 3 numbers in"):
        env.step(action)
    assert env.platform.round == 0


@pytest.mark.parametrize(
    "options",
    [
        {"engagement": "joy"},
        {"harm": "bias"},
        {"harm_weight": -1},
        {"max_penalty": "x"},
        {"rounds": 0},
        {"harm": "group_gap", "group": "age"},
        {"recommender": "itemnn"},
        {"recommender": {"name": "itemknn", "neighbors": 3}},
        {"slate_size": 61},
        {"activity": 0.0},
        {"render_mode": "rgb_array"},
    ],
)
def test_bad_options_are_named(small_world: Dataset, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        make(small_world, **options)
    assert isinstance(caught.value, gym.error.Error)
    assert list(options)[-1].split("_")[0] in str(caught.value) or "neighbors" in str(caught.value)


def test_steps_out_of_turn_are_refused(small_world: Dataset) -> None:
    env = make(small_world, rounds=1)
    with pytest.raises(gym.error.ResetNeeded, match="before"):
        env.step(NOTHING)
    env.reset(seed=0)
    env.step(NOTHING)
    with pytest.raises(gym.error.ResetNeeded, match="after the episode has ended"):
        env.step(NOTHING)
    with pytest.raises(ConfigError, match="reset option 'x'"):
        env.reset(options={"x": 1})


# -- snapshots ------------------------------------------------------------------------------------------------


def go_on(env: PlatformEnv, n: int = 3) -> list[Any]:
    """What the next rounds bring, impressions included."""
    happened: list[Any] = []
    for step in range(n):
        observation, *rest = env.step(np.array([0.2, 0.1 * step, 0.3], np.float32))
        events = env.platform.round_events
        assert events is not None
        happened.append((observation.tolist(), *rest, events.item.tolist(), events.clicked.tolist()))
    return happened


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recommender": "als", "attrition": 0.5, "max_pages": 2},
        {"recommender": {"name": "itemknn", "neighbours": 5}, "retrain_every": 2, "activity": 0.6},
        {
            "agent": {"name": "choice", "drift": 0.05, "satiation_gain": 2.0},
            "recommender": {"_target_": "recommenders.linucb.LinUCB"},
        },
    ],
)
def test_a_restored_state_goes_on_bit_for_bit(small_world: Dataset, options: dict[str, Any]) -> None:
    env, other = make(small_world, rounds=9, **options), make(small_world, rounds=9, **options)
    env.reset(seed=5)
    go_on(env, 2)
    state = pickle.loads(pickle.dumps(env.get_state()))
    went_on = go_on(env)
    other.set_state(state)
    assert other.render() == env.render()
    assert go_on(other) == went_on
    other.reset(seed=8)
    go_on(other, 1)
    other.set_state(state)
    assert go_on(other) == went_on
    assert other.reset()[0].tolist() == env.reset()[0].tolist()
    assert go_on(other) == go_on(env)


def test_branches_have_the_same_luck_or_their_own(small_world: Dataset) -> None:
    env = make(small_world, rounds=9)
    env.reset(seed=5)
    go_on(env, 2)
    same, again = env.fork(2)
    fresh, fresher = env.fork(2, luck="fresh")
    went_on = go_on(env)
    assert go_on(same) == went_on
    go_on(fresh, 1)
    assert go_on(again) == went_on
    futures = [went_on, go_on(fresh, 2), go_on(fresher)]
    assert all(futures[a] != futures[b] for a, b in ((0, 1), (0, 2), (1, 2)))


def test_an_ended_episode_is_restored_as_ended(small_world: Dataset) -> None:
    env, other = make(small_world, rounds=1), make(small_world, rounds=1)
    env.reset(seed=0)
    go_on(env, 1)
    other.set_state(env.get_state())
    with pytest.raises(gym.error.ResetNeeded, match="after the episode has ended"):
        other.step(NOTHING)


def test_snapshots_that_cannot_be_had_are_refused(small_world: Dataset) -> None:
    from recommenders.neighbours import ItemKNN

    env = make(small_world)
    with pytest.raises(gym.error.ResetNeeded, match="get_state"):
        env.get_state()
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="luck='new'"):
        env.fork(1, luck="new")
    own = make(small_world, recommender=ItemKNN())
    with pytest.raises(gym.error.ResetNeeded, match="fork"):
        own.fork(1)
    own.reset(seed=0)
    assert go_on(own.fork(1)[0]) == go_on(own)
    for other in (make(small_world, recommender="als"), make(small_world, per_group=True)):
        other.reset(seed=0)
        with pytest.raises(ConfigError, match="state: not of an environment with these options"):
            other.set_state(env.get_state())
        other.step(np.zeros(other.action_space.shape, np.float32))  # nothing has changed


@pytest.mark.parametrize("per_group", [False, True])
def test_a_vector_of_platforms_steps_each_as_if_alone(per_group: bool) -> None:
    options = SMALL | {"per_group": per_group}
    envs = gym.make_vec("simenv/Platform-v0", num_envs=2, vectorization_mode="sync", **options)
    actions = np.array([[0.5, 0.2, 0.1], [0, 1, 0]], np.float32)
    actions = np.stack([actions, 1 - actions], axis=1) if per_group else actions
    envs.reset(seed=[3, 4])
    observations, rewards, *_ = envs.step(actions)
    for row, (seed, action) in enumerate(zip((3, 4), actions, strict=True)):
        alone = gym.make("simenv/Platform-v0", **options)
        alone.reset(seed=seed)
        observation, reward, *_ = alone.step(action)
        np.testing.assert_array_equal(observations[row], observation)
        assert rewards[row] == pytest.approx(reward)
