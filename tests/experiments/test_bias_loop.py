"""bias_loop whole: re-runs beside the main run, what is concluded from them, and a planted effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import compare
from experiments.running.course import run_experiment
from experiments.running.design import CONF
from recommenders.base import Recommender
from simenv.conclusions.across import flips
from simenv.conclusions.claims import Claim, judge
from simenv.conclusions.judged import read_claims
from simenv.errors import ConfigError


def settings(folder: Path, *overrides: str) -> dict[str, Any]:
    small = ["n_users=30", "n_items=60", "rounds=3", "n_seeds=2", "workers=0", "progress=false", "slate_size=5"]
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("config", overrides=["+experiment=bias_loop_smoke", *small, *overrides])
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain | {"run_dir": str(folder), "command": "python run.py ..."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_experiment(
        settings(
            tmp_path_factory.mktemp("bias") / "run",
            "arms=[als]",
            "regimes=[never, always]",
            "user_models=[content]",
            "variance_worlds=2",
            "primary=amplification:als:arp_pct:frozen",
        )
    )


def test_every_part_is_a_run_directory(folder: Path) -> None:
    for part in ("", "regimes/always", "user_models/content", "variance/fit0-luck1", "variance/fit1-luck0"):
        for name in ("config.yaml", "run_card.json", "metrics.csv", "items.parquet", "users.parquet"):
            assert (folder / part / name).is_file(), (part, name)
    assert not (folder / "regimes/never").exists()
    assert [p.name for p in (folder / "checkpoint").iterdir()] == ["complete.json"]
    card = json.loads((folder / "regimes/always/run_card.json").read_text())
    assert card["regime"] == "always"
    assert {"constant lists", "round 0", "response logic", "oracle regret"} <= {gate["name"] for gate in card["gates"]}


def test_claims_name_their_regime_and_what_the_re_runs_say(folder: Path) -> None:
    claims = read_claims(folder)
    assert [claim.name for claim in claims if claim.primary] == ["amplification:als:arp_pct:frozen"]
    assert {claim.regime for claim in claims} == {"never"}
    assert {claim.regime for claim in read_claims(folder / "regimes/always")} == {"always"}
    statuses = {
        "regime_status": {"never": claims, "always": read_claims(folder / "regimes/always")},
        "user_model_status": {"main": claims, "content": read_claims(folder / "user_models/content")},
    }
    for key, elsewhere in statuses.items():
        expected = {row.name: row.status for row in flips(elsewhere)}
        assert {claim.name: getattr(claim, key) for claim in claims} == {c.name: expected[c.name] for c in claims}


def test_estimate_is_the_contracts_amplification(folder: Path) -> None:
    claim = next(c for c in json.loads((folder / "claims.json").read_text()) if c["primary"])
    metrics = pl.read_csv(folder / "metrics.csv").filter(group="all", metric="arp_pct", arm="als")
    value = {(s, m, r): v for s, m, r, v in metrics.select("seed", "mode", "round", "value").iter_rows()}
    moved = {m: np.array([value[s, m, 2] - value[s, m, 0] for s in (0, 1)]) for m in ("loop", "frozen")}
    assert claim["estimate"] == pytest.approx((moved["loop"] - moved["frozen"]).mean(), abs=1e-12)


def test_variance_table(folder: Path) -> None:
    table = pl.read_csv(folder / "tables" / "variance.csv")
    assert table["component"].to_list() == ["world", "model", "luck"]
    assert table["n_runs"].to_list() == [6, 6, 6]
    assert table["share"].sum() == pytest.approx(1)
    main, luck = (pl.read_csv(folder / part / "metrics.csv") for part in ("", "variance/fit0-luck1"))
    same = main.filter(arm="als", metric="coverage", round=0, group="all", mode="loop")["value"].to_list()
    assert same == luck.filter(metric="coverage", round=0, group="all", mode="loop")["value"].to_list()
    clicks = [
        f.filter(arm="als", metric="ctr", round=1, group="all", mode="loop")["value"].to_list() for f in (main, luck)
    ]
    assert clicks[0] != clicks[1]  # the same slates in the same worlds, other luck


def test_a_finished_run_is_left_alone(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    config = settings(
        folder, "arms=[als]", "regimes=[never, always]", "user_models=[content]", "variance_worlds=2",
        "primary=amplification:als:arp_pct:frozen", f"resume={folder}",
    )  # fmt: skip
    assert run_experiment(config) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+margins.ctrr=0.1", "margins.ctrr: no such metric"),
        ("alpha=2", "alpha=2: expected a share in (0, 1)"),
        ("robustness_seeds=-1", "robustness_seeds=-1"),
        ("variance_worlds=1.5", "variance_worlds=1.5"),
        ("user_models=[psychic]", "tastes=psychic: unknown"),
        ("regimes=[sometimes]", "repeat=sometimes: expected"),
    ],
)
def test_bad_conclusions_are_refused_before_work(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        run_experiment(settings(tmp_path / "run", override))
    assert words in str(raised.value)
    assert not (tmp_path / "run").exists()


class _Follower(Recommender):
    """Shows what was clicked most since the warm start; with `planted`, prefers the most popular with every refit."""

    name = "follower"

    def __init__(self, planted: float) -> None:
        self.planted = planted
        self.fits = 0

    def _fit(self, log: Any, key: Any) -> None:
        self.fits += 1
        noise = np.random.default_rng(key.seed).random(log.n_items)
        self.weights = noise + self.planted * self.fits * log.item_counts() / log.item_counts().max()

    def _score(self, users: Any) -> Any:
        return np.tile(self.weights, (len(users), 1))


@pytest.mark.parametrize(("planted", "verdict"), [(0.5, "raised"), (0.0, "unclear")])
def test_a_planted_effect_is_found_and_none_is_not(planted: float, verdict: str) -> None:
    played = compare(
        {"follower": _Follower(planted)}, modes=["loop", "frozen"], references=(), n_seeds=8, rounds=4, n_users=30,
        n_items=60, slate_size=5, repeat="always",
    )  # fmt: skip
    claim = Claim(name="x", arm="follower", metric="arp_pct", cause="feedback", quantity="the percentile", primary=True)
    judged = judge(played.metrics, [claim], regime="always")[0]
    assert judged.verdict == verdict
    if planted == 0:
        assert judged.estimate == 0  # an A/A run: the same slates, hence not a hair of difference
    else:
        assert judged.estimate > 0.03


OWN_METRIC = """
from simenv.metrics import MetricSpec
from simenv.metrics.formulas import mean


