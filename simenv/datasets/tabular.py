"""The user's own data: a table of interactions, and optionally one of items and one of users."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv import checks
from simenv.datasets.base import Catalog, Dataset, RatingScale
from simenv.datasets.raw import RawRatings, numbered_items, only_consumed
from simenv.datasets.reviews import Reviews, written
from simenv.datasets.tables import Table
from simenv.errors import ConfigError, DataError
from simenv.records import record

USER = ("user", "userid", "uid", "customer", "customerid", "reviewerid", "useridx", "visitorid", "personid")
ITEM = ("item", "itemid", "iid", "movieid", "videoid", "artistid", "trackid", "productid", "asin", "businessid", "sku")
RATING = ("rating", "ratings", "score", "overall")
TIME = ("time", "timestamp", "date", "datetime", "createdat", "unixreviewtime")
REVIEW = ("review", "reviewtext", "reviewbody")
SUMMARY = ("summary", "reviewsummary", "reviewtitle")
TITLE = ("title", "name", "itemname", "movietitle")
MOST_GROUPS = 20  # different values of a column of users that is taken for an attribute
DUPLICATES = ("error", "first", "last", "sum")


@dataclass(frozen=True, slots=True, kw_only=True)
class TabularOptions:
    """Which files and columns `tabular` reads, and how.

    Attributes:
        root: folder that relative file names start from; None = the current folder, else $SIMENV_DATA/tabular.
        interactions: file, one row an interaction.
        items: file, one row an item; None = titles read ``item <id>``. Unused items are left out.
        users: file, one row a user, whose `groups` become attributes; None = none known.
        separator: of text files, one character or ``::``; None = found from each file's name and first line.
        columns: names of the columns of `interactions` where it has no header line.
        skip: lines of `interactions` before its table.
        user, item: columns of `interactions`; ids are read as text. None = the column that goes by a usual name.
        rating: column of ratings, blank = consumed without one; None = no ratings; ``auto`` = a usual name or none.
        review: column with what the user wrote; None = none; ``auto`` = a usual name or none. See
            `simenv.datasets.reviews.written`.
        summary: column with that in a few words, likewise.
        time: column of numbers, dates or times; None = the file's order; ``auto`` = a usual name, else that order.
        time_format: of dates as text, as for `datetime.strptime`; None = ISO and what can be told from the column.
        time_zone: of dates and times that name none.
        rating_scale: lowest and highest rating, and the step between ratings.
        fit_ratings: round ratings to the nearest of the scale; else one that is not on it is refused.
        signal: column of graded feedback, such as a share watched; None = each row is a consumption.
        threshold: rows with a `signal` below it are no consumption, and are left out.
        duplicates: of rows with the same user, item and time (without times: user and item), ``error``, keep the
            ``first`` or the ``last``, or ``sum`` their ratings. Without times, ``error`` takes them for repeated
            consumption.
        item_id, title: columns of `items`; None = the column that goes by a usual name.
        genres: column of `items` with names separated by `genre_separator`; None = no genres.
        genre_separator: what stands between two genres.
        text: column of `items` with a description; None = none.
        user_id: column of `users`; None = the column that goes by a usual name.
        groups: columns of `users`; None = each with at most 20 different values. Users not in the file: ``unknown``.
    """

    root: str | None = None
    interactions: str = "interactions.csv"
    items: str | None = None
    users: str | None = None
    separator: str | None = None
    columns: Sequence[str] | None = None
    skip: int = 0
    user: str | None = None
    item: str | None = None
    rating: str | None = "auto"
    review: str | None = "auto"
    summary: str | None = "auto"
    time: str | None = "auto"
    time_format: str | None = None
    time_zone: str = "UTC"
    rating_scale: Sequence[float] = (1, 5, 1)
    fit_ratings: bool = False
    signal: str | None = None
    threshold: float = 0.0
    duplicates: str = "error"
    item_id: str | None = None
    title: str | None = None
    genres: str | None = None
    genre_separator: str = "|"
    text: str | None = None
    user_id: str | None = None
    groups: Sequence[str] | None = None


def tabular(*, n_users: int | None = None, n_items: int | None = None, seed: int = 0, **options: Any) -> Dataset:
    """A data set from the user's tables: text with any separator (UTF-8, also ``.gz``), or Parquet.

    Args:
        n_users: seeded sample of this many users; None = all.
        n_items: this many most-rated items, chosen before the users; None = all.
        seed: decides the sample of users.
        **options: see `TabularOptions`.

    Raises:
        DataError: a file or column is missing, or a row damaged. ConfigError: an option is out of range.
    """
    whole, notes = _load(record(TabularOptions(), options, "dataset"))
    _say(tuple(note for note in notes if " = " in note))
    return whole.reduced(n_users=n_users, n_items=n_items, seed=seed)


setattr(tabular, "passes_on_to", TabularOptions)  # noqa: B010 - so that options are checked by its annotations


def check(file: str | Path, **options: Any) -> list[str]:
    """What `tabular` would load from a file of interactions, in lines: columns, counts, spans, and what is left out.

    Args:
        file: of interactions.
        **options: as of `tabular`.

    Raises:
        SimenvError: as `tabular` would.
    """
    checks.conform(tabular, options, "dataset.")
    given = {name: value for name, value in options.items() if name not in ("n_users", "n_items", "seed")}
    data, notes = _load(record(TabularOptions(), given | {"interactions": str(file)}, "dataset"))
    return [*notes, *described(data)]


def described(data: Dataset) -> list[str]:
    """Counts and spans of a data set, in lines."""
    log = data.interactions
    counts, of_items = log.user_counts(), log.item_counts()
    lines = [
        f"{len(log):,} interactions of {data.n_users:,} users with {data.n_items:,} items, "
        f"{100 * len(log) / data.n_users / data.n_items:.3g} % of all pairs",
        f"interactions a user: {counts.min()} to {counts.max():,}, median {np.median(counts):g}; "
        f"an item: {of_items.min()} to {of_items.max():,}, median {np.median(of_items):g}",
        f"time: {_span(log.times)}",
    ]
    rated = log.ratings[~np.isnan(log.ratings)]
    lines.append(
        f"ratings: {len(rated):,}, {rated.min():g} to {rated.max():g}, mean {rated.mean(dtype=np.float64):.3g}"
        if len(rated)
        else "ratings: none"
    )
    catalog = data.catalog
    if data.reviews is not None:
        lines += data.reviews.told()
    lines.append(f"genres: {catalog.n_genres}; texts: {sum(map(bool, catalog.texts)):,} items")
    for name, values in data.user_attributes.items():
        lines.append(f"users by {name}: {', '.join(sorted(set(values.tolist())))}")
    return lines


def _span(times: NDArray[np.int64]) -> str:
    first, last = int(times.min()), int(times.max())
    for scale, least in ((1, 10**8), (10**3, 10**11), (10**6, 10**14), (10**9, 10**17)):
        if least <= first and last < least * 100:
            days = [datetime.fromtimestamp(each / scale, UTC).strftime("%Y-%m-%d") for each in (first, last)]
            return f"{days[0]} to {days[1]}"
    return f"{first} to {last}"


@cache
def _say(notes: tuple[str, ...]) -> None:
    """Say once which columns were found by themselves; processes of a run keep quiet."""
    if notes and multiprocessing.parent_process() is None:
        print("\n".join(f"tabular: {note}" for note in notes), file=sys.stderr)


def _load(o: TabularOptions) -> tuple[Dataset, list[str]]:
    """The whole data set, and what should be said of it."""
    scale = _scale(o.rating_scale)
    checks.whole("dataset.skip", o.skip)
    checks.one_of("dataset.duplicates", o.duplicates, DUPLICATES)
    path = _find(o.interactions, o.root)
    table = Table(path, o.separator, o.columns, o.skip)
    notes = table.notes
    rating = table.named("rating", None, RATING, needed=False) if o.rating == "auto" else o.rating
    time = table.named("time", None, TIME, needed=False) if o.time == "auto" else o.time
    review = table.named("review", None, REVIEW, needed=False) if o.review == "auto" else o.review
    summary = table.named("summary", None, SUMMARY, needed=False) if o.summary == "auto" and review else o.summary
    summary = None if summary == "auto" else summary
    raw = RawRatings(
        path=path,
        lines=table.lines,
        row_name=table.row_name,
        users=table.ids(str(table.named("user", o.user, USER))),
        items=table.ids(str(table.named("item", o.item, ITEM))),
        ratings=scale.round(table.numbers(rating)) if o.fit_ratings else table.ratings(rating),
        times=table.times(time, form=o.time_format, zone=o.time_zone),
    )
    if o.signal is not None:
        kept = table.numbers(o.signal) >= o.threshold
        raw = raw.take(kept)
        notes.append(f"rows left out, {o.signal} below {o.threshold:g}: {(~kept).sum():,} of {len(kept):,}")
        if not len(raw.users):
            raise DataError(f"{path}: no row with {o.signal} of {o.threshold:g} or more; expected a lower threshold")
    if o.duplicates != "error":
        once = raw.without_repeats(o.duplicates, timed=time is not None)
        notes.append(f"duplicate rows left out (duplicates={o.duplicates}): {len(raw.users) - len(once.users):,}")
        raw = once
    raw.check_scale(scale)
    if o.items is None:
        catalog, source = numbered_items(raw.items), path.name
    else:
        described = Table(_find(o.items, o.root), o.separator)
        columns_of_items = (
            str(described.named("item_id", o.item_id, ("id", *ITEM))),
            str(described.named("title", o.title, TITLE)),
        )
        catalog = _catalog(described, *columns_of_items, o.genres, o.genre_separator, o.text)
        notes += described.notes
        source = Path(o.items).name
    log, ids = raw.renumber(catalog.item_ids, source)
    n_known = catalog.n_items
    catalog, log = only_consumed(catalog, log)
    if n_known > catalog.n_items:
        notes.append(f"items without an interaction left out: {n_known - catalog.n_items:,}")
    attributes = {}
    if o.users is not None:
        people = Table(_find(o.users, o.root), o.separator)
        attributes = _attributes(people, str(people.named("user_id", o.user_id, ("id", *USER))), o.groups, ids)
        notes += people.notes
    whole = Dataset(
        name="tabular",
        catalog=catalog,
        interactions=log,
        user_ids=tuple(ids.tolist()),
        rating_scale=scale,
        user_attributes=attributes,
        reviews=None if review is None else _reviews(table, raw, catalog, ids, review, summary),
    )
    return whole, notes


def _reviews(
    table: Table, raw: RawRatings, catalog: Catalog, ids: NDArray[np.str_], review: str, summary: str | None
) -> Reviews | None:
    """What was written with the rows that are kept, in time order; None where nothing was."""
    row_of = {line: row for row, line in enumerate(table.lines.tolist())}
    item_of = {item: row for row, item in enumerate(catalog.item_ids)}
    order = np.argsort(raw.times, kind="stable")
    rows = [row_of[line] for line in raw.lines[order].tolist()]
    texts, short = table.texts(review), table.texts(summary)
    found = written(
        np.searchsorted(ids, raw.users[order]),
        np.array([item_of[item] for item in raw.items[order].tolist()]),
        [texts[row] for row in rows],
        [short[row] for row in rows],
    )
    return found if len(found) else None


def _scale(values: Sequence[float]) -> RatingScale:
    if len(values) != 3 or not (values[0] < values[1] and values[2] > 0):
        raise ConfigError(f"rating_scale={list(values)}; expected lowest, highest and step, such as [1, 5, 1]")
    low, high, step = map(float, values)
    steps = (high - low) / step
    if abs(steps - round(steps)) > 1e-6 * max(1.0, steps):
        raise ConfigError(f"rating_scale={list(values)}; expected a step that leads from the lowest to the highest")
    if step < 4 * float(np.spacing(np.float32(max(abs(low), abs(high))))):
        raise ConfigError(
            f"rating_scale={list(values)}; expected a step that 32 bits can tell apart, such as a larger one"
        )
    return RatingScale(low=low, high=high, step=step)


def _find(name: str, root: str | None) -> Path:
    given = Path(name).expanduser()
    path = given if root is None else Path(root).expanduser() / given
    if path.is_file():
        return path
    shelf = os.environ.get("SIMENV_DATA")
    if root is None and shelf and (Path(shelf) / "tabular" / given).is_file():
        return Path(shelf) / "tabular" / given
    raise DataError(f"tabular: {path} is no file; name it with dataset.interactions or dataset.items, and dataset.root")


def _attributes(
    table: Table, user_id: str, groups: Sequence[str] | None, ids: NDArray[np.str_]
) -> dict[str, NDArray[Any]]:
    """Columns of the table of users in the order of `ids`; ``unknown`` where a user or value is absent."""
    found = table.ids(user_id)
    _each_once(table, "user", found)
    row_of = {user: row for row, user in enumerate(found)}
    rows = np.array([row_of.get(user, -1) for user in ids])
    if (rows < 0).any():
        table.notes.append(f"{table.path.name}: {(rows < 0).sum():,} of {len(ids):,} users are not in it")
    attributes: dict[str, NDArray[Any]] = {}
    for name in [column for column in table.frame.columns if column != user_id] if groups is None else groups:
        values = np.array([value.strip() or "unknown" for value in table.texts(name)] + ["unknown"])[rows]
        if groups is not None or len(np.unique(values)) <= MOST_GROUPS:
            attributes[name] = values
        else:
            table.notes.append(f"{table.path.name}: {name} has {len(np.unique(values)):,} values and is left out")
    return attributes


def _each_once(table: Table, what: str, ids: NDArray[np.str_]) -> None:
    _, first = np.unique(ids, return_index=True)
    if len(first) < len(ids):
        row = int(np.setdiff1d(np.arange(len(ids)), first)[0])
        raise DataError(f"{table.where(row)}: {what} {ids[row]} again; expected each once")


def _catalog(
    table: Table, item_id: str, title: str, genres: str | None, genre_separator: str, text: str | None
) -> Catalog:
    ids, titles = table.ids(item_id), table.texts(title)
    _each_once(table, "item", ids)
    blank = next((row for row, words in enumerate(titles) if not words.strip()), None)
    if blank is not None:
        raise DataError(f"{table.where(blank)}: item {ids[blank]} has no title; every item needs one")
    lists = [[g.strip() for g in words.split(genre_separator) if g.strip()] for words in table.texts(genres)]
    names = sorted({name for row in lists for name in row})
    column = {name: g for g, name in enumerate(names)}
    flags = np.zeros((len(ids), len(names)), np.bool_)
    for row, words in enumerate(lists):
        flags[row, [column[name] for name in words]] = True
    return Catalog(
        item_ids=tuple(ids.tolist()),
        titles=tuple(words.strip() for words in titles),
        genre_names=tuple(names),
        genres=flags,
        texts=tuple(table.texts(text)),
    )
