"""Populations in shards: the same events, log and snapshots however they are cut."""

from __future__ import annotations

import resource
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.choice.model import ChoiceModel, RankAcceptance
from agents.population.traits import Traits
from recommenders.factors import ALS
from recommenders.oracle import Oracle
from recommenders.popularity import Popularity, Random
from simenv.datasets import Dataset
from simenv.errors import ConfigError, RunDirectoryError
from simenv.events import Events
from simenv.platform import Platform, Schedule
from simenv.shards import Everybody, Here, OnDisk, Shard, ShardedPlatform, bounds_of

MAKE = {"choice": lambda: ChoiceModel(base=1.0, satiation_gain=1.0, drift=0.05), "rank": RankAcceptance}


class ShardOf:
    """Makes one shard of a world."""

    def __init__(self, world: Dataset, rows: range, agent: str, repeat: str, options: dict[str, Any]) -> None:
        self.world, self.rows, self.agent, self.repeat, self.options = world, rows, agent, repeat, options

    def __call__(self) -> Shard:
        rows, world = np.array(self.rows), self.world
        part = world.take_users(rows)
        users = MAKE[self.agent]()
        users.bind(part, part.tastes, seed=2, repeat=self.repeat, traits=Traits.from_dataset(world).take(rows))
        everybody = Everybody(
            first=self.rows.start, n_users=world.n_users, item_counts=world.interactions.item_counts()
        )
        return Shard(part, users, everybody, **self.options)


def platform_of(
    world: Dataset,
    recommender: Any,
    n: int,
    *,
    agent: str = "choice",
    repeat: str = "never",
    mode: str = "loop",
    folder: Path | None = None,
    counted: bool = False,
    recorder: Any = None,
    **schedule: Any,
) -> Platform:
    options: dict[str, Any] = {"seed": 2, "luck_seed": 5, "mode": mode, "schedule": Schedule(slate_size=5, **schedule)}
    if n == 1:
        users = MAKE[agent]()
        users.bind(world, world.tastes, seed=2, repeat=repeat)
        return Platform(world, users, recommender, **options)
    bounds = bounds_of(world.n_users, n)
    own = options | {"gathers": not counted, "recorder": recorder}
    makers = [ShardOf(world, range(a, b), agent, repeat, own) for a, b in pairwise(bounds)]
    place = Here([make() for make in makers]) if folder is None else OnDisk(folder, makers)
    counts = world.interactions.item_counts() if counted else None
    return ShardedPlatform(world, place, bounds, recommender, counts=counts, **options)


def played(platform: Platform, rounds: int = 4) -> list[Events]:
    log = []
    for _ in range(rounds):
        platform.step()
        assert platform.round_events is not None
        log.append(platform.round_events)
    return log


def assert_same(a: list[Events], b: list[Events]) -> None:
    for one, other in zip(a, b, strict=True):
        for f in fields(Events):
            np.testing.assert_array_equal(getattr(one, f.name), getattr(other, f.name), f.name)


CASES = {
    "popularity, several pages, arrivals": (
        Popularity,
        {"max_pages": 3, "arriving_users": 0.3, "arriving_items": 0.2, "arrival_rounds": 3, "attrition": 0.5},
    ),
    "random, cooldown": (Random, {"repeat": "cooldown", "activity": 0.4}),
    "als, partly adopted": (lambda: ALS(embedding_size=4, epochs=1), {"mode": "loop@0.5"}),
    "als, twins": (lambda: ALS(embedding_size=4, epochs=1), {"mode": "exogenous", "max_pages": 2}),
    "oracle, ranks": (Oracle, {"agent": "rank"}),
    "nobody": (lambda: None, {"mode": "none"}),
    "popularity, updated": (Popularity, {"retrain": "update", "retrain_every": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_events_do_not_depend_on_the_number_of_shards(world: Dataset, case: str) -> None:
    make, options = CASES[case]
    whole = platform_of(world, make(), 1, **options)
    expected = played(whole)
    assert any(events.clicked.any() for events in expected)
    for n in (2, 3):
        platform = platform_of(world, make(), n, **options)
        assert_same(expected, played(platform))
        a, b = whole.training_log(), platform.training_log()
        for name in ("users", "items", "ratings", "times"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)


def test_a_snapshot_goes_on_with_any_number_of_shards(world: Dataset, tmp_path: Path) -> None:
    options: dict[str, Any] = {"repeat": "cooldown", "mode": "exogenous", "attrition": 0.5}
    expected = played(platform_of(world, Popularity(), 1, **options), 5)
    first = platform_of(world, Popularity(), 3, **options)
    played(first, 2)
    first.save(tmp_path / "saved")
    for n in (1, 2):
        again = platform_of(world, Popularity(), n, **options)
        again.load(tmp_path / "saved")
        assert_same(expected[2:], played(again, 3))


def shown(events: Events, round: int) -> tuple[int, np.ndarray]:
    return round, np.bincount(events.item[events.clicked], minlength=int(events.item.max()) + 1)


def test_shards_that_come_and_go_are_counted_alone(world: Dataset, tmp_path: Path) -> None:
    expected = played(platform_of(world, Popularity(), 1))
    platform = platform_of(world, Popularity(), 3, folder=tmp_path, counted=True, recorder=shown)
    for round_, events in enumerate(expected):
        platform.step()
        clicks = np.zeros(world.n_items, np.int64)
        for told, counts in platform.records:  # type: ignore[attr-defined]
            assert told == round_
            clicks[: len(counts)] += counts
        np.testing.assert_array_equal(clicks, np.bincount(events.item[events.clicked], minlength=world.n_items))
    assert len(list(tmp_path.glob("shard-*.pickle"))) == 3


def test_shards_on_a_full_disk_go_on_where_they_were(world: Dataset, tmp_path: Path) -> None:
    def counted(rounds: int) -> list[int]:
        options: dict[str, Any] = {"folder": tmp_path, "counted": True, "recorder": shown}
        platform = platform_of(world, Popularity(), 3, **options)
        found = []
        for _ in range(rounds):
            platform.step()
            found.append(int(sum(counts.sum() for _, counts in platform.records)))  # type: ignore[attr-defined]
        return found

    first = counted(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.raises(RunDirectoryError, match=r"shard-0000.000002.pickle: cannot be written"):
            counted(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    expected = [int(events.clicked.sum()) for events in played(platform_of(world, Popularity(), 1), 3)]
    assert counted(3) == expected
    assert first == expected[:1]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "organic"}, "mode=organic: twins stop"),
        ({"mode": "loop@0.5", "max_pages": 2}, "max_pages=2: users without a recommender"),
        ({"counted": True, "recommender": ALS(embedding_size=4)}, "als: learns from the log of all users"),
        ({"counted": True, "retrain": "update"}, "retrain=update: counts tell no rounds apart"),
    ],
)
def test_what_shards_cannot_do_is_refused(world: Dataset, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        platform_of(world, options.pop("recommender", None) or Popularity(), 2, **options)
    with pytest.raises(ConfigError, match="shards=1000000"):
        bounds_of(world.n_users, 1_000_000)
