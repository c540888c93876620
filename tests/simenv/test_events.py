"""The event log's files: large ones are written beside what follows, with the same bytes and no error lost."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from simenv import events
from simenv.events import Events, EventWriter

ROUNDS = 5


def some(round_: int, n: int = 300) -> Events:
    rng = np.random.default_rng(round_)
    empty = Events.empty()
    columns = {f.name: rng.integers(0, 2, n).astype(getattr(empty, f.name).dtype) for f in fields(Events)}
    return Events(**columns | {"round": np.full(n, round_, np.int32)})


def written(folder: Path) -> dict[str, bytes]:
    writer = EventWriter(folder, seed=0, arm="a", mode="loop", rounds_per_file=2)
    for round_ in range(ROUNDS):
        writer.append(some(round_), round_)
    writer.close(ROUNDS)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_large_files_are_written_beside_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = written(tmp_path / "here")
    assert len(here) == 3
    monkeypatch.setattr(events, "ROWS_BESIDE", 1)
    assert written(tmp_path / "beside") == here
    writer = EventWriter(tmp_path / "waits", seed=0, arm="a", mode="loop", rounds_per_file=1)
    writer.append(some(0), 0)
    assert len(writer.files()) == 1, "who asks for the files waits for the last one"


def test_what_goes_wrong_beside_is_raised_by_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "ROWS_BESIDE", 1)
    writer = EventWriter(tmp_path / "gone", seed=0, arm="a", mode="loop", rounds_per_file=1)
    (tmp_path / "gone").rmdir()
    writer.append(some(0), 0)
    with pytest.raises(OSError, match="gone"):
        writer.close(1)
