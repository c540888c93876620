"""A run with language-model users: dry run, accounting in the run card, cache in the run directory, a larger budget."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.running.course import run_experiment
from experiments.running.design import CONF
from simenv.errors import BudgetExhausted, ConfigError
from simenv.language_models.fake_server import LLMServer, Reply, Seen
from simenv.report.explore import explore
from simenv.report.run_data import read_run

CANARY = "sk-canary-77aa"
MINE = """
import json
from simenv.language_models import Completion, LanguageModel, carrying, connect, run, Message, Request
from recommenders.popularity import Popularity
from simenv.language_models.fake_server import scores

class Mine(LanguageModel):
    def __init__(self, model, url):
        super().__init__(model)
        self.url = url
    async def complete(self, request):
        return Completion(text=json.dumps(scores(request.messages[-1].content)), prompt_tokens=9, completion_tokens=9)

@carrying("url")
def mine(model, url, **around):
    return connect(Mine(model, url), **around)

class Asking(Popularity):
    name = "asking"
    def __init__(self, language_model):
        super().__init__()
        self.language_model = language_model
    @property
    def accounting(self):
        return {"model": self.language_model.model, **self.language_model.ledger.as_dict()}
    def dry_run(self, users, slates, key, *, pages):
        return f"{pages} pages of {slates.shape}"
    def _recommend(self, users, k, candidates, key):
        request = Request(messages=(Message("user", f"{users.tolist()} {key}"),))
        run(self.language_model.complete(request))
        return super()._recommend(users, k, candidates, key)
