"""Training on several processes: a real launch of two on the CPU, and what one process alone does."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from recommenders.p5.generative import P5Fast
from recommenders.testing import KEY, small_log
from simenv.training import loop as training
from simenv.training.processes import Processes
from tests.recommenders.flat import flat

OPTIONS = {"embedding_size": 8, "layers": 1, "heads": 1, "history": 6, "epochs": 4, "index_options": {"leaf_size": 20},
           "early_stop": True, "evaluate_every": 2, "device": "cpu"}  # fmt: skip

PROGRAM = f"""
import sys
from pathlib import Path
import torch
from simenv.training.processes import Processes
from recommenders.p5.generative import P5Fast
from recommenders.testing import KEY, small_log
from tests.recommenders.flat import flat

out = Path(sys.argv[1])
processes = Processes(torch.device("cpu"))
assert processes.count == 2


def seen_by(recommender):
    seen, loss = [], recommender._loss
    recommender._loss = lambda rows: (seen.append(rows.tolist()), loss(rows))[1]
    return seen


whole = flat(P5Fast, **{OPTIONS!r}, max_minutes=10)
seen = seen_by(whole)
whole.fit(small_log(), key=KEY)

first = flat(P5Fast, **{OPTIONS!r}, checkpoint=out / "fit.pt")
batches, begun = first._epoch_batches, []


def stop_at_third_epoch(histories, rng):
    begun.append(1)
    if len(begun) == 3:
        raise KeyboardInterrupt
    return batches(histories, rng)


first._epoch_batches = stop_at_third_epoch
try:
    first.fit(small_log(), key=KEY)
except KeyboardInterrupt:
    pass
processes.accelerator.wait_for_everyone()
written = (out / "fit.pt").stat().st_mtime_ns
resumed = flat(P5Fast, **{OPTIONS!r}, checkpoint=out / "fit.pt")
again = seen_by(resumed)
resumed.fit(small_log(), key=KEY)

names = [name for name, _ in whole.network.named_parameters()]
torch.save(
    {{
        "weights": {{name: value.detach() for name, value in whole.network.named_parameters()}},
        "resumed": {{name: value.detach() for name, value in resumed.network.named_parameters()}},
        "losses": whole.progress.losses,
        "scores": [score for _, _, score in whole.progress.scores],
        "samples": whole.progress.samples,
        "steps": whole.progress.step,
        "seen": seen,
        "again": again,
    }},
    out / f"rank{{processes.place}}.pt",
)
if processes.is_main:
    whole.save(out / "saved")
processes.close()
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes have left."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "program.py").write_text(PROGRAM)
    root = Path(__file__).parents[3]
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(folder / "program.py"), str(folder)],
        cwd=root, check=True, timeout=300,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def ranks(out: Path) -> list[dict]:
    return [torch.load(out / f"rank{place}.pt", weights_only=True) for place in range(2)]


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(ranks: list[dict]):
    for name, value in ranks[0]["weights"].items():
        torch.testing.assert_close(value, ranks[1]["weights"][name], rtol=0, atol=0)
    assert ranks[0]["losses"] == ranks[1]["losses"]
    assert ranks[0]["scores"] == ranks[1]["scores"]


@pytest.mark.slow
def test_two_processes_learn(ranks: list[dict]):
    losses = ranks[0]["losses"]
    assert len(losses) == 4
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_two_processes_share_the_batches_of_one(ranks: list[dict]):
    alone = flat(P5Fast, **OPTIONS)
    seen, loss = [], alone._loss
    alone._loss = lambda rows: (seen.append(rows.tolist()), loss(rows))[1]
    alone.fit(small_log(), key=KEY)
    both = [tuple(map(tuple, rows)) for rank in ranks for rows in rank["seen"]]
    assert {tuple(map(tuple, rows)) for rows in seen} == set(both)
    assert len(ranks[0]["seen"]) == len(ranks[1]["seen"]) == ranks[0]["steps"]
    assert len(seen) <= len(both) <= len(seen) + 4  # at most one batch twice per epoch


@pytest.mark.slow
def test_two_processes_go_on_from_a_checkpoint(ranks: list[dict]):
    for rank in ranks:
        for name, value in rank["weights"].items():
            torch.testing.assert_close(rank["resumed"][name], value, rtol=0, atol=0)
        assert rank["again"] == rank["seen"][len(rank["seen"]) // 2 :]


@pytest.mark.slow
def test_what_two_processes_saved_recommends(out: Path, ranks: list[dict]):
    recommender = flat(P5Fast, **OPTIONS)
    recommender.load(out / "saved")
    for name, value in recommender.network.named_parameters():
        torch.testing.assert_close(value, ranks[0]["weights"][name], rtol=0, atol=0)
    lists = recommender.recommend(np.arange(40), 10).item_ids
    assert lists.shape == (40, 10)
    assert (lists >= 0).all()


def test_one_process_alone_changes_nothing():
    alone = Processes(torch.device("cpu"))
    network, loss = nn.Linear(2, 1), lambda batch: (batch.sum(), 1)
    assert alone.is_main
    assert alone.parallel(network, loss) is loss
    assert list(alone.share(range(5))) == [0, 1, 2, 3, 4]
    assert alone.as_main([1]) == [1]
    assert alone.mean(torch.ones(())) == 1
    alone.close()


@pytest.mark.parametrize(("place", "expected"), [(0, [0, 3, 6]), (1, [1, 4, 7]), (2, [2, 5, 6])])
def test_batches_are_dealt_out_evenly(place: int, expected: list[int]):
    some = Processes(torch.device("cpu"))
    some.count, some.place = 3, place
    assert list(some.share(iter(range(8)))) == expected


@pytest.mark.parametrize(("place", "expected"), [("0", "cuda"), ("3", "cuda:3")])
def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch, place: str, expected: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", place)
    assert str(training.pick_device("auto")) == str(training.pick_device("cuda")) == expected
    assert str(training.pick_device("cuda:1")) == "cuda:1"
    assert str(training.pick_device("cpu")) == "cpu"
