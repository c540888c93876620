"""Off-policy estimates against the value in the simulator; logs that cannot answer are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agents.choice.model import ChoiceModel
from recommenders.evaluation.off_policy import (
    LoggedPages,
    additive_model,
    doubly_robust,
    ips,
    pseudo_inverse,
    rank_ips,
    snips,
    target_probabilities,
    target_slates,
    to_minari,
)
from recommenders.oracle import Oracle
from recommenders.plackett_luce import PlackettLuce
from recommenders.policy import RecommenderPolicy
from recommenders.popularity import Popularity
from simenv.datasets import Dataset, synthetic
from simenv.envs.slate import SlateEnv
from simenv.envs.wrappers import EventRecorder
from simenv.errors import DataError, MissingExtraError
from simenv.events import Events
from simenv.randomness import Key
from simenv.slates import Responses

K, REPEATS = 3, 300


@pytest.fixture(scope="module")
def world() -> Dataset:
    return synthetic(n_users=50, n_items=30, seed=2)


def policy(world: Dataset, base: Any, temperature: float) -> PlackettLuce:
    made = PlackettLuce(base, temperature=temperature)
    users = ChoiceModel()
    assert world.tastes is not None
    users.bind(world, world.tastes, seed=0)
    made.bind_truth(users.utility)
    made.fit(world.interactions)
    return made


def answers(world: Dataset, slates: np.ndarray, key: Key) -> Responses:
    """What fresh users do on a first page."""
    users = ChoiceModel(base=1.0)
    assert world.tastes is not None
    users.bind(world, world.tastes, seed=0)
    return users.respond(np.arange(50), slates.astype(np.int32), key)


@pytest.fixture(scope="module")
def log(world: Dataset) -> LoggedPages:
    """First pages under a policy that explores, REPEATS for each user."""
    logging = policy(world, Popularity(), 1.5)
    empty = LoggedPages(
        users=np.arange(50),
        slates=np.zeros((50, K), int),
        clicked=np.zeros((50, K), bool),
        propensity=np.full((50, K), 0.5),
    )
    pages = []
    for r in range(REPEATS):
        slates = target_slates(logging, empty, world, Key(11, r))
        clicked = answers(world, slates, Key(12, r)).clicked
        shown = replace(empty, slates=slates.astype(np.int64), clicked=clicked)
        pages.append(replace(shown, propensity=target_probabilities(logging, shown, world)))
    fields = ("users", "slates", "clicked", "propensity")
    return LoggedPages(**{name: np.concatenate([getattr(page, name) for page in pages]) for name in fields})


@pytest.fixture(scope="module")
def target(world: Dataset) -> PlackettLuce:
    return policy(world, Oracle(), 1.0)


@pytest.fixture(scope="module")
def truth(world: Dataset, target: PlackettLuce, log: LoggedPages) -> tuple[float, float]:
    """The target's value and its standard error, by playing it."""
    one = replace(log, users=np.arange(50), slates=log.slates[:50])
    clicks = [
        answers(world, target_slates(target, one, world, Key(13, r)), Key(14, r)).clicked.sum() / 50 for r in range(400)
    ]
    return float(np.mean(clicks)), float(np.std(clicks) / np.sqrt(400))


def test_every_estimator_finds_the_value_in_the_simulator(
    world: Dataset, log: LoggedPages, target: PlackettLuce, truth: tuple[float, float]
) -> None:
    p = target_probabilities(target, log, world)
    model = additive_model(log, 50, 30)
    drawn = [target_slates(target, log, world, Key(15, r)) for r in range(3)]
    estimates = [ips(log, p), snips(log, p), rank_ips(log, p), doubly_robust(log, p, model, drawn)]
    for estimate in estimates:
        assert abs(estimate.value - truth[0]) < 3.5 * np.hypot(estimate.error, truth[1]), estimate
        low, high = estimate.interval
        assert low < estimate.value < high
        assert 30 < estimate.effective < len(log.users)
    assert abs(log.rewards.mean() - truth[0]) > 5 * max(
        estimate.error for estimate in estimates
    )  # a question to answer
    assert estimates[2].error < estimates[0].error  # rank by rank has less variance
    assert estimates[3].error < estimates[0].error  # and so has doubly robust


