import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recommenders.base import user_items
from recommenders.factors import ALS, BPR, MF, PureSVD
from recommenders.popularity import Popularity
from recommenders.testing import KEY, small_log
from simenv.candidates import Candidates
from simenv.datasets.base import Interactions
from simenv.errors import RecommenderError
from simenv.randomness import Key


def two_camps(seed=0):
    """Users 0-39 consume items 0-29 only, users 40-79 items 30-59 only; a third of each camp's items per user."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(80), 10)
    items = np.concatenate([rng.choice(30, 10, replace=False) + 30 * (user >= 40) for user in range(80)])
    n = len(users)
    return Interactions(
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        ratings=np.full(n, np.nan, np.float32),
        times=np.arange(n),
        n_users=80,
        n_items=60,
    )


@pytest.mark.parametrize("kind", [ALS, BPR])
def test_implicit_factors_find_the_planted_camps(kind):
    log = two_camps()
    recommender = kind(embedding_size=2)
    recommender.fit(log, key=KEY)
    seen = np.zeros((80, 60), np.bool_)
    seen[log.users, log.items] = True
    slates = recommender.recommend(np.arange(80), 20, Candidates.of(60, out=seen)).item_ids
    own = (slates < 30) == (np.arange(80)[:, None] < 40)
    assert own.mean() > 0.95  # chance: .4, for 20 of the 50 unseen items are of the user's camp


def test_als_reaches_the_exact_alternating_solution():
    log = small_log()
    recommender = ALS(embedding_size=4, epochs=60, reg=2.0, alpha=3.0)
    recommender.fit(log, key=KEY)
    counts = np.zeros((40, 60))
    np.add.at(counts, (log.users, log.items), 1)
    confidence, preference = np.where(counts > 0, 1 + 3.0 * counts, 1.0), (counts > 0).astype(float)
    items = recommender._state()["item_factors"].T.astype(float)
    users = recommender._state()["user_factors"].astype(float)
    # At a fixed point every item vector solves its own weighted ridge regression on the user vectors.
    for item in range(60):
        weight = confidence[:, item]
        left = (users * weight[:, None]).T @ users + 2.0 * np.eye(4)
        exact = np.linalg.solve(left, users.T @ (weight * preference[:, item]))
        np.testing.assert_allclose(items[item], exact, atol=0.02)


def test_repetition_moves_als_and_not_bpr():
    log, users = small_log(), np.arange(37)
    for kind, moves in ((ALS, True), (BPR, False)):
        once, twice = kind(), kind()
        once.fit(log, key=KEY)
        twice.fit(log.concat(log), key=KEY)
        assert np.array_equal(once.scores(users), twice.scores(users)) != moves


@pytest.mark.parametrize("kind", [ALS, BPR, MF])
def test_start_is_the_seeds_and_not_the_rounds(kind):
    log, users = small_log(), np.arange(37)
    scores = []
    for key in (Key(1), Key(1, round=9), Key(2)):
        recommender = kind()
        recommender.fit(log, key=key)
        scores.append(recommender.scores(users))
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


@pytest.mark.parametrize("kind", [ALS, BPR])
def test_new_users_get_the_most_popular(kind):
    log, new = small_log(), np.array([38, 39])
    recommender, popularity = kind(), Popularity()
    recommender.fit(log)
    popularity.fit(log)
    np.testing.assert_array_equal(recommender.recommend(new, 9).item_ids, popularity.recommend(new, 9).item_ids)


def rated(users, items, ratings, n_users, n_items):
    return Interactions(
        users=np.asarray(users, np.int32),
        items=np.asarray(items, np.int32),
        ratings=np.asarray(ratings, np.float32),
        times=np.arange(len(users)),
        n_users=n_users,
        n_items=n_items,
    )


def test_mf_predicts_planted_ratings_better_than_means():
    rng = np.random.default_rng(3)
    taste, kind = rng.normal(size=(150, 2)), rng.normal(size=(80, 2))
    truth = 3 + 0.5 * rng.normal(size=(150, 1)) + 0.5 * rng.normal(size=80) + 0.6 * taste @ kind.T
    pairs = rng.permutation(150 * 80)
    users, items = pairs // 80, pairs % 80
    ratings = truth[users, items] + 0.2 * rng.normal(size=len(pairs))
    train, test = slice(0, 6000), slice(6000, None)
    recommender = MF(epochs=60)
    recommender.fit(rated(users[train], items[train], ratings[train], 150, 80), key=KEY)
    error = recommender.scores(np.arange(150))[users[test], items[test]] - ratings[test]
    residual = ratings - ratings.mean()
    assert np.sqrt(np.mean(error**2)) < 0.5 * residual.std()


def test_mf_ignores_what_was_not_rated():
    log, users = small_log(), np.arange(40)
    full, rated_only = MF(), MF()
    full.fit(log, key=KEY)
    rated_only.fit(log.take(~np.isnan(log.ratings)), key=KEY)
    np.testing.assert_array_equal(full.scores(users), rated_only.scores(users))


def test_mf_of_strangers_is_mean_plus_bias():
    # One item always rated 5, one always 1, one never: a new user gets them in the order 5, mean, 1.
    log = rated(np.repeat(np.arange(50), 2), [0, 1] * 50, [5, 1] * 50, 51, 3)
    recommender = MF(epochs=50)
    recommender.fit(log, key=KEY)
    scores = recommender.scores(np.array([50]))[0]
    assert scores[2] == 3.0
    assert scores[0] > 4
    assert scores[1] < 2


def test_mf_without_ratings_says_so():
    log = small_log()
    with pytest.raises(RecommenderError, match="mf: none of the 600 interactions has a rating"):
        MF().fit(replace(log, ratings=np.full(600, np.nan, np.float32)))


@pytest.mark.realdata
def test_mf_beats_item_means_on_movielens():
    root = Path(os.environ.get("SIMENV_DATA", Path(__file__).parents[3] / "shared" / "data"))
    path = root / "ml-100k" / "u.data"
    if not path.exists():
        pytest.skip(f"no {path}")
    data = np.loadtxt(path, dtype=np.int64)[np.random.default_rng(0).permutation(100_000)]
    users, items, ratings = data[:, 0] - 1, data[:, 1] - 1, data[:, 2].astype(float)
    train, test = slice(0, 90_000), slice(90_000, None)
    recommender = MF()
    recommender.fit(rated(users[train], items[train], ratings[train], 943, 1682), key=KEY)
    predicted = recommender.scores(np.arange(943))[users[test], items[test]]
    mean = ratings[train].mean()
    counts = np.bincount(items[train], minlength=1682)
    item_bias = np.bincount(items[train], ratings[train] - mean, 1682) / np.maximum(counts, 1)
    rmse = np.sqrt(np.mean((predicted - ratings[test]) ** 2))
    item_rmse = np.sqrt(np.mean((mean + item_bias[items[test]] - ratings[test]) ** 2))
    assert rmse < 0.915  # measured: .905
    assert rmse < item_rmse - 0.08  # measured: 1.015


def test_puresvd_is_the_truncated_decomposition():
    log = small_log()
    recommender = PureSVD(embedding_size=7)
    recommender.fit(log, key=KEY)
    consumed = user_items(log, binary=True).toarray().astype(float)
    left, singular, right = np.linalg.svd(consumed, full_matrices=False)
    expected = (left[:, :7] * singular[:7]) @ right[:7]
    np.testing.assert_allclose(recommender.scores(np.arange(37)), expected[:37], atol=2e-6)  # the others are new users
