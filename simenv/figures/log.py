"""Figures of single impressions: who saw what, at which rank, how often.

`events` is a polars DataFrame or LazyFrame with the columns of `events/*.parquet`, e.g.
`pl.scan_parquet("RUN/events/*.parquet")`: a lazy one is summarised as a stream and never held in memory. Where counts
per item suffice, the frame of `count_exposure` serves as well. `items` and `users` are the frames of the parquet files
of that name; where each seed is a world of its own they carry a column `seed`. The module does not know how a slate
was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from simenv.conclusions.statistics import t_interval
from simenv.errors import DataError
from simenv.figures.style import (
    FAINT,
    INK,
    LABEL,
    TICK,
    TITLE,
    arm_styles,
    draw_line,
    fit_y,
    key_line,
    label_axes,
    label_ends,
    legend_below,
    mode_dashes,
    plain,
    round_axis,
    small_multiples,
    sort_arms,
    sort_modes,
)
from simenv.metrics.comparisons import lorenz
from simenv.metrics.formulas import gini, spearman
from simenv.numeric import DoubleArray

Frame = pl.DataFrame | pl.LazyFrame
JOB = ("seed", "arm", "mode")


def count_exposure(events: Frame) -> pl.DataFrame:
    """Impressions and clicks of each item in each round: seed, arm, mode, round, item, impressions, clicks."""
    counted = (
        events.lazy()
        .group_by(*JOB, "round", "item")
        .agg(pl.len().alias("impressions"), pl.col("clicked").sum().alias("clicks"))
    )
    return _collect(counted, "count impressions").sort(*JOB, "round", "item")


def plot_lorenz(events: Frame, n_items: int | None = None) -> Figure:
    """Lorenz curves of impressions over the catalogue, first round (thin) against last (thick), one panel per arm.

    Args:
        events: the log, or the frame of `count_exposure`.
        n_items: catalogue size, so that items never shown count as zeros; default: the largest item row seen plus one.
    """
    counts = _counts(events)
    size = n_items or int(np.asarray(counts["item"].max())) + 1
    arms = sort_arms(counts["arm"].unique(maintain_order=True).to_list())
    styles = arm_styles(arms)
    figure, panels = small_multiples(len(arms), height=3.6)
    grid = np.linspace(0, 1, 201)
    first, last = int(np.asarray(counts["round"].min())), int(np.asarray(counts["round"].max()))
    shown: dict[str, None] = {}
    for panel, arm in zip(panels, arms, strict=True):
        panel.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
        color = styles[arm].color
        lines = []
        for mode in reversed(_modes(counts, arm)):
            main = mode in ("loop", "none")
            curves, ginis = _lorenz_curves(counts, arm, mode, last, size, grid)
            draw_line(
                panel,
                grid,
                curves,
                color=color,
                dashes=mode_dashes(mode),
                width=2.6 if main else 1.5,
                band=0.2 if main else 0.08,
            )
            shown[mode] = None
            if main:
                start, start_ginis = _lorenz_curves(counts, arm, mode, first, size, grid)
                draw_line(panel, grid, start, color=color, width=1.0, band=0.1)
                lines = [f"Gini {np.mean(start_ginis):.2f} → {np.mean(ginis):.2f}"]
        panel.text(0.04, 0.95, "\n".join(lines), transform=panel.transAxes, fontsize=TICK, va="top", color=INK)
        _title(panel, arm, color)
        panel.set(xlim=(0, 1), ylim=(0, 1))
    label_axes(figure, "share of items, least shown first", "share of impressions")
    entries = [key_line(f"round {first}", color=INK, width=1.0), key_line(f"round {last}", color=INK, width=2.6)]
    broken = [mode for mode in sort_modes(shown) if mode not in ("loop", "none")]
    entries += [key_line(f"{mode}, round {last}", color=INK, dashes=mode_dashes(mode), width=1.5) for mode in broken]
    legend_below(figure, entries)
    return figure


def plot_popularity_by_rank(
    events: Frame, last_rounds: int = 5, *, levels: Mapping[str, float] | None = None, title: str = ""
) -> Figure:
    """Mean popularity percentile at each rank of the slate over the last rounds, one line per arm, in mode loop.

    Args:
        events: the log.
        last_rounds: how many.
        levels: name -> percentile to hold the lines against, each a thin labelled line.
        title: over the panel.
    """
    lazy = events.lazy().filter(pl.col("mode").is_in(["loop", "none"]))
    last = _scalar(lazy.select(pl.col("round").max()), "last round")
    if last is None:
        raise DataError("events: none in mode 'loop'")
    means = _collect(
        lazy.filter(pl.col("round") > last - last_rounds)
        .group_by(*JOB, "rank")
        .agg(pl.col("popularity0_pct").cast(pl.Float64).mean().alias("value")),
        "mean popularity by rank",
    )
    arms = sort_arms(means["arm"].unique(maintain_order=True).sort().to_list())
    styles = arm_styles(arms)
    figure, (panel,) = small_multiples(1, height=5.2)
    ends = []
    for arm in arms:
        ranks, values = _matrix(means.filter(pl.col("arm") == arm), "rank")
        mean = draw_line(panel, ranks + 1, values, color=styles[arm].color, marker=styles[arm].marker)
        ends.append((float(mean[-1]), plain(arm), styles[arm].color))
    for name, level in (levels or {}).items():
        panel.axhline(level, color=FAINT, linewidth=1, linestyle=":")
        ends.append((level, plain(name), FAINT))
    n_ranks = int(np.asarray(means["rank"].max())) + 1
    panel.set_xlim(0.8, n_ranks)
    step = -(-n_ranks // 10)
    panel.set_xticks(sorted({1, *range(step, n_ranks + 1, step)}))
    panel.set_xlabel("rank in the slate (1 = top)", fontsize=LABEL)
    panel.set_ylabel("popularity percentile", fontsize=LABEL)
    _title(panel, title, INK)
    fit_y([panel])
    label_ends(panel, ends)
    return figure


def plot_exposure_quality(events: Frame, items: pl.DataFrame, bins: int = 10) -> Figure:
    """Share of impressions against item quality, one panel per arm in mode loop, with Spearman's rho.

    Dots: the items of the first seed. Line: mean share in `bins` bins of equal size, with its interval over seeds.

    Raises:
        DataError: if no quality is known.
    """
    from scipy.stats import rankdata

    _require(items, "items", "item", "quality")
    if items["quality"].null_count() == len(items):
        raise DataError("items: no item's quality is known")
    counts = _counts(events).filter(pl.col("mode").is_in(["loop", "none"]))
    totals = counts.group_by(*JOB, "item").agg(pl.col("impressions").sum()).sort("seed", "item")
    arms = sort_arms(totals["arm"].unique(maintain_order=True).sort().to_list())
    styles = arm_styles(arms)
    figure, panels = small_multiples(len(arms), height=3.6)
    floor = 0.03  # where "never shown" is drawn on the log axis
    for panel, arm in zip(panels, arms, strict=True):
        own = totals.filter(pl.col("arm") == arm)
        rhos, profiles = [], []
        for i, seed in enumerate(own["seed"].unique().sort().to_list()):
            world = _world(items, seed).filter(pl.col("quality").is_not_null())
            rows = world.join(own.filter(pl.col("seed") == seed), on="item", how="left")
            share = rows["impressions"].fill_null(0).to_numpy().astype(float)
            share = share / share.sum() * len(share)
            place = (rankdata(rows["quality"].to_numpy()) - 0.5) / len(rows)
            rhos.append(spearman(place, share))
            bin_of = np.minimum((place * bins).astype(int), bins - 1)
            sums = np.bincount(bin_of, share, minlength=bins)
            sizes = np.bincount(bin_of, minlength=bins)
            profiles.append(np.divide(sums, sizes, out=np.full(bins, np.nan), where=sizes > 0))
            if i == 0:
                dots = np.maximum(share, floor)
                panel.scatter(place, dots, s=7, color=styles[arm].color, alpha=0.35, linewidths=0, rasterized=True)
        mean, low, high = (np.maximum(edge, floor) for edge in t_interval(np.array(profiles)))
        centres = (np.arange(bins) + 0.5) / bins
        panel.plot(centres, mean, color=INK, linewidth=2.2)
        panel.fill_between(centres, low, high, color=INK, alpha=0.22, linewidth=0)
        panel.axhline(1, color=FAINT, linewidth=1, linestyle="--")
        _title(panel, arm, styles[arm].color)
        text = f"ρ = {_with_interval(rhos)}"
        panel.text(0.04, 0.96, text, transform=panel.transAxes, fontsize=TICK, va="top", color=INK)
    top = max(float(panel.dataLim.y1) for panel in panels)
    panels[0].set_yscale("log")
    panels[0].set_ylim(floor * 0.7, top * 5)
    powers = [10.0**e for e in range(-1, int(np.log10(top * 5)) + 1)]
    panels[0].set_yticks([floor, *powers], ["0", *(f"{power:g}" for power in powers)])
    panels[0].minorticks_off()
    label_axes(figure, "quality percentile of the item", "impressions, relative to an equal share")
    mean_line = key_line("mean of items of like quality", color=INK)
    equal = key_line("equal share", color=FAINT, dashes="--", width=1)
    legend_below(figure, [mean_line, equal])
    return figure


def plot_genre_stream(events: Frame, items: pl.DataFrame, most: int = 8) -> Figure:
    """What the clicks were made of: share of each genre per round, one panel per arm in mode loop, mean over seeds.

    An item of several genres counts in equal parts. The `most` frequent genres are named; the rest is "other".

    Args:
        events: the log, or the frame of `count_exposure`.
        items: with columns `item` and `genres`, a list of names or names joined by "|".
        most: how many genres to name.
    """
    _require(items, "items", "item", "genres")
    counts = _counts(events).filter(pl.col("mode").is_in(["loop", "none"]) & (pl.col("clicks") > 0))
    if counts.is_empty():
        raise DataError("events: no clicks in mode 'loop'")
    keys = ["seed", "item"] if "seed" in items.columns else ["item"]
    parts = _genre_parts(items, keys)
    shares = (
        counts.join(parts, on=keys, how="inner")
        .group_by("arm", "mode", "round", "genre")
        .agg((pl.col("clicks") * pl.col("part")).sum().alias("weight"))
        .with_columns((pl.col("weight") / pl.col("weight").sum().over("arm", "mode", "round")).alias("share"))
    )
    by_size = shares.group_by("genre").agg(pl.col("share").sum()).sort("share", "genre", descending=[True, False])
    top = by_size["genre"].to_list()[:most]
    rest = by_size.height > len(top)
    arms = sort_arms(shares["arm"].unique(maintain_order=True).sort().to_list())
    figure, panels = small_multiples(len(arms), height=3.6)
    colors = _genre_colors(len(top), rest)
    rounds = np.sort(counts["round"].unique().to_numpy())
    for panel, arm in zip(panels, arms, strict=True):
        own = shares.filter(pl.col("arm") == arm)
        layers = [_on_rounds(own.filter(pl.col("genre") == genre), rounds) for genre in top]
        if rest:
            layers.append(_on_rounds(own.filter(~pl.col("genre").is_in(top)), rounds))
        panel.stackplot(rounds, layers, colors=colors, edgecolor="white", linewidth=0.8)
        _title(panel, arm, INK)
        panel.set(xlim=(rounds.min(), max(rounds.max(), rounds.min() + 1)), ylim=(0, 1))
        panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    label_axes(figure, "round", "share of clicks")
    names = [*top, "other"] if rest else top
    entries = [key_line(plain(name), color=color, width=9) for name, color in zip(names, colors, strict=True)]
    legend_below(figure, entries)
    return figure


def plot_lift_against_history(events: Frame, users: pl.DataFrame, history: str, profile: str, bins: int = 10) -> Figure:
    """Who is pushed to the popular: popularity shown minus popularity of the user's own history, by history length.

    Args:
        events: the log.
        users: with a column `user` and the two named next.
        history: the column of interactions before round 0.
        profile: the column of the mean popularity percentile of those interactions.
        bins: users are cut into this many groups of equal size by history length.
    """
    _require(users, "users", "user", history, profile)
    keys = ["seed", "user"] if "seed" in users.columns else ["user"]
    scope = ["seed"] if "seed" in users.columns else []
    rank = pl.col(history).rank("ordinal")
    length = pl.len()
    place = (((rank.over(scope) if scope else rank) - 1) * bins // (length.over(scope) if scope else length)).cast(
        pl.Int32
    )
    placed = users.drop_nulls([history, profile]).select(
        *keys,
        pl.col(history).cast(pl.Float64).alias("length"),
        pl.col(profile).cast(pl.Float64).alias("own"),
        place.alias("bin"),
    )
    lifts = _collect(
        events.lazy()
        .filter(pl.col("mode").is_in(["loop", "none"]))
        .join(placed.lazy(), on=keys, how="inner")
        .group_by(*JOB, "bin")
        .agg((pl.col("popularity0_pct").cast(pl.Float64) - pl.col("own")).mean().alias("value")),
        "popularity lift by history length",
    )
    if lifts.is_empty():
        raise DataError("users: none of them is in the events")
    groups = placed.group_by("bin").agg(pl.col("length").median()).sort("bin")
    lengths = np.full(bins, np.nan)  # few users leave some groups empty
    lengths[groups["bin"].to_numpy()] = groups["length"].to_numpy()
    arms = sort_arms(lifts["arm"].unique(maintain_order=True).sort().to_list())
    styles = arm_styles(arms)
    figure, (panel,) = small_multiples(1, height=5.2)
    panel.axhline(0, color=INK, linewidth=1.2)
    ends = []
    for arm in arms:
        places, values = _matrix(lifts.filter(pl.col("arm") == arm), "bin")
        mean = draw_line(panel, lengths[places], values, color=styles[arm].color, marker=styles[arm].marker)
        ends.append((float(mean[-1]), plain(arm), styles[arm].color))
    if lengths.min() > 0 and lengths.max() > 8 * lengths.min():
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
    if lengths.max() > lengths.min():
        panel.set_xlim(float(lengths.min()), float(lengths.max()))
    panel.set_xlabel("interactions before round 0 (median of the group)", fontsize=LABEL)
    panel.set_ylabel("percentile shown minus\npercentile of own history", fontsize=LABEL)
    fit_y([panel])
    label_ends(panel, ends)
    return figure


def plot_item_stability(events: Frame) -> Figure:
    """Do the same items win in every seed? Mean Spearman of impressions per item between pairs of seeds, per round.

    Only where all seeds share one catalogue. Each seed's correlation with the others is one replicate of the band,
    which is therefore narrower than an interval over independent pairs would be.

    Raises:
        DataError: if there are fewer than three seeds.
    """
    from scipy.stats import rankdata

    counts = _counts(events).filter(pl.col("mode").is_in(["loop", "none"]))
    seeds = counts["seed"].unique().sort().to_list()
    if len(seeds) < 3:
        raise DataError(f"events: {len(seeds)} seeds; the stability of items needs at least three")
    size = int(np.asarray(counts["item"].max())) + 1
    arms = sort_arms(counts["arm"].unique(maintain_order=True).sort().to_list())
    styles = arm_styles(arms)
    figure, (panel,) = small_multiples(1, height=5.2)
    rounds = np.sort(counts["round"].unique().to_numpy())
    ends = []
    for arm in arms:
        own = counts.filter(pl.col("arm") == arm)
        table = np.zeros((len(seeds), len(rounds), size), np.float32)
        table[np.searchsorted(seeds, own["seed"]), np.searchsorted(rounds, own["round"]), own["item"]] = own[
            "impressions"
        ]
        values = np.full((len(seeds), len(rounds)), np.nan)
        for t in range(len(rounds)):
            if (table[:, t].sum(axis=1) > 0).all():
                together = np.corrcoef(rankdata(table[:, t], axis=1))
                values[:, t] = (together.sum(axis=1) - 1) / (len(seeds) - 1)
        mean = draw_line(panel, rounds, values, color=styles[arm].color, marker=styles[arm].marker)
        ends.append((float(mean[-1]), plain(arm), styles[arm].color))
    round_axis(panel, rounds)
    panel.set_xlabel("round", fontsize=LABEL)
    panel.set_ylabel("Spearman of impressions\nbetween seeds", fontsize=LABEL)
    fit_y([panel])
    label_ends(panel, ends)
    return figure


# -- summaries ------------------------------------------------------------------------------------------------


def _collect(lazy: pl.LazyFrame, what: str) -> pl.DataFrame:
    """Run a lazy query as a stream; a damaged file is a DataError."""
    try:
        return lazy.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"events: cannot {what} ({reason}); expected the columns of the event log") from error


def _scalar(lazy: pl.LazyFrame, what: str) -> int | None:
    value = _collect(lazy, f"read the {what}").item()
    return None if value is None else int(value)


def _counts(events: Frame) -> pl.DataFrame:
    if isinstance(events, pl.DataFrame) and {"impressions", "clicks"} <= set(events.columns):
        counts = events
    else:
        counts = count_exposure(events)
    if counts.is_empty():
        raise DataError("events: no impressions; expected at least one")
    return counts


def _require(frame: pl.DataFrame, name: str, *columns: str) -> None:
    absent = [column for column in columns if column not in frame.columns]
    if absent:
        raise DataError(f"{name}: no column {absent[0]!r}; expected {', '.join(columns)}")


def _modes(counts: pl.DataFrame, arm: str) -> list[str]:
    return sort_modes(counts.filter(pl.col("arm") == arm)["mode"].unique().to_list())


def _world(items: pl.DataFrame, seed: int) -> pl.DataFrame:
    return items.filter(pl.col("seed") == seed).drop("seed") if "seed" in items.columns else items


def _matrix(frame: pl.DataFrame, along: str) -> tuple[NDArray[Any], DoubleArray]:
    """(values of `along` (T,), column `value` as (S, T), NaN where absent)."""
    places, column = np.unique(frame[along].to_numpy(), return_inverse=True)
    seeds, row = np.unique(frame["seed"].to_numpy(), return_inverse=True)
    table = np.full((len(seeds), len(places)), np.nan)
    table[row, column] = frame["value"].to_numpy()
    return places, table


def _lorenz_curves(
    counts: pl.DataFrame, arm: str, mode: str, round_: int, n_items: int, grid: DoubleArray
) -> tuple[DoubleArray, DoubleArray]:
    """Lorenz curves of each seed on `grid` (S, len(grid)) and their Gini coefficients (S,)."""
    own = counts.filter((pl.col("arm") == arm) & (pl.col("mode") == mode) & (pl.col("round") == round_))
    curves, ginis = [], []
    for _, part in own.sort("seed").group_by("seed", maintain_order=True):
        shown = np.zeros(n_items)
        shown[part["item"].to_numpy()] = part["impressions"].to_numpy()
        curves.append(np.interp(grid, *lorenz(shown)))
        ginis.append(gini(shown))
    if not curves:
        return np.full((1, len(grid)), np.nan), np.full(1, np.nan)
    return np.array(curves), np.array(ginis)


def _genre_parts(items: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """One row per item and genre with the part (1 / number of genres) it counts for."""
    genres = items.select(*keys, "genres")
    if genres.schema["genres"] == pl.String:
        genres = genres.with_columns(pl.col("genres").str.split("|").list.eval(pl.element().filter(pl.element() != "")))
    filled = genres.with_columns(
        pl.when(pl.col("genres").list.len() > 0).then(pl.col("genres")).otherwise(pl.lit(["no genre"])).alias("genre"),
    )
    return filled.with_columns((1 / pl.col("genre").list.len()).alias("part")).explode("genre").drop("genres")


def _genre_colors(n: int, rest: bool) -> list[str]:
    """Light and dark in turn, so that neighbours differ in grey print too; grey for the rest."""
    palette = ("#332288", "#88ccee", "#117733", "#ddcc77", "#882255", "#f0a6a0", "#0f6b7a", "#c9b6e4")
    return [palette[i % len(palette)] for i in range(n)] + (["#d0d0d0"] if rest else [])


def _on_rounds(frame: pl.DataFrame, rounds: NDArray[Any]) -> DoubleArray:
    """The summed share per round, zero where absent, (len(rounds),)."""
    out = np.zeros(len(rounds))
    np.add.at(out, np.searchsorted(rounds, frame["round"].to_numpy()), frame["share"].to_numpy())
    return out


def _with_interval(values: list[float]) -> str:
    mean, _, high = (float(v) for v in t_interval(np.array(values)))
    return f"{mean:.2f}" if np.isnan(high) else f"{mean:.2f} ± {high - mean:.2f}"


def _title(panel: Axes, arm: str, color: str) -> None:
    panel.set_title(plain(arm), fontsize=TITLE, loc="left", color=color, fontweight="bold")