def test_errors_are_those_of_repeated_logs(world: Dataset, log: LoggedPages) -> None:
    p, size = target_probabilities(policy(world, Oracle(), 2.0), log, world), 1000
    parts = [slice(start, start + size) for start in range(0, len(log.users), size)]
    fields = ("users", "slates", "clicked", "propensity")
    logs = [LoggedPages(**{name: getattr(log, name)[part] for name in fields}) for part in parts]
    for estimator in (ips, rank_ips):
        estimates = [estimator(piece, p[part]) for piece, part in zip(logs, parts, strict=True)]
        spread = np.std([e.value for e in estimates], ddof=1)
        assert 0.5 < np.mean([e.error for e in estimates]) / spread < 2.0


def test_the_logging_policy_has_the_logs_own_mean(log: LoggedPages) -> None:
    for estimate in (ips(log, log.propensity), snips(log, log.propensity), rank_ips(log, log.propensity)):
        assert estimate.value == pytest.approx(log.rewards.mean())
        assert estimate.effective == pytest.approx(len(log.users))


def test_a_log_without_support_is_refused(world: Dataset, log: LoggedPages, target: PlackettLuce) -> None:
    p = target_probabilities(target, log, world)
    with pytest.raises(DataError, match="without exploration"):
        ips(replace(log, propensity=np.ones_like(log.propensity)), p)
    gone = log.propensity.copy()
    gone[3, 1] = np.nan
    with pytest.raises(DataError, match=r"1 of 15000 pages have no propensity"):
        ips(replace(log, propensity=gone), p)
    with pytest.raises(DataError, match="outside"):
        ips(replace(log, propensity=np.zeros_like(log.propensity)), p)
    with pytest.raises(DataError, match="expected probabilities of shape"):
        ips(log, p[:5])
    cold = policy(world, Oracle(), 1e-3)  # deterministic, and hardly ever what the log shows
    with pytest.raises(DataError, match="effective pages"):
        ips(log, target_probabilities(cold, log, world))
    popular = np.bincount(log.slates.ravel(), minlength=30).argsort()[-15:]
    narrow = np.isin(log.slates, popular).all(axis=1)  # as if the logging policy could show fifteen items only
    part = LoggedPages(
        users=log.users[narrow],
        slates=log.slates[narrow],
        clicked=log.clicked[narrow],
        propensity=log.propensity[narrow],
    )
    uniform = policy(world, Popularity(), 1e6)
    with pytest.raises(DataError, match="never could"):
        ips(part, target_probabilities(uniform, part, world))


def test_events_of_an_environment_become_pages(world: Dataset) -> None:
    env = EventRecorder(
        SlateEnv(dataset=world, slate_size=K, max_pages=3, agent={"name": "choice", "exit_base": -50.0})
    )
    played = RecommenderPolicy(PlackettLuce(Popularity()), env)
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        for _ in range(3):
            observation, *_ = env.step(played(observation))
    events = env.events()
    first, every = LoggedPages.of(events), LoggedPages.of(events, first_pages=False)
    assert (len(first.users), len(every.users)) == (5, 15)
    assert every.clicked.sum() == events.clicked.sum()
    np.testing.assert_allclose(first.propensity, target_probabilities(played.recommender, first, world))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no impressions"):
        LoggedPages.of(Events.empty())
    env.reset(seed=9)
    env.step(np.arange(K))
    with pytest.raises(DataError, match="have no propensity"):
        LoggedPages.of(env.events())


