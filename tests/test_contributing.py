"""Each recipe of CONTRIBUTING.md works as it stands: its files are written down, run, and held to the suites."""

from __future__ import annotations

import atexit
import importlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from experiments import __main__ as command_line
from experiments.running.design import offer_recommenders

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(tempfile.mkdtemp(prefix="recipes-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
for name, text in re.findall(
    r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S
):
    (FOLDER / name).parent.mkdir(exist_ok=True)
    (FOLDER / name).write_text(text)
sys.path.append(str(FOLDER))

TestRecent = importlib.import_module("test_recent").TestRecent
TestShy = importlib.import_module("test_shy").TestShy
TestParrot = importlib.import_module("test_parrot").TestParrot


@pytest.fixture
def extra(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The argument that names the folder; what it changes in this process is undone."""
    monkeypatch.setenv("SIMENV_EXTRA", "")
    monkeypatch.setattr(sys, "argv", ["simenv run"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield f"simenv.extra={FOLDER}"
    monkeypatch.undo()
    offer_recommenders()  # Hydra's store belongs to the process


def test_a_folder_of_ones_own_is_played(extra: str, tmp_path: Path) -> None:
    options = ["agent=shy", "dataset=villages", "tastes=alike", "arms=[recent]", "metrics=[repeats.repeat_share]"]
    small = ["rounds=2", "slate_size=4", "workers=0", "progress=false", f"hydra.run.dir={tmp_path}/run"]
    assert command_line.main(["+experiment=narrowing", extra, *options, *small]) == 0
    watched = pl.read_csv(tmp_path / "run" / "tables" / "watched.csv")
    assert watched["round"].to_list() == [0, 1]
    assert watched["arm"].unique().to_list() == ["recent"]
    metrics = pl.read_csv(tmp_path / "run" / "metrics.csv")
    assert metrics.filter(metric="repeat_share", group="all")["value"].to_list() == [0.0, 0.0]
    events = pl.concat(pl.read_parquet(path) for path in (tmp_path / "run" / "events").iterdir())
    assert events.filter(pl.col("clicked"))["rank"].unique().to_list() == [0], "shy users take the first or nothing"
    assert "still shown?" in (tmp_path / "run" / "report.html").read_text()


def test_a_language_model_of_ones_own_plays_users(
    extra: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["n_users=12", "n_items=30", f"hydra.run.dir={tmp_path}/run", "--dry-run"]
    assert (
        command_line.main(["+experiment=bias_loop_smoke", extra, "agent=llm", "llm=parrot", "llm.cage=gold", *small])
        == 0
    )
    assert "# The page" in capsys.readouterr().out
