"""A test of two recommenders against what switching everybody does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.running.course import run_experiment
from experiments.running.design import CONF
from recommenders.shared import treated
from simenv.errors import ConfigError
from simenv.events import scan_events

SMALL = ["n_users=60", "n_items=50", "rounds=4", "n_seeds=2", "last_rounds=2", "slate_size=5", "workers=0"]


def config(folder: Path, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base=None):
        made = compose("config", ["+experiment=ab_test", "progress=false", *SMALL, *overrides])
    given: dict[str, Any] = OmegaConf.to_container(made, resolve=True)
    return given | {"run_dir": str(folder), "command": "test"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = run_experiment(config(tmp_path_factory.mktemp("ab") / "run", "treatment=itemknn"))
    assert folder is not None
    return folder


def means(run: Path, arm: str, seed: int) -> dict[int, float]:
    """Click-through rate of each user over the last two rounds, by polars."""
    late = scan_events(run).filter(
        (pl.col("arm") == arm) & (pl.col("mode") == "loop") & (pl.col("seed") == seed) & (pl.col("round") >= 2)
    )
    table = late.group_by("user").agg(pl.col("clicked").mean()).collect()
    return dict(zip(table["user"], table["clicked"], strict=True))


def test_effects_and_bias_are_those_of_the_event_log(run):
    rows = {row["arm"]: row for row in pl.read_csv(run / "tables" / "ab_test.csv").to_dicts() if row["mode"] == "loop"
            and row["metric"] == "ctr"}  # fmt: skip
    true, naive, bias = [], [], []
    for seed in (0, 1):
        control, treatment, test = (means(run, arm, seed) for arm in ("popularity", "itemknn", "test-own"))
        group = treated(seed, 60, 0.5)
        true.append(np.mean(list(treatment.values())) - np.mean(list(control.values())))
        parts = [[test[user] for user in test if group[user] == which] for which in (True, False)]
        naive.append(np.mean(parts[0]) - np.mean(parts[1]))
        moved = [[test[u] - everybody[u] for u in test if group[u] == which]
                 for everybody, which in ((treatment, True), (control, False))]  # fmt: skip
        bias.append(np.mean(moved[0]) - np.mean(moved[1]))
    assert rows["everybody"]["effect"] == pytest.approx(np.mean(true))
    assert rows["test-own"]["effect"] == pytest.approx(np.mean(naive))
    assert rows["test-own"]["bias"] == pytest.approx(np.mean(bias))
    claims = {claim["name"]: claim for claim in json.loads((run / "claims.json").read_text())}
    assert claims["bias:own:loop:ctr"]["estimate"] == pytest.approx(np.mean(bias))
    assert claims["effect:loop:ctr"]["estimate"] == pytest.approx(np.mean(true))


def test_groups_that_never_learn_see_what_everybody_sees(run):
    table = pl.read_csv(run / "tables" / "ab_test.csv")
    frozen = table.filter((pl.col("mode") == "frozen") & pl.col("bias").is_not_null())
    assert frozen["arm"].unique().to_list() == ["test-pooled"]
    assert abs(frozen.filter(pl.col("metric") == "arp_pct")["bias"][0]) < 1e-12  # the same slates
    assert (run / "figures" / "ab_test.png").is_file()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("share=1", "share=1"),
        ("treatment=popularity", "is the control too"),
        ("logs=[all]", "logs=all"),
        ("modes=[organic]", "modes=organic"),
        ("last_rounds=9", "last_rounds=9"),
        ("control=nothing", "no such recommender"),
    ],
)
def test_bad_settings_are_named(override, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        run_experiment(config(tmp_path / "run", override))
