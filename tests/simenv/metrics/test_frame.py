"""The frame of metrics.csv: written and read again, its series, and what feedback added."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from simenv.errors import DataError, RunDirectoryError
from simenv.metrics.frame import (
    COLUMNS,
    all_series,
    amplification,
    primary_control,
    read_metrics,
    series,
    write_metrics,
)

ROWS = [
    (seed, "als", mode, t, "all", "gini", 0.1 * t * (mode == "loop") + seed)
    for seed in (4, 3)
    for mode in ("loop", "frozen")
    for t in (1, 0, 2)
]


def test_what_is_written_is_read_and_names_are_no_patterns(tmp_path):
    folder = tmp_path / "r[1]*?"
    folder.mkdir()
    (tmp_path / "r1").mkdir()
    write_metrics([*ROWS, (3, "als", "loop", 0, "1", "ctr", float("nan"))], folder)
    frame = read_metrics(folder)
    assert tuple(frame.columns) == COLUMNS
    assert frame.rows()[:-1] == ROWS
    assert frame.row(-1) == (3, "als", "loop", 0, "1", "ctr", None)
    with pytest.raises(RunDirectoryError, match=r"metrics\.csv: damaged"):
        read_metrics(tmp_path / "r1")


def test_series_are_sorted_and_leave_gaps(tmp_path):
    frame = pl.DataFrame(ROWS[:-1], schema=list(COLUMNS), orient="row")
    loop = series(frame, "als", "loop", "gini")
    np.testing.assert_allclose(loop, [[3.0, 3.1, 3.2], [4.0, 4.1, 4.2]])
    control = all_series(frame, "gini")["als", "frozen"]
    assert (control.seeds.tolist(), control.rounds.tolist()) == ([3, 4], [0, 1, 2])
    assert np.isnan(control.values[0, 2])
    np.testing.assert_allclose(amplification(frame, "als", "gini"), [np.nan, 0.2])
    with pytest.raises(DataError, match="no ctr of als/loop in group all"):
        series(frame, "als", "loop", "ctr")


def test_the_primary_control_is_the_most_telling_one():
    assert primary_control(["loop", "exogenous", "frozen"]) == "frozen"
    assert primary_control(iter(["organic", "frozen"])) == "organic"
    assert primary_control(["loop", "none"]) is None
