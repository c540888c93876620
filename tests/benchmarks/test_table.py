"""The table at the end of `make bench` has a row for whatever was measured, and none for what was not."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "table.py"


def test_rows_are_of_the_files_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("bench_table", PATH)
    assert spec is not None
    assert spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    rates = {"whole round, popularity": {"simenv": 300.0, "numpy": 200.0}, "1,000 users": {"round_s": 1.0}}
    (tmp_path / "loop.json").write_text(json.dumps(rates))
    (tmp_path / "users").mkdir()
    two = [{"seconds": 3.0}, {"seconds": 1.0}]
    (tmp_path / "users/users.json").write_text(json.dumps({"users": 10**6, "shards": 4, "rounds": two, "peak_gb": 3.4}))
    monkeypatch.setattr(sys, "argv", ["table.py", str(tmp_path)])
    table.main()
    told = capsys.readouterr().out
    assert "300/s" in told
    assert "1.50 of plain NumPy" in told
    assert "400,000/s" in told
    assert "2.0 us a user" in told
    assert "1,000 users" not in told  # of the growth in users, which is no rate
    assert "pages/s" not in told
