"""Statistics against brute force, hand-worked cases, other libraries and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from simenv.conclusions.statistics import (
    max_t_p,
    minimum_detectable_effect,
    paired_t,
    rank_stability,
    sign_flip_p,
    smallest_p,
    tost_p,
    variance_split,
)
from simenv.errors import ConfigError, DataError


def brute_force_p(x: np.ndarray) -> float:
    """Two-sided sign-flip p by |t|, one flip at a time."""

    def t(values: np.ndarray) -> float:
        return abs(values.mean()) / values.std(ddof=1)

    flips = itertools.product([1, -1], repeat=len(x))
    return sum(t(x * np.array(signs)) >= t(x) * (1 - 1e-9) for signs in flips) / 2 ** len(x)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_sign_flip_is_the_brute_force_p(n: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.normal(0.5, 1.0, (n, 6))
    np.testing.assert_allclose(sign_flip_p(x), [brute_force_p(column) for column in x.T])


def test_sign_flip_agrees_with_scipys_permutation_test() -> None:
    x = np.random.default_rng(0).normal(0.4, 1.0, 9)
    theirs = stats.permutation_test(
        (x,), lambda v, axis: np.abs(v.mean(axis=axis)), permutation_type="samples", n_resamples=np.inf,
        vectorized=True, alternative="greater",
    )  # fmt: skip
    assert sign_flip_p(x)[0] == pytest.approx(theirs.pvalue)


def test_sign_flip_edges() -> None:
    assert sign_flip_p([1.0, 2.0, 3.0, 4.0])[0] == smallest_p(4) == 2 / 16
    assert sign_flip_p([1e-200, 2e-200, 3e-200])[0] == 2 / 8
    assert sign_flip_p([0.0, 0.0, 0.0])[0] == 1.0
    assert sign_flip_p([5.0])[0] == 1.0
    assert sign_flip_p([1.0, 2.0, 3.0, np.nan])[0] == 2 / 8
    assert np.isnan(sign_flip_p(np.full((4, 1), np.nan))[0])
    with pytest.raises(DataError, match="infinite"):
        sign_flip_p([1.0, np.inf])


def test_monte_carlo_flips_approach_the_exact_p() -> None:
    x = np.random.default_rng(5).normal(0.45, 1.0, 16)
    z = np.abs((np.array(list(itertools.product([1, -1], repeat=15))) @ x[1:]) + x[0])
    exact = (z >= abs(x.sum()) - 1e-12).mean()
    ours = sign_flip_p(x, flips=40_000, seed=3)[0]
    assert 0.01 < exact < 0.2
    assert abs(ours - exact) < 4 * math.sqrt(exact * (1 - exact) / 40_000)
    assert sign_flip_p(x, seed=3) == sign_flip_p(x, seed=3)
    assert sign_flip_p(np.arange(1.0, 17.0), flips=999)[0] == 1 / 1000


def test_max_t_by_hand() -> None:
    """Two claims, three seeds, eight flips worked through.

    |sum x| / sqrt(sum x^2): a = (1, 1, 1) gives 3 / sqrt 3; b = (2, 1, -1) gives 2 / sqrt 6. Up to a global sign the
    four flips give a: 3, 1, 1, 1 (/ sqrt 3) and b, flipping none, 1st, 2nd, 3rd: 2, 2, 0, 4 (/ sqrt 6).
    a first: max(a, b) = 1.73, 0.82, 0.58, 1.63 reaches 1.73 once: 1/4. Then b alone reaches 0.82 in 3 of 4 flips.
    """
    differences = np.array([[1.0, 2.0], [1.0, 1.0], [1.0, -1.0]])
    np.testing.assert_allclose(max_t_p(differences), [0.25, 0.75])


def brute_force_max_t(x: np.ndarray) -> np.ndarray:
    """Step-down max-T by loops over claims and flips."""
    z = x / np.sqrt((x**2).sum(axis=0))
    observed = np.abs(z.sum(axis=0))
    adjusted, left, so_far = np.zeros(x.shape[1]), list(np.argsort(-observed)), 0.0
    while left:
        count = sum(
            max(abs(float(np.dot(signs, z[:, c]))) for c in left) >= observed[left[0]] - 1e-9
            for signs in itertools.product([1, -1], repeat=len(x))
        )
        so_far = max(so_far, count / 2 ** len(x))
        adjusted[left.pop(0)] = so_far
    return adjusted


def test_max_t_is_the_brute_force_step_down() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(0.0, 1.0, (7, 5)) + rng.normal(0.0, 1.0, (7, 1)) + np.array([2.0, 0.0, 0.5, 0.0, -1.0])
    np.testing.assert_allclose(max_t_p(x), brute_force_max_t(x))


def test_max_t_properties() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(0.0, 1.0, (8, 60)) + np.where(np.arange(60) < 1, 30.0, 0.0)
    raw, adjusted = sign_flip_p(x), max_t_p(x)
    assert adjusted[0] == smallest_p(8)  # sixty claims do not raise the smallest p
    assert (adjusted >= raw - 1e-12).all()
    np.testing.assert_array_equal(max_t_p(x[:, :1]), raw[:1])
    np.testing.assert_array_equal(max_t_p(np.repeat(x[:, 5:6], 4, axis=1)), np.repeat(raw[5], 4))
    np.testing.assert_allclose(max_t_p(x * rng.uniform(0.1, 9.0, 60)), adjusted)  # units do not matter
    shuffled = rng.permutation(60)
    np.testing.assert_allclose(max_t_p(x[:, shuffled]), adjusted[shuffled])


def test_max_t_leaves_empty_claims_out_of_the_family() -> None:
    x = np.random.default_rng(4).normal(0.3, 1.0, (8, 3))
    with_empty = max_t_p(np.column_stack([x, np.full(8, np.nan)]))
    assert np.isnan(with_empty[3])
    np.testing.assert_array_equal(with_empty[:3], max_t_p(x))
    assert np.isnan(max_t_p(np.full((4, 2), np.nan))).all()


def test_max_t_controls_the_family_and_keeps_power() -> None:
    """1,000 families of 20 correlated null claims and one real one, 8 seeds."""
    rng = np.random.default_rng(6)
    wrong = found = 0
    for _ in range(1000):
        x = rng.standard_t(4, (8, 20)) + 0.7 * rng.normal(size=(8, 1))
        x[:, 0] += 6.0
        adjusted = max_t_p(x)
        wrong += bool((adjusted[1:] <= 0.05).any())
        found += bool(adjusted[0] <= 0.05)
    assert wrong <= stats.binom.ppf(0.999, 1000, 0.05)
    assert found > 800


def test_paired_t_is_scipys() -> None:
    x = np.random.default_rng(7).normal(0.2, 1.0, 8)
    ours, theirs = paired_t(x, 0.9), stats.ttest_1samp(x, 0.0).confidence_interval(0.9)
    assert (ours.estimate, ours.low, ours.high, ours.n) == pytest.approx((x.mean(), theirs.low, theirs.high, 8))
    one = paired_t([0.3])
    assert one.estimate == 0.3
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    same = paired_t([0.1] * 5)
    assert same.low == same.high == pytest.approx(0.1)


@pytest.mark.parametrize("bad", [[], [1.0, np.nan], [[1.0, 2.0]], [1.0, np.inf]])
def test_one_sample_functions_refuse_what_is_not_a_sample(bad: list) -> None:
    for function in (paired_t, lambda x: tost_p(x, 1.0), lambda x: variance_split(x, x, x)):
        with pytest.raises(DataError, match="expected"):
            function(bad)


def test_tost_is_statsmodels() -> None:
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    rng = np.random.default_rng(8)
    for mean in (-0.5, 0.0, 0.3, 2.0):
        x = rng.normal(mean, 0.6, 8)
        theirs = weightstats.DescrStatsW(x).ttost_mean(-0.5, 0.5)[0]
        assert tost_p(x, 0.5) == pytest.approx(theirs, rel=1e-9)


def test_tost_is_two_one_sided_t_tests() -> None:
    x = np.random.default_rng(9).normal(0.1, 0.5, 10)
    above = stats.ttest_1samp(x, -0.4, alternative="greater").pvalue
    below = stats.ttest_1samp(x, 0.4, alternative="less").pvalue
    assert tost_p(x, 0.4) == pytest.approx(max(above, below))
    assert math.isnan(tost_p([0.1], 0.4))
    assert (tost_p([0.1] * 4, 0.4), tost_p([0.4] * 4, 0.4)) == (0.0, 1.0)
    with pytest.raises(ConfigError, match="margin"):
        tost_p(x, 0.0)


@pytest.mark.parametrize("n", [3, 8, 20])
def test_a_t_test_finds_the_minimum_detectable_effect_in_four_of_five_worlds(n: int) -> None:
    effect = minimum_detectable_effect(2.0, n)
    x = np.random.default_rng(n).normal(effect, 2.0, (n, 20_000))
    found = (stats.ttest_1samp(x, 0.0).pvalue <= 0.05).mean()
    assert found == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 20_000))


def test_minimum_detectable_effect_is_statsmodels_and_scales() -> None:
    power = pytest.importorskip("statsmodels.stats.power")
    for n in (2, 6, 8, 30):
        theirs = power.TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8)
        assert minimum_detectable_effect(1.0, n) == pytest.approx(theirs, rel=1e-4)
    assert minimum_detectable_effect(3.0, 8) == pytest.approx(3 * minimum_detectable_effect(1.0, 8))
    assert minimum_detectable_effect(0.0, 8) == 0.0
    assert math.isnan(minimum_detectable_effect(1.0, 1))
    with pytest.raises(ConfigError, match="power"):
        minimum_detectable_effect(1.0, 8, power=0.01)


def nested(
    rng: np.random.Generator, sds: tuple[float, float, float], shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b, c = shape
    values = (
        rng.normal(0, sds[0], (a, 1, 1)) + rng.normal(0, sds[1], (a, b, 1)) + rng.normal(0, sds[2], (a, b, c)) + 7.0
    )
    world, model, _ = np.indices(shape)
    return values.ravel(), world.ravel(), model.ravel()


def test_variance_split_recovers_the_components() -> None:
    split = variance_split(*nested(np.random.default_rng(10), (3.0, 2.0, 1.0), (400, 5, 5)))
    assert (split.world, split.model, split.luck) == pytest.approx((9.0, 4.0, 1.0), rel=0.15)
    assert sum(split.shares.values()) == pytest.approx(1.0)


def test_variance_split_is_reml_on_a_balanced_design() -> None:
    mixed = pytest.importorskip("statsmodels.regression.mixed_linear_model")
    pandas = pytest.importorskip("pandas")
    values, world, model = nested(np.random.default_rng(11), (3.0, 2.0, 1.0), (8, 4, 3))
    frame = pandas.DataFrame({"y": values, "world": world, "model": model})
    fit = mixed.MixedLM.from_formula(
        "y ~ 1", frame, groups="world", vc_formula={"model": "0 + C(model)"}, re_formula="1"
    )
    fit = fit.fit(reml=True)
    split = variance_split(values, world, model)
    theirs = (float(fit.cov_re.iloc[0, 0]), float(fit.vcomp[0]), float(fit.scale))
    assert (split.world, split.model, split.luck) == pytest.approx(theirs, rel=1e-3)


def test_variance_split_is_unbiased_on_an_unbalanced_design() -> None:
    """World 0 has three models of 4, 1, 2 draws; the estimates average to the truth over many repetitions."""
    rng = np.random.default_rng(12)
    cells = [(0, 0, 4), (0, 1, 1), (0, 2, 2), (1, 0, 2), (1, 1, 5), (2, 0, 3), (3, 0, 1), (3, 1, 1)]
    world = np.concatenate([[w] * n for w, _, n in cells])
    model = np.concatenate([[m] * n for _, m, n in cells])
    cell = np.concatenate([[i] * n for i, (_, _, n) in enumerate(cells)])
    splits = []
    for _ in range(1500):
        y = 50 * rng.normal(size=4)[world] + 5 * rng.normal(size=8)[cell] + rng.normal(size=len(world))
        splits.append(variance_split(y, world, model))
    # Truncation at 0 hardly ever acts at these sizes, so that the means are those of the unbiased estimates.
    for name, truth in (("world", 2500.0), ("model", 25.0), ("luck", 1.0)):
        values = np.array([getattr(split, name) for split in splits])
        assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(len(values)), name


def test_variance_split_says_what_the_design_cannot_tell() -> None:
    values, world, model = nested(np.random.default_rng(13), (1.0, 1.0, 1.0), (4, 3, 1))
    no_replicates = variance_split(values, world, model)
    assert math.isnan(no_replicates.luck)
    assert math.isnan(no_replicates.model)
    assert math.isnan(no_replicates.shares["world"])
    one_world = variance_split(*nested(np.random.default_rng(14), (1.0, 1.0, 1.0), (1, 3, 4)))
    assert math.isnan(one_world.world)
    assert one_world.luck > 0
    relabelled = variance_split(*nested(np.random.default_rng(15), (1.0, 1.0, 1.0), (4, 3, 2)))
    values, world, model = nested(np.random.default_rng(15), (1.0, 1.0, 1.0), (4, 3, 2))
    assert variance_split(values, world * 10 + 100, world * 3 + model) == relabelled
    with pytest.raises(DataError, match="equal lengths"):
        variance_split(values, world[:-1], model)


def test_rank_stability_is_the_mean_of_scipys_tau() -> None:
    values = np.random.default_rng(17).integers(0, 5, (6, 5)).astype(float) + np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    taus = [stats.kendalltau(values[i], values[j]).statistic for i in range(6) for j in range(i)]
    result = rank_stability(values)
    assert result.tau.estimate == pytest.approx(np.mean(taus))
    assert result.tau.low < result.tau.estimate < result.tau.high
    np.testing.assert_array_equal(result.ranks[0], stats.rankdata(-values[0]))


def test_rank_stability_extremes() -> None:
    agree = rank_stability(np.tile([3.0, 1.0, 2.0], (8, 1)))
    assert (agree.tau.estimate, agree.tau.low, agree.tau.high, agree.p) == (1.0, 1.0, 1.0, 2 / 2**8)
    opposed = rank_stability([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    assert opposed.tau.estimate == -1.0
    assert opposed.p == 1.0
    assert math.isnan(rank_stability([[1.0, 2.0]]).p)
    assert rank_stability([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]]).tau.estimate == 0.0
    with pytest.raises(DataError, match="expected finite"):
        rank_stability([[1.0, np.nan], [1.0, 2.0]])


def test_rank_stability_holds_its_level() -> None:
    rng = np.random.default_rng(18)
    wrong = sum(rank_stability(rng.normal(size=(8, 6))).p <= 0.05 for _ in range(1000))
    assert stats.binom.ppf(0.001, 1000, 12 / 256) <= wrong <= stats.binom.ppf(0.999, 1000, 0.05)
