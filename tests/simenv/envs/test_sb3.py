"""Stable-Baselines3: its own checker, and a native batch as its VecEnv."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.monitor import Monitor

import simenv  # noqa: F401 - registers the environments
from simenv.datasets import Dataset
from simenv.envs.sb3 import SB3VecEnv
from simenv.envs.slate import SlateEnv
from simenv.envs.vector import SlateVectorEnv
from simenv.envs.wrappers import CandidateSlates, FlatObservation, SingleItem, flat_features
from simenv.errors import ConfigError

ALONE = {"name": "choice", "conformity": 0.0}


def make(world: Dataset, n: int = 4) -> SlateVectorEnv:
    return SlateVectorEnv(n, dataset=world, agent=ALONE, slate_size=3, max_pages=4, autoreset_mode="SameStep")


def test_its_checker_passes(small_world: Dataset) -> None:
    check_env(SlateEnv(dataset=small_world, slate_size=3, texts=False))
    check_env(FlatObservation(SlateEnv(dataset=small_world, slate_size=3)))
    check_env(SingleItem(FlatObservation(SlateEnv(dataset=small_world, slate_size=1))))
    platform = gym.make("simenv/Platform-v0", n_users=20, n_items=40, slate_size=3, rounds=3)
    check_env(gym.wrappers.RescaleAction(platform, np.float32(-1), np.float32(1)))  # the range SB3 recommends


def test_a_native_batch_is_what_single_environments_give(small_world: Dataset) -> None:
    batch = SB3VecEnv(make(small_world))
    batch.seed(3)
    alone = [SlateEnv(dataset=small_world, agent=ALONE, slate_size=3, max_pages=4) for _ in range(4)]
    observation = batch.reset()
    for row, env in enumerate(alone):
        np.testing.assert_array_equal(observation["history_items"][row], env.reset(seed=3 + row)[0]["history_items"])
    rng, returns, ends = np.random.default_rng(0), np.zeros(4), 0
    for _ in range(40):
        actions = rng.integers(0, 60, (4, 3))
        observation, rewards, done, infos = batch.step(actions)
        for row, env in enumerate(alone):
            own, reward, terminated, truncated, _ = env.step(actions[row])
            returns[row] += reward
            assert rewards[row] == reward
            assert done[row] == (terminated or truncated)
            if done[row]:
                ends += 1
                assert infos[row]["episode"]["r"] == returns[row]
                assert infos[row]["TimeLimit.truncated"] == truncated
                np.testing.assert_array_equal(infos[row]["terminal_observation"]["slate"], own["slate"])
                returns[row] = 0.0
                own, _ = env.reset()
            np.testing.assert_array_equal(observation["slate"][row], own["slate"])
    assert ends > 8


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_it_trains(small_world: Dataset, algorithm: type[PPO] | type[A2C]) -> None:
    envs = make(small_world)
    observe = partial(flat_features, dataset=small_world, max_pages=4)
    size = observe(envs.reset(seed=0)[0]).shape[1]
    vector = SB3VecEnv(envs, observe=observe, observation_space=gym.spaces.Box(0.0, 1.0, (size,), np.float32))
    model = algorithm("MlpPolicy", vector, n_steps=16, device="cpu", seed=0).learn(256)
    assert np.isfinite([info["r"] for info in model.ep_info_buffer or []]).all()
    assert len(model.ep_info_buffer or []) > 10
    whole = algorithm("MultiInputPolicy", SB3VecEnv(make(small_world)), n_steps=16, device="cpu", seed=0)
    whole.learn(64)


def test_dqn_trains_on_a_native_batch_with_one_slot_a_page() -> None:
    envs = gym.make_vec(
        "simenv/Drift-v0", num_envs=8, vectorization_mode="vector_entry_point", autoreset_mode="SameStep"
    )
    assert isinstance(envs, SlateVectorEnv)
    vector = SB3VecEnv(envs, single_item=True)
    assert vector.action_space == gym.spaces.Discrete(2)
    before = DQN("MultiInputPolicy", vector, learning_starts=64, device="cpu", seed=0)
    start = before.policy.parameters_to_vector().copy()
    model = before.learn(400)
    assert (model.policy.parameters_to_vector() != start).any()
    assert len(model.ep_info_buffer or []) == 400 // 12 // 8 * 8
    actions, _ = model.predict(vector.reset(), deterministic=True)
    assert actions.shape == (8,)


@pytest.mark.parametrize("cap_ends", [False, True])
def test_a_session_at_the_page_cap_is_cut_short_or_over(small_world: Dataset, cap_ends: bool) -> None:
    stays = {"name": "choice", "exit_base": -50.0}
    envs = SlateVectorEnv(4, dataset=small_world, agent=stays, slate_size=3, max_pages=4, autoreset_mode="SameStep")
    vector = SB3VecEnv(envs, cap_ends=cap_ends)
    vector.reset()
    for page in range(4):
        _, _, done, infos = vector.step(np.tile(np.arange(3) + 3 * page, (4, 1)))
    assert done.all()
    assert [info["TimeLimit.truncated"] for info in infos] == [not cap_ends] * 4
    assert all(info["terminal_observation"]["page"] == 4 for info in infos)


def test_what_it_cannot_serve_is_refused(small_world: Dataset) -> None:
    with pytest.raises(ConfigError, match="with slate_size=1"):
        SB3VecEnv(make(small_world), single_item=True)
    with pytest.raises(ConfigError, match="expects SameStep"):
        SB3VecEnv(SlateVectorEnv(2, dataset=small_world, slate_size=3))
    with pytest.raises(ConfigError, match="both or neither"):
        SB3VecEnv(make(small_world), observe=lambda observation: observation)


def test_maskable_ppo_trains_on_slates_candidates_and_native_batches(small_world: Dataset) -> None:
    contrib = pytest.importorskip("sb3_contrib")
    options = {"dataset": small_world, "agent": ALONE, "slate_size": 3, "max_pages": 4}
    alone = gym.make("simenv/SlateMasked-v0", **options)
    candidates = CandidateSlates(FlatObservation(SlateEnv(**options)), 12)
    batch = gym.make_vec(
        "simenv/SlateMasked-v0",
        num_envs=4,
        vectorization_mode="vector_entry_point",
        autoreset_mode="SameStep",
        **options,
    )
    for env in (alone, candidates, SB3VecEnv(batch)):
        model = contrib.MaskablePPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, device="cpu", seed=0)
        model.learn(64)
    vector = SB3VecEnv(batch)
    vector.seed(1)
    observation = vector.reset()
    masks = np.stack(vector.env_method("action_masks"))
    actions, _ = model.predict(observation, action_masks=masks)
    assert np.take_along_axis(masks.reshape(4, 3, 60), actions[..., None], axis=2).all()


def test_the_vector_interface_is_complete(small_world: Dataset) -> None:
    envs = SlateVectorEnv(3, dataset=small_world, slate_size=3, autoreset_mode="SameStep", render_mode="rgb_array")
    vector = SB3VecEnv(envs)
    vector.set_options([{"user": 4}, {}, {"user": "u9"}])
    vector.seed(0)
    vector.reset()
    users = envs.sessions.who[:, 0].tolist()
    assert (users[0], users[2]) == (4, 9)
    vector.reset()
    assert vector.env_method("action_masks", indices=[1])[0].shape == (60,)
    assert len(vector.env_method("get_state")) == 3
    assert vector.has_attr("dataset")
    assert not vector.has_attr("nothing")
    assert [image.shape for image in vector.get_images()] == [(54 + 90, 640, 3)] * 3
    assert vector.render().ndim == 3
    assert vector.get_attr("max_pages") == [20] * 3
    vector.set_attr("keep_world", True)
    assert envs.keep_world
    assert vector.env_is_wrapped(Monitor) == [True] * 3
    vector.set_options([{"keep_world": True}, {"keep_world": False}, {}])
    with pytest.raises(ConfigError, match="rows share a world"):
        vector.reset()
    with pytest.raises(ConfigError, match="expected indices=None"):
        vector.set_attr("keep_world", True, indices=[0])
