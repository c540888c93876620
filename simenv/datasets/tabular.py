"""The user's own data: a CSV or Parquet file of interactions with named columns, and optionally one of items."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import Catalog, Dataset, FloatArray, LongArray, RatingScale
from simenv.datasets.files import read_text
from simenv.datasets.raw import RawRatings, numbered_items, only_consumed
from simenv.errors import ConfigError, DataError

if TYPE_CHECKING:
    import polars as pl


def tabular(
    *,
    n_users: int | None = None,
    n_items: int | None = None,
    seed: int = 0,
    root: str | None = None,
    interactions: str = "interactions.csv",
    items: str | None = None,
    user: str = "user",
    item: str = "item",
    rating: str | None = None,
    time: str | None = None,
    rating_scale: Sequence[float] = (1, 5, 1),
    item_id: str = "item",
    title: str = "title",
    genres: str | None = None,
    genre_separator: str = "|",
    text: str | None = None,
) -> Dataset:
    """A data set from the user's tables. CSV is UTF-8 with a header line, comma-separated (.tsv: tabs).

    Args:
        n_users: seeded sample of this many users; None = all.
        n_items: this many most-rated items, chosen before the users; None = all.
        seed: decides the sample of users.
        root: folder that relative file names start from; None = the current folder, else $SIMENV_DATA/tabular.
        interactions: .csv, .tsv or .parquet file, one row an interaction.
        items: file of the same kinds, one row an item; None = titles read ``item <id>``. Unused items are left out.
        user, item: columns of `interactions`; ids are read as text.
        rating: column of ratings, blank = consumed without a rating; None = no ratings.
        time: column of numbers, dates or ISO times; None = the file's order.
        rating_scale: lowest and highest rating, and the step between ratings.
        item_id, title: columns of `items`.
        genres: column of `items` with names separated by `genre_separator`; None = no genres.
        genre_separator: what stands between two genres.
        text: column of `items` with a description; None = none.

    Raises:
        DataError: a file or column is missing, or a row damaged. ConfigError: an option is out of range.
    """
    scale = _scale(rating_scale)
    path = _find(interactions, root)
    table = _Table(path)
    raw = RawRatings(
        path=path,
        lines=table.lines,
        row_name=table.row_name,
        users=table.ids(user),
        items=table.ids(item),
        ratings=table.ratings(rating),
        times=table.times(time),
    )
    raw.check_scale(scale)
    if items is None:
        catalog, source = numbered_items(raw.items), path.name
    else:
        catalog = _catalog(_Table(_find(items, root)), item_id, title, genres, genre_separator, text)
        source = Path(items).name
    log, users = raw.renumber(catalog.item_ids, source)
    catalog, log = only_consumed(catalog, log)
    whole = Dataset(
        name="tabular", catalog=catalog, interactions=log, user_ids=tuple(users.tolist()), rating_scale=scale
    )
    return whole.reduced(n_users=n_users, n_items=n_items, seed=seed)


def _scale(values: Sequence[float]) -> RatingScale:
    if len(values) != 3 or not (values[0] < values[1] and values[2] > 0):
        raise ConfigError(f"rating_scale={list(values)}; expected lowest, highest and step, such as [1, 5, 1]")
    low, high, step = map(float, values)
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


class _Table:
    """A table whose columns are asked for by name and kind; errors name file and line (Parquet: row)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frame = _read(path)
        parquet = path.suffix.lower() == ".parquet"
        self.row_name = "row" if parquet else "line"
        self.lines: LongArray = np.arange(self.frame.height) + (1 if parquet else 2)
        if self.frame.height == 0:
            raise DataError(f"{path}: no rows; expected at least one")

    def column(self, name: str) -> pl.Series:
        if name not in self.frame.columns:
            raise DataError(f"{self.path}: no column {name!r}; expected it among {', '.join(self.frame.columns)}")
        return self.frame[name]

    def ids(self, name: str) -> NDArray[np.str_]:
        """Non-empty texts, (n,)."""
        import polars as pl

        column = self.column(name).cast(pl.String()).str.strip_chars()
        self._refuse((column.is_null() | (column == "")).fill_null(True), f"no {name}; expected one in every row")
        return np.asarray(column.to_list(), dtype=np.str_)

    def texts(self, name: str | None) -> list[str]:
        """Texts, empty where null, (n,); an empty list where no column is asked for."""
        import polars as pl

        return [] if name is None else [str(value) for value in self.column(name).cast(pl.String()).fill_null("")]

    def ratings(self, name: str | None) -> FloatArray:
        if name is None:
            return np.full(self.frame.height, np.nan, np.float32)
        return self._numbers(name, self.column(name)).astype(np.float32)

    def times(self, name: str | None) -> LongArray:
        """Integers in the order of time: whole numbers as they are, others and dates in millionths (of a second)."""
        import polars as pl

        if name is None:
            return np.arange(self.frame.height)
        column = self.column(name)
        if column.dtype == pl.String():
            column = column.str.strip_chars().replace("", None)
        self._refuse(column.is_null(), f"no {name}; expected one in every row")
        if column.dtype == pl.String() and column.str.contains(r"^\d{4}-\d\d").all():
            moments = pl.Series([_microseconds(text) for text in column], dtype=pl.Int64())
            return self._converted(name, column, moments, "an ISO time").to_numpy()
        if column.dtype.is_temporal():
            return column.cast(pl.Datetime("us")).dt.epoch("us").to_numpy()
        numbers, whole = self._numbers(name, column), column.cast(pl.Int64(), strict=False)
        if whole.null_count() == 0 and (numbers % 1 == 0).all():
            return whole.to_numpy()
        return np.rint(numbers * 1e6).astype(np.int64)

    def _numbers(self, name: str, column: pl.Series) -> NDArray[np.float64]:
        """Finite float64, NaN where blank."""
        import polars as pl

        if column.dtype == pl.String():
            column = column.str.strip_chars().replace("", None)
        numbers = self._converted(name, column, column.cast(pl.Float64(), strict=False), "a number")
        self._refuse(~numbers.is_finite().fill_null(True), f"{name} is not finite; expected a number")
        return numbers.fill_null(float("nan")).to_numpy()

    def _converted(self, name: str, before: pl.Series, after: pl.Series, wanted: str) -> pl.Series:
        lost = after.is_null() & before.is_not_null()
        if lost.any():
            row = int(lost.arg_max() or 0)
            self._refuse(lost, f"{name} is {before[row]!r}; expected {wanted}")
        return after

    def _refuse(self, wrong: pl.Series, what: str) -> None:
        if wrong.any():
            raise DataError(f"{self.path}, {self.row_name} {self.lines[int(wrong.arg_max() or 0)]}: {what}")


