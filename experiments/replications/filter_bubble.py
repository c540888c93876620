"""Filter bubbles: Nguyen, Hui, Harper, Terveen and Konstan 2014, "Exploring the filter bubble", and Aridor, Goncalves
and Sikdar 2020, "Deconstructing the filter bubble".

Signs, not figures: what a user consumes becomes narrower even without recommendations; who takes recommendations
narrows less; but takers become more like each other. Users are the default choice model, whose tastes drift towards
what they consume; the papers' own data (MovieLens tag genome) and model (Gaussian beliefs) are not rebuilt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.replications.targets import above, below, consumed, interval, write_targets
from experiments.running import course
from experiments.running.course import Run
from experiments.running.design import Design
from simenv.errors import ConfigError
from simenv.metrics.formulas import ild
from simenv.metrics.frame import read_metrics, series
from simenv.metrics.reference import pack_genres
from simenv.numeric import DoubleArray

WINDOW = 5


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """Recommended users and unaided ones, over two windows at least."""

    def __post_init__(self) -> None:
        if ("none", "none") not in self.design.arms:
            raise ConfigError("arms: expected `none` among arms or references, the users who choose unaided")
        if self.design.rounds < 2 * WINDOW:
            raise ConfigError(f"rounds={self.design.rounds}: expected at least {2 * WINDOW}, two windows of {WINDOW}")


def play(settings: Settings, run: Run) -> None:
    """Recommended and unaided users."""
    run.play(settings.designs())


# -- scoring ------------------------------------------------------------------------------------------------------


def score(settings: Settings, run: Run) -> None:
    """The papers' signs; also writes `tables/breadth.csv`, breadth of consumption by arm and window."""
    metrics, design = read_metrics(run.path), settings.design
    takers = [arm for arm, mode in design.arms if mode == "loop"]
    breadth = {arm: _breadth(run.path, design, arm) for arm in ["none", *takers]}
    rows = []
    for arm, values in breadth.items():
        for window in range(values.shape[1]):
            ours = interval(values[:, window])
            row = {"arm": arm, "window": window, "rounds": f"{window * WINDOW}-{(window + 1) * WINDOW - 1}"}
            rows.append(row | {"value": ours.estimate, "ci_low": ours.low, "ci_high": ours.high})
    run.table("breadth", rows)
    change = {arm: values[:, -1] - values[:, 0] for arm, values in breadth.items()}
    alike = {arm: series(metrics, arm, "none" if arm == "none" else "loop", "jaccard")[:, -1] for arm in breadth}
    targets = [below("narrows-unaided", "consumption narrows without recommendations: < 0", change["none"])]
    targets += [
        above(f"narrows-less:{arm}", "takers narrow less than unaided users: > 0", change[arm] - change["none"])
        for arm in takers
    ]
    targets += [
        above(f"more-alike:{arm}", "takers are more alike (Jaccard, last rounds): > 0", alike[arm] - alike["none"])
        for arm in takers
    ]
    write_targets(run, targets)


def _breadth(folder: Path, design: Design, arm: str) -> DoubleArray:
    """Mean pairwise genre distance of what a user clicked in a window of rounds, (seeds, windows)."""
    import polars as pl

    items = pl.read_parquet(folder / "items.parquet", glob=False)
    n_windows = design.rounds // WINDOW
    values = np.empty((design.n_seeds, n_windows))
    for row, seed in enumerate(design.seeds):
        genres = items.filter(pl.col("seed") == seed).sort("item")["genres"].str.split("|").to_list()
        names = sorted({name for each in genres for name in each})
        bits = pack_genres(np.array([[name in each for name in names] for each in genres]))
        clicks = consumed(folder, seed, arm, "none" if arm == "none" else "loop")
        for window in range(n_windows):
            seen = clicks.take(clicks.round // WINDOW == window)
            values[row, window] = ild(seen.user, seen.item, bits)
    return values


# -- figure -------------------------------------------------------------------------------------------------------


def plot(settings: Settings, run: Run) -> None:
    """Breadth and likeness over time."""
    import polars as pl

    from simenv.figures.style import (
        LABEL,
        arm_styles,
        draw_line,
        key_line,
        legend_below,
        new_figure,
        round_axis,
        sort_arms,
    )

    metrics, table = read_metrics(run.path), run.read_table("breadth")
    arms = sort_arms(table["arm"].unique().to_list())
    styles = arm_styles(arms)
    figure, grid = new_figure(1, 2, (11.0, 4.4))
    left, right = grid[0]
    for place, arm in enumerate(arms):
        color, marker = styles[arm].color, styles[arm].marker
        rows = table.filter(pl.col("arm") == arm).sort("window")
        value, low, high = (rows[name].cast(pl.Float64).to_numpy() for name in ("value", "ci_low", "ci_high"))
        x = rows["window"].to_numpy() + 0.06 * (place - len(arms) / 2)
        left.errorbar(x, value, yerr=[value - low, high - value], color=color, marker=marker, linewidth=2, capsize=3)
        alike = series(metrics, arm, "none" if arm == "none" else "loop", "jaccard")
        draw_line(right, np.arange(alike.shape[1]), alike, color=color, marker=marker)
    labels = table.filter(pl.col("arm") == arms[0]).sort("window")["rounds"].to_list()
    left.set_xticks(range(len(labels)), labels)
    left.set_xlabel("rounds", fontsize=LABEL)
    left.set_ylabel("genre distance within what a user clicked", fontsize=LABEL)
    round_axis(right, np.arange(settings.design.rounds))
    right.set_xlabel("round", fontsize=LABEL)
    right.set_ylabel("overlap between users (last 5 rounds)", fontsize=LABEL)
    names = {"none": "no recommendations"}
    legend_below(
        figure, [key_line(names.get(arm, arm), color=styles[arm].color, marker=styles[arm].marker) for arm in arms]
    )
    run.figure(
        "replication",
        figure,
        title="Filter bubbles: breadth of consumption, and likeness between users",
        caption=(
            "Left: mean pairwise genre distance of what a user clicked in five rounds; lower is narrower. Right: mean "
            "Jaccard overlap of the items pairs of users clicked. Means over seeds with 95 % intervals."
        ),
    )
