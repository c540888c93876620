"""Work that takes minutes is left where it asks whether to stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from simenv.stopping import Stopped, leave_if_asked, stopping
from simenv.training.loop import Training, TrainingOptions


def test_nobody_is_asked_outside_the_block():
    with stopping(lambda: True), pytest.raises(Stopped):
        leave_if_asked()
    leave_if_asked()


def test_training_stops_between_two_batches_and_goes_on_at_its_last_whole_epoch(tmp_path: Path):
    seen: list[int] = []

    def trained(stop_at: int | None, checkpoint: Path) -> list[float]:
        torch.manual_seed(0)
        network = nn.Linear(2, 1)

        def loss(batch: int) -> tuple[torch.Tensor, int]:
            seen.append(batch)
            return (network(torch.full((1, 2), float(batch))) - 1).square().mean(), 1

        run = Training(network, loss, TrainingOptions(epochs=2), checkpoint=checkpoint)
        with stopping(lambda: len(seen) == stop_at):
            return run.run(lambda epoch: [1, 2, 3], 3).losses

    with pytest.raises(Stopped):
        trained(4, tmp_path / "training.pt")
    assert seen == [1, 2, 3, 1]
    resumed = trained(None, tmp_path / "training.pt")
    assert seen == [1, 2, 3, 1, 1, 2, 3]
    assert resumed == trained(None, tmp_path / "other.pt")