"""
SMALL = (
    "+experiment=bias_loop_smoke", "agent=llm", "n_users=6", "n_items=30", "rounds=2", "n_seeds=1",
    "arms=[popularity]", "modes=[loop]", "references=[]", "workers=0", "progress=false", "slate_size=5",
)  # fmt: skip


def settings(folder: Path, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("config", overrides=[*SMALL, *overrides])
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain | {"run_dir": str(folder), "command": "python run.py ..."}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    with LLMServer() as running:
        yield running


def test_dry_run_prints_a_prompt_and_asks_nothing(
    server: LLMServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(
        tmp_path / "run", "llm=openai", "llm.model=fake", f"llm.base_url={server.base_url}", "dry_run=true"
    )
    assert run_experiment(config) is None
    printed = capsys.readouterr().out
    assert "# The page" in printed
    assert "12 pages, one call each" in printed
    assert not (tmp_path / "run").exists()
    assert not server.seen
    with pytest.raises(ConfigError, match="dry_run: agent choice asks no language model"):
        run_experiment(settings(tmp_path / "run", "agent=choice", "dry_run=true"))


def test_budget_stop_and_resume_with_a_larger_one_then_replay(server: LLMServer, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    openai = ("llm=openai", "llm.model=fake", f"llm.base_url={server.base_url}")
    with pytest.raises(BudgetExhausted):
        run_experiment(settings(folder, *openai, "llm.budget_calls=8"))
    assert [path.name for path in folder.glob("checkpoint/*/round-*")] == ["round-000001"]  # six pages a round
    assert run_experiment(settings(folder, *openai, "llm.budget_calls=100", f"resume={folder}")) == folder
    card = json.loads((folder / "run_card.json").read_text())["llm"]
    assert card["model"] == "fake"
    assert card["pages"] == 12
    assert card["calibration"] == "not calibrated"
    for path in folder.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path
    replayed = run_experiment(
        settings(tmp_path / "again", "llm=replay", "llm.model=fake", f"llm.cache={folder / 'llm-cache.sqlite'}")
    )
    assert replayed is not None
    assert (replayed / "metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()
    assert (replayed / "transcripts.json").read_bytes() == (folder / "transcripts.json").read_bytes()
    told = json.loads((folder / "transcripts.json").read_text())
    assert [(page["round"], page["user"]) for page in told] == [(r, user) for r in (0, 1) for user in (0, 2, 5)]
    assert all("# The page" in page["messages"][-1][1] and "satisfaction" in page["answer"] for page in told)
    data = explore(read_run(folder))
    assert data is not None
    assert [len(user["talks"]) for user in data["users"][:3]] == [2, 2, 2]
    assert data["texts"][data["users"][0]["talks"][0]["messages"][-1][1]] == told[0]["messages"][-1][1]
    for path in (folder / "events").iterdir():
        assert path.read_bytes() == (replayed / "events" / path.name).read_bytes()


def killed_after(calls: int, config: dict[str, Any]) -> None:
    """Start a run in a process of its own, which is killed once more calls than these are answered."""
    program = (
        "import json, os, sys\nfrom experiments.running.course import run_experiment\n"
        "from simenv.language_models.limits import Budgeted\nreal, calls = Budgeted.complete, []\n"
        "async def complete(self, request):\n    answer = await real(self, request)\n    calls.append(1)\n"
        f"    if len(calls) > {calls}: os.kill(os.getpid(), 9)\n    return answer\n"
        "Budgeted.complete = complete\nrun_experiment(json.loads(sys.argv[1]))"
    )
    killed = subprocess.run([sys.executable, "-c", program, json.dumps(config)], cwd=CONF.parent, timeout=300)
    assert killed.returncode == -9


@pytest.mark.slow
@pytest.mark.parametrize("n_calls", [9, 40, 90])
def test_users_who_talk_are_killed_and_go_on_with_the_same_bytes(
    server: LLMServer, tmp_path: Path, n_calls: int
) -> None:
    """Posts and chats said before a kill are heard after it; a replay of the resumed run hears them too."""
    talking = (
        "n_users=12", "n_items=40", "rounds=5", "dataset.mean_degree=4", "agent.friends_told=4", "agent.posts=0.8",
        "agent.chats=0.8", "checkpoint_every=1", "llm.model=fake",
    )  # fmt: skip
    openai = ("llm=openai", f"llm.base_url={server.base_url}")
    server.script = _varied
    whole = run_experiment(settings(tmp_path / "whole", *talking, *openai))
    folder = tmp_path / "killed"
    killed_after(n_calls, settings(folder, *talking, *openai))
    run_experiment(settings(folder, *talking, *openai, f"resume={folder}"))
    cache = f"llm.cache={folder / 'llm-cache.sqlite'}"
    replayed = run_experiment(settings(tmp_path / "again", *talking, "llm=replay", cache))
    assert whole is not None
    assert replayed is not None
    cards = [json.loads((run / "run_card.json").read_text())["llm"] for run in (whole, folder)]
    assert cards[0]["posts"] > 5 < cards[0]["chats"]
    for name in ("calls", "cached", "posts", "chats", "pages", "prompt_tokens"):
        assert cards[1][name] == cards[0][name], name
    written = [*whole.glob("events/*"), *whole.glob("heard/*"), whole / "metrics.csv", whole / "transcripts.json"]
    kinds = pl.read_parquet(list(whole.glob("heard/*")))["kind"].cast(pl.String).unique()
    assert {"post", "chat"} <= set(kinds)
    for path in written:
        for run in (folder, replayed):
            assert (run / path.relative_to(whole)).read_bytes() == path.read_bytes(), (run, path)


def _varied(number: int, seen: Seen) -> Reply | None:
    """What is said depends on who says it, so that a word that comes to the wrong user changes a byte."""
    if "# The page" in seen.prompt:
        return None
    mark = zlib.crc32(seen.prompt.encode())
    return Reply(content=f"You: I took number {mark}.\nFriend: And I {mark % 97}.")


def test_a_kill_changes_no_account(server: LLMServer, tmp_path: Path) -> None:
    """Killed in its second round, a run's calls and tokens are in the end those of a run that nobody stopped."""
    openai = ("llm=openai", "llm.model=fake", f"llm.base_url={server.base_url}", "llm.price_prompt=1", "rounds=3")
    whole = run_experiment(settings(tmp_path / "whole", *openai, "checkpoint_every=1"))
    assert whole is not None
    folder, n_seen = tmp_path / "killed", len(server.seen)
    killed_after(10, settings(folder, *openai, "checkpoint_every=1"))
    assert not (folder / "run_card.json").exists()
    run_experiment(settings(folder, *openai, "checkpoint_every=1", f"resume={folder}"))
    cards = [json.loads((run / "run_card.json").read_text())["llm"] for run in (whole, folder)]
    names = ("calls", "cached", "prompt_tokens", "completion_tokens", "dollars", "pages", "fallbacks")
    for name in names:
        assert cards[1][name] == cards[0][name], name
    for path in (whole / "events").iterdir():
        assert path.read_bytes() == (folder / "events" / path.name).read_bytes()
    assert cards[0]["calls"] == 18
    assert len(server.seen) - n_seen >= 18  # what was in flight at the kill is asked again, the rest is not
    assert len(server.seen) - n_seen < 25
    replayed = run_experiment(
        settings(
            tmp_path / "again", "llm=replay", "llm.model=fake", f"llm.cache={folder / 'llm-cache.sqlite'}", "rounds=3"
        )
    )
    assert replayed is not None
    again = json.loads((replayed / "run_card.json").read_text())["llm"]
    assert (again["calls"], again["cached"]) == (0, 18)  # another run's answers cost nothing


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A language model and a recommender that asks it, from a folder outside the checkout."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_models.py").write_text(textwrap.dedent(MINE))
    monkeypatch.syspath_prepend(tmp_path / "mine")
    return ("+llm._target_=my_models.mine", "+llm.model=own", "+llm.url=here")


