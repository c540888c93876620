"""Every yaml makes what it says, and the lists of names are complete."""

from __future__ import annotations

import importlib
import inspect
import re
from functools import cache
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agents.base import UserModel
from agents.tastes.structures import TasteModel
from experiments import __main__ as command_line
from experiments.running.course import Settings
from experiments.running.design import CONF, build, spec_from_conf
from recommenders.base import Recommender
from simenv.errors import ConfigError

CONTRACT_RECOMMENDERS = {
    "random", "popularity", "content", "itemknn", "seqknn", "ease", "als", "bpr", "mf", "oracle",
    "sasrec", "bert4rec", "gru4rec", "p5", "p5-fast",
    "chatgpt-list", "chatgpt-point", "chatgpt-pair", "nir", "palr", "chat-rec", "interec", "recmind", "instructrec",
    "tallrec", "llamarec", "genrec", "bigrec", "gpt4rec", "kar", "llm-rec",
}  # fmt: skip


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@cache
def config(*overrides: str) -> Any:
    """A composed configuration; composing takes the better part of a second."""
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("config", overrides=list(overrides))


def asks(name: str) -> bool:
    """Whether an arm asks a language model."""
    return "language_model" in spec_from_conf("recommender", name)


@pytest.mark.parametrize("name", [name for name in names("recommender") if not asks(name)])
def test_recommender(name: str) -> None:
    spec = spec_from_conf("recommender", name)
    made = build(spec, name)
    assert isinstance(made, Recommender)
    assert made.name == name or spec_from_conf("recommender", made.name)["_target_"] == spec["_target_"], "a variant"


@pytest.mark.parametrize("name", [name for name in names("recommender") if asks(name)])
def test_recommenders_that_ask_a_language_model_say_so(name: str) -> None:
    """With what each is served by is the business of tests/recommenders/test_llm_recommenders.py."""
    arm = OmegaConf.to_container(config().recommenders[name], resolve=True)
    assert isinstance(arm, dict)
    with pytest.raises(ConfigError, match="expected recommender_llm="):
        build(arm, name)
    chosen = config("llm=openai", "llm.model=users", "llm@recommender_llm=openai", "recommender_llm.model=arms")
    assert chosen.recommenders[name].language_model.model == "arms"
    assert config("llm=openai", "llm.model=users").recommenders[name].language_model.model == "users"


def test_recommenders_of_the_contract_are_all_arms() -> None:
    assert set(names("recommender")) >= CONTRACT_RECOMMENDERS
    assert set(config().recommenders) == set(names("recommender"))


@pytest.mark.parametrize("name", names("tastes"))
def test_tastes(name: str) -> None:
    assert isinstance(build(spec_from_conf("tastes", name), name), TasteModel)


@pytest.mark.parametrize("name", [name for name in names("agent") if name not in ("llm", "mixed", "user-lm")])
def test_agent(name: str) -> None:
    assert isinstance(build(spec_from_conf("agent", name), name), UserModel)


@pytest.mark.parametrize("name", ["llm", "user-lm"])
def test_agents_that_ask_a_language_model_say_so(name: str) -> None:
    agent = OmegaConf.to_container(config(f"agent={name}").agent, resolve=True)
    assert isinstance(agent, dict)
    with pytest.raises(ConfigError, match="expected llm=smollm2"):
        build(agent, name)


@pytest.mark.parametrize("name", names("experiment"))
def test_experiment_composes_and_its_module_is_one(name: str) -> None:
    settings = config(f"+experiment={name}")
    plain: Any = OmegaConf.to_container(settings, resolve=True, throw_on_missing=True)
    module = importlib.import_module(settings.module)
    assert isinstance(module.Settings.of(plain), Settings)
    for function in (module.play, module.score, module.plot):
        assert list(inspect.signature(function).parameters) == ["settings", "run"], function
    assert settings.name == name
    for key in ("seed", "n_seeds", "rounds", "slate_size", "n_users", "n_items", "dataset", "agent", "llm"):
        assert key in settings


def test_the_command_line_lists_the_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name in names("experiment"):
        assert re.search(rf"^  {name} +\S.*\S$", printed, re.M), name
