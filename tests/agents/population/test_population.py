"""Population: memory, consumption regimes, dynamics by hand, snapshots, and the mesa view."""

from __future__ import annotations

import gc
import weakref

import mesa
import numpy as np
import pytest

from agents.choice.model import ChoiceModel
from agents.population.rows import Dynamics, Population
from agents.population.user_agent import UserAgent, release
from simenv.candidates import unpack
from simenv.datasets import Dataset
from simenv.errors import ConfigError
from simenv.platform import Platform
from simenv.randomness import Key
from simenv.slates import Responses


def make(world: Dataset, repeat: str = "never", memory_size: int = 4, **dynamics: float) -> Population:
    return Population(world, world.tastes, dynamics=Dynamics(**dynamics), repeat=repeat, memory_size=memory_size)


def page(items: list[int], clicked: list[bool], utility: float = 0.5) -> tuple[np.ndarray, Responses]:
    slates = np.array([items], np.int32)
    click = np.array([clicked])
    return slates, Responses(
        examined=np.ones_like(click),
        clicked=click,
        ratings=np.where(click, 4.0, np.nan).astype(np.float32),
        utility=np.full(click.shape, utility, np.float32),
        exited=np.zeros(1, np.bool_),
    )


def test_warm_start_is_remembered(world: Dataset) -> None:
    population = make(world)
    log = world.interactions
    for user in (0, 17, 59):
        own = log.items[log.users == user]
        np.testing.assert_array_equal(
            np.flatnonzero(unpack(population.clicked_bits[[user]], world.n_items)[0]), np.unique(own)
        )
        remembered = [event["item"] for event in population.recent(user)]
        assert remembered == own[::-1][:4].tolist()
        assert all(event["round"] == -1 for event in population.recent(user))
        assert population.genre_counts[user].sum() == pytest.approx(
            world.catalog.genres[own].any(axis=1).sum(), rel=1e-5
        )


def test_memory_is_a_ring_on_a_step_clock(world: Dataset) -> None:
    population = make(world, memory_size=3)
    for round_ in range(2):
        population.absorb(np.array([7]), *page([10 * round_ + 1, 10 * round_ + 2], [True, False]), Key(0, round_, 1))
    events = list(population.recent(7))
    assert [(e["item"], e["clicked"], e["round"], e["page"]) for e in events] == [
        (12, False, 1, 1),
        (11, True, 1, 1),
        (2, False, 0, 1),
    ]
    assert [e["event"] for e in events] == sorted((e["event"] for e in events), reverse=True)
    assert events[1]["rating"] == 4.0
    assert np.isnan(events[0]["rating"])
    assert len(list(population.recent(7, 2))) == 2


def test_repeat_regimes(world: Dataset) -> None:
    user, fresh = np.array([3]), 0
    consumed = unpack(make(world).clicked_bits[user], world.n_items)[0]
    fresh = int(np.flatnonzero(~consumed)[0])
    for repeat in ("never", "cooldown", "always"):
        population = make(world, repeat=repeat)
        excluded_when = []
        for round_ in range(8):
            bits = population.excluded(user)
            excluded_when.append(bits is not None and bool(unpack(bits, world.n_items)[0, fresh]))
            if repeat == "cooldown" and round_ == 0:
                assert not unpack(bits, world.n_items).any()  # warm start does not count as a recent click
            if round_ == 1:
                population.absorb(user, *page([fresh], [True]), Key(0, round_))
            population.end_round(round_)
        expected = {
            "never": [False, False, True, True, True, True, True, True],
            "cooldown": [False, False, True, True, True, True, True, False],
            "always": [False] * 8,
        }
        assert excluded_when == expected[repeat], repeat


def test_regime_must_be_known(world: Dataset) -> None:
    with pytest.raises(ConfigError, match="repeat=sometimes: expected one of never, cooldown, always"):
        make(world, repeat="sometimes")


def test_drift_turns_the_taste_towards_a_click_and_keeps_its_length(world: Dataset) -> None:
    population = make(world, drift=0.25)
    before, item = population.vectors[2].astype(float), 33
    vector = world.tastes.choice.item_vectors[item].astype(float)
    population.absorb(np.array([2]), *page([item], [True]), Key(0))
    expected = 0.75 * before + 0.25 * vector * np.linalg.norm(before) / np.linalg.norm(vector)
    expected *= np.linalg.norm(before) / np.linalg.norm(expected)
    np.testing.assert_allclose(population.vectors[2], expected, rtol=1e-4, atol=1e-6)
    away = make(world, drift_skip=0.25)
    away.absorb(np.array([2]), *page([item], [False]), Key(0))
    assert away.vectors[2] @ vector < before @ vector < population.vectors[2] @ vector
    np.testing.assert_array_equal(
        world.tastes.choice.user_vectors[2], before.astype(np.float32)
    )  # the world is untouched


