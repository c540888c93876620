"""debias: what do popularity penalties, exploration and calibrated re-ranking buy, and what do they cost?

One base recommender plain and under each remedy at several strengths, all in the loop with a frozen control. The answer
is the trade-off of utility against the Gini coefficient of exposure over the last rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from experiments.replications.targets import interval
from experiments.running import course
from experiments.running.course import Claims, Run, warn_if_undecidable
from experiments.running.design import REFERENCE_ARMS, Design, Spec
from simenv.conclusions.claims import Claim, judge
from simenv.conclusions.groups import group_gaps
from simenv.errors import ConfigError
from simenv.metrics.frame import amplification, read_metrics, series
from simenv.metrics.table import BY_NAME
from simenv.numeric import DoubleArray

LAST_ROUNDS = 5
REMEDIES = {  # key of the configuration -> (arms' first name, class, option)
    "penalties": ("penalty", "recommenders.rerank.PopularityPenalty", "strength"),
    "epsilons": ("epsilon", "recommenders.rerank.EpsilonGreedy", "epsilon"),
    "calibrations": ("calibrated", "recommenders.rerank.Calibrated", "strength"),
}
LABEL_PLACE = {"penalty": (-30, 4), "epsilon": (4, -16), "calibrated": (8, 2)}  # points from the marker
METRICS = ("true_utility", "gini", "regret", "ctr", "arp_pct", "coverage", "tail_share", "genre_kl", "jaccard")


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """The base and its remedies, and the claim declared primary."""

    base: str
    penalties: Sequence[float]
    epsilons: Sequence[float]
    calibrations: Sequence[float]
    primary: str | None
    alpha: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """The settings that a configuration describes; its arms are the base alone."""
        base = config["base"]
        if base not in config["recommenders"]:
            known = ", ".join(sorted(config["recommenders"]))
            raise ConfigError(f"base={base}: no such recommender; expected one of {known}")
        return super().of({**config, "arms": [base]})

    def designs(self) -> dict[str, Design]:
        """The base, one arm per remedy and strength, and the references, all in the modes asked for."""
        design = self.design
        recommenders = dict(design.recommenders)
        names = []
        for key, (name, target, option) in REMEDIES.items():
            for strength in getattr(self, key):
                arm = f"{name}-{strength:g}"
                recommenders[arm] = {"_target_": target, option: strength, "base": recommenders[self.base]}
                names.append(arm)
        own = [mode for arm, mode in design.arms if arm == self.base]
        others = tuple((arm, mode) for arm in names for mode in own)
        arms = design.arms[: len(own)] + others + design.arms[len(own) :]
        return {"": replace(design, recommenders=recommenders, arms=arms)}

    def recommenders(self) -> dict[str, Spec]:
        """The base and the references; the remedies follow from the strengths."""
        return self.design.used_recommenders()


def play(settings: Settings, run: Run) -> None:
    """The base and its remedies."""
    warn_if_undecidable(settings.design, settings.alpha)
    run.play(settings.designs())


# -- scoring ------------------------------------------------------------------------------------------------------


def score(settings: Settings, run: Run) -> Claims:
    """Each remedy against the base; also writes `tables/tradeoff.csv` and `tables/group_gap.csv`."""
    base, metrics = settings.base, read_metrics(run.path)
    played = settings.designs()[""].arms
    arms = [arm for arm, mode in played if mode == "loop"]
    plain = {metric: _late(metrics, base, metric) for metric in METRICS}
    rows: list[dict[str, Any]] = []
    for arm in arms:
        family, strength = _family(arm, base)
        for metric in METRICS:
            values = _late(metrics, arm, metric)
            row: dict[str, Any] = {"arm": arm, "family": family, "strength": strength, "metric": metric}
            rows.append(row | _columns("", values) | _columns("versus_base_", values - plain[metric]))
            if (arm, "frozen") in played and arm not in REFERENCE_ARMS:
                amp = amplification(metrics, arm, metric)
                ours = _columns("", amp) | _columns("versus_base_", amp - amplification(metrics, base, metric))
                rows.append(row | {"metric": f"{metric}:amp"} | ours)
    run.table("tradeoff", rows, {"strength": "Float64"})
    gaps = [row for metric in ("true_utility", "ctr") for row in group_gaps(metrics, metric, LAST_ROUNDS)]
    run.table("group_gap", gaps)
    stated = claims([arm for arm in arms if arm != base and arm not in REFERENCE_ARMS], base)
    primary = settings.primary
    if primary is not None:
        stated = [replace(claim, primary=claim.name == primary) for claim in stated]
        if not any(claim.primary for claim in stated):
            raise ConfigError(f"primary={primary}: expected null or one of {', '.join(c.name for c in stated)}")
    return judge(metrics, stated, regime=settings.design.repeat, alpha=settings.alpha)


def claims(arms: list[str], base: str) -> list[Claim]:
    """Each remedy against the plain base at the last round: exposure becomes more equal; utility changes."""
    kinds: tuple[tuple[str, str, str, Literal["up", "down"] | None], ...] = (
        ("equality", "gini", "the Gini of exposure", "down"),
        ("price", "true_utility", "the true utility of slates", None),
    )
    return [
        Claim(
            name=f"{kind}:{arm}:{metric}:{base}",
            arm=arm,
            metric=metric,
            cause=f"{arm} instead of plain {base}",
            quantity=quantity,
            estimand="level",
            control_arm=base,
            control_mode="loop",
            direction=direction,
            margin=BY_NAME[metric].margin,
        )
        for arm in arms
        for kind, metric, quantity, direction in kinds
    ]


def _columns(start: str, values: DoubleArray) -> dict[str, float]:
    ours = interval(values)
    first = "value" if not start else start.rstrip("_")
    return {first: ours.estimate, f"{start}ci_low": ours.low, f"{start}ci_high": ours.high}


def _family(arm: str, base: str) -> tuple[str, float | None]:
    """Which remedy, at which strength; the base is each remedy at strength 0."""
    name, _, strength = arm.rpartition("-")
    if arm != base and name in {first for first, _, _ in REMEDIES.values()}:
        return name, float(strength)
    return ("base", 0.0) if arm == base else ("reference", None)


def _late(metrics: Any, arm: str, metric: str) -> DoubleArray:
    """Mean over the last rounds of the loop, (seeds,)."""
    return np.asarray(np.nanmean(series(metrics, arm, "loop", metric)[:, -LAST_ROUNDS:], axis=1))


# -- figure -------------------------------------------------------------------------------------------------------


def plot(settings: Settings, run: Run) -> None:
    """The trade-off curve, one line per remedy from the plain base on."""
    import polars as pl

    from simenv.figures.style import INK, LABEL, arm_styles, key_line, legend_below, new_figure

    table, base = run.read_table("tradeoff"), settings.base
    points: dict[str, list[tuple[float, tuple[float, float, float], tuple[float, float, float]]]] = {}
    for arm in table["arm"].unique(maintain_order=True):
        rows = {row["metric"]: row for row in table.filter(pl.col("arm") == arm).iter_rows(named=True)}
        x, y = (tuple(_triple(rows[metric])) for metric in ("gini", "true_utility"))
        family = rows["gini"]["family"] if rows["gini"]["family"] != "reference" else arm
        points.setdefault(family, []).append((rows["gini"]["strength"] or 0.0, x, y))  # type: ignore[arg-type]
    start = points.pop("base")[0]
    references = {arm: points.pop(arm)[0] for arm in ("random", "oracle") if arm in points}  # far off the curves
    styles = arm_styles(list(points))
    figure, grid = new_figure(1, 1, (9.5, 6.0))
    panel = grid[0, 0]
    entries = [key_line(f"plain {base}", color=INK, marker="*")]
    for family, found in points.items():
        style, curve = styles[family], sorted(found)
        way = [start, *curve]
        panel.plot([p[1][0] for p in way], [p[2][0] for p in way], color=style.color, linewidth=1.5, zorder=2)
        for strength, x, y in curve:
            _cross(panel, x, y, style.color, style.marker)
            place = {"textcoords": "offset points", "xytext": LABEL_PLACE[family], "color": style.color}
            panel.annotate(f"{strength:g}", (x[0], y[0]), **place)
        entries.append(key_line(family, color=style.color, marker=style.marker))
    _cross(panel, start[1], start[2], INK, "*")
    panel.set_xlabel(f"Gini of exposure, last {LAST_ROUNDS} rounds  (more unequal →)", fontsize=LABEL)
    panel.set_ylabel("true utility of what was shown  (better ↑)", fontsize=LABEL)
    legend_below(figure, entries)
    run.figure(
        "tradeoff_curve",
        figure,
        title="What a more equal exposure costs",
        caption=(
            "Each remedy from the plain recommender outwards; numbers are its strengths. Means over seeds of the last "
            f"{LAST_ROUNDS} rounds, bars are 95 % intervals. Up and to the left is better on both."
            + "".join(f" {a.title()}: Gini {x[0]:.2f}, utility {y[0]:.3f}." for a, (_, x, y) in references.items())
        ),
    )


def _triple(row: Mapping[str, Any]) -> tuple[float, float, float]:
    value = float(row["value"])
    low, high = row["ci_low"], row["ci_high"]
    return value, value if low is None else float(low), value if high is None else float(high)


def _cross(panel: Any, x: tuple[float, ...], y: tuple[float, ...], color: str, marker: str | None) -> None:
    panel.errorbar(
        x[0],
        y[0],
        xerr=[[x[0] - x[1]], [x[2] - x[0]]],
        yerr=[[y[0] - y[1]], [y[2] - y[0]]],
        color=color,
        marker=marker,
        markersize=8,
        elinewidth=1,
        zorder=3,
    )
