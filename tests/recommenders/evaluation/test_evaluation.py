"""Splits hold out the right thing, metrics have their textbook values, intervals cover what they should."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recommenders.base import Recommender
from recommenders.evaluation.offline import (
    MISSED,
    bootstrap_interval,
    item_means,
    measured,
    rank_metrics,
    ranks,
    rating_errors,
    sampled_ranks,
    seen_mask,
    slates,
    table_rows,
    text_overlap,
)
from simenv.datasets import synthetic
from simenv.datasets.base import Interactions
from simenv.datasets.splits import cold_items, global_time_split, leave_one_out
from simenv.errors import ConfigError, DataError
from simenv.randomness import Key


def log_of(rows, n_items=None) -> Interactions:
    """Rows of (user, item, time)."""
    users, items, times = (np.array(column) for column in zip(*rows))
    return Interactions(
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        ratings=np.full(len(rows), np.nan, np.float32),
        times=times.astype(np.int64),
        n_users=int(users.max()) + 1,
        n_items=n_items or int(items.max()) + 1,
    )


class Fixed(Recommender):
    """Scores every user alike: item i gets `table[i]`."""

    name = "fixed"

    def __init__(self, table) -> None:
        self.table = np.asarray(table, np.float32)

    def _fit(self, log, key) -> None:
        pass

    def _score(self, users):
        return np.tile(self.table, (len(users), 1))


LOG = log_of([(0, 0, 5), (0, 1, 9), (0, 2, 9), (1, 3, 1), (1, 1, 2), (1, 0, 3), (2, 2, 4), (2, 3, 8)])


def test_seen_items_of_repeated_users():
    mask = seen_mask(LOG, np.array([2, 0, 2]))
    assert mask.tolist() == [[False, False, True, True], [True, True, True, False], [False, False, True, True]]


def test_ranks_with_and_without_the_filter():
    split = leave_one_out(LOG)
    recommender = Fixed([4, 3, 2, 1])  # order 0, 1, 2, 3
    recommender.fit(split.train)
    assert ranks(recommender, split, filter_seen=False).tolist() == [2, 0]
    assert ranks(recommender, split).tolist() == [0, 0]
    assert ranks(recommender, split, filter_seen=False, k=2).tolist() == [MISSED, 0]


def test_precision_and_recall_count_all_that_is_kept_back():
    log = log_of([(0, 0, 0), (0, 1, 11), (0, 2, 12), (0, 0, 13), (1, 3, 1), (1, 1, 2), (1, 0, 14)], n_items=12)
    split = global_time_split(log, share=0.5)
    recommender = Fixed(np.arange(12)[::-1])  # order 0, 1, 2, ...
    recommender.fit(split.train)
    found = measured(recommender, split, "ranking", True, Key(0))
    assert found["recall@1"].tolist() == [0.5, 1.0]  # of items 1 and 2, which user 0 had not before; of item 0
    assert found["precision@5"].tolist() == pytest.approx([0.4, 0.2])
    assert found["recall@5"].tolist() == [1.0, 1.0]
    seen_kept = measured(recommender, split, "ranking", False, Key(0))
    assert seen_kept["recall@1"].tolist() == pytest.approx([1 / 3, 1.0])


def test_of_cold_items_only_these_are_ranked():
    dataset = synthetic(n_users=60, n_items=80, seed=0)
    split = cold_items(dataset.interactions, share=0.4)
    recommender = Fixed(np.arange(80))
    recommender.fit(split.train)
    shown = slates(recommender, split)
    np.testing.assert_array_equal(shown, np.tile(np.flatnonzero(split.shown)[::-1][:10], (len(split.users), 1)))
    assert ranks(recommender, split).min() >= 0


def test_item_means_are_drawn_to_the_mean_of_all():
    log = replace(LOG, ratings=np.array([5, 1, 3, 3, 1, np.nan, 3, 5], np.float32))
    mean = np.nanmean(log.ratings)
    np.testing.assert_allclose(item_means(log), [(5 + 5 * mean) / 6, (2 + 5 * mean) / 7, mean, (8 + 5 * mean) / 7])
    with pytest.raises(DataError, match="no interaction to learn from has a rating"):
        item_means(LOG)


def test_ties_go_to_the_smaller_item():
    split = leave_one_out(LOG)
    recommender = Fixed([1, 1, 1, 1])
    recommender.fit(split.train)
    assert ranks(recommender, split, filter_seen=False).tolist() == [2, 0]


def test_sampled_ranks_of_a_constant_order():
    rng = np.random.default_rng(0)
    n_items = 400
    log = log_of(
        [(user, item, t) for user in range(300) for t, item in enumerate(rng.permutation(n_items)[:5])], n_items
    )
    split = leave_one_out(log)
    recommender = Fixed(rng.random(n_items))
    recommender.fit(split.train)
    places = sampled_ranks(recommender, split, n_negatives=99, k=100, key=Key(3))
    assert places.max() < 100
    assert abs(places.mean() - 49.5) < 6
    best = Fixed(np.zeros(n_items))
    best.fit(split.train)
    assert (sampled_ranks(best, split, n_negatives=9, key=Key(3)) < 10).all()
    with pytest.raises(ConfigError, match="n_negatives=399"):
        sampled_ranks(best, split, n_negatives=399)


def test_metrics_of_known_ranks():
    metrics = rank_metrics(np.array([0, 1, 4, 9, 10, MISSED]))
    assert metrics["hr@1"].tolist() == [1, 0, 0, 0, 0, 0]
    assert metrics["hr@5"].tolist() == [1, 1, 1, 0, 0, 0]
    assert metrics["hr@10"].tolist() == [1, 1, 1, 1, 0, 0]
    np.testing.assert_allclose(
        metrics["ndcg@10"], [1, 1 / np.log2(3), 1 / np.log2(6), 1 / np.log2(11), 0, 0], rtol=1e-6
    )
    np.testing.assert_allclose(metrics["mrr@10"], [1, 0.5, 0.2, 0.1, 0, 0], rtol=1e-6)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=50))
def test_metrics_are_bounded_and_monotone(places):
    metrics = rank_metrics(np.array(places))
    for name in ("hr", "ndcg", "mrr"):
        at = [metrics[f"{name}@{k}"] for k in (1, 5, 10)]
        assert all(((values >= 0) & (values <= 1)).all() for values in at)
        assert (at[0] <= at[1]).all()
        assert (at[1] <= at[2]).all()
    assert (metrics["mrr@10"] <= metrics["ndcg@10"] + 1e-6).all()
    assert (metrics["ndcg@10"] <= metrics["hr@10"] + 1e-6).all()


def test_rating_errors_ignore_missing_ratings():
    errors = rating_errors(np.array([3.0, 4.0, 9.0]), np.array([4.0, 2.0, np.nan]))
    assert errors == pytest.approx({"rmse": np.sqrt(2.5), "mae": 1.5})
    with pytest.raises(DataError, match="no pair"):
        rating_errors(np.array([1.0]), np.array([np.nan]))


def test_the_interval_of_a_mean_covers_it():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        low, high = bootstrap_interval(rng.normal(1.0, 2.0, 200), key=Key(trial), resamples=300)
        covered += low < 1.0 < high
    assert 87 <= covered <= 100


def test_leaderboard_rows():
    split, rows = leave_one_out(LOG), []
    for name, order in (("good", [9, 0, 8, 1]), ("bad", [0, 9, 0, 8])):
        recommender = Fixed(order)
        recommender.fit(split.train)
        for seen in (True, False):
            rows += table_rows(name, [measured(recommender, split, "ranking", seen, Key(0))], seen)
    columns = "recommender filter_seen metric value ci_low ci_high n_users n_seeds seed_low seed_high"
    assert {tuple(row) for row in rows} == {tuple(columns.split())}
    assert all(row["n_seeds"] == 1 and row["seed_low"] == row["value"] == row["seed_high"] for row in rows)
    value = {(row["recommender"], row["filter_seen"], row["metric"]): row["value"] for row in rows}
    assert len(value) == len(rows) == 2 * 2 * (9 + 6)  # rank metrics, precision and recall
    assert value["good", False, "hr@5"] == 1.0
    assert value["good", False, "mrr@10"] == 0.75  # ranks 1 and 0
    assert value["bad", False, "hr@1"] == 0.0
    assert all(row["ci_low"] <= row["value"] <= row["ci_high"] and row["n_users"] == 2 for row in rows)


def test_text_overlap_by_hand() -> None:
    pytest.importorskip("sacrebleu")
    same = text_overlap(["a fine film about two old friends"], ["a fine film about two old friends"])
    assert same == pytest.approx({"bleu": 100.0, "rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0})
    other = text_overlap(["wholly different words here"], ["a fine film about two old friends"])
    assert other["rouge1"] == 0
    assert other["bleu"] < 10
    half = text_overlap(["a fine film"], ["a fine book"])  # two of three words, one of two pairs
    assert half["rouge1"] == pytest.approx(200 / 3)
    assert half["rouge2"] == pytest.approx(50)
    with pytest.raises(DataError, match="2 texts for 1 references"):
        text_overlap(["a", "b"], ["a"])
