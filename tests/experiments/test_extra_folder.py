"""Recommender, user model, metric, language model, experiment from a folder of the user's own: a module and a yaml."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.running.design import offer_recommenders, spec_from_conf
from simenv.errors import ConfigError
from simenv.names import EXTRA, add_folder, paths
from simenv.registration import make

FILES = {
    "extra_recent.py": """
import numpy as np
from recommenders import Recommender


class Recent(Recommender):
    name = "recent"

    def __init__(self, *, sign: float = 1.0) -> None:
        self.sign = sign

    def _fit(self, log, key):
        self.last = np.zeros(log.n_items)
        np.maximum.at(self.last, log.items, log.times)

    def _score(self, users):
        return self.sign * np.tile(self.last, (len(users), 1))
""",
    "recommender/recent.yaml": "recent:\n  _target_: extra_recent.Recent\n  sign: 2.0\n",
    "extra_shy.py": """
from agents.choice import ChoiceModel


class Shy(ChoiceModel):
    name = "shy"
""",
    "agent/shy.yaml": "_target_: extra_shy.Shy\nbase: -3.0\n",
    "extra_parrot.py": """
import json

from simenv.language_models import Completion, LanguageModel


class Parrot(LanguageModel):
    def __init__(self):
        super().__init__("parrot")

    async def complete(self, request):
        return Completion(text=json.dumps({}), prompt_tokens=1, completion_tokens=1)
""",
    "llm/parrot.yaml": "_target_: extra_parrot.Parrot\n",
    "extra_loud.py": """
def loudness(events, reference, group):
    return float(len(events))
""",
    "recommender/later.yaml": "defaults: [recent]\nlater: ${.recent}\n",
    "extra_question.py": "from experiments.bias_loop import Settings, play, plot, score\n",
    "experiment/question.yaml": """# @package _global_
# Is what is recent popular?
defaults:
  - bias_loop_smoke
  - _self_
module: extra_question
name: question
arms: [recent, later]
""",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    mine = tmp_path / "my own, folder"
    for name, text in FILES.items():
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text(text)
    monkeypatch.setenv(EXTRA, "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["simenv"])
    monkeypatch.chdir(tmp_path)
    yield mine
    for module in [name for name in sys.modules if name.startswith("extra_")]:
        del sys.modules[module]
    monkeypatch.setenv(EXTRA, "")
    offer_recommenders()


def test_the_command_plays_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["n_users=15", "n_items=30", "rounds=2", "n_seeds=1", "slate_size=3", "workers=0", "progress=false"]
    chosen = [
        "+experiment=question",
        f"simenv.extra={folder}",
        "agent=shy",
        "references=[]",
        "modes=[loop]",
        "primary=null",
        "metrics=[extra_loud.loudness]",
    ]
    assert main([*chosen, *small, "hydra.run.dir=run"]) == 0, capsys.readouterr().err
    config = (folder.parent / "run" / "config.yaml").read_text()
    assert "extra_recent.Recent" in config
    assert "extra_shy.Shy" in config
    metrics = (folder.parent / "run" / "metrics.csv").read_text()
    assert {line.split(",")[1] for line in metrics.splitlines()} >= {"recent", "later"}
    assert "loudness,45.0" in metrics
    card = (folder.parent / "run" / "run_card.json").read_text()
    assert "simenv.extra=" in card


def test_python_finds_them_by_name(folder: Path) -> None:
    add_folder(folder)
    assert make("recent", "recommender").sign == 2.0
    assert make({"name": "recent", "sign": 3.0}, "recommender").sign == 3.0
    assert make("shy", "agent").name == "shy"
    assert make("parrot", "llm").model == "parrot"
    assert spec_from_conf("recommender", "recent") == {"_target_": "extra_recent.Recent", "sign": 2.0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simenv.extra=nowhere"], "nowhere: no such folder"),
        (["+experiment=bias_loop_smok"], "did you mean 'bias_loop_smoke'?"),
        (["+experiment=question", "arms=[recnt]"], "arm 'recnt': no such recommender (did you mean 'recent'?)"),
        (["+experiment=question", "agent=sly"], "did you mean 'shy'?"),
    ],
)
def test_what_is_not_found_is_named(
    folder: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = [] if arguments[0].startswith("simenv") else [f"simenv.extra={folder}"]
    assert main([*arguments, *extra, "hydra.run.dir=run"]) == 2
    assert words in capsys.readouterr().err


def test_a_damaged_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recommender" / "recent.yaml").write_text("recent:\n  _target_: [\n")
    assert main(["+experiment=question", f"simenv.extra={folder}", "hydra.run.dir=run"]) == 2
    said = capsys.readouterr().err
    assert "recommender/recent.yaml" in said
    assert said.count("\n") == 1


def test_a_name_stands_for_one_thing(folder: Path) -> None:
    (folder / "recommender" / "als.yaml").write_text("als:\n  _target_: extra_recent.Recent\n")
    add_folder(folder)
    with pytest.raises(ConfigError, match="recommender 'als' is the name of"):
        paths("recommender")
    (folder / "recommender" / "als.yaml").unlink()
