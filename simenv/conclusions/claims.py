"""Automatic claims: what a run supports, in plain words, with estimate, interval, p and verdict.

Input is the tidy metrics table of a run (seed, arm, mode, round, group, metric, value) and claims stated beforehand,
such as those of `simenv.conclusions.standard`; the rules are in docs/statistics.md. The module does not know how a
metric is computed, nor how a run was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from simenv.conclusions import statistics
from simenv.errors import ConfigError, DataError

if TYPE_CHECKING:
    import polars as pl

Estimand = Literal["amp", "level", "stability"]
Verdict = Literal["supported", "not_supported", "inconclusive"]
COLUMNS = ("seed", "arm", "mode", "round", "group", "metric", "value")


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
) -> list[dict[str, Any]]:
    """The claims with their numbers and verdicts, in the given order, ready for claims.json.

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

    Returns:
        One dictionary per claim: name, arm, metric, control, regime, primary, estimate, ci_low, ci_high, p, p_adjusted,
        n_seeds, margin, tost_p, mde, verdict, sentence. Numbers that do not exist are None.

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

    records = []
    for column, claim in enumerate(claims):
        if claim.estimand == "stability":
            interval, sd = stability[column].tau, float("nan")
        else:
            values = differences[:, column]
            values = values[np.isfinite(values)]
            interval = _interval(values, 1 - alpha)
            sd = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        linear = claim.estimand != "stability" and interval.n > 0
        record: dict[str, Any] = {
            "name": claim.name,
            "arm": claim.arm,
            "metric": claim.metric,
            "control": claim.control,
            "regime": regime,
            "primary": claim.primary,
            "estimate": interval.estimate,
            "ci_low": interval.low,
            "ci_high": interval.high,
            "p": p[column] if interval.n > 1 else None,
            "p_adjusted": adjusted[column] if interval.n > 1 else None,
            "n_seeds": interval.n,
            "margin": claim.margin,
            "tost_p": statistics.tost_p(values, claim.margin) if linear and claim.margin else None,
            "mde": statistics.minimum_detectable_effect(sd, interval.n, alpha=alpha) if linear else None,
        }
        record = {key: _or_none(value) for key, value in record.items()}
        record["verdict"] = _verdict(claim, record, alpha, len(table.seeds))
        alone = {**record, "p_adjusted": _or_none(own[column])}
        held_back = (
            record["verdict"] == "inconclusive" and _verdict(claim, alone, alpha, len(table.seeds)) == "supported"
        )
        record["sentence"] = _sentence(claim, record, alpha, len(table.seeds), held_back)
        records.append(record)
    return records


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
        return np.asarray((ours[:, 1] - ours[:, 0]) - (control[:, 1] - control[:, 0]))


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


