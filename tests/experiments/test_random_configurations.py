"""Random configurations: each is played, or refused in one line before anything is."""

import copy
import json
import random
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.running.course import run_experiment
from experiments.running.design import Design, offer_recommenders, spec_from_conf
from experiments.running.directory import RunDirectory
from simenv.datasets import Dataset, Interactions
from simenv.datasets.raw import numbered_items
from simenv.errors import ConfigError, SimenvError
from simenv.platform import Schedule

CONF = str(Path(__file__).resolve().parents[2] / "conf")
TINY = [
    "+experiment=bias_loop_smoke",
    *("n_users=12", "n_items=20", "rounds=2", "n_seeds=1", "slate_size=3", "workers=0", "progress=false"),
    *("arms=[popularity]", "modes=[loop]", "references=[]", "regimes=[]", "user_models=[]", "variance_worlds=0"),
]
NAN, INF = float("nan"), float("inf")
NUMBERS = [NAN, INF, -INF, -0.0, 0, 1, 2, -1, 0.5, 1.5, 3, 1e308, 10**20, 2**63, 2**63 - 1, -(2**63) - 1]
OTHERS = [None, True, False, "abc", "", "1", "never", "loop", [], {}, [[[]]], [1, 2], ["loop"], [None], {"ctr": NAN}]
NOT_TRIED = {
    "progress",
    "module",
    "name",
    "question",
    "resume",
    "dry_run",
    "workers",
    "llm",
    "recommenders",
    "hydra",
    "n_seeds",
}
AGENTS = ("choice", "rank", "mixed", "drifting-interest", "rank-discounted")
TASTES = ("factor", "content", "neighbourhood")


@pytest.fixture(scope="module")
def parts():
    """A tiny experiment, resolved, and the specs that may take the place of its agent and tastes."""
    offer_recommenders()
    with initialize_config_dir(CONF, version_base=None):
        base = OmegaConf.to_container(compose("config", TINY), resolve=True, throw_on_missing=True)
    return base, [without_model("agent", name) for name in AGENTS], [spec_from_conf("tastes", name) for name in TASTES]


def without_model(group, name):
    """A spec as its yaml has it, with llm=null."""
    return json.loads(json.dumps(spec_from_conf(group, name)).replace('"${llm}"', "null"))


def keys(spec, start=()):
    for name, value in spec.items():
        if name != "_target_":
            yield (*start, name)
            if isinstance(value, dict):
                yield from keys(value, (*start, name))


def draw(parts, rng):
    """A configuration with one or two values that somebody might have typed, and what they are."""
    base, agents, tastes = copy.deepcopy(parts)
    kind = rng.choice(["recommender", "agent", "tastes", "other", "other"])
    if kind == "recommender":
        arm = rng.choice(sorted(base["recommenders"]))
        base["arms"] = [arm]
        open_to = [("recommenders", arm), *keys(base["recommenders"][arm], ("recommenders", arm))]
    elif kind == "other":
        open_to = list(keys({name: value for name, value in base.items() if name not in NOT_TRIED}))
    else:
        base[kind] = rng.choice(agents if kind == "agent" else tastes)
        base["refit_tastes"] = True
        open_to = [(kind,), *keys(base[kind], (kind,))]
    changed = {}
    for path in rng.sample(open_to, min(rng.choice([1, 1, 2]), len(open_to))):
        value = rng.choice(NUMBERS if rng.random() < 0.6 else OTHERS)
        place = base
        for name in path[:-1]:
            place = place[name] if isinstance(place, dict) else {}
        if isinstance(place, dict):
            place[path[-1]] = changed[".".join(path)] = value
    return base, changed


class Reached(Exception):
    """All checks have passed."""


def outcome(config, folder):
    """What the command line would make of it: the line of an error, or None where it went through."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run_experiment(config | {"run_dir": str(folder), "command": ""})
    except SimenvError as error:
        return str(error)
    except Reached:
        return None
    return None


def check(parts, tmp_path, n, seed):
    """Refusals and passes of `n` configurations; whatever else is raised fails the test that calls."""
    rng, refused = random.Random(seed), 0
    for number in range(n):
        config, changed = draw(parts, rng)
        try:
            line = outcome(config, tmp_path / str(number))
        except Exception as error:
            raise AssertionError(f"number {number}, {changed}: {type(error).__name__} {error}") from error
        if line is not None:
            refused += 1
            assert "\n" not in line, changed
            assert "not supported between" not in line, (changed, line)
            assert "cannot make" not in line, (changed, line)
    return refused


def test_a_hundred_random_configurations_pass_or_are_refused_in_one_line(parts, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise Reached

    monkeypatch.setattr(RunDirectory, "__init__", stop)
    assert 40 < check(parts, tmp_path, 100, seed=0) < 98


@pytest.mark.slow
def test_random_configurations_that_pass_can_be_played(parts, tmp_path):
    assert check(parts, tmp_path, 150, seed=1) > 60


@pytest.mark.parametrize("n_items", [1, 4])
def test_a_world_in_which_everybody_has_had_everything_is_refused(n_items):
    log = Interactions.empty(3, n_items)
    pairs = [np.repeat(np.arange(3), n_items).astype(np.int32), np.tile(np.arange(n_items), 3).astype(np.int32)]
    log = replace(
        log,
        users=pairs[0],
        items=pairs[1],
        ratings=np.full(3 * n_items, np.nan, np.float32),
        times=np.arange(3 * n_items),
    )
    world = Dataset(name="full", catalog=numbered_items(np.arange(n_items)), interactions=log, user_ids=("a", "b", "c"))
    options = {
        "dataset": world,
        "agent": spec_from_conf("agent", "choice"),
        "recommenders": {"random": spec_from_conf("recommender", "random")},
        "arms": (("random", "loop"),),
        "schedule": Schedule(slate_size=1),
    }
    with pytest.raises(ConfigError, match=f"repeat=never: every user of full has had all {n_items} items"):
        Design(**options).check()
    Design(**options, repeat="always").check()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rounds": 2**62}, "rounds=.*1 to 1000000"),
        ({"seed": 2**63 - 1}, "seed . n_seeds="),
        ({"seed": 2**63}, "seed="),
    ],
)
def test_sizes_that_would_not_end_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Design(dataset=None, agent=None, recommenders={"a": None}, arms=(("a", "loop"),), **options)
