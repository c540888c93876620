"""debias: what do popularity penalties, exploration and calibrated re-ranking buy, and what do they cost?

One base recommender plain and under each remedy at several strengths, all in the loop with a frozen control. The answer
is the trade-off of utility against the Gini coefficient of exposure over the last rounds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.bias_loop import design_from
from experiments.groups import group_gaps
from experiments.replications.targets import (
    Target,
    Values,
    amplification,
    config_of,
    interval,
    read_metrics,
    replicate,
    save_figure,
    series,
    write_table,
)
from experiments.running.design import REFERENCE_ARMS, Design
from simenv.conclusions.claims import Claim, judge
from simenv.conclusions.standard import MARGINS
from simenv.errors import ConfigError

LAST_ROUNDS = 5
REMEDIES = {  # key of the configuration -> (arms' first name, class, option)
    "penalties": ("penalty", "recommenders.rerank.PopularityPenalty", "strength"),
    "epsilons": ("epsilon", "recommenders.rerank.EpsilonGreedy", "epsilon"),
    "calibrations": ("calibrated", "recommenders.rerank.Calibrated", "strength"),
}
LABEL_PLACE = {"penalty": (-30, 4), "epsilon": (4, -16), "calibrated": (8, 2)}  # points from the marker
METRICS = ("true_utility", "gini", "regret", "ctr", "arp_pct", "coverage", "tail_share", "genre_kl", "jaccard")


def run(config: Mapping[str, Any]) -> Path | None:
    """Play the base and its remedies and write the run directory."""
    return replicate(config, {"": design(config)}, score, plot)


def design(config: Mapping[str, Any]) -> Design:
    """The base, one arm per remedy and strength, and the references, all in the modes asked for."""
    base = config["base"]
    if base not in config["recommenders"]:
        raise ConfigError(
            f"base={base}: no such recommender; expected one of {', '.join(sorted(config['recommenders']))}"
        )
    recommenders = dict(config["recommenders"])
    names = [base]
    for key, (name, target, option) in REMEDIES.items():
        for strength in config[key]:
            arm = f"{name}-{strength:g}"
            recommenders[arm] = {"_target_": target, option: strength, "base": config["recommenders"][base]}
            names.append(arm)
    plain = design_from({**config, "arms": [base]})
    arms = [(arm, mode) for arm in names for mode in config["modes"]]
    arms += [(arm, REFERENCE_ARMS[arm]) for arm in config["references"]]
    return replace(plain, recommenders=recommenders, arms=tuple(arms))


# -- scoring ------------------------------------------------------------------------------------------------------


def score(folder: Path) -> list[Target]:
    """Writes `tables/tradeoff.csv`, `tables/group_gap.csv` and `claims.json`; there is no published target."""
    config, metrics = config_of(folder), read_metrics(folder)
    base, modes = config["base"], config["modes"]
    arms = [arm for arm, mode in design(config).arms if mode == "loop"]
    plain = {metric: _late(metrics, base, metric) for metric in METRICS}
    rows: list[dict[str, Any]] = []
    for arm in arms:
        family, strength = _family(arm, base)
        for metric in METRICS:
            values = _late(metrics, arm, metric)
            row: dict[str, Any] = {"arm": arm, "family": family, "strength": strength, "metric": metric}
            rows.append(row | _columns("", values) | _columns("versus_base_", values - plain[metric]))
            if "frozen" in modes and arm not in REFERENCE_ARMS:
                amp = amplification(metrics, arm, metric)
                ours = _columns("", amp) | _columns("versus_base_", amp - amplification(metrics, base, metric))
                rows.append(row | {"metric": f"{metric}:amp"} | ours)
    write_table(folder / "tables" / "tradeoff.csv", rows, {"strength": "Float64"})
    gaps = [row for metric in ("true_utility", "ctr") for row in group_gaps(metrics, metric, LAST_ROUNDS)]
    write_table(folder / "tables" / "group_gap.csv", gaps)
    stated = claims([arm for arm in arms if arm != base and arm not in REFERENCE_ARMS], base)
    primary = config["primary"]
    if primary is not None:
        stated = [replace(claim, primary=claim.name == primary) for claim in stated]
        if not any(claim.primary for claim in stated):
            raise ConfigError(f"primary={primary}: expected null or one of {', '.join(c.name for c in stated)}")
    judged = judge(metrics, stated, regime=config["repeat"], alpha=config["alpha"])
    (folder / "claims.json").write_text(json.dumps(judged, indent=1) + "\n")
    return []


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
            margin=MARGINS[metric],
        )
        for arm in arms
        for kind, metric, quantity, direction in kinds
    ]


def _columns(start: str, values: Values) -> dict[str, float]:
    ours = interval(values)
    first = "value" if not start else start.rstrip("_")
    return {first: ours.estimate, f"{start}ci_low": ours.low, f"{start}ci_high": ours.high}


def _family(arm: str, base: str) -> tuple[str, float | None]:
    """Which remedy, at which strength; the base is each remedy at strength 0."""
    name, _, strength = arm.rpartition("-")
    if arm != base and name in {first for first, _, _ in REMEDIES.values()}:
        return name, float(strength)
    return ("base", 0.0) if arm == base else ("reference", None)


def _late(metrics: Any, arm: str, metric: str) -> Values:
    """Mean over the last rounds of the loop, (seeds,)."""
    return np.asarray(np.nanmean(series(metrics, arm, "loop", metric)[:, -LAST_ROUNDS:], axis=1))


# -- figure -------------------------------------------------------------------------------------------------------


def plot(folder: Path) -> Path:
    """The trade-off curve, one line per remedy from the plain base on; and the page."""
    from simenv.report import build

    _draw(folder)
    return build(folder)


def _draw(folder: Path) -> None:
    import polars as pl

    from simenv.figures.style import INK, LABEL, arm_styles, key_line, legend_below, new_figure

    table = pl.read_csv(folder / "tables" / "tradeoff.csv")
    base = config_of(folder)["base"]
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
    save_figure(
        folder,
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
