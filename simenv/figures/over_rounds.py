"""Figures of tidy metrics over rounds, and the series they are drawn from.

`metrics` is always the frame of `metrics.csv`: seed, arm, mode, round, group, metric, value. Every function returns a
matplotlib `Figure`; intervals are 95 % t intervals over seeds. The module does not know where a frame came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simenv.errors import DataError
from simenv.figures.style import (
    FAINT,
    INK,
    LABEL,
    REFERENCES,
    SPARE,
    TITLE,
    ArmStyle,
    arm_styles,
    draw_line,
    fit_y,
    key_line,
    label_axes,
    label_ends,
    legend_arms_and_modes,
    legend_below,
    mode_dashes,
    new_figure,
    plain,
    round_axis,
    small_multiples,
    sort_arms,
    sort_modes,
)
from simenv.metrics.frame import CONTROLS, Series, all_series, primary_control
from simenv.metrics.table import metric_label


def metric_series(metrics: pl.DataFrame, metric: str, group: str = "all") -> dict[tuple[str, str], Series]:
    """The values of one metric by (arm, mode), in the fixed order of arms and modes.

    Raises:
        DataError: if a column is missing, or nothing is known of this metric and group.
    """
    found = all_series(metrics, metric, group)
    arms, modes = sort_arms(arm for arm, _ in found), sort_modes(mode for _, mode in found)
    return {(arm, mode): found[arm, mode] for arm in arms for mode in modes if (arm, mode) in found}


# -- over rounds ----------------------------------------------------------------------------------------------


def plot_metric_over_rounds(
    metrics: pl.DataFrame, metric: str = "arp_pct", *, modes: Sequence[str] | None = None, group: str = "all"
) -> Figure:
    """One metric per round, all arms in one panel with their names beside the lines.

    Args:
        metrics: the frame of metrics.csv.
        metric: its name there.
        modes: which modes to draw; default all.
        group: which group of users.
    """
    series = _of_modes(metric_series(metrics, metric, group), modes)
    figure, grid = new_figure(1, 1, (10.5, 5.4))
    panel = grid[0, 0]
    means = _draw_arms(panel, series)
    panel.set_xlabel("round", fontsize=LABEL)
    panel.set_ylabel(metric_label(metric), fontsize=LABEL)
    loops = [key for key in means if key[1] in ("loop", "none")] or list(means)
    styles = arm_styles(sort_arms(arm for arm, _ in series))
    label_ends(panel, [(means[arm, mode], plain(arm), styles[arm].color) for arm, mode in loops])
    shown = sort_modes(mode for _, mode in series if mode != "none")
    if len(shown) > 1:
        legend_below(figure, [key_line(mode, color=INK, dashes=mode_dashes(mode)) for mode in shown])
    return figure


def plot_metric_panels(metrics: pl.DataFrame, names: Sequence[str], *, modes: Sequence[str] | None = None) -> Figure:
    """Several metrics per round, one panel each, all arms in every panel.

    Args:
        metrics: the frame of metrics.csv.
        names: the metrics; those that were not measured are left out.
        modes: which modes to draw; default the loop, the references and the primary control.

    Raises:
        DataError: if none of the metrics was measured.
    """
    known = [name for name in names if name in metrics["metric"].unique().to_list()]
    if not known:
        raise DataError(f"metrics: none of {', '.join(names)} was measured")
    all_series = {name: metric_series(metrics, name) for name in known}
    present = sort_modes(mode for series in all_series.values() for _, mode in series)
    if modes is None:
        control = primary_control(present)
        modes = [mode for mode in present if mode not in CONTROLS or mode == control]
    n_cols = 2 if len(known) in (2, 4) else min(len(known), 3)
    n_rows = -(-len(known) // n_cols)
    figure, grid = new_figure(n_rows, n_cols, (max(4.3 * n_cols, 7), 3.5 * n_rows + 0.8), sharex=True)
    arms: dict[str, None] = {}
    drawn_modes: dict[str, None] = {}
    for panel, name in zip(grid.flat, known, strict=False):
        series = _of_modes(all_series[name], modes)
        _draw_arms(panel, series)
        panel.set_title(metric_label(name), fontsize=TITLE, loc="left", color=INK)
        arms |= dict.fromkeys(arm for arm, _ in series)
        drawn_modes |= dict.fromkeys(mode for _, mode in series)
    for panel in list(grid.flat)[len(known) :]:
        panel.remove()
    for panel in grid[-1]:
        panel.set_xlabel("round", fontsize=LABEL)
    legend_arms_and_modes(figure, list(arms), list(drawn_modes))
    return figure


def plot_concentration(metrics: pl.DataFrame) -> Figure:
    """How unequally items are shown: Gini, coverage and tail share per round."""
    return plot_metric_panels(metrics, ("gini", "coverage", "tail_share"))


def plot_codes(metrics: pl.DataFrame) -> Figure:
    """How unequally item codes are shown: Gini and entropy of impressions per token and round, level by level.

    Raises:
        DataError: if no arm spells items as codes.
    """
    names = sorted(name for name in metrics["metric"].unique() if name.startswith("code_"))
    if not names:
        raise DataError("metrics: no arm spells items as codes")
    return plot_metric_panels(metrics, names)


def plot_engagement(metrics: pl.DataFrame) -> Figure:
    """What users did and gained: click-through rate, rating, utility and regret per round."""
    return plot_metric_panels(metrics, ("ctr", "mean_rating", "true_utility", "regret"))


def plot_calibration(metrics: pl.DataFrame) -> Figure:
    """How far clicked genres moved from each user's profile at round 0 (Steck 2018), and genre distance in slates."""
    return plot_metric_panels(metrics, ("genre_kl", "ild"))


