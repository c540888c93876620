"""What the page's controls show: courses of metrics, exposure, users and items, thinned to what a page can carry.

The result is data (`as_json`), for `templates/explore.js` to draw; the module does not know how. Courses of users and
items are a sample of the first seed's, drawn by rule, and the page says of how many.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import t

from simenv.errors import DataError
from simenv.figures.style import arm_styles, mode_dashes, same_styles, sort_arms, sort_modes
from simenv.metrics.comparisons import lorenz
from simenv.metrics.frame import all_series, primary_control
from simenv.metrics.table import metric_label
from simenv.report.figures import HISTORY_COLUMNS
from simenv.report.run_data import RunData

MOST_VALUES = 120_000  # numbers of the metrics' courses; rounds are thinned beyond
MOST_SEEDS = 12  # drawn as thin lines
MOST_USERS, MOST_ITEMS = 10, 30
MOST_IMPRESSIONS = 40_000  # of the sampled users together
MOST_LETTERS = 400_000  # of prompts and answers
LORENZ_POINTS = 41
TENTHS = 10

Line = tuple[str, str]  # arm and mode
Ints = list[int | None]


def explore(run: RunData) -> dict[str, Any] | None:
    """The data of the page's controls, ready for `as_json`; None where a run has no metrics over rounds."""
    if run.metrics is None or run.metrics["round"].n_unique() < 2:
        return None
    found = set(run.metrics.select("arm", "mode").unique().iter_rows())
    arms, modes = sort_arms(arm for arm, _ in found), sort_modes(mode for _, mode in found)
    lines = [(arm, mode) for arm in arms for mode in modes if (arm, mode) in found]
    with same_styles(run.arms):
        styles = arm_styles(arms)
    rounds = _kept_rounds(run.metrics, len(lines))
    seeds = sorted(run.metrics["seed"].unique().to_list())
    shown: dict[str, Any] = {
        "rounds": rounds,
        "allRounds": run.metrics["round"].n_unique(),
        "seeds": seeds[:MOST_SEEDS],
        "nSeeds": len(seeds),
        "lines": [{"arm": a, "mode": m, "color": styles[a].color, "dash": _dash(m)} for a, m in lines],
        "metrics": _metrics(run.metrics, lines, rounds, seeds),
    }
    if run.event_files and run.n_items:
        shown |= _exposure(run, lines, rounds, seeds)
        shown |= _courses(run, lines, seeds[0])
    return shown


