"""The table of what users heard: written beside the events, read back, and absent where nobody hears."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import polars as pl
import pytest

from experiments.running.design import Job, design_from
from experiments.running.jobs import JobRun
from simenv.errors import RunDirectoryError
from simenv.events import read_events
from simenv.heard import Heard, HeardWriter, read_heard, scan_heard

ROWS = [(3, "pick", 7, 11, 4.0, ""), (3, "chat", 8, -1, float("nan"), 'It is "fine"'), (5, "post", 3, 2, 2.5, "Oh")]


def same(one: Heard, other: Heard) -> None:
    for field in fields(Heard):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_what_was_written_is_read_back(tmp_path):
    writer = HeardWriter(tmp_path / "heard", seed=4, arm="als", mode="loop@0.5", rounds_per_file=2)
    parts = [Heard.of(ROWS[:2], 0, 0), Heard.empty(), Heard.of(ROWS, 2, 1)]
    for round_, part in enumerate(parts):
        writer.append(part, round_)
    writer.close(3)
    assert len(writer.files()) == 2
    same(read_heard(tmp_path, seed=4, arm="als", mode="loop@0.5"), Heard.concat(parts))
    table = scan_heard(tmp_path).collect()
    assert table.row(1, named=True) == {
        "seed": 4, "arm": "als", "mode": "loop@0.5", "round": 0, "page": 0, "user": 3, "speaker": 8, "kind": "chat",
        "item": None, "rating": None, "text": 'It is "fine"',
    }  # fmt: skip
    assert table["text"].null_count() == 2  # picks
    with pytest.raises(RunDirectoryError, match="no heard of seed 5"):
        read_heard(tmp_path, seed=5, arm="als", mode="loop@0.5")


def test_rows_are_taken_and_joined():
    heard = Heard.of(ROWS, 1, 0)
    same(heard.take(np.array([2, 0])), Heard.of([ROWS[2], ROWS[0]], 1, 0))
    assert len(Heard.concat([])) == 0


def played(folder, composed, rounds_at_once):
    """A job of the design, stopped and gone on with after so many rounds."""
    design = design_from(composed)
    job = Job(design.seed, *design.arms[0])
    world = design.make_world(job.seed)
    done = False
    while not done:
        left = iter([False] * rounds_at_once + [True])
        run = JobRun(design, job, world, folder, checkpoint_every=2)
        done = run.play(lambda *_: None, lambda left=left: next(left))
    return run


@pytest.fixture(scope="module")
def composed():
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from experiments.running.design import CONF

    with initialize_config_dir(str(CONF), version_base=None):
        made = compose("config", ["+experiment=bias_loop_smoke", "n_users=50", "n_items=60", "rounds=5", "n_seeds=1",
                                  "arms=[popularity]", "modes=[loop]", "references=[]", "dataset.mean_degree=6",
                                  "agent.word_of_mouth=2"])  # fmt: skip
    return OmegaConf.to_container(made, resolve=True)


def test_a_run_keeps_who_was_heard_of_what_and_resumes_to_the_byte(tmp_path, composed):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run = played(whole, composed, 99)
    played(cut, composed, 1)
    files = [sorted((folder / "heard").iterdir()) for folder in (whole, cut)]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]] != []
    heard = read_heard(whole, seed=0, arm="popularity", mode="loop")
    log = read_events(whole, seed=0, arm="popularity", mode="loop")
    clicks = {(r, u, i): x for r, u, i, x in zip(*(getattr(log, n)[log.clicked] for n in ("round", "user", "item",
                                                                                         "rating")))}  # fmt: skip
    shown = set(zip(log.round.tolist(), log.user.tolist(), log.item.tolist()))
    friends = run.world.dataset.friends
    told = {(r, u, s, i) for r, u, s, i in zip(*(getattr(heard, n).tolist() for n in ("round", "user", "speaker",
                                                                                     "item")))}  # fmt: skip
    expected = {
        (r, u, s, i) for r, u, i in shown for s in friends[u].tolist() if (r - 1, s, i) in clicks
    }  # all that friends clicked in the round before, of what is on the page
    assert told == expected
    assert len(told) == len(heard) > 50
    for r, s, i, rating in zip(heard.round, heard.speaker, heard.item, heard.rating):
        np.testing.assert_equal(rating, clicks[r - 1, s, i])


def test_nobody_hears_and_nothing_is_written_by_default(tmp_path, composed):
    played(tmp_path, composed | {"agent": composed["agent"] | {"word_of_mouth": 0.0}}, 99)
    assert not (tmp_path / "heard").exists()
    with pytest.raises(RunDirectoryError, match="no event files"):
        scan_heard(tmp_path)
    assert pl.scan_parquet(tmp_path / "events" / "*.parquet").collect().height > 0
