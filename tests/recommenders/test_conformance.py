"""The inherited suite, once per recommender, and what their configuration files promise."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from recommenders.base import Recommender
from recommenders.testing import KEY, RecommenderSuite, small_dataset, small_log, small_truth
from simenv.errors import ConfigError
from simenv.slates import SeesDataset, SeesTruth

CONF = Path(__file__).parents[2] / "conf" / "recommender"
CLASSICAL = (
    *(
        "random",
        "popularity",
        "content",
        "itemknn",
        "userknn",
        "seqknn",
        "ease",
        "als",
        "bpr",
        "mf",
        "puresvd",
        "oracle",
    ),
    *("popularity-penalty", "epsilon-greedy", "calibrated", "two-stage"),
)


def from_yaml(name: str, **changes: object) -> Recommender:
    config = OmegaConf.load(CONF / f"{name}.yaml")[name]
    made = instantiate(config, **changes)
    assert isinstance(made, Recommender)
    return made


class FromYaml(RecommenderSuite):
    name = ""

    def make(self) -> Recommender:
        return from_yaml(self.name)


for _name in CLASSICAL:
    _title = "Test" + _name.title().replace("-", "")
    globals()[_title] = type(_title, (FromYaml,), {"name": _name, "__module__": __name__})


@pytest.mark.parametrize("name", CLASSICAL)
def test_yaml_holds_one_key_which_is_the_name(name):
    assert list(OmegaConf.load(CONF / f"{name}.yaml")) == [name]
    assert from_yaml(name).name == name


@pytest.mark.parametrize("name", CLASSICAL)
def test_yaml_shows_the_defaults_of_the_constructor(name):
    shown = OmegaConf.load(CONF / f"{name}.yaml")[name]
    parameters = inspect.signature(type(from_yaml(name))).parameters
    assert set(parameters) == set(shown) - {"_target_"}
    for option, parameter in parameters.items():
        if option != "base":
            assert shown[option] == parameter.default


OPTIONS = [
    ("content", {"text_weight": 0.0}),
    ("content", {"min_df": 20}),
    ("content", {"max_df": 1.0}),
    ("itemknn", {"neighbours": 3}),
    ("itemknn", {"shrinkage": 0.0}),
    ("userknn", {"neighbours": 3}),
    ("userknn", {"shrinkage": 5.0}),
    ("seqknn", {"window": 1}),
    ("seqknn", {"gap_decay": 0.2}),
    ("seqknn", {"recency_decay": 0.9}),
    ("seqknn", {"power": 1.0}),
    ("seqknn", {"history": 2}),
    ("ease", {"reg": 5.0}),
    ("als", {"embedding_size": 4}),
    ("als", {"epochs": 1}),
    ("als", {"reg": 30.0}),
    ("als", {"alpha": 0.1}),
    ("bpr", {"embedding_size": 4}),
    ("bpr", {"epochs": 1}),
    ("bpr", {"learning_rate": 0.001}),
    ("bpr", {"reg": 0.5}),
    ("puresvd", {"embedding_size": 4}),
    ("mf", {"embedding_size": 4}),
    ("mf", {"epochs": 1}),
    ("mf", {"learning_rate": 0.001}),
    ("mf", {"reg": 0.9}),
    ("popularity-penalty", {"strength": 5.0}),
]


def fitted_scores(recommender):
    log = small_log()
    if isinstance(recommender, SeesDataset):
        recommender.bind_dataset(small_dataset(log))
    if isinstance(recommender, SeesTruth):
        truth = small_truth(log)
        recommender.bind_truth(lambda users: truth[users])
    recommender.fit(log, key=KEY)
    return recommender.scores(np.arange(37))


@pytest.mark.parametrize(("name", "change"), OPTIONS)
def test_every_option_has_an_effect(name, change):
    option = next(iter(change))
    assert option in OmegaConf.load(CONF / f"{name}.yaml")[name], "the yaml shows every option"
    assert not np.array_equal(fitted_scores(from_yaml(name)), fitted_scores(from_yaml(name, **change)))


def test_the_list_of_options_is_complete():
    of_slates = {("epsilon-greedy", "epsilon"), ("calibrated", "strength"), ("calibrated", "candidates")}
    of_vectors = {("content", "item_vectors"), ("content", "vector_weight")}  # their effect: test_item_vectors.py
    of_index = {("two-stage", option) for option in ("candidates", "connectivity", "expansion")}  # test_two_stage.py
    listed = {(name, option) for name, change in OPTIONS for option in change} | of_slates | of_vectors | of_index
    shown = {
        (name, option)
        for name in CLASSICAL
        for option in OmegaConf.load(CONF / f"{name}.yaml")[name]
        if option not in ("_target_", "base")
    }
    assert shown == listed


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("content", {"text_weight": -1}),
        ("content", {"max_df": 0}),
        ("itemknn", {"neighbours": 0}),
        ("seqknn", {"recency_decay": 0}),
        ("seqknn", {"gap_decay": 1.5}),
        ("ease", {"reg": 0}),
        ("als", {"embedding_size": 0}),
        ("bpr", {"learning_rate": 0}),
        ("mf", {"epochs": 0}),
        ("mf", {"reg": float("nan")}),
        ("als", {"epochs": 2.5}),
        ("itemknn", {"neighbours": "many"}),
        ("ease", {"reg": None}),
        ("popularity-penalty", {"strength": -0.1}),
        ("epsilon-greedy", {"epsilon": 1.2}),
        ("userknn", {"neighbours": 0}),
        ("calibrated", {"strength": 1.5}),
        ("calibrated", {"candidates": 0}),
    ],
)
def test_an_option_out_of_range_is_one_clear_error(name, change):
    option, value = next(iter(change.items()))
    target = OmegaConf.load(CONF / f"{name}.yaml")[name]
    made_from = {key: instantiate(target[key]) if key == "base" else target[key] for key in target if key != "_target_"}
    kind = type(from_yaml(name))
    with pytest.raises(ConfigError, match=f"{name}: {option}={'null' if value is None else value}: expected a"):
        kind(**{**made_from, **change})


class Newest(Recommender):
    """The example of docs/recommenders.md."""

    name = "newest"

    def _fit(self, log, key):
        self.last_seen = np.full(self.n_items, -1.0)
        self.last_seen[log.items] = np.arange(len(log))

    def _score(self, users):
        return np.tile(self.last_seen, (len(users), 1))


class TestNewest(RecommenderSuite):
    def make(self):
        return Newest()
