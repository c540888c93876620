"""Where a data set's files are, and reading them with errors that name file and line.

Files are looked for in ``dataset.root``, else in ``$SIMENV_DATA/<name>``, else in the user's cache, to which the
publisher's archive is downloaded and checked. The module does not know what the columns mean.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from simenv.errors import DataError

if TYPE_CHECKING:
    import polars as pl

_INTEGER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A publisher's zip file. Without a fixed `md5`, the one the publisher keeps in ``<url>.md5`` is used."""

    url: str
    md5: str | None = None


def locate(name: str, files: Sequence[str], *, root: str | None, archive: Archive | None = None) -> Path:
    """The folder that holds `files`.

    Args:
        name: the data set's name, which is also its folder's in ``$SIMENV_DATA`` and in the cache. In ``$SIMENV_DATA``
            a single folder ``<name>-...`` is taken where ``<name>`` itself is absent.
        files: names or glob patterns of the files that must be there; ``a|b`` is either.
        root: the folder, if the user names one; nothing else is then tried.
        archive: what to download when no folder is known; None = the publisher has no direct link.

    Raises:
        DataError: no such folder, or a file is missing from it; says which files to put where.
    """
    if root is not None:
        return _complete(name, Path(root).expanduser(), files, "dataset.root")
    shelf = os.environ.get("SIMENV_DATA")
    if shelf and (folder := _on_shelf(name, Path(shelf).expanduser())):
        return _complete(name, folder, files, "SIMENV_DATA")
    put = (
        f"put {_listed(files)} into a folder and set dataset.root=FOLDER, or into {name}/ of a folder and set "
        "SIMENV_DATA to that folder"
    )
    if archive is None:
        raise DataError(f"{name}: no files and no direct download; {put}")
    cached = cache_folder() / name
    if not all(_has(cached, file) for file in files):
        try:
            _fetch(archive, cached)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{name}: download of {archive.url} failed ({reason}); {put}") from error
    return _complete(name, cached, files, "the cache")


def cache_folder() -> Path:
    """Where downloads are kept, a folder for each data set."""
    import pooch  # type: ignore[import-untyped]

    return Path(pooch.os_cache("simenv"))


def found(name: str, files: Sequence[str]) -> Path | None:
    """The folder that `locate` would take without downloading anything; None where there is none."""
    shelf = os.environ.get("SIMENV_DATA")
    folder = _on_shelf(name, Path(shelf).expanduser()) if shelf else None
    folder = folder or cache_folder() / name
    return folder if all(_has(folder, file) for file in files) else None


def _has(folder: Path, file: str) -> bool:
    return any(any(folder.glob(pattern)) for pattern in file.split("|"))


def _on_shelf(name: str, shelf: Path) -> Path | None:
    if (shelf / name).is_dir():
        return shelf / name
    similar = sorted(path for path in shelf.glob(f"{name}-*") if path.is_dir())
    if len(similar) > 1:
        names = _listed([path.name for path in similar])
        raise DataError(f"{name}: SIMENV_DATA={shelf} holds {names}; expected {name}/, or one of them as dataset.root")
    return similar[0] if similar else None


def _complete(name: str, folder: Path, files: Sequence[str], told_by: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"{name}: {told_by} names {folder}, which is no folder; expected one with {_listed(files)}")
    missing = [file for file in files if not _has(folder, file)]
    if missing:
        raise DataError(f"{name}: {folder} has no {_listed(missing)}; expected {_listed(files)} there")
    return folder


