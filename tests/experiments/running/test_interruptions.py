"""Interruptions of the command: Ctrl-C at any time, twice for who hangs, a killed worker, SIGTERM, no room."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
SMALL = (
    "+experiment=bias_loop_smoke", "n_users=30", "n_items=60", "rounds=4", "n_seeds=2", "progress=false",
    "arms=[popularity]", "modes=[loop]", "references=[]",
)  # fmt: skip
HANGS = """
import time
from recommenders.popularity import Popularity

class Hangs(Popularity):
    name = "hangs"

    def _recommend(self, users, k, candidates, key):
        if key.round == 2:
            open({flag!r}, "w").close()
            time.sleep(600)
        return super()._recommend(users, k, candidates, key)
"""

pytestmark = pytest.mark.slow


def start(*arguments: str, before: Callable[[], Any] | None = None, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "run.py", *SMALL, *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | env, preexec_fn=before,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=300)
    ends = [line for line in said.splitlines(keepends=True) if not line.startswith("note: ")]
    return process.returncode, "".join(ends)


def wait_for(found: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(process: subprocess.Popen[str]) -> list[int]:
    """Worker processes, not multiprocessing's own tracker."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [pid for pid in map(int, listed) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.fixture
def hangs(tmp_path: Path) -> tuple[tuple[str, ...], Path, dict[str, str]]:
    """Arguments and environment of a run whose recommender hangs in round 2, and the file that says it does."""
    flag = tmp_path / "hanging"
    (tmp_path / "outside.py").write_text(HANGS.format(flag=str(flag)))
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    arguments = ("arms=[hangs]", "+recommenders.hangs._target_=outside.Hangs", f"hydra.run.dir={tmp_path}/run")
    return arguments, flag, {"PYTHONPATH": path}


@pytest.mark.parametrize("wait", [0.0, 0.5, 2.0, 4.0])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_in_the_first_seconds(tmp_path: Path, how: signal.Signals, wait: float) -> None:
    process = start("workers=2", "rounds=200", f"hydra.run.dir={tmp_path}/run")
    time.sleep(wait)
    os.killpg(process.pid, how)
    code, said = end(process)
    if wait == 0.0 and code == -how:
        return  # Python itself had not begun
    assert code == 130, said
    assert said.count("\n") == 1, said
    assert said.startswith("interrupted: ")


def test_the_second_ends_who_hangs(hangs: Any) -> None:
    arguments, flag, env = hangs
    process = start(*arguments, "workers=2", **env)
    wait_for(flag.exists, process)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    code, said = end(process)
    assert code == 130, said
    assert said.count("\n") == 1, said


def test_a_killed_worker_is_named_with_cause_and_remedy(hangs: Any) -> None:
    arguments, flag, env = hangs
    process = start(*arguments, "workers=2", **env)
    wait_for(flag.exists, process)
    os.kill(children(process)[0], signal.SIGKILL)
    code, said = end(process)
    assert (code, said.count("\n")) == (2, 1), said
    assert "most likely because memory ran out" in said
    assert "fewer workers=" in said


def test_no_room_for_files(tmp_path: Path) -> None:
    """As on a full disk, writing fails in the middle; what lies there is resumed to the end."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))

    process = start("workers=0", f"hydra.run.dir={tmp_path}/run", before=small_files, NUMBA_DISABLE_JIT="0")
    code, said = end(process)
    assert (code, said.count("\n")) == (2, 1), said
    assert "File too large" in said
    code, said = end(start("workers=0", f"resume={tmp_path}/run"))
    assert (code, said) == (0, "")


def test_a_closed_pipe(tmp_path: Path) -> None:
    with start("workers=0", f"hydra.run.dir={tmp_path}/run") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 0, said
    assert (tmp_path / "run" / "report.html").is_file()
