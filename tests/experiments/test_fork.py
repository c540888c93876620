"""simenv fork: a course of a run played again, with something done to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import fork
from experiments.running.course import run_experiment
from experiments.running.design import CONF
from simenv.__main__ import main
from simenv.events import read_events

LOOP = {"seed": 4, "mode": "loop"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    small = ["n_users=40", "n_items=50", "rounds=4", "seed=3", "n_seeds=2", "slate_size=5", "arms=[popularity,itemknn]"]
    quiet = ["modes=[loop]", "references=[]", "regimes=[]", "user_models=[]", "primary=null", "variance_worlds=0"]
    with initialize_config_dir(str(CONF), version_base=None):
        made = compose("config", ["+experiment=bias_loop", "workers=0", "progress=false", *small, *quiet])
    given: Any = OmegaConf.to_container(made, resolve=True)
    folder = run_experiment(given | {"run_dir": str(tmp_path_factory.mktemp("fork") / "run"), "command": "test"})
    assert folder is not None
    return folder


def test_both_courses_are_played_and_told(run, tmp_path, capsys):
    out = tmp_path / "fork"
    said = ["fork", str(run), "--round", "1", "--do", "boost item=20", "--do", "remove item=3", "--arm", "itemknn"]
    assert main([*said, "--seed", "4", "--lucks", "2", "--follow", "7", "--workers", "0", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("report.html")
    plain = read_events(out, arm="itemknn", **LOOP)
    assert fork.equal(plain, read_events(run, arm="itemknn", **LOOP))
    forked = read_events(out, arm="itemknn, forked", **LOOP)
    assert not fork.equal(plain, forked)
    assert 3 not in forked.item[forked.round >= 1]
    table = pl.read_csv(out / "tables" / "fork.csv")
    assert table.height == 3 * 2 * 3 * 4  # lucks, courses, items, rounds
    assert sorted(table["item"].unique()) == [3, 7, 20]
    mine = table.filter((pl.col("arm") == "itemknn, forked") & (pl.col("luck") == 0) & (pl.col("item") == 20))
    shown = [(forked.item[forked.round == r] == 20).mean() for r in range(4)]
    assert mine["exposure_share"].to_list() == pytest.approx(shown)
    claims = {claim["name"]: claim for claim in json.loads((out / "claims.json").read_text())}
    assert claims["fork:share:item-3"]["estimate"] < 0
    assert claims["fork:share:item-3"]["n_seeds"] == 3
    assert "3 lucks" in claims["fork:ctr"]["sentence"]
    assert (out / "figures" / "fork.png").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--do", "unclick user=0 item=49"], "user 0 did not click item 49"),
        (["--do", "boost item=50"], "there is no item 50"),
        (["--do", "swap recommender=itemkn"], "did you mean 'itemknn'"),
        (["--arm", "als", "--do", "boost item=1"], "arm=als"),
        (["--mode", "organic", "--do", "boost item=1"], "mode=organic"),
        (["--seed", "9", "--do", "boost item=1"], "seed=9"),
        (["--round", "4", "--do", "boost item=1"], "round=4"),
        ([], "do=[]"),
    ],
)
def test_forks_that_cannot_be_are_named_before_anything_is_played(run, tmp_path, capsys, options, words):
    assert main(["fork", str(run), "--out", str(tmp_path / "fork"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "fork").exists()
