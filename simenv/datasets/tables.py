"""Tables of all common kinds, read as named columns; errors name file and line.

Text is UTF-8 with any separator of one character, or ``::``; ``.gz`` is unpacked; Parquet is taken as it is. The module
does not know what the columns mean to a data set.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import FloatArray, LongArray
from simenv.datasets.files import read_text
from simenv.errors import ConfigError, DataError

if TYPE_CHECKING:
    import polars as pl

SEPARATORS = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}
TEXT = (".csv", ".tsv", ".txt", ".dat", ".data", ".inter", ".item", ".user")
_TYPED = re.compile(r"(.+):(?:token|token_seq|float|float_seq)")  # RecBole's headers
_YEAR_FIRST = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?:[T ]+(.+))?")
_YEAR_LAST = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})(?:[T ]+(.+))?")
_MILLION = 10**6


class Table:
    """A table whose columns are asked for by name and kind.

    Args:
        path: of the file.
        separator: of text; None = found from its name and first line.
        columns: names of a text file without a header line; None = the first line names them.
        skip: lines of a text file before the table.

    Raises:
        DataError: it is empty or damaged. ConfigError: the separator is none.
    """

    def __init__(
        self, path: Path, separator: str | None = None, columns: Sequence[str] | None = None, skip: int = 0
    ) -> None:
        import polars as pl

        self.path = path
        self.notes: list[str] = []
        suffix = Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()
        self.row_name = "line"
        if suffix in (".parquet", ".pq"):
            self.row_name = "row"
            try:
                self.frame = pl.read_parquet(path)
            except (pl.exceptions.PolarsError, OSError) as error:
                raise DataError(f"{path}: no readable Parquet file ({str(error).splitlines()[0]})") from None
            self.lines: LongArray = np.arange(self.frame.height) + 1
        elif suffix in TEXT:
            self.frame, self.lines = self._read(suffix, separator, columns, skip)
        else:
            raise DataError(f"{path}: unknown kind of file {suffix!r}; expected {', '.join(TEXT)} or .parquet")
        if self.frame.height == 0:
            raise DataError(f"{path}: no rows; expected at least one")

    # -- text ---------------------------------------------------------------------------------------------------

    def _read(
        self, suffix: str, separator: str | None, columns: Sequence[str] | None, skip: int
    ) -> tuple[pl.DataFrame, LongArray]:
        """The rows as texts, and the line each row starts in."""
        import polars as pl

        text = read_text(self.path, "utf-8")
        for _ in range(skip):
            text = text.partition("\n")[2]
        first = text.lstrip("\r\n").split("\n", 1)[0]
        separator = _separator(self.path, suffix, first) if separator is None else SEPARATORS.get(separator, separator)
        if separator != "::" and (len(separator) != 1 or separator in '"\r\n'):
            raise ConfigError(f"separator={separator!r}: expected one character, '::', or {', '.join(SEPARATORS)}")
        csv_rules = separator != "::" and (separator in ",;|" or first.startswith('"'))
        if csv_rules and ('"' in text or text.count("\r") > text.count("\r\n")):
            found = list(self._quoted(text, separator))
            fields = pl.Series([row for _, row in found], dtype=pl.List(pl.String()))
            lines = np.array([number for number, _ in found], np.int64)
            blank = (fields.list.len() == 0) | ((fields.list.len() == 1) & (fields.list.first() == ""))
        else:  # lines end at LF or CRLF alone, not at what Unicode calls an end
            whole = pl.Series([text.removesuffix("\n")]).str.split("\n").explode().str.strip_suffix("\r")
            fields, lines = whole.str.split(separator), np.arange(len(whole)) + 1
            blank = whole == "" if csv_rules else whole.str.strip_chars() == ""
        names = list(columns) if columns is not None else [name.strip() for name in fields[0]]
        if all(_TYPED.fullmatch(name) for name in names):
            names = [name.rpartition(":")[0] for name in names]
        twice = next((name for n, name in enumerate(names) if name in names[:n]), None)
        if twice is not None:
            raise DataError(f"{self.path}, line 1: column {twice!r} comes twice; expected each name once")
        rows = ~blank
        if columns is None:
            rows[0] = blank[0] = False
        if blank.any():
            self.notes.append(f"{self.path.name}: blank lines skipped: {blank.sum()}")
        fields, lines = fields.filter(rows), lines[rows.to_numpy()] + skip
        wrong = fields.list.len() != len(names)
        if wrong.any():
            row = int(wrong.arg_max() or 0)
            wanted = "as in the header" if columns is None else f"({', '.join(names)})"
            shown = next((word for word, sign in SEPARATORS.items() if sign == separator), repr(separator))
            raise DataError(
                f"{self.path}, line {lines[row]}: {len(fields[row])} fields; expected {len(names)} {wanted}, "
                f"separated by {shown}"
            )
        return pl.DataFrame({name: fields.list.get(place) for place, name in enumerate(names)}), lines

    def _quoted(self, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
        """The line a row starts in, and its fields, by the rules of CSV."""
        limit = csv.field_size_limit(sys.maxsize)
        reader, start = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), 1
        try:
            for fields in reader:
                yield start, fields
                start = reader.line_num + 1
        except csv.Error as error:
            what = "a quoted field does not end" if "unexpected end" in str(error) else "a quote inside a quoted field"
            raise DataError(f'{self.path}, line {start}: {what}; expected quotes within quotes doubled ("")') from None
        finally:
            csv.field_size_limit(limit)

    # -- columns ------------------------------------------------------------------------------------------------

    def named(self, option: str, name: str | None, known: Sequence[str], *, needed: bool = True) -> str | None:
        """The column that is meant: the one named, or the only one that usually goes by one of the `known` names."""
        if name is not None:
            self.column(name)
            return name
        plain = {re.sub(r"[^a-z0-9]", "", column.lower()): column for column in reversed(self.frame.columns)}
        for each in known:
            if each in plain:
                if plain[each] != option:
                    self.notes.append(f"{self.path.name}: {option} = {plain[each]}")
                return plain[each]
        if needed:
            raise DataError(
                f"{self.path}: no column {option!r}; expected it among {', '.join(self.frame.columns)}, "
                f"or dataset.{option}=COLUMN"
            )
        return None

    def column(self, name: str) -> pl.Series:
        if name not in self.frame.columns:
            raise DataError(f"{self.path}: no column {name!r}; expected it among {', '.join(self.frame.columns)}")
        column = self.frame[name]
        kind = column.dtype
        if kind.is_nested() or str(kind).startswith(("Binary", "Object", "Null", "Time", "Duration")):
            raise DataError(f"{self.path}: column {name!r} holds {kind}; expected text, numbers, dates or times")
        return column

    def ids(self, name: str) -> NDArray[np.str_]:
        """Non-empty texts, (n,)."""
        import polars as pl

        column = self.column(name)
        if column.dtype.is_float() and bool((column.is_null() | (column % 1 == 0)).all()):
            column = column.cast(pl.Int64(), strict=False)  # whole numbers beside a blank
        column = column.cast(pl.String()).str.strip_chars()
        self.refuse((column.is_null() | (column == "")).fill_null(True), f"no {name}; expected one in every row")
        return np.asarray(column.to_list(), dtype=np.str_)

    def texts(self, name: str | None) -> list[str]:
        """Texts, empty where null, (n,); an empty list where no column is asked for."""
        import polars as pl

        return [] if name is None else [str(value) for value in self.column(name).cast(pl.String()).fill_null("")]

    def numbers(self, name: str | None) -> NDArray[np.float64]:
        """Finite numbers, NaN where blank or where no column is asked for, (n,)."""
        import polars as pl

        if name is None:
            return np.full(self.frame.height, np.nan)
        column = _stripped(self.column(name))
        found = column.cast(pl.Float64(), strict=False)
        self._refuse_values(found.is_null() & column.is_not_null(), name, column, "a number")
        self.refuse(~found.is_finite().fill_null(True), f"{name} is not finite; expected a number")
        return found.fill_null(float("nan")).to_numpy()

    def ratings(self, name: str | None) -> FloatArray:
        return self.numbers(name).astype(np.float32)

    def times(self, name: str | None, *, form: str | None = None, zone: str = "UTC") -> LongArray:
        """Integers in the order of time, (n,).

        Whole numbers are taken as they are; dates, times and fractions in millionths (of a second). Numbers that do
        not fit into 64 bits so are replaced by their places in the order.

        Args:
            name: of the column; None = the order of the rows.
            form: of texts, as for `datetime.strptime`; None = ISO 8601 and its unpadded forms, day.month.year, and
                day/month/year or month/day/year where the column shows which.
            zone: of times that name none.
        """
        import polars as pl

        if name is None:
            return np.arange(self.frame.height)
        column = _stripped(self.column(name))
        self.refuse(column.is_null(), f"no {name}; expected one in every row")
        if column.dtype.is_temporal():
            return column.cast(pl.Datetime("us")).dt.epoch("us").to_numpy()
        texts = column.dtype == pl.String()
        if texts and (form is not None or not _is_number(column[0])):
            return self._moments(name, column.to_list(), form, _zone(zone))
        whole = column.cast(pl.Int64(), strict=False)
        if whole.null_count() == 0 and (texts or bool((whole.cast(column.dtype) == column).all())):
            return whole.to_numpy()
        exact = [_exact(value) for value in column]
        self._refuse_values(pl.Series([value is None for value in exact]), name, column, "a number, finite")
        return _in_order([value for value in exact if value is not None])

    def _moments(self, name: str, texts: list[str], form: str | None, zone: tzinfo) -> LongArray:
        import polars as pl

        day_first = None if form else self._day_first(name, texts)
        moments = [_microseconds(text, form, day_first, zone) for text in texts]
        wanted = f"the form {form}" if form else "a number, an ISO date or time, or another with dataset.time_format"
        self._refuse_values(pl.Series([moment is None for moment in moments]), name, pl.Series(texts), wanted)
        return np.array(moments, np.int64)

    def _day_first(self, name: str, texts: list[str]) -> bool | None:
        """Whether 3/4/2024 is in April, by what else the column holds; None where there is nothing of the kind."""
        parts = [_YEAR_LAST.fullmatch(text) for text in texts]
        dates = [(n, int(p[1]), int(p[3])) for n, p in enumerate(parts) if p is not None]
        if not dates or all(p[2] == "." for p in parts if p is not None):
            return True if dates else None
        days = next((n for n, first, _ in dates if first > 12), None)
        months = next((n for n, _, second in dates if second > 12), None)
        if (days is None) == (months is None):
            n = dates[0][0] if days is None else max(days, months or 0)
            raise DataError(
                f"{self.where(n)}: {name} is {texts[n]!r}, which may be day/month or month/day; "
                "expected dataset.time_format=%d/%m/%Y or %m/%d/%Y"
            )
        return days is not None

    def _refuse_values(self, wrong: pl.Series, name: str, values: pl.Series, wanted: str) -> None:
        self.refuse(wrong, f"{name} is {values[int(wrong.arg_max() or 0)]!r}; expected {wanted}")

    def refuse(self, wrong: pl.Series, what: str) -> None:
        """Raise DataError at the first row that is wrong."""
        if wrong.any():
            raise DataError(f"{self.where(int(wrong.arg_max() or 0))}: {what}")

    def where(self, row: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.path}, {self.row_name} {self.lines[row]}"


def _stripped(column: pl.Series) -> pl.Series:
    import polars as pl

    return column.str.strip_chars().replace("", None) if column.dtype == pl.String() else column


def _separator(path: Path, suffix: str, first: str) -> str:
    if suffix in (".tsv", ".inter", ".item", ".user"):
        return "\t"
    if suffix == ".csv" and "," in first:
        return ","
    found = [sign for sign in ("\t", "::", ",", ";", "|") if sign in first]
    if not found and suffix != ".csv" and " " in first.strip():
        return " "
    if not found:
        return ","
    return max(found, key=first.count)


def _is_number(text: str) -> bool:
    return _exact(text) is not None


def _exact(value: Any) -> int | Decimal | None:
    """A finite number without rounding, or None."""
    try:
        number = Decimal(value if isinstance(value, (int, float)) else str(value).strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _in_order(values: Sequence[int | Decimal]) -> LongArray:
    """64-bit integers in the same order, equal where the values are."""
    for factor in (1, _MILLION):
        scaled = [value * factor for value in values]
        if all(value == int(value) and -(2**63) <= value < 2**63 for value in scaled):
            return np.array([int(value) for value in scaled], np.int64)
    fine = [round(value * _MILLION) for value in values]
    if max(map(abs, fine)) < 2**63 and len(set(fine)) == len(set(values)):
        return np.array(fine, np.int64)
    place = {value: n for n, value in enumerate(sorted(set(values)))}
    return np.array([place[value] for value in values], np.int64)


def _zone(name: str) -> tzinfo:
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"time_zone={name}: {error}; expected a name such as UTC or Europe/Berlin") from None


def _microseconds(text: str, form: str | None, day_first: bool | None, zone: tzinfo) -> int | None:
    """Microseconds since 1970 of a date or time, None where it is none."""
    try:
        if form is not None:
            moment = datetime.strptime(text, form)
        elif match := _YEAR_FIRST.fullmatch(text):
            moment = _at(match[1], match[2], match[3], match[4])
        elif match := _YEAR_LAST.fullmatch(text):
            day, month = (match[1], match[3]) if day_first else (match[3], match[1])
            moment = _at(match[4], month, day, match[5])
        else:
            moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=zone)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _at(year: str, month: str, day: str, clock: str | None) -> datetime:
    date = f"{int(year):04d}-{int(month):02d}-{int(day):02d}"
    if clock is None:
        return datetime.fromisoformat(date)
    return datetime.fromisoformat(f"{date}T{clock if clock[1:2].isdigit() else '0' + clock}")