def test_satiation_fatigue_and_satisfaction_by_hand(world: Dataset) -> None:
    population = make(
        world, satiation_gain=2.0, satiation_decay=0.25, fatigue_gain=0.1, fatigue_recovery=0.5, satisfaction_memory=0.5
    )
    item = 5
    genres = world.catalog.genres[item]
    population.absorb(np.array([1]), *page([item, 6, 7], [True, False, False], utility=0.5), Key(0))
    np.testing.assert_allclose(population.satiation[1], 2.0 * genres / genres.sum(), rtol=1e-6)
    assert population.fatigue[1] == pytest.approx(0.3)
    assert population.satisfaction[1] == pytest.approx(0.5 * 0.5 + 0.5 * (1 - 0.5**3))
    population.end_round(0)
    np.testing.assert_allclose(population.satiation[1], 0.5 * genres / genres.sum(), rtol=1e-6)
    assert population.fatigue[1] == pytest.approx(0.15)
    assert population.click_counts[item] == world.interactions.item_counts()[item] + 1


def test_snapshot_is_exact_and_independent(world: Dataset) -> None:
    users = ChoiceModel(base=1.0)
    users.bind(world, world.tastes, seed=1)
    everyone = np.arange(world.n_users)
    slates = np.tile(np.arange(6, dtype=np.int32), (world.n_users, 1))
    users.respond(everyone, slates, Key(1, 0))
    state = users.state_dict()
    first = users.respond(everyone, slates + 6, Key(1, 1))
    users.load_state_dict(state)
    again = users.respond(everyone, slates + 6, Key(1, 1))
    np.testing.assert_array_equal(first.clicked, again.clicked)
    np.testing.assert_array_equal(first.utility, again.utility)
    with pytest.raises(ConfigError, match="population state 'fatigue'"):
        users.load_state_dict(state | {"fatigue": state["fatigue"][:-1]})


def test_twins_go_their_own_way(world: Dataset) -> None:
    users = ChoiceModel(base=2.0)
    users.bind(world, world.tastes, seed=1)
    twin = users.twin()
    before = users.state_dict()
    twin.respond(np.arange(world.n_users), np.tile(np.arange(6, dtype=np.int32), (world.n_users, 1)), Key(1))
    for name, values in users.state_dict().items():
        np.testing.assert_array_equal(values, before[name])
    assert (twin.state_dict()["memory_count"] > before["memory_count"]).all()


class TestUserAgent:
    @pytest.fixture
    def platform(self, world: Dataset) -> Platform:
        users = ChoiceModel(base=2.0)
        users.bind(world, world.tastes, seed=1)
        return Platform(world, users, None, seed=1, mode="none")

    def test_is_one_light_view_per_row(self, platform: Platform) -> None:
        assert len(platform.agents) == 0
        agent = UserAgent.of(platform, 7)
        assert isinstance(agent, mesa.Agent)
        assert UserAgent.of(platform, 7) is agent
        assert agent.unique_id == 7
        before = agent.satisfaction
        platform.step()
        assert agent.satisfaction != before
        assert next(agent.memory(1))["round"] == 0
        assert agent.traits["activity"] == np.sum(platform.dataset.interactions.users == 7)
        np.testing.assert_array_equal(agent.taste, platform.users.population.vectors[7])
        agent.remove()
        assert len(platform.agents) == 0
        assert UserAgent.of(platform, 7) is not agent
        release(platform)

    def test_unknown_row(self, platform: Platform) -> None:
        with pytest.raises(ConfigError, match="user 60: expected a row in 0 to 59"):
            UserAgent.of(platform, 60)

    def test_release_lets_the_platform_go(self, world: Dataset) -> None:
        users = ChoiceModel()
        users.bind(world, world.tastes, seed=1)
        platform = Platform(world, users, None, seed=1, mode="none")
        UserAgent.of(platform, 3)
        gone = weakref.ref(platform)
        release(platform)
        del platform
        gc.collect()
        assert gone() is None
