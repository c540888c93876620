"""Learning from, and being judged by, the pages of a run: whose world it has to be, and what is found on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agents.user_lm import Corpus, Example, HeldOut, LoggedPages, PromptOptions
from experiments.running.course import run_experiment
from experiments.running.design import CONF, design_from
from experiments.users import train as train_user_lm
from experiments.users.logged_pages import MODEL, judge, page_auc, read_logs
from simenv.datasets import Dataset
from simenv.datasets.splits import hold_out
from simenv.errors import ConfigError, RunDirectoryError

WORLD = ("n_users=40", "n_items=50")
TINY = (
    *WORLD,
    "user_lm.hidden_size=32",
    "user_lm.layers=2",
    "user_lm.vocabulary=1300",
    "user_lm.batch_tokens=800",
    "user_lm.moments=3",
    "user_lm.passes=3",
    "user_lm.held_out_users=0.3",
    "user_lm.held_out_items=0.1",
    "user_lm.device=cpu",
    "holdout=0.2",
)


def configured(experiment: str, run_dir: Path, *overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base=None):
        composed = compose("config", overrides=[f"+experiment={experiment}", "progress=false", *overrides])
    resolved = OmegaConf.to_container(composed, resolve=True)
    return resolved | {"run_dir": str(run_dir), "command": "test", "resume": None}


def play(run_dir: Path, *overrides: str) -> Path:
    small = ("rounds=5", "slate_size=6", "workers=0", "arms=[popularity]", "modes=[loop]", "references=[random]")
    return run_experiment(configured("bias_loop_smoke", run_dir, *WORLD, *small, *overrides))


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> Path:
    """Two worlds, two arms; a fifth of everybody's interactions held out."""
    return play(tmp_path_factory.mktemp("shown") / "run", "holdout=0.2")


def dataset_of(*overrides: str) -> Dataset:
    return design_from(configured("train_user_lm", Path(), *WORLD, *overrides)).load_dataset(0)


def copied(run: Path, to: Path, table: str, change) -> Path:
    """The same run with another items.parquet or users.parquet, and without the checksums that would tell."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("complete.json"))
    path = to / f"{table}.parquet"
    change(pl.read_parquet(path)).write_parquet(path)
    return to


# -- whose world it is ------------------------------------------------------------------------------------------------


def test_of_a_run_with_a_world_a_seed_the_configured_world_is_read(shown):
    dataset = dataset_of()
    logs = read_logs(shown, dataset)
    assert [log.name.partition(": ")[2] for log in logs] == ["seed 0, popularity/loop", "seed 0, random/loop"]
    events = pl.read_parquet(shown / "events" / "seed0.random.loop.*.parquet")
    for name in ("round", "user", "item", "rank", "clicked"):
        np.testing.assert_array_equal(getattr(logs[1].events, name), events[name].to_numpy())
    assert logs[0].users.tolist() == list(range(40))
    assert logs[0].dataset.user_ids == dataset.user_ids
    before = hold_out(dataset, 0.2).interactions
    np.testing.assert_array_equal(logs[0].dataset.interactions.items, before.items)
    assert len(before) < len(dataset.interactions)


def test_the_users_of_a_sample_are_found_by_their_ids(shown, tmp_path):
    """As on real data, where each seed has a share of the users: rows are the sample's own."""
    run = copied(
        shown,
        tmp_path / "run",
        "users",
        lambda users: users.filter(pl.col("user") >= 10).with_columns(pl.col("user") - 10),
    )
    for path in (run / "events").glob("*.parquet"):
        events = pl.read_parquet(path).filter(pl.col("user") >= 10)
        events.with_columns(pl.col("user") - 10).write_parquet(path)
    whole, part = read_logs(shown, dataset_of())[0], read_logs(run, dataset_of())[0]
    assert part.users.tolist() == list(range(10, 40))
    assert part.dataset.user_ids == whole.dataset.user_ids[10:]
    np.testing.assert_array_equal(part.users[part.events.user], whole.events.user[whole.events.user >= 10])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("n_items=51",), "50 items, configured 51"),
        (("n_users=39",), "(title|user|began)"),
        (("dataset.mean_activity=9",), "(title|user|began)"),
    ],
)
def test_a_run_in_another_world_is_refused(shown, overrides, said):
    with pytest.raises(ConfigError, match=f"user_lm.log={shown}: is not a run in the configured world.*{said}") as one:
        read_logs(shown, dataset_of(*overrides))
    assert "\n" not in str(one.value)


