"""Whole runs with LLM users from the command line: killed, resumed, replayed with the server off."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simenv.language_models.fake_server import LLMServer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
CANARY = "sk-canary-8d1f0a7b"
SMALL = [
    "+experiment=bias_loop_smoke",
    "agent=llm",
    "arms=[popularity]",
    "modes=[loop]",
    "references=[]",
    "n_users=20",
    "n_seeds=1",
    "rounds=8",
    "checkpoint_every=1",
    "workers=0",
    "progress=false",
]


def command(*options: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *SMALL, *options]


def play(*options: str, key: str | None = CANARY) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    if key:
        environment["OPENAI_API_KEY"] = key
    return subprocess.run(command(*options), env=environment, capture_output=True, text=True, timeout=600, cwd=ROOT)


def files(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in (folder / "events").rglob("*.parquet")}
    return found | {"metrics.csv": (folder / "metrics.csv").read_bytes()}


def test_killed_resumed_and_replayed_to_the_byte(tmp_path):
    cache, first, again = tmp_path / "answers.db", tmp_path / "first", tmp_path / "again"
    with LLMServer(latency=0.05) as server:
        live = ["llm=openai", "llm.model=test", f"llm.base_url={server.base_url}", f"llm.cache={cache}"]
        environment = os.environ | {"OPENAI_API_KEY": CANARY}
        process = subprocess.Popen(
            command(*live, f"hydra.run.dir={first}"), env=environment, cwd=ROOT, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 300
        while not list(first.glob("checkpoint/*/round-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        assert process.wait() == -9
        assert not (first / "metrics.csv").exists()
        resumed = play(*live, f"resume={first}")
    assert resumed.returncode == 0, resumed.stderr
    replayed = play("llm=replay", "llm.model=test", f"llm.cache={cache}", f"hydra.run.dir={again}", key=None)
    assert replayed.returncode == 0, replayed.stderr
    assert files(first) == files(again)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]
    assert CANARY not in resumed.stdout + resumed.stderr


def test_a_budget_ends_a_run_with_exit_3_and_one_line(tmp_path):
    with LLMServer() as server:
        live = ["llm=openai", "llm.model=test", f"llm.base_url={server.base_url}", f"llm.cache={tmp_path / 'c.db'}"]
        stopped = play(*live, "llm.budget_calls=50", f"hydra.run.dir={tmp_path / 'run'}")
    assert stopped.returncode == 3
    assert len(server.seen) == 50
    assert stopped.stderr.strip().splitlines()[-1].startswith("error: the next call does not fit")
    assert list((tmp_path / "run").glob("checkpoint/*/round-*"))


def test_agent_llm_without_a_language_model_is_one_clear_line(tmp_path):
    failed = play(f"hydra.run.dir={tmp_path / 'run'}")
    assert failed.returncode == 2
    assert failed.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "llm=openai" in failed.stderr
