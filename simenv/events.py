"""The event log: one row per impression, append-only.

`Events` is the in-memory form, a struct of aligned arrays of one (seed, arm, mode); `EventWriter` puts them into the
Parquet files of a run directory, `read_events` gets them back. The module does not know what the columns mean to a
metric. pyarrow and polars load when first used.
"""

from __future__ import annotations

import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from simenv.errors import RunDirectoryError
from simenv.slates import Responses

if TYPE_CHECKING:
    import polars as pl

ROWS_PER_FILE = 2_000_000
ROWS_BESIDE = 1_000_000  # of a file from which on it is written by a thread of its own
_WRITTEN = re.compile(r"seed-?\d+\..+\.\d{6,}\.parquet")
_FEW_VALUES = ["seed", "arm", "mode", "round", "page", "item", "rank", "propensity", "rating", "popularity0_pct"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Impressions of one (seed, arm, mode), in the order they happened; all arrays are (n,)."""

    round: NDArray[np.int32]
    page: NDArray[np.int16]
    user: NDArray[np.int32]
    item: NDArray[np.int32]
    rank: NDArray[np.int16]  # 0 = top of the slate
    propensity: NDArray[np.float64]  # NaN = an outside action without one
    examined: NDArray[np.bool_]
    clicked: NDArray[np.bool_]
    rating: NDArray[np.float32]  # NaN = none
    true_utility: NDArray[np.float32]  # in (0, 1)
    best_utility: NDArray[
        np.float32
    ]  # mean utility of the best K of the user's candidates on this page; NaN = not measured
    popularity0_pct: NDArray[np.float32]  # mid-rank percentile at round 0, in [0, 1]

    def __len__(self) -> int:
        return len(self.round)

    def take(self, rows: NDArray[Any] | slice) -> Events:
        """These rows (indices, a mask or a slice)."""
        return Events(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def pages(self, k: int | None = None) -> Pages:
        """The impressions page by page, in the order of round, page, user.

        Args:
            k: slots of a slate; None = as many as the longest page has.
        """
        order = np.lexsort((self.rank, self.user, self.page, self.round))
        events = self.take(order)
        stamp = np.stack([events.round, events.page, events.user])
        first = np.ones(len(events), np.bool_)
        first[1:] = (stamp[:, 1:] != stamp[:, :-1]).any(axis=0)
        width = int(self.rank.max(initial=-1)) + 1 if k is None else k
        return Pages(events=events, starts=np.flatnonzero(first), row=np.cumsum(first) - 1, k=width)

    @classmethod
    def concat(cls, parts: list[Events]) -> Events:
        """All parts, one after the other; a single one as it is, not copied."""
        if len(parts) == 1:
            return parts[0]
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})

    @classmethod
    def empty(cls) -> Events:
        """No impressions."""
        types: dict[str, Any] = {"round": np.int32, "page": np.int16, "user": np.int32, "item": np.int32}
        types |= {"rank": np.int16, "propensity": np.float64, "examined": np.bool_, "clicked": np.bool_}
        return cls(**{f.name: np.zeros(0, types.get(f.name, np.float32)) for f in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pages:
    """Impressions as n pages of `k` slots."""

    events: Events  # page after page, top of the slate first
    starts: NDArray[np.int64]  # (n,), first row of each page
    row: NDArray[np.int64]  # page of each event
    k: int

    @property
    def users(self) -> NDArray[np.int64]:
        return self.events.user[self.starts].astype(np.int64)

    @property
    def slates(self) -> NDArray[np.int32]:
        """Items (n, k), -1 = empty."""
        return self.grid(self.events.item, -1)

    def grid(self, values: NDArray[Any], empty: Any) -> NDArray[Any]:
        """Values of the events as (n, k), with `empty` in empty slots."""
        found = np.full((len(self.starts), self.k), empty, values.dtype)
        found[self.row, self.events.rank] = values
        return found

    def responses(self) -> Responses:
        """What the users did. Nobody leaves: the log does not say who did."""
        return Responses(
            examined=self.grid(self.events.examined, False),
            clicked=self.grid(self.events.clicked, False),
            ratings=self.grid(self.events.rating, np.nan),
            utility=self.grid(self.events.true_utility, np.nan),
            exited=np.zeros(len(self.starts), np.bool_),
        )


class EventWriter:
    """Appends the events of one (seed, arm, mode) to a run directory, in files of a fixed number of rounds.

    A file appears whole or not at all, and where it begins depends on the rounds alone, never on when the run was
    interrupted: a resumed run writes the same bytes. A large file is written beside the rounds that follow; what went
    wrong with it is raised by the next call.

    Args:
        folder: the run directory's ``events``; made if absent.
        seed: written into every row.
        arm: written into every row.
        mode: written into every row.
        rounds_per_file: rounds a file holds.
    """

    rows: ClassVar[Any] = Events  # what is written
    few_values: ClassVar[list[str]] = _FEW_VALUES  # columns worth a dictionary

    def __init__(self, folder: Path, *, seed: int, arm: str, mode: str, rounds_per_file: int) -> None:
        self.folder, self.seed, self.arm, self.mode = folder, seed, arm, mode
        self.rounds_per_file = rounds_per_file
        self.pending: list[Any] = []
        self._writing: Future[None] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, events: Any, round: int) -> None:
        """Take in the events of `round`; writes a file when the round completes one."""
        self.pending.append(events)
        if (round + 1) % self.rounds_per_file == 0:
            self._write(round - self.rounds_per_file + 1)

    def close(self, rounds: int) -> None:
        """Write what is left after `rounds` rounds, and wait until all of it is on disk."""
        if self.pending:
            self._write((rounds - 1) // self.rounds_per_file * self.rounds_per_file)
        self._wait()

    def restart(self, round: int, pending: Any) -> None:
        """Go on at `round` with what a checkpoint held; files from later rounds are deleted."""
        self._wait()
        self.pending = [pending] if len(pending) else []
        first_open = round // self.rounds_per_file * self.rounds_per_file
        for path in event_files(self.folder, self._stem(), (".parquet", ".partial")):
            if path.suffix != ".parquet" or int(path.name.split(".")[-2]) >= first_open:
                path.unlink()

    def files(self) -> list[Path]:
        """What was written so far, in order."""
        self._wait()
        return event_files(self.folder, self._stem())

    def _stem(self) -> str:
        return _stem(self.seed, self.arm, self.mode)

    def _write(self, first_round: int) -> None:
        self._wait()
        if sum(map(len, self.pending)) < ROWS_BESIDE:
            self._put(self.pending, first_round)
        else:
            thread = ThreadPoolExecutor(max_workers=1)
            self._writing = thread.submit(self._put, self.pending, first_round)
            thread.shutdown(wait=False)
        self.pending = []

    def _wait(self) -> None:
        """Until nothing is being written."""
        if (writing := self._writing) is not None:
            self._writing = None
            writing.result()

    def _put(self, parts: list[Any], first_round: int) -> None:
        """Write one file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        events = self.rows.concat(parts)
        n = len(events)
        columns: dict[str, Any] = {"seed": pa.array(np.full(n, self.seed, np.int64))}
        for name, value in (("arm", self.arm), ("mode", self.mode)):
            columns[name] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int8)), pa.array([value]))
        columns |= self._columns(events)
        path = self.folder / f"{self._stem()}.{first_round:06d}.parquet"
        partial = path.with_suffix(".partial")
        pq.write_table(
            pa.table(columns),
            partial,
            compression="zstd",
            compression_level=1,
            use_dictionary=self.few_values,
            write_statistics=["seed", "round"],
        )
        partial.replace(path)

    def _columns(self, events: Any) -> dict[str, Any]:
        """Everything of the rows, as arrow arrays; NaN becomes null."""
        import pyarrow as pa

        return {field.name: pa.array(getattr(events, field.name), from_pandas=True) for field in fields(self.rows)}