def _microseconds(text: str) -> int | None:
    """Microseconds since 1970 of an ISO 8601 date or time (without a zone: UTC); None = not one."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1e6)


def _read(path: Path) -> pl.DataFrame:
    import polars as pl

    suffix = path.suffix.lower()
    if suffix == ".parquet":
        try:
            return pl.read_parquet(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path}: no readable Parquet file ({str(error).splitlines()[0]})") from None
    if suffix not in (".csv", ".tsv"):
        raise DataError(f"{path}: unknown kind of file {suffix!r}; expected .csv, .tsv or .parquet")
    separator = "\t" if suffix == ".tsv" else ","
    text = read_text(path, "utf-8")
    _check_width(path, text, separator)
    return pl.read_csv(text.encode(), separator=separator, infer_schema=False)


def _check_width(path: Path, text: str, separator: str) -> None:
    """Raise DataError at the first row that has not as many fields as the header."""
    import csv

    reader = csv.reader(text.splitlines(), delimiter=separator)
    header = next(reader)
    for fields in reader:
        if len(fields) != len(header):
            raise DataError(
                f"{path}, line {reader.line_num}: {len(fields)} fields; expected {len(header)} as in the header"
            )


def _catalog(
    table: _Table, item_id: str, title: str, genres: str | None, genre_separator: str, text: str | None
) -> Catalog:
    ids, titles = table.ids(item_id), table.texts(title)
    _, first = np.unique(ids, return_index=True)
    if len(first) < len(ids):
        row = int(np.setdiff1d(np.arange(len(ids)), first)[0])
        raise DataError(f"{table.path}, {table.row_name} {table.lines[row]}: item {ids[row]} again; expected each once")
    blank = next((row for row, words in enumerate(titles) if not words.strip()), None)
    if blank is not None:
        where = f"{table.path}, {table.row_name} {table.lines[blank]}"
        raise DataError(f"{where}: item {ids[blank]} has no title; every item needs one")
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
