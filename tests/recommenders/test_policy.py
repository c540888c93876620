"""Recommenders as policies of environments, and policies as recommenders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.choice.model import ChoiceModel
from recommenders.base import Recommender
from recommenders.factors import ALS
from recommenders.oracle import Oracle
from recommenders.policy import PolicyRecommender, RecommenderPolicy, sb3_policy
from recommenders.popularity import Popularity, Random
from recommenders.rerank import EpsilonGreedy
from recommenders.testing import RecommenderSuite, small_dataset, small_log
from simenv.candidates import Candidates
from simenv.datasets import Dataset, synthetic
from simenv.envs.slate import SlateEnv
from simenv.envs.vector import SlateVectorEnv
from simenv.errors import ConfigError, RecommenderError
from simenv.platform import Platform, Schedule

STAYS = {"name": "choice", "exit_base": -50.0}


def favourite_genres(observation: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    """A policy that reads its observation: items numbered from the user's favourite genre on."""
    start = observation["user"][:, :-3].argmax(axis=1) + 3 * observation["history_items"][:, 0]
    return (start[:, None] + np.arange(7)) % 60


class TestPolicyRecommender(RecommenderSuite):
    def make(self) -> Recommender:
        return PolicyRecommender(favourite_genres, slate_size=7, history_size=5)


@pytest.fixture(scope="module")
def world() -> Dataset:
    return synthetic(n_users=40, n_items=60, seed=5)


# -- a policy as a recommender --------------------------------------------------------------------------------


def test_the_policy_sees_what_an_environment_would_show_it(world: Dataset) -> None:
    env = SlateEnv(dataset=world, slate_size=7, history_size=5)
    recommender = PolicyRecommender(favourite_genres, slate_size=7, history_size=5)
    recommender.bind_dataset(world)
    recommender.fit(world.interactions)
    observations = recommender.observe(np.arange(40))
    for user in range(40):
        expected, _ = env.reset(seed=0, options={"user": user})
        assert expected.keys() == observations.keys()
        for name, values in expected.items():
            assert observations[name].dtype == values.dtype
            np.testing.assert_allclose(observations[name][user], values, rtol=1e-5, atol=1e-7)


def test_its_slate_is_served_without_what_must_not_be_shown(world: Dataset) -> None:
    recommender = PolicyRecommender(lambda seen: np.tile([5, 5, 9, 7], (len(seen["page"]), 1)), slate_size=4)
    recommender.bind_dataset(world)
    recommender.fit(world.interactions)
    best = np.argsort(-world.interactions.item_counts(), kind="stable")
    rest = [item for item in best if item not in (5, 7, 9)][:2]
    assert recommender.recommend(np.arange(2), 5).item_ids.tolist() == [[5, 9, 7, *rest]] * 2
    available = np.arange(60) != 9
    assert recommender.recommend(np.arange(1), 2, Candidates.of(60, available=available)).item_ids.tolist() == [[5, 7]]


def test_a_policy_runs_in_the_loop(world: Dataset) -> None:
    users = ChoiceModel()
    assert world.tastes is not None
    users.bind(world, world.tastes, seed=0)
    policy = PolicyRecommender(favourite_genres, slate_size=7, history_size=5)
    platform = Platform(world, users, policy, seed=0, schedule=Schedule(slate_size=7))
    for _ in range(3):
        platform.step()
    assert platform.round_events is not None
    assert len(platform.round_events) == 40 * 7


@pytest.mark.parametrize(
    "bad",
    [
        lambda seen: np.zeros((3, 4), int),
        lambda seen: np.zeros((len(seen["page"]), 4)),
        lambda seen: np.full((len(seen["page"]), 2), 60),
    ],
)
def test_a_policy_that_returns_no_slates_is_named(bad: Any) -> None:
    log = small_log()
    recommender = PolicyRecommender(bad)
    with pytest.raises(RecommenderError, match="before bind_dataset"):
        recommender.fit(log)
    recommender.bind_dataset(small_dataset(log))
    recommender.fit(log)
    with pytest.raises(RecommenderError, match="the policy"):
        recommender.recommend(np.arange(2), 3)


def test_bad_options_are_named() -> None:
    with pytest.raises(ConfigError, match="expected a function of observations"):
        PolicyRecommender("ppo")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="history_size=0"):
        PolicyRecommender(favourite_genres, history_size=0)
    with pytest.raises(ConfigError, match="algorithm='PPQ'"):
        sb3_policy("nowhere.zip", algorithm="PPQ")


