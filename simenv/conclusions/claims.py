"""Claims and how they are judged: from the metrics of a run to estimate, interval, p, test and verdict of each.

Input is the frame of `metrics.csv` and claims stated beforehand, such as those of `simenv.conclusions.standard`; the
rules are in docs/statistics.md. The module does not know how a metric is computed, nor how a run was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from simenv.conclusions import statistics
from simenv.conclusions.judged import JudgedClaim, Test, verdict_of
from simenv.conclusions.words import sentence
from simenv.errors import ConfigError, DataError
from simenv.metrics.frame import COLUMNS, added

if TYPE_CHECKING:
    import polars as pl

Estimand = Literal["amp", "level", "stability"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A statement about one arm, to be judged over seeds.

    The estimate is the mean over seeds of
    ``amp``: [last round - round 0] of (arm, mode) minus the same of the control;
    ``level``: the last round of (arm, mode) minus that of the control;
    ``stability``: Kendall's tau between the seeds' rankings of `arms` by the last round.
    With `versus_group`, the amp or level of `group` minus that of `versus_group`.
    """

    name: str
    arm: str
    metric: str
    cause: str  # "retraining on its own feedback"
    quantity: str  # "the popularity percentile of ALS's slates"
    estimand: Estimand = "amp"
    mode: str = "loop"
    control_arm: str | None = None  # None = the same arm
    control_mode: str = "frozen"
    group: str = "all"
    versus_group: str | None = None
    arms: tuple[str, ...] = ()  # the ranked arms of a stability claim
    direction: Literal["up", "down"] | None = None  # a directed claim; None = any change
    margin: float | None = None  # the largest effect that counts as none, for TOST
    primary: bool = False

    def __post_init__(self) -> None:
        if self.margin is not None and not self.margin > 0:
            raise ConfigError(f"claim {self.name}: margin={self.margin}; expected a positive number")
        if self.estimand == "stability" and (len(self.arms) < 2 or self.primary):
            raise ConfigError(f"claim {self.name}: a stability claim ranks at least 2 arms and is never primary")

    @property
    def control(self) -> str:
        """What the arm is compared with, e.g. `als/frozen`, or `als/frozen, taste=minority - taste=majority`."""
        if self.estimand == "stability":
            return "chance"
        control = f"{self.control_arm or self.arm}/{self.control_mode}"
        return control if self.versus_group is None else f"{control}, {self.group} - {self.versus_group}"


def judge(
    metrics: pl.DataFrame, claims: Sequence[Claim], *, regime: str, alpha: float = 0.05, primary_first: bool = False
) -> list[JudgedClaim]:
    """The claims with their numbers and verdicts, in the given order.

    Error control: all claims, the primary one among them, are one max-T family. With `primary_first` the primary claim
    is instead tested alone at `alpha`, and the others only if it is supported (their `p_adjusted` is the larger of the
    primary's p and their own max-T p): more power for the one, none for the rest where it fails. Either way at most
    `alpha` of the runs without any effect have any supported claim. `p` is the unadjusted sign-flip p.

    Args:
        metrics: the tidy table of one run.
        claims: at most one of them primary; names unique.
        regime: the consumption regime (`never`, `cooldown`, `always`), named in every claim.
        alpha: error rate; intervals have coverage 1 - alpha.
        primary_first: see above.

    Raises:
        ConfigError: if names repeat, two claims are primary, or a claim names something the table does not hold.
        DataError: if the table lacks a column or holds a cell twice.
    """
    _check_names(claims)
    table = _SeedTable(metrics)
    differences = np.full((len(table.seeds), len(claims)), np.nan)
    stability: dict[int, statistics.RankStability] = {}
    for column, claim in enumerate(claims):
        if claim.estimand == "stability":
            stability[column] = _stability(table, claim, 1 - alpha)
        else:
            differences[:, column] = table.differences(claim)
    p, own, adjusted = _p_values(claims, differences, stability, primary_first)

    judged = []
    for column, claim in enumerate(claims):
        if claim.estimand == "stability":
            interval, sd, tost = stability[column].tau, float("nan"), float("nan")
        else:
            values = differences[:, column]
            values = values[np.isfinite(values)]
            interval = _interval(values, 1 - alpha)
            sd = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
            tost = statistics.tost_p(values, claim.margin) if claim.margin and len(values) else float("nan")
        several = interval.n > 1
        mde = statistics.minimum_detectable_effect(sd, interval.n, alpha=alpha)
        record = JudgedClaim(
            name=claim.name,
            arm=claim.arm,
            metric=claim.metric,
            control=claim.control,
            regime=regime,
            primary=claim.primary,
            estimate=_or_none(interval.estimate),
            ci_low=_or_none(interval.low),
            ci_high=_or_none(interval.high),
            p=_or_none(p[column]) if several else None,
            p_adjusted=_or_none(adjusted[column]) if several else None,
            n_seeds=interval.n,
            margin=claim.margin,
            tost_p=_or_none(tost),
            mde=_or_none(mde),
            test="inconclusive",
            verdict="unclear",
        )
        decided = _decided(claim, record, alpha, len(table.seeds))
        alone = _decided(claim, replace(record, p_adjusted=_or_none(own[column])), alpha, len(table.seeds))
        if decided.verdict == "unclear":
            decided = replace(decided, seeds_needed=_seeds_needed(decided, sd, alpha))
        held_back = decided.test == "inconclusive" and alone.test == "supported"
        words = sentence(claim, decided, alpha=alpha, n_all=len(table.seeds), held_back=held_back)
        judged.append(replace(decided, sentence=words))
    return judged


