"""Distilling: what is known comes back, what is lost is said, and a log that cannot be distilled is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agents.choice.model import ChoiceModel, RankAcceptance
from agents.population.traits import Traits
from experiments.running.course import run_experiment
from experiments.running.design import CONF, World, build
from experiments.users import distill
from experiments.users.fitting import EXIT, WEIGHTS, click_logits, fit_all, go_through, logistic, plain_spec
from recommenders.popularity import Random
from simenv.datasets import synthetic
from simenv.errors import ConfigError, RunDirectoryError
from simenv.events import Events
from simenv.metrics.reference import Reference
from simenv.platform import Platform, Schedule

DATASET = synthetic(n_users=900, n_items=150, seed=2)
WORLD = World(
    seed=5,
    dataset=DATASET,
    tastes=DATASET.tastes,
    traits=Traits.from_dataset(DATASET),
    reference=Reference.from_dataset(DATASET, 5),
)
KNOWN = {
    "base": 0.8,
    "taste": 1.5,
    "conformity": 2.0,
    "novelty": 1.5,
    "satiation": 0.9,
    "fatigue": 1.2,
    "rating_rate": 0.6,
    "exit_base": -0.5,
    "exit_page": 0.8,
    "exit_activity": 1.5,
    "exit_satisfaction": 1.0,
}


def played(model, rounds: int = 6, **schedule: Any) -> Events:
    model.bind(DATASET, DATASET.tastes, seed=5, traits=WORLD.traits)
    options = Schedule(**({"slate_size": 8, "max_pages": 3} | schedule))
    platform = Platform(DATASET, model, Random(), seed=5, mode="frozen", schedule=options)
    parts = []
    for _ in range(rounds):
        platform.step()
        parts.append(platform.round_events)
    return Events.concat(parts)


@pytest.fixture(scope="module")
def known() -> tuple[ChoiceModel, Events]:
    model = ChoiceModel(**KNOWN, position_decay=0.4)
    return model, played(model)


def test_known_weights_come_back(known):
    """From other start values, every weight within 3.5 standard errors, and these small enough to say something."""
    model, events = known
    log = go_through(WORLD, events, model.dynamics, repeat="never")
    fit = fit_all(log, plain_spec({}), more_pages=3)
    for name, truth in (KNOWN | {"position_decay": 0.4}).items():
        assert abs(fit.spec[name] - truth) < 3.5 * fit.errors[name], name
        assert fit.errors[name] < 0.25, name
    assert fit.spec["examination"] == "position"


def test_the_circumstances_are_those_of_the_choice_rule(known):
    """With the true weights, clicks have the probabilities foretold - also within tenths, by page and by round."""
    model, events = known
    log = go_through(WORLD, events, model.dynamics, repeat="never")
    logits = click_logits(log, plain_spec(KNOWN))
    p = 1 / (1 + np.exp(-logits))
    for rows in np.array_split(np.argsort(p), 10):
        error = np.sqrt(p[rows].mean() * (1 - p[rows].mean()) / len(rows))
        assert abs(p[rows].mean() - log.clicked[rows].mean()) < 4 * error
    assert log.circumstances[log.rounds == 0][:, WEIGHTS.index("satiation")].min() < 0  # also within the first round
    examined = events.take(np.flatnonzero(events.examined))
    assert len(log.users) == len(examined)
    assert log.clicked.sum() == events.clicked.sum()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"examination": "cascade", "continue_click": 0.3, "continue_skip": 0.85}, "cascade"),
        ({"examination": "all"}, "all"),
        ({"examination": "position", "position_decay": 1.3}, "position"),
    ],
)
def test_the_rule_of_examination_is_told_from_the_others(options, expected):
    model = ChoiceModel(base=1.0, **options)
    log = go_through(WORLD, played(model, 2, max_pages=1), model.dynamics, repeat="never")
    fit = fit_all(log, plain_spec({}), more_pages=1)
    assert fit.spec["examination"] == expected
    for name in set(options) - {"examination"}:
        assert abs(fit.spec[name] - options[name]) < 3.5 * fit.errors[name]
    assert not set(EXIT) & set(fit.errors)  # one page: nobody is seen to leave
    assert all(fit.spec[name] == plain_spec({})[name] for name in EXIT)


def test_a_column_that_does_not_vary_keeps_its_start():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(4000), rng.normal(size=4000), np.zeros(4000), np.full(4000, 2.0)])
    y = rng.random(4000) < 1 / (1 + np.exp(-(0.5 + x[:, 1])))
    found, errors = logistic(x, y, np.zeros(4000), np.array([0.0, 0.0, 7.0, 0.0]))
    assert abs(found[0] - 0.5) < 4 * errors[0]
    assert abs(found[1] - 1.0) < 4 * errors[1]
    assert found[2] == 7.0
    assert np.isnan(errors[2:]).all()


# -- whole runs -------------------------------------------------------------------------------------------------------


def settings(name: str, run_dir: Path, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base=None):
        composed = compose("config", overrides=[f"+experiment={name}", *overrides])
    resolved: Any = OmegaConf.to_container(composed, resolve=True)
    return resolved | {"run_dir": str(run_dir), "command": "test", "resume": None, "progress": False, "workers": 0}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    agent = [f"agent.{name}={value}" for name, value in KNOWN.items()]
    sizes = [
        "n_users=250",
        "n_items=120",
        "rounds=8",
        "n_seeds=2",
        "max_pages=2",
        "modes=[loop]",
        "arms=[popularity,als]",
    ]
    config = settings("bias_loop_smoke", tmp_path_factory.mktemp("distill") / "source", *sizes, *agent)
    return run_experiment(config)


@pytest.fixture(scope="module")
def distilled(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distilled") / "run"
    return run_experiment(settings("distill", folder, f"source={source}", "source_arm=als", "source_seed=1"))


def test_fidelity_is_reported(distilled):
    fidelity = pl.read_csv(distilled / "tables" / "fidelity.csv")
    assert fidelity.columns == ["test", "setting", "model", "metric", "value", "ci_low", "ci_high"]
    value = {(r["model"], r["metric"]): r["value"] for r in fidelity.filter(pl.col("test") == "clicks").to_dicts()}
    assert value["distilled", "log-likelihood"] > value["start", "log-likelihood"]
    assert value["distilled", "log-likelihood"] > value["one rate", "log-likelihood"]
    assert value["distilled", "auc"] > 0.65
    assert value["one rate", "auc"] == 0.5
    assert value["distilled", "calibration error"] < value["start", "calibration error"]
    assert value["distilled", "click rate foretold / observed"] == pytest.approx(1.0, abs=0.15)
    loop = fidelity.filter((pl.col("test") == "loop") & (pl.col("model") == "distilled - source"))
    lost = dict(zip(loop["metric"], loop["value"], strict=True))
    assert abs(lost["ctr"]) < 0.02
    assert {"arp_pct", "gini", "true_utility"} <= set(lost)


def test_the_distilled_users_played_the_arm_and_can_be_used_again(distilled, source):
    card = json.loads((distilled / "run_card.json").read_text())
    assert card["arms"] == ["als:loop"]
    assert card["seeds"] == [1]
    metrics = pl.read_csv(distilled / "metrics.csv")
    assert metrics["round"].n_unique() == 8
    spec: Any = OmegaConf.to_container(OmegaConf.load(distilled / "agent" / "distilled.yaml"))
    assert isinstance(build(spec, "agent"), ChoiceModel)
    assert spec["taste"] == pytest.approx(KNOWN["taste"], abs=0.3)
    overrides = [f"hydra.searchpath=[file://{distilled}]", "agent=distilled"]
    assert settings("bias_loop_smoke", distilled, *overrides)["agent"] == spec
    assert (distilled / "report.html").is_file()
    assert (distilled / "figures" / "distilled.png").is_file()


def test_a_model_that_is_no_choice_model_is_distilled_with_loss():
    """Users who take one item by its rank whatever it is: no weight of taste is left, and nothing can be foretold."""
    model = RankAcceptance(decay=0.3)
    log = go_through(WORLD, played(model, 3, max_pages=1), model.dynamics, repeat="never")
    fit = fit_all(log, plain_spec({}), more_pages=1)
    assert abs(fit.spec["taste"]) < 5  # the bias is no matter of weights, so affinity may have to undo it
    assert fit.spec["examination"] == "all"
    users = np.unique(log.users)
    rows, _ = distill.fidelity(log, log, plain_spec({}), fit.spec)
    found = {(row.model, row.metric): row.value for row in rows}
    assert len(users) == DATASET.n_users
    assert found["distilled", "log-likelihood"] > found["start", "log-likelihood"]
    assert found["distilled", "log-likelihood"] < found["one rate", "log-likelihood"] + 0.01


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ([], ConfigError, "source=null"),
        (["source=/nowhere"], RunDirectoryError, "no config.yaml"),
        (["source={source}", "source_arm=bpr"], ConfigError, "no such job"),
        (["source={source}", "heldout=0"], ConfigError, "heldout=0"),
        (["source={source}", "agent=rank"], ConfigError, "expected agent=choice"),
    ],
)
def test_what_cannot_be_distilled(source, tmp_path, overrides, error, message):
    given = [text.format(source=source) for text in overrides]
    with pytest.raises(error, match=message):
        run_experiment(settings("distill", tmp_path / "run", *given))


def test_a_log_with_gaps_is_refused(tmp_path):
    sizes = ("rounds=4", "record_every=2", "n_seeds=1", "arms=[popularity]", "modes=[loop]", "n_users=40", "n_items=60")
    sparse = run_experiment(settings("bias_loop_smoke", tmp_path / "sparse", *sizes))
    with pytest.raises(ConfigError, match="expected record_every=1"):
        run_experiment(settings("distill", tmp_path / "run", f"source={sparse}"))
