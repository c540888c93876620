"""Damage: whatever happens to the files of a run, resuming gives the right bytes or one line, never another result."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import __main__ as command_line
from experiments.running import workers
from experiments.running.course import run_experiment
from experiments.running.design import CONF
from experiments.running.jobs import JobRun
from simenv.errors import ConfigError, RunDirectoryError, SimenvError, WorkerError, require_memory
from simenv.files import read_sealed, write_sealed, write_whole
from simenv.report import build
from simenv.stopping import leave_if_asked

SMALL = (
    "+experiment=bias_loop_smoke", "n_users=20", "n_items=30", "rounds=4", "n_seeds=1", "workers=0", "progress=false",
    "slate_size=4", "arms=[popularity]", "modes=[loop,frozen]", "references=[]", "checkpoint_every=2",
)  # fmt: skip


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :] if data else b"\4"


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "emptied": lambda data: b"",
    "halved": lambda data: data[: len(data) // 2],
    "flipped": _flipped,
    "[]": lambda data: b"[]",
    "{}": lambda data: b"{}",
    "null": lambda data: b"null",
    "removed": lambda data: None,
}
INTERRUPTED = (
    "config.yaml",
    "checkpoint/seed0.popularity.loop/done.json",
    "checkpoint/seed0.popularity.loop/metrics.json",
    "checkpoint/seed0.popularity.frozen/round-000002/meta.json",
    "checkpoint/seed0.popularity.frozen/round-000002/rows.json",
    "checkpoint/seed0.popularity.frozen/round-000002/events.npz",
    "checkpoint/seed0.popularity.frozen/round-000002/platform/platform.npz",
    "checkpoint/seed0.popularity.frozen/round-000002/platform/platform.json",
    "events/seed0.popularity.loop.000000.parquet",
)
FINISHED = (
    "config.yaml", "run_card.json", "metrics.csv", "claims.json", "items.parquet", "users.parquet",
    "events/seed0.popularity.loop.000000.parquet", "checkpoint/complete.json",
)  # fmt: skip
QUICK = {("metrics.csv", "flipped"), ("claims.json", "[]"), ("checkpoint/complete.json", "emptied")}
QUICK |= {(INTERRUPTED[1], kind) for kind in ("emptied", "[]")} | {(INTERRUPTED[2], kind) for kind in ("[]", "flipped")}
QUICK |= {(INTERRUPTED[3], "halved"), (INTERRUPTED[5], "flipped"), (INTERRUPTED[8], "removed"), ("config.yaml", "null")}


def pairs(names: tuple[str, ...]) -> list[Any]:
    """Every file with every damage; all but a few are slow."""
    return [
        pytest.param(name, kind, marks=() if (name, kind) in QUICK else pytest.mark.slow, id=f"{name}-{kind}")
        for name in names
        for kind in DAMAGE
    ]


def settings(folder: Path, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("config", overrides=[*SMALL, *overrides])
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain | {"run_dir": str(folder), "command": "python run.py ..."}


def results(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run_card.json" and "checkpoint" not in path.parts
    }


@pytest.fixture(scope="module", autouse=True)
def no_page() -> Any:
    """The page has tests of its own, and reads these files through `read_run`."""
    from simenv.report.run_data import read_run

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("simenv.report.page.build", read_run)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "whole"
    run_experiment(settings(folder))
    return folder


@pytest.fixture(scope="module")
def interrupted(whole: Path) -> Path:
    """One job is finished, the other stands at a checkpoint."""
    folder = whole.parent / "interrupted"
    play = JobRun.play

    def stopped(self: JobRun, report: Any, stop: Any) -> bool:
        return play(self, report, (lambda: self.platform.round == 2) if self.job.mode == "frozen" else stop)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(JobRun, "play", stopped)
        with pytest.raises(workers.Interrupted):
            run_experiment(settings(folder))
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} >= set(INTERRUPTED)
    return folder


def _damage(run: Path, copy: Path, name: str, kind: str) -> None:
    shutil.copytree(run, copy)
    damaged = DAMAGE[kind]((copy / name).read_bytes())
    if damaged is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(damaged)


def _resume_and_report(folder: Path, whole: Path) -> None:
    refused: SimenvError | None = None
    try:
        run_experiment(settings(folder) | {"resume": str(folder)})
    except SimenvError as error:
        refused = error
    if refused is None:
        assert results(folder) == results(whole)
        return
    assert refused.exit_code == 2
    assert "\n" not in str(refused)
    assert str(folder) in str(refused)


@pytest.mark.parametrize(("name", "kind"), pairs(INTERRUPTED))
def test_an_interrupted_run(name: str, kind: str, interrupted: Path, whole: Path, tmp_path: Path) -> None:
    _damage(interrupted, tmp_path / "run", name, kind)
    _resume_and_report(tmp_path / "run", whole)


@pytest.mark.parametrize(("name", "kind"), pairs(FINISHED))
def test_a_finished_run(name: str, kind: str, whole: Path, tmp_path: Path) -> None:
    _damage(whole, tmp_path / "run", name, kind)
    if (name, kind) != ("checkpoint/complete.json", "removed"):  # then nothing says that it was finished
        with pytest.raises(SimenvError) as raised:
            build(tmp_path / "run")
        assert "\n" not in str(raised.value)
    _resume_and_report(tmp_path / "run", whole)


@pytest.mark.parametrize(
    "name", ["seed0.popularity.loop.000000 (copy).parquet", "old/seed0.popularity.loop.000000.parquet"]
)
@pytest.mark.parametrize("run", ["interrupted", "whole"])
def test_a_copy_among_the_events_is_never_counted(
    name: str, run: str, interrupted: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(interrupted if run == "interrupted" else whole, folder)
    stray = folder / "events" / name
    stray.parent.mkdir(exist_ok=True)
    shutil.copy(folder / "events" / "seed0.popularity.loop.000000.parquet", stray)
    (folder / "events" / "notes.txt").write_text("no event")
    with pytest.raises(RunDirectoryError, match=r"not of this run"):
        run_experiment(settings(folder) | {"resume": str(folder)})
    if run == "whole":
        with pytest.raises(RunDirectoryError, match=r"not of this run"):
            build(folder)
    stray.unlink()
    (folder / "events" / "notes.txt").unlink()
    _resume_and_report(folder, whole)


def test_a_sealed_file_is_the_one_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "sealed.json"
    assert read_sealed(path) is None
    write_sealed(path, {"a": [1, (2.5,)], "b": {3: None}})
    assert read_sealed(path) == {"a": [1, [2.5]], "b": {"3": None}}
    for damage in DAMAGE.values():
        damaged = damage(path.read_bytes())
        (tmp_path / "other.json").write_bytes(damaged or b"")
        assert read_sealed(tmp_path / "other.json") is None


def test_what_is_written_whole_is_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a", "before")
    monkeypatch.setattr(Path, "replace", lambda *_: 1 / 0)  # killed before the renaming
    with pytest.raises(ZeroDivisionError):
        write_whole(tmp_path / "a", "after")
    assert (tmp_path / "a").read_text() == "before"


# -- folders and names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["r[1]", "a*b?", "x=1,y (100%) 'q' ${z}"])
def test_no_path_is_a_pattern(name: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "r1")
    shutil.copytree(whole, tmp_path / "aXbY")
    (tmp_path / "r1" / "claims.json").write_text("damaged")
    run_experiment(settings(tmp_path / name))
    assert results(tmp_path / name) == results(whole)
    quoted = command_line.with_resume([f"resume={tmp_path / name}"])
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("config", overrides=[*SMALL, *quoted], return_hydra_config=True)
    assert config.resume == str(tmp_path / name)
    assert config.hydra.run.dir == str(tmp_path / name)


def test_hydras_own_files_do_not_fill_a_folder(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "run" / "bias_loop_smoke.log").write_text("")
    run_experiment(settings(tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(SimenvError, match="file: is a file; expected a folder"):
        run_experiment(settings(tmp_path / "file"))


def test_two_runs_in_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    folders = set()
    for _ in range(3):
        command_line._fresh.cache_clear()
        folders.add(command_line._fresh(str(tmp_path / "runs" / "None")))
    assert len(folders) == 3
    for folder in folders:
        command_line._drop_if_empty(Path(folder))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arm", ["a/b", "none", "x" * 300, "two\nlines", ""])
def test_names_that_are_no_file(arm: str) -> None:
    from experiments import compare
    from recommenders.popularity import Popularity

    with pytest.raises(ConfigError, match="expected 1 to 100 printable characters"):
        compare({arm: Popularity()}, rounds=2, n_users=20, n_items=30)


def test_names_that_look_like_patterns_or_like_each_other() -> None:
    from experiments import compare
    from recommenders.popularity import Popularity

    arms = {"[ab]*?": Popularity(), "a": Popularity(), "a.loop": Popularity()}
    played = compare(arms, references=(), rounds=2, n_users=20, n_items=30, slate_size=4)
    assert {arm: (played.events["arm"] == arm).sum() for arm in arms} == dict.fromkeys(arms, 2 * 20 * 4)


# -- how it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (
            OSError(28, "No space left on device", "/full/metrics.csv"),
            2,
            "/full/metrics.csv: No space left on device; f",
        ),
        (PermissionError(13, "Permission denied", "/locked"), 2, "/locked: Permission denied"),
        (MemoryError("84 GB"), 2, "out of memory (84 GB)"),
        (WorkerError("a worker process was killed"), 2, "a worker process was killed"),
        (ZeroDivisionError("division by zero"), 2, "unforeseen ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), 130, "interrupted: checkpoint saved; go on with resume="),
    ],
)
def test_every_end_has_a_code_and_a_line(
    raised: BaseException, code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fails(config: dict[str, Any]) -> None:
        (Path(config["run_dir"]) / "config.yaml").write_text("")
        raise raised

    monkeypatch.setattr("experiments.running.course.run_experiment", fails)
    monkeypatch.setattr("sys.argv", ["run.py"])
    assert command_line.main([*SMALL, f"hydra.run.dir={tmp_path}/run"]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


def test_a_sweep_tells_all_failures_stops_on_ctrl_c_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    begun: list[tuple[int, Any]] = []

    def plays(config: dict[str, Any]) -> None:
        begun.append((config["seed"], config["resume"]))
        (Path(config["run_dir"]) / "config.yaml").write_text("")
        if config["seed"] == 7:
            raise KeyboardInterrupt
        raise ConfigError(f"seed={config['seed']}: bad")

    monkeypatch.setattr("experiments.running.course.run_experiment", plays)
    monkeypatch.setattr("sys.argv", ["run.py"])
    assert command_line.main(["-m", *SMALL, "seed=1,2", f"hydra.sweep.dir={tmp_path}/s"]) == 2
    assert [line.rpartition(" ")[0][-7:] for line in capsys.readouterr().err.splitlines()] == ["seed=1:", "seed=2:"]
    assert command_line.main(["-m", *SMALL, "seed=1,7,3", f"resume={tmp_path}/s"]) == 130
    assert [seed for seed, _ in begun] == [1, 2, 1, 7]
    assert begun[0][1] is None
    assert begun[2][1] == str(tmp_path / "s")


def test_sizes_that_cannot_fit_are_said_first() -> None:
    from recommenders.linear import EASE
    from simenv.datasets.synthetic import synthetic

    with pytest.raises(ConfigError, match="x needs 1,000,000 GB of memory, and this machine has"):
        require_memory("x", 10**15)
    from agents.choice.model import ChoiceModel

    world = synthetic(n_users=20, n_items=30, seed=0)
    assert world.tastes is not None
    with pytest.raises(ConfigError, match="memory_size=100000000000: the memories of 20 users"):
        ChoiceModel(memory_size=100_000_000_000).bind(world, world.tastes, seed=0)
    ease = EASE()
    ease.fit(world.interactions, key=None)  # type: ignore[arg-type]


def test_one_round_warns(tmp_path: Path, capsys: Any) -> None:
    run_experiment(settings(tmp_path / "run", "rounds=1"))
    assert "warning: rounds=1" in capsys.readouterr().err


def test_a_notebooks_backend_is_left_alone() -> None:
    script = "import simenv.figures.style, os; print(os.environ['MPLBACKEND'])"
    env = os.environ | {"MPLBACKEND": "module_of_a_notebook"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "module_of_a_notebook", done.stderr


def test_compiled_kernels_find_a_place_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    import simenv

    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(os, "access", lambda *_: True)
    simenv._keep_kernels_somewhere()
    assert "NUMBA_CACHE_DIR" not in os.environ
    monkeypatch.setattr(os, "access", lambda *_: False)
    simenv._keep_kernels_somewhere()
    assert "simenv-kernels-" in os.environ["NUMBA_CACHE_DIR"]
    monkeypatch.delenv("NUMBA_CACHE_DIR")


def test_a_stop_in_the_midst_of_learning_is_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that learns for minutes is left between two batches, not at the end of the round."""

    def learning(self: JobRun, report: Any, stop: Callable[[], bool]) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        leave_if_asked()
        return True

    monkeypatch.setattr(JobRun, "play", learning)
    with pytest.raises(workers.Interrupted):
        run_experiment(settings(tmp_path / "run"))
