"""The page of a running experiment: what it tells, and that it ends with the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.running.workers import _Progress
from simenv.errors import RunDirectoryError
from simenv.language_models.accounting import Spending
from simenv.metrics.frame import COLUMNS, read_metrics
from simenv.report import watch
from tests.simenv.fake_run import write_run


@pytest.fixture
def running(tmp_path) -> Path:
    """A run directory as a run of two jobs leaves it in its middle: one job done, one at a checkpoint."""
    made = write_run(tmp_path / "made", arms=("als",), controls=("frozen",), n_seeds=1, rounds=4, n_users=12)
    rows = read_metrics(made).select(COLUMNS)
    folder = tmp_path / "run"
    for mode, rounds, place in (("loop", 4, "metrics.json"), ("frozen", 2, "round-000002/rows.json")):
        path = folder / "checkpoint" / f"seed0.als.{mode}" / place
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps([row for row in rows.iter_rows() if row[2] == mode and row[3] < rounds]))
    shutil.copy(made / "config.yaml", folder)
    with _Progress("rounds", 8, enabled=False, file=folder / watch.PROGRESS) as bar:
        bar.advance(2, 0)  # taken over from a checkpoint
        bar.told = -1e9
        bar.advance(4, 4000)
    return folder


def test_the_state_holds_rates_eta_and_money(running):
    spending = Spending(running / "llm-budget.sqlite")
    assert spending.reserve((3, 1500, 0.25), (10, 1e6, 1e6))
    told = json.loads((running / watch.PROGRESS).read_text())
    (running / watch.PROGRESS).write_text(json.dumps(told | {"seconds": 20.0}))
    state = watch._state(running)
    progress = state["progress"]
    assert (progress["rounds"], progress["total"], progress["played"]) == (6, 8, 4)
    assert (progress["rounds_per_s"], progress["steps_per_s"], progress["eta"]) == (0.2, 200, "10 s")
    assert state["spent"] == [{"who": "users", "calls": 3, "tokens": 1500, "dollars": 0.25}]
    spending.close()

    page = watch.write_page(running, state, every=2).read_text()
    for words in (
        "About <b>10 s</b> to go",
        "6 of 8",
        "200 user-steps a second",
        "1,500 tokens, $0.25 so far",
        "$0.33",
    ):
        assert words in page
    assert "from the 2 jobs" in page
    assert "location.reload" in page


def test_watching_ends_with_the_run(running, capsys):
    (running / "checkpoint" / "complete.json").write_text("{}")
    (running / "report.html").write_text("<!DOCTYPE html>")
    assert watch.main([str(running), "--every", "0.01"]) == 0
    assert capsys.readouterr().out.strip() == str(running / "watch.html")
    page = (running / "watch.html").read_text()
    assert "Finished" in page
    assert 'href="report.html"' in page
    assert "location.reload" not in page


def test_before_the_first_round_there_is_a_page_and_before_the_run_an_error(tmp_path, capsys):
    with pytest.raises(RunDirectoryError, match=r"expected the config\.yaml"):
        watch.main([str(tmp_path), "--once"])
    (tmp_path / "config.yaml").write_text("rounds: 2\n")
    assert watch.main([str(tmp_path), "--once"]) == 0
    assert "No round has ended yet" in (tmp_path / "watch.html").read_text()
    assert watch.main([str(tmp_path), "--every", "0"]) == 2
    assert "expected seconds above 0" in capsys.readouterr().err
