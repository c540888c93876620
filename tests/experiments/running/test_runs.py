"""Runs: a complete directory, processes or not the same bytes, stops and kills that lose nothing, bad input first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from experiments import __main__ as command_line
from experiments import compare
from experiments.running.design import Design, expand_arms, spec_from_conf
from experiments.running.directory import RunDirectory, write_metrics
from experiments.running.jobs import JobRun
from experiments.running.workers import run_jobs
from recommenders.popularity import Popularity
from simenv.errors import ConfigError, GateError, RecommenderError, RunDirectoryError
from simenv.platform import Schedule

ROOT = Path(__file__).resolve().parents[3]
SMOKE = ["+experiment=bias_loop_smoke", "progress=false", "workers=0", "n_users=30", "n_items=60", "n_seeds=1"]
LONG = [*SMOKE, "n_users=200", "rounds=40", "workers=2", "checkpoint_every=2", "arms=[als]", "references=[]"]


class Broken(Popularity):
    """Returns an unknown item in round 3."""

    name = "broken"

    def _recommend(self, users: Any, k: int, candidates: Any, key: Any) -> Any:
        slates = super()._recommend(users, k, candidates, key)
        if key.round == 3:
            slates.item_ids[0, 0] = 10_000
        return slates


def design(**changes: Any) -> Design:
    options: dict[str, Any] = {
        "dataset": spec_from_conf("dataset", "synthetic"),
        "agent": spec_from_conf("agent", "choice"),
        "recommenders": {
            name: spec_from_conf("recommender", name) for name in ("popularity", "als", "random", "oracle")
        },
        "arms": expand_arms(["popularity", "als"], ["loop", "organic"], ["random"]),
        "rounds": 5,
        "n_seeds": 2,
        "n_users": 30,
        "n_items": 60,
        "schedule": Schedule(slate_size=5),
    }
    return Design(**options | changes)


def files(
    folder: Path, *, but: tuple[str, ...] = ("run_card.json", "report.html", "report.md", "report.json")
) -> dict[str, bytes]:
    """Everything in a run directory but what tells its name, command and wall time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in but and "checkpoint" not in path.parts
    }


def play(folder: Path, **options: Any) -> Path:
    made = design(**options.pop("design", {}))
    run = RunDirectory(folder, {"design": made.digest()}, resume=options.pop("resume", False))
    run_jobs([(made, run)], progress=False, **options)
    write_metrics(made, run)
    return folder


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "run.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240, **options
    )


def test_processes_give_the_same_bytes_as_one(tmp_path: Path) -> None:
    here = files(play(tmp_path / "here", workers=0))
    assert len([name for name in here if name.endswith(".parquet")]) == 10
    assert files(play(tmp_path / "pool", workers=2)) == here


def test_stopping_anywhere_and_going_on_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = files(play(tmp_path / "whole", workers=0, checkpoint_every=2))
    made = design()
    folder = tmp_path / "stopped"
    run = RunDirectory(folder, {"design": made.digest()})
    world = made.make_world(0)
    job = made.jobs()[3]
    calls = iter(range(100))
    assert not JobRun(made, job, world, folder, checkpoint_every=2).play(lambda *_: None, lambda: next(calls) == 3)
    assert [p.name for p in (run.checkpoint / job.id).iterdir()] == ["round-000003"]
    assert files(play(folder, workers=0, checkpoint_every=2, resume=True)) == whole


def test_a_broken_recommender_is_named_and_earlier_rounds_are_kept(tmp_path: Path) -> None:
    made = design(recommenders={"mine": Broken()}, arms=(("mine", "loop"),), n_seeds=1)
    run = RunDirectory(tmp_path / "run", {"a": 1})
    with pytest.raises(RecommenderError, match="broken, round 3, user 0: unknown item 10000"):
        run_jobs([(made, run)], workers=0, progress=False)
    events = pl.read_parquet(tmp_path / "run" / "events" / "*.parquet")
    assert events["round"].unique().sort().to_list() == [0, 1, 2]
    rows = json.loads((run.checkpoint / made.jobs()[0].id / "metrics.json").read_text())
    assert {row[3] for row in rows} == {0, 1, 2}