def test_a_factory_from_outside_keeps_cache_budget_and_identity(outside: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(BudgetExhausted):
        run_experiment(settings(folder, *outside, "+llm.budget_calls=8"))
    elsewhere = (*outside[:2], "+llm.url=there", "+llm.budget_calls=12", f"resume={folder}")
    assert run_experiment(settings(folder, *elsewhere)) == folder  # the budget is the run's, and so are the answers
    assert (folder / "llm-cache.sqlite").is_file()
    assert (folder / "llm-budget.sqlite").is_file()
    written = (folder / "config.yaml").read_text()
    assert "my_models.mine" in written
    assert not any(word in written for word in ("url:", "budget_calls"))


def test_a_recommender_that_asks_is_looked_at_like_users(
    outside: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    asking = [option.replace("+llm.", "+recommenders.asking.language_model.") for option in outside]
    arms = ("agent=choice", "arms=[asking]", "modes=[loop,frozen]", "+recommenders.asking._target_=my_models.Asking")
    assert run_experiment(settings(folder, *arms, *asking, "dry_run=true")) is None
    assert "arm asking:\n\n24 pages of (6, 5)" in capsys.readouterr().out
    with pytest.raises(BudgetExhausted):
        run_experiment(settings(folder, *arms, *asking, "+recommenders.asking.language_model.budget_calls=1"))
    assert list(folder.glob("checkpoint/*/round-000001"))  # a budget may end in any round
    assert run_experiment(settings(folder, *arms, *asking, f"resume={folder}")) == folder
    card = json.loads((folder / "run_card.json").read_text())
    assert (card["recommender_llm"]["model"], "llm" in card) == ("own", False)
    assert (folder / "recommender-llm-budget.sqlite").is_file()
    assert "url:" not in (folder / "config.yaml").read_text()


def test_recommenders_that_are_not_played_are_not_imported() -> None:
    """A first look at the loop needs no torch, does not wait for it, and says nothing of its absence."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom experiments.running.design import Design, spec_from_conf\n"
        "names = ('als', 'sasrec', 'p5')\n"
        "design = Design(dataset=spec_from_conf('dataset', 'synthetic'), agent=spec_from_conf('agent', 'choice'),\n"
        "    recommenders={name: spec_from_conf('recommender', name) for name in names}, arms=(('als', 'loop'),))\n"
        "design.with_run_files(Path('run')).check()\ndesign.digest(), design.worlds_digest()\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
