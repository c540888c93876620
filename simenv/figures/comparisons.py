"""Figures that set arms, groups, seeds and claims against each other.

They read the frame of `metrics.csv` or the claims of a run and return a matplotlib `Figure`. The module does not know
how a claim was tested.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simenv.conclusions.judged import JudgedClaim
from simenv.conclusions.statistics import t_interval
from simenv.errors import DataError
from simenv.figures.over_rounds import metric_series
from simenv.figures.style import (
    FAINT,
    INK,
    LABEL,
    TICK,
    TITLE,
    arm_styles,
    draw_line,
    key_line,
    label_axes,
    legend_arms_and_modes,
    legend_below,
    mode_dashes,
    new_figure,
    plain,
    small_multiples,
    sort_arms,
    spread,
    wrap,
)
from simenv.metrics.frame import CONTROLS, primary_control
from simenv.metrics.table import metric_label
from simenv.numeric import DoubleArray

# -- against each other ---------------------------------------------------------------------------------------


def plot_accuracy_bias(metrics: pl.DataFrame, accuracy: str | None = None, bias: str = "arp_pct") -> Figure:
    """Accuracy against popularity bias: an arrow per arm from the first to the last round.

    Args:
        metrics: the frame of metrics.csv.
        accuracy: the vertical metric; default `ndcg@10` if it was measured, else `true_utility`.
        bias: the horizontal metric.
    """
    if accuracy is None:
        accuracy = "ndcg@10" if "ndcg@10" in metrics["metric"].unique().to_list() else "true_utility"
    across, up = metric_series(metrics, bias), metric_series(metrics, accuracy)
    keys = [key for key in across if key in up]
    control = primary_control([mode for _, mode in keys])
    styles = arm_styles(sort_arms(arm for arm, _ in keys))
    figure, grid = new_figure(1, 1, (9.5, 6.2))
    panel = grid[0, 0]
    names: list[tuple[float, float, str, str]] = []
    moves: list[tuple[tuple[float, float], tuple[float, float], str, str]] = []
    for arm, mode in keys:
        if mode in CONTROLS and mode != control:
            continue
        x, y = across[arm, mode].values, up[arm, mode].values
        style, is_control = styles[arm], mode in CONTROLS
        _cross(panel, x[:, -1], y[:, -1], style.color, style.marker, hollow=is_control)
        start, end = _mean_point(x[:, 0], y[:, 0]), _mean_point(x[:, -1], y[:, -1])
        moves.append((start, end, style.color, mode))
        panel.plot(*start, marker=".", color=style.color, markersize=6)
        if not is_control:
            names.append((*end, plain(arm), style.color))
    _name_points(panel, names)
    _draw_arrows(panel, moves)
    panel.set_xlabel(f"{metric_label(bias)}  (more biased →)", fontsize=LABEL)
    panel.set_ylabel(f"{metric_label(accuracy)}  (better ↑)", fontsize=LABEL)
    entries = [key_line("loop, first round → last", color=INK, marker="o")]
    if control:
        hollow = key_line(f"{control} control", color=INK, marker="o", dashes=mode_dashes(control), width=1.3)
        hollow.set_markerfacecolor("white")
        entries.append(hollow)
    legend_below(figure, entries)
    return figure


def plot_tradeoff(
    metrics: pl.DataFrame, cost: str = "gini", gain: str = "true_utility", last_rounds: int = 5, mode: str = "loop"
) -> Figure:
    """What equality of exposure costs: mean `gain` against mean `cost` over the last rounds, one point per arm.

    The grey line joins the arms that no other arm beats on both (the Pareto front, for low `cost` and high `gain`).
    """
    across, up = metric_series(metrics, cost), metric_series(metrics, gain)
    keys = [key for key in across if key in up and key[1] in (mode, "none")]
    if not keys:
        raise DataError(f"metrics: no arm has {cost!r} and {gain!r} in mode {mode!r}")
    styles = arm_styles(sort_arms(arm for arm, _ in keys))
    figure, grid = new_figure(1, 1, (9.5, 6.0))
    panel = grid[0, 0]
    points = []
    for key in keys:
        x = np.nanmean(across[key].values[:, -last_rounds:], axis=1)
        y = np.nanmean(up[key].values[:, -last_rounds:], axis=1)
        style = styles[key[0]]
        _cross(panel, x, y, style.color, style.marker)
        points.append((float(x.mean()), float(y.mean()), plain(key[0]), style.color))
    front = [p for p in sorted(points) if not any(q[0] <= p[0] and q[1] >= p[1] and q is not p for q in points)]
    panel.plot([p[0] for p in front], [p[1] for p in front], color=FAINT, linewidth=1.2, linestyle="--", zorder=1)
    _name_points(panel, points)
    panel.set_xlabel(f"{metric_label(cost)}, last {last_rounds} rounds  (more unequal →)", fontsize=LABEL)
    panel.set_ylabel(f"{metric_label(gain)}  (better ↑)", fontsize=LABEL)
    legend_below(figure, [key_line("not beaten on both axes", color=FAINT, dashes="--", width=1.2)])
    return figure


def plot_group_heatmap(metrics: pl.DataFrame, metric: str = "arp_pct") -> Figure:
    """Amplification by group of users and recommender: loop minus its primary control, last round against round 0.

    Without controls, the change from the first to the last round. Bold: the 95 % interval leaves out zero.

    Raises:
        DataError: if the metric is known for the group `all` only.
    """
    groups = metrics.filter(pl.col("metric") == metric)["group"].unique().to_list()
    if len(groups) < 2:
        raise DataError(f"metrics: {metric!r} is known of one group only; a heatmap needs at least two")
    groups = sorted(groups, key=_group_order)
    by_group = {group: metric_series(metrics, metric, group) for group in groups}
    reference = by_group[groups[0]]
    control = primary_control([mode for _, mode in reference])
    arms = sort_arms(
        arm for arm, mode in reference if mode == "loop" and (control is None or (arm, control) in reference)
    )
    if not arms:
        raise DataError("metrics: no arm in mode 'loop' with a control beside it")
    cells = np.full((len(arms), len(groups), 3), np.nan)
    for i, arm in enumerate(arms):
        for j, group in enumerate(groups):
            loop = by_group[group].get((arm, "loop"))
            other = by_group[group].get((arm, control)) if control else None
            if loop is None or (control and other is None):
                continue
            change = loop.values[:, -1] - loop.values[:, 0] if other is None else loop.added_to(other).values[:, -1]
            cells[i, j] = t_interval(change)
    figure, grid = new_figure(1, 1, (max(1.15 * len(groups) + 3.2, 7), 0.62 * len(arms) + 2.2))
    panel = grid[0, 0]
    panel.grid(False)
    limit = float(np.nanmax(np.abs(cells[..., 0]))) or 1.0
    image = panel.imshow(cells[..., 0], cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    for (i, j), value in np.ndenumerate(cells[..., 0]):
        low, high = cells[i, j, 1:]
        sure = bool(low > 0 or high < 0)
        text = (
            "–"
            if np.isnan(value)
            else f"{value:+.3f}".replace("-", "−") + ("" if np.isnan(high) else f"\n±{high - value:.3f}")
        )
        panel.text(
            j,
            i,
            text,
            ha="center",
            va="center",
            fontsize=TICK - 1,
            fontweight="bold" if sure else "normal",
            color="white" if abs(value) > 0.7 * limit else INK,
        )
    panel.set_xticks(range(len(groups)), [plain(g).replace("=", "\n") for g in groups])
    panel.set_yticks(range(len(arms)), [plain(a) for a in arms])
    panel.spines[:].set_visible(False)
    what = f"AMP against {control}" if control else "last round minus first"
    bar = figure.colorbar(image, ax=panel, shrink=0.9)
    bar.set_label(wrap(f"{metric_label(metric)}, {what}", 26), fontsize=TICK)
    return figure


def _group_order(group: str) -> tuple[bool, str, int, str]:
    """`all` first, then by attribute, low before middle before high."""
    attribute, _, level = group.partition("=")
    return group != "all", attribute, {"low": 0, "mid": 1, "middle": 1, "high": 2}.get(level, 3), level


def plot_rank_stability(
    metrics: pl.DataFrame, names: Sequence[str] = ("arp_pct", "gini", "true_utility"), mode: str = "loop"
) -> Figure:
    """Would another seed order the recommenders differently? The rank of each arm in the last round, seed by seed.

    Panel titles give Kendall's W (1 = every seed gives the same order, 0 = no agreement).

    Raises:
        DataError: if there are fewer than two seeds or arms.
    """
    known = [name for name in names if name in metrics["metric"].unique().to_list()]
    tables = {}
    for name in known:
        series = {key: own for key, own in metric_series(metrics, name).items() if key[1] in (mode, "none")}
        shared = [own.seeds.tolist() for own in series.values()]
        seeds = sorted(set(shared[0]).intersection(*shared[1:])) if shared else []
        if len(series) > 1 and len(seeds) > 1:
            last = np.stack([own.at(seeds, own.rounds[-1:].tolist())[:, 0] for own in series.values()], axis=1)
            tables[name] = ([arm for arm, _ in series], seeds, _ranks(last))
    if not tables:
        raise DataError("metrics: rank stability needs at least two seeds and two arms")
    figure, panels = small_multiples(len(tables), height=3.9, columns=3)
    arms: dict[str, None] = {}
    styles = arm_styles(sort_arms(arm for held, _, _ in tables.values() for arm in held))
    for panel, (name, (held, seeds, ranks)) in zip(panels, tables.items(), strict=True):
        for column, arm in enumerate(held):
            style = styles[arm]
            panel.plot(seeds, ranks[:, column], color=style.color, marker=style.marker, linewidth=2, markersize=8)
        panel.set_title(f"{metric_label(name)}\nW = {kendall_w(ranks):.2f}", fontsize=TITLE - 1, loc="left", color=INK)
        panel.set_xticks(seeds)
        panel.set_yticks(range(1, len(held) + 1))
        arms |= dict.fromkeys(held)
    panels[0].invert_yaxis()
    label_axes(figure, "seed", "rank (1 = highest value)")
    legend_arms_and_modes(figure, sort_arms(arms), [])
    return figure


def kendall_w(ranks: DoubleArray) -> float:
    """Kendall's coefficient of concordance of `ranks` (S judges, A things), corrected for ties."""
    n_judges, n_things = ranks.shape
    totals = ranks.sum(axis=0)
    spread_of_totals = float(((totals - totals.mean()) ** 2).sum())
    ties = sum(float((counts**3 - counts).sum()) for counts in (np.unique(r, return_counts=True)[1] for r in ranks))
    most = n_judges**2 * (n_things**3 - n_things) - n_judges * ties
    return 12 * spread_of_totals / most if most > 0 else float("nan")


