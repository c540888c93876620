"""Several runs on one page: the option that differs, and the table of all arms."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest

from simenv.errors import RunDirectoryError
from simenv.metrics.frame import read_metrics
from simenv.report import page, side_by_side
from simenv.report.run_data import read_run
from tests.simenv.fake_run import write_run


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Three runs that differ in one number, one of them unfinished, and one in a folder of its own."""
    folder = tmp_path_factory.mktemp("sweep")
    for name, conformity, k in (("2", 0.5, 3), ("10", 2.0, 8)):
        run = write_run(folder / name, arms=("als",), controls=("frozen",), n_seeds=2, rounds=3, n_users=12, k=k)
        (run / "config.yaml").write_text(f"name: bias_loop\nagent:\n  conformity: {conformity}\nrounds: 3\n")
        shutil.copytree(run, run / "regimes" / "always")
    (folder / "3").mkdir()
    (folder / "3" / "config.yaml").write_text("rounds: 3\n")
    return folder


def test_runs_are_found_in_the_order_of_their_numbers_and_parts_are_none(sweep):
    assert [path.name for path in side_by_side.runs_in(sweep)] == ["2", "10"]
    assert side_by_side.runs_in(sweep / "2") == [sweep / "2"]


def test_a_folder_without_runs_is_an_error(sweep):
    with pytest.raises(RunDirectoryError, match="finished runs below it"):
        side_by_side.read_folder(sweep / "3")


def test_the_axis_is_the_option_with_most_values(sweep):
    runs = side_by_side.read_folder(sweep)
    (option,) = side_by_side.differing(runs)
    assert option.name == "agent.conformity"
    assert option.values == {"2": 0.5, "10": 2.0}
    assert option.numeric
    assert side_by_side.differing({"a": runs["2"], "b": read_run(sweep / "2" / "regimes" / "always")}) == []


def test_the_table_holds_means_of_the_last_round(sweep):
    runs = side_by_side.read_folder(sweep)
    table = side_by_side.leaderboard(runs, side_by_side.differing(runs))
    assert [(row["run"], row["arm"], row["options"]) for row in table["rows"] if row["arm"] == "als"] == [
        ("2", "als", ["0.5"]),
        ("10", "als", ["2.0"]),
    ]
    row = next(row for row in table["rows"] if row["run"] == "10" and row["arm"] == "als")
    last = pl.col("round") == 2
    own = read_metrics(sweep / "10").filter(last, metric="gini", mode="loop", group="all")["value"]
    mean, half = row["cells"]["Gini of exposure"]
    assert mean == pytest.approx(own.mean())
    assert half == pytest.approx(12.7062 * own.std() / 2**0.5, rel=1e-4)
    assert row["cells"]["ndcg@10"] == pytest.approx((0.0711, 0.0044))
    assert [r["arm"] for r in table["rows"] if r["run"] == "2"] == ["popularity", "als"]  # one only in the table


def test_the_command_writes_both_pages_and_links_runs(sweep, monkeypatch, capsys):
    monkeypatch.setattr(page, "MOST_DRAWN", 0)
    (sweep / "2" / "report.html").write_text("<!DOCTYPE html>")
    assert page.main([str(sweep)]) == 0
    assert capsys.readouterr().out.strip() == str(sweep / "leaderboard.html")
    leaderboard, compared = ((sweep / name).read_text() for name in ("leaderboard.html", "compare.html"))
    assert '<a href="2/report.html">2</a>' in leaderboard
    assert 'href="10/' not in leaderboard
    assert "They differ in <b>agent.conformity</b>" in compared
    assert compared.count("<img") == 4  # one a metric along the axis; the runs' own are too many here
