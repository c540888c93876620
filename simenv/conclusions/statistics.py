"""Statistics with the seed as the replicate: intervals, exact sign-flip tests, equivalence, power, variance, ranks.

Pure functions of arrays. Non-finite values are refused wherever a function takes one sample, so that leaving a seed
out is always the caller's explicit act; `sign_flip_p` and `max_t_p` take NaN as "this seed has no value here".
The module does not know what an arm, a metric or a verdict is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from simenv.errors import ConfigError, DataError
from simenv.numeric import DoubleArray

EXACT_SEEDS = 14  # up to here all 2^S sign flips are enumerated
MONTE_CARLO_FLIPS = 20_000
_TIE = 1e-9  # statistics closer than this are ties; they are of order 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its confidence interval; `low` and `high` are NaN where there is none."""

    estimate: float
    low: float
    high: float
    n: int  # units (seeds, users) behind it


def paired_t(differences: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of paired differences with Student's t interval.

    Args:
        differences: (S,) finite, one per seed. With one seed the interval is NaN.
        confidence: coverage in (0, 1).

    Raises:
        DataError: if there is no value, or one is not finite.
    """
    x = _sample(differences)
    mean, low, high = (float(value) for value in t_interval(x, confidence))
    return Interval(estimate=mean, low=low, high=high, n=len(x))


def t_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[DoubleArray, DoubleArray, DoubleArray]:
    """Mean and Student's t interval over the first axis (the seeds), NaNs left out.

    Returns:
        (mean, low, high), each of the remaining shape; low and high are NaN where fewer than two seeds count.
    """
    x = np.asarray(values, dtype=np.float64)
    known = np.isfinite(x)
    n = known.sum(axis=0)
    kept = np.where(known, x, 0.0)
    mean = np.where(n > 0, kept.sum(axis=0) / np.maximum(n, 1), np.nan)
    degrees = np.maximum(n - 1, 1)
    sd = np.sqrt(np.where(known, (x - mean) ** 2, 0.0).sum(axis=0) / degrees)
    sd = np.where(sd <= 1e-14 * np.abs(kept).max(axis=0, initial=0.0), 0.0, sd)  # values that differ by rounding only
    half = np.where(n > 1, stats.t.ppf(0.5 + confidence / 2, degrees) * (sd / np.sqrt(np.maximum(n, 1))), np.nan)
    return mean, mean - half, mean + half


def smallest_p(n_seeds: int) -> float:
    """The smallest two-sided p an exact sign-flip test of `n_seeds` can give: 2 / 2^S."""
    return float(2.0 ** (1 - n_seeds))


def fewest_seeds(alpha: float = 0.05) -> int:
    """The fewest seeds with which an exact sign-flip test can reach `alpha`: 6 at .05."""
    return next(n for n in range(2, 64) if smallest_p(n) <= alpha)


def sign_flip_p(differences: ArrayLike, *, flips: int = MONTE_CARLO_FLIPS, seed: int = 0) -> DoubleArray:
    """Two-sided sign-flip p of each column: under no effect, the sign of every seed's difference is a fair coin.

    All 2^S flips up to S = 14, else `flips` seeded Monte Carlo ones with p = (1 + count) / (1 + flips)
    (Phipson and Smyth 2010). Two-sided by |mean|.

    Args:
        differences: (S,) or (S, C); NaN = the seed has no value in this column.
        flips: Monte Carlo flips where S > 14.
        seed: of the Monte Carlo flips.

    Returns:
        (C,) p values; NaN for a column without a finite value.
    """
    z = _self_normalised(differences)
    observed, flipped = np.abs(z.sum(axis=0)), np.abs(_signs(len(z), flips, seed) @ z)
    return np.where(_has_values(differences), _tail(flipped, observed, len(z)), np.nan)


def max_t_p(differences: ArrayLike, *, flips: int = MONTE_CARLO_FLIPS, seed: int = 0) -> DoubleArray:
    """Family-wise adjusted sign-flip p of each column: Westfall and Young's (1993) step-down max-T.

    The signs of a seed flip in all columns together, so that the dependence between claims is kept. The statistic is
    |sum x| / sqrt(sum x^2), a monotone function of |t| at a given number of seeds, with variance 1 under flips
    whatever that number is. The smallest adjusted p stays 2 / 2^S, however many columns there are.

    Args:
        differences: (S, C), columns are claims over the same seeds; NaN as in `sign_flip_p`.
        flips: Monte Carlo flips where S > 14.
        seed: of the Monte Carlo flips.

    Returns:
        (C,) adjusted p values; NaN for a column without a finite value (it does not count in the family).
    """
    present = np.flatnonzero(_has_values(differences))
    z = _self_normalised(differences)
    adjusted = np.full(z.shape[1], np.nan)
    if len(present) == 0:
        return adjusted
    observed = np.abs(z.sum(axis=0))
    order = present[np.argsort(-observed[present], kind="stable")]
    flipped = np.abs(_signs(len(z), flips, seed) @ z[:, order])
    largest_left = np.maximum.accumulate(flipped[:, ::-1], axis=1)[:, ::-1]
    adjusted[order] = np.maximum.accumulate(_tail(largest_left, observed[order], len(z)))
    return adjusted


def tost_p(differences: ArrayLike, margin: float) -> float:
    """P of two one-sided t tests for |mean| < margin (Schuirmann 1987); small = equivalent to no effect.

    Args:
        differences: (S,) finite. With one seed the result is NaN.
        margin: the largest effect that counts as none, > 0.

    Raises:
        ConfigError: if the margin is not positive.
    """
    if not margin > 0:
        raise ConfigError(f"margin={margin}: expected a positive number")
    x = _sample(differences)
    if len(x) < 2:
        return float("nan")
    mean, error = float(x.mean()), _standard_error(x)
    if error == 0:
        return 0.0 if abs(mean) < margin else 1.0
    return float(stats.t.sf((margin - abs(mean)) / error, len(x) - 1))


def minimum_detectable_effect(sd: float, n: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The mean difference that a two-sided paired t-test of `n` seeds finds with this power.

    Solved on the noncentral t distribution (Cohen 1988), counting findings in the right direction only. NaN with
    fewer than two seeds.

    Args:
        sd: standard deviation of the paired differences.
        n: seeds.
        alpha: two-sided level of the single test.
        power: 1 minus the risk of missing the effect, in (alpha, 1).
    """
    return float("nan") if n < 2 else sd * _standardised_mde(n, alpha, power)


def seeds_to_detect(effect: float, sd: float, *, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """The fewest seeds whose `minimum_detectable_effect` is at most `effect`; None if no number of seeds will do.

    Args:
        effect: > 0, in the units of `sd`.
        sd: standard deviation of the paired differences.
        alpha: two-sided level of the single test.
        power: 1 minus the risk of missing the effect.
    """
    if not effect > 0 or not np.isfinite(sd):
        return None
    normal = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))
    n = max(2, int((normal * sd / effect) ** 2))  # the t distribution asks for no fewer
    if n > 10_000:
        return n + 1
    while minimum_detectable_effect(sd, n, alpha=alpha, power=power) > effect:
        n += 1
    return n