def seed_differences(metrics: pl.DataFrame, claim: Claim) -> NDArray[np.float64]:
    """The claim's paired difference in every seed of a metrics table, ascending by seed, (S,); NaN = no value.

    Raises:
        ConfigError: the table does not hold what the claim names.
    """
    return _SeedTable(metrics).differences(claim)


# -- from the table to one number per seed ------------------------------------------------------------------------


class _SeedTable:
    """Round 0 and the last round of every (arm, mode, group, metric), one row per seed."""

    def __init__(self, metrics: pl.DataFrame) -> None:
        import polars as pl

        missing = [name for name in COLUMNS if name not in metrics.columns]
        if missing or metrics.height == 0:
            lack = f"no column {', '.join(missing)}" if missing else "no rows"
            raise DataError(f"metrics table: {lack}; expected {', '.join(COLUMNS)}")
        self.last = int(metrics["round"].max())  # type: ignore[arg-type]
        self.seeds: list[int] = sorted(metrics["seed"].unique().to_list())
        ends = metrics.filter(pl.col("round").is_in([0, self.last]))
        repeated = ends.filter(ends.select(COLUMNS[:-1]).is_duplicated())
        if repeated.height:
            raise DataError(f"metrics table: the cell {repeated.row(0)[:-1]} occurs more than once; expected once")
        row = {seed: index for index, seed in enumerate(self.seeds)}
        self._cells: dict[tuple[str, str, str, str], NDArray[np.float64]] = {}
        for seed, arm, mode, round_, group, metric, value in ends.select(COLUMNS).iter_rows():
            cell = self._cells.get((arm, mode, group, metric))
            if cell is None:
                cell = self._cells[arm, mode, group, metric] = np.full((len(row), 2), np.nan)
            if value is not None and np.isfinite(value):
                if round_ == 0:
                    cell[row[seed], 0] = value
                if round_ == self.last:
                    cell[row[seed], 1] = value

    def ends(self, claim: str, arm: str, mode: str, group: str, metric: str) -> NDArray[np.float64]:
        """(S, 2): round 0 and the last round; NaN where a seed has no value."""
        cell = self._cells.get((arm, mode, group, metric))
        if cell is None:
            raise ConfigError(f"claim {claim}: the metrics table has no {metric} of {arm}/{mode} in group {group}")
        return cell

    def differences(self, claim: Claim) -> NDArray[np.float64]:
        """(S,): one paired difference per seed."""
        values = self._against_control(claim, claim.group)
        return values if claim.versus_group is None else values - self._against_control(claim, claim.versus_group)

    def _against_control(self, claim: Claim, group: str) -> NDArray[np.float64]:
        ours = self.ends(claim.name, claim.arm, claim.mode, group, claim.metric)
        control = self.ends(claim.name, claim.control_arm or claim.arm, claim.control_mode, group, claim.metric)
        if claim.estimand == "level":
            return np.asarray(ours[:, 1] - control[:, 1])
        if self.last == 0:  # one round cannot amplify; 0 would read as "no effect"
            return np.full(len(self.seeds), np.nan)
        return added(ours, control)[:, 1]


