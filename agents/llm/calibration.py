"""From what a language model says to what a user does: Calibration.

A model's interest of 80 is no click rate of 80 %, and its four stars are not this user's four stars. The calibration
holds how interest maps to P(click | examined) and how the model spreads its ratings; it is fitted on held-out real
interactions by the realism experiment and read from a file. It does not know users or items.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import Dataset, FloatArray, RatingScale
from simenv.errors import ConfigError

KNOTS = tuple(float(knot) for knot in range(0, 101, 10))
QUANTILE_GRID = np.linspace(0.005, 0.995, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How one language model's scores relate to behaviour.

    The default is a prior, not a fit: a logistic curve around interest 70, since models say yes far too often, and
    ratings spread as people's are. `source` is empty then, and reports say *not calibrated*.

    Attributes:
        interest: knots on 0-100, increasing.
        click: P(click | examined) at the knots, non-decreasing, in [0, 1]; linear between.
        rating_shares: how often the model gives 1 to 5, sums to 1.
        source: what it was fitted on.
    """

    interest: tuple[float, ...] = KNOTS
    click: tuple[float, ...] = tuple(float(1 / (1 + np.exp((70 - knot) / 12))) for knot in KNOTS)
    rating_shares: tuple[float, ...] = (0.06, 0.11, 0.26, 0.35, 0.22)
    source: str = ""

    def __post_init__(self) -> None:
        interest, click, shares = np.array(self.interest), np.array(self.click), np.array(self.rating_shares)
        if len(interest) < 2 or len(interest) != len(click) or (np.diff(interest) <= 0).any():
            raise ConfigError("calibration: expected at least two increasing 'interest' knots and one 'click' for each")
        if (np.diff(click) < 0).any() or click[0] < 0 or click[-1] > 1:
            raise ConfigError("calibration: expected 'click' probabilities in [0, 1] that do not decrease")
        if len(shares) != 5 or (shares < 0).any() or not np.isclose(shares.sum(), 1.0):
            raise ConfigError("calibration: expected five 'rating_shares' that sum to 1")

    def click_probability(self, interest: NDArray[Any]) -> NDArray[np.float64]:
        """P(click | examined) at these interests (0-100), same shape."""
        return np.asarray(np.interp(interest, self.interest, self.click))

    def rating_quantile(
        self, rating: NDArray[Any], u: NDArray[np.float64], v: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Where in the model's own distribution of ratings these stand, in (0, 1), same shape.

        A rating of k covers an interval of quantiles, in which `u` picks: over many ratings the result is uniform, so
        that mapped to a user's own quantiles it has that user's own distribution, one and two stars included.

        Args:
            rating: model ratings in [1, 5]; fractions go up with that probability, decided by `v`.
            u, v: uniforms in [0, 1).
        """
        rating = np.asarray(rating, np.float64)
        star = np.clip(np.floor(rating) + (v < rating - np.floor(rating)), 1, 5).astype(np.int64)
        edges = np.concatenate([[0.0], np.cumsum(self.rating_shares)])
        return np.asarray(np.clip(edges[star - 1] + u * (edges[star] - edges[star - 1]), 1e-6, 1 - 1e-6))

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """What `save` wrote.

        Raises:
            ConfigError: no such file, or not a calibration.
        """
        try:
            stored = json.loads(Path(path).read_text())
            return cls(
                interest=tuple(stored["interest"]),
                click=tuple(stored["click"]),
                rating_shares=tuple(stored["rating_shares"]),
                source=str(stored["source"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"agent.calibration={path}: not a readable calibration ({error})") from error

    @classmethod
    def fit(
        cls,
        interest: NDArray[Any],
        chosen: NDArray[Any],
        ratings: NDArray[Any],
        *,
        weights: NDArray[Any] | None = None,
        source: str,
    ) -> Calibration:
        """From a model's scores of real items.

        Args:
            interest: (n,), 0-100.
            chosen: (n,), whether the user consumed the item.
            ratings: (m,), model ratings of a sample of pages, fractions allowed.
            weights: (n,), e.g. to undo an oversampling of positives; 1 by default.
            source: what these are, for the report.

        The click curve is the isotonic least-squares fit to the shares chosen around each knot.
        """
        from scipy.optimize import isotonic_regression

        x, y = np.asarray(interest, np.float64), np.asarray(chosen, np.float64)
        w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
        knots = np.array(KNOTS)
        nearest = np.abs(x[:, None] - knots).argmin(axis=1)
        mass = np.bincount(nearest, weights=w, minlength=len(knots))
        found = mass > 0
        means = np.bincount(nearest, weights=w * y, minlength=len(knots))[found] / mass[found]
        curve = np.clip(isotonic_regression(means, weights=mass[found]).x, 0.0, 1.0)
        click = np.interp(knots, knots[found], curve)
        stars = np.clip(np.floor(np.asarray(ratings, np.float64) + 0.5), 1, 5).astype(np.int64)
        counts = np.bincount(stars, minlength=6)[1:] + 0.5  # no star is impossible
        shares = counts / counts.sum()
        return cls(click=tuple(float(p) for p in click), rating_shares=tuple(float(s) for s in shares), source=source)


class OwnRatings:
    """Each user's own quantile function of ratings: own mean + own SD * the population's standardised quantile.

    Args:
        dataset: its ratings give the shape, skew included; normal quantiles where it has none.
        mean, sd: (n_users,) of each user.
    """

    def __init__(self, dataset: Dataset, mean: FloatArray, sd: FloatArray) -> None:
        from scipy.special import ndtri

        self.scale: RatingScale = dataset.rating_scale
        self.mean, self.sd = mean, sd
        log = dataset.interactions
        rated = log.take(~np.isnan(log.ratings))
        residuals = (rated.ratings - mean[rated.users]) / np.maximum(sd[rated.users], 1e-6)
        self._quantiles = np.quantile(residuals, QUANTILE_GRID) if len(rated) else ndtri(QUANTILE_GRID)

    def at(self, users: NDArray[Any], quantiles: NDArray[np.float64]) -> FloatArray:
        """Ratings of these users at these quantiles (same shape), on the steps of the data set's scale."""
        z = np.interp(quantiles, QUANTILE_GRID, self._quantiles)
        return self.scale.round(self.mean[users] + self.sd[users] * z)
