"""Each recipe of CONTRIBUTING.md works as it stands: its files are written down, run, and held to the suites."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).resolve().parents[1]
RECIPES = re.findall(
    r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes, outside the checkout."""
    made = tmp_path_factory.mktemp("mine")
    for name, text in RECIPES:
        path = made / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return made


def call(folder: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_folder_of_ones_own_is_played(folder: Path) -> None:
    options = ["agent=shy", "dataset=villages", "tastes=alike", "arms=[recent]", "metrics=[repeats.repeat_share]"]
    small = ["rounds=2", "slate_size=4", "workers=0", "progress=false", "hydra.run.dir=run"]
    call(folder, "simenv", "run", "+experiment=narrowing", f"simenv.extra={folder}", *options, *small)
    watched = pl.read_csv(folder / "run" / "tables" / "watched.csv")
    assert watched["round"].to_list() == [0, 1]
    assert watched["arm"].unique().to_list() == ["recent"]
    metrics = pl.read_csv(folder / "run" / "metrics.csv")
    assert metrics.filter(metric="repeat_share", group="all")["value"].to_list() == [0.0, 0.0]
    events = pl.read_parquet(next((folder / "run" / "events").glob("*.parquet")))
    assert events.filter(pl.col("clicked"))["rank"].unique().to_list() == [0], "shy users take the first or nothing"
    assert "metric in tables/watched.csv" not in (folder / "run" / "report.html").read_text()


def test_a_language_model_of_ones_own_is_told_to_users(folder: Path) -> None:
    printed = call(
        folder, "simenv", "run", "+experiment=bias_loop_smoke", f"simenv.extra={folder}", "agent=llm", "llm=parrot",
        "llm.cage=gold", "n_users=12", "n_items=30", "--dry-run",
    )  # fmt: skip
    assert "# The page" in printed


def test_they_pass_the_suites(folder: Path) -> None:
    printed = call(
        folder, "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-o", "pythonpath=.", "."
    )
    assert re.search(r"\d\d+ passed", printed), printed
