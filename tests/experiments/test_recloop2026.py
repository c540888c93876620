"""RecLoop's findings as claims, and the concentration of codes that they need."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.running.course import run_experiment
from experiments.running.design import CONF
from recommenders.p5.concentration import code_concentration
from simenv.errors import ConfigError
from simenv.language_models.fake_server import LLMServer, Reply, Seen
from tests.recommenders.taste_reader import reply

SMALL = [
    "n_users=25", "n_items=40", "rounds=2", "n_seeds=1", "slate_size=4", "workers=0", "modes=[loop,frozen]",
    "arms=[sasrec,p5-collaborative,p5-semantic]", "recommenders.sasrec.training.epochs=1",
    "recommenders.p5-collaborative.training.epochs=1", "recommenders.p5-semantic.training.epochs=1",
]  # fmt: skip


def config(folder: Any, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base=None):
        made = compose("config", ["+experiment=recloop2026", "progress=false", *SMALL, *overrides])
    given: dict[str, Any] = OmegaConf.to_container(made, resolve=True)
    return given | {"run_dir": str(folder), "command": "test"}


def test_concentration_by_hand():
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [3, 0]])  # no item has the first token 2
    even = code_concentration(codes, np.array([0, 2, 4]))
    assert even["code_gini_level1"] == pytest.approx(0)
    assert even["code_entropy_level1"] == pytest.approx(1)
    narrow = code_concentration(codes, np.array([0, 1, 0]))
    assert narrow["code_gini_level1"] == pytest.approx(2 / 3)  # one of three tokens has all
    assert narrow["code_entropy_level1"] == 0
    shown = np.array([2, 1]) / 3
    assert narrow["code_entropy_level2"] == pytest.approx(-(shown @ np.log(shown)) / np.log(2))


def test_the_findings_are_claims_beside_those_of_every_loop(tmp_path):
    folder = run_experiment(config(tmp_path / "run"))
    claims = {claim["name"]: claim for claim in json.loads((folder / "claims.json").read_text())}
    metrics = pl.read_csv(folder / "metrics.csv")
    codes = metrics.filter((pl.col("metric") == "code_gini_level1") & (pl.col("arm") == "p5-semantic"))
    value = {(row["mode"], row["round"]): row["value"] for row in codes.to_dicts()}
    grown = value["loop", 1] - value["loop", 0] - (value["frozen", 1] - value["frozen", 0])
    assert claims["recloop-codes:p5-semantic:code_gini_level1:frozen"]["estimate"] == pytest.approx(grown)
    other = metrics.filter((pl.col("metric") == "code_gini_level1") & (pl.col("arm") == "p5-collaborative"))
    of = {(row["mode"], row["round"]): row["value"] for row in other.to_dicts()}
    assert claims["recloop-tokens:p5-collaborative:code_gini_level1:p5-semantic"]["estimate"] == pytest.approx(
        of["loop", 1] - of["loop", 0] - (value["loop", 1] - value["loop", 0])
    )
    assert {name for name in claims if name.startswith("recloop-individual")} == {
        f"recloop-individual:{arm}:{metric}:sasrec"
        for arm in ("p5-collaborative", "p5-semantic")
        for metric in ("ild", "genre_kl")
    }
    assert "amplification:sasrec:arp_pct:frozen" in claims
    assert metrics.filter((pl.col("arm") == "sasrec") & pl.col("metric").str.starts_with("code_")).is_empty()


def test_arms_that_are_not_played_are_named(tmp_path):
    with pytest.raises(ConfigError, match="sequential=gru4rec: is not played"):
        run_experiment(config(tmp_path / "run", "sequential=gru4rec"))


@pytest.mark.slow
def test_language_models_as_users_and_as_an_arm(tmp_path, monkeypatch):
    """A ranker that asks one model, users who ask another, and the findings as ever; a dry run counts both."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")

    def served(_: int, seen: Seen) -> Reply | None:
        if "# The page" in seen.prompt:
            return None
        schema = seen.body.get("response_format", {}).get("json_schema", {}).get("schema")
        return Reply(content=reply(next(m["content"] for m in seen.body["messages"] if m["role"] == "user"), schema))

    with LLMServer(served) as server:
        models = [f"{group}.{name}" for group in ("llm", "recommender_llm") for name in (
            "model=test", f"base_url={server.base_url}")]  # fmt: skip
        options = [
            "agent=llm", "llm=openai", "llm@recommender_llm=openai", *models, "n_users=6",
            "arms=[sasrec,p5-collaborative,p5-semantic,chatgpt-list]", "recommenders.chatgpt-list.candidates=8",
        ]  # fmt: skip
        folder = run_experiment(config(tmp_path / "run", *options, "modes=[loop,frozen]"))
        asked = len(server.seen)
    card = json.loads((folder / "run_card.json").read_text())
    assert card["llm"]["pages"] == 6 * 2 * (4 * 2 + 1)  # with `random`
    assert 0 < card["recommender_llm"]["calls"] < asked
    claims = {claim["name"] for claim in json.loads((folder / "claims.json").read_text())}
    assert {"recloop-codes:p5-semantic:code_gini_level1:frozen", "amplification:chatgpt-list:arp_pct:frozen"} <= claims
