"""user_model_swap: the same run under other users, what depends on them, and what each kind cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import user_model_swap
from experiments.running.course import run_experiment
from experiments.running.design import CONF
from simenv.conclusions.judged import JudgedClaim
from simenv.errors import ConfigError
from simenv.language_models.fake_server import LLMServer


def settings(folder: Path, *overrides: str) -> dict[str, Any]:
    asked = [f"swap.{kind}.llm.model=test" for kind in ("smollm2", "mixed")]
    small = [
        "+experiment=user_model_swap", "n_users=12", "n_items=30", "rounds=3", "n_seeds=1", "arms=[popularity]",
        "slate_size=5", "workers=0", "progress=false",
        "llm@swap.smollm2.llm=openai", "llm@swap.mixed.llm=openai",
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("config", overrides=[*small, *asked, *overrides])
    given: dict[str, Any] = OmegaConf.to_container(config, resolve=True)
    return given | {"run_dir": str(folder), "command": "test"}


def test_every_kind_plays_the_same_and_is_compared(tmp_path):
    with LLMServer() as server:
        urls = [f"swap.{kind}.llm.base_url={server.base_url}" for kind in ("smollm2", "mixed")]
        folder = run_experiment(settings(tmp_path / "run", *urls))
    kinds = ["embedded", "smollm2", "mixed", "distilled"]
    table = pl.read_csv(folder / "tables" / "user_model_swap.csv")
    claims = json.loads((folder / "claims.json").read_text())
    assert table.height == len(kinds) * len(claims)
    assert table["users"].to_list()[:4] == kinds
    assert table.filter(pl.col("users") == "embedded")["same_sign"].drop_nulls().all()
    costs = {row["users"]: row for row in pl.read_csv(folder / "tables" / "user_model_cost.csv").to_dicts()}
    sessions = 12 * 3 * 3  # users, rounds, arms: two modes and the reference
    assert {row["sessions"] for row in costs.values()} == {sessions}
    assert 500 < costs["smollm2"]["calls_per_1000_sessions"] <= 1000  # pages that arms share are asked about once
    assert 0 < costs["mixed"]["calls_per_1000_sessions"] < 700
    assert costs["embedded"]["calls_per_1000_sessions"] == costs["distilled"]["tokens_per_1000_sessions"] == 0
    assert (folder / "agent" / "distilled.yaml").is_file()
    page = (folder / "report.html").read_text()
    assert "user_models/smollm2/" in page
    assert "user_model_cost" in page


def claim(estimate: float, half: float, verdict: Any) -> JudgedClaim:
    return JudgedClaim(
        name="amp",
        estimate=estimate,
        ci_low=estimate - half,
        ci_high=estimate + half,
        verdict=verdict,
        test="inconclusive" if verdict == "unclear" else "supported",
        n_seeds=8,
    )


@pytest.mark.parametrize(
    ("other", "status", "told"),
    [
        (claim(0.2, 0.1, "raised"), "holds", ""),
        (claim(0.0, 0.3, "unclear"), "open", ""),  # undecided, and its interval is not apart
        (
            claim(-0.2, 0.1, "lowered"),
            "flips",
            "the verdict flips: raised (+.200) under embedded, lowered (-.200) under a",
        ),
        (claim(0.9, 0.1, "raised"), "holds", "+0.200 (+0.100 to +0.300) under embedded users and +0.900"),
    ],
)
def test_a_claim_depends_where_verdicts_or_intervals_part(other, status, told):
    claims = {"embedded": [claim(0.2, 0.1, "raised")], "a": [other]}
    (found,) = user_model_swap.depending(claims)
    assert found.user_model_status == status
    assert (told in found.user_model_note) if told else (found.user_model_note == "")
    base, row = user_model_swap.compared(claims)
    assert base["same_sign"]
    assert base["overlap"]
    assert row["same_sign"] == (other.estimate > 0)
    assert row["overlap"] == (other.ci_high >= 0.1 and other.ci_low <= 0.3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kinds=[user-lm]", r"needs swap\.user-lm\.llm\.path"),
        ("kinds=[psychic]", "'psychic'; expected some of distilled"),
        ("kinds=[distilled]", "distilled_from=smollm2: expected one of kinds"),
    ],
)
def test_kinds_that_cannot_be_played_are_named(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        run_experiment(settings(tmp_path / "run", override))
    assert not (tmp_path / "run").exists()
