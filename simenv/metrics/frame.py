"""The frame of `metrics.csv`: its one schema, reader and writer, the series in it, and what feedback added to them.

The module does not know what a metric means, nor how rows came about (`simenv.metrics.table`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simenv.errors import DataError, RunDirectoryError
from simenv.files import write_whole
from simenv.numeric import DoubleArray

if TYPE_CHECKING:
    import polars as pl


FILE = "metrics.csv"
COLUMNS = ("seed", "arm", "mode", "round", "group", "metric", "value")
CONTROLS = ("organic", "frozen", "exogenous")  # the first that a run has is its primary control


def schema() -> dict[str, Any]:
    """The polars type of each of `COLUMNS`."""
    import polars as pl

    types = (pl.Int64, pl.String, pl.String, pl.Int64, pl.String, pl.String, pl.Float64)
    return dict(zip(COLUMNS, types, strict=True))


def write_metrics(rows: Iterable[Sequence[Any]], folder: Path) -> None:
    """Write `metrics.csv` into a run directory; a value of NaN is an empty cell.

    Args:
        rows: `MetricRow`s, or sequences in the order of `COLUMNS`.
        folder: the run directory.
    """
    import polars as pl

    table = pl.DataFrame(list(rows), schema=schema(), orient="row")
    write_whole(folder / FILE, table.with_columns(pl.col("value").fill_nan(None)).write_csv())


def read_metrics(folder: Path | str) -> pl.DataFrame:
    """The `metrics.csv` of a run directory; an undefined value is null.

    Raises:
        RunDirectoryError: there is none, or it is damaged.
    """
    import polars as pl

    path = Path(folder) / FILE
    try:
        frame = pl.read_csv(path.read_bytes(), schema_overrides=schema(), null_values=["", "null", "None"])
    except (pl.exceptions.PolarsError, OSError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunDirectoryError(f"{path}: damaged ({why}); expected {', '.join(COLUMNS)}") from error
    absent = [name for name in COLUMNS if name not in frame.columns]
    if absent:
        raise RunDirectoryError(f"{path}: no column {absent[0]!r}; expected {', '.join(COLUMNS)}")
    with path.open("rb") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            raise RunDirectoryError(f"{path}: damaged (ends in the middle of a row); expected a line end at the end")
    holes = [name for name in COLUMNS[:-1] if frame[name].null_count()]
    if holes:
        raise RunDirectoryError(f"{path}: damaged (a row without {holes[0]}); expected a value in every column")
    return frame


# -- series -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of one arm, mode and group."""

    seeds: NDArray[np.int64]  # (S,), ascending
    rounds: NDArray[np.int64]  # (T,), ascending
    values: DoubleArray  # (S, T), NaN = not measured

    def at(self, seeds: Sequence[int], rounds: Sequence[int]) -> DoubleArray:
        """The values of these seeds and rounds, (len(seeds), len(rounds)); all must be present."""
        rows = np.searchsorted(self.seeds, seeds)
        return np.asarray(self.values[np.ix_(rows, np.searchsorted(self.rounds, rounds))])

    def added_to(self, control: Series) -> Series:
        """`added` over the control, of the seeds and rounds that both have."""
        seeds = np.intersect1d(self.seeds, control.seeds)
        rounds = np.intersect1d(self.rounds, control.rounds)
        which = seeds.tolist(), rounds.tolist()
        return Series(seeds, rounds, added(self.at(*which), control.at(*which)))


def all_series(metrics: pl.DataFrame, metric: str, group: str = "all") -> dict[tuple[str, str], Series]:
    """The values of one metric by (arm, mode), those without any finite value left out.

    Raises:
        DataError: a column is missing, or nothing is known of this metric and group.
    """
    import polars as pl

    absent = [name for name in COLUMNS if name not in metrics.columns]
    if absent:
        raise DataError(f"metrics: no column {absent[0]!r}; expected {', '.join(COLUMNS)}")
    rows = metrics.filter((pl.col("metric") == metric) & (pl.col("group") == group))
    parts = rows.group_by("arm", "mode", maintain_order=True)
    found = {(str(arm), str(mode)): _series(part) for (arm, mode), part in parts}
    found = {key: own for key, own in found.items() if np.isfinite(own.values).any()}
    if not found:
        raise DataError(f"metrics: no values of metric {metric!r} for group {group!r}")
    return found


def series(metrics: pl.DataFrame, arm: str, mode: str, metric: str, group: str = "all") -> DoubleArray:
    """One metric of one arm, (seeds, rounds), both ascending; NaN = not measured.

    Raises:
        DataError: the table does not hold it.
    """
    import polars as pl

    rows = metrics.filter(
        (pl.col("arm") == arm) & (pl.col("mode") == mode) & (pl.col("metric") == metric) & (pl.col("group") == group)
    )
    if rows.height == 0:
        raise DataError(f"metrics: no {metric} of {arm}/{mode} in group {group}")
    return _series(rows).values


def _series(rows: pl.DataFrame) -> Series:
    import polars as pl

    seeds, row = np.unique(rows["seed"].to_numpy(), return_inverse=True)
    rounds, column = np.unique(rows["round"].to_numpy(), return_inverse=True)
    values = np.full((len(seeds), len(rounds)), np.nan)
    values[row, column] = rows["value"].cast(pl.Float64).to_numpy()
    return Series(seeds, rounds, values)


# -- against a control --------------------------------------------------------------------------------------------


def added(ours: DoubleArray, control: DoubleArray) -> DoubleArray:
    """What feedback added up to each round: [m_t - m_0] minus the same in the control, (S, T); its end is the AMP.

    Args:
        ours: (S, T), the first column is round 0.
        control: the same seeds and rounds.
    """
    return np.asarray((ours - ours[:, :1]) - (control - control[:, :1]))


def amplification(
    metrics: pl.DataFrame, arm: str, metric: str, group: str = "all", control: str = "frozen"
) -> DoubleArray:
    """AMP of one metric, (seeds,): [last round - round 0] in the loop minus the same in the control."""
    loop, other = (series(metrics, arm, mode, metric, group) for mode in ("loop", control))
    return added(loop, other)[:, -1]


def primary_control(modes: Iterable[str]) -> str | None:
    """The most telling control among these modes: organic, else frozen, else exogenous."""
    held = set(modes)
    return next((mode for mode in CONTROLS if mode in held), None)