def _or_none(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


# -- verdict and words --------------------------------------------------------------------------------------------


def _verdict(claim: Claim, record: Mapping[str, Any], alpha: float, n_all: int) -> Verdict:
    n = record["n_seeds"]
    if n < 2 or (n < n_all and statistics.smallest_p(n) > alpha):
        return "inconclusive"
    if _significant(record, alpha):
        return "not_supported" if _against(claim, record) else "supported"
    equivalent = record["tost_p"] is not None and record["tost_p"] <= alpha
    return "not_supported" if equivalent else "inconclusive"


def _significant(record: Mapping[str, Any], alpha: float) -> bool:
    adjusted, low, high = record["p_adjusted"], record["ci_low"], record["ci_high"]
    return None not in (adjusted, low, high) and bool(adjusted <= alpha and (low > 0 or high < 0))


def _against(claim: Claim, record: Mapping[str, Any]) -> bool:
    """The estimate has the sign that a directed claim denies."""
    return (claim.direction, record["estimate"] > 0) in (("up", False), ("down", True))


def _sentence(claim: Claim, record: Mapping[str, Any], alpha: float, n_all: int, held_back: bool) -> str:
    """The claim in plain words with its numbers; ends in the verdict."""
    verdict = record["verdict"]
    if record["estimate"] is None:
        return f"No seed has a value for {claim.quantity} (regime {record['regime']}): inconclusive."
    estimate, number = record["estimate"], _format(record)
    evidence = _evidence(record, number, alpha, n_all)
    notes = _notes(record, number, alpha, held_back)
    if claim.estimand == "stability":
        opening = {
            "supported": "Seeds agree on the order of the arms by",
            "not_supported": "Seeds do not agree on the order of the arms by",
            "inconclusive": "It is open whether seeds agree on the order of the arms by",
        }[verdict]
        text = f"{opening} {claim.quantity}: mean Kendall tau {number(estimate)} ({evidence}){notes}"
    elif _significant(record, alpha) and verdict != "inconclusive":
        verb = "raised" if estimate > 0 else "lowered"
        contrary = ", against the claim" if verdict == "not_supported" else ""
        text = f"{claim.cause} {verb} {claim.quantity} by {number(abs(estimate))} ({evidence}){contrary}{notes}"
    elif verdict == "not_supported":
        text = (
            f"{claim.cause} did not change {claim.quantity} by {_trim(record['margin'])} or more "
            f"(estimate {_signed(estimate, number)}, {evidence}){notes}"
        )
    else:
        signed = _signed(estimate, number)
        text = f"It is open whether {claim.cause} changed {claim.quantity} ({signed}, {evidence}){notes}"
    return f"{text[0].upper()}{text[1:]}: {verdict.replace('_', ' ')}."


def _evidence(record: Mapping[str, Any], number: Any, alpha: float, n_all: int) -> str:
    """What stands in the brackets: interval, seeds, p, regime."""
    n = record["n_seeds"]
    seeds = f"{n} seed{'s' * (n != 1)}" if n == n_all else f"{n} of {n_all} seeds have a value"
    parts = [seeds]
    if record["ci_low"] is not None:
        parts.insert(0, f"{100 * (1 - alpha):g} % CI {number(record['ci_low'])} to {number(record['ci_high'])}")
    if record["p_adjusted"] is not None:
        parts.append(f"adjusted p {_p(record['p_adjusted'])}")
    if record["verdict"] == "not_supported" and record["tost_p"] is not None and record["tost_p"] <= alpha:
        parts.append(f"equivalence p {_p(record['tost_p'])}")
    return ", ".join([*parts, f"regime {record['regime']}"])


def _notes(record: Mapping[str, Any], number: Any, alpha: float, held_back: bool) -> str:
    n, notes = record["n_seeds"], []
    if n < 2:
        notes.append("one seed carries no interval")
    elif record["verdict"] == "inconclusive" and statistics.smallest_p(n) > alpha:
        notes.append(
            f"with {n} seeds no p is below {_number(statistics.smallest_p(n))}, so that nothing can be supported"
        )
    elif held_back:
        notes.append("it would be supported if the claims that are tested before it were")
    elif record["verdict"] == "inconclusive" and record["mde"] is not None:
        notes.append(f"a single test of {n} seeds finds an effect of {number(record['mde'])} with 80 % power")
    if record["verdict"] == "supported" and _within_margin(record):
        notes.append(f"though by less than the margin of {_trim(record['margin'])}")
    return "".join(f"; {note}" for note in notes)


def _within_margin(claim: Mapping[str, Any]) -> bool:
    low, high, margin = claim["ci_low"], claim["ci_high"], claim["margin"]
    return None not in (low, high, margin) and bool(-margin < low and high < margin)


def _format(record: Mapping[str, Any]) -> Any:
    """Numbers of one sentence share their decimals: down to the first digit of the interval's half-width, 3 to 6."""
    low, high = record["ci_low"], record["ci_high"]
    scale = (high - low) / 2 if low is not None and high > low else abs(record["estimate"])
    decimals = 3 if scale == 0 else int(np.clip(-np.floor(np.log10(scale)), 3, 6))
    return lambda value: _number(value, decimals)


def _number(value: float, decimals: int = 3) -> str:
    """`.040`, `-.2`, `12.300`: fixed decimals without the leading zero."""
    text = f"{value:.{decimals}f}"
    text = text[1:] if text.startswith("-") and float(text) == 0 else text
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _trim(value: float) -> str:
    """`.01`, `2.5`: as few digits as say it."""
    text = f"{value:g}"
    return text[1:] if text.startswith("0.") else text


def _signed(value: float, number: Any) -> str:
    return f"+{number(value)}" if value > 0 else str(number(value))


def _p(value: float) -> str:
    return "< .001" if value < 0.0005 else f"= {_number(value)}"


# -- across runs --------------------------------------------------------------------------------------------------


def flips(claims_by_regime: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """How each claim fares across regimes.

    `status` is `flips` where decided verdicts disagree (supported in one regime and not supported, or supported with
    the other sign, in another), `open` where they do not but a regime is inconclusive or lacks the claim, else
    `holds`. Losing power is thereby not called a flip. `within_margin` says that every interval lies inside the claim's
    margin, so that a flip is one of significance, not of size.

    Args:
        claims_by_regime: regime -> what `judge` returned for it.

    Returns:
        Per claim, in order of first appearance: name, verdicts (regime -> verdict), status, within_margin, note (a
        clause for the reader, empty where it holds).
    """
    rows = []
    for name, found in _by_name(claims_by_regime).items():
        verdicts = {regime: claim["verdict"] for regime, claim in found.items()}
        outcomes = {_outcome(claim) for claim in found.values()} - {"inconclusive"}
        whole = len(found) == len(claims_by_regime) and "inconclusive" not in verdicts.values()
        status = "flips" if len(outcomes) > 1 else "holds" if whole else "open"
        words = ", ".join(f"{_outcome(claim).replace('_', ' ')} under {regime}" for regime, claim in found.items())
        small = all(_within_margin(claim) for claim in found.values())
        size = "; every interval lies within the margin" if small else ""
        notes = {"flips": f"the verdict flips: {words}{size}", "open": f"not decided everywhere: {words}", "holds": ""}
        rows.append(
            {"name": name, "verdicts": verdicts, "status": status, "within_margin": small, "note": notes[status]}
        )
    return rows


def sign_changes(claims_by_user_model: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Which claims change sign between user models.

    Args:
        claims_by_user_model: user model -> what `judge` returned under it.

    Returns:
        Per claim: name, estimates (user model -> estimate or None), changes_sign (estimates of both signs), clear
        (intervals entirely on both sides of 0, so that noise is no excuse), note (empty where the sign holds).
    """
    rows = []
    for name, found in _by_name(claims_by_user_model).items():
        estimates = {model: claim["estimate"] for model, claim in found.items()}
        known = [value for value in estimates.values() if value is not None]
        changes = any(value > 0 for value in known) and any(value < 0 for value in known)
        lows = [c["ci_low"] for c in found.values() if c["ci_low"] is not None]
        highs = [c["ci_high"] for c in found.values() if c["ci_high"] is not None]
        clear = any(low > 0 for low in lows) and any(high < 0 for high in highs)
        words = ", ".join(f"{_signed(v, _number)} under {model}" for model, v in estimates.items() if v is not None)
        note = f"the sign changes between user models{'' if clear else ' (within noise)'}: {words}" if changes else ""
        rows.append({"name": name, "estimates": estimates, "changes_sign": changes, "clear": clear, "note": note})
    return rows


def _by_name(claims_by_key: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for key, claims in claims_by_key.items():
        for claim in claims:
            found.setdefault(claim["name"], {})[key] = claim
    return found


def _outcome(claim: Mapping[str, Any]) -> str:
    if claim["verdict"] != "supported":
        return str(claim["verdict"])
    return f"supported ({'up' if claim['estimate'] > 0 else 'down'})"
