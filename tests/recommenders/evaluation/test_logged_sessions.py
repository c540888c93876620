"""A log as a Minari set: what the environment showed, told from its impressions alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import simenv  # noqa: F401 - registers the environments
from recommenders.evaluation.logged_sessions import events_to_minari, logged_sessions
from simenv.envs.wrappers import EventRecorder
from simenv.errors import DataError

OPTIONS: dict[str, Any] = {
    "n_users": 12,
    "n_items": 40,
    "slate_size": 4,
    "max_pages": 5,
    "texts": False,
    "history_size": 9,
}


def play(keep_world: bool, episodes: int = 12) -> tuple[Any, list[list[dict[str, Any]]]]:
    env = EventRecorder(gym.make("simenv/Slate-v0", keep_world=keep_world, **OPTIONS))
    rng, lived = np.random.default_rng(0), []
    for episode in range(episodes):
        observation, _ = env.reset(seed=0 if episode == 0 else None)
        seen, over = [observation], False
        while not over:
            observation, _, terminated, truncated, _ = env.step(rng.choice(40, 4, replace=False))
            seen.append(observation)
            over = terminated or truncated
        lived.append(seen)
    return env, lived


@pytest.mark.parametrize("keep_world", [False, True])
def test_observations_are_those_that_were_seen(keep_world: bool) -> None:
    env, lived = play(keep_world)
    users = env.events().user
    assert len(np.unique(users)) < len(lived)  # some come again
    found = list(logged_sessions(env, env.events(), lives_on=keep_world))
    assert len(found) == len(lived)
    for session, seen in zip(found, lived, strict=True):
        for name in seen[0]:
            np.testing.assert_allclose(
                session.observations[name], np.stack([one[name] for one in seen]), rtol=1e-5, atol=1e-6, err_msg=name
            )


@pytest.mark.filterwarnings("ignore:`(code_permalink|author|author_email)` is set to None")
@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_a_log_becomes_a_named_set_with_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari", reason="the extra rl is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env, lived = play(False)
    kept = events_to_minari(env.env, env.events(), "simenv/logged-v0", flat=True, lives_on=False)
    assert kept.total_episodes == len(lived)
    again = gym.make(kept.spec.env_spec)
    assert again.observation_space == kept.observation_space
    for episode, seen in zip(kept.iterate_episodes(), lived, strict=True):
        assert episode.rewards.tolist() == [float(one["clicks"].sum()) for one in seen[1:]]
        assert episode.actions.tolist() == [one["slate"].tolist() for one in seen[1:]]
        assert episode.truncations[-1] == (len(seen) == 6)
        assert episode.terminations[-1] != episode.truncations[-1]


def test_a_log_of_another_world_is_refused() -> None:
    env, _ = play(False, episodes=2)
    other = gym.make("simenv/Slate-v0", seed=1, **OPTIONS)
    with pytest.raises(DataError, match="this very world"):
        list(logged_sessions(other, env.events()))
    small = gym.make("simenv/Slate-v0", **OPTIONS | {"n_items": 10})
    with pytest.raises(DataError, match="this world, of 12"):
        list(logged_sessions(small, env.events()))
    with pytest.raises(DataError, match="slots a page"):
        list(logged_sessions(env, replace(env.events(), rank=env.events().rank + 1)))
