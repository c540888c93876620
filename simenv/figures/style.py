"""How simenv's figures look: colours, markers and dashes by name, empty panels, lines with intervals.

Okabe and Ito's and Tol's colours, which survive the common colour blindnesses; markers and dashes carry the same
information for grey print. The module does not know what a metric means, and touches no pyplot state.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from simenv.conclusions.statistics import t_interval
from simenv.metrics.frame import CONTROLS
from simenv.numeric import DoubleArray

INK, FAINT, GRID = "#222222", "#6b6b6b", "#e3e3e3"
TITLE, LABEL, TICK = 13.0, 12.0, 11.0  # points, at a figure 10 to 13 inches wide

KNOWN_ARMS = {
    "random": ("#7f7f7f", "x"),
    "none": ("#a98b6d", "|"),
    "popularity": ("#d55e00", "o"),
    "content": ("#e69f00", "h"),
    "itemknn": ("#0072b2", "s"),
    "seqknn": ("#332288", ">"),
    "ease": ("#56b4e9", "P"),
    "als": ("#009e73", "^"),
    "bpr": ("#cc79a7", "v"),
    "mf": ("#882255", "<"),
    "sasrec": ("#117733", "p"),
    "bert4rec": ("#aa4499", "*"),
    "gru4rec": ("#999933", "X"),
    "p5": ("#661100", "d"),
    "p5-fast": ("#b8860b", "H"),
    "chatgpt-list": ("#ee3377", "^"),
    "as-shown": ("#9467bd", "d"),
    "tallrec": ("#44aa99", "v"),
    "tallrec-untuned": ("#6b8e23", "v"),
    "oracle": ("#000000", "D"),
}
SPARE = (
    ("#4477aa", "o"),
    ("#ee6677", "s"),
    ("#228833", "^"),
    ("#aa3377", "v"),
    ("#c2a500", "P"),
    ("#2b9eb3", "D"),
    ("#5c4b8a", "X"),
    ("#994f00", "h"),
)
REFERENCES = ("random", "none", "oracle")
MODE_DASHES: dict[str, Any] = {
    "loop": "-",
    "frozen": (0, (5, 2)),
    "organic": (0, (1, 1.2)),
    "exogenous": (0, (5, 1.5, 1, 1.5)),
    "none": "-",  # no control: a reference arm of its own
}
ADOPTION_DASHES = (0, (9, 2))


@dataclass(frozen=True, slots=True)
class ArmStyle:
    """The colour and marker of one arm."""

    color: str
    marker: str


_all_arms: ContextVar[tuple[str, ...]] = ContextVar("all_arms", default=())


@contextmanager
def same_styles(arms: Iterable[str]) -> Iterator[None]:
    """Inside this block an arm of a user's own keeps one colour in all figures, also where some arms are absent."""
    token = _all_arms.set(tuple(arms))
    try:
        yield
    finally:
        _all_arms.reset(token)


def sort_arms(arms: Iterable[str]) -> list[str]:
    """Distinct arms: known names in their fixed order, then the others by name, oracle last."""
    distinct = set(arms)
    known = [arm for arm in KNOWN_ARMS if arm in distinct and arm != "oracle"]
    return known + sorted(distinct - set(KNOWN_ARMS)) + (["oracle"] if "oracle" in distinct else [])


def arm_styles(arms: Iterable[str]) -> dict[str, ArmStyle]:
    """A style per arm: fixed for the contract's names, in the order of `sort_arms` for the others."""
    styles: dict[str, ArmStyle] = {}
    n_spare = 0
    for arm in sort_arms((*_all_arms.get(), *arms)):
        if arm in KNOWN_ARMS:
            styles[arm] = ArmStyle(*KNOWN_ARMS[arm])
        else:
            styles[arm] = ArmStyle(*SPARE[n_spare % len(SPARE)])
            n_spare += 1
    return styles