def as_json(data: Mapping[str, Any]) -> str:
    """JSON that may stand in a `script` element: no text in it can end the element or open a tag."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


# -- metrics and exposure -----------------------------------------------------------------------------------------


def _kept_rounds(metrics: pl.DataFrame, n_lines: int) -> list[int]:
    """All rounds, or as many evenly spaced ones as `MOST_VALUES` allows; the first and the last always."""
    rounds = np.sort(metrics["round"].unique().to_numpy())
    groups, seeds = metrics["group"].n_unique(), min(metrics["seed"].n_unique(), MOST_SEEDS)
    most = MOST_VALUES // max(1, metrics["metric"].n_unique() * n_lines * (seeds + 2 * groups))
    places = np.linspace(0, len(rounds) - 1, min(len(rounds), max(most, 2)))
    return [int(r) for r in rounds[np.unique(places.round().astype(int))]]


def _metrics(metrics: pl.DataFrame, lines: Sequence[Line], rounds: list[int], seeds: list[int]) -> list[dict[str, Any]]:
    """Each metric as whole numbers of its last digit: means and half intervals by group, seeds for all users."""
    groups = sorted(metrics["group"].unique().to_list(), key=lambda group: (group != "all", group))
    views = []
    for name in metrics["metric"].unique(maintain_order=True).to_list():
        whole = metrics.filter((pl.col("metric") == name) & pl.col("round").is_in(rounds))
        cubes = ((group, _cube(whole, group, lines, rounds, seeds)) for group in groups)
        values = {group: cube for group, cube in cubes if cube is not None}
        if not values:
            continue
        known = np.concatenate([cube[np.isfinite(cube)] for cube in values.values()])
        digits = int(np.clip(4 - np.ceil(np.log10(max(np.ptp(known), np.abs(known).max() / 100, 1e-12))), 0, 9))
        views.append(
            {
                "name": name,
                "label": metric_label(name),
                "digits": digits,
                "groups": {group: _mean_and_half(cube, digits) for group, cube in values.items()},
                "seeds": [_ints(line[:MOST_SEEDS], digits) for line in values["all"]] if "all" in values else [],
            }
        )
    return views


def _cube(
    metrics: pl.DataFrame, group: str, lines: Sequence[Line], rounds: list[int], seeds: list[int]
) -> NDArray[Any] | None:
    """Values of a metric and group (lines, seeds, rounds), NaN where not measured; None = nowhere."""
    name = metrics["metric"][0]
    try:
        found = all_series(metrics, name, group)
    except DataError:
        return None
    cube = np.full((len(lines), len(seeds), len(rounds)), np.nan)
    for place, line in enumerate(lines):
        if line in found:
            own = found[line]
            cube[place][np.ix_(np.searchsorted(seeds, own.seeds), np.searchsorted(rounds, own.rounds))] = own.values
    return cube


def _mean_and_half(cube: NDArray[Any], digits: int) -> dict[str, list[Ints]]:
    """Means over seeds and half 95 % t intervals, by line and round."""
    n = np.isfinite(cube).sum(axis=1)
    mean = np.divide(np.nansum(cube, axis=1), n, out=np.full(n.shape, np.nan), where=n > 0)
    squares = np.nansum((cube - mean[:, None]) ** 2, axis=1)
    sd = np.sqrt(np.divide(squares, n - 1, out=np.full(n.shape, np.nan), where=n > 1))
    half = t.ppf(0.975, np.maximum(n - 1, 1)) * sd / np.sqrt(np.maximum(n, 1))
    return {"mean": _ints(mean, digits), "half": _ints(half, digits)}


def _ints(rows: NDArray[Any], digits: int) -> list[Ints]:
    """Rows in units of 10^-digits, None for NaN."""
    return [[int(v) if np.isfinite(v) else None for v in row] for row in np.round(rows * 10**digits)]


def _exposure(run: RunData, lines: Sequence[Line], rounds: list[int], seeds: list[int]) -> dict[str, Any]:
    """Per line and round, in thousandths and as means over seeds: Lorenz curves, and shares by tenth of popularity."""
    assert run.items is not None
    assert run.n_items is not None
    size = run.n_items
    grid = np.linspace(0, 1, LORENZ_POINTS)
    bins = {seed: _tenths(run.items, seed, size) for seed in seeds}
    counts = run.exposure.filter(pl.col("round").is_in(rounds))
    curves = np.full((len(lines), len(rounds), LORENZ_POINTS), np.nan)
    shares = np.full((len(lines), len(rounds), TENTHS), np.nan)
    for place, (arm, mode) in enumerate(lines):
        own = counts.filter((pl.col("arm") == arm) & (pl.col("mode") == mode))
        held: dict[int, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
        for (round_, seed), part in own.group_by("round", "seed"):
            shown = np.bincount(part["item"].to_numpy(), part["impressions"].to_numpy(), size)
            by_tenth = np.bincount(bins[int(seed)], shown, TENTHS)
            held.setdefault(rounds.index(int(round_)), []).append(
                (np.interp(grid, *lorenz(shown)), by_tenth / shown.sum())
            )
        for index, pairs in held.items():
            curves[place, index] = np.mean([curve for curve, _ in pairs], axis=0)
            shares[place, index] = np.mean([share for _, share in pairs], axis=0)
    return {"lorenz": [_ints(line, 3) for line in curves], "tenths": [_ints(line, 3) for line in shares]}


def _tenths(items: pl.DataFrame, seed: int, size: int) -> NDArray[np.int64]:
    """Which tenth of popularity each item was in before round 0, (size,); the middle where that is not known."""
    bins = np.full(size, TENTHS // 2)
    if "popularity0_pct" in items.columns:
        own = _of_seed(items, seed)
        percentile = own["popularity0_pct"].fill_null(0.5).to_numpy()
        bins[own["item"].to_numpy()] = np.clip((percentile * TENTHS).astype(int), 0, TENTHS - 1)
    return bins


# -- courses of users and items -----------------------------------------------------------------------------------


def _courses(run: RunData, lines: Sequence[Line], seed: int) -> dict[str, Any]:
    """Sampled users and items of one seed."""
    assert run.items is not None
    items = _of_seed(run.items, seed)
    named = dict(zip(items["item"].to_list(), items["title"].to_list(), strict=True)) if "title" in items else {}
    places: dict[int, int] = {}  # of an item in `titles`

    def place_of(item: int) -> int:
        return places.setdefault(item, len(places))

    exposure = run.exposure.filter(pl.col("seed") == seed)
    shown = {"items": _items(exposure, items, lines, place_of), "users": _users(run, lines, seed, place_of)}
    texts: dict[str, int] = {}  # system prompts come again and again
    for talk in (talk for user in shown["users"] for talk in user["talks"]):
        talk["messages"] = [[role, texts.setdefault(text, len(texts))] for role, text in talk["messages"]]
    titles = [str(named.get(item) or f"item {item}") for item in places]
    total = run.events.select(pl.len()).collect().item()
    n_users = len(run.users.filter(pl.col("seed") == seed)) if run.users is not None and "seed" in run.users else None
    about = {"impressions": total, "seed": seed, "nItems": len(items), "nUsers": n_users}
    return {**shown, **about, "titles": titles, "texts": list(texts)}


def _items(
    exposure: pl.DataFrame, items: pl.DataFrame, lines: Sequence[Line], place_of: Callable[[int], int]
) -> list[dict[str, Any]]:
    """Items with most impressions in each loop, and with most gained or lost against its control, by round."""
    totals = exposure.group_by("arm", "mode", "item").agg(pl.col("impressions").sum())
    sums = {(arm, mode): part for (arm, mode), part in totals.group_by("arm", "mode")}
    wanted: list[list[int]] = []
    controls = {arm: primary_control([other for held, other in lines if held == arm]) for arm, _ in lines}
    for arm, mode in sorted(lines, key=lambda line: controls[line[0]] is None):  # references last
        if mode not in ("loop", "none") or (arm, mode) not in sums:
            continue
        own = sums[arm, mode].select("item", "impressions").sort(["impressions", "item"], descending=[True, False])
        control = controls[arm]
        change: list[int] = []
        if control is not None and (arm, control) in sums:
            both = own.join(
                sums[arm, control].select("item", before="impressions"), on="item", how="full", coalesce=True
            )
            moved = both.with_columns(
                d=pl.col("impressions").fill_null(0).cast(pl.Int64) - pl.col("before").fill_null(0)
            )
            ordered = moved.sort(["d", "item"])["item"].to_list()
            change = [*ordered[::-1][:3], *ordered[:2]]
        wanted.append([*own["item"].head(4).to_list(), *change])
    turns = [row[turn] for turn in range(9) for row in wanted if turn < len(row)]
    chosen = list(dict.fromkeys(turns))[:MOST_ITEMS]
    rounds = int(np.asarray(exposure["round"].max())) + 1
    about = {row["item"]: row for row in items.filter(pl.col("item").is_in(chosen)).to_dicts()}
    views = []
    for item in chosen:
        own = exposure.filter(pl.col("item") == item)
        courses: list[list[int]] = []
        for arm, mode in lines:
            part = own.filter((pl.col("arm") == arm) & (pl.col("mode") == mode))
            courses.append(
                np.bincount(part["round"].to_numpy(), part["impressions"].to_numpy(), rounds).astype(int).tolist()
            )
        views.append({"title": place_of(item), "about": _facts(about.get(item, {})), "shown": courses})
    return views


def _users(run: RunData, lines: Sequence[Line], seed: int, place_of: Callable[[int], int]) -> list[dict[str, Any]]:
    """Users from light to heavy with all they were shown: `[round, page, item]`, item a place in `titles`, and where
    it was clicked a fourth entry, its rating or None. Users with recorded prompts come first.
    """
    log = run.events.filter(pl.col("seed") == seed)
    users = None if run.users is None else _of_seed(run.users, seed)
    known = (
        sorted(log.select("user").unique().collect()["user"].to_list()) if users is None else users["user"].to_list()
    )
    talks = _talks(run, lines, seed)
    history = next((c for c in HISTORY_COLUMNS if users is not None and c in users.columns), None)
    if users is not None and history is not None:
        known = users.sort([history, "user"])["user"].to_list()
    impressions = log.select(pl.len()).collect().item() / max(len(known), 1)
    most = min(MOST_USERS, max(1, int(MOST_IMPRESSIONS // max(impressions, 1))))
    spread = [known[int(i)] for i in np.linspace(0, len(known) - 1, min(most, len(known))).round()]
    chosen = list(dict.fromkeys([*talks, *spread]))[: max(most, len(talks))]
    about = {} if users is None else {row["user"]: row for row in users.filter(pl.col("user").is_in(chosen)).to_dicts()}
    columns = ["arm", "mode", "user", "round", *(["page"] if "page" in log.collect_schema() else []), "item", "clicked"]
    rated = "rating" in log.collect_schema()
    order = [name for name in ("user", "round", "page", "rank") if name in log.collect_schema()]
    own = log.filter(pl.col("user").is_in(chosen)).sort(order).select(*columns, *(["rating"] if rated else []))
    parts = dict(own.collect().group_by("user", "arm", "mode", maintain_order=True))
    views = []
    for user in chosen:
        courses = []
        for arm, mode in lines:
            part = parts.get((user, arm, mode))
            courses.append([] if part is None else [_impression(row, place_of) for row in part.iter_rows(named=True)])
        row = about.get(user, {})
        name = str(row.get("user_id") or user)
        views.append({"id": name, "about": _facts(row), "courses": courses, "talks": talks.get(user, [])})
    return views


def _impression(row: Mapping[str, Any], place_of: Callable[[int], int]) -> list[float | None]:
    shown = [row["round"], row.get("page", 0), place_of(row["item"])]
    if not row["clicked"]:
        return shown
    rating = row.get("rating")
    return [*shown, None if rating is None or rating != rating else round(float(rating), 2)]


def _talks(run: RunData, lines: Sequence[Line], seed: int) -> dict[int, list[dict[str, Any]]]:
    """What a language model was told and answered for each recorded user, as far as `MOST_LETTERS` goes."""
    talks: dict[int, list[dict[str, Any]]] = {}
    letters, seen = 0, set[str]()
    for talk in run.transcripts:
        line = talk["arm"], talk["mode"]
        if talk["seed"] != seed or line not in lines:
            continue
        texts = [talk["answer"], *(text for _, text in talk["messages"])]
        letters += sum(len(text) for text in texts if text not in seen)
        if letters > MOST_LETTERS:
            break
        seen.update(texts)
        kept = {name: talk[name] for name in ("round", "page", "messages", "answer")}
        talks.setdefault(talk["user"], []).append({**kept, "line": lines.index(line)})
    return talks


def _facts(row: Mapping[str, Any]) -> str:
    """What the table tells of a user or an item, as one line."""
    told = []
    for key, value in row.items():
        if key in ("seed", "item", "item_id", "title", "user", "user_id") or value is None or value == []:
            continue
        if isinstance(value, list):
            value = ", ".join(map(str, value[:6]))
        told.append(
            f"{key.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
        )
    return "; ".join(told)[:400]


def _of_seed(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    return frame.filter(pl.col("seed") == seed) if "seed" in frame.columns else frame


def _dash(mode: str) -> str:
    """The dashes of a mode for an SVG stroke of width 2."""
    dashes = mode_dashes(mode)
    return "" if isinstance(dashes, str) else " ".join(f"{2 * part:g}" for part in dashes[1])