@dataclass(frozen=True, slots=True, kw_only=True)
class VarianceSplit:
    """Variance components of one value; NaN = the design cannot tell (no replication at that level)."""

    world: float
    model: float
    luck: float

    @property
    def shares(self) -> dict[str, float]:
        """Each component over their sum; NaN if one is unknown or all are zero."""
        parts = {"world": self.world, "model": self.model, "luck": self.luck}
        total = sum(parts.values())
        return {name: part / total if total > 0 else float("nan") for name, part in parts.items()}


def variance_split(values: ArrayLike, world: ArrayLike, model: ArrayLike) -> VarianceSplit:
    """How much of a value's spread comes from the world, from the model's own seed, and from the users' luck.

    Nested random effects y = m + world + model(world) + luck, by the method of moments for unbalanced designs
    (Searle, Casella and McCulloch 1992, ch. 5.6): mean squares equated to their expectations, negative estimates
    set to 0. On balanced designs with positive estimates this is REML. Each row is one draw of luck.

    Args:
        values: (n,) finite, e.g. the AMP of one arm.
        world: (n,) world seed.
        model: (n,) fitting seed; numbers are read within their world.

    Raises:
        DataError: if the arrays are not aligned or a value is not finite.
    """
    y, a, b = _sample(values), np.asarray(world), np.asarray(model)
    if not len(y) == len(a) == len(b):
        raise DataError(f"variance_split: {len(y)} values, {len(a)} worlds, {len(b)} models; expected equal lengths")
    _, world_of = np.unique(a, return_inverse=True)
    cells, cell_of = np.unique(
        np.column_stack([world_of, np.unique(b, return_inverse=True)[1]]), axis=0, return_inverse=True
    )
    cell_world = cells[:, 0]
    n, n_cells, n_worlds = len(y), len(cells), int(world_of.max()) + 1
    in_cell, in_world = np.bincount(cell_of), np.bincount(world_of)
    cell_mean = np.bincount(cell_of, y) / in_cell
    world_mean = np.bincount(world_of, y) / in_world

    squares_luck = float(((y - cell_mean[cell_of]) ** 2).sum())
    squares_model = float((in_cell * (cell_mean - world_mean[cell_world]) ** 2).sum())
    squares_world = float((in_world * (world_mean - y.mean()) ** 2).sum())
    within = float((in_cell**2 / in_world[cell_world]).sum())
    nan = float("nan")

    luck = squares_luck / (n - n_cells) if n > n_cells else nan
    model_part = (squares_model - (n_cells - n_worlds) * luck) / (n - within) if n_cells > n_worlds else nan
    if n_worlds > 1:
        weight = (within - (in_cell**2).sum() / n) * model_part
        world_part = (squares_world - (n_worlds - 1) * luck - weight) / (n - (in_world**2).sum() / n)
    else:
        world_part = nan
    return VarianceSplit(world=_not_negative(world_part), model=_not_negative(model_part), luck=luck)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStability:
    """How far seeds agree on the order of the arms."""

    tau: Interval  # mean Kendall tau-b over pairs of seeds, jackknife t interval
    p: float  # one-sided, of more agreement than chance
    ranks: DoubleArray  # (S, A), 1 = largest value, ties share the mean rank


