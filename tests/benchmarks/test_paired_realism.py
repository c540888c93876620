"""Two realism runs compared user by user."""

import sys
from pathlib import Path

import polars as pl
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run_of(folder: Path, model: str, own: list[float], popularity: list[float]) -> Path:
    rows = [
        {"setting": "hard", "user": str(user), "model": name, "auc": auc}
        for name, aucs in ((model, own), ("popularity", popularity))
        for user, auc in enumerate(aucs)
    ]
    (folder / "tables").mkdir(parents=True)
    pl.DataFrame(rows).write_csv(folder / "tables" / "realism_users.csv")
    return folder


def test_runs_are_paired_by_user_and_other_pages_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import paired_realism

    one = run_of(tmp_path / "a", "llm", [0.8, 0.6, 0.7], [0.5, 0.4, 0.6])
    other = run_of(tmp_path / "b", "choice", [0.7, 0.5, 0.6], [0.5, 0.4, 0.6])
    monkeypatch.setattr(sys, "argv", ["paired_realism.py", str(one), str(other)])
    paired_realism.main()
    assert "hard: RUN - OTHER +0.100 (+0.100 to +0.100), 3 users" in capsys.readouterr().out
    run_of(tmp_path / "c", "choice", [0.7, 0.5, 0.6], [0.5, 0.9, 0.6])
    monkeypatch.setattr(sys, "argv", ["paired_realism.py", str(one), str(tmp_path / "c")])
    with pytest.raises(SystemExit, match="drew other pages"):
        paired_realism.main()