# -- claims ---------------------------------------------------------------------------------------------------

VERDICT_COLORS = {"raised": "#a6530a", "lowered": "#005a9c", "negligible": FAINT, "unclear": FAINT}
_VERDICT_MARKS = {"raised": ("^", True), "lowered": ("v", True), "negligible": ("s", False), "unclear": ("o", False)}


def plot_amp_forest(claims: Sequence[JudgedClaim]) -> Figure:
    """Each claim's estimate with its interval: a panel per kind of claim and metric (units differ), a row per claim.

    Filled triangle: raised or lowered. Hollow square: negligible. Hollow circle: unclear. The shaded strip is the
    margin within which an effect counts as none, where the claims state one.

    Args:
        claims: of a run (`simenv.conclusions.read_claims`). A `label` names the row where arm and control do not.

    Raises:
        DataError: if no claim has an estimate.
    """
    parts: dict[str, list[JudgedClaim]] = {}
    for claim in claims:
        if claim.estimate is not None:
            words = claim.kind.replace("_", " ").replace("-", " ")
            parts.setdefault(f"{words}: {metric_label(claim.metric)}" if claim.metric else words, []).append(claim)
    if not parts:
        raise DataError("claims: none has an estimate")
    n_cols = min(len(parts), 3)
    titles = list(parts)
    rows = [titles[i : i + n_cols] for i in range(0, len(titles), n_cols)]
    heights = [max(len(parts[title]) for title in row) * 0.34 + 0.9 for row in rows]
    figure, grid = new_figure(len(rows), n_cols, ({1: 8.5, 2: 11.0}.get(n_cols, 14.5), sum(heights) + 0.7))
    grid[0, 0].get_gridspec().set_height_ratios(heights)
    for panel, title in zip(grid.flat, titles, strict=False):
        _forest_panel(panel, title, parts[title])
    for panel in list(grid.flat)[len(titles) :]:
        panel.remove()
    entries = []
    for verdict, (marker, filled) in _VERDICT_MARKS.items():
        entry = key_line(verdict, color=VERDICT_COLORS[verdict], marker=marker)
        entry.set_markerfacecolor(VERDICT_COLORS[verdict] if filled else "white")
        entries.append(entry)
    legend_below(figure, entries)
    return figure


