"""Stable-Baselines3's agents on the named tasks: above random and popularity, PPO near the exact optimum."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="the extra rl is not installed")

from simenv.envs.tasks import TASKS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example as a module."""
    import torch

    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import learning_curves

    return learning_curves


def floor(task: str) -> float:
    return max(TASKS[task].value("random"), TASKS[task].value("popularity"))


def test_the_command_trains_tabulates_and_draws(
    curves: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "curves.png"
    options = ["--tasks", "Drift", "--algorithms", "PPO", "DQN", "--seeds", "2", "--steps", "2100", "--sessions", "100"]
    monkeypatch.setattr(sys, "argv", ["learning_curves.py", *options, "--out", str(out)])
    curves.main()
    head, _, row = capsys.readouterr().out.splitlines()[-3:]
    assert head == "| task | random | popularity | myopic | PPO | DQN | optimal |"
    assert row.startswith("| Drift | 5.62 | 5.88 | 5.88 | ")
    assert row.endswith("| 9.39 |")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert len(out.read_bytes()) > 10_000


def test_points_are_evenly_spaced_and_repeatable(curves: Any) -> None:
    pages, clicks = curves.learn("ChurnTrap", "A2C", 3, steps=1000, points=4, sessions=50)
    assert pages.tolist() == [0, 250, 500, 750, 1000]
    assert ((clicks >= 0) & (clicks <= 20)).all()
    again = curves.learn("ChurnTrap", "A2C", 3, steps=1000, points=4, sessions=50)[1]
    np.testing.assert_array_equal(clicks, again)


def test_ppo_gets_out_of_the_churn_trap(curves: Any) -> None:
    _, clicks = curves.learn("ChurnTrap", "PPO", 0, steps=20_000, points=1, sessions=1000)
    assert clicks[-1] > 2 * max(floor("ChurnTrap"), TASKS["ChurnTrap"].value("myopic"))


def test_lines_of_equal_height_share_a_name(curves: Any) -> None:
    assert list(curves.levels("ChurnTrap").values()) == [["optimal"], ["random"], ["popularity", "myopic"]]
    assert curves.levels("SatiationTrap")[1.0] == ["optimal", "myopic"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ChurnTrap", "Drift"])
def test_ppo_reaches_95_per_cent_of_the_optimum(curves: Any, task: str) -> None:
    clicks = [curves.learn(task, "PPO", seed, steps=60_000, points=1)[1][-1] for seed in range(3)]
    assert np.mean(clicks) > 0.95 * TASKS[task].value("optimal")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["PPO", "A2C", "DQN"])
@pytest.mark.parametrize("task", ["ChurnTrap", "Drift"])
def test_every_agent_beats_random_and_popularity(curves: Any, task: str, algorithm: str) -> None:
    clicks = [curves.learn(task, algorithm, seed, steps=60_000, points=1)[1][-1] for seed in range(3)]
    assert min(clicks) > 1.2 * floor(task)