def _listed(names: Sequence[str]) -> str:
    names = [name.replace("|", " or ") for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _fetch(archive: Archive, folder: Path) -> None:
    """Download, check and unpack `archive`; `folder` appears complete or not at all."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        md5 = archive.md5 or _published_md5(archive.url + ".md5", temporary)
        downloader = pooch.HTTPDownloader(progressbar=True, timeout=20)
        path = pooch.retrieve(archive.url, f"md5:{md5}", "archive.zip", temporary, downloader=downloader)
        unpacked = Path(temporary) / "unpacked"
        unpacked.mkdir()
        with zipfile.ZipFile(path) as bundle:
            for member in bundle.infolist():
                if not member.is_dir():
                    (unpacked / Path(member.filename).name).write_bytes(bundle.read(member))
        folder.mkdir(exist_ok=True)
        for file in unpacked.iterdir():
            os.replace(file, folder / file.name)


def _published_md5(url: str, folder: str) -> str:
    import pooch

    path = pooch.retrieve(url, None, "archive.md5", folder, downloader=pooch.HTTPDownloader(timeout=20))
    found = re.search(r"\b[0-9a-fA-F]{32}\b", Path(path).read_text("ascii", errors="replace"))
    if not found:
        raise ValueError(f"{url} holds no md5 checksum")
    return found[0].lower()


def read_text(path: Path, encoding: str) -> str:
    """The whole file, decoded.

    Raises:
        DataError: it is empty, or not in this encoding. Every byte is latin-1, so a latin-1 file is refused where it
            has accents that are valid UTF-8: somebody has re-encoded it, and titles would come out damaged.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not readable ({error}); expected a whole file") from None
    if not data.strip():
        raise DataError(f"{path}: is empty; expected at least one line")
    if b"\x00" in data:
        line = data[: data.index(b"\x00")].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: wrong encoding (zero bytes, as in UTF-16); expected {encoding}")
    if encoding == "latin-1":
        _refuse_utf8(path, data)
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: wrong encoding (byte {data[error.start]:#x}); expected {encoding}"
        ) from None


def _refuse_utf8(path: Path, data: bytes) -> None:
    if data.isascii():
        return
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return
    first = next(number for number, line in enumerate(data.split(b"\n"), 1) if not line.isascii())
    raise DataError(f"{path}, line {first}: wrong encoding (UTF-8 accents); expected latin-1, as published")


def read_rows(path: Path, *, separator: str, n_fields: int, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each line; blank lines at the end are left out.

    Raises:
        DataError: as `read_text`, or a line has another number of fields.
    """
    for number, line in enumerate(read_text(path, encoding).rstrip().split("\n"), 1):
        fields = line.rstrip("\r").split(separator)
        if len(fields) != n_fields:
            raise DataError(
                f"{path}, line {number}: {len(fields)} fields; expected {n_fields} separated by {separator!r}"
            )
        yield number, fields


def read_csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row of a UTF-8 CSV file with quotes, header checked and left out.

    Raises:
        DataError: as `read_text`, or the header or a row is not these columns.
    """
    reader = csv.reader(io.StringIO(read_text(path, "utf-8"), newline=""))
    _check_header(path, next(reader), columns)
    for fields in reader:
        if len(fields) != len(columns):
            raise DataError(f"{path}, line {reader.line_num}: {len(fields)} fields; expected {', '.join(columns)}")
        yield reader.line_num, fields


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    if [name.strip() for name in header] != list(columns):
        raise DataError(f"{path}, line 1: columns {', '.join(header)}; expected {', '.join(columns)}")


def read_numbers(
    path: Path, columns: Sequence[str], *, separator: str, header: bool, real: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """A file of numbers, as one array a column: int64, or float64 for the columns named in `real`.

    Row k stands in line k + 1, or k + 2 below a header.

    Raises:
        DataError: as `read_text`, a wrong header, a line with another number of fields, or a field that is no number.
    """
    import polars as pl

    schema = {name: pl.Float64() if name in real else pl.Int64() for name in columns}
    table = None
    if path.suffix.lower() != ".gz" and path.is_file():
        table = _read_plain(path, separator, header, schema)
    if table is None or _is_odd(table, real):  # with care, to say where
        table = _read_decoded(path, separator, header, schema, real)
    return {name: table[name].to_numpy() for name in columns}


def _read_plain(path: Path, separator: str, header: bool, schema: Mapping[str, Any]) -> pl.DataFrame | None:
    """The table as polars reads it from the file itself, without a copy of its text; None where anything is unusual."""
    import polars as pl

    with path.open("rb") as file:
        first = file.readline()
        n_rows = -header
        last = b""
        file.seek(0)
        while block := file.read(1 << 24):
            n_rows += block.count(b"\n")
            last = block[-1:]
        n_rows += last != b"\n"
        names = first.strip().split(separator.encode())
        if not first.strip() or (header and names != [name.encode() for name in schema]):
            return None
        source: Any = path
        if len(separator) > 1:  # polars takes one byte as separator
            file.seek(0)
            source, separator = file.read().replace(separator.encode(), b"\t"), "\t"
    try:
        table = pl.read_csv(source, separator=separator, has_header=header, schema=schema, quote_char=None, glob=False)
    except pl.exceptions.PolarsError:
        return None
    return table if table.height == n_rows else None


def _read_decoded(
    path: Path, separator: str, header: bool, schema: Mapping[str, Any], real: Sequence[str]
) -> pl.DataFrame:
    """The table by way of its text; see `read_numbers` for what is raised."""
    import polars as pl

    columns = list(schema)
    text = read_text(path, "utf-8").rstrip()
    if header:
        _check_header(path, text.split("\n", 1)[0].strip().split(separator), columns)
    n_rows = text.count("\n") + 1 - header
    try:
        table = pl.read_csv(
            text.replace(separator, "\t").encode(), separator="\t", has_header=header, schema=schema, quote_char=None
        )
    except pl.exceptions.PolarsError:
        table = pl.DataFrame(schema=schema)
    if _is_odd(table, real) or table.height != n_rows or n_rows == 0:
        _find_bad_line(path, text, separator, columns, header, real)
    return table


def _is_odd(table: pl.DataFrame, real: Sequence[str]) -> bool:
    """Whether a field is missing or no finite number."""
    return (
        table.height == 0
        or any(table.null_count().row(0))
        or not all(bool(table[name].is_finite().all()) for name in real)
    )


def _find_bad_line(
    path: Path, text: str, separator: str, columns: Sequence[str], header: bool, real: Sequence[str]
) -> None:
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if header and number == 1:
            continue
        fields = line.rstrip("\r").split(separator)
        if len(fields) != len(columns):
            end = ", the last: the file is cut off" if number == len(lines) and len(fields) < len(columns) else ""
            raise DataError(f"{path}, line {number}: {len(fields)} fields; expected {', '.join(columns)}{end}")
        for name, field in zip(columns, fields):
            if not (is_real(field) if name in real else _INTEGER.fullmatch(field.strip())):
                kind = "a number" if name in real else "an integer"
                raise DataError(f"{path}, line {number}: {name} is {field!r}; expected {kind}")
    if len(lines) == header:
        raise DataError(f"{path}: no rows below the header; expected at least one")
    raise DataError(f"{path}: not readable as {', '.join(columns)} separated by {separator!r}")


def is_real(field: str) -> bool:
    """Whether this text is a finite number."""
    try:
        return abs(float(field)) != float("inf") and float(field) == float(field)
    except ValueError:
        return False
