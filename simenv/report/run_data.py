"""A finished run directory, read back: what the report is built from.

Small tables are read whole, the event log is only opened (a polars lazy scan). Everything but `run_card.json` may be
absent; whatever is there must be sound. The module does not know how a run is made, nor how it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from simenv.conclusions.judged import JudgedClaim, read_claims
from simenv.errors import DataError, RunDirectoryError
from simenv.files import check_finished
from simenv.metrics.frame import read_metrics

EVENT_COLUMNS = ("seed", "arm", "mode", "round", "user", "item", "rank", "clicked", "popularity0_pct")


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The contents of one run directory; None or empty = the run does not have it."""

    folder: Path
    card: Mapping[str, Any]
    config: str
    metrics: pl.DataFrame | None
    claims: list[JudgedClaim] | None
    items: pl.DataFrame | None
    users: pl.DataFrame | None
    event_files: tuple[Path, ...]
    tables: Mapping[str, pl.DataFrame]
    transcripts: Sequence[Mapping[str, Any]]  # what a language model was told and answered for a few users
    regimes: Mapping[str, RunData]  # the same run under other consumption regimes
    user_models: Mapping[str, RunData]  # the same run with other kinds of users

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def arms(self) -> tuple[str, ...]:
        """The arms of this run and its re-runs, in the order of metrics.csv."""
        names = [] if self.metrics is None else self.metrics["arm"].unique(maintain_order=True).to_list()
        return tuple(dict.fromkeys((*names, *(arm for run in self.reruns.values() for arm in run.arms))))

    @property
    def reruns(self) -> dict[str, RunData]:
        """The same run under other regimes and with other user models."""
        return {**self.regimes, **self.user_models}

    @cached_property
    def n_seeds(self) -> int:
        return 0 if self.metrics is None else self.metrics["seed"].n_unique()

    @property
    def regime(self) -> str | None:
        """The consumption regime, from the run card, the claims or the configuration."""
        found = self.card.get("regime") or next((claim.regime for claim in self.claims or [] if claim.regime), None)
        if found is None:
            lines = [line.split(":", 1) for line in self.config.splitlines() if line.startswith("repeat:")]
            found = lines[0][1].split("#")[0].strip() if lines else None
        return None if found is None else str(found)

    @property
    def events(self) -> pl.LazyFrame:
        """The event log as a lazy scan.

        Raises:
            DataError: if the run kept no event log.
        """
        if not self.event_files:
            raise DataError("no events/*.parquet in this run directory")
        return pl.scan_parquet(list(self.event_files), glob=False)

    @cached_property
    def exposure(self) -> pl.DataFrame:
        """Impressions and clicks of each item in each round (`simenv.figures.count_exposure`), counted once."""
        from simenv.figures import count_exposure

        return count_exposure(self.events)

    @property
    def n_items(self) -> int | None:
        """Catalogue size: the largest world's, where each seed has its own."""
        if self.items is None:
            return None
        return int(self.items.group_by("seed").len()["len"].max()) if "seed" in self.items.columns else len(self.items)  # type: ignore[arg-type]


def read_run(folder: Path | str) -> RunData:
    """Read a run directory.

    Raises:
        RunDirectoryError: if `folder` is not a run directory, or a file in it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunDirectoryError(f"{folder}: no such directory; expected a run directory")
    if not (folder / "run_card.json").is_file():
        raise RunDirectoryError(f"{folder}: not a run directory; expected a run_card.json in it")
    check_finished(folder)
    card = _read_json(folder / "run_card.json")
    if not isinstance(card, dict):
        raise RunDirectoryError(f"{folder / 'run_card.json'}: holds a {type(card).__name__}; expected an object")
    return RunData(
        folder=folder,
        card=card,
        config=_read_text(folder / "config.yaml"),
        metrics=read_metrics(folder) if (folder / "metrics.csv").is_file() else None,
        claims=read_claims(folder) if (folder / "claims.json").is_file() else None,
        items=_read_parquet(folder / "items.parquet", ("item",)),
        users=_read_parquet(folder / "users.parquet", ("user",)),
        event_files=_event_files(folder / "events"),
        tables={path.stem: _read_csv(path) for path in sorted((folder / "tables").glob("*.csv"))},
        transcripts=_transcripts(folder / "transcripts.json"),
        regimes=_reruns(folder / "regimes"),
        user_models=_reruns(folder / "user_models"),
    )


def _reruns(folder: Path) -> dict[str, RunData]:
    """The run directories in `folder`; what is not one (an interrupted re-run has no card yet) is left out."""
    return {path.name: read_run(path) for path in sorted(folder.glob("*")) if (path / "run_card.json").is_file()}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise RunDirectoryError(f"{path}: cannot be read ({error}); expected UTF-8 text") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path}: damaged ({error}); expected JSON") from error


def _transcripts(path: Path) -> list[dict[str, Any]]:
    held = _read_json(path) if path.is_file() else []
    keys = {"seed", "arm", "mode", "user", "round", "page", "messages", "answer"}
    if not isinstance(held, list) or any(not isinstance(one, dict) or keys - set(one) for one in held):
        raise RunDirectoryError(f"{path}: damaged; expected a list of objects with {', '.join(sorted(keys))}")
    return held


def _read_csv(path: Path) -> pl.DataFrame:
    try:
        return pl.read_csv(path, glob=False, infer_schema_length=None)
    except pl.exceptions.NoDataError:
        return pl.DataFrame()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RunDirectoryError(f"{path}: damaged ({_first_line(error)}); expected a CSV table") from error


def _read_parquet(path: Path, columns: tuple[str, ...]) -> pl.DataFrame | None:
    if not path.is_file():
        return None
    try:
        frame = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RunDirectoryError(f"{path}: damaged ({_first_line(error)}); expected Parquet") from error
    _require_columns(path, frame.columns, columns)
    return frame


def _event_files(folder: Path) -> tuple[Path, ...]:
    """The event files, each with its footer read: a truncated one is found before any figure is drawn."""
    files = tuple(sorted(folder.rglob("*.parquet")))
    for path in files:
        try:
            with path.open("rb") as file:
                columns = list(pl.read_parquet_schema(file))
        except (pl.exceptions.PolarsError, OSError) as error:
            raise RunDirectoryError(f"{path}: damaged ({_first_line(error)}); expected Parquet") from error
        _require_columns(path, columns, EVENT_COLUMNS)
    return files


def _require_columns(path: Path, found: list[str], expected: tuple[str, ...]) -> None:
    absent = [name for name in expected if name not in found]
    if absent:
        raise RunDirectoryError(f"{path}: no column {absent[0]!r}; expected {', '.join(expected)}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
