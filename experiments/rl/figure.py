"""Learning curves of the benchmark, between what is known exactly or played by other policies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from simenv.figures import style

Curves = Mapping[tuple[str, str], NDArray[np.float64]]  # (game, agent) to returns, (seeds, points + 1)
Levels = Mapping[str, Mapping[str, float]]  # game to what other policies earn; the last is the mark, drawn as 1


def draw(pages: Mapping[str, NDArray[np.int64]], curves: Curves, levels: Levels) -> Figure:
    """One panel a game: mean and 95 % t interval over seeds, as a share of the game's mark.

    Args:
        pages: training pages at each point, by game.
        curves, levels: see above.
    """
    agents = list(dict.fromkeys(agent for _, agent in curves))
    figure, panels = style.small_multiples(len(pages), height=3.3, columns=3, share=False)
    looks = dict(zip(agents, style.SPARE, strict=False))
    for panel, (game, at) in zip(panels, pages.items(), strict=True):
        mark_name, mark = list(levels[game].items())[-1]
        panel.set_xlim(0, at[-1] / 1000)
        panel.set_ylim(0, 1.15)
        shares = by_height({name: value / mark for name, value in levels[game].items()})
        for share, names in shares.items():
            crowded = any(share < other < share + 0.15 for other in shares)
            panel.axhline(share, color=style.INK if share == 1 else style.FAINT, linewidth=1.2, zorder=1)
            panel.annotate(
                ", ".join(names),
                xy=(1.0, share),
                xytext=(-2, -3 if crowded else 2),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="top" if crowded else "bottom",
                fontsize=style.TICK,
                color=style.FAINT,
                zorder=4,
            )
        for agent, (color, marker) in looks.items():
            if (game, agent) in curves:
                style.draw_line(panel, at / 1000, curves[game, agent] / mark, color=color, marker=marker)
        panel.set_title(f"{game} ({mark_name} {mark:.2f})", fontsize=style.TITLE, loc="left", color=style.INK)
        panel.set_xlabel("training pages, thousands", fontsize=style.LABEL, color=style.INK)
    figure.supylabel("return of a held-out episode, share of the mark", fontsize=style.LABEL, color=style.INK)
    style.legend_below(
        figure, [style.key_line(name, color=color, marker=marker) for name, (color, marker) in looks.items()]
    )
    return figure


def by_height(shares: Mapping[str, float]) -> dict[float, list[str]]:
    """Shares of the mark, highest first, with the policies that have them; what lies above the axis is left out."""
    found: dict[float, list[str]] = {}
    for name, share in sorted(shares.items(), key=lambda each: -each[1]):
        if share < 1.1:
            found.setdefault(round(share, 2), []).append(name)
    return found
