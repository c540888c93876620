"""The training loop: which weights are kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from simenv.errors import ConfigError
from simenv.training.loop import Training, TrainingOptions


def trained(averaging: float, scores: list[float]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The weights before each step, and those that are kept in the end."""
    torch.manual_seed(0)
    network, before = nn.Linear(2, 1, bias=False), []

    def loss(batch: int) -> tuple[torch.Tensor, int]:
        before.append(network.weight.detach().clone())
        return (network(torch.full((1, 2), float(batch))) - 1).square().mean(), 1

    def score() -> float:
        scores.append(float(network.weight.detach().sum()))
        return -len(scores)  # the first epoch is the best one

    options = TrainingOptions(epochs=3, averaging=averaging, evaluate_every=1, learning_rate=0.1)
    Training(network, loss, options, score=score if scores else None).run(lambda epoch: [1, 2, 3], 3)
    return before, network.weight.detach()


def test_the_running_average_of_the_weights_is_kept_where_it_is_asked_for():
    before, kept = trained(0.9, [])
    _, last = trained(0.0, [])
    stepped = [*before[1:], last]
    average = stepped[0]
    for step, weights in enumerate(stepped):
        average = torch.lerp(average, weights, 1 - min(0.9, (1 + step) / (10 + step)))
    torch.testing.assert_close(kept, average)
    assert (kept - last).abs().max() > 1e-4


def test_averaged_weights_are_scored_and_training_goes_on_from_its_own():
    scores = [0.0]
    before, kept = trained(0.9, scores)
    plain, _ = trained(0.0, [])
    torch.testing.assert_close(torch.stack(before), torch.stack(plain))
    assert scores[1] == pytest.approx(float(kept.sum()))


def test_a_decay_of_one_would_never_learn():
    with pytest.raises(ConfigError, match=r"averaging=1: expected a share in \[0, 1\)"):
        TrainingOptions(averaging=1)
