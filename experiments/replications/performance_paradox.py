"""The performance paradox (Zhang, Adomavicius, Gupta and Ketter 2020, "Consumption and performance: understanding
longitudinal dynamics of recommender systems via an agent-based simulation framework"): the more users rely on
recommendations, the less diverse later consumption is, and the slower the recommender's accuracy improves.

Every user consumes and rates one item a round, out of the recommended list with probability `adoption` and otherwise
out of what comes the user's way unaided; a rating predictor is retrained after each round. Its accuracy is the RMSE
over all pairs of users and items against the true expected ratings, which only a synthetic world knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from experiments.replications.targets import above, consumed, interval, write_targets
from experiments.running import course
from experiments.running.course import Run
from experiments.running.design import Design
from simenv.errors import ConfigError
from simenv.metrics.formulas import gini
from simenv.metrics.frame import read_metrics, series
from simenv.numeric import DoubleArray
from simenv.platform import Mode, Platform
from simenv.slates import Scores

LAST_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """One arm at several levels of adoption."""

    def __post_init__(self) -> None:
        if len(adoptions(self.design)) < 2:
            modes = [mode for _, mode in self.design.arms]
            raise ConfigError(f"modes={modes}: expected at least two adoption levels, as in loop@0 and loop")


def play(settings: Settings, run: Run) -> None:
    """The adoption levels."""
    run.play(settings.designs())


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


def score(settings: Settings, run: Run) -> None:
    """Monotone in adoption? Also writes `tables/adoption.csv`, both measures by level."""
    design = settings.design
    arm, levels = design.arms[0][0], adoptions(design)
    metrics = read_metrics(run.path)
    gain: dict[float, DoubleArray] = {}
    equal: dict[float, DoubleArray] = {}
    rows = []
    for level, mode in levels:
        rmse = series(metrics, arm, mode, "rmse")
        gain[level] = rmse[:, 0] - rmse[:, -1]
        equal[level] = np.array([_equality(run.path, design, seed, arm, mode) for seed in design.seeds])
        for measure, values in (("accuracy gain (RMSE)", gain[level]), ("consumption diversity", equal[level])):
            ours = interval(values)
            row = {"adoption": level, "measure": measure, "value": ours.estimate}
            rows.append(row | {"ci_low": ours.low, "ci_high": ours.high})
    run.table("adoption", rows)
    steps = [(low, high) for (low, _), (high, _) in pairwise(levels)]
    targets = [
        above(
            f"diversity:{low:g}-{high:g}",
            f"consumption is more diverse (1 - Gini of the last {LAST_ROUNDS} rounds) at the lower adoption: > 0",
            equal[low] - equal[high],
        )
        for low, high in steps
    ]
    targets += [
        above(
            f"accuracy:{low:g}-{high:g}",
            "the recommender's RMSE improves more at the lower adoption: > 0",
            gain[low] - gain[high],
        )
        for low, high in steps
    ]
    write_targets(run, targets)


def _equality(folder: Path, design: Design, seed: int, arm: str, mode: str) -> float:
    """1 - Gini of the items consumed in the last rounds."""
    import polars as pl

    n_items = int(pl.read_parquet(folder / "items.parquet", glob=False, columns=["item"])["item"].max()) + 1  # type: ignore[arg-type]
    events = consumed(folder, seed, arm, mode)
    late = events.item[events.round >= design.rounds - LAST_ROUNDS]
    return 1.0 - gini(np.bincount(late, minlength=n_items))


# -- figure -------------------------------------------------------------------------------------------------------


def plot(settings: Settings, run: Run) -> None:
    """RMSE over the rounds by adoption, and both measures against adoption."""
    import polars as pl

    from simenv.figures.style import INK, LABEL, draw_line, label_ends, new_figure, round_axis

    design = settings.design
    arm, levels = design.arms[0][0], adoptions(design)
    metrics, table = read_metrics(run.path), run.read_table("adoption")
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
    run.figure(
        "replication",
        figure,
        title="The performance paradox: reliance on recommendations against accuracy and diversity",
        caption=(
            "Left: error of the predicted ratings over all users and items; the paradox is that it falls more slowly "
            "the more users rely on recommendations (darker = more). Right: how evenly consumption is spread over "
            "items in the last rounds. Means over seeds with 95 % intervals."
        ),
    )
