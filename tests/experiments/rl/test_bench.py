"""`simenv bench-rl`: a fixed protocol, resumable, whose figures are what is played and what is known exactly."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="the extra rl is not installed")

from experiments.rl import bench
from experiments.rl.figure import by_height
from experiments.rl.games import GAMES, HELD_OUT, SLATE, judge
from experiments.rl.planning import Planner, likeliest
from simenv import __main__ as command
from simenv.metrics.reference import genre_weights

OPTIONS = ["--size", "tiny", "--games", "Drift", "Slate", "--policies", "random", "A2C", "DQN", "--workers", "1"]


def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert command.main(["bench-rl", *OPTIONS, "--out", str(folder)]) == 0
    return capsys.readouterr().out


def test_a_bench_goes_on_where_it_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run(tmp_path, capsys)
    assert "10/10  " in told  # of two seeds: A2C and DQN on Drift; random, planned and A2C on Slate
    table = (tmp_path / "table.md").read_text()
    assert table in told
    head, _, drift, slate, share = table.splitlines()
    assert head == "| game | random | A2C | DQN | optimal |"
    assert drift.startswith("| Drift | 5.62 | ")
    assert drift.endswith(" | 9.39 |")
    assert "|  | planned " in slate  # DQN cannot fill five slots
    assert share.endswith(" | 1 |")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    points = [row for row in rows if (row["game"], row["policy"], row["seed"]) == ("simenv/Drift-v0", "DQN", "1")]
    assert [row["training_pages"] for row in points] == ["0", "300", "600"]
    exact = {row["policy"]: float(row["return"]) for row in rows if row["seed"] == ""}
    assert exact["optimal"] == GAMES["Drift"].value("optimal")  # type: ignore[misc]

    assert run(tmp_path, capsys).startswith("10 of 10 cells are finished already\n| game |")
    cells = sorted((tmp_path / "cells").iterdir())
    cells[0].write_text(cells[0].read_text().replace('"return": ', '"return": 1'))
    cells[1].write_text("")
    cells[2].unlink()
    again = run(tmp_path, capsys)
    assert again.startswith("7 of 10 cells are finished already")
    assert "3/3  " in again
    assert (tmp_path / "table.md").read_text() == table


def test_a_cell_of_another_protocol_is_not_finished(tmp_path: Path) -> None:
    cell = bench.Cell("Drift", "A2C", 0, bench.SIZES["tiny"])
    (tmp_path / "cells").mkdir()
    bench.play(cell, tmp_path)
    assert cell.finished(tmp_path) is not None
    assert bench.Cell("Drift", "A2C", 0, bench.SIZES["small"]).finished(tmp_path) is None


def test_missing_libraries_and_workers_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["bench-rl", "--workers", "0", "--out", str(tmp_path / "a")]) == 2
    assert "--workers 0: expected a whole number" in capsys.readouterr().err
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    assert command.main(["bench-rl", "--out", str(tmp_path / "a")]) == 2
    assert "needs the extra 'rl'" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_every_agent_learns_every_game_but_one() -> None:
    from experiments.rl.agents import learner

    cannot = [(game, agent) for game in GAMES for agent in bench.AGENTS if learner(GAMES[game], agent) is None]
    assert cannot == [("Slate", "DQN")]
    planned = bench.cells(list(GAMES), bench.POLICIES, bench.SIZES["small"])
    assert not [cell for cell in planned if (cell.game, cell.policy) in cannot]
    assert {(cell.game, cell.policy) for cell in planned if cell.game == "Slate"} >= {
        ("Slate", policy) for policy in bench.PLAYED
    }


def test_lines_of_equal_height_share_a_name() -> None:
    value = GAMES["ChurnTrap"].value
    assert value is not None
    shares = {name: value(name) / value("optimal") for name in ("random", "popularity", "myopic", "optimal")}
    assert list(by_height(shares).values()) == [["optimal"], ["random"], ["popularity", "myopic"]]


def test_whole_episodes_are_judged() -> None:
    from dataclasses import replace

    stays = replace(SLATE, options=SLATE.options | {"agent": {"name": "choice", "exit_base": -50.0}})
    envs = stays.open(50, 0)
    figures = judge(lambda envs, observation: np.tile(np.arange(5), (50, 1)), envs, seed=0, episodes=100)
    assert figures["pages_per_episode"] == 10.0
    assert figures["gini"] == pytest.approx(0.95)


def test_seeds_are_worlds_on_slate_and_luck_elsewhere() -> None:
    assert not np.array_equal(SLATE.open(2, 0).dataset.interactions.items, SLATE.open(2, 1).dataset.interactions.items)
    assert GAMES["Drift"].open(2, 0).dataset is GAMES["Drift"].open(2, 1).dataset


def test_the_planner_proposes_variety_and_keeps_the_likeliest_unless_sure() -> None:
    envs = SLATE.open(100, 0)
    observation, _ = envs.reset(seed=0)
    best, varied = likeliest(envs), likeliest(envs, 1.0)
    utility = np.where(envs.action_masks(), envs.true_utility(), -1)
    np.testing.assert_allclose(
        np.take_along_axis(utility, best, 1).min(1), np.sort(utility, axis=1)[:, -5:].min(1), rtol=1e-6
    )
    genres = genre_weights(envs.dataset.catalog.genres)
    assert (genres[varied].sum(1) > 0).sum() > (genres[best].sum(1) > 0).sum()
    before = envs.get_state()
    planned = Planner(horizon=3)(envs, observation)
    assert (planned == best).all(axis=1).mean() > 0.5
    for name, value in before["sessions"].items():  # branches leave no trace
        np.testing.assert_equal(envs.get_state()["sessions"][name], value)
    planner, greedy = (
        judge(policy, envs, seed=HELD_OUT, episodes=200)["return"]
        for policy in (Planner(horizon=2, branches=4), lambda envs, observation: likeliest(envs))
    )
    assert planner > 0.95 * greedy
