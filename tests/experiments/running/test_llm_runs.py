"""A run with language-model users: dry run, accounting in the run card, cache in the run directory, a larger budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import bias_loop
from experiments.running.design import CONF
from simenv.errors import BudgetExhausted, ConfigError
from tests.simenv.language_models.llm_server import LLMServer

CANARY = "sk-canary-77aa"
SMALL = (
    "+experiment=bias_loop_smoke", "agent=llm", "n_users=6", "n_items=30", "rounds=2", "n_seeds=1",
    "arms=[popularity]", "modes=[loop]", "references=[]", "workers=0", "progress=false", "slate_size=5",
)  # fmt: skip


def settings(folder: Path, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("config", overrides=[*SMALL, *overrides])
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain | {"run_dir": str(folder), "command": "python run.py ..."}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    with LLMServer() as running:
        yield running


def test_dry_run_prints_a_prompt_and_asks_nothing(
    server: LLMServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(
        tmp_path / "run", "llm=openai", "llm.model=fake", f"llm.base_url={server.base_url}", "dry_run=true"
    )
    assert bias_loop.run(config) is None
    printed = capsys.readouterr().out
    assert "# The page" in printed
    assert "12 pages, one call each" in printed
    assert not (tmp_path / "run").exists()
    assert not server.seen
    with pytest.raises(ConfigError, match="dry_run: agent choice asks no language model"):
        bias_loop.run(settings(tmp_path / "run", "agent=choice", "dry_run=true"))


def test_budget_stop_and_resume_with_a_larger_one_then_replay(server: LLMServer, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    openai = ("llm=openai", "llm.model=fake", f"llm.base_url={server.base_url}")
    with pytest.raises(BudgetExhausted):
        bias_loop.run(settings(folder, *openai, "llm.budget_calls=8"))
    assert [path.name for path in folder.glob("checkpoint/*/round-*")] == ["round-000001"]  # six pages a round
    assert bias_loop.run(settings(folder, *openai, "llm.budget_calls=100", f"resume={folder}")) == folder
    card = json.loads((folder / "run_card.json").read_text())["llm"]
    assert card["model"] == "fake"
    assert card["pages"] == 12
    assert card["calibration"] == "not calibrated"
    for path in folder.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path
    replayed = bias_loop.run(
        settings(tmp_path / "again", "llm=replay", "llm.model=fake", f"llm.cache={folder / 'llm-cache.sqlite'}")
    )
    assert replayed is not None
    assert (replayed / "metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()
    for path in (folder / "events").iterdir():
        assert path.read_bytes() == (replayed / "events" / path.name).read_bytes()
