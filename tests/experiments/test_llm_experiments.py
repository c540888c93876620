"""llm_ranking and llm_biases on a small synthetic world, asked of a model that reads taste from the prompt."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.running.course import run_experiment
from experiments.running.design import CONF
from recommenders.llm import LLMRanker
from simenv.errors import BudgetExhausted, ConfigError
from simenv.language_models.fake_server import LLMServer, Reply, Seen
from tests.recommenders.taste_reader import reply

READER = {"_target_": "tests.recommenders.taste_reader.TasteReader"}
ARMS = "arms=[random,popularity,mf,chatgpt-list,chatgpt-point]"
WORLD = ("n_users=40", "n_items=80", "progress=false", "workers=0")


def config(name: str, folder: Path, *overrides: str) -> dict:
    judged = () if name == "bias_loop_llm" else ("judged_users=24",)
    with initialize_config_dir(str(CONF), version_base=None):
        chosen = compose("config", [f"+experiment={name}", *WORLD, *judged, *overrides])
        made = OmegaConf.to_container(chosen, resolve=True)
    for spec in made["recommenders"].values():
        if "language_model" in spec:
            spec["language_model"] = READER
    return {**made, "run_dir": str(folder), "command": f"python run.py +experiment={name}"}


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranking") / "run"
    run_experiment(config("llm_ranking", folder, "candidates=[5,30]", ARMS))
    return folder


def test_the_ranking_table_has_every_arm_its_compliance_and_published_rows(ranked):
    table = pl.read_csv(ranked / "tables" / "llm_ranking.csv")
    ours = table.filter(pl.col("source") == "measured")
    value = {(row["recommender"], row["candidates"], row["metric"]): row for row in ours.to_dicts()}
    one, three = (value["chatgpt-list", 5, f"ndcg@{k}"]["value"] for k in (1, 3))
    assert 0 < one < three < 1
    assert value["chatgpt-list", None, "compliance"]["value"] == 1
    assert value["popularity", 30, "hr@10"]["value"] > value["random", 30, "hr@10"]["value"]
    assert ("chatgpt-list", 30, "hr@10") not in value  # above most_candidates
    assert value["chatgpt-point", None, "rmse"]["ci_low"] < value["chatgpt-point", None, "rmse"]["ci_high"]
    assert 0 < value["item mean", None, "rmse"]["value"] < 2
    assert value["mf", None, "rmse"]["ci_low"] < value["mf", None, "rmse"]["value"]
    assert "Dai et al. 2023, films" in table["source"].to_list()
    assert json.loads((ranked / "run_card.json").read_text())["recommender_llm"]["chatgpt-list"]["total"]["calls"] > 0
    assert (ranked / "report.html").is_file()


def test_arms_that_ask_are_played_in_the_loop_and_accounted_for(tmp_path):
    sizes = (
        "n_seeds=1",
        "rounds=2",
        "n_users=6",
        "n_items=40",
        "arms=[itemknn,as-shown,chatgpt-list]",
        "references=[]",
    )
    settings = config("bias_loop_llm", tmp_path / "run", *sizes, "modes=[loop,frozen]", "primary=null")
    run_experiment(settings)
    card = json.loads((tmp_path / "run" / "run_card.json").read_text())
    assert card["recommender_llm"]["calls"] == 6 * 2 * 2
    claims = {claim["name"]: claim for claim in json.loads((tmp_path / "run" / "claims.json").read_text())}
    metrics = pl.read_csv(tmp_path / "run" / "metrics.csv").filter(
        (pl.col("metric") == "arp_pct") & (pl.col("group") == "all") & (pl.col("mode") == "loop")
    )
    last = {row["arm"]: row["value"] for row in metrics.filter(pl.col("round") == 1).to_dicts()}
    found = claims["llm-level:chatgpt-list:arp_pct:as-shown"]["estimate"]
    assert found == pytest.approx(last["chatgpt-list"] - last["as-shown"])
    assert "llm-loop:chatgpt-list:arp_pct:itemknn" in claims
    assert not any(name.startswith("llm-level:as-shown") for name in claims)
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_tuned_arm_stands_beside_what_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(LLMRanker, "untuned", lambda self: self.retold(history=0))
    run_experiment(config("llm_biases", tmp_path / "run", "k=5", "tests=[popularity]"))
    rows = {r["setting"]: r["value"] for r in pl.read_csv(tmp_path / "run" / "tables" / "llm_biases.csv").to_dicts()}
    assert rows["arm - untuned"] == pytest.approx(rows["arm"] - rows["untuned"])
    assert rows["arm - untuned"] != 0
    assert (tmp_path / "run" / "figures" / "llm_popularity.png").is_file()


def test_biases_are_told_test_by_test(tmp_path):
    folder = tmp_path / "run"
    settings = config("llm_biases", folder, "votes=3", "told=[0,20]", "genres=1", "k=5")
    settings |= {"attributes": {"gender": ["male", "female"]}, "explained": ["gender"]}
    run_experiment(settings)
    rows = {
        (r["test"], r["setting"], r["metric"]): r for r in pl.read_csv(folder / "tables" / "llm_biases.csv").to_dicts()
    }
    assert abs(rows["order", "1 orders", "earlier when shown first"]["value"]) < 0.15
    asked = next(setting for test, setting, _ in rows if test == "control" and setting.endswith(", asked"))
    assert rows["control", asked, "share"]["value"] is not None
    # the stand-in reads neither attributes nor page: every such list is the neutral one
    assert rows["attributes", "gender: male", "prag"]["value"] == 1
    assert rows["attributes", "placebo, locker: 12", "prag"]["value"] == 1
    assert rows["attributes", "neutral, asked in another order", "prag"]["value"] < 1  # ties fall otherwise
    assert (
        rows["attributes", "gender", "snsr jaccard"]["value"]
        == rows["attributes", "gender", "snsr jaccard"]["ci_high"]
        == 0
    )
    assert rows["robustness", "the question in other words", "prag"]["value"] == 1
    assert rows["explanations", "neutral", "words"]["value"] > 0
    assert rows["explanations", "gender: female", "polarity - neutral"]["value"] == 0
    assert rows["explanations", "placebo, locker: 12", "words"]["value"] > 0
    assert rows["explanations", "gender: female", "words - placebo"]["value"] == 0
    assert rows["told", "0", "percentile"]["value"] != rows["told", "20", "percentile"]["value"]
    gained = rows["told", "20", "percentile"]["value"] - rows["told", "0", "percentile"]["value"]
    assert rows["told", "20", "percentile - with 0 told"]["value"] == pytest.approx(gained)
    assert rows["compliance", "chatgpt-list", "usable answers"]["value"] == 1
    assert {path.name for path in (folder / "figures").glob("llm_*.png")} == {
        "llm_popularity.png",
        "llm_attributes.png",
    }


@pytest.mark.slow
def test_p5_is_told_the_attributes_of_its_users(tmp_path):
    tiny = ("network.embedding_size=8", "network.heads=2", "training.epochs=1", "asking.describe=[taste]")
    told = [f"recommenders.p5.{option}" for option in (*tiny, "asking.families=[sequential,explanation]")]
    run_experiment(config("llm_biases", tmp_path / "run", "arm=p5", "k=5", "tests=[attributes,explanations]", *told))
    rows = {
        (r["test"], r["setting"], r["metric"]): r
        for r in pl.read_csv(tmp_path / "run" / "tables" / "llm_biases.csv").to_dicts()
    }
    assert {test for test, _, _ in rows} == {"attributes", "explanations"}
    assert 0 <= rows["attributes", "taste: minority", "jaccard"]["value"] < 1
    assert rows["attributes", "taste", "snsr prag"]["ci_high"] > 0
    assert rows["attributes", "neutral, asked in other words", "prag"]["value"] < 1
    assert rows["explanations", "taste: minority", "words"]["n_users"] > 0
    with pytest.raises(ConfigError, match="tests=order: of p5 expected attributes, explanations alone"):
        run_experiment(config("llm_biases", tmp_path / "other", "arm=p5", "tests=[order]", told[-2]))


LOOP = ("n_seeds=1", "rounds=3", "n_users=6", "n_items=40", "references=[]", "modes=[loop]", "primary=null")


def test_a_dry_run_counts_the_calls_of_arms_that_ask(tmp_path, capsys):
    settings = config(
        "bias_loop_llm", tmp_path / "run", *LOOP, "arms=[chatgpt-list,chatgpt-pair,tallrec,kar]", "dry_run=true"
    )
    assert run_experiment(settings) is None
    told = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert "Items to put in order" in told
    assert "18 calls at most for 18 pages, and 0 while learning" in told  # chatgpt-list
    assert f"{8 * 18} calls at most for 18 pages" in told  # tallrec: eight candidates, not tuned in a dry run
    assert "18 calls at most for 18 pages, and 40 while learning" in told  # kar writes about every item


class TasteServer(LLMServer):
    """The taste reader on the wire: its answers by the prompt, in the protocol's form."""

    def __init__(self) -> None:
        super().__init__(lambda n, seen: Reply(content=self.said(seen)))

    @staticmethod
    def said(seen: Seen) -> str:
        schema = seen.body.get("response_format", {}).get("json_schema", {}).get("schema")
        user = next(m["content"] for m in seen.body["messages"] if m["role"] == "user")
        return reply(user, schema)