@pytest.mark.parametrize(
    ("table", "column", "value", "said"),
    [
        ("items", "title", "Another", "title 'Another' where"),
        ("items", "item_id", "x", "item_id 'x' where"),
        ("users", "user_id", "nobody", "user 'nobody' is not among the configured 40"),
        ("users", "n_warm_start", 999, "began with 999 interactions, configured"),
    ],
)
def test_a_difference_is_named(shown, tmp_path, table, column, value, said):
    def change(frame: pl.DataFrame) -> pl.DataFrame:
        changed = pl.when(pl.col(table[:-1]) == 3).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
        return frame.with_columns(changed)

    with pytest.raises(ConfigError, match=said):
        read_logs(copied(shown, tmp_path / "run", table, change), dataset_of())


def test_a_run_that_keeps_too_little_is_refused(shown, tmp_path):
    sparse = tmp_path / "sparse"
    shutil.copytree(shown, sparse, ignore=shutil.ignore_patterns("complete.json"))
    (sparse / "config.yaml").write_text(
        (sparse / "config.yaml").read_text().replace("record_every: 1", "record_every: 2")
    )
    with pytest.raises(ConfigError, match="keeps every 2th round only"):
        read_logs(sparse, dataset_of())
    shutil.copytree(shown, tmp_path / "bare", ignore=shutil.ignore_patterns("complete.json"))
    (tmp_path / "bare" / "users.parquet").unlink()
    with pytest.raises(ConfigError, match=r"expected a run directory with events, items.parquet and users.parquet"):
        read_logs(tmp_path / "bare", dataset_of(), "user_lm.judged_log")
    with pytest.raises(RunDirectoryError, match="no such directory"):
        read_logs(tmp_path / "absent", dataset_of())


# -- judging ----------------------------------------------------------------------------------------------------------


def test_only_pairs_that_were_looked_at_count():
    example = Example(
        user=0,
        person="",
        page="",
        items=np.arange(5, dtype=np.int32),
        picked=np.array([True, False, False, False, True]),
        examined=np.array([True, True, True, False, True]),
        stars=np.full(5, np.nan, np.float32),
    )
    assert page_auc(example, np.array([2.0, 1.0, 3.0, 9.0, 3.0])) == pytest.approx((1 + 0 + 1 + 0.5) / 4)


@pytest.mark.parametrize("pages", [4, 500])
def test_pages_judged_are_those_never_seen(shown, pages):
    """Of users held out all pages, of the others the last ones; a model that knows the answer is always right."""
    dataset = dataset_of()
    held = HeldOut.draw(dataset, users=0.3, items=0.2, share=0.2, seed=1)
    logs, asked = read_logs(shown, dataset), []

    def knows(examples):
        asked.append(examples)
        return [each.picked.astype(float) for each in examples]

    rows = {
        (row["setting"], row["model"], row["metric"]): row
        for row in judge(logs, held, PromptOptions(), knows, pages=pages, seed=0)
    }
    unseen, later = asked
    assert held.users[[each.user for each in unseen]].all()
    assert not held.users[[each.user for each in later]].any()
    late = sum(int((log.late(0.2) & ~held.users[log.events.user[log.starts]]).sum()) for log in logs)
    for setting, examples in (("unseen users", unseen), ("later pages", later)):
        row = rows[setting, MODEL, "auc"]
        assert row["value"] == row["ci_low"] == 1.0
        assert row["pages"] == len(examples) <= pages
        assert row["users"] == len({each.user for each in examples})
        assert all(each.picked.any() and (each.examined & ~each.picked).any() for each in examples)
        for name in ("rank", "popularity"):
            gained = rows[setting, MODEL, f"auc - auc of {name}"]["value"]
            assert gained == pytest.approx(1 - rows[setting, name, "auc"]["value"])
    if pages == 500:
        assert late > len(later) > 10
        assert len(unseen) > 10
        assert 0.5 < rows["unseen users", "true utility", "auc"]["value"] < 1


# -- options ----------------------------------------------------------------------------------------------------------


class Begun(Exception):
    """Training would begin."""


@pytest.fixture
def begun(monkeypatch):
    """What training is given."""
    seen: dict = {}

    def train(corpus, learning, folder, *, judged, **rest):
        seen.update(corpus=corpus, judged=judged)
        raise Begun

    monkeypatch.setattr(train_user_lm, "train", train)

    def begin(run_dir: Path, *overrides: str) -> dict:
        with pytest.raises(Begun):
            run_experiment(configured("train_user_lm", run_dir, *TINY, *overrides))
        return seen

    return begin


