"""Comparisons between profile and recommendation, groups, arms and seeds, by hand and against scipy."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon

from simenv.metrics.comparisons import (
    bin_shares,
    delta_gap,
    gap,
    js_divergence,
    lift_slope,
    list_jaccard,
    lorenz,
    one_step_identity,
    popularity_deviation,
    popularity_lift,
    prag,
    snsr,
    snsv,
    user_means,
)
from simenv.metrics.formulas import gini

seeds = st.integers(0, 2**32 - 1)
POPULARITY = np.array([0.5, 0.3, 0.2])


def test_gap_is_a_mean_over_users_not_over_rows():
    users, items = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 2])
    # User 0: (.5 + .5 + .3) / 3 = 1.3 / 3; user 1: .2; user 2 has nothing and does not count.
    everyone = np.ones(3, np.bool_)
    assert gap(POPULARITY, users, items, everyone) == pytest.approx((1.3 / 3 + 0.2) / 2)
    assert gap(POPULARITY, users, items, np.array([False, True, True])) == pytest.approx(0.2)
    assert math.isnan(gap(POPULARITY, users, items, np.array([False, False, True])))


def test_delta_gap():
    assert delta_gap(0.2, 0.5) == pytest.approx(1.5)
    assert delta_gap(0.2, 0.2) == 0
    assert math.isnan(delta_gap(0.0, 0.5))


def test_popularity_lift_per_user():
    profile, shown = np.array([0.2, 0.4, 0.0, np.nan]), np.array([0.5, 0.1, 0.3, 0.3])
    np.testing.assert_allclose(popularity_lift(profile, shown), [1.5, -0.75, np.nan, np.nan])


def test_lift_slope_recovers_a_line_and_leaves_out_the_unknown():
    history = np.array([1, 10, 100, 0, 50])
    lift = 2.0 - 0.3 * np.log(np.maximum(history, 1))
    lift[4] = np.nan
    assert lift_slope(lift, history) == pytest.approx(-0.3)
    assert math.isnan(lift_slope(lift, np.full(5, 7)))
    assert math.isnan(lift_slope(lift, np.zeros(5, np.int64)))


def test_one_step_identity_by_hand():
    # |D| = 2 with mean .4, two accepted with mean .25: after (.5 + .3 + .3 + .2) / 4 = .325, change -.075; the other
    # side is 2 * (.25 - .4) / 4.
    change, predicted = one_step_identity(POPULARITY, np.array([0, 1]), np.array([1, 2]))
    assert change == pytest.approx(-0.075)
    assert predicted == pytest.approx(-0.075)


@given(seeds)
def test_one_step_identity_is_exact(seed):
    rng = np.random.default_rng(seed)
    before, accepted = rng.integers(0, 20, rng.integers(1, 200)), rng.integers(0, 20, rng.integers(0, 50))
    change, predicted = one_step_identity(rng.random(20), before, accepted)
    assert change == pytest.approx(predicted, abs=1e-14)


def test_lorenz_by_hand():
    items, shares = lorenz(np.array([2, 0, 1, 1]))
    np.testing.assert_allclose(items, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(shares, [0, 0, 0.25, 0.5, 1])
    assert np.isnan(lorenz(np.zeros(3, np.int64))[1]).all()


@given(arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 40)).filter(lambda c: c.sum() > 0))
def test_gini_is_one_minus_twice_the_area_under_lorenz(counts):
    items, shares = lorenz(counts)
    assert gini(counts) == pytest.approx(1 - 2 * np.trapezoid(shares, items), abs=1e-12)
    assert (np.diff(shares) >= 0).all()
    assert (shares <= items + 1e-12).all()


def test_bin_shares():
    bins = np.array([0, 1, 2], np.int8)
    shares = bin_shares(bins, np.array([0, 0, 0, 0, 2]), np.array([0, 0, 1, 2, 2]), 3)
    np.testing.assert_allclose(shares, [[0.5, 0.25, 0.25], [np.nan] * 3, [0, 0, 1]])


@given(seeds)
def test_js_divergence_agrees_with_scipy(seed):
    p, q = np.random.default_rng(seed).dirichlet(np.full(3, 0.4), size=(2, 6))
    p[0] = [0, 0, 1]
    values = js_divergence(p, q)
    np.testing.assert_allclose(values, jensenshannon(p, q, axis=1) ** 2, atol=1e-12)
    np.testing.assert_allclose(values, js_divergence(q, p))
    assert (values <= math.log(2) + 1e-12).all()


def test_js_divergence_endpoints():
    assert js_divergence([1.0, 0.0], [0.0, 1.0]) == pytest.approx(math.log(2))
    assert js_divergence([0.3, 0.7], [0.3, 0.7]) == 0
    assert np.isnan(js_divergence([np.nan, np.nan], [0.5, 0.5]))


def test_popularity_deviation_weighs_groups_not_users():
    profile = np.array([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [np.nan] * 3])
    shown = np.array([[1.0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]])
    groups = [np.array([True, True, False, True]), np.array([False, False, True, False])]
    assert popularity_deviation(profile, shown, groups) == pytest.approx(math.log(2) / 2)


def test_fairllm_spread():
    assert snsr([0.2, 0.6, 0.4]) == pytest.approx(0.4)
    assert snsv([0.2, 0.6, 0.4]) == pytest.approx(math.sqrt(0.08 / 3))
    assert snsr([0.3]) == snsv([0.3]) == 0


def test_list_jaccard():
    assert list_jaccard([1, 2, 3], [3, 4]) == 0.25
    assert math.isnan(list_jaccard([], []))


def test_prag_by_hand():
    # Sensitive (1, 2, 3) against neutral (2, 1, 9): pair (1, 2) is reversed; (1, 3) and (2, 3) hold, as 3 is missing.
    assert prag([1, 2, 3], [2, 1, 9]) == pytest.approx(2 / 3)
    assert prag([1, 2, 3], [1, 2, 3]) == 1
    assert prag([1, 2, 3], [3, 2, 1]) == 0
    assert prag([1, 2, 3], [7, 8, 9]) == 0
    assert (prag([1], [1]), prag([1], [2])) == (1, 0)
    assert math.isnan(prag([], [1]))


@given(seeds)
def test_similarities_lie_between_zero_and_one(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.permutation(8)[: rng.integers(2, 8)].tolist() for _ in range(2))
    assert 0 <= prag(a, b) <= 1
    assert prag(a, a) == 1
    assert list_jaccard(a, b) == list_jaccard(b, a)


def test_user_means_of_absent_users_are_unknown():
    np.testing.assert_allclose(user_means(np.array([1.0, 3.0]), np.array([2, 2]), 4), [np.nan, np.nan, 2, np.nan])


def test_the_notebook_example_finds_who_is_pushed_to_the_popular():
    example = runpy.run_path(str(Path(__file__).resolve().parents[3] / "examples" / "notebook_bias.py"))
    found = example["main"](n_users=60, n_items=80, rounds=2)
    lift = {arm: figures["lift (mean over users)"] for arm, figures in found.items()}
    assert set(lift) == {"popularity", "itemknn", "random"}
    assert lift["popularity"] > lift["random"]
    assert found["popularity"]["deviation of bins (UPD)"] > 0
