import numpy as np
import pytest

from recommenders.oracle import Oracle
from recommenders.popularity import Popularity, Random
from recommenders.testing import KEY, small_log, small_truth
from simenv.candidates import Candidates
from simenv.datasets.base import Interactions
from simenv.errors import RecommenderError
from simenv.randomness import Key, Purpose, uniforms


def log_of(items, n_items=5):
    n = len(items)
    return Interactions(
        users=np.zeros(n, np.int32),
        items=np.array(items, np.int32),
        ratings=np.full(n, np.nan, np.float32),
        times=np.arange(n),
        n_users=2,
        n_items=n_items,
    )


def test_popularity_by_hand():
    recommender = Popularity()
    recommender.fit(log_of([3, 3, 3, 1, 1, 2, 4, 4]))
    np.testing.assert_array_equal(recommender.recommend(np.array([0]), 5).item_ids, [[3, 1, 4, 2, 0]])
    seen = Candidates.of(5, out=np.array([[False, False, False, True, False]]))
    np.testing.assert_array_equal(recommender.recommend(np.array([1]), 2, seen).item_ids, [[1, 4]])
    recommender.update(log_of([2, 2, 2]))
    np.testing.assert_array_equal(recommender.recommend(np.array([0]), 2).item_ids, [[2, 3]])


def test_popularity_slates_are_its_scores_ranked():
    log = small_log()
    recommender = Popularity()
    recommender.fit(log)
    excluded = np.random.default_rng(0).random((40, 60)) < 0.8
    available = np.arange(60) % 4 > 0
    slates = recommender.recommend(np.arange(40), 12, Candidates.of(60, out=excluded, available=available))
    scores = recommender.scores(np.arange(40))
    for row in range(40):
        allowed = np.flatnonzero(~excluded[row] & available)
        best = allowed[np.argsort(-scores[row, allowed], kind="stable")][:12]
        np.testing.assert_array_equal(slates.item_ids[row], np.pad(best, (0, 12 - len(best)), constant_values=-1))


def test_random_slates_are_the_keyed_uniforms_ranked():
    log, users, key = small_log(), np.arange(40), Key(seed=5, round=2, page=1)
    recommender = Random()
    recommender.fit(log)
    excluded = np.random.default_rng(0).random((40, 60)) < 0.5
    draws = np.where(excluded, -1, uniforms(key, Purpose.RANDOM_SLATE, users[:, None], np.arange(60)))
    expected = np.argsort(-draws, axis=1, kind="stable")[:, :8]
    slates = recommender.recommend(users, 8, Candidates.of(60, out=excluded), key=key)
    np.testing.assert_array_equal(slates.item_ids, expected)
    np.testing.assert_allclose(slates.propensity, 1 / ((~excluded).sum(axis=1)[:, None] - np.arange(8)))


def test_random_slates_change_with_seed_round_and_page():
    recommender = Random()
    recommender.fit(small_log())
    keys = [Key(1), Key(2), Key(1, round=1), Key(1, page=1)]
    slates = [recommender.recommend(np.arange(40), 10, key=key).item_ids for key in keys]
    assert all(not np.array_equal(slates[0], other) for other in slates[1:])


def test_random_is_uniform_over_items():
    recommender = Random()
    recommender.fit(small_log())
    slates = np.concatenate(
        [recommender.recommend(np.arange(40), 10, key=Key(0, round=r)).item_ids for r in range(300)]
    )
    shown = np.bincount(slates.ravel(), minlength=60)
    expected = slates.size / 60
    chi2 = ((shown - expected) ** 2 / expected).sum()
    assert chi2 < 105  # 59 degrees of freedom: mean 59 before the finite-slate correction, .9998 quantile 105


def test_oracle_ranks_by_truth_as_it_is_now():
    log, oracle = small_log(), Oracle()
    truth = small_truth(log)
    oracle.bind_truth(lambda users: truth[users])
    oracle.fit(log, key=KEY)
    best = np.argsort(-truth, axis=1)[:, :5]
    np.testing.assert_array_equal(oracle.recommend(np.arange(40), 5).item_ids, best)
    truth[:, 13] = 2.0
    assert (oracle.recommend(np.arange(40), 5).item_ids[:, 0] == 13).all()


def test_oracle_without_truth_says_so():
    oracle = Oracle()
    oracle.fit(small_log())
    with pytest.raises(RecommenderError, match="bind_truth"):
        oracle.recommend(np.arange(2), 3)