def top_slot_ctr(events, reference, group):
    return mean(events.clicked[events.rank == 0])


judged = MetricSpec(
    name="judged", compute=top_slot_ctr, window=2, kind="own", quantity="clicks on {slates}", margin=0.5
)
"""


def test_a_metric_from_outside_the_checkout_is_measured_and_judged(tmp_path: Path, monkeypatch: Any) -> None:
    """The recipe of the documentation: one function in a file of one's own, named in one option."""
    (tmp_path / "own_metrics.py").write_text(OWN_METRIC)
    monkeypatch.syspath_prepend(tmp_path)
    names = ["own_metrics.top_slot_ctr", "own_metrics.judged"]
    played = compare(
        ["popularity"], modes=["loop", "frozen"], references=(), metrics=names, n_seeds=2, rounds=2, n_users=20,
        n_items=40, slate_size=3,
    )  # fmt: skip
    first = played.metrics.filter(round=0, group="all", seed=0, arm="popularity", mode="loop")
    values = dict(first.select("metric", "value").iter_rows())
    top = played.events.filter(round=0, seed=0, arm="popularity", mode="loop", rank=0)
    assert values["top_slot_ctr"] == values["judged"] == pytest.approx(top["clicked"].mean())
    assert len(values) == 15 + 2  # all that a synthetic world without a holdout has, and ours
    claim = next(claim for claim in played.claims if claim.metric == "judged")
    assert (claim.name, claim.margin) == ("own:popularity:judged:frozen", 0.5)
    assert "clicks on Popularity's slates" in claim.sentence
    for wrong, words in (
        (["own_metrics.nothing"], "expected the dotted path"),
        (["own_metrics.top_slot_ctr"] * 2, "'top_slot_ctr' is the name of another metric"),
        ([0.5], "expected a function"),
        ("own_metrics.judged", "expected a list"),
    ):
        with pytest.raises(ConfigError, match=words):
            compare(["popularity"], metrics=wrong, n_users=20, n_items=40)