@pytest.mark.filterwarnings("ignore:`(code_permalink|author|author_email)` is set to None")
@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_minari_keeps_episodes(world: Dataset, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = SlateEnv(dataset=world, slate_size=K, max_pages=4, texts=False)
    played = RecommenderPolicy(PlackettLuce(Popularity()), env)
    try:
        import minari  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(MissingExtraError, match="extra 'rl'"):
            to_minari(env, played, "simenv/test-v0", episodes=1)
        return
    dataset = to_minari(env, played, "simenv/test-v0", episodes=6)
    assert dataset.total_episodes == 6
    episode = next(iter(dataset.iterate_episodes()))
    assert episode.actions.shape == (len(episode.rewards), K)
    assert episode.rewards.sum() == episode.observations["clicks"][1:].sum()
    assert ((episode.infos["propensity"][1:] > 0) & (episode.infos["propensity"][1:] <= 1)).all()
    assert dataset.spec.env_spec is None  # made of a data set that JSON cannot hold
    named = gym.make("simenv/Slate-v0", n_users=20, n_items=30, slate_size=K, max_pages=4, texts=False)
    flat = to_minari(named, RecommenderPolicy(Popularity(), named), "simenv/flat-v0", episodes=2, flat=True)
    episode = next(iter(flat.iterate_episodes()))
    again = gym.make(flat.spec.env_spec)
    assert again.observation_space == flat.observation_space
    assert again.reset(seed=0)[0].tolist() == episode.observations[0].tolist()
    assert again.step(episode.actions[0])[1] == episode.rewards[0]


def test_the_slate_pseudo_inverse_finds_an_additive_value() -> None:
    small = synthetic(n_users=6, n_items=8, seed=1)
    logging, target = policy(small, Popularity(), 1.0), policy(small, Oracle(), 1.0)
    rng = np.random.default_rng(0)
    past = np.zeros((6, 8), bool)
    past[small.interactions.users, small.interactions.items] = True
    users = np.flatnonzero((~past).sum(axis=1) >= 4)
    chance = rng.uniform(0.05, 0.6, (2, 8))  # a click needs rank and item alone
    empty = LoggedPages(
        users=np.repeat(users, 1200),
        slates=np.zeros((1200 * len(users), 2), int),
        clicked=np.zeros((1200 * len(users), 2), bool),
        propensity=np.full((1200 * len(users), 2), 0.5),
    )

    def value_and_log(played: PlackettLuce) -> tuple[float, LoggedPages]:
        parts = []
        for r in range(1200):
            one = replace(empty, users=users, slates=np.zeros((len(users), 2), int))
            parts.append(target_slates(played, one, small, Key(3, r)))
        slates = np.stack(parts, axis=1).reshape(-1, 2).astype(np.int64)
        expected = chance[np.arange(2), slates]
        shown = replace(empty, slates=slates, clicked=rng.random(slates.shape) < expected)
        log = replace(shown, propensity=target_probabilities(played, shown, small))
        return float(expected.sum(axis=1).mean()), log

    (own, log), (truth, _) = value_and_log(logging), value_and_log(target)
    found = pseudo_inverse(log, target, logging, small)
    assert abs(truth - own) > 3 * found.error  # the question is not empty
    assert abs(found.value - truth) < 4 * found.error
    assert found.error < ips(log, target_probabilities(target, log, small)).error
    assert pseudo_inverse(log, logging, logging, small).value == pytest.approx(log.rewards.mean(), rel=1e-6)
    wide = synthetic(n_users=3, n_items=60, seed=1)
    wide_policy = policy(wide, Popularity(), 1.0)
    empty = LoggedPages(
        users=np.zeros(200, int),
        slates=np.zeros((200, 3), int),
        clicked=np.zeros((200, 3), bool),
        propensity=np.full((200, 3), 0.5),
    )
    pages = [
        target_slates(
            wide_policy, replace(empty, users=np.zeros(1, int), slates=np.zeros((1, 3), int)), wide, Key(1, r)
        )
        for r in range(200)
    ]
    shown = replace(empty, slates=np.concatenate(pages).astype(np.int64))
    shown = replace(shown, propensity=target_probabilities(wide_policy, shown, wide))
    with pytest.raises(DataError, match="slates of 3 of"):
        pseudo_inverse(shown, wide_policy, wide_policy, wide)
