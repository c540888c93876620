"""Session values from another policy's log, against what sessions played under the policy are worth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recommenders.evaluation.off_policy import LoggedPages
from recommenders.evaluation.off_policy_sessions import LoggedSessions, fitted_q, per_decision
from simenv.envs.slate import SlateEnv
from simenv.envs.tasks import make_task_vec
from simenv.envs.wrappers import EventRecorder
from simenv.errors import DataError

N, PAGES = 2500, 4
TARGET = np.array([0.5, 0.2, 0.1, 0.1, 0.1])  # of SatiationTrap's items


def played(chances: np.ndarray, seed: int) -> LoggedSessions:
    """Sessions of SatiationTrap, their first pages, under a policy that draws items by these chances."""
    envs = make_task_vec("SatiationTrap", N)
    envs.reset(seed=seed)
    rng = np.random.default_rng(seed)
    items, clicks = np.empty((N, PAGES), np.int64), np.empty((N, PAGES), np.bool_)
    for page in range(PAGES):
        items[:, page] = rng.choice(5, N, p=chances)
        envs.step(items[:, page : page + 1])
        clicks[:, page] = envs.sessions.clicked[:, 0]
    pages = LoggedPages(
        users=np.zeros(N * PAGES, np.int64),
        slates=items.reshape(-1, 1),
        clicked=clicks.reshape(-1, 1),
        propensity=chances[items].reshape(-1, 1),
    )
    return LoggedSessions(pages=pages, session=np.repeat(np.arange(N), PAGES), page=np.tile(np.arange(PAGES), N))


@pytest.fixture(scope="module")
def log() -> LoggedSessions:
    return played(np.full(5, 0.2), seed=1)


@pytest.fixture(scope="module")
def truth() -> tuple[float, float]:
    clicks = played(TARGET, seed=2)
    sessions = clicks.table(clicks.pages.rewards, 0.0).sum(axis=1)
    return float(sessions.mean()), float(sessions.std() / np.sqrt(N))


def states(log: LoggedSessions) -> tuple[np.ndarray, np.ndarray]:
    """Features of state and item, each item's clicks so far by item and page; and their mean over the target's."""
    items, clicks = log.pages.slates.reshape(N, PAGES), log.pages.clicked.reshape(N, PAGES)
    shown = np.eye(5)[items] * clicks[..., None]
    before = np.cumsum(shown, axis=1) - shown  # (N, PAGES, 5)

    def of(item: np.ndarray) -> np.ndarray:
        chosen = np.eye(5)[item]
        state = np.concatenate([before * 0 + 1, before], axis=-1)[..., None] * chosen[:, :, None, :]
        rows = state.reshape(N, PAGES, -1)
        by_page = rows[:, :, None, :] * np.eye(PAGES)[None, :, :, None]
        return by_page[..., : rows.shape[-1]].reshape(N * PAGES, -1)

    every = [of(np.full((N, PAGES), item)) for item in range(5)]
    return of(items), np.tensordot(TARGET, np.stack(every), axes=1)


def test_both_estimators_find_the_value_of_another_policy(log: LoggedSessions, truth: tuple[float, float]) -> None:
    value, error = truth
    own = log.pages.rewards.sum() / N
    weighted = per_decision(log, TARGET[log.pages.slates])
    fitted = fitted_q(log, *states(log), resamples=4)
    for found in (weighted, fitted):
        assert abs(found.value - value) < 4 * np.hypot(found.error, error) + 0.02
        assert abs(found.value - own) > abs(found.value - value)
    assert fitted.error < weighted.error
    assert weighted.effective < N


def test_a_single_page_is_worth_what_page_estimators_say(log: LoggedSessions) -> None:
    from recommenders.evaluation.off_policy import ips

    first = log.page == 0
    fields = ("users", "slates", "clicked", "propensity")
    pages = LoggedPages(**{name: getattr(log.pages, name)[first] for name in fields})
    alone = LoggedSessions(pages=pages, session=np.arange(N), page=np.zeros(N, np.int64))
    target = TARGET[pages.slates]
    assert per_decision(alone, target).value == pytest.approx(ips(pages, target).value)
    discounted = per_decision(log, TARGET[log.pages.slates], gamma=0.0)
    assert discounted.value == pytest.approx(ips(pages, target).value)
    ones = np.eye(5)[pages.slates[:, 0]]
    assert fitted_q(alone, ones, np.tile(TARGET, (N, 1)), ridge=1e-9, resamples=2).value == pytest.approx(
        sum(TARGET[i] * pages.clicked[pages.slates[:, 0] == i].mean() for i in range(5)), rel=1e-4
    )


def test_what_cannot_be_read_is_refused(log: LoggedSessions) -> None:
    with pytest.raises(DataError, match="numbered from 0"):
        replace(log, page=log.page + 1)
    with pytest.raises(DataError, match="features"):
        fitted_q(log, np.zeros((3, 2)), np.zeros((3, 2)))
    with pytest.raises(DataError, match="finite"):
        fitted_q(log, np.full((N * PAGES, 1), np.nan), np.zeros((N * PAGES, 1)))
    with pytest.raises(DataError, match="support"):
        per_decision(log, np.zeros(log.pages.slates.shape))


def test_sessions_are_read_from_events() -> None:
    env = EventRecorder(SlateEnv(n_users=20, n_items=30, slate_size=2, max_pages=4, texts=False))
    rewards = []
    for seed in range(6):
        env.reset(seed=seed)
        rewards.append(0.0)
        over = False
        while not over:
            env.unwrapped.propensity = np.full(2, 0.5)  # type: ignore[attr-defined]
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            rewards[-1] += float(reward)
            over = terminated or truncated
    log = LoggedSessions.of(env.events())
    assert log.n_sessions == 6
    assert log.table(log.pages.rewards, 0.0).sum(axis=1).tolist() == rewards
