"""examples/llm_users.py runs: dry, against a server, and again from its cache."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from simenv.language_models.fake_server import LLMServer

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "llm_users.py"


def play(monkeypatch, capsys, *options: str) -> str:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(sys, "argv", ["llm_users.py", *options])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    return capsys.readouterr().out


def test_without_a_model_it_only_tells(monkeypatch, capsys, tmp_path):
    out = play(monkeypatch, capsys, "--cache", str(tmp_path / "c.db"), "--price", "1", "2")
    assert "# The page" in out
    assert "90 pages" in out
    assert "calls," not in out


@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
def test_with_a_server_it_plays_and_plays_again_for_nothing(monkeypatch, capsys, tmp_path):
    with LLMServer() as server:
        options = ["--model", "test", "--base-url", server.base_url, "--cache", str(tmp_path / "c.db"), "--users", "12"]
        first = play(monkeypatch, capsys, *options)
        second = play(monkeypatch, capsys, *options)
        assert len(server.seen) == 36
    assert "36 calls, 0 from the cache" in first
    assert "0 calls, 36 from the cache" in second
    assert [line for line in first.splitlines() if line.startswith("round")] == [
        line for line in second.splitlines() if line.startswith("round")
    ]