def plot_loop_against_controls(metrics: pl.DataFrame, metric: str = "arp_pct", group: str = "all") -> Figure:
    """One column per recommender: its loop solid, its controls broken.

    Above, all columns on one scale, with the reference arms in grey. Below, the recommender's own lines enlarged: every
    panel spans the same height, moved to its recommender's level. Without controls this is `plot_metric_over_rounds`.
    """
    series = metric_series(metrics, metric, group)
    arms = [arm for arm in sort_arms(arm for arm, _ in series) if any((arm, mode) in series for mode in CONTROLS)]
    if not arms:
        return plot_metric_over_rounds(metrics, metric, group=group)
    n_cols = min(len(arms), 4)
    n_bands = -(-len(arms) // n_cols)
    figure, grid = new_figure(2 * n_bands, n_cols, (max(4.0, 12.6 / n_cols) * n_cols + 0.6, 6.0 * n_bands + 0.8))
    above, below = list(grid[0::2].flat), list(grid[1::2].flat)
    styles = arm_styles(sort_arms(arm for arm, _ in series))
    references = [key for key in series if key[0] in REFERENCES and key[0] not in arms]
    for upper, lower, arm in zip(above, below, arms, strict=False):
        for key in references:
            own = series[key]
            draw_line(upper, own.rounds, own.values, color=FAINT, marker=styles[key[0]].marker, width=1.0, band=0.0)
        for panel in (upper, lower):
            _draw_recommender(panel, styles[arm], {mode: own for (held, mode), own in series.items() if held == arm})
        upper.set_title(plain(arm), fontsize=TITLE, loc="left", color=styles[arm].color, fontweight="bold")
        upper.tick_params(labelbottom=False)
    for panel in (*above[len(arms) :], *below[len(arms) :]):
        panel.remove()
    fit_y(above[: len(arms)])
    _same_span(below[: len(arms)])
    label_axes(figure, "round", metric_label(metric))
    modes = sort_modes(mode for arm, mode in series if arm in arms)
    entries = [key_line(mode, color=INK, dashes=mode_dashes(mode)) for mode in modes]
    entries += [
        key_line(f"{arm} (reference)", color=FAINT, marker=styles[arm].marker, width=1) for arm, _ in references
    ]
    legend_below(figure, entries)
    return figure


def plot_amplification(metrics: pl.DataFrame, metric: str = "arp_pct", group: str = "all") -> Figure:
    """What feedback added up to each round: the paired difference of loop and control, one panel per control.

    Raises:
        DataError: if no arm has both a loop and a control.
    """
    series = metric_series(metrics, metric, group)
    arms = sort_arms(arm for arm, _ in series)
    styles = arm_styles(arms)
    pairs = {
        control: [arm for arm in arms if (arm, control) in series and (arm, "loop") in series] for control in CONTROLS
    }
    pairs = {control: held for control, held in pairs.items() if held}
    if not pairs:
        raise DataError("metrics: no arm has both mode 'loop' and a control (organic, frozen, exogenous)")
    figure, panels = small_multiples(len(pairs), height=4.2)
    for panel, (control, held) in zip(panels, pairs.items(), strict=True):
        panel.axhline(0, color=INK, linewidth=1.2)
        for arm in held:
            gained = series[arm, "loop"].added_to(series[arm, control])
            draw_line(panel, gained.rounds, gained.values, color=styles[arm].color, marker=styles[arm].marker)
            round_axis(panel, gained.rounds)
        panel.set_title(f"loop minus {control}", fontsize=TITLE, loc="left", color=INK)
    fit_y(panels)
    label_axes(figure, "round", f"added {metric_label(metric)}")
    legend_arms_and_modes(figure, sort_arms(arm for held in pairs.values() for arm in held), [])
    return figure


def plot_homogeneity(metrics: pl.DataFrame, metric: str = "jaccard", reference: str = "oracle") -> Figure:
    """How alike users became: overlap of what they clicked minus the same under the reference, paired by seed.

    Without the reference arm the overlap itself is drawn (the axis says so).
    """
    series = metric_series(metrics, metric)
    base = series.get((reference, "loop"))
    if base is None:
        return plot_metric_over_rounds(metrics, metric)
    relative: dict[tuple[str, str], Series] = {}
    for key, own in series.items():
        if key[0] == reference:
            continue
        seeds, rounds = np.intersect1d(own.seeds, base.seeds), np.intersect1d(own.rounds, base.rounds)
        wanted = seeds.tolist(), rounds.tolist()
        relative[key] = Series(seeds, rounds, own.at(*wanted) - base.at(*wanted))
    control = primary_control([mode for _, mode in relative])
    relative = {key: own for key, own in relative.items() if key[1] not in CONTROLS or key[1] == control}
    if not relative:
        raise DataError(f"metrics: {metric!r} is known of the reference {reference!r} only")
    figure, grid = new_figure(1, 1, (10.5, 5.2))
    panel = grid[0, 0]
    panel.axhline(0, color=INK, linewidth=1.2)
    means = _draw_arms(panel, relative)
    panel.set_xlabel("round", fontsize=LABEL)
    panel.set_ylabel(f"{metric_label(metric)}\nminus {plain(reference)}", fontsize=LABEL)
    styles = arm_styles(sort_arms(arm for arm, _ in series))
    ends = [(means[key], plain(key[0]), styles[key[0]].color) for key in means if key[1] not in CONTROLS]
    label_ends(panel, ends)
    shown = sort_modes(mode for _, mode in relative if mode != "none")
    if len(shown) > 1:
        legend_below(figure, [key_line(mode, color=INK, dashes=mode_dashes(mode)) for mode in shown])
    return figure


def plot_runs(runs: Mapping[str, pl.DataFrame], metric: str = "arp_pct", mode: str = "loop") -> Figure:
    """The same metric in several runs or regimes, one panel per arm, one line per run.

    Args:
        runs: frames of metrics.csv by name.
        metric: the metric's name.
        mode: the mode to draw; reference arms without it are drawn in the mode they have.
    """
    series: dict[str, dict[str, Series]] = {}
    for name, metrics in runs.items():
        for (arm, its_mode), own in metric_series(metrics, metric).items():
            if its_mode in (mode, "none"):
                series.setdefault(arm, {})[name] = own
    if not series:
        raise DataError(f"metrics: no run knows {metric!r} in mode {mode!r}")
    styles = dict(zip(runs, _run_styles(len(runs)), strict=True))
    arms = sort_arms(series)
    figure, panels = small_multiples(len(arms), height=3.7)
    for panel, arm in zip(panels, arms, strict=True):
        for name, own in series[arm].items():
            color, marker, dashes = styles[name]
            draw_line(panel, own.rounds, own.values, color=color, marker=marker, dashes=dashes)
        panel.set_title(plain(arm), fontsize=TITLE, loc="left", color=INK)
        round_axis(panel, np.concatenate([own.rounds for held in series.values() for own in held.values()]))
    fit_y(panels)
    label_axes(figure, "round", metric_label(metric))
    entries = [
        key_line(plain(name), color=color, marker=marker, dashes=dashes)
        for name, (color, marker, dashes) in styles.items()
    ]
    legend_below(figure, entries)
    return figure


# -- shared drawing -------------------------------------------------------------------------------------------


def _of_modes(series: dict[tuple[str, str], Series], modes: Sequence[str] | None) -> dict[tuple[str, str], Series]:
    if modes is None:
        return series
    kept = {key: own for key, own in series.items() if key[1] in modes}
    if not kept:
        known = ", ".join(sort_modes(mode for _, mode in series))
        raise DataError(f"metrics: no values in modes {', '.join(modes)}; expected some of {known}")
    return kept


def _draw_arms(panel: Axes, series: Mapping[tuple[str, str], Series]) -> dict[tuple[str, str], float]:
    """Draw every arm and mode; the mean of each at its last round."""
    styles = arm_styles(sort_arms(arm for arm, _ in series))
    means = {}
    for (arm, mode), own in series.items():
        control = mode in CONTROLS
        mean = draw_line(
            panel,
            own.rounds,
            own.values,
            color=styles[arm].color,
            marker=None if control else styles[arm].marker,
            dashes=mode_dashes(mode),
            width=1.5 if control else 2.2,
            band=0.07 if control else 0.16,
            label=f"{arm} ({mode})",
        )
        means[arm, mode] = float(mean[-1])
    round_axis(panel, np.concatenate([own.rounds for own in series.values()]))
    fit_y([panel])
    return means


def _draw_recommender(panel: Axes, style: ArmStyle, series: dict[str, Series]) -> None:
    """The modes of one arm, the loop on top."""
    for mode, own in reversed(series.items()):
        loop = mode == "loop"
        draw_line(
            panel,
            own.rounds,
            own.values,
            color=style.color,
            marker=style.marker if loop else None,
            dashes=mode_dashes(mode),
            width=2.6 if loop else 1.8,
            band=0.22 if loop else 0.1,
        )
        round_axis(panel, own.rounds)


def _same_span(panels: Sequence[Axes]) -> None:
    """Give every panel the height the tallest needs, around the middle of its own lines."""
    for panel in panels:
        fit_y([panel])
    spans = [panel.get_ylim() for panel in panels]
    half = max(high - low for low, high in spans) / 2
    for panel, (low, high) in zip(panels, spans, strict=True):
        top = (low + high) / 2 + half
        if max(float(np.nanmax(line.get_ydata())) for line in panel.lines) <= 1 < top:
            top = 1 + 0.1 * half  # shares and percentiles end at 1: leave no room for values that cannot be
        panel.set_ylim(top - 2 * half, top)


def _run_styles(n: int) -> list[tuple[str, str, Any]]:
    dashes = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
    return [(*SPARE[i % len(SPARE)], dashes[i % len(dashes)]) for i in range(n)]
