"""The benchmark's agents learn: above random and popularity, PPO near the exact optimum."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="the extra rl is not installed")

from experiments.rl import bench
from experiments.rl.agents import train
from experiments.rl.games import GAMES, HELD_OUT, SLATE, judge
from experiments.rl.watching import HeldOut
from recommenders.policy import RecommenderPolicy
from recommenders.popularity import Popularity


def learn(game: str, agent: str, seed: int, pages: int, *, points: int = 1, last: int = 1000) -> list[float]:
    """Returns of held-out episodes, before training and at each point."""
    envs = GAMES[game].open(200, seed)
    held_out = HeldOut(envs, pages=pages, points=points, episodes=min(last, 200), last=last)
    train(GAMES[game], agent, seed, pages=pages, watch=held_out)
    assert [point["pages"] for point in held_out.curve] == [pages * at // points for at in range(points + 1)]
    return [point["return"] for point in held_out.curve]


def floor(game: str) -> float:
    value = GAMES[game].value
    assert value is not None
    return max(value("random"), value("popularity"))


@pytest.mark.parametrize("agent", ["DQN", "REINFORCE", "SlateQ"])
def test_the_same_seed_gives_the_same_curve(agent: str) -> None:
    assert learn("ChurnTrap", agent, 3, 2400, points=2, last=100) == learn(
        "ChurnTrap", agent, 3, 2400, points=2, last=100
    )


@pytest.mark.parametrize(("game", "agent"), [("ChurnTrap", "A2C"), ("Retention", "A2C")])
def test_agents_get_out_of_the_traps(game: str, agent: str) -> None:
    assert learn(game, agent, 0, 8000)[-1] > 2 * floor(game)


@pytest.mark.parametrize(("agent", "pages"), [("REINFORCE", 60_000), ("SlateQ", 25_000)])
def test_agents_for_slates_beat_popularity(agent: str, pages: int) -> None:
    envs = SLATE.open(100, 0)
    served = RecommenderPolicy(Popularity(), envs)
    popularity = judge(lambda envs, observation: served(observation), envs, seed=HELD_OUT, episodes=1000)["return"]
    assert learn("Slate", agent, 0, pages)[-1] > 1.15 * popularity


@pytest.mark.slow
@pytest.mark.parametrize("game", ["ChurnTrap", "Drift", "Retention"])
def test_ppo_comes_near_the_optimum(game: str) -> None:
    value = GAMES[game].value
    assert value is not None
    returns = [learn(game, "PPO", seed, 60_000)[-1] for seed in range(3)]
    assert np.mean(returns) > (0.9 if game == "Retention" else 0.95) * value("optimal")


@pytest.mark.slow
@pytest.mark.parametrize("agent", bench.AGENTS)
@pytest.mark.parametrize("game", ["ChurnTrap", "Drift"])
def test_every_agent_beats_random_and_popularity(game: str, agent: str) -> None:
    assert min(learn(game, agent, seed, 60_000)[-1] for seed in range(3)) > 1.2 * floor(game)
