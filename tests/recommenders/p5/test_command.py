"""`python -m recommenders.p5`: train, evaluate, recommend, and one line for every mistake."""

import json
from pathlib import Path

import numpy as np
import pytest

from recommenders.evaluation.offline import rank_metrics, ranks
from recommenders.p5 import __main__ as command
from recommenders.p5.language.prompts import FAMILIES
from recommenders.testing import small_dataset, small_log
from simenv.candidates import Candidates
from simenv.datasets import synthetic
from simenv.datasets.splits import leave_one_out

TINY = [
    "network.embedding_size=8",
    "network.heads=1",
    "network.layers=1",
    "training.epochs=1",
    "show_progress=false",
    'index.options={"leaf_size":20}',
]


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command, "load_dataset", lambda name, root: small_dataset(small_log()))


def run(*arguments: object) -> int:
    return command.main([str(argument) for argument in arguments])


def train(out: Path, *more: object, model: str = "p5-fast") -> int:
    settings = [part for setting in TINY for part in ("--set", setting)]
    return run("train", "--model", model, "--dataset", "small", "--out", out, *settings, *more)


@pytest.mark.parametrize("model", ["p5-fast", "p5"])
def test_train_evaluate_recommend(tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str):
    assert train(tmp_path, model=model) == 0
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["model"], card["seed"], card["settings"]["network.heads"]) == (model, 0, 1)
    capsys.readouterr()

    assert run("evaluate", tmp_path) == 0
    printed = capsys.readouterr().out
    _, dataset, recommender = command._load(tmp_path)
    split = leave_one_out(dataset.interactions)
    hit_rate = rank_metrics(ranks(recommender, split))["hr@10"].mean()
    assert f"hr@10    {hit_rate:.4f}" in printed
    assert "seen items kept" in printed

    assert run("recommend", tmp_path, "--users", "u3", "u5", "-k", 4) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("user")] == ["user u3", "user u5"]
    assert len(lines) == 10
    seen = np.zeros((1, 60), np.bool_)
    seen[0, dataset.interactions.items[dataset.interactions.users == 3]] = True
    expected = recommender.recommend(np.array([3]), 4, Candidates.of(60, out=seen)).item_ids[0]
    assert [line.split(". ", 1)[1] for line in lines[1:5]] == [dataset.catalog.titles[item] for item in expected]


def test_a_world_with_reviews_trains_all_families_and_is_read_for_its_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    world = synthetic(n_users=30, n_items=40, seed=2)
    monkeypatch.setattr(command, "load_dataset", lambda name, root: world)
    assert train(tmp_path, model="p5") == 0
    assert "left out" not in capsys.readouterr().out
    settings = json.loads((tmp_path / "card.json").read_text())["settings"]
    assert settings["asking.families"] == list(FAMILIES)
    assert (settings["asking.user_input"], settings["asking.other_share"]) == ("own", 4.0)
    assert run("evaluate", tmp_path) == 0
    printed = capsys.readouterr().out
    users = leave_one_out(world.interactions).users
    assert "stars: rmse" in printed
    for kind in ("explanation", "summary"):
        assert f"{kind} of {len(users):,} held-out reviews: bleu" in printed
    lines = printed.split("faithfulness of explanations\n")[1].splitlines()
    assert [line[2:16].strip() for line in lines] == ["p5", "shuffled", "most frequent", "item"]
    _, dataset, recommender = command._load(tmp_path)
    assert len(recommender.reviews) == len(dataset.interactions) - len(users)  # nothing of what is held out


def test_families_without_data_are_said_to_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert train(tmp_path, "--set", 'asking.families=["sequential","review"]', model="p5") == 0
    assert "left out: review (no reviews)" in capsys.readouterr().out


def test_two_figures_and_a_table_of_popularity(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = [tmp_path / name for name in ("a", "b")]
    assert all(train(folder) == 0 for folder in folders)
    out = tmp_path / "figures"
    assert run("diagnose", *folders, "--out", out, "-k", 5, "--baselines", "popularity") == 0
    assert "their next items" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [
        "popularity.csv",
        "popularity_by_history.png",
        "popularity_by_rank.png",
    ]
    rows = [line.split(",") for line in (out / "popularity.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["recommender", "p5-fast 1", "p5-fast 2", "popularity"]
    assert rows[1][1:] == rows[2][1:]
    everything = float(rows[3][rows[0].index("all")])
    assert everything > float(rows[1][rows[0].index("all")])  # nothing is more popular than the most popular


def test_models_of_different_splits_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert train(tmp_path, "--full") == 0
    assert run("diagnose", tmp_path, "--out", tmp_path / "figures") == 2
    assert "expected one split" in capsys.readouterr().err


def test_full_training_leaves_nothing_to_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert train(tmp_path, "--full") == 0
    recommender = command._load(tmp_path)[2]
    assert len(recommender.histories.items) == len(small_log())
    assert run("evaluate", tmp_path) == 2
    assert "trained with --full" in capsys.readouterr().err


def test_the_prompt_to_evaluate_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert train(tmp_path, model="p5") == 0
    outputs = []
    for ask in ("seen", "none"):
        capsys.readouterr()
        assert run("evaluate", tmp_path, "--ask", ask) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] != outputs[1]


def test_a_checkpoint_is_neither_overwritten_nor_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "checkpoint.pt").write_bytes(b"left from another run")
    assert train(tmp_path) == 2
    assert "expected --resume" in capsys.readouterr().err
    assert train(tmp_path, "--resume") == 2
    assert "not a checkpoint of this network" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nowhere"], "no model saved by `train`"),
        (["train", "--dataset", "x", "--out", "OUT", "--set", "epochs"], "--set epochs: expected name=value"),
        (["train", "--dataset", "x", "--out", "OUT", "--set", "wings=2"], "wings"),
        (["train", "--dataset", "x", "--out", "OUT", "--set", "epochs=2"], "it is p5-fast.training.epochs"),
        (["train", "--dataset", "x", "--out", "OUT", "--set", "training.epochs=0"], "epochs=0"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments, message):
    assert run(*[tmp_path if part == "OUT" else part for part in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_unknown_users_and_prompts_of_models_without_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert train(tmp_path) == 0
    assert run("recommend", tmp_path, "--users", "nobody") == 2
    assert "--users nobody: unknown" in capsys.readouterr().err
    assert run("evaluate", tmp_path, "--ask", "seen") == 2
    assert "reads no prompts" in capsys.readouterr().err


def test_settings_are_json_where_they_can_be():
    parsed = command.parse_settings(["a=1", "b=0.5", "c=[1, 2]", "d=auto", "e=null", "f=x=y"])
    assert parsed == {"a": 1, "b": 0.5, "c": [1, 2], "d": "auto", "e": None, "f": "x=y"}