def rank_stability(values: ArrayLike, confidence: float = 0.95, *, seed: int = 0) -> RankStability:
    """Mean Kendall tau-b between the rankings of pairs of seeds, with interval and p.

    The interval is Student's t on jackknife pseudo-values over seeds (Arvesen 1969), clipped to [-1, 1]. If arms do
    not differ, a ranking and its reverse are equally likely, so p is an exact test over flips of whole rankings
    (Monte Carlo above 14 seeds); its smallest value is 2 / 2^S. A seed where all arms tie agrees with none (tau 0).

    Args:
        values: (S, A) finite, one row per seed, one column per arm.
        confidence: coverage in (0, 1).
        seed: of Monte Carlo flips.

    Raises:
        DataError: if the shape is not (>= 1, >= 2) or a value is not finite.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2 or not np.isfinite(table).all():
        raise DataError(f"rank_stability: values of shape {table.shape}; expected finite (seeds, at least 2 arms)")
    n = len(table)
    ranks = stats.rankdata(-table, axis=1)
    if n < 2:
        return RankStability(tau=Interval(estimate=np.nan, low=np.nan, high=np.nan, n=n), p=np.nan, ranks=ranks)

    upper = np.triu_indices(table.shape[1], 1)
    order = np.sign(table[:, upper[0]] - table[:, upper[1]])  # (S, pairs of arms)
    untied = np.maximum((order != 0).sum(axis=1), 1)
    tau = (order @ order.T) / np.sqrt(np.outer(untied, untied))
    np.fill_diagonal(tau, 0.0)
    total = tau.sum()
    estimate = float(total / (n * (n - 1)))
    low = high = np.nan
    if n > 2:
        without = (total - 2 * tau.sum(axis=1)) / ((n - 1) * (n - 2))
        interval = paired_t(n * estimate - (n - 1) * without, confidence)
        low, high = max(-1.0, interval.low), min(1.0, interval.high)
    signs = _signs(n, MONTE_CARLO_FLIPS, seed)
    flipped = np.einsum("fi,ij,fj->f", signs, tau, signs, optimize=True)
    p = float(_tail(flipped[:, None], np.array([total]), n)[0])
    return RankStability(tau=Interval(estimate=estimate, low=low, high=high, n=n), p=p, ranks=ranks)


# -- the arithmetic behind them -----------------------------------------------------------------------------------


def _sample(values: ArrayLike) -> DoubleArray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).sum())
        raise DataError(f"a sample of shape {x.shape} with {bad} non-finite values; expected (n,) finite, n >= 1")
    return x


def _standard_error(x: DoubleArray) -> float:
    """SD of the mean; NaN with one value; 0 when values differ by rounding only."""
    if len(x) < 2:
        return float("nan")
    sd = float(x.std(ddof=1))
    return 0.0 if sd <= 1e-14 * float(np.abs(x).max()) else sd / float(np.sqrt(len(x)))


def _columns(differences: ArrayLike) -> DoubleArray:
    x = np.asarray(differences, dtype=np.float64)
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or len(x) == 0:
        raise DataError(f"differences of shape {x.shape}; expected (seeds,) or (seeds, claims)")
    if np.isinf(x).any():
        raise DataError("differences hold infinite values; expected numbers, or NaN for a seed without one")
    return x


def _has_values(differences: ArrayLike) -> NDArray[np.bool_]:
    return np.asarray(~np.isnan(_columns(differences)).all(axis=0))


def _self_normalised(differences: ArrayLike) -> DoubleArray:
    """Columns scaled to unit length, absent seeds 0: a column's sum is then |sum x| / sqrt(sum x^2) up to sign."""
    x = np.nan_to_num(_columns(differences), nan=0.0)
    # Scaling by the largest value first keeps tiny numbers from underflowing when squared.
    x = x / np.where((top := np.abs(x).max(axis=0)) > 0, top, 1.0)
    length = np.sqrt((x**2).sum(axis=0))
    return np.asarray(x / np.where(length > 0, length, 1.0))