def test_a_budget_stops_an_arm_at_a_checkpoint_and_its_run_is_replayed_to_the_byte(tmp_path, monkeypatch):
    """On the wire: what is resumed with a larger budget, and what is replayed, is the run that would have been."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    sizes = (*LOOP, "arms=[chatgpt-list]", "checkpoint_every=1")

    def play(name: str, *overrides: str) -> Path:
        with initialize_config_dir(str(CONF), version_base=None):
            chosen = compose("config", ["+experiment=bias_loop_llm", *WORLD, *sizes, *overrides])
            made = OmegaConf.to_container(chosen, resolve=True)
        run_experiment({**made, "run_dir": str(tmp_path / name), "command": "python run.py ..."})
        return tmp_path / name

    with TasteServer() as server:
        openai = (
            "llm@recommender_llm=openai",
            "recommender_llm.model=taste",
            f"recommender_llm.base_url={server.base_url}",
        )
        with pytest.raises(BudgetExhausted):
            play("run", *openai, "recommender_llm.budget_calls=8")
        assert [path.name for path in (tmp_path / "run").glob("checkpoint/*/round-*")] == ["round-000001"]
        folder = play("run", *openai, "recommender_llm.budget_calls=100", f"resume={tmp_path / 'run'}")
        asked = len(server.seen)
    card = json.loads((folder / "run_card.json").read_text())
    asking = card["recommender_llm"]
    # What was answered in the round that the budget cut counts as the call it was.
    assert (asking["pages"], asking["calls"], asking["cached"], asking["fallbacks"]) == (18, 18, 0, 0)
    assert asked == 18  # and is not asked again
    assert "same_model" not in card
    (cache,) = folder.glob("*cache*.sqlite")
    again = play("again", "llm@recommender_llm=replay", "recommender_llm.model=taste", f"recommender_llm.cache={cache}")
    assert len(server.seen) == asked
    assert (again / "metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()
    for path in (folder / "events").iterdir():
        assert path.read_bytes() == (again / "events" / path.name).read_bytes()


def test_some_of_the_tests_alone(tmp_path):
    run_experiment(config("llm_biases", tmp_path / "run", "tests=[popularity]", "judged_users=6", "k=5"))
    table = pl.read_csv(tmp_path / "run" / "tables" / "llm_biases.csv")
    assert set(table["test"]) == {"popularity", "compliance"}


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("llm_ranking", "candidates=[1]", "candidates="),
        ("llm_ranking", "candidates=[5,80]", r"candidates=\[5, 80\]: some user has had all but"),
        ("llm_ranking", "judged_users=1", "judged_users=1"),
        ("llm_biases", "arm=popularity", "arm=popularity: expected an arm that orders candidates"),
        ("llm_biases", "noise=2", "noise=2"),
        ("llm_biases", "arm=p5", "arm=p5: it tells no attributes; expected some in asking.describe"),
        ("llm_biases", "explained=[height]", "explained=height: expected some of attributes, age, country"),
        ("llm_biases", "tests=[order,fairness]", "tests=fairness: expected some of order, popularity"),
    ],
)
def test_bad_settings_are_named(name, override, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        run_experiment(config(name, tmp_path / "run", override))