def _forest_panel(panel: Axes, title: str, claims: Sequence[JudgedClaim]) -> None:
    margin = next((claim.margin for claim in claims if claim.margin), None)
    if margin:
        panel.axvspan(-margin, margin, color="#eeeeee", zorder=0)
    panel.axvline(0, color=INK, linewidth=1.2)
    for row, claim in enumerate(claims):
        color, (marker, filled) = VERDICT_COLORS[claim.verdict], _VERDICT_MARKS[claim.verdict]
        if claim.ci_low is not None and claim.ci_high is not None:
            panel.plot([claim.ci_low, claim.ci_high], [row, row], color=color, linewidth=2.4, solid_capstyle="butt")
        face = color if filled else "white"
        panel.plot(
            [claim.estimate or 0.0], [row], marker=marker, markersize=8, color=color, markerfacecolor=face, zorder=4
        )
    panel.set_yticks(range(len(claims)), [_claim_row(claim) for claim in claims])
    panel.set_ylim(len(claims) - 0.4, -0.6)
    panel.margins(x=0.1)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=3))
    words = wrap(plain(title), 26)  # and again where the figure's edge is nearer
    panel.set_title(words, fontsize=LABEL, loc="left", color=INK, fontweight="bold", wrap=True)


def _claim_row(claim: JudgedClaim) -> str:
    """What a claim compares: its `label` if it has one, else `als - frozen`, `als - oracle`, or the two groups."""
    arm = claim.arm or "all arms"
    other, _, groups = claim.control.partition(", ")
    control_arm, _, mode = other.partition("/")
    text = claim.label or arm
    if groups:
        one, _, versus = groups.partition(" - ")
        attribute, _, level = versus.partition("=")
        same = bool(level) and one.startswith(f"{attribute}=")
        text = f"{arm}: {one.replace('=', ' ')} − {level if same else versus.replace('=', ' ')}"
    elif mode:
        text = f"{arm} − {mode if control_arm == arm else control_arm}"
    return ("★ " if claim.primary else "") + plain(text)


