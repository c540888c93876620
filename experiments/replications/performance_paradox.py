"""The performance paradox (Zhang, Adomavicius, Gupta and Ketter 2020, "Consumption and performance: understanding
longitudinal dynamics of recommender systems via an agent-based simulation framework"): the more users rely on
recommendations, the less diverse later consumption is, and the slower the recommender's accuracy improves.

Every user consumes and rates one item a round, out of the recommended list with probability `adoption` and otherwise
out of what comes the user's way unaided; a rating predictor is retrained after each round. Its accuracy is the RMSE
over all pairs of users and items against the true expected ratings, which only a synthetic world knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bias_loop import design_from
from experiments.replications.targets import (
    Target,
    Values,
    above,
    consumed,
    design_of,
    interval,
    read_metrics,
    replicate,
    save_figure,
    series,
    write_table,
)
from experiments.running.design import Design
from simenv.errors import ConfigError
from simenv.metrics.formulas import gini
from simenv.platform import Mode, Platform
from simenv.slates import Scores

LAST_ROUNDS = 5


def run(config: Mapping[str, Any]) -> Path | None:
    """Play the adoption levels and write the run directory."""
    design = design_from(config)
    if len(adoptions(design)) < 2:
        raise ConfigError(
            f"modes={list(config['modes'])}: expected at least two adoption levels, as in loop@0 and loop"
        )
    return replicate(config, {"": design}, score, plot)


def adoptions(design: Design) -> list[tuple[float, str]]:
    """(adoption, mode) of the first arm's loops, ascending."""
    first = design.arms[0][0]
    modes = [mode for arm, mode in design.arms if arm == first and Mode.parse(mode).feedback == "loop"]
    return sorted((Mode.parse(mode).adoption, mode) for mode in modes)


def probe(platform: Platform) -> dict[str, float]:
    """RMSE of the recommender's scores against the true expected ratings, over all pairs."""
    tastes, recommender = platform.dataset.tastes, platform.recommender
    if tastes is None or recommender is None or not isinstance(recommender, Scores):
        raise ConfigError("performance_paradox: expected a rating predictor in a world with known tastes")
    squares, users = 0.0, np.arange(platform.dataset.n_users)
    scale = platform.dataset.rating_scale
    for rows in np.array_split(users, max(1, len(users) // 256)):
        truth = np.clip(tastes.rating.scores(rows), scale.low, scale.high)
        squares += float(np.sum((recommender.scores(rows) - truth) ** 2, dtype=np.float64))
    return {"rmse": float(np.sqrt(squares / (len(users) * platform.dataset.n_items)))}


# -- scoring ------------------------------------------------------------------------------------------------------


def score(folder: Path) -> list[Target]:
    """Monotone in adoption? Also writes `tables/adoption.csv`, both measures by level."""
    design = design_of(folder)
    arm, levels = design.arms[0][0], adoptions(design)
    metrics = read_metrics(folder)
    gain: dict[float, Values] = {}
    equal: dict[float, Values] = {}
    rows = []
    for level, mode in levels:
        rmse = series(metrics, arm, mode, "rmse")
        gain[level] = rmse[:, 0] - rmse[:, -1]
        equal[level] = np.array([_equality(folder, design, seed, arm, mode) for seed in design.seeds])
        for measure, values in (("accuracy gain (RMSE)", gain[level]), ("consumption diversity", equal[level])):
            ours = interval(values)
            row = {"adoption": level, "measure": measure, "value": ours.estimate}
            rows.append(row | {"ci_low": ours.low, "ci_high": ours.high})
    write_table(folder / "tables" / "adoption.csv", rows)
    steps = [(low, high) for (low, _), (high, _) in pairwise(levels)]
    targets = [
        above(
            f"diversity:{low:g}-{high:g}",
            f"consumption is more diverse (1 - Gini of the last {LAST_ROUNDS} rounds) at the lower adoption: > 0",
            equal[low] - equal[high],
        )
        for low, high in steps
    ]
    return targets + [
        above(
            f"accuracy:{low:g}-{high:g}",
            "the recommender's RMSE improves more at the lower adoption: > 0",
            gain[low] - gain[high],
        )
        for low, high in steps
    ]


def _equality(folder: Path, design: Design, seed: int, arm: str, mode: str) -> float:
    """1 - Gini of the items consumed in the last rounds."""
    import polars as pl

    n_items = int(pl.read_parquet(folder / "items.parquet", columns=["item"])["item"].max()) + 1  # type: ignore[arg-type]
    events = consumed(folder, seed, arm, mode)
    late = events.item[events.round >= design.rounds - LAST_ROUNDS]
    return 1.0 - gini(np.bincount(late, minlength=n_items))


# -- figure -------------------------------------------------------------------------------------------------------


def plot(folder: Path) -> Path:
    """RMSE over the rounds by adoption, and both measures against adoption; and the page."""
    import polars as pl

    from simenv.figures.style import INK, LABEL, draw_line, label_ends, new_figure, round_axis
    from simenv.report import build

    design = design_of(folder)
    arm, levels = design.arms[0][0], adoptions(design)
    metrics, table = read_metrics(folder), pl.read_csv(folder / "tables" / "adoption.csv")
    shades = {
        level: str(round(0.65 * (1 - place / max(len(levels) - 1, 1)), 2)) for place, (level, _) in enumerate(levels)
    }
    figure, grid = new_figure(1, 2, (11.0, 4.4))
    left, right = grid[0]
    ends = []
    for level, mode in levels:
        rmse = series(metrics, arm, mode, "rmse")
        mean = draw_line(left, np.arange(rmse.shape[1]), rmse, color=shades[level])
        ends.append((float(mean[-1]), f"adoption {level:g}", shades[level]))
    round_axis(left, np.arange(design.rounds))
    left.set_xlabel("round", fontsize=LABEL)
    left.set_ylabel("RMSE over all pairs", fontsize=LABEL)
    label_ends(left, ends)
    rows = table.filter(pl.col("measure") == "consumption diversity").sort("adoption")
    value, low, high = (rows[name].cast(pl.Float64).to_numpy() for name in ("value", "ci_low", "ci_high"))
    right.errorbar(
        rows["adoption"], value, yerr=[value - low, high - value], color=INK, marker="o", capsize=4, linewidth=2
    )
    right.set_xlabel("adoption", fontsize=LABEL)
    right.set_ylabel(f"1 - Gini of consumption, last {LAST_ROUNDS} rounds", fontsize=LABEL)
    save_figure(
        folder,
        "replication",
        figure,
        title="The performance paradox: reliance on recommendations against accuracy and diversity",
        caption=(
            "Left: error of the predicted ratings over all users and items; the paradox is that it falls more slowly "
            "the more users rely on recommendations (darker = more). Right: how evenly consumption is spread over "
            "items in the last rounds. Means over seeds with 95 % intervals."
        ),
    )
    return build(folder)