def mode_dashes(mode: str) -> Any:
    """The dash pattern of a mode: the loop solid, controls broken."""
    return ADOPTION_DASHES if "@" in mode else MODE_DASHES.get(mode, (0, (3, 1, 1, 1, 1, 1)))


def sort_modes(modes: Iterable[str]) -> list[str]:
    """Distinct modes, loop first, then the controls in order of importance."""
    order = {name: i for i, name in enumerate(("loop", *CONTROLS, "none"))}
    return sorted(set(modes), key=lambda mode: (order.get(mode, len(order)), mode))


def new_figure(
    n_rows: int, n_cols: int, size: tuple[float, float], *, sharex: Any = False, sharey: Any = False
) -> tuple[Figure, NDArray[Any]]:
    """An empty figure of `size` inches with dressed panels, (n_rows, n_cols), in a constrained layout."""
    figure = Figure(figsize=size, dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(n_rows, n_cols, sharex=sharex, sharey=sharey, squeeze=False)
    for panel in panels.flat:
        dress(panel)
    return figure, panels


def dress(panel: Axes) -> None:
    """Quiet axes: two spines, a faint grid behind the data, readable ticks."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(FAINT)
    panel.grid(True, color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=TICK, colors=INK, length=3)


def small_multiples(n: int, *, height: float = 3.4, columns: int = 4, share: bool = True) -> tuple[Figure, list[Axes]]:
    """`n` equal panels, wrapped at `columns`; axes are shared if `share`, and then only the outer ones are labelled."""
    n_rows = -(-n // columns)
    n_cols = -(-n // n_rows)
    width = {1: 10.0, 2: 5.2, 3: 4.0}.get(n_cols, 3.3)
    size = (width * n_cols + 0.6, height * n_rows + 0.5)
    figure, grid = new_figure(n_rows, n_cols, size, sharex=share, sharey=share)
    panels = list(grid.flat)
    for panel in panels[n:]:
        panel.remove()
    for i, panel in enumerate(panels[:n]):
        panel.tick_params(labelbottom=not share or i + n_cols >= n)
    return figure, panels[:n]


def label_axes(figure: Figure, across: str, up: str) -> None:
    """The same axis labels for all panels of a figure: `across` under the last row, `up` once at the left."""
    for panel in figure.axes:
        place = panel.get_subplotspec()
        if place is not None and place.is_last_row():
            panel.set_xlabel(across, fontsize=LABEL, color=INK)
    figure.supylabel(up, fontsize=LABEL, color=INK)


def fit_y(panels: Sequence[Axes], room: float = 0.4) -> None:
    """Limits that show every line, and the bands up to `room` times the lines' span beyond it.

    With two or three seeds an interval can be many times wider than everything else; the frame then cuts the band.
    """
    heights = np.concatenate([np.asarray(line.get_ydata(), float) for panel in panels for line in panel.lines])
    bands = [
        np.asarray(path.vertices)[:, 1] for panel in panels for drawn in panel.collections for path in drawn.get_paths()
    ]
    heights = heights[np.isfinite(heights)]
    if not len(heights):
        return
    low, high = float(heights.min()), float(heights.max())
    span = (high - low) or 0.1 * abs(high) or 1.0
    around = np.concatenate([heights, *bands])
    around = around[np.isfinite(around)]
    bottom, top = max(float(around.min()), low - room * span), min(float(around.max()), high + room * span)
    for panel in panels:
        panel.set_ylim(bottom - 0.05 * span, top + 0.05 * span)


def round_axis(panel: Axes, rounds: NDArray[Any]) -> None:
    """Whole numbers on the round axis, no more of it than there are rounds."""
    panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    if len(rounds) > 1:
        panel.set_xlim(float(rounds.min()), float(rounds.max()))


def draw_line(
    panel: Axes,
    x: NDArray[Any],
    values: DoubleArray,
    *,
    color: str,
    marker: str | None = None,
    dashes: Any = "-",
    width: float = 2.0,
    label: str | None = None,
    band: float = 0.18,
) -> DoubleArray:
    """The mean over seeds of `values` (S, T) against `x` (T,), with a 95 % band if S >= 2. Returns the mean."""
    mean, low, high = t_interval(values)
    offset = max(len(x) // 8, 1)
    panel.plot(
        x,
        mean,
        color=color,
        linestyle=dashes,
        linewidth=width,
        marker=marker,
        markevery=offset,
        markersize=6,
        label=label,
        clip_on=False,
        zorder=3,
    )
    if band and np.isfinite(low).any():
        band = 0.6 * band if color == KNOWN_ARMS["oracle"][0] else band  # black weighs more than the other colours
        panel.fill_between(x, low, high, color=color, alpha=band, linewidth=0, zorder=2, label=None)
    return mean


def label_ends(panel: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names beside the right ends of lines, pushed apart so that none covers another.

    Args:
        panel: with its limits already final.
        ends: (y of the line's end, text, colour).
    """
    low, high = panel.get_ylim()
    figure = panel.get_figure(root=True)
    assert figure is not None
    inches = panel.get_position().height * figure.get_size_inches()[1]
    gap = (high - low) * (LABEL * 1.15 / 72) / max(float(inches), 0.5)
    known = sorted((end for end in ends if np.isfinite(end[0])), key=lambda end: end[0])
    places = spread([y for y, _, _ in known], gap)
    for (y, text, color), place in zip(known, places, strict=True):
        panel.annotate(
            text,
            xy=(1.0, (y - low) / (high - low)),
            xytext=(1.04, (place - low) / (high - low)),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=color,
            fontsize=LABEL,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 2},
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Sorted places moved as little as needed to lie at least `gap` apart (pool adjacent violators)."""
    blocks: list[list[float]] = []  # [sum of (place - i * gap), count]
    for i, place in enumerate(places):
        blocks.append([place - i * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    bases = [total / count for total, count in blocks for _ in range(int(count))]
    return [base + i * gap for i, base in enumerate(bases)]


def key_line(label: str, *, color: str, marker: str | None = None, dashes: Any = "-", width: float = 2.0) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=color, marker=marker, linestyle=dashes, linewidth=width, markersize=7, label=label)


def legend_below(figure: Figure, entries: Sequence[Any]) -> None:
    """One legend under all panels, in as many columns as fit."""
    inches = 0.95 + 0.098 * max(len(entry.get_label()) for entry in entries)
    columns = int(figure.get_size_inches()[0] // inches)
    figure.legend(
        handles=list(entries),
        loc="outside lower center",
        ncols=max(min(columns, len(entries)), 1),
        frameon=False,
        fontsize=LABEL,
        handlelength=3.2,
    )


def legend_arms_and_modes(figure: Figure, arms: Sequence[str], modes: Sequence[str]) -> None:
    """A legend of arms by colour and marker, and of controls by dashes."""
    styles = arm_styles(sort_arms(arms))
    entries = [key_line(plain(arm), color=styles[arm].color, marker=styles[arm].marker) for arm in sort_arms(arms)]
    broken = [mode for mode in sort_modes(modes) if mode not in ("loop", "none")]
    entries += [key_line(f"{mode} control", color=INK, dashes=mode_dashes(mode), width=1.5) for mode in broken]
    legend_below(figure, entries)


def wrap(text: str, width: int = 34) -> str:
    """Text broken into lines of at most `width` characters."""
    return "\n".join(textwrap.wrap(text, width, break_long_words=True)) or text


def plain(text: object) -> str:
    """Text as matplotlib will print it: a dollar sign is a dollar sign, not mathematics."""
    return str(text).replace("$", r"\$")


def svg_bytes(figure: Figure) -> bytes:
    """The figure as SVG with text as text, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "simenv", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