def test_a_model_of_stable_baselines3_is_a_policy(world: Dataset, tmp_path: Path) -> None:
    from stable_baselines3 import A2C

    env = SlateEnv(dataset=world, slate_size=3, history_size=5)
    model = A2C("MultiInputPolicy", env, n_steps=4, seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
    model.save(tmp_path / "model.zip")
    recommender = PolicyRecommender(
        sb3_policy(str(tmp_path / "model.zip"), algorithm="A2C"), slate_size=3, history_size=5
    )
    recommender.bind_dataset(world)
    recommender.fit(world.interactions)
    expected, _ = env.reset(seed=0, options={"user": 4})
    action = np.asarray(model.predict(expected, deterministic=True)[0])
    assert len(set(action.tolist())) == 3
    assert recommender.recommend(np.array([4]), 3).item_ids[0].tolist() == action.tolist()


# -- a recommender as a policy --------------------------------------------------------------------------------


def test_first_pages_are_the_recommenders_own_slates(world: Dataset) -> None:
    env = SlateEnv(dataset=world, slate_size=5)
    policy, alone = RecommenderPolicy(ALS(embedding_size=4, epochs=2), env), ALS(embedding_size=4, epochs=2)
    alone.fit(world.interactions)
    seen = world.interactions
    for user in range(5):
        observation, _ = env.reset(seed=0, options={"user": user})
        mask = np.zeros((1, 60), np.bool_)
        mask[0, seen.items[seen.users == user]] = True
        expected = alone.recommend(np.array([user]), 5, Candidates.of(60, out=mask))
        assert policy(observation).tolist() == expected.item_ids[0].tolist()


def test_nothing_is_shown_twice_in_a_session_until_nothing_is_left(world: Dataset) -> None:
    env = SlateEnv(dataset=world, slate_size=5, agent=STAYS, max_pages=14)
    policy = RecommenderPolicy(Popularity(), env)
    for _ in range(2):
        observation, _ = env.reset(seed=0, options={"user": 3})
        allowed, shown = env.action_masks(), []
        for _ in range(-(-allowed.sum() // 5)):
            action = policy(observation)
            shown.extend(dict.fromkeys(action.tolist()))
            observation, *_ = env.step(action)
        fresh = [item for item in shown if allowed[item]]
        assert sorted(set(fresh)) == np.flatnonzero(allowed).tolist()
        assert len(fresh) == len(set(fresh))


@pytest.mark.parametrize("same_user", [False, True])
def test_the_oracle_sees_each_sessions_truth(world: Dataset, same_user: bool) -> None:
    agent = STAYS | {"base": 60.0, "examination": "all", "drift": 0.5}
    envs = SlateVectorEnv(6, dataset=world, slate_size=5, agent=agent, repeat="always")
    policy = RecommenderPolicy(Oracle(), envs)
    observation, _ = envs.reset(seed=0, options={"user": [3] * 6 if same_user else None})
    rng = np.random.default_rng(0)
    observation, *_ = envs.step(rng.integers(0, 60, (6, 5)))  # six different pages, six different tastes now
    actions = policy(observation)
    np.testing.assert_array_equal(actions, np.argsort(-envs.true_utility(), axis=1, kind="stable")[:, :5])
    assert len({tuple(row) for row in actions.tolist()}) > 1


def test_propensities_reach_the_environment(world: Dataset) -> None:
    env = SlateEnv(dataset=world, slate_size=5, agent=STAYS)
    policy = RecommenderPolicy(EpsilonGreedy(Popularity(), epsilon=0.5), env)
    observation, _ = env.reset(seed=0)
    info = env.step(policy(observation))[4]
    assert ((info["propensity"] > 0) & (info["propensity"] < 1)).all()
    deterministic = RecommenderPolicy(Popularity(), env)
    observation, _ = env.reset()
    assert env.step(deterministic(observation))[4]["propensity"].tolist() == [1.0] * 5


def test_random_policies_draw_anew_at_each_page(world: Dataset) -> None:
    env = SlateEnv(dataset=world, slate_size=5, agent=STAYS)
    policy = RecommenderPolicy(Random(), env)
    observation, _ = env.reset(seed=0, options={"user": 1})
    first = policy(observation)
    observation, _ = env.reset(seed=0, options={"user": 1})
    assert first.tolist() != policy(observation).tolist()


def test_it_learns_from_sessions_when_asked(world: Dataset) -> None:
    env = SlateEnv(dataset=world, slate_size=5, agent=STAYS | {"base": 60.0, "examination": "all"})
    policy = RecommenderPolicy(Popularity(), env, learn_every=2)
    observation, _ = env.reset(seed=0)
    before = policy.recommender.scores(np.array([0])).sum()
    clicks = 0
    for _ in range(5):
        observation, reward, *_ = env.step(policy(observation))
        clicks += int(reward)
    assert policy.recommender.scores(np.array([0])).sum() == before + clicks - 5
    with pytest.raises(ConfigError, match="learn_every=0"):
        RecommenderPolicy(Popularity(), env, learn_every=0)