# -- shared drawing ----


def _cross(panel: Axes, x: DoubleArray, y: DoubleArray, color: str, marker: str, *, hollow: bool = False) -> None:
    """The mean of aligned seed values (S,) with both intervals."""
    centres, errors = [], []
    for values in (x, y):
        mean, _, high = t_interval(values)
        centres.append(float(mean))
        errors.append(0.0 if np.isnan(high) else float(high - mean))
    panel.errorbar(
        centres[0],
        centres[1],
        xerr=errors[0] or None,
        yerr=errors[1] or None,
        color=color,
        ecolor=color,
        elinewidth=1.2,
        marker=marker,
        markersize=7 if hollow else 10,
        markerfacecolor="white" if hollow else color,
        zorder=4,
    )


def _mean_point(x: DoubleArray, y: DoubleArray) -> tuple[float, float]:
    return float(np.nanmean(x)), float(np.nanmean(y))


def _draw_arrows(panel: Axes, moves: Sequence[tuple[tuple[float, float], tuple[float, float], str, str]]) -> None:
    """Arrows (start, end, colour, mode), left out where the way is shorter than an arrow's head."""
    sides = np.array([np.ptp(panel.get_xlim()), np.ptp(panel.get_ylim())])
    for start, end, color, mode in moves:
        if np.hypot(*((np.array(end) - start) / sides)) < 0.025:
            continue
        arrow = {
            "arrowstyle": "-|>",
            "color": color,
            "linewidth": 1.3 if mode in CONTROLS else 2.4,
            "linestyle": mode_dashes(mode),
            "shrinkA": 0,
            "shrinkB": 5,
        }
        panel.annotate("", xy=end, xytext=start, arrowprops=arrow)


