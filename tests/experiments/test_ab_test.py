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
from scipy import stats

from experiments.ab_test import difference
from experiments.running.course import run_experiment
from experiments.running.design import CONF
from recommenders.shared import treated, treated_clusters
from simenv.datasets import synthetic
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
    folder = run_experiment(
        config(
            tmp_path_factory.mktemp("ab") / "run", "treatment=itemknn", "users=[hash,friends]", "dataset.mean_degree=4"
        )
    )
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
    assert sorted(frozen["arm"].unique()) == ["test-pooled", "test-pooled-friends"]
    assert abs(frozen.filter(pl.col("metric") == "arp_pct")["bias"][0]) < 1e-12  # the same slates
    assert (run / "figures" / "ab_test.png").is_file()


def test_clusters_of_friends_make_tests_of_their_own(run):
    claims = {claim["name"]: claim for claim in json.loads((run / "claims.json").read_text())}
    row = pl.read_csv(run / "tables" / "ab_test.csv").row(
        by_predicate=(pl.col("arm") == "test-own-friends") & (pl.col("metric") == "ctr") & (pl.col("mode") == "loop"),
        named=True,
    )
    assert (row["learns_from"], row["users"]) == ("own", "friends")
    naive, bias = [], []
    for seed in (0, 1):
        friends = synthetic(n_users=60, n_items=50, seed=seed, mean_degree=4).friends
        group = treated_clusters(seed, friends.clusters(seed), 0.5)
        control, treatment, test = (means(run, arm, seed) for arm in ("popularity", "itemknn", "test-own-friends"))
        naive.append(np.mean([test[u] for u in test if group[u]]) - np.mean([test[u] for u in test if not group[u]]))
        bias.append(np.mean([test[u] - treatment[u] for u in test if group[u]])
                    - np.mean([test[u] - control[u] for u in test if not group[u]]))  # fmt: skip
    assert row["effect"] == pytest.approx(np.mean(naive))
    assert claims["bias:own-friends:loop:ctr"]["estimate"] == pytest.approx(np.mean(bias))


def test_the_interval_is_welchs_over_users_and_the_clusters_where_they_are_assigned():
    rng = np.random.default_rng(1)
    values, group = rng.normal(size=60), np.arange(60) % 3 == 0
    values[7] = np.nan
    known = ~np.isnan(values)
    welch = stats.ttest_ind(values[group & known], values[~group & known], equal_var=False).confidence_interval(0.9)
    estimate, low, high = difference(values, group, np.arange(60), 0.1)
    assert (low, high) == pytest.approx((welch.low, welch.high))
    assert estimate == pytest.approx((low + high) / 2)
    # users in threes who all do the same are no more evidence than one of them
    thrice = difference(np.repeat(values, 3), np.repeat(group, 3), np.repeat(np.arange(60), 3), 0.1)
    assert thrice == pytest.approx((estimate, low, high))
    assert difference(values, group, group.astype(np.int64), 0.1)[1:] == (-np.inf, np.inf)  # two clusters


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("share=1", "share=1"),
        ("treatment=popularity", "is the control too"),
        ("logs=[all]", "logs=all"),
        ("users=[all]", "users=all"),
        ("users=[friends]", "users=friends: synthetic knows no friends"),
        ("modes=[organic]", "modes=organic"),
        ("last_rounds=9", "last_rounds=9"),
        ("control=nothing", "no such recommender"),
    ],
)
def test_bad_settings_are_named(override, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        run_experiment(config(tmp_path / "run", override))
    assert not (tmp_path / "run").exists()
