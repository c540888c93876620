"""Jobs and shards on a Ray cluster: the same bytes as in process, whatever is lost on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.running.design import Design
from experiments.running.directory import RunDirectory
from experiments.running.workers import run_jobs
from simenv.datasets import synthetic
from simenv.errors import ConfigError
from simenv.platform import Schedule

ROOT = Path(__file__).resolve().parents[3]
COUNTED = """
import os, time
from recommenders.popularity import Popularity

class Marks(Popularity):
    name = "marks"

    def _recommend(self, users, k, candidates, key):
        open(f"{flag}/{{key.seed}}.{{key.round}}.{{os.getpid()}}", "w").close()
        time.sleep(0.3)
        return super()._recommend(users, k, candidates, key)
"""


def design(**options: Any) -> Design:
    given: dict[str, Any] = {
        "dataset": synthetic(n_users=40, n_items=60, seed=1),
        "agent": {"_target_": "agents.choice.ChoiceModel"},
        "recommenders": {"popularity": {"_target_": "recommenders.popularity.Popularity"}},
        "arms": (("popularity", "loop"), ("popularity", "exogenous")),
        "n_seeds": 2,
        "rounds": 4,
        "schedule": Schedule(slate_size=5),
    }
    return Design(**(given | options))


def play(folder: Path, made: Design, **options: Any) -> dict[str, bytes]:
    """Every file of the events and the metrics, by name."""
    directory = RunDirectory(folder, {"name": "test"}, resume=folder.is_dir())
    run_jobs([(made, directory)], progress=False, checkpoint_every=1, **options)
    files = [*folder.glob("events/*"), *folder.glob("checkpoint/*/metrics.json")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_shards_of_a_run_change_no_byte(tmp_path: Path) -> None:
    whole = play(tmp_path / "whole", design(), workers=0)
    assert len(whole) == 8
    assert play(tmp_path / "parts", design(), workers=0, shards=3) == whole


def test_workers_are_a_number_or_ray(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers=dask: expected a number of processes, null or ray"):
        play(tmp_path / "run", design(), workers="dask")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes on this machine, each a raylet of its own; the driver is on the first. `marks` is where rounds of the
    recommender `outside.Marks` leave a file each.
    """
    ray = pytest.importorskip("ray", reason="needs the extra 'ray'")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "180"}
    folder = tmp_path_factory.mktemp("outside")
    marks = folder / "marks"
    marks.mkdir()
    (folder / "outside.py").write_text(COUNTED.format(flag=marks))
    sys.path.insert(0, str(folder))
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT), before])
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000})
    ray.init(address=cluster.address, log_to_driver=False)  # on the first, since there is no other yet
    cluster.second = cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
    cluster.wait_for_nodes()
    cluster.marks = marks
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    sys.path.remove(str(folder))
    os.environ["PYTHONPATH"] = before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_loses_a_node_writes_the_same_bytes(cluster: Any, tmp_path: Path) -> None:
    marks = cluster.marks
    made = design(
        recommenders={"marks": {"_target_": "outside.Marks"}}, arms=(("marks", "loop"), ("marks", "frozen")), rounds=12
    )
    whole = play(tmp_path / "whole", made, workers=0)
    for path in marks.iterdir():
        path.unlink()

    def kill() -> None:
        while len({path.suffix for path in marks.iterdir()}) < 2 or len(list(marks.iterdir())) < 8:
            time.sleep(0.1)
        cluster.remove_node(cluster.second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    assert play(tmp_path / "run", made, workers="ray") == whole
    killer.join()
    played = [path.name.rsplit(".", 1)[0] for path in marks.iterdir()]
    assert len(played) > len(set(played)) or len(played) > 2 * 12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_shards_in_a_cluster_change_no_byte_when_one_is_killed(cluster: Any, tmp_path: Path) -> None:
    whole = play(tmp_path / "whole", design(n_seeds=1, rounds=30), workers=0)

    def kill() -> None:
        while not list((tmp_path / "run").glob("checkpoint/*/round-0000*")):
            time.sleep(0.02)
        os.kill(keepers()[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert play(tmp_path / "run", design(n_seeds=1, rounds=30), workers="ray", shards=2) == whole
    killer.join()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_slow_shard_is_waited_for(cluster: Any, tmp_path: Path) -> None:
    """While one shard stands still no round ends; afterwards the run goes on to the same bytes."""
    made = design(n_seeds=1, rounds=300, arms=(("popularity", "loop"),))
    whole = play(tmp_path / "whole", made, workers=0)
    rounds: list[str] = []

    def newest() -> str:
        return max((path.name for path in (tmp_path / "run").glob("checkpoint/*/round-0*")), default="")

    def stand_still() -> None:
        while not newest():
            time.sleep(0.02)
        slow = keepers()[0]
        os.kill(slow, signal.SIGSTOP)
        time.sleep(2.0)  # what is under way ends
        rounds.append(newest())
        time.sleep(4.0)
        rounds.append(newest())
        os.kill(slow, signal.SIGCONT)

    holder = threading.Thread(target=stand_still)
    holder.start()
    assert play(tmp_path / "run", made, workers="ray", shards=2) == whole
    holder.join()
    assert rounds[0] == rounds[1] != "round-000300"


def keepers() -> list[int]:
    """Processes that hold a shard."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if words.startswith(b"ray::_Keeper"):
            found.append(pid)
    return found


@pytest.mark.slow
def test_the_command_starts_a_cluster_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    small = ("+experiment=bias_loop_smoke", "n_users=30", "n_items=60", "rounds=2", "n_seeds=2", "progress=false")
    done = {}
    for workers in ("0", "ray"):
        run = tmp_path / workers
        command = [sys.executable, "run.py", *small, f"workers={workers}", f"hydra.run.dir={run}"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0, ended.stderr
        done[workers] = {path.name: path.read_bytes() for path in [*run.glob("events/*"), run / "metrics.csv"]}
    assert done["0"] == done["ray"]
