"""From a model's scores to behaviour: click curve, quantile maps, files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.llm.calibration import Calibration, OwnRatings
from simenv.datasets import synthetic
from simenv.errors import ConfigError

CAUTIOUS = Calibration(rating_shares=(0.0, 0.0, 0.08, 0.75, 0.17))


def test_the_click_curve_goes_through_its_knots():
    curve = Calibration(interest=(0, 50, 100), click=(0.0, 0.1, 0.5))
    np.testing.assert_allclose(curve.click_probability(np.array([0, 25, 50, 75, 100])), [0, 0.05, 0.1, 0.3, 0.5])


def test_a_fit_recovers_the_curve_and_the_shares():
    rng = np.random.default_rng(0)
    interest = rng.uniform(0, 100, 40_000)
    truth = 0.3 * (interest / 100) ** 2
    stars = rng.choice(5, 10_000, p=CAUTIOUS.rating_shares) + 1.0
    fitted = Calibration.fit(interest, rng.random(40_000) < truth, stars, source="made up")
    knots = np.array(fitted.interest)
    np.testing.assert_allclose(fitted.click, 0.3 * (knots / 100) ** 2, atol=0.05)
    np.testing.assert_allclose(fitted.rating_shares, CAUTIOUS.rating_shares, atol=0.02)
    assert fitted.source == "made up"


def test_weights_undo_oversampled_positives():
    interest, chosen = np.repeat([20.0, 80.0], 100), np.tile([True, False], 100)
    fitted = Calibration.fit(interest, chosen, np.ones(1), weights=np.where(chosen, 1.0, 9.0), source="x")
    np.testing.assert_allclose(fitted.click_probability(np.array([50.0])), 0.1)


def test_quantiles_are_uniform_whatever_the_model_prefers():
    rng = np.random.default_rng(1)
    stars = rng.choice(5, 20_000, p=CAUTIOUS.rating_shares) + 1.0
    quantiles = CAUTIOUS.rating_quantile(stars, rng.random(20_000), rng.random(20_000))
    assert np.abs(np.histogram(quantiles, 10, (0, 1))[0] / 20_000 - 0.1).max() < 0.01
    assert CAUTIOUS.rating_quantile(np.array([5.0]), np.array([0.0]), np.array([0.5])) > 0.8


def test_a_fraction_goes_up_that_often():
    v = (np.arange(1000) + 0.5) / 1000
    quantiles = Calibration().rating_quantile(np.full(1000, 3.25), np.full(1000, 0.5), v)
    assert len(np.unique(quantiles)) == 2
    assert (quantiles == quantiles.max()).mean() == pytest.approx(0.25, abs=1e-3)


def test_own_quantiles_bring_back_what_the_model_never_says():
    """A model that gives 3 to 5 stars, mapped to users who give all five, gives all five as often as they do."""
    world = synthetic(n_users=60, n_items=300, seed=0, mean_activity=60)
    log = world.interactions
    mean = np.array([log.ratings[log.users == user].mean() for user in range(60)], np.float32)
    sd = np.array([log.ratings[log.users == user].std() for user in range(60)], np.float32)
    rng = np.random.default_rng(2)
    users = rng.integers(0, 60, 20_000)
    stars = rng.choice(5, 20_000, p=CAUTIOUS.rating_shares) + 1.0
    quantiles = CAUTIOUS.rating_quantile(stars, rng.random(20_000), rng.random(20_000))
    given = OwnRatings(world, mean, sd).at(users, quantiles)
    assert set(np.unique(given)) == {1, 2, 3, 4, 5}
    real = np.bincount(log.ratings.astype(int), minlength=6) / len(log)
    np.testing.assert_allclose(np.bincount(given.astype(int), minlength=6) / 20_000, real, atol=0.06)
    best, worst = mean.argmax(), mean.argmin()
    assert given[users == best].mean() > given[users == worst].mean() + 0.5 * (mean[best] - mean[worst])


def test_ratings_keep_to_the_scale_and_to_normal_quantiles_without_data():
    world = synthetic(n_users=5, n_items=50, seed=0)
    log = world.interactions
    unrated = replace(world, interactions=replace(log, ratings=np.full(len(log), np.nan, np.float32)))
    mean, sd = np.full(5, 3.0, np.float32), np.full(5, 1.0, np.float32)
    given = OwnRatings(unrated, mean, sd).at(np.zeros(3, int), np.array([1e-6, 0.5, 1 - 1e-6]))
    np.testing.assert_array_equal(given, [1, 3, 5])


def test_files_round_trip_and_bad_ones_are_named(tmp_path):
    path = tmp_path / "calibration.json"
    CAUTIOUS.save(path)
    assert Calibration.load(path) == CAUTIOUS
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"calibration\.json"):
        Calibration.load(path)
    with pytest.raises(ConfigError, match=r"absent\.json"):
        Calibration.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    "options",
    [
        {"interest": (0, 0), "click": (0.1, 0.2)},
        {"interest": (0, 100), "click": (0.3, 0.2)},
        {"interest": (0, 100), "click": (0.1, 1.2)},
        {"interest": (0, 100), "click": (0.1,)},
        {"rating_shares": (0.5, 0.5, 0.5, 0.0, 0.0)},
    ],
)
def test_what_is_no_calibration(options):
    with pytest.raises(ConfigError, match="calibration"):
        Calibration(**options)