def _signs(n: int, flips: int, seed: int) -> DoubleArray:
    """(F, n) of +-1. Exact: 2^(n-1) rows with the first sign +, the other half being their mirror image."""
    if n <= EXACT_SEEDS:
        bits = np.arange(2 ** (n - 1))[:, None] >> np.arange(n - 1)[None, :]
        return np.hstack([np.ones((len(bits), 1)), 1.0 - 2.0 * (bits & 1)])
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=(flips, n))


def _tail(flipped: DoubleArray, observed: DoubleArray, n: int) -> DoubleArray:
    """Share of flips at least as large as observed, by column; the observed one counts."""
    count = (flipped >= observed - _TIE).sum(axis=0)
    return np.asarray(count / len(flipped) if n <= EXACT_SEEDS else (count + 1) / (len(flipped) + 1))


@lru_cache(maxsize=4096)
def _standardised_mde(n: int, alpha: float, power: float) -> float:
    if not 0 < alpha < power < 1:
        raise ConfigError(f"alpha={alpha}, power={power}: expected 0 < alpha < power < 1")
    df = n - 1
    critical = float(stats.t.ppf(1 - alpha / 2, df))
    missed = 1 - power
    shift = optimize.brentq(lambda c: special.nctdtr(df, c, critical) - missed, 0.0, 3 * critical + 10, xtol=1e-10)
    return float(shift / np.sqrt(n))


def _not_negative(value: float) -> float:
    return value if np.isnan(value) else max(0.0, value)