def test_a_log_is_learned_from_as_pages_were_shown(begun, shown, tmp_path):
    corpus = begun(tmp_path / "run", f"user_lm.log={shown}", "agent.digest_every=2")["corpus"]
    assert isinstance(corpus, LoggedPages)
    assert corpus.options.digest_every == 2
    assert [log.dataset.n_users for log in corpus.logs] == [28, 28]
    assert {log.dataset.n_items for log in corpus.logs} == {45}
    assert 28 <= len(list(corpus.examples(0))) <= 3 * 28
    assert len(list(corpus.examples(0))) < len(
        list(begun(tmp_path / "more", f"user_lm.log={shown}", "user_lm.moments=5")["corpus"].examples(0))
    )


def test_a_log_to_be_judged_by_is_not_learned_from(begun, shown, tmp_path):
    seen = begun(tmp_path / "run", f"user_lm.judged_log={shown}", "user_lm.judged_pages=7")
    assert isinstance(seen["corpus"], Corpus)
    figures = seen["judged"](lambda examples: [each.picked for each in examples])
    assert figures == {"auc_on_logged_pages": {"unseen users": 1.0, "later pages": 1.0}}
    table = pl.read_csv(tmp_path / "run" / "tables" / "logged_pages.csv")
    assert table["pages"].unique().to_list() == [7]
    seen = begun(tmp_path / "neither")
    assert seen["judged"](None) == {}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("user_lm.log=/nowhere/at/all", "/nowhere/at/all: no such directory"),
        ("user_lm.judged_log=/nowhere/at/all", "/nowhere/at/all: no such directory"),
        ("user_lm.judged_pages=0", "user_lm.judged_pages=0"),
        ("user_lm.moments=0", "user_lm.moments=0"),
    ],
)
def test_a_wrong_option_is_one_line_and_leaves_nothing(tmp_path, override, said):
    with pytest.raises((ConfigError, RunDirectoryError), match=said):
        run_experiment(configured("train_user_lm", tmp_path / "run", *TINY, override))
    assert not (tmp_path / "run").exists()


# -- all of it --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_learns_from_a_log_and_is_asked_by_a_run(shown, tmp_path):
    pytest.importorskip("torch")
    more = ("user_lm.moments=9", "user_lm.passes=6", "user_lm.learning_rate=0.004", f"user_lm.log={shown}")
    folder = run_experiment(configured("train_user_lm", tmp_path / "lm", *TINY, *more))
    losses = pl.read_csv(folder / "tables" / "training.csv")["loss"]
    assert losses[5] < losses[2] < losses[0] - 0.3
    table = pl.read_csv(folder / "tables" / "logged_pages.csv")
    assert set(table["setting"]) == {"unseen users", "later pages"}
    assert table["value"].is_finite().all()
    card = json.loads((folder / "run_card.json").read_text())
    assert (card["n_users"], card["n_items"], card["n_logs"]) == (28, 45, 2)
    own = table.filter((table["model"] == MODEL) & (table["metric"] == "auc"))
    assert card["auc_on_logged_pages"] == pytest.approx(dict(zip(own["setting"], own["value"])), abs=1e-4)
    assert json.loads((folder / "model" / "unseen.json").read_text())["holdout"] == 0.2
    asked = play(
        tmp_path / "asked",
        *("agent=user-lm", "llm=transformers", f"llm.path={folder / 'model'}", "llm.readout=logits", "llm.device=cpu"),
        *("n_seeds=1", "rounds=2"),
    )
    llm = json.loads((asked / "run_card.json").read_text())["llm"]
    assert llm["pages"] == 2 * 2 * 40
    assert llm["fallbacks"] == 0


@pytest.mark.slow
def test_the_judgement_is_of_the_model_that_is_served(shown, tmp_path):
    """Opinions in training are those of the saved folder in the logits readout."""
    pytest.importorskip("torch")
    from agents.llm.answers import page_schema, parse_page
    from agents.user_lm.batches import Reader
    from agents.user_lm.network import Objective, interests, load_network
    from simenv.language_models import Message, Request, run, transformers
    from simenv.language_models.quoting import opaque_ids

    folder = run_experiment(configured("train_user_lm", tmp_path / "lm", *TINY, f"user_lm.log={shown}"))
    corpus = LoggedPages(read_logs(shown, dataset_of()), pages=5)
    examples = list(corpus.examples(0))
    tokenizer, network = load_network(folder / "model")
    system = corpus.prompts.render("system")
    reader = Reader(tokenizer, system)
    found = interests(Objective(network, reader, language=0.0), reader, examples, tokens=800)
    model = transformers(str(folder / "model"), readout="logits", device="cpu")
    for example, own in zip(examples, found, strict=True):
        ids = opaque_ids(len(example.items))
        messages = (Message("system", system), Message("user", example.person + example.page))
        answer = run(model.complete(Request(messages=messages, schema=page_schema(ids))))
        said = parse_page(answer.text, ids).interest
        assert np.corrcoef(said, own)[0, 1] > 0.999