def _stability(table: _SeedTable, claim: Claim, confidence: float) -> statistics.RankStability:
    last = np.column_stack(
        [table.ends(claim.name, arm, claim.mode, claim.group, claim.metric)[:, 1] for arm in claim.arms]
    )
    complete = last[np.isfinite(last).all(axis=1)]
    if len(complete) == 0:
        nothing = statistics.Interval(estimate=np.nan, low=np.nan, high=np.nan, n=0)
        return statistics.RankStability(tau=nothing, p=np.nan, ranks=complete)
    return statistics.rank_stability(complete, confidence)


def _interval(values: NDArray[np.float64], confidence: float) -> statistics.Interval:
    if len(values) == 0:
        return statistics.Interval(estimate=np.nan, low=np.nan, high=np.nan, n=0)
    return statistics.paired_t(values, confidence)


def _p_values(
    claims: Sequence[Claim],
    differences: NDArray[np.float64],
    stability: Mapping[int, statistics.RankStability],
    primary_first: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """p unadjusted, adjusted within its family, and adjusted with the order of testing, (C,) each.

    The order: the primary claim, the max-T family, the stability claims.
    """
    p = statistics.sign_flip_p(differences) if len(claims) else np.zeros(0)
    first = [c for c, claim in enumerate(claims) if claim.primary and primary_first]
    family = [c for c in range(len(claims)) if c not in stability and c not in first]
    own, adjusted = p.copy(), p.copy()
    gate = float(np.nan_to_num(p[first], nan=1.0).max(initial=0.0))
    if family:
        own[family] = statistics.max_t_p(differences[:, family])
        adjusted[family] = np.maximum(own[family], gate)
        gate = max(gate, float(np.nan_to_num(own[family], nan=1.0).min()))
    for column, result in stability.items():
        p[column], own[column] = result.p, min(1.0, result.p * len(stability))
        adjusted[column] = np.maximum(own[column], gate)
    return p, own, adjusted


def _check_names(claims: Sequence[Claim]) -> None:
    names = [claim.name for claim in claims]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"claims: {', '.join(twice)} occur more than once; expected unique names")
    primary = [claim.name for claim in claims if claim.primary]
    if len(primary) > 1:
        raise ConfigError(f"claims: {', '.join(primary)} are all primary; expected one primary claim at most")


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# -- test and verdict ---------------------------------------------------------------------------------------------


def _decided(claim: Claim, record: JudgedClaim, alpha: float, n_all: int) -> JudgedClaim:
    """The record with its test and verdict."""
    n = record.n_seeds
    if n < 2 or (n < n_all and statistics.smallest_p(n) > alpha):  # what is left decides nothing
        return replace(record, test="inconclusive", verdict="unclear")
    verdict = verdict_of(record.ci_low, record.ci_high, claim.margin, record.p_adjusted, alpha=alpha)
    return replace(record, test=_test(claim, record, alpha), verdict=verdict)


def _test(claim: Claim, record: JudgedClaim, alpha: float) -> Test:
    if _significant(record, alpha):
        return "not_supported" if _against(claim, record) else "supported"
    return "not_supported" if record.tost_p is not None and record.tost_p <= alpha else "inconclusive"


def _significant(record: JudgedClaim, alpha: float) -> bool:
    adjusted, low, high = record.p_adjusted, record.ci_low, record.ci_high
    return adjusted is not None and low is not None and high is not None and adjusted <= alpha and (low > 0 or high < 0)


def _against(claim: Claim, record: JudgedClaim) -> bool:
    """The estimate has the sign that a directed claim denies."""
    return (claim.direction, (record.estimate or 0.0) > 0) in (("up", False), ("down", True))


def _seeds_needed(record: JudgedClaim, sd: float, alpha: float) -> int | None:
    """About how many seeds would decide: those with which the distance from the estimate to the margin is found.

    Never fewer than a test needs to reach `alpha`, nor than there are already and one; None = it cannot be told.
    """
    fewest = max(statistics.fewest_seeds(alpha), record.n_seeds + 1)
    if record.estimate is None or record.n_seeds < 2:
        return fewest
    needed = statistics.seeds_to_detect(abs(abs(record.estimate) - (record.margin or 0.0)), sd, alpha=alpha)
    return None if needed is None else max(needed, fewest)