def test_a_gate_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agents.choice.model import ChoiceModel

    honest = ChoiceModel.best_utility
    monkeypatch.setattr(ChoiceModel, "best_utility", lambda self, *a: honest(self, *a) * np.float32(1.01))
    made = design(arms=(("oracle", "loop"),), n_seeds=1, rounds=1)
    with pytest.raises(GateError, match=r"seed 0, oracle/loop: gate 'oracle regret': 0\.0099"):
        run_jobs([(made, RunDirectory(tmp_path / "run", {"a": 1}))], workers=0, progress=False)


class TestRunDirectory:
    def test_refuses_what_is_not_its_own(self, tmp_path: Path) -> None:
        RunDirectory(tmp_path / "run", {"rounds": 5, "seed": 1})
        with pytest.raises(RunDirectoryError, match="already holds a run; go on with resume="):
            RunDirectory(tmp_path / "run", {"rounds": 5, "seed": 1})
        with pytest.raises(RunDirectoryError, match=r"another configuration's \(differs in rounds\)"):
            RunDirectory(tmp_path / "run", {"rounds": 6, "seed": 1}, resume=True)
        RunDirectory(tmp_path / "run", {"seed": 1, "rounds": 5}, resume=True)
        with pytest.raises(RunDirectoryError, match="no such run directory"):
            RunDirectory(tmp_path / "absent", {}, resume=True)
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thesis.tex").write_text("x")
        with pytest.raises(RunDirectoryError, match="is not empty"):
            RunDirectory(tmp_path / "full", {})
        with pytest.raises(RunDirectoryError, match=r"has no config\.yaml"):
            RunDirectory(tmp_path / "full", {}, resume=True)
        assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]

    def test_one_process_at_a_time(self, tmp_path: Path) -> None:
        first, second = RunDirectory(tmp_path / "run", {"a": 1}), RunDirectory(tmp_path / "run", {"a": 1}, resume=True)
        with first.locked(), pytest.raises(RunDirectoryError, match="another process is working"), second.locked():
            pass

    def test_checkpoint_of_another_design(self, tmp_path: Path) -> None:
        made = design()
        RunDirectory(tmp_path / "run", {"a": 1})
        job, world, calls = made.jobs()[0], made.make_world(0), iter(range(100))
        JobRun(made, job, world, tmp_path / "run", checkpoint_every=9).play(lambda *_: None, lambda: next(calls) == 2)
        other = design(repeat="always")
        with pytest.raises(RunDirectoryError, match="checkpoint of another configuration"):
            JobRun(other, job, world, tmp_path / "run", checkpoint_every=9).play(lambda *_: None, lambda: False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of `LONG`."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = command(*LONG, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def commanded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run by the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("commanded") / "run"
    done = command(*SMOKE, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout.splitlines()


class TestCommandLine:
    def test_a_whole_run_and_a_finished_resume(
        self,
        commanded: tuple[Path, list[str]],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        folder, printed = commanded
        expected = {"config.yaml", "run_card.json", "metrics.csv", "items.parquet", "users.parquet", "claims.json"}
        assert printed[-2:] == [f"{folder}", (folder / "report.html").as_uri()]
        assert json.loads((folder / "run_card.json").read_text())["command"].startswith("python run.py +exp")
        assert expected | {"events", "figures", "report.html", "checkpoint"} <= {path.name for path in folder.iterdir()}
        before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
        monkeypatch.setattr(sys, "argv", ["run.py"])
        assert command_line.main([*SMOKE, f"resume={folder}"]) == 0
        assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
        capsys.readouterr()
        assert command_line.main([*SMOKE, "rounds=3", f"resume={folder}"]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "differs in rounds" in told

    @pytest.mark.slow  # by default test_llm_runs kills a run, and test_damage stops a sweep by Ctrl-C
    def test_an_interrupted_run_goes_on_to_the_same_bytes(self, whole: Path, tmp_path: Path) -> None:
        """Killed with -9, resumed from its last checkpoint, Ctrl-C (130, with a checkpoint), resumed. Two processes."""
        folder = tmp_path / "run"
        seen: set[str] = set()
        for how, place in ((signal.SIGKILL, f"hydra.run.dir={folder}"), (signal.SIGINT, f"resume={folder}")):
            started = subprocess.Popen(
                [sys.executable, "run.py", *LONG, place],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            deadline = time.monotonic() + 120
            while {found.parent.name for found in folder.glob("checkpoint/*/round-*/meta.json")} <= seen:
                assert started.poll() is None, started.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            if how == signal.SIGINT:
                os.killpg(started.pid, how)  # as a terminal does: the whole group gets it
            else:
                started.kill()
            _, stderr = started.communicate(timeout=120)
            if how == signal.SIGINT:
                assert started.returncode == 130, stderr
                assert b"checkpoint saved" in stderr
            else:
                time.sleep(1.5)  # orphaned workers notice within half a second
            assert not (folder / "metrics.csv").exists()
            seen = {found.parent.name for found in folder.glob("checkpoint/*/round-*/meta.json")}
        resumed = command(*LONG, f"resume={folder}")
        assert resumed.returncode == 0, resumed.stderr
        assert files(folder) == files(whole)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["agent.foo=1"], "agent.foo"),
            (["+agent.foo=1"], "agent.foo: unknown option; ChoiceModel takes base"),
            *(
                (
                    ["arms=[sasrec]", f"{sign}recommenders.sasrec.epochs=3"],
                    "recommenders.sasrec.epochs: unknown option; it is recommenders.sasrec.training.epochs",
                )
                for sign in ("", "+")
            ),
            (["agent.drift=-1"], "agent.drift=-1: expected a number in [0, 1"),
            (["n_users=0"], "n_users=0: expected null or a whole number, at least 1"),
            (["rounds=-4"], "rounds=-4: expected a whole number, 1 to 1000000"),
            (["slate_size=61"], "slate_size=61: synthetic has 60 items; expected 1 to 60"),
            (["arms=[svd]"], "arm 'svd': no such recommender (did you mean 'puresvd'?); expected one of"),
            (["modes=[sometimes]"], "mode=sometimes: expected one of loop"),
            (["primary=x"], "primary=x: this run makes no such claim"),
            (["dataset=ml-100k", "dataset.root=/nowhere"], "dataset.root names /nowhere, which is no folder"),
            (["resume=/nowhere"], "resume=/nowhere: no such run directory"),
            (["recommenders.als.embedding_size=-2"], "als"),
            (
                ["agent.conformty=1"],
                "agent.conformty: unknown option (did you mean 'conformity'?); expected one of _targ",
            ),
            (["datset=tabular"], "datset: unknown option (did you mean 'dataset'?)"),
            (["dataset=ml100k"], "dataset=ml100k: unknown (did you mean 'ml-100k'?); expected one of amazon"),
        ],
    )
    def test_bad_input_is_one_line_before_anything_is_written(
        self,
        tmp_path: Path,
        arguments: list[str],
        words: str,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["run.py"])
        assert command_line.main([*SMOKE, f"hydra.run.dir={tmp_path}/run", *arguments]) == 2
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert words in lines[0]
        assert not list((tmp_path / "run").glob("*"))

    def test_without_an_experiment(self) -> None:
        done = command()
        assert done.returncode == 2
        assert "expected +experiment=NAME with one of" in done.stderr


class TestCompare:
    def test_gives_frames(self, tmp_path: Path) -> None:
        result = compare(
            {"mine": Popularity(), "als": "als"},
            rounds=3,
            n_users=30,
            n_items=60,
            folder=tmp_path / "run",
            slate_size=4,
        )
        assert set(result.metrics["arm"]) == {"mine", "als", "random"}
        assert result.events.height == 3 * 3 * 30 * 4
        assert result.report is not None
        assert result.report.is_file()
        assert result.users.height == 30
        nothing_kept = compare(["popularity"], rounds=1, n_users=30, n_items=60, references=())
        assert nothing_kept.report is None
        mine = result.events.filter(pl.col("arm") == "mine", pl.col("round") == 0)["item"].head(4).to_list()
        assert len(mine) == 4

    def test_same_as_the_command_line(self, commanded: tuple[Path, list[str]]) -> None:
        references = ["none", "random", "oracle"]
        result = compare(
            ["popularity", "als"], modes=["loop", "frozen"], references=references, rounds=4, n_users=30, n_items=60
        )
        told = pl.read_csv(commanded[0] / "metrics.csv")
        assert result.metrics.sort(pl.all()).equals(told.sort(pl.all()), null_equal=True)

    def test_bad_options(self) -> None:
        with pytest.raises(ConfigError, match="compare: unknown option sead"):
            compare(["popularity"], sead=3)
        with pytest.raises(ConfigError, match="recommender=svd: unknown"):
            compare(["svd"])


def test_every_seed_is_a_world_of_its_own_and_arms_share_it() -> None:
    made = design()
    first, second = made.make_world(0), made.make_world(1)
    assert not np.array_equal(first.dataset.interactions.items[:50], second.dataset.interactions.items[:50])
    again = made.make_world(0)
    np.testing.assert_array_equal(first.tastes.choice.user_vectors, again.tastes.choice.user_vectors)


def test_what_was_checked_is_not_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []
    real = Design.load_dataset
    monkeypatch.setattr(Design, "load_dataset", lambda self, seed: loads.append(seed) or real(self, seed))
    made = design()
    made.check()
    assert made.make_world(0).dataset.n_users == 30
    assert loads == [0]
    assert design(n_users=31).make_world(0).dataset.n_users == 31
    made.make_world(0)
    assert loads == [0, 0, 0], "another world's data, or those of a second world, are loaded"


@pytest.mark.parametrize(("repeat", "mode", "size"), [("never", "loop", "25,000"), ("cooldown", "organic", "200,000")])
def test_users_and_items_beyond_the_memory_are_refused_before_they_are_made(repeat: str, mode: str, size: str) -> None:
    made = design(n_users=10**9, n_items=10**5, repeat=repeat, arms=(("popularity", mode),))
    with pytest.raises(ConfigError, match=f"n_users=1000000000, n_items=100000, .* needs {size} GB of memory"):
        made.check()


def test_digest_sees_every_field() -> None:
    base = design()
    for changes in (
        {"rounds": 6}, {"repeat": "always"}, {"seed": 1}, {"schedule": Schedule(slate_size=4)}, {"holdout": 0.2},
        {"agent": spec_from_conf("agent", "rank")}, {"arms": (("random", "loop"),)}, {"n_users": 31},
    ):  # fmt: skip
        assert design(**changes).digest() != base.digest(), changes
    assert design().digest() == base.digest()


def test_expand_arms() -> None:
    assert expand_arms(["als", "bpr:frozen"], ["loop", "organic"], ["none", "oracle"]) == (
        ("als", "loop"), ("als", "organic"), ("bpr", "frozen"), ("none", "none"), ("oracle", "loop"),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="references: 'als'; expected some of none, random, oracle"):
        expand_arms([], [], ["als"])


def test_a_table_of_ones_own_without_genres_ratings_or_times(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = {(int(u), int(i)) for u, i in zip(rng.integers(0, 40, 900), rng.zipf(1.5, 900) % 50, strict=True)}
    table = tmp_path / "interactions.csv"
    table.write_text("user,item\n" + "".join(f"u{u},i{i}\n" for u, i in sorted(pairs)))
    spec = spec_from_conf("dataset", "tabular") | {"root": str(tmp_path)}
    result = compare(
        ["popularity", "als"], dataset=spec, rounds=2, slate_size=5, references=("none", "random", "oracle")
    )
    assert set(result.metrics["arm"]) == {"popularity", "als", "none", "random", "oracle"}
    assert not {"ild", "genre_kl", "exposure_merit", "ndcg@10"} & set(result.metrics["metric"])


def test_a_holdout_feeds_the_accuracy_metrics(tmp_path: Path) -> None:
    result = compare(["als"], rounds=1, n_users=40, n_items=60, holdout=0.2, references=("random",), slate_size=10)
    recall = dict(result.metrics.filter(group="all", metric="recall@10").select("arm", "value").iter_rows())
    assert recall["als"] > recall["random"] > 0
