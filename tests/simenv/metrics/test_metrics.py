"""The metric table on a small world worked out by hand, and what must hold for any events."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simenv.datasets.base import Catalog, Dataset, Interactions
from simenv.datasets.splits import hold_out
from simenv.errors import ConfigError, DataError
from simenv.events import Events
from simenv.metrics.formulas import mean
from simenv.metrics.reference import Reference
from simenv.metrics.table import METRICS, MetricSpec, metric_rows, spec_of

NAN = math.nan
CONTRACT = [
    "ctr",
    "mean_rating",
    "true_utility",
    "regret",
    "arp_pct",
    "log_lift",
    "top1_share",
    "tail_share",
    "coverage",
    "gini",
    "entropy",
    "jaccard",
    "ild",
    "genre_kl",
    "ndcg@10",
    "recall@10",
    "exposure_merit",
]


def interactions(users, items, n_users, n_items) -> Interactions:
    return Interactions(
        users=np.asarray(users, np.int32),
        items=np.asarray(items, np.int32),
        ratings=np.full(len(users), NAN, np.float32),
        times=np.arange(len(users), dtype=np.int64),
        n_users=n_users,
        n_items=n_items,
    )


def small_world(*, quality=True, genres=True, holdout=True) -> Dataset:
    """Four items with counts (4, 2, 2, 0), three users with histories (2, 2, 4)."""
    sets = np.array([[1, 0], [1, 1], [0, 1], [0, 0]], np.bool_)
    return Dataset(
        name="small",
        catalog=Catalog(
            item_ids=("a", "b", "c", "d"),
            titles=("A", "B", "C", "D"),
            genre_names=("x", "y"),
            genres=sets if genres else np.zeros_like(sets),
            quality=np.array([0.9, 0.5, 0.3, 0.1], np.float32) if quality else None,
        ),
        interactions=interactions([0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 0, 2, 0, 1, 0, 2], 3, 4),
        user_ids=("u", "v", "w"),
        holdout=interactions([0, 1, 1], [3, 1, 3], 3, 4) if holdout else None,
    )


# round, user, item, rank, clicked, rating, utility, best
GOLDEN_LOG = [
    (0, 0, 0, 0, True, 4.0, 0.8, 0.8),
    (0, 0, 3, 1, False, NAN, 0.4, 0.8),
    (0, 1, 1, 0, True, 2.0, 0.5, 0.5),
    (0, 1, 3, 1, True, NAN, 0.3, 0.5),
    (0, 2, 2, 0, False, NAN, 0.2, 0.4),
    (1, 0, 0, 0, False, NAN, 0.6, 0.8),
    (1, 0, 1, 1, True, NAN, 0.6, 0.8),
    (1, 1, 0, 0, True, NAN, 0.7, NAN),
    (1, 1, 2, 1, False, NAN, 0.1, NAN),
]


def events_from(log, reference: Reference) -> Events:
    rounds, users, items, ranks, clicked, ratings, utility, best = map(np.array, zip(*log))
    n = len(log)
    return Events(
        round=rounds.astype(np.int32),
        page=np.zeros(n, np.int16),
        user=users.astype(np.int32),
        item=items.astype(np.int32),
        rank=ranks.astype(np.int16),
        propensity=np.ones(n),
        examined=np.ones(n, np.bool_),
        clicked=clicked,
        rating=ratings.astype(np.float32),
        true_utility=utility.astype(np.float32),
        best_utility=best.astype(np.float32),
        popularity0_pct=reference.percentile[items],
    )


def table(rows) -> dict:
    return {(row.round, row.group, row.metric): row.value for row in rows}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.from_dataset(small_world(), seed=0)


@pytest.fixture(scope="module")
def golden(reference) -> dict:
    return table(metric_rows(events_from(GOLDEN_LOG, reference), reference, seed=1, arm="als", mode="loop"))


def h(p):
    return -p * math.log(p)


ROUND_0 = {
    "ctr": 3 / 5,
    "mean_rating": 3.0,  # of 4 and 2
    "true_utility": 2.2 / 5,
    "regret": (0.25 + 0.2 + 0.5) / 3,  # (.8 - .6) / .8, (.5 - .4) / .5, (.4 - .2) / .4
    "arp_pct": (0.875 + 0.125 + 0.5 + 0.125 + 0.5) / 5,
    "log_lift": (math.log(1.8) + 2 * math.log(0.2)) / 5,  # smoothed counts 4.5, 2.5, 2.5, .5 over their mean 2.5
    "top1_share": 1 / 5,  # item 0
    "tail_share": 2 / 5,  # items 0, 1, 2 are needed to hold 80 % of 8; item 3 is the tail
    "coverage": 1.0,
    "gini": 0.15,  # impressions 1, 1, 1, 2: 3 / (4 * 5)
    "entropy": 3 * h(0.2) + h(0.4),
    "jaccard": 0.0,  # clicked {0}, {1, 3}, {}
    "ild": NAN,  # item 3 has no genre, so no slate has two items with genres
    # User 0 clicked x only, profile (3/4, 1/4); user 1's one item with genres is half and half, as the profile.
    "genre_kl": (0.75 * math.log(0.75 / 0.9975) + 0.25 * math.log(0.25 / 0.0025)) / 2,
    "ndcg@10": (1 / math.log2(3) + 1) / 2,  # held {3} at rank 1; held {1, 3} at ranks 0, 1
    "recall@10": 1.0,
    "exposure_merit": -3 / math.sqrt(15),  # ranks 2, 2, 2, 4 against 4, 3, 2, 1
}
ROUND_1 = {
    "ctr": 2 / 4,
    "mean_rating": NAN,
    "true_utility": 2.0 / 4,
    "regret": 0.25,  # user 0 alone: user 1's best is unknown
    "arp_pct": (0.875 + 0.5 + 0.875 + 0.5) / 4,
    "log_lift": 2 * math.log(1.8) / 4,
    "top1_share": 2 / 4,
    "tail_share": 0.0,
    "coverage": 3 / 4,
    "gini": 6 / 16,  # impressions 0, 1, 1, 2: (-1 + 1 + 6) / (4 * 4)
    "entropy": h(0.5) + 2 * h(0.25),
    "jaccard": 2 / 9,  # over both rounds {0, 1}, {0, 1, 3}, {}: 2/3, 0, 0
    "ild": 0.75,  # d(x, xy) = 1/2, d(x, y) = 1
    "genre_kl": (
        0.75 * math.log(0.75 / (0.99 * 0.5 + 0.0075))
        + 0.25 * math.log(0.25 / (0.99 * 0.5 + 0.0025))
        + 0.5 * math.log(0.5 / (0.99 + 0.005))
        + 0.5 * math.log(0.5 / 0.005)
    )
    / 2,
    "ndcg@10": 0.0,
    "recall@10": 0.0,
    "exposure_merit": 4.5 / math.sqrt(4.5 * 5),  # ranks 4, 2.5, 2.5, 1 against 4, 3, 2, 1
}


def test_the_table_is_the_contract():
    assert [metric.name for metric in METRICS] == CONTRACT


@pytest.mark.parametrize("metric", CONTRACT)
@pytest.mark.parametrize(("round", "expected"), [(0, ROUND_0), (1, ROUND_1)])
def test_the_golden_log(golden, round, expected, metric):
    assert golden[round, "all", metric] == pytest.approx(expected[metric], rel=1e-6, nan_ok=True)


def test_groups_see_their_own_users_only(golden):
    assert golden[0, "activity=low", "ctr"] == 3 / 4
    assert golden[0, "activity=high", "ctr"] == 0
    assert golden[0, "activity=high", "coverage"] == 1 / 4
    assert golden[1, "activity=low", "jaccard"] == pytest.approx(2 / 3)  # its one pair
    assert math.isnan(golden[0, "activity=high", "jaccard"])  # one user, no pair


def test_a_group_that_saw_nothing_is_undefined_not_zero(golden):
    absent = [golden[1, "activity=high", metric] for metric in CONTRACT]
    assert all(map(math.isnan, absent))


def test_rows_are_tidy_and_ordered(reference):
    rows = metric_rows(events_from(GOLDEN_LOG, reference), reference, seed=1, arm="als", mode="loop")
    assert len(rows) == 2 * 3 * len(METRICS)
    assert {row[:3] for row in rows} == {(1, "als", "loop")}
    groups = ["all", "activity=low", "activity=high"]
    assert [row[3:6] for row in rows] == [(t, g, m) for t in (0, 1) for g in groups for m in CONTRACT]
    assert all(type(row.value) is float for row in rows)


def test_metrics_that_do_not_apply_make_no_rows():
    bare = Reference.from_dataset(small_world(quality=False, genres=False, holdout=False), seed=0)
    rows = metric_rows(events_from(GOLDEN_LOG, bare), bare, seed=0, arm="a", mode="loop")
    missing = set(CONTRACT) - {row.metric for row in rows}
    assert missing == {"exposure_merit", "ild", "genre_kl", "ndcg@10", "recall@10"}


def test_the_jaccard_window_is_five_rounds(reference):
    log = [(t, user, item, 0, True, NAN, 0.5, 0.5) for t, user, item in [(0, 0, 1), (0, 1, 1), (4, 0, 2), (5, 0, 2)]]
    values = table(metric_rows(events_from(log, reference), reference, seed=0, arm="a", mode="loop"))
    # Users 0 and 1: {1, 2} and {1} until round 4; in round 5 the first round is out of sight. User 2 has nothing.
    assert values[4, "activity=low", "jaccard"] == 1 / 2
    assert values[5, "activity=low", "jaccard"] == 0


def test_asked_rounds_give_the_same_rows_as_all_of_them(reference):
    events = events_from(GOLDEN_LOG, reference)
    every = table(metric_rows(events, reference, seed=0, arm="a", mode="loop"))
    last = table(metric_rows(events, reference, seed=0, arm="a", mode="loop", rounds=[1]))
    assert last.keys() == {key for key in every if key[0] == 1}
    for key, value in last.items():
        assert value == pytest.approx(every[key], nan_ok=True)
    empty = metric_rows(events, reference, seed=0, arm="a", mode="loop", rounds=[20])
    assert len(empty) == 3 * len(METRICS)
    assert all(math.isnan(row.value) for row in empty)


def top_slot_ctr(events, reference, group):
    return mean(events.clicked[events.rank == 0])


def test_a_metric_of_ones_own_is_a_function(reference):
    metric = spec_of(top_slot_ctr)
    assert (metric.name, metric.window, spec_of(metric)) == ("top_slot_ctr", 1, metric)
    rows = metric_rows(events_from(GOLDEN_LOG, reference), reference, (metric,), seed=0, arm="a", mode="loop")
    assert table(rows)[0, "all", "top_slot_ctr"] == pytest.approx(2 / 3)
    for wrong, words in (
        (lambda: spec_of(0.5), "got 0.5; expected a function"),
        (lambda: MetricSpec(name="x", compute=top_slot_ctr, window=0), "window=0: expected a whole number"),
        (lambda: MetricSpec(name="x", compute=top_slot_ctr, margin=-1), "margin=-1: expected null or a number above 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            wrong()


def test_the_docs_table_says_what_the_records_say():
    """One row a metric in docs/metrics.md, with the direction that its record wants and a margin where there is one."""
    text = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    rows = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.replace("\\|", "/").strip("|").split(" | ")]
            rows.setdefault(cells[0].strip("`"), cells)
    for metric in METRICS:
        cells = rows[metric.name]
        assert metric.wanted in cells[3], metric.name
        assert cells[4] == ("" if metric.margin is None else f"{metric.margin:g}".lstrip("0")), metric.name


def test_no_events_no_rows(reference):
    nothing = events_from(GOLDEN_LOG, reference).take(slice(0, 0))
    assert metric_rows(nothing, reference, seed=0, arm="a", mode="loop") == []


@pytest.mark.parametrize(("column", "word"), [("user", "users"), ("item", "items")])
def test_events_of_another_world_are_an_error(reference, column, word):
    events = events_from(GOLDEN_LOG, reference)
    values = getattr(events, column).copy()
    values[0] = 9
    with pytest.raises(DataError, match=rf"events: {word} lie in \[0, 9\]; expected \[0, "):
        metric_rows(replace(events, **{column: values}), reference, seed=0, arm="a", mode="loop")


def random_events(rng, reference: Reference, n_pages: int = 2, k: int = 4, rounds: int = 3) -> Events:
    """Full slates for everyone; best K is the truth's."""
    n_users, n_items = reference.n_users, reference.n_items
    truth = rng.uniform(0.05, 1, (n_users, n_items)).astype(np.float32)
    best = np.sort(truth, axis=1)[:, -k:].mean(axis=1)
    shape = (rounds, n_pages, n_users, k)
    index = np.indices(shape).reshape(4, -1)
    items = np.argsort(rng.random((rounds, n_pages, n_users, n_items)), axis=-1)[..., :k].ravel()
    clicked = rng.random(items.size) < 0.3
    return Events(
        round=index[0].astype(np.int32),
        page=index[1].astype(np.int16),
        user=index[2].astype(np.int32),
        item=items.astype(np.int32),
        rank=index[3].astype(np.int16),
        propensity=np.ones(items.size),
        examined=np.ones(items.size, np.bool_),
        clicked=clicked,
        rating=np.where(clicked, rng.integers(1, 6, items.size), NAN).astype(np.float32),
        true_utility=truth[index[2], items],
        best_utility=best[index[2]],
        popularity0_pct=reference.percentile[items],
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_bounds_and_the_order_of_rows_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    n_users, n_items, n = 9, 14, 80
    data = Dataset(
        name="random",
        catalog=Catalog(
            item_ids=tuple(map(str, range(n_items))),
            titles=tuple(f"t{i}" for i in range(n_items)),
            genre_names=("x", "y", "z"),
            genres=rng.random((n_items, 3)) < 0.5,
            quality=rng.random(n_items).astype(np.float32),
        ),
        interactions=interactions(rng.integers(0, n_users, n), rng.integers(0, n_items, n), n_users, n_items),
        user_ids=tuple(map(str, range(n_users))),
        user_attributes={"gender": np.array(["F", "M", "M"] * 3)},
    )
    data = hold_out(data, 0.3)
    reference = Reference.from_dataset(data, seed=1)
    events = random_events(rng, reference)
    rows = table(metric_rows(events, reference, seed=0, arm="a", mode="loop"))
    shuffled = events.take(rng.permutation(len(events)))
    for key, value in table(metric_rows(shuffled, reference, seed=0, arm="a", mode="loop")).items():
        assert value == pytest.approx(rows[key], rel=1e-9, abs=1e-9, nan_ok=True), key
    bounds = {metric.name: metric.bounds for metric in METRICS} | {"mean_rating": (1.0, 5.0)}
    bounds["log_lift"] = (-math.inf, math.log(n_items))
    bounds["entropy"] = (0.0, math.log(n_items))
    for (_, _, metric), value in rows.items():
        low, high = bounds[metric]
        assert math.isnan(value) or low - 1e-6 <= value <= high + 1e-6, metric
    assert {row[2] for row in rows} == set(CONTRACT)


def test_uniform_exposure_of_the_whole_catalogue_is_neutral(reference):
    log = [(0, user, item, item, False, NAN, 0.5, 0.5) for user in range(3) for item in range(4)]
    values = table(metric_rows(events_from(log, reference), reference, seed=0, arm="random", mode="loop"))
    assert values[0, "all", "arp_pct"] == pytest.approx(0.5)
    assert values[0, "all", "gini"] == pytest.approx(0)
    assert values[0, "all", "entropy"] == pytest.approx(math.log(4))
    assert values[0, "all", "coverage"] == 1
    assert math.isnan(values[0, "all", "exposure_merit"])  # constant exposure has no rank correlation
