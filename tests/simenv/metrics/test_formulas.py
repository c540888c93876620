"""Each measure against numbers worked out by hand, against libraries that define the same, and as properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jaccard as scipy_jaccard
from scipy.stats import entropy as scipy_entropy
from scipy.stats import spearmanr

from simenv.metrics.formulas import (
    calibration_kl,
    coverage,
    ctr,
    entropy,
    genre_kl,
    gini,
    ild,
    mean,
    pair_jaccards,
    ranking_accuracy,
    regret,
    spearman,
)
from simenv.metrics.reference import genre_weights, item_sets, pack_genres

counts = arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 50))
some_counts = counts.filter(lambda c: c.sum() > 0)
seeds = st.integers(0, 2**32 - 1)
any_time = settings(deadline=None)  # a first call may compile a kernel


def test_mean_leaves_out_what_is_missing():
    assert mean(np.array([1.0, np.nan, 3.0])) == 2.0
    assert mean(np.array([1.0, 3.0])) == 2.0
    assert math.isnan(mean(np.array([np.nan])))
    assert math.isnan(mean(np.zeros(0)))


def test_mean_of_many_float32_does_not_lose_digits():
    assert mean(np.full(1_000_001, 0.1, np.float32)) == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_ctr():
    assert ctr(np.array([True, False, False, True, False])) == 0.4
    assert math.isnan(ctr(np.zeros(0, np.bool_)))


# --- regret ---------------------------------------------------------------------------------------------------------


def test_regret_averages_pages_within_a_user_first():
    # User 0: page A (.8 - .6) / .8 = .25, page B (.8 - .4) / .8 = .5 -> .375. User 1: (.5 - .5) / .5 = 0. Mean .1875.
    users = np.array([0, 0, 0, 0, 1])
    slates = np.array([0, 0, 1, 1, 2])
    utility = np.array([0.8, 0.4, 0.5, 0.3, 0.5])
    best = np.array([0.8, 0.8, 0.8, 0.8, 0.5])
    assert regret(users, slates, np.arange(5), utility, best) == pytest.approx(0.1875)


def test_regret_gives_a_second_copy_no_worth():
    # Twice the best item: the first copy brings .8, the second nothing, so the slate is worth .4: (.6 - .4) / .6.
    two = np.array([0, 0])
    assert regret(two, two, np.array([3, 3]), np.array([0.8, 0.8]), np.array([0.6, 0.6])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("best", [np.nan, 0.0, -1.0, np.inf])
def test_regret_leaves_out_slates_without_a_positive_best(best):
    users, slates = np.array([0, 1]), np.array([0, 1])
    assert regret(users, slates, users, np.array([0.1, 0.3]), np.array([best, 0.4])) == pytest.approx(0.25)
    assert math.isnan(regret(users[:1], slates[:1], users[:1], np.array([0.1]), np.array([best])))


@any_time
@given(seeds)
def test_regret_of_full_slates_is_between_zero_and_one(seed):
    rng = np.random.default_rng(seed)
    k, truth = 3, rng.uniform(0.01, 1, (4, 6))
    shown = np.argsort(rng.random((4, 6)), axis=1)[:, :k]
    best = np.sort(truth, axis=1)[:, -k:].mean(axis=1)
    users = np.repeat(np.arange(4), k)
    value = regret(users, users, shown.ravel(), np.take_along_axis(truth, shown, 1).ravel(), best[users])
    assert -1e-12 <= value <= 1
    oracle = np.argsort(-truth, axis=1)[:, :k]
    ideal = regret(users, users, oracle.ravel(), np.take_along_axis(truth, oracle, 1).ravel(), best[users])
    assert ideal == pytest.approx(0, abs=1e-12)


# --- exposure -------------------------------------------------------------------------------------------------------


def test_coverage():
    assert coverage(np.array([3, 0, 1, 0])) == 0.5
    assert math.isnan(coverage(np.zeros(4, np.int64)))


def test_gini_by_hand():
    # Sorted (1, 1, 1, 2), weights (-3, -1, 1, 3): 3 / (4 * 5).
    assert gini(np.array([1, 1, 2, 1])) == pytest.approx(0.15)
    assert math.isnan(gini(np.zeros(3, np.int64)))


@pytest.mark.parametrize("n", [1, 2, 10, 999])
def test_gini_endpoints(n):
    assert gini(np.full(n, 4)) == pytest.approx(0, abs=1e-12)
    one = np.zeros(n, np.int64)
    one[n // 2] = 7
    assert gini(one) == pytest.approx((n - 1) / n)


@any_time
@given(some_counts, seeds)
def test_gini_is_the_mean_absolute_difference_and_ignores_order_and_scale(x, seed):
    value = gini(x)
    assert value == pytest.approx(np.abs(x[:, None] - x[None, :]).mean() / (2 * x.mean()))
    assert -1e-12 <= value < 1
    assert gini(np.random.default_rng(seed).permutation(x)) == pytest.approx(value)
    assert gini(3 * x) == pytest.approx(value)


@any_time
@given(some_counts)
def test_entropy_agrees_with_scipy(x):
    assert entropy(x) == pytest.approx(float(scipy_entropy(x)), abs=1e-12)
    assert 0 <= entropy(x) <= math.log(len(x)) + 1e-12


def test_entropy_endpoints():
    assert entropy(np.full(8, 5)) == pytest.approx(math.log(8))
    assert entropy(np.array([0, 9, 0])) == 0
    assert math.isnan(entropy(np.zeros(3, np.int64)))


def test_spearman_by_hand():
    # Ranks (2, 2, 2, 4) and (4, 3, 2, 1): covariance -3, norms 3 and 5.
    assert spearman(np.array([1, 1, 1, 2]), np.array([0.9, 0.5, 0.3, 0.1])) == pytest.approx(-3 / math.sqrt(15))


def test_spearman_of_a_constant_is_undefined():
    assert math.isnan(spearman(np.full(5, 2), np.arange(5)))
    assert math.isnan(spearman(np.arange(5), np.full(5, 2)))


@any_time
@given(arrays(np.int64, (2, 12), elements=st.integers(0, 5)).filter(lambda a: (np.ptp(a, axis=1) > 0).all()))
def test_spearman_agrees_with_scipy(xy):
    value = spearman(*xy)
    assert value == pytest.approx(spearmanr(*xy).statistic, abs=1e-12)
    assert -1 <= value <= 1


# --- variety --------------------------------------------------------------------------------------------------------

GENRES = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], np.bool_)


def test_ild_by_hand():
    # Slate (0, 1, 2): d(A, AB) = 1/2, d(A, B) = 1, d(AB, B) = 1/2, mean 2/3. Slate (0, 0): 0. Mean 1/3.
    slates, items = np.array([5, 5, 5, 9, 9]), np.array([0, 1, 2, 0, 0])
    assert ild(slates, items, pack_genres(GENRES)) == pytest.approx(1 / 3)


def test_ild_ignores_items_without_genres_and_slates_of_one():
    bits = pack_genres(GENRES)
    assert math.isnan(ild(np.array([0, 0, 1]), np.array([0, 3, 2]), bits))
    assert ild(np.array([0, 0, 0, 1]), np.array([0, 3, 1, 2]), bits) == pytest.approx(0.5)
    assert math.isnan(ild(np.zeros(0, np.int64), np.zeros(0, np.int32), bits))


@any_time
@given(seeds, st.integers(1, 150))
def test_ild_agrees_with_scipy_for_any_number_of_genres(seed, n_genres):
    rng = np.random.default_rng(seed)
    genres = rng.random((6, n_genres)) < 0.3
    genres[:, rng.integers(n_genres)] = True
    pairs = [(i, j) for i in range(6) for j in range(i)]
    expected = np.mean([scipy_jaccard(genres[i], genres[j]) for i, j in pairs])
    assert ild(np.zeros(6, np.int64), rng.permutation(6), pack_genres(genres)) == pytest.approx(expected, abs=1e-12)


def test_calibration_by_hand():
    # p = (3/4, 1/4), q = (1, 0), a = .01: mixed (.9975, .0025).
    expected = 0.75 * math.log(0.75 / 0.9975) + 0.25 * math.log(0.25 / 0.0025)
    assert calibration_kl(np.array([0.75, 0.25]), np.array([1.0, 0.0])) == pytest.approx(expected)


@any_time
@given(seeds)
def test_calibration_agrees_with_scipy_and_is_bounded(seed):
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.full(5, 0.3), size=2)
    value = float(calibration_kl(p, q))
    assert value == pytest.approx(scipy_entropy(p, 0.99 * q + 0.01 * p), abs=1e-9)
    assert -1e-12 <= value <= math.log(100) + 1e-12
    assert calibration_kl(p, p) == pytest.approx(0, abs=1e-12)


def test_calibration_is_largest_when_nothing_overlaps():
    assert calibration_kl(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(math.log(100))


@any_time
@given(seeds)
def test_genre_kl_is_the_mean_over_users_of_calibration(seed):
    rng = np.random.default_rng(seed)
    genres = rng.random((8, 4)) < 0.4
    weights = genre_weights(genres)
    profile = rng.dirichlet(np.ones(4), size=5).astype(np.float32)
    profile[2] = np.nan
    users, items = rng.integers(0, 5, 20), rng.integers(0, 8, 20)
    values = []
    for user in (0, 1, 3, 4):
        taken = weights[items[users == user]].sum(axis=0)
        if taken.sum() > 0:
            values.append(float(calibration_kl(profile[user], taken / taken.sum())))
    expected = np.mean(values) if values else math.nan
    assert genre_kl(users, items, profile, weights) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_pair_jaccard_by_hand():
    # Sets {0, 1}, {1, 2, 3}, {}, {}: 1 / 4, 0 / 2, both empty.
    users, items = np.array([0, 0, 1, 1, 1, 0]), np.array([0, 1, 1, 2, 3, 1])
    pairs = np.array([[0, 1], [0, 2], [2, 3]])
    np.testing.assert_allclose(pair_jaccards(users, items, pairs, 4), [0.25, 0.0, np.nan])


@any_time
@given(seeds)
def test_pair_jaccard_agrees_with_scipy(seed):
    rng = np.random.default_rng(seed)
    taken = rng.random((5, 12)) < 0.3
    users, items = np.nonzero(taken)
    order = rng.permutation(len(users))
    pairs = np.array([(i, j) for j in range(5) for i in range(j)])
    overlap = pair_jaccards(users[order], items[order], pairs, 5)
    for (i, j), value in zip(pairs, overlap):
        if taken[i].any() or taken[j].any():
            assert value == pytest.approx(1 - scipy_jaccard(taken[i], taken[j]))
        else:
            assert math.isnan(value)


# --- accuracy -------------------------------------------------------------------------------------------------------


def test_accuracy_by_hand():
    # User 0 holds {3}, list (0, 3): hit at rank 1, 1 / log2(3). User 1 holds {1, 3}, list (1, 3): 1. User 2: none.
    held = item_sets(np.array([0, 1, 1]), np.array([3, 1, 3]), 3)
    users, positions, items = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 0]), np.array([0, 3, 1, 3, 2])
    ndcg, recall = ranking_accuracy(users, positions, items, held, 10)
    assert ndcg == pytest.approx((1 / math.log2(3) + 1) / 2)
    assert recall == 1
    ndcg, recall = ranking_accuracy(users, positions, items, held, 1)
    assert (ndcg, recall) == (0.5, 0.25)  # user 0 misses; user 1 has 1 of 1 ideal hit, 1 of 2 held


def test_a_second_copy_gains_nothing():
    held = item_sets(np.array([0]), np.array([1]), 1)
    ndcg, recall = ranking_accuracy(np.zeros(2, np.int32), np.arange(2), np.array([1, 1]), held, 10)
    assert (ndcg, recall) == (1, 1)


def test_accuracy_without_held_out_users_is_undefined():
    held = item_sets(np.array([1]), np.array([1]), 2)
    assert all(map(math.isnan, ranking_accuracy(np.zeros(2, np.int32), np.arange(2), np.array([1, 2]), held, 10)))


@any_time
@given(seeds)
def test_accuracy_agrees_with_ir_measures_and_recall_grows_with_k(seed):
    ir_measures = pytest.importorskip("ir_measures", reason="the reference for NDCG and recall")
    rng = np.random.default_rng(seed)
    n_users, n_items, length = 4, 25, 15
    lists = np.argsort(rng.random((n_users, n_items)), axis=1)[:, :length]
    held_users, held_items = np.nonzero(rng.random((n_users, n_items)) < 0.2)
    if not len(held_users):
        return
    rows = rng.permutation(n_users * length)
    users, positions = np.repeat(np.arange(n_users), length)[rows], np.tile(np.arange(length), n_users)[rows]
    held = item_sets(held_users, held_items, n_users)
    recalls = []
    for k in (1, 5, 10):
        ndcg, recall = ranking_accuracy(users, positions, lists.ravel()[rows], held, k)
        qrels: dict[str, dict[str, int]] = {}
        for user, item in zip(held_users, held_items):
            qrels.setdefault(str(user), {})[str(item)] = 1
        run = {str(u): {str(i): float(-rank) for rank, i in enumerate(lists[u])} for u in range(n_users)}
        cut_ndcg, cut_recall = ir_measures.parse_measure(f"nDCG@{k}"), ir_measures.parse_measure(f"R@{k}")
        theirs = ir_measures.calc_aggregate([cut_ndcg, cut_recall], qrels, run)
        assert ndcg == pytest.approx(theirs[cut_ndcg])
        assert recall == pytest.approx(theirs[cut_recall])
        recalls.append(recall)
    assert recalls == sorted(recalls)
