"""The experiment on talk: what it claims, how likeness is measured, and what it refuses."""

import json

import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agents.choice.model import ChoiceModel
from experiments.running.course import run_experiment
from experiments.running.design import CONF
from experiments.social import probe
from recommenders.popularity import Popularity
from simenv.datasets import synthetic
from simenv.errors import ConfigError
from simenv.platform import Platform


def platform(world):
    users = ChoiceModel()
    users.bind(world, world.tastes, seed=1)
    return Platform(world, users, Popularity(), seed=1)


def test_friends_by_taste_are_alike_and_friends_by_chance_are_not():
    apart, alike = (
        platform(synthetic(n_users=200, n_items=60, seed=2, mean_degree=8, rewiring=0, homophily=share))
        for share in (0.0, 1.0)
    )
    assert abs(probe(apart)["friend_taste"]) < 0.05 < 0.2 < probe(alike)["friend_taste"]
    assert probe(alike)["friend_clicks"] == 0
    alike.step()
    assert probe(alike)["friend_clicks"] > 0


def test_a_probe_without_friends_is_refused(world):
    with pytest.raises(ConfigError, match="synthetic knows no friends"):
        probe(platform(world))


def config(folder, *overrides):
    small = ["n_seeds=2", "n_users=40", "n_items=50", "rounds=3", "arms=[popularity,social]", "workers=0"]
    with initialize_config_dir(str(CONF), version_base=None):
        made = compose("config", ["+experiment=social", "progress=false", *small, *overrides])
    return OmegaConf.to_container(made, resolve=True) | {"run_dir": str(folder), "command": "test"}


def test_talk_is_compared_with_silence_and_with_strangers(tmp_path):
    run = run_experiment(config(tmp_path / "run", "agent.word_of_mouth=3"))
    claims = {claim["name"]: claim for claim in json.loads((run / "claims.json").read_text())}
    assert len(claims) == 2 * 5 * 2
    assert claims["talk:social:ctr:silent"]["control"] == "social/silence"
    assert claims["talk:social:ctr:silent"]["estimate"] != 0
    table = pl.read_csv(run / "tables" / "social.csv")
    assert set(table["talk"]) == {"talking", "silent", "strangers"}
    first = table.filter(pl.col("metric") == "ctr").group_by("arm").agg(pl.col("first").n_unique())
    assert set(first["first"]) == {1}  # nobody has heard of anything in the first round
    assert (run / "report.html").is_file()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("agent.word_of_mouth=0", "agent.word_of_mouth: is 0 or none"),
        ("modes=[frozen]", r"modes: expected \[loop\]"),
        ("dataset.mean_degree=0", "agent=choice: hears of friends, and synthetic knows none"),
    ],
)
def test_bad_designs_are_refused_before_anything_is_written(tmp_path, override, words):
    with pytest.raises(ConfigError, match=words):
        run_experiment(config(tmp_path / "run", override))
    assert not (tmp_path / "run").exists()
