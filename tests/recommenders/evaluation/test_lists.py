"""Popularity of lists and leakage of user attributes, on cases with known answers."""

import numpy as np
import pytest

from recommenders.evaluation.lists import (
    attacker_auc,
    attacker_parts,
    auc_parts,
    list_events,
    popularity_by_history,
    popularity_by_rank,
    popularity_row,
)
from recommenders.p5.generative import P5Fast
from recommenders.testing import KEY, small_log
from simenv.errors import DataError
from tests.recommenders.flat import flat


def test_popularity_by_rank_leaves_out_empty_places():
    percentile = np.array([0.0, 0.5, 1.0], np.float32)
    slates = np.array([[2, 1, -1], [2, 0, -1]])
    by_rank = popularity_by_rank(slates, percentile)
    assert by_rank[:2].tolist() == [1.0, 0.25]
    assert np.isnan(by_rank[2])


def test_popularity_by_history_groups_users_by_length():
    percentile = np.array([0.0, 1.0], np.float32)
    lengths, values = popularity_by_history(
        np.array([[1], [1], [0], [0]]), percentile, np.array([1, 2, 50, 60]), bins=2
    )
    assert lengths.tolist() == [1.5, 55.0]
    assert values.tolist() == [1.0, 0.0]
    with pytest.raises(DataError, match="bins=9"):
        popularity_by_history(np.array([[1]]), percentile, np.array([1]), bins=9)


def test_the_attacker_finds_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    gender = np.where(rng.random(800) < 0.4, "F", "M")
    noise = rng.normal(size=(800, 12))
    told = noise + np.where(gender == "F", 1.0, 0.0)[:, None]
    assert attacker_auc(told, gender, rng) > 0.9
    assert abs(attacker_auc(noise, gender, rng) - 0.5) < 0.07
    with pytest.raises(DataError, match="1 value;"):
        attacker_auc(noise, np.zeros(800), rng)


def test_an_attribute_of_many_values_is_told_one_against_the_rest():
    rng = np.random.default_rng(1)
    age = rng.integers(0, 4, 800)
    noise = rng.normal(size=(800, 12))
    told = noise.copy()
    told[:, :4] += 4 * (age[:, None] == np.arange(4))
    assert attacker_auc(told, age, rng) > 0.9
    assert abs(attacker_auc(noise, age, rng) - 0.5) < 0.07
    half = noise + 10 * (age == 3)[:, None]  # one value in four is told, the others are not
    assert 0.55 < attacker_auc(half, age, rng) < 0.8


def test_parts_of_the_attacker_average_to_the_auc_and_vary_as_it_does():
    aucs, widths = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        gender = rng.random(400) < 0.3
        parts = attacker_parts(rng.normal(size=(400, 2)) + 0.8 * gender[:, None], gender, rng)
        aucs.append(parts.mean())
        widths.append(parts.std(ddof=1) / 20)
    assert np.mean(widths) == pytest.approx(np.std(aucs, ddof=1), rel=0.25)
    scores, truth = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, True, False, True])
    pairs = [(0.5 * (a == b) + (a > b)) for a in scores[truth] for b in scores[~truth]]
    assert auc_parts(scores, truth).mean() == pytest.approx(np.mean(pairs))
    assert np.isnan(auc_parts(scores, np.ones(4, np.bool_))).all()
    rare = np.array(["a"] * 400 + ["b"] * 397 + ["c"] * 3)
    parts = attacker_parts(np.random.default_rng(0).normal(size=(800, 2)), rare, np.random.default_rng(0))
    assert len(parts) == 800  # three users are in the rest
    with pytest.raises(DataError, match="no value of the attribute has 20 users"):
        attacker_parts(np.zeros((30, 2)), np.arange(30), np.random.default_rng(0))


def test_lists_become_events_without_empty_places():
    percentile = np.array([0.1, 0.5, 0.9], np.float32)
    events = list_events(np.array([[2, -1], [0, 1]]), np.array([7, 8]), percentile, "p5")
    assert events.select("user", "item", "rank").rows() == [(7, 2, 0), (8, 0, 0), (8, 1, 1)]
    assert events["popularity0_pct"].to_numpy().tolist() == percentile[[2, 0, 1]].tolist()
    assert set(events["mode"]) == {"none"}
    assert set(events["arm"]) == {"p5"}


def test_the_two_figures_in_five_numbers():
    percentile = np.array([0.0, 0.5, 1.0], np.float32)
    slates = np.array([[2, 1], [0, 0], [2, -1]])
    row = popularity_row(slates, percentile, np.array([1, 2, 9]), np.array([0.5, 0.25, 0.75], np.float32))
    assert row["first"] == pytest.approx(2 / 3)
    assert row["last"] == pytest.approx(0.25)
    assert row["all"] == pytest.approx((0.75 + 0 + 1) / 3)
    assert row["short"] == pytest.approx(0.75 - 0.5)
    assert row["long"] == pytest.approx(1 - 0.75)


def test_user_states_of_a_recommender_can_be_attacked():
    recommender = flat(
        P5Fast, embedding_size=8, heads=1, layers=1, epochs=1, history=6, index_options={"leaf_size": 20}
    )
    recommender.fit(small_log(), key=KEY)
    states = recommender.user_states(np.arange(40))
    assert states.shape == (40, 8)
    attribute = np.arange(40) % 2
    assert 0 <= attacker_auc(states, attribute, np.random.default_rng(0)) <= 1
