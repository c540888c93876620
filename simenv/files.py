"""Files that are read again: written whole or not at all, and known again by their checksums.

No path is a pattern here: folders may be called what they like. The module does not know what a file means.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from simenv.errors import RunDirectoryError

COMPLETE = Path("checkpoint") / "complete.json"  # in a finished run directory: what it holds, by checksum


def write_whole(path: Path, content: str | bytes) -> None:
    """Write aside and rename: whoever reads finds the file before or after, never a part of it."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as error:  # told under the name that the reader knows
        raise OSError(error.errno, error.strerror, str(path)) from error


def sha256(path: Path) -> str:
    """Checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Checksum by path below `folder`."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(paths)}


def damaged(folder: Path, files: dict[str, str]) -> Path | None:
    """The first of the files that is missing or has another content."""
    for name, digest in files.items():
        path = folder / name
        try:
            if sha256(path) != digest:
                return path
        except OSError:
            return path
    return None


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """A JSON object that carries its own checksum."""
    value = json.loads(json.dumps(value))  # as it will be read
    write_whole(path, json.dumps(value | {"sha256": _seal(value)}) + "\n")


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote; None where the file is missing, unreadable or another one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        digest = value.pop("sha256")
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None
    return value if _seal(value) == digest else None


def _seal(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_finished(folder: Path) -> None:
    """Compare a finished run directory with the checksums it was finished with; those without any pass.

    An event log that is gone as a whole, to save space, is no damage: a page says what it could not draw.

    Raises:
        RunDirectoryError: naming the file that is not what it was.
    """
    if not (folder / COMPLETE).is_file():
        return
    found = read_sealed(folder / COMPLETE)
    files = None if found is None else found.get("files")
    if not isinstance(files, dict):
        try:
            if json.loads((folder / COMPLETE).read_text(encoding="utf-8")) == {"complete": True}:
                return  # of a version that kept no checksums
        except (OSError, ValueError):
            pass
        raise RunDirectoryError(f"{folder / COMPLETE}: damaged; expected the run's checksums")
    for kind in ("events", "heard"):
        if not (folder / kind).exists():
            files = {name: digest for name, digest in files.items() if not name.startswith(f"{kind}/")}
        for log in sorted((folder / kind).rglob("*.parquet")):
            if log.relative_to(folder).as_posix() not in files:  # its rows would be counted
                raise RunDirectoryError(
                    f"{log}: not of this run; expected what the run was finished with: move it away"
                )
    if (path := damaged(folder, files)) is not None:
        what = "damaged" if path.is_file() else "missing"
        raise RunDirectoryError(f"{path}: {what}; expected what the run was finished with")
