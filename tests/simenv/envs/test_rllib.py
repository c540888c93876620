"""RLlib: its PPO trains on a session environment, Ray running in the test for as long as it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

ray: Any = pytest.importorskip("ray", reason="ray[rllib] is not installed")
ppo: Any = pytest.importorskip("ray.rllib.algorithms.ppo", reason="ray is installed without rllib")

import simenv  # noqa: F401 - registers the environments
from simenv.envs.wrappers import FlatObservation

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="module")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=1,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(tmp_path_factory.mktemp("ray")),
    )
    yield
    ray.shutdown()


def test_ppo_trains(local_ray: None) -> None:
    def make(config: dict[str, Any]) -> gym.Env[Any, Any]:
        return FlatObservation(gym.make("simenv/Slate-v0", texts=False, **config))

    ray.tune.register_env("slates", make)
    config = (
        ppo.PPOConfig()
        .environment("slates", env_config={"n_users": 30, "n_items": 50, "slate_size": 4, "max_pages": 5})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(train_batch_size_per_learner=200, minibatch_size=100, num_epochs=2)
        .debugging(seed=0, log_level="ERROR")
    )
    algorithm = config.build_algo()
    try:
        result = algorithm.train()
    finally:
        algorithm.stop()
    sampled, learnt = result["env_runners"], result["learners"]["default_policy"]
    assert sampled["num_episodes"] > 20
    assert 1.0 <= sampled["episode_len_mean"] <= 5.0
    assert sampled["episode_return_mean"] > 0.0
    assert np.isfinite(float(learnt["total_loss"]))
