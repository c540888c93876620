"""The diversity paradox revisited (Barlacchi et al. 2026, arXiv 2602.16315): in a static cut individual diversity is
higher the more users adopt recommendations; at a fixed adoption it falls with time, under every recommender.

Adoption 0 is the control: what users do by themselves is not charged to the recommender. Diversities are of what is
clicked in five rounds. The module does not know why they move.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.replications.targets import Target, above, below, consumed, interval, reported, write_targets
from experiments.running import course
from experiments.running.course import Run
from experiments.running.design import Design
from simenv.errors import ConfigError
from simenv.metrics.formulas import gini, ild
from simenv.metrics.reference import pack_genres
from simenv.numeric import DoubleArray
from simenv.platform import Mode

WINDOW = 5  # rounds whose clicks make one value
MEASURES = {
    "individual": "genre distance within a user's clicks",
    "collective": "1 - Gini of clicks over items",
}
Courses = dict[tuple[str, float, str], DoubleArray]  # (arm, adoption, measure) -> (seeds, windows)


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """Some arms at several levels of adoption, the lowest of which is the control."""

    def __post_init__(self) -> None:
        if any(Mode.parse(mode).feedback != "loop" for _, mode in self.design.arms) or len(self.levels) < 2:
            modes = sorted({mode for _, mode in self.design.arms})
            raise ConfigError(f"modes={modes}: expected at least two adoption levels, as in loop@0 and loop")
        if self.design.rounds <= WINDOW:
            raise ConfigError(f"rounds={self.design.rounds}: expected more than {WINDOW}, the rounds of one value")

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(arm for arm, _ in self.design.arms))

    @property
    def levels(self) -> list[tuple[float, str]]:
        """(adoption, mode), ascending."""
        return sorted({(Mode.parse(mode).adoption, mode) for _, mode in self.design.arms})


def play(settings: Settings, run: Run) -> None:
    """Every arm at every level."""
    run.play(settings.designs())


# -- scoring ------------------------------------------------------------------------------------------------------


def score(settings: Settings, run: Run) -> None:
    """The paper's findings as targets; also writes `tables/adoption.csv`, both measures by arm, level and round."""
    courses = _courses(settings, run)
    rows = []
    for (arm, level, measure), values in courses.items():
        for place, found in enumerate(interval(values[:, window]) for window in range(values.shape[1])):
            row = {"arm": arm, "adoption": level, "measure": measure, "round": place + WINDOW - 1}
            rows.append(row | {"value": found.estimate, "ci_low": found.low, "ci_high": found.high})
    run.table("adoption", rows)
    levels = [level for level, _ in settings.levels]
    write_targets(run, [target for arm in settings.arms for target in _targets(arm, levels, courses)])


def _targets(arm: str, levels: list[float], courses: Courses) -> list[Target]:
    low, high = levels[0], levels[-1]
    individual, collective = ({level: courses[arm, level, name] for level in levels} for name in MEASURES)
    change = {level: values[:, -1] - values[:, 0] for level, values in individual.items()}
    static = individual[high][:, -1] - individual[low][:, -1]
    spread = collective[high][:, -1] - collective[low][:, -1]
    words = f"at adoption {high:g} instead of {low:g}"
    return [
        above(f"static:{arm}", f"at the end individual diversity is higher {words}: > 0", static),
        *(
            below(f"course:{arm}:{level:g}", f"it falls with time at adoption {level:g}: < 0", change[level])
            for level in levels
            if level > 0
        ),
        reported(f"unaided:{arm}", f"the same change at adoption {low:g}, the control", change[low]),
        below(f"beyond:{arm}", f"it falls more {words}: < 0", change[high] - change[low]),
        below(f"collective:{arm}", f"at the end collective diversity is lower {words}: < 0", spread),
    ]


