"""Training a user language model: what a run leaves, going on after a kill, options that act, and its judgement."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agents.user_lm import Corpus, HeldOut
from experiments.realism import bench as realism
from experiments.realism.pages import Unseen, of_items, time_split
from experiments.running.course import run_experiment
from experiments.running.design import CONF, design_from
from experiments.users.train import Learning
from simenv.datasets import synthetic
from simenv.errors import ConfigError

torch = pytest.importorskip("torch")
WORLD = ("n_users=50", "n_items=50")
TINY = (
    "user_lm.hidden_size=32",
    "user_lm.layers=2",
    "user_lm.vocabulary=1300",
    "user_lm.batch_tokens=800",
    "user_lm.moments=2",
    "user_lm.passes=2",
    "user_lm.held_out_users=0.4",
    "user_lm.held_out_items=0.2",
    "user_lm.device=cpu",
    "holdout=0.2",
)


def configured(experiment: str, run_dir: Path, *overrides: str, resume: bool = False) -> dict:
    with initialize_config_dir(str(CONF), version_base=None):
        composed = compose("config", overrides=[f"+experiment={experiment}", *overrides])
    resolved = OmegaConf.to_container(composed, resolve=True)
    resume_from = str(run_dir) if resume else None
    return resolved | {"run_dir": str(run_dir), "command": "test", "resume": resume_from, "progress": False}


def settings(run_dir: Path, *overrides: str, resume: bool = False) -> dict:
    return configured("train_user_lm", run_dir, *WORLD, *TINY, *overrides, resume=resume)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return run_experiment(settings(tmp_path_factory.mktemp("trained") / "run"))


# -- the run directory ------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_model_and_an_account_of_it(trained):
    for name in ("config.yaml", "run_card.json", "report.html", "tables/training.csv", "checkpoint/complete.json"):
        assert (trained / name).is_file(), name
    for name in ("config.json", "model.safetensors", "tokenizer.json", "unseen.json"):
        assert (trained / "model" / name).is_file(), name
    losses = pl.read_csv(trained / "tables" / "training.csv")
    assert losses["pass"].to_list() == [1, 2]
    assert (
        losses["loss"].is_finite().all()
    )  # that it falls takes more steps than this: see tests/agents/user_lm/test_user_lm.py
    card = json.loads((trained / "run_card.json").read_text())
    assert (card["dataset"], card["passes"], card["n_items"]) == ("synthetic", 2, 40)
    assert card["steps"] > card["passes"]
    assert card["parameters"] > 40_000
    assert card["vocabulary"] <= 1300


def test_what_the_model_never_saw_is_written_down(trained):
    unseen = json.loads((trained / "model" / "unseen.json").read_text())
    dataset = design_from(settings(trained)).load_dataset(0)
    held = HeldOut.draw(dataset, users=0.4, items=0.2, share=0.2, seed=0)
    assert unseen == {
        "dataset": "synthetic",
        "holdout": 0.2,
        "users": [dataset.user_ids[row] for row in np.flatnonzero(held.users)],
        "items": [dataset.catalog.item_ids[row] for row in np.flatnonzero(held.items)],
    }
    assert (len(unseen["users"]), len(unseen["items"])) == (20, 10)


def test_a_killed_run_goes_on_to_the_same_weights(trained, tmp_path, monkeypatch):
    """Stopped in the second pass and resumed: bit for bit the model of a run that was left alone."""
    batches, passes = Corpus.examples, []

    def stopped(self, number):
        passes.append(number)
        if number == 1:
            raise KeyboardInterrupt
        return batches(self, number)

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Corpus, "examples", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(settings(run_dir))
    assert passes == [0, 1]
    assert (run_dir / "checkpoint" / "training/training.pt").is_file()
    assert not (run_dir / "model").exists()
    run_experiment(settings(run_dir, resume=True))
    for name in ("model.safetensors", "tokenizer.json", "unseen.json"):
        assert (run_dir / "model" / name).read_bytes() == (trained / "model" / name).read_bytes(), name
    assert (run_dir / "tables" / "training.csv").read_text() == (trained / "tables" / "training.csv").read_text()


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["user_lm.hidden_size=30"], "user_lm.hidden_size=30"),
        (["+user_lm.depth=3"], "user_lm.depth: no such option"),
        (["user_lm.passes=0"], "user_lm.passes=0"),
        (["user_lm.dropout=1.0"], "user_lm.dropout=1.0"),
        (["user_lm.language=-1"], "user_lm.language=-1"),
        (["user_lm.lora_rank=2"], "user_lm.lora_rank=2"),
        (["user_lm.checkpoint=smollm2", "user_lm.item_vectors=smollm2"], "user_lm.item_vectors=smollm2"),
        (["user_lm.item_vectors=/nowhere/at/all"], "item_vectors=/nowhere/at/all"),
        (["user_lm.checkpoint=/nowhere/at/all"], "user_lm.checkpoint=/nowhere/at/all"),
        (["user_lm.negatives=popular"], "negatives=popular"),
        (["user_lm.ratios=[20]"], "ratios=[20]"),
        (["user_lm.held_out_users=1.0"], "held_out_users=1.0"),
        (["holdout=0.0"], "holdout=0.0"),
        (["agent.retrieval.similarity=1.0"], "agent.retrieval.similarity=1"),
        (["agent.titles=masked"], "agent.titles=masked"),
    ],
)
def test_a_wrong_option_is_one_line_and_leaves_nothing(tmp_path, overrides, said):
    config = settings(tmp_path / "run", *overrides)
    with pytest.raises(ConfigError) as raised:
        run_experiment(config)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_compiling_needs_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"user_lm.compile=true: needs a C\+\+ compiler"):
        run_experiment(settings(tmp_path / "run", "user_lm.compile=true"))


def test_users_that_no_language_model_drives_are_refused(tmp_path):
    config = settings(tmp_path / "run") | {"agent": {"_target_": "agents.choice.ChoiceModel"}}
    with pytest.raises(ConfigError, match="expected agent=user-lm"):
        run_experiment(config)


TEXTS = {"moments": 3, "window": 0.5, "candidates": 4, "ratios": [3], "negatives": "uniform", "lived": 0.9}


@pytest.mark.parametrize("name", TEXTS)
def test_every_option_of_the_corpus_changes_it(name):
    dataset = synthetic(n_users=50, n_items=50, seed=1)
    usual = {"moments": 2, "window": 0.1, "candidates": 20, "ratios": [1], "negatives": "matched", "lived": 0.3}
    texts = [
        [each.person + each.page for each in Corpus(dataset, **options).examples(0)]
        for options in (usual, usual | {name: TEXTS[name]})
    ]
    assert texts[0] != texts[1]


NETWORK = {
    "passes": 3,
    "vocabulary": 1000,
    "hidden_size": 64,
    "layers": 3,
    "heads": 4,
    "dropout": 0.3,
    "learning_rate": 0.01,
    "weight_decay": 1.0,
    "language": 0.0,
    "batch_tokens": 1600,
}


def test_every_option_is_tried_here():
    elsewhere = {"held_out_users", "held_out_items", "max_minutes", "checkpoint", "lora_rank", "compile", "device"}
    elsewhere |= {"item_vectors"}  # below, and what it is for in tests/agents/user_lm
    elsewhere |= {"log", "judged_log", "judged_pages"}  # tests/experiments/users/test_logged_pages.py
    assert {each.name for each in fields(Learning)} == set(TEXTS) | set(NETWORK) | elsewhere


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORK)
def test_every_option_of_the_training_changes_the_weights(name, trained, tmp_path):
    run_dir = run_experiment(settings(tmp_path / "run", f"user_lm.{name}={NETWORK[name]}"))
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (run_dir, trained)]
    assert weights[0] != weights[1]


def test_titles_never_met_have_embeddings_where_items_have_vectors(trained, tmp_path):
    """Two items held out of the same vector are the same to the model, another one is not."""
    dataset = synthetic(n_users=50, n_items=50, seed=0)
    held = json.loads((trained / "model" / "unseen.json").read_text())["items"][:3]
    rows = [dataset.catalog.item_ids.index(item) for item in held]
    vectors = np.random.default_rng(0).normal(size=(50, 4))
    vectors[rows[1]] = vectors[rows[0]]
    np.save(tmp_path / "vectors.npy", vectors)
    run_dir = run_experiment(settings(tmp_path / "run", f"user_lm.item_vectors={tmp_path / 'vectors.npy'}"))
    from agents.user_lm.network import load_network  # torch loads here

    tokenizer, network = load_network(run_dir / "model")
    tokens = [tokenizer.encode(f'"{dataset.catalog.titles[row]}"', add_special_tokens=False) for row in rows]
    assert [len(ids) for ids in tokens] == [3, 3, 3]
    embeddings = network.get_input_embeddings().weight.detach().numpy()
    first, same, other = (embeddings[ids[1]] for ids in tokens)
    np.testing.assert_array_equal(first, same)
    assert np.abs(first).max() > 1e-3
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("rank", [0, 2])
def test_training_goes_on_from_a_checkpoint(trained, tmp_path, rank):
    if rank:
        pytest.importorskip("peft")
    options = (f"user_lm.checkpoint={trained / 'model'}", f"user_lm.lora_rank={rank}", "user_lm.learning_rate=0.0005")
    run_dir = run_experiment(settings(tmp_path / "run", *options))
    before, after = (pl.read_csv(folder / "tables" / "training.csv")["loss"] for folder in (trained, run_dir))
    assert after[0] < before[0]
    assert not (run_dir / "model" / "adapter_config.json").exists()
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (run_dir, trained)]
    assert weights[0] != weights[1]


# -- judging it -------------------------------------------------------------------------------------------------------


def judged(run_dir: Path, trained: Path, *overrides: str) -> dict:
    model = trained / "model"
    return configured(
        "realism",
        run_dir,
        *WORLD,
        "agent=user-lm",
        "llm=transformers",
        f"llm.path={model}",
        "llm.readout=logits",
        "llm.device=cpu",
        f"unseen={model / 'unseen.json'}",
        "holdout=0.2",
        "n_seeds=1",
        "draws=1",
        *overrides,
    )


def test_only_those_it_never_saw_are_judged(trained, tmp_path):
    config = judged(tmp_path, trained)
    chosen = realism.Settings.of(config)
    rows, by_user, card = realism.examine(chosen, tmp_path)
    dataset = chosen.design.load_dataset(0)
    unseen = Unseen.load(Path(config["unseen"]), dataset, 0.2)
    apart = 0
    for path in (tmp_path / "checkpoint" / "answers").glob("*.npz"):
        with np.load(path) as answers:
            if "unseen-items" in path.name:
                apart += 1
                assert unseen.items[answers["items"][answers["items"] >= 0]].all()
            else:
                assert unseen.users[answers["users"]].all()
            assert not np.isnan(answers["interest"][answers["items"] >= 0]).any()
    assert apart == 1
    assert card["splits"]["synthetic"]["judged_users"] <= unseen.users.sum()
    found = {row.model for row in rows if row.setting == "unseen items" and row.metric == "auc"}
    assert found >= {"llm", "ease", "svd"}
    aucs = [row["auc"] for row in by_user if (row["setting"], row["model"]) == ("unseen items", "ease")]
    (told,) = (row.value for row in rows if (row.setting, row.model, row.metric) == ("unseen items", "ease", "auc"))
    assert np.nanmean(aucs) == pytest.approx(told)
    assert {row["user"] for row in by_user if row["setting"] != "unseen items"} <= set(
        np.array(dataset.user_ids)[unseen.users]
    )


def test_a_split_of_some_items_keeps_their_names():
    dataset = synthetic(n_users=50, n_items=50, seed=1)
    split, items = time_split(dataset, 0.2), np.arange(50) % 5 == 0
    part = of_items(split, items)
    rows = np.flatnonzero(items)
    assert part.train.n_items == 10
    assert part.train.catalog.titles == tuple(dataset.catalog.titles[row] for row in rows)
    for ours, theirs in ((part.known, split.known), (part.held, split.held)):
        kept = items[theirs.items]
        np.testing.assert_array_equal(rows[ours.items], theirs.items[kept])
        np.testing.assert_array_equal(ours.users, theirs.users[kept])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": "ml-100k"}, "expected dataset=ml-100k"),
        ({"holdout": 0.1}, "holdout=0.1 or less"),
        ({"users": None}, "expected a model's unseen.json"),
    ],
)
def test_an_account_that_does_not_fit_is_refused(tmp_path, changes, said):
    dataset = synthetic(n_users=50, n_items=50, seed=1)
    path = tmp_path / "unseen.json"
    stored = {"dataset": "synthetic", "holdout": 0.2, "users": ["u1"], "items": ["i1"]}
    path.write_text(json.dumps(stored))
    assert Unseen.load(path, dataset, 0.2).users.sum() == 1
    path.write_text(json.dumps(stored | changes))
    with pytest.raises(ConfigError, match=said) as raised:
        Unseen.load(path, dataset, 0.2)
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"expected a model's unseen.json"):
        Unseen.load(tmp_path / "absent.json", dataset, 0.2)