def _stem(seed: int, arm: str, mode: str) -> str:
    return f"seed{seed}.{arm}.{mode.replace('.', '_')}"


def event_files(folder: Path, stem: str | None = None, suffixes: tuple[str, ...] = (".parquet",)) -> list[Path]:
    """The event files in a folder, of all jobs or of the one with this stem; names are no patterns."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        start, _, number = path.stem.rpartition(".")
        if path.suffix in suffixes and (stem is None or (start == stem and number.isdigit())):
            found.append(path)
    return found


def strange_event_file(run: Path) -> Path | None:
    """The first Parquet file below a run's ``events`` that no `EventWriter` can have written: a copy, a backup."""
    folder = Path(run) / "events"
    for path in sorted(folder.rglob("*.parquet")):
        if path.parent != folder or not _WRITTEN.fullmatch(path.name):
            return path
    return None


def scan_events(run: Path) -> pl.LazyFrame:
    """All events of a run directory as a polars LazyFrame, with the columns of the contract.

    Raises:
        RunDirectoryError: there are none.
    """
    return scan_rows(Path(run) / "events")


def scan_rows(folder: Path) -> pl.LazyFrame:
    """All rows that writers put into a folder.

    Raises:
        RunDirectoryError: there are none.
    """
    import polars as pl

    if not (files := event_files(folder)):
        raise RunDirectoryError(f"{folder}: no event files; expected at least one *.parquet")
    return pl.scan_parquet(files, glob=False)


def read_events(run: Path, *, seed: int, arm: str, mode: str) -> Events:
    """The events of one (seed, arm, mode), in the order they happened."""
    names = [f.name for f in fields(Events)]
    table, empty = read_rows(run, "events", names, seed=seed, arm=arm, mode=mode), Events.empty()
    return Events(
        **{name: table.column(name).to_numpy().astype(getattr(empty, name).dtype, copy=False) for name in names}
    )


def read_rows(run: Path, kind: str, names: list[str], *, seed: int, arm: str, mode: str) -> Any:
    """These columns of what one (seed, arm, mode) wrote into a folder of a run, as an arrow table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = event_files(Path(run) / kind, _stem(seed, arm, mode))
    if not paths:
        raise RunDirectoryError(f"{run}: no {kind} of seed {seed}, arm {arm}, mode {mode}")
    try:
        return pa.concat_tables([pq.ParquetFile(path).read(columns=names) for path in paths])
    except (OSError, pa.ArrowException) as error:
        raise RunDirectoryError(f"{paths[0]}: damaged ({str(error).splitlines()[0]}); expected Parquet") from error