def _courses(settings: Settings, run: Run) -> Courses:
    found: dict[tuple[str, float, str], list[DoubleArray]] = {}
    for seed in settings.design.seeds:
        dataset = settings.design.make_dataset(seed)
        bits = pack_genres(dataset.catalog.genres)
        for arm in settings.arms:
            for level, mode in settings.levels:
                values = _course(settings.design, run, seed, arm, mode, bits, dataset.n_items)
                for measure, series in zip(MEASURES, values, strict=True):
                    found.setdefault((arm, level, measure), []).append(series)
    return {key: np.stack(series) for key, series in found.items()}


def _course(
    design: Design, run: Run, seed: int, arm: str, mode: str, bits: np.ndarray, n_items: int
) -> tuple[DoubleArray, DoubleArray]:
    """Individual and collective diversity of the clicks of each window, (windows,) each."""
    clicks = consumed(run.path, seed, arm, mode)
    order = np.argsort(clicks.user, kind="stable")
    rounds, users, items = clicks.round[order], clicks.user[order], clicks.item[order]
    individual, collective = [], []
    for last in range(WINDOW - 1, design.rounds):
        rows = (rounds > last - WINDOW) & (rounds <= last)
        individual.append(ild(users[rows], items[rows], bits))
        collective.append(1.0 - gini(np.bincount(items[rows], minlength=n_items)))
    return np.array(individual), np.array(collective)


# -- figure -------------------------------------------------------------------------------------------------------


def plot(settings: Settings, run: Run) -> None:
    """The static cut, and beside it the course of every arm at every level."""
    import polars as pl

    from simenv.figures.style import LABEL, arm_styles, key_line, legend_below, new_figure, round_axis, wrap

    table = run.read_table("adoption")
    styles, levels = arm_styles(settings.arms), [level for level, _ in settings.levels]
    shades = {level: str(round(0.7 * (1 - place / (len(levels) - 1)), 2)) for place, level in enumerate(levels)}
    figure, grid = new_figure(2, 1 + len(settings.arms), (3.4 * (1 + len(settings.arms)), 6.4))
    for (measure, words), panels in zip(MEASURES.items(), grid, strict=True):
        rows = table.filter(pl.col("measure") == measure)
        for arm in settings.arms:
            cut = rows.filter((pl.col("arm") == arm) & (pl.col("round") == rows["round"].max())).sort("adoption")
            value, low, high = (cut[name].cast(pl.Float64).to_numpy() for name in ("value", "ci_low", "ci_high"))
            panels[0].errorbar(
                cut["adoption"], value, yerr=[value - low, high - value], capsize=3, linewidth=1.8,
                color=styles[arm].color, marker=styles[arm].marker,
            )  # fmt: skip
        panels[0].set_ylabel(wrap(words, 22), fontsize=LABEL)
        panels[0].set_xlabel("adoption, at the end", fontsize=LABEL)
        for arm, panel in zip(settings.arms, panels[1:], strict=True):
            for level in levels:
                line = rows.filter((pl.col("arm") == arm) & (pl.col("adoption") == level)).sort("round")
                panel.plot(line["round"], line["value"], color=shades[level], linewidth=2)
            round_axis(panel, line["round"].to_numpy())
            panel.set_xlabel(f"round, {arm}", fontsize=LABEL)
        low, high = (f(panel.get_ylim()[place] for panel in panels) for place, f in enumerate((min, max)))
        for panel in panels:
            panel.set_ylim(low, high)
    arms = [key_line(arm, color=styles[arm].color, marker=styles[arm].marker) for arm in settings.arms]
    legend_below(figure, [*arms, *(key_line(f"adoption {level:g}", color=shades[level]) for level in levels)])
    run.figure(
        "adoption",
        figure,
        title="More adoption, more diversity? The static cut and the course over time",
        caption=(
            f"Diversity of the clicks of {WINDOW} rounds: left at the end against adoption, beside it over time at "
            "each level (darker = more adoption; the lightest chooses unaided). Above, how far apart in genre the "
            "clicks of one user are; below, how evenly all clicks are spread over items. Means over seeds, left with "
            "95 % intervals."
        ),
    )
