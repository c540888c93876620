"""The figure of the realism suite, from its table alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simenv.figures.style import FAINT, INK, LABEL, arm_styles, new_figure

MODELS = ("always-yes", "popularity", "itemknn", "svd", "ease")


def draw(table: pl.DataFrame, model: str) -> Figure:
    """Three panels: discrimination, ratings, traits.

    Args:
        table: of tables/realism.csv.
        model: whose realism is judged.
    """
    figure, grid = new_figure(1, 3, (14.0, 4.8))
    color = arm_styles([model])[model].color
    _discrimination(grid[0, 0], table, model, color)
    _ratings(grid[0, 1], table, model, color)
    _traits(grid[0, 2], table, model, color)
    return figure


def _discrimination(panel: Axes, table: pl.DataFrame, model: str, color: str) -> None:
    names = [*MODELS, model]
    auc = table.filter((pl.col("test") == "discrimination") & (pl.col("metric") == "auc"))
    for setting, filled, shift in (("popularity-matched 1:1", True, 0.12), ("uniform 1:1", False, -0.12)):
        rows = {row["model"]: row for row in auc.filter(pl.col("setting") == setting).to_dicts()}
        for place, name in enumerate(names):
            if name in rows:
                _point(panel, rows[name], place + shift, color if name == model else INK, filled=filled)
    panel.axvline(0.5, color=FAINT, linewidth=1)
    panel.set_yticks(range(len(names)), names, fontsize=LABEL)
    panel.set_xlabel("AUC, choices against unseen items", fontsize=LABEL)


def _ratings(panel: Axes, table: pl.DataFrame, model: str, color: str) -> None:
    shares = table.filter((pl.col("test") == "ratings") & pl.col("metric").str.starts_with("share of"))
    if shares.is_empty():
        panel.text(0.5, 0.5, "no ratings", ha="center", va="center", transform=panel.transAxes, fontsize=LABEL)
        return
    stars = shares.filter(pl.col("model") == model)["metric"].str.strip_prefix("share of ").to_list()
    places = np.arange(len(stars))
    for who, shift, shade in (("real", -0.2, FAINT), (model, 0.2, color)):
        rows = shares.filter(pl.col("model") == who).to_dicts()
        values = np.array([row["value"] for row in rows])
        low, high = (np.array([row[name] for row in rows], dtype=float) for name in ("ci_low", "ci_high"))
        panel.bar(places + shift, values, 0.38, color=shade, label=who)
        panel.errorbar(
            places + shift,
            values,
            yerr=[np.maximum(values - low, 0), np.maximum(high - values, 0)],
            fmt="none",
            ecolor=INK,
            elinewidth=1,
        )
    panel.set_xticks(places, stars, fontsize=LABEL)
    panel.set_xlabel("rating", fontsize=LABEL)
    panel.set_ylabel("share", fontsize=LABEL)
    panel.legend(fontsize=LABEL, frameon=False, loc="upper left")


def _traits(panel: Axes, table: pl.DataFrame, model: str, color: str) -> None:
    rows = table.filter(
        (pl.col("test") == "traits") & (pl.col("metric") == "relative to real") & (pl.col("model") == model)
    ).to_dicts()
    for place, row in enumerate(rows):
        _point(panel, row, place, color, filled=True)
    panel.axvline(1.0, color=FAINT, linewidth=1)
    panel.axvline(0.0, color=FAINT, linewidth=1, linestyle=":")
    panel.set_yticks(range(len(rows)), [row["setting"].split(":")[0] for row in rows], fontsize=LABEL)
    panel.set_ylim(-0.6, max(len(rows) - 0.4, 0.6))
    panel.set_xlabel("effect of the trait / real effect", fontsize=LABEL)


def _point(panel: Axes, row: dict[str, Any], place: float, color: str, *, filled: bool) -> None:
    if row["ci_low"] is not None and row["ci_high"] is not None:
        panel.plot([row["ci_low"], row["ci_high"]], [place, place], color=color, linewidth=1.5)
    panel.plot(row["value"], place, "o", color=color, markerfacecolor=color if filled else "white", markersize=7)
