"""One session: Gymnasium's own checks, the user model's answers, rewards, errors, snapshots."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import simenv  # noqa: F401 - registers the environments
from agents.choice.model import ChoiceModel, RankAcceptance
from simenv.datasets import Dataset
from simenv.envs.rewards import Page
from simenv.envs.slate import SlateEnv
from simenv.envs.vector import SlateVectorEnv
from simenv.errors import ConfigError, SimenvError
from simenv.randomness import Key

STAYS = {"name": "choice", "exit_base": -50.0}


def make(world: Dataset, **options: Any) -> SlateEnv:
    return SlateEnv(**({"dataset": world, "slate_size": 5, "history_size": 8} | options))


def same(left: Any, right: Any) -> bool:
    """Bit equality of nested dicts, sequences and arrays."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return np.array_equal(left, right, equal_nan=isinstance(left, np.ndarray) and left.dtype.kind == "f")


def play(env: Any, n: int, seed: int = 0) -> list[Any]:
    """`n` steps of random slates, resetting at the end of episodes."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(n):
        step = env.step(rng.integers(0, env.unwrapped.dataset.n_items, env.action_space.shape))
        out.append(step)
        if step[2] or step[3]:
            out.append(env.reset())
    return out


# -- Gymnasium's contract -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repeat": "always", "reward": {"clicks": 1.0, "retention": 0.5}, "texts": False},
        {"agent": "rank", "reward": "rating"},
        {"keep_world": True, "reward": "utility", "history_size": 1},
        {"slate_size": 1, "n_users": 3, "n_items": 7},
    ],
)
def test_gymnasiums_own_check_passes(options: dict[str, Any]) -> None:
    env = gym.make("simenv/Slate-v0", **({"n_users": 30, "n_items": 50} | options))
    check_env(env.unwrapped)


def test_make_works_after_import_alone() -> None:
    code = (
        "import gymnasium as gym, simenv, sys; assert 'agents' not in sys.modules; "
        "e = gym.make('simenv/Slate-v0', n_users=20, n_items=30, slate_size=3); e.reset(seed=0); "
        "print(e.step(e.action_space.sample())[1] >= 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_every_observation_is_in_the_space_and_every_bound_is_finite(small_world: Dataset) -> None:
    env = make(small_world)
    for space in env.observation_space.spaces.values():
        assert np.isfinite(space.low).all()
        assert np.isfinite(space.high).all()
    env.reset(seed=0)
    for step in play(env, 100):
        assert step[0] in env.observation_space


def test_same_seed_same_episodes_whatever_was_played_before(small_world: Dataset) -> None:
    env, other = make(small_world), make(small_world)
    first = [env.reset(seed=3), *play(env, 50)]
    other.reset(seed=9)
    play(other, 20, seed=1)
    assert same([other.reset(seed=3), *play(other, 50)], first)
    assert not same([env.reset(seed=4), *play(env, 50)], first)


def test_unseeded_environments_differ(small_world: Dataset) -> None:
    users = [tuple(env.reset()[1]["user"] for _ in range(8)) for env in (make(small_world), make(small_world))]
    assert users[0] != users[1]


def test_what_is_returned_is_not_touched_again(small_world: Dataset) -> None:
    env = make(small_world, agent=STAYS)
    env.reset(seed=0)
    first = env.step(np.arange(5))
    kept = pickle.loads(pickle.dumps(first))
    play(env, 10)
    assert same(first, kept)
    first[0]["history_items"][:] = 0
    first[4]["utility"][:] = 0
    assert not same(env.step(np.arange(5))[4]["utility"], first[4]["utility"])


# -- the user behind it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", [{"name": "choice"}, {"name": "choice", "examination": "cascade"}, {"name": "rank"}])
def test_answers_are_those_of_the_user_model_under_the_written_key(small_world: Dataset, agent: dict[str, Any]) -> None:
    env = make(small_world, agent=agent, repeat="always", max_pages=6)
    rng = np.random.default_rng(0)
    for seed in range(12):
        _, info = env.reset(seed=seed)
        users = {"choice": ChoiceModel, "rank": RankAcceptance}[agent["name"]](
            **{name: value for name, value in agent.items() if name != "name"}
        )
        assert small_world.tastes is not None
        users.bind(small_world, small_world.tastes, seed=0)
        for page in range(6):
            slate = rng.permutation(small_world.n_items)[:5]
            observation, reward, terminated, _, after = env.step(slate)
            expected = users.respond(np.array([info["user"]]), slate[None].astype(np.int32), Key(seed, 0, page))
            np.testing.assert_array_equal(observation["clicks"], expected.clicked[0])
            np.testing.assert_array_equal(after["examined"], expected.examined[0])
            np.testing.assert_allclose(after["utility"], expected.utility[0], rtol=1e-5)
            np.testing.assert_array_equal(observation["ratings"], np.nan_to_num(expected.ratings[0]))
            assert reward == expected.clicked.sum()
            assert terminated == expected.exited[0]
            if terminated:
                break


def test_duplicates_and_consumed_items_act_as_empty(small_world: Dataset) -> None:
    env = make(small_world, agent={"name": "choice", "examination": "all", "exit_base": -50.0})
    env.reset(seed=1, options={"user": 3})
    mask = env.action_masks()
    past = small_world.interactions.items[small_world.interactions.users == 3]
    np.testing.assert_array_equal(np.flatnonzero(~mask), np.unique(past))
    new, old = int(np.flatnonzero(mask)[0]), int(past[0])
    _, _, _, _, info = env.step(np.array([new, new, old, old, new]))
    np.testing.assert_array_equal(info["examined"], [True, False, False, False, False])
    assert info["utility"][0] > 0
    np.testing.assert_array_equal(info["utility"][1:], 0)


def test_consumed_items_stay_attractive_under_repeat_always(small_world: Dataset) -> None:
    env = make(small_world, repeat="always", agent={"name": "choice", "examination": "all"})
    user = int(small_world.interactions.user_counts().argmax())
    env.reset(seed=1, options={"user": user})
    assert env.action_masks().all()
    past = small_world.interactions.items[small_world.interactions.users == user]
    assert env.step(np.unique(past)[:5])[4]["examined"].all()


def test_history_is_newest_first_after_the_warm_start(small_world: Dataset) -> None:
    env = make(small_world, agent=STAYS, history_size=13)
    observation, info = env.reset(seed=2)
    past = small_world.interactions.items[small_world.interactions.users == info["user"]]
    newest = past[::-1][:13]
    np.testing.assert_array_equal(observation["history_items"][: len(newest)], newest)
    assert observation["history_clicks"][: len(newest)].all()
    assert (observation["history_items"][len(newest) :] == -1).all()
    slates, clicks, shown = [], [], np.concatenate([newest, np.full(13, -1)])
    rng = np.random.default_rng(0)
    for page in range(9):
        observation = env.step(rng.integers(0, 60, 5))[0]
        slates.insert(0, observation["slate"])
        clicks.insert(0, observation["clicks"])
        np.testing.assert_array_equal(observation["history_items"], np.concatenate([*slates, shown])[:13])
        np.testing.assert_array_equal(observation["history_clicks"][: 5 * (page + 1)], np.concatenate(clicks)[:13])
        assert observation["page"] == [page + 1]


def test_user_features_are_shares_that_follow_the_clicks(small_world: Dataset) -> None:
    env = make(small_world, agent=STAYS | {"base": 60.0})
    before = env.reset(seed=0)[0]["user"]
    assert before[:-3].sum() == pytest.approx(1.0, abs=1e-5)
    after = env.step(np.flatnonzero(env.action_masks())[:5])[0]["user"]
    assert after[:-3].sum() == pytest.approx(1.0, abs=1e-5)
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(before[-3:], after[-3:])


def test_leaving_terminates_and_the_page_cap_truncates(small_world: Dataset) -> None:
    leaves = make(small_world, agent={"name": "choice", "exit_base": 50.0})
    leaves.reset(seed=0)
    assert leaves.step(np.arange(5))[2:4] == (True, False)
    stays = make(small_world, agent=STAYS, max_pages=3)
    stays.reset(seed=0)
    ends = [stays.step(np.arange(5))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_named_user_and_kept_world(small_world: Dataset) -> None:
    env = make(small_world, agent=STAYS | {"base": 60.0, "examination": "all"})
    observation, info = env.reset(seed=0, options={"user": "u7"})
    assert info["user"] == 7
    slate = np.flatnonzero(env.action_masks())[:5]
    env.step(slate)
    assert not env.action_masks()[slate].any()
    again, _ = env.reset(options={"user": 7, "keep_world": True})
    np.testing.assert_array_equal(again["history_items"][:5], slate)
    assert not env.action_masks()[slate].any()
    assert env.sessions.click_counts.sum() == len(small_world.interactions) + 5
    fresh, _ = env.reset(options={"user": 7})
    assert same(fresh, observation)
    assert env.sessions.click_counts.sum() == len(small_world.interactions)


def test_time_passes_between_kept_sessions(small_world: Dataset) -> None:
    agent = STAYS | {"base": 60.0, "fatigue_recovery": 0.25, "satiation_decay": 0.5}
    env = make(small_world, agent=agent)
    env.reset(seed=0, options={"user": 7})
    env.step(np.flatnonzero(env.action_masks())[:5])
    sated, tired = env.sessions.satiation.copy(), env.sessions.mood[0, 0].copy()
    assert sated.any()
    env.reset(options={"user": 7, "keep_world": True})
    np.testing.assert_array_equal(env.sessions.satiation, sated * np.float32(0.5))
    assert env.sessions.mood[0, 0] == tired * np.float32(0.75)


def test_popularity_follows_a_kept_world(small_world: Dataset) -> None:
    env = make(small_world, agent=STAYS | {"base": 60.0, "examination": "all"}, keep_world=True)
    env.reset(seed=0)
    before = env.sessions.popularity.copy()
    rarest = np.argsort(small_world.interactions.item_counts())[:5]
    for _ in range(30):
        env.step(rarest)
        if env.sessions.who[0, 3] >= 3:
            env.reset()
    assert (env.sessions.popularity[rarest] > before[rarest]).all()
    env.reset(options={"keep_world": False})
    np.testing.assert_array_equal(env.sessions.popularity, before)


# -- rewards --------------------------------------------------------------------------------------------------


def test_named_rewards_and_mixtures(small_world: Dataset) -> None:
    mixture = {"clicks": 1.0, "rating": 0.1, "utility": 10.0, "retention": 2.0}
    envs = {name: make(small_world, reward=name, repeat="always") for name in mixture}
    mixed = make(small_world, reward=mixture, repeat="always")
    for seed in range(20):
        for env in (*envs.values(), mixed):
            env.reset(seed=seed)
        steps = {name: env.step(np.arange(5) * 7) for name, env in envs.items()}
        clicked = steps["clicks"]
        assert clicked[1] == clicked[0]["clicks"].sum()
        assert steps["rating"][1] == pytest.approx(clicked[0]["ratings"].sum())
        assert steps["utility"][1] == pytest.approx(clicked[4]["utility"].mean(), rel=1e-6)
        assert steps["retention"][1] == float(not clicked[2])
        total = mixed.step(np.arange(5) * 7)
        assert total[1] == pytest.approx(sum(weight * steps[name][1] for name, weight in mixture.items()))
        assert total[4]["reward_parts"] == {name: pytest.approx(step[1]) for name, step in steps.items()}


def test_a_reward_can_be_a_function_of_the_page(small_world: Dataset) -> None:
    seen: list[Page] = []

    def first_slot(page: Page) -> np.ndarray:
        seen.append(page)
        return page.clicked[:, 0] * 10.0

    env = make(small_world, reward=first_slot, agent=STAYS | {"base": 60.0})
    env.reset(seed=0)
    slate = np.flatnonzero(env.action_masks())[:5]
    assert env.step(slate)[1] == 10.0
    np.testing.assert_array_equal(seen[0].slates, slate[None])
    assert seen[0].page.tolist() == [0]
    bad = make(small_world, reward=lambda page: np.zeros((1, 2)))
    bad.reset(seed=0)
    with pytest.raises(ConfigError, match="reward function returned"):
        bad.step(slate)


# -- errors in Gymnasium's style ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action",
    [
        np.array([0, 1, 2, 3]),
        np.array([0.0, 1.0, 2.0, 3.0, 4.0]),
        np.array([0, 1, 2, 3, 60]),
        np.array([-1, 1, 2, 3, 4]),
        np.array([[0, 1, 2, 3, 4]]),
        np.array([True] * 5),
        "abcde",
        None,
        7,
    ],
)
def test_actions_outside_the_space_are_refused_and_change_nothing(small_world: Dataset, action: Any) -> None:
    env = make(small_world)
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(gym.error.InvalidAction, match="expected 5 integers, items 0 to 59"):
        env.step(action)
    assert same(env.get_state()["sessions"], before["sessions"])
    with pytest.raises(SimenvError):
        env.step(action)


def test_a_list_of_integers_is_an_action(small_world: Dataset) -> None:
    env = make(small_world)
    env.reset(seed=0)
    assert env.step([4, 3, 2, 1, 0])[0]["slate"].tolist() == [4, 3, 2, 1, 0]


def test_steps_out_of_turn_are_refused(small_world: Dataset) -> None:
    env = make(small_world, agent={"name": "choice", "exit_base": 50.0}, render_mode="ansi")
    with pytest.raises(gym.error.ResetNeeded, match=r"before calling env\.reset"):
        env.step(np.arange(5))
    with pytest.raises(gym.error.ResetNeeded, match="render"):
        env.render()
    env.reset(seed=0)
    env.step(np.arange(5))
    with pytest.raises(gym.error.ResetNeeded, match="after the episode has ended"):
        env.step(np.arange(5))
    env.reset()
    env.step(np.arange(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "click"}, "reward='click': unknown; expected one of clicks, rating, utility, retention"),
        ({"reward": {"clicks": "two"}}, "reward clicks=two: expected a number"),
        ({"reward": {}}, "expected a name, a mapping"),
        ({"slate_size": 0}, "slate_size=0"),
        ({"slate_size": 61}, "slate_size=61: expected a whole number, 1 to 60"),
        ({"slate_size": 2.5}, "slate_size=2.5"),
        ({"max_pages": 0}, "max_pages=0"),
        ({"history_size": 0}, "history_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**63}, "seed=9223372036854775808: expected a whole number, 0 to"),
        ({"agent": "llm"}, "the language model is NoneType"),
        ({"agent": {"_target_": "os.system", "command": "true"}}, "_target_='os.system' is outside simenv"),
        ({"agent": {"_target_": "simenv.events.Path"}}, "_target_='simenv.events.Path' is outside simenv"),
        ({"agent": {"name": "llm", "retrieval": {"_target_": "subprocess.run"}}}, "retrieval: _target_='subprocess"),
        ({"dataset": "ml"}, "dataset='ml'"),
        ({"dataset": {"name": "synthetic", "n_itms": 5}}, "unknown option 'n_itms'"),
        ({"agent": "chocie"}, "agent=chocie: unknown .did you mean 'choice'"),
        ({"agent": {"name": "choice", "tast": 1}}, "agent.*tast"),
        ({"agent": {"_target_": "agents.choice.Nobody"}}, "agents.choice.Nobody"),
        ({"agent": 3}, "agent=3"),
        ({"repeat": "cooldown"}, "repeat='cooldown'"),
        ({"render_mode": "human"}, "render_mode='human'"),
    ],
)
def test_bad_options_are_named(small_world: Dataset, options: dict[str, Any], message: str) -> None:
    for kind in (gym.error.Error, ValueError, ConfigError):
        with pytest.raises(kind, match=message):
            make(small_world, **options)


def test_an_option_that_does_not_exist_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="slate_sise"):
        gym.make("simenv/Slate-v0", slate_sise=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"usr": 1}, "reset option 'usr'"),
        ({"user": 40}, "user=40"),
        ({"user": "nobody"}, "'nobody'"),
        ({"user": 1.0}, "1.0"),
    ],
)
def test_bad_reset_options_are_named(small_world: Dataset, options: dict[str, Any], message: str) -> None:
    env = make(small_world)
    with pytest.raises(gym.error.Error, match=message):
        env.reset(seed=0, options=options)


# -- snapshots and branches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["choice", "rank"])
def test_a_restored_state_goes_on_bit_for_bit(small_world: Dataset, agent: str) -> None:
    env, other = make(small_world, agent=agent, keep_world=True), make(small_world, agent=agent, keep_world=True)
    env.reset(seed=0)
    play(env, 17)
    state = pickle.loads(pickle.dumps(env.get_state()))
    went_on = play(env, 60, seed=1)
    env.set_state(state)
    assert same(play(env, 60, seed=1), went_on)
    other.set_state(state)
    assert same(play(other, 60, seed=1), went_on)


@pytest.mark.parametrize("agent", ["choice", "rank"])
def test_branches_share_luck_or_have_their_own(small_world: Dataset, agent: str) -> None:
    env = make(small_world, agent=agent)
    env.reset(seed=0)
    play(env, 5)
    here = env.get_state()
    futures = [play(branch, 30, seed=1) for branch in env.fork(3)]
    assert same(env.get_state()["sessions"], here["sessions"])
    fresh = [play(branch, 30, seed=1) for branch in env.fork(3, luck="fresh")]
    again = [play(branch, 30, seed=1) for branch in env.fork(3, luck="fresh")]
    assert same(futures[0], futures[1])
    assert same(futures[0], play(env, 30, seed=1))
    assert not same(fresh[0], futures[0])
    assert not same(fresh[0], fresh[1])
    assert same(fresh, again)
    with pytest.raises(ConfigError, match="luck='good'"):
        env.fork(1, luck="good")


# -- what a person sees ---------------------------------------------------------------------------------------


def test_text_shows_the_page_and_what_was_clicked(small_world: Dataset) -> None:
    env = make(small_world, render_mode="ansi", agent=STAYS | {"base": 60.0, "examination": "all"})
    env.reset(seed=0)
    assert "no page yet" in env.render()
    slate = np.flatnonzero(env.action_masks())[:5]
    observation, _, _, _, info = env.step(np.r_[slate[:4], slate[0]])
    lines = env.render().splitlines()
    assert lines[0].endswith("page 1, stays")
    for line, title, clicked in zip(lines[1:], info["titles"], observation["clicks"], strict=True):
        assert title in line
        assert ("[x]" in line) == bool(clicked)
    assert info["titles"][0] == small_world.catalog.titles[slate[0]]


def test_image_shows_clicks(small_world: Dataset) -> None:
    env = make(small_world, render_mode="rgb_array", agent=STAYS | {"base": 60.0, "examination": "all"})
    env.reset(seed=0)
    blank = env.render()
    env.step(np.flatnonzero(env.action_masks())[:5])
    image = env.render()
    assert image.shape == blank.shape == (54 + 30 * 5, 640, 3)
    assert image.dtype == np.uint8
    assert (image == (211, 249, 216)).all(axis=2).any()
    assert not (blank == (211, 249, 216)).all(axis=2).any()


def test_propensity_of_a_step_reaches_info_once(small_world: Dataset) -> None:
    env = make(small_world, agent=STAYS)
    env.reset(seed=0)
    env.propensity = np.full(5, 0.25)
    assert env.step(np.arange(5))[4]["propensity"].tolist() == [0.25] * 5
    assert "propensity" not in env.step(np.arange(5))[4]


def test_memory_is_flat_over_many_resets(small_world: Dataset) -> None:
    import tracemalloc

    env = make(small_world)
    slate = np.arange(5)

    def many(n: int) -> None:
        for _ in range(n):
            env.reset()
            env.step(slate)

    env.reset(seed=0)
    many(500)
    tracemalloc.start()
    many(100)
    before = tracemalloc.get_traced_memory()[0]
    many(3000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20_000


@pytest.mark.filterwarnings("ignore")
def test_torchrl_rolls_it_out() -> None:
    libs = pytest.importorskip("torchrl.envs.libs.gym", reason="torchrl is not installed")
    from torchrl.envs.utils import check_env_specs

    env = libs.GymWrapper(gym.make("simenv/Slate-v0", n_users=30, n_items=50, slate_size=4, texts=False))
    check_env_specs(env)
    assert (env.rollout(5)["next", "reward"] >= 0).all()


# -- seeds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [2**63 - 1, 2**63, 2**64 + 1, 2**127])
def test_any_seed_that_gymnasium_takes_is_a_luck_of_its_own(small_world: Dataset, seed: int) -> None:
    env, envs = make(small_world), SlateVectorEnv(2, dataset=small_world, slate_size=5)
    first = env.reset(seed=seed), play(env, 9)
    assert same((env.reset(seed=seed), play(env, 9)), first)
    assert not same((env.reset(seed=seed + 1), play(env, 9)), first)
    envs.reset(seed=seed)
    users = [int(make(small_world).reset(seed=seed + row)[1]["user"]) for row in range(2)]
    assert envs.sessions.who[:, 0].tolist() == users
    envs.reset(seed=[seed, 3])
    assert envs.sessions.who[0, 0] == users[0]


@pytest.mark.parametrize("seed", [None, 7])
def test_the_seed_that_gymnasium_names_replays_the_episode(small_world: Dataset, seed: int | None) -> None:
    for env in (make(small_world), make(small_world, agent="rank"), SlateVectorEnv(3, dataset=small_world)):
        first = env.reset(seed=seed)
        env.reset()
        assert same(env.reset(seed=env.np_random_seed), first)


@pytest.mark.parametrize("agent", ["choice", "rank", "rank-discounted", "drifting-interest"])
def test_a_seed_begins_a_kept_world_anew(small_world: Dataset, agent: str) -> None:
    envs = SlateVectorEnv(2, dataset=small_world, agent=agent, slate_size=5, keep_world=True)
    for env in (make(small_world, agent=agent, keep_world=True), envs):
        env.action_space.seed(0)
        actions = [env.action_space.sample() for _ in range(4)]

        def session(env: Any = env, actions: Any = actions, **options: Any) -> list[Any]:
            seen = [env.reset(options={"user": 4} if env.sessions.n_rows == 1 else None, **options)]
            for action in actions:
                seen.append(env.step(action))
                if env.sessions.n_rows == 1 and (seen[-1][2] or seen[-1][3]):
                    break
            return seen

        first = session(seed=3)
        assert not same(session()[0], first[0])
        assert same(session(seed=3), first)
    env = make(small_world, agent=agent, keep_world=True)
    env.reset(seed=3, options={"user": 4})
    last = env.step(np.arange(5))[0]
    kept, _ = env.reset(seed=3, options={"user": 4, "keep_world": True})
    np.testing.assert_array_equal(kept["history_items"], last["history_items"])


@pytest.mark.parametrize("agent", ["rank-discounted", "drifting-interest"])
def test_whoever_comes_again_has_forgotten(small_world: Dataset, agent: str) -> None:
    envs = SlateVectorEnv(2, dataset=small_world, agent=agent, slate_size=5, max_pages=1)
    envs.reset(seed=0, options={"user": [3, 4]})
    before = envs.sessions.users.state_dict()  # type: ignore[attr-defined]
    envs.step(np.tile(np.arange(5), (2, 1)))
    envs.reset(options={"user": [3, 4], "reset_mask": np.ones(2, np.bool_)})
    after = envs.sessions.users.state_dict()  # type: ignore[attr-defined]
    assert all(same(after[name], before[name]) for name in before if name != "click_counts")


# -- names and processes --------------------------------------------------------------------------------------


def test_users_of_every_yaml_are_made_by_name(small_world: Dataset) -> None:
    from agents.llm.user import LLMUser
    from agents.mixed import MixedUsers
    from simenv.names import paths
    from simenv.registration import make as build

    model = {"name": "openai", "model": "test", "base_url": "http://127.0.0.1:9/v1"}
    assert {"choice", "rank", "rank-discounted", "drifting-interest", "llm", "mixed", "user-lm"} <= set(paths("agent"))
    mixed = build(
        {"name": "mixed", "share": 0.3, "sample": {"language_model": model, "retrieval": {"top": 2}}}, "agent"
    )
    assert isinstance(mixed, MixedUsers)
    assert isinstance(mixed.sample, LLMUser)
    assert (mixed.share, mixed.sample.retrieval.top, mixed.sample.retrieval.gamma) == (0.3, 2, 0.9)
    user_lm = build({"name": "user-lm", "language_model": model}, "agent")
    assert user_lm.retrieval.top == 30
    with pytest.raises(ConfigError, match="llm: expected a value for model"):
        build({"name": "llm", "language_model": "openai"}, "agent")
    for agent in ("rank-discounted", "drifting-interest"):
        env = gym.make("simenv/Slate-v0", dataset=small_world, slate_size=5, agent=agent)
        check_env(env.unwrapped, skip_render_check=True)


def test_more_targets_are_called_once_they_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    from simenv.registration import TARGETS, allow_targets
    from simenv.registration import make as build

    monkeypatch.setenv(TARGETS, "")
    with pytest.raises(ConfigError, match="allow_targets"):
        build({"_target_": "string.Template", "template": "x"}, "agent")
    allow_targets("string")
    assert build({"_target_": "string.Template", "template": "x"}, "agent").template == "x"


def test_the_start_method_of_processes_is_the_callers() -> None:
    script = (
        "import multiprocessing as m, gymnasium as gym, simenv\n"
        "gym.make('simenv/Platform-v0', n_users=20, n_items=30)\n"
        "import agents.population.user_agent\n"
        "print(m.get_start_method(allow_none=True))\n"
    )
    for first, expected in (
        ("", "None"),
        ("import multiprocessing; multiprocessing.set_start_method('fork')\n", "fork"),
    ):
        done = subprocess.run([sys.executable, "-c", first + script], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [expected]