def _name_points(panel: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Names above and to the right of points, moved apart vertically where they would meet."""
    panel.margins(x=0.16, y=0.12)
    low, high = panel.get_ylim()
    ordered = sorted(points, key=lambda p: p[1])
    for (x, y, text, color), place in zip(ordered, spread([p[1] for p in ordered], (high - low) * 0.045), strict=True):
        panel.annotate(
            text,
            xy=(x, y),
            xytext=(8, 13 + (place - y) / (high - low) * 370),
            textcoords="offset points",
            color=color,
            fontsize=LABEL,
            fontweight="bold",
            va="center",
        )


def _ranks(values: DoubleArray) -> DoubleArray:
    """Ranks along the last axis, 1 = largest, ties averaged."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(-values, axis=1), dtype=np.float64)


def plot_against_option(runs: Sequence[tuple[float | str, pl.DataFrame]], metric: str, option: str) -> Figure:
    """One metric against an option in which runs differ: its last round in the loop, and what feedback added to it.

    Lines are means over the seeds of all runs with this value, bands 95 % t intervals. The right panel is left out
    where no run has a control.

    Args:
        runs: value of the option and frame of metrics.csv of each run; values of text stand in their order, evenly.
        metric: its name there.
        option: the option's name.

    Raises:
        DataError: no run measured the metric, or all have one value.
    """
    values = list(dict.fromkeys(value for value, _ in runs))
    numbers = [value for value in values if not isinstance(value, str)]
    numeric = len(numbers) == len(values)
    places = np.sort(np.array(numbers, np.float64)) if numeric else np.arange(float(len(values)))
    levels: dict[str, dict[int, list[DoubleArray]]] = {}
    gains: dict[str, dict[int, list[DoubleArray]]] = {}
    for value, metrics in runs:
        place = int(np.searchsorted(places, float(value))) if not isinstance(value, str) else values.index(value)
        if not (metrics["metric"] == metric).any():
            continue
        series = metric_series(metrics, metric)
        control = primary_control([mode for _, mode in series])
        for (arm, mode), own in series.items():
            if mode in ("loop", "none"):
                levels.setdefault(arm, {}).setdefault(place, []).append(own.values[:, -1])
            if mode == "loop" and (arm, control) in series:
                gains.setdefault(arm, {}).setdefault(place, []).append(
                    own.added_to(series[arm, str(control)]).values[:, -1]
                )
    if not levels or len(values) < 2:
        raise DataError(f"runs: {metric} is not known for two values of {option}")
    figure, grid = new_figure(1, 2 if gains else 1, (11.5 if gains else 7.0, 4.4))
    styles = arm_styles(sort_arms(levels))
    for panel, held, title in zip(
        grid.flat, (levels, gains), ("last round of the loop", "what feedback added"), strict=False
    ):
        for arm in sort_arms(held):
            rows = [
                np.concatenate(held[arm][place]) if place in held[arm] else np.zeros(0) for place in range(len(places))
            ]
            table = np.full((max(map(len, rows)), len(places)), np.nan)
            for place, row in enumerate(rows):
                table[: len(row), place] = row
            draw_line(panel, places, table, color=styles[arm].color, marker=styles[arm].marker)
        panel.set_title(title, fontsize=TITLE, loc="left", color=INK)
        panel.set_xlabel(plain(option), fontsize=LABEL)
        panel.set_xticks(places, [plain(value) for value in (sorted(numbers) if numeric else values)])
    grid[0, 0].set_ylabel(metric_label(metric), fontsize=LABEL)
    legend_arms_and_modes(figure, list(sort_arms(levels)), ["loop"])
    return figure
