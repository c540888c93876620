"""The loop: modes, schedules, arrivals, logging and bit-exact continuation."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.choice.model import ChoiceModel
from recommenders.factors import ALS
from recommenders.popularity import Popularity, Random
from simenv.datasets import Dataset
from simenv.errors import ConfigError, RecommenderError, RunDirectoryError
from simenv.events import Events
from simenv.platform import Mode, Platform, Schedule


def play(
    world: Dataset,
    recommender: Any,
    *,
    rounds: int = 4,
    mode: str = "loop",
    repeat: str = "never",
    agent: dict[str, Any] | None = None,
    **schedule: Any,
) -> tuple[Platform, list[Events]]:
    users = ChoiceModel(**({"base": 1.0} | (agent or {})))
    users.bind(world, world.tastes, seed=2, repeat=repeat)
    platform = Platform(world, users, recommender, seed=2, mode=mode, schedule=Schedule(slate_size=5, **schedule))
    log = []
    for _ in range(rounds):
        platform.step()
        log.append(platform.round_events)
    return platform, log


def same(a: Events, b: Events) -> bool:
    return all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name), equal_nan=f.name not in ("clicked", "examined"))
        for f in fields(Events)
    )


def test_events_are_one_row_per_impression(world: Dataset) -> None:
    platform, log = play(world, Popularity(), max_pages=3)
    events = Events.concat(log)
    assert platform.round == platform.steps == 4
    first = log[0]
    assert set(first.user[first.page == 0]) == set(range(world.n_users))
    np.testing.assert_array_equal(np.sort(np.unique(events.round)), np.arange(4))
    assert events.rank.min() == 0
    assert events.rank.max() == 4
    assert not (events.clicked & ~events.examined).any()
    np.testing.assert_array_equal(~np.isnan(events.rating), events.clicked)
    assert (events.propensity == 1).all()
    assert (events.best_utility >= 0).all()
    assert len(np.unique(events.page)) > 1
    # nobody is shown an item twice in a session, nor, under repeat=never, one they clicked before
    key = ((events.round.astype(np.int64) * 1000 + events.user) << 20) + events.item
    assert len(np.unique(key)) == len(events)
    clicked = [(u, i) for u, i in zip(events.user[events.clicked], events.item[events.clicked], strict=True)]
    assert len(clicked) == len(set(clicked))


def test_events_of_a_page_are_slates_and_responses_again(world: Dataset) -> None:
    _, log = play(world, Popularity(), rounds=2, max_pages=3)
    page = log[1].take(log[1].page == 1)
    assert 0 < len(np.unique(page.user)) < world.n_users
    page = page.take(np.random.default_rng(0).permutation(len(page)))
    pages = page.pages(7)
    users, slates, did = pages.users, pages.slates, pages.responses()
    assert slates.shape == did.examined.shape == (len(np.unique(page.user)), 7)
    assert (slates[:, 5:] == -1).all()
    assert not did.exited.any()
    row = {user: place for place, user in enumerate(users.tolist())}
    for number in range(len(page)):
        place = row[int(page.user[number])], int(page.rank[number])
        told = (page.item, page.examined, page.clicked, page.rating, page.true_utility)
        for values, grid in zip(told, (slates, did.examined, did.clicked, did.ratings, did.utility), strict=True):
            np.testing.assert_equal(grid[place], values[number])
    np.testing.assert_array_equal(page.pages().slates, slates[:, :5])


def test_the_log_the_recommender_learns_from(world: Dataset) -> None:
    for mode, expected in (("loop", True), ("frozen", False)):
        recommender = Popularity()
        platform, log = play(world, recommender, mode=mode)
        clicks = sum(int(e.clicked.sum()) for e in log)
        assert clicks > 0
        assert len(platform.training_log()) == len(world.interactions) + clicks
        learned = len(recommender._log) == len(world.interactions) + clicks
        assert learned is expected


def test_loop_equals_frozen_in_round_0_and_differs_later(world: Dataset) -> None:
    _, loop = play(world, ALS(), mode="loop", rounds=6)
    _, frozen = play(world, ALS(), mode="frozen", rounds=6)
    assert same(loop[0], frozen[0])
    assert not same(loop[-1], frozen[-1])


def test_frozen_with_repeats_shows_a_constant_list(world: Dataset) -> None:
    _, log = play(world, Popularity(), mode="frozen", repeat="always")
    for events in log[1:]:
        np.testing.assert_array_equal(events.item, log[0].item)


def test_organic_trains_on_as_many_clicks_as_the_loop_had(world: Dataset) -> None:
    recommender = Popularity()
    platform, log = play(world, recommender, mode="organic")
    clicks = [int(e.clicked.sum()) for e in log]
    assert [len(part) for part in platform._feedback] == clicks
    fed = platform.training_log().take(slice(len(world.interactions), None))
    own = {(int(u), int(i)) for e in log for u, i in zip(e.user[e.clicked], e.item[e.clicked], strict=True)}
    assert len(own & set(zip(fed.users.tolist(), fed.items.tolist(), strict=True))) < 0.5 * len(fed)
    assert same(log[0], play(world, Popularity(), mode="loop")[1][0])


def test_exogenous_trains_on_random_slates(world: Dataset) -> None:
    platform, log = play(world, Popularity(), mode="exogenous", rounds=10, agent={"base": 3.0})
    fed = platform.training_log().take(slice(len(world.interactions), None))
    shown = Events.concat(log)
    assert len(np.unique(fed.items)) > 2 * len(np.unique(shown.item[shown.clicked]))


def test_no_recommender_and_adoption(world: Dataset) -> None:
    _, none = play(world, None, mode="none")
    assert all(np.isnan(e.propensity).all() for e in none)
    shares = []
    for mode in ("loop@0", "loop@0.5", "loop"):
        _, log = play(world, Popularity(), mode=mode, rounds=8)
        shares.append(float(np.mean([(~np.isnan(e.propensity)).mean() for e in log])))
    assert shares[0] == 0
    assert abs(shares[1] - 0.5) < 4 * np.sqrt(0.25 / (8 * world.n_users))
    assert shares[2] == 1
    _, zero = play(world, Popularity(), mode="loop@0")
    assert same(zero[0], none[0])


def test_mode_and_recommender_must_fit(world: Dataset) -> None:
    with pytest.raises(ConfigError, match="arm 'none' goes with mode 'none'"):
        play(world, None, mode="loop")
    with pytest.raises(ConfigError, match="mode=loop@2: expected one of"):
        Mode.parse("loop@2")
    assert [str(Mode.parse(text)) for text in ("loop", "organic", "loop@0.5", "frozen@1")] == [
        "loop",
        "organic",
        "loop@0.5",
        "frozen",
    ]


@pytest.mark.parametrize("retrain", ["refit", "window", "update"])
def test_retraining_policies_learn_from_what_they_say(world: Dataset, retrain: str) -> None:
    recommender = Popularity()
    platform, _ = play(world, recommender, rounds=6, retrain=retrain, window=2)
    lengths = [len(part) for part in platform._feedback]
    new = sum(lengths[-2:]) if retrain == "window" else sum(lengths)
    assert len(recommender._log) == len(world.interactions) + new


def test_retrain_every_skips_rounds(world: Dataset) -> None:
    fits = []

    class Counting(Popularity):
        def _fit(self, log: Any, key: Any) -> None:
            fits.append(len(log))
            super()._fit(log, key)

    play(world, Counting(), rounds=7, retrain_every=3)
    assert len(fits) == 3


def test_a_recommender_measures_what_it_showed_before_it_learns_from_it(world: Dataset) -> None:
    class Measuring(Popularity):
        def measures(self, events: Events) -> dict[str, float]:
            return {"learned_from": float(len(self.log)), "shown": float(len(events))}

    recommender = Measuring()
    platform, _ = play(world, recommender, rounds=0)
    for _ in range(2):
        before = len(recommender.log)
        platform.step()
        assert platform.round_events is not None
        assert platform.round_measures == {"learned_from": before, "shown": len(platform.round_events)}
        assert len(recommender.log) > before


def test_activity_thins_out_sessions(world: Dataset) -> None:
    platform, log = play(world, Popularity(), rounds=12, activity=0.3)
    share = np.mean([len(np.unique(e.user)) / world.n_users for e in log])
    assert 0.2 < share < 0.4
    active = np.concatenate([np.unique(e.user) for e in log])
    rates = np.bincount(active, minlength=world.n_users)
    busy = platform.users.activity > 0.5
    assert rates[busy].mean() > 2 * rates[~busy].mean()


def test_arrivals_are_absent_first(world: Dataset) -> None:
    platform, log = play(world, Popularity(), rounds=6, arriving_users=0.3, arriving_items=0.4, arrival_rounds=4)
    late_users, late_items = platform.user_arrival > 0, platform.item_arrival > 0
    assert 0.1 < late_users.mean() < 0.5
    assert 0.2 < late_items.mean() < 0.6
    for round_, events in enumerate(log):
        assert (platform.user_arrival[events.user] <= round_).all()
        assert (platform.item_arrival[events.item] <= round_).all()
    warm = platform.log
    assert not late_users[warm.users].any()
    assert not late_items[warm.items].any()
    assert set(log[5].user) == set(range(world.n_users))


def test_attrition_is_for_good(world: Dataset) -> None:
    _, log = play(world, Random(), rounds=8, attrition=0.5)
    present = [set(e.user.tolist()) for e in log]
    assert all(later <= earlier for earlier, later in pairwise(present))
    assert len(present[-1]) < world.n_users
    assert {len(set(e.user.tolist())) for e in play(world, Random(), rounds=8)[1]} == {world.n_users}


@pytest.mark.parametrize("mode", ["loop", "organic", "exogenous", "frozen", "loop@0.5"])
def test_going_on_from_a_snapshot_is_exact(world: Dataset, tmp_path: Path, mode: str) -> None:
    def make() -> Platform:
        users = ChoiceModel(base=1.0)
        users.bind(world, world.tastes, seed=2, repeat="cooldown")
        schedule = Schedule(slate_size=5, max_pages=2, attrition=0.1, retrain="update")
        return Platform(world, users, ALS(), seed=2, mode=mode, schedule=schedule)

    whole, log = make(), []
    for _ in range(6):
        whole.step()
        log.append(whole.round_events)
    first, second = make(), make()
    for _ in range(3):
        first.step()
    first.save(tmp_path / "snapshot")
    second.load(tmp_path / "snapshot")
    assert second.round == 3
    for round_ in range(3, 6):
        second.step()
        assert same(second.round_events, log[round_])


def test_damaged_snapshot(world: Dataset, tmp_path: Path) -> None:
    platform, _ = play(world, Popularity())
    platform.save(tmp_path / "s")
    path = tmp_path / "s" / "platform.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunDirectoryError, match="damaged checkpoint"):
        platform.load(tmp_path / "s")


def test_bad_schedules_are_named(world: Dataset) -> None:
    for option, value in (
        ("slate_size", 0),
        ("max_pages", -1),
        ("retrain_every", 0),
        ("activity", 0.0),
        ("attrition", 2),
        ("retrain", "daily"),
        ("slate_size", 2.5),
    ):
        with pytest.raises(ConfigError, match=f"{option}="):
            Schedule(**{option: value})
    users = ChoiceModel()
    users.bind(world, world.tastes, seed=2)
    with pytest.raises(ConfigError, match="slate_size=81: the catalogue has 80 items"):
        Platform(world, users, Popularity(), seed=2, schedule=Schedule(slate_size=81))


def test_a_recommender_that_returns_nonsense_is_named(world: Dataset) -> None:
    class Broken(Popularity):
        name = "broken"

        def _recommend(self, users: Any, k: int, candidates: Any, key: Any) -> Any:
            slates = super()._recommend(users, k, candidates, key)
            if key.round == 2:
                slates.item_ids[7, 1] = 5000
            return slates

    with pytest.raises(RecommenderError, match="broken, round 2, user 7: unknown item 5000"):
        play(world, Broken())
