"""leaderboard: the contract's table, the same whichever way it came about, and models that can be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import leaderboard
from experiments.running.course import run_experiment
from experiments.running.design import CONF
from recommenders.linear import EASE
from simenv.errors import ConfigError, RecommenderError


def settings(folder: Path, *overrides: str) -> dict[str, Any]:
    small = ["n_users=60", "n_items=80", "progress=false"]
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("config", overrides=["+experiment=leaderboard", *small, *overrides])
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain | {"run_dir": str(folder), "command": "python run.py ..."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = settings(
        tmp_path_factory.mktemp("board") / "run", "arms=[random, popularity, ease]", "save_models=true", "n_seeds=2"
    )
    return run_experiment(config)


def _table(folder: Path) -> list[dict[str, Any]]:
    return pl.read_csv(folder / "tables" / "leaderboard.csv").to_dicts()


def test_table_is_the_contracts(folder: Path) -> None:
    table = pl.read_csv(folder / "tables" / "leaderboard.csv")
    assert table.columns == [
        "recommender", "filter_seen", "metric", "value", "ci_low", "ci_high", "n_users",
        "n_seeds", "seed_low", "seed_high",
    ]  # fmt: skip
    assert set(table["recommender"]) == {"random", "popularity", "ease"}
    assert {"hr@1", "hr@10", "ndcg@10", "mrr@10"} <= set(table["metric"])
    assert (table["ci_low"] <= table["value"]).all()
    assert (table["value"] <= table["ci_high"]).all()
    best = leaderboard.best_first(table.to_dicts(), "hr@10")
    assert best[-1]["recommender"] == "random"
    card = json.loads((folder / "run_card.json").read_text())
    assert set(card["fit_cpu_seconds"]) == {"random", "popularity", "ease"}
    assert all(seconds >= 0 for seconds in card["fit_cpu_seconds"].values())
    assert (folder / "report.html").is_file()
    assert (folder / "figures" / "leaderboard.png").is_file()


def test_the_range_over_seeds_is_that_of_single_runs(folder: Path) -> None:
    rows = {row["recommender"]: row for row in leaderboard.best_first(_table(folder), "hr@10")}
    assert {row["n_seeds"] for row in rows.values()} == {2}
    assert rows["ease"]["seed_low"] == rows["ease"]["value"] == rows["ease"]["seed_high"]
    random = rows["random"]
    assert random["seed_low"] < random["value"] < random["seed_high"]
    assert random["value"] == pytest.approx((random["seed_low"] + random["seed_high"]) / 2)
    (panel,) = leaderboard.plot_leaderboard([random], "hr@10").axes
    assert list(panel.lines[-1].get_xdata()) == [random["seed_low"], random["seed_high"]]


def test_models_are_kept(folder: Path) -> None:
    ease = EASE()
    ease.load(folder / "models" / "ease")
    assert ease.recommend([0, 1], 5).item_ids.shape == (2, 5)


def test_a_table_begun_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = ("arms=[random, popularity, ease]", "n_seeds=2", "save_models=true")
    judged: list[tuple[str, int]] = []
    original = leaderboard._judge

    def stop_at_ease(arm: str, seed: int, *rest: Any) -> Any:
        judged.append((arm, seed))
        if judged.count(("ease", 1)) == 1 and seed == 1 and arm == "ease":
            raise KeyboardInterrupt
        return original(arm, seed, *rest)

    monkeypatch.setattr(leaderboard, "_judge", stop_at_ease)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(settings(tmp_path / "run", *arms))
    (kept,) = (tmp_path / "run" / "checkpoint").glob("popularity-0.npz")
    kept.write_bytes(kept.read_bytes()[:-40])  # damaged: judged again
    run_experiment(settings(tmp_path / "run", *arms, f"resume={tmp_path / 'run'}"))
    before = [(arm, seed) for arm in ("random", "popularity", "ease") for seed in (0, 1)]
    assert judged == [*before, ("popularity", 0), ("ease", 1)]
    name = "tables/leaderboard.csv"
    assert (tmp_path / "run" / name).read_bytes() == (folder / name).read_bytes()


def test_differences_are_paired_by_user(tmp_path: Path) -> None:
    folder = run_experiment(
        settings(tmp_path / "run", "arms=[popularity, random, ease]", "against=popularity", "n_seeds=2")
    )
    values = {(row["recommender"], row["filter_seen"], row["metric"]): row for row in _table(folder)}
    table = pl.read_csv(folder / "tables" / "leaderboard_differences.csv").to_dicts()
    assert {row["recommender"] for row in table} == {"random", "ease"}
    assert len(table) == 2 * len(values) // 3
    for row in table:
        ours, base = (values[name, row["filter_seen"], row["metric"]] for name in (row["recommender"], "popularity"))
        assert row["against"] == "popularity"
        assert row["value"] == pytest.approx(ours["value"] - base["value"])
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
        wide = ours["ci_high"] - ours["ci_low"] + base["ci_high"] - base["ci_low"]
        assert row["ci_high"] - row["ci_low"] <= wide
    with pytest.raises(ConfigError, match=r"against='?als'?: expected one of popularity"):
        run_experiment(settings(tmp_path / "x", "arms=[popularity]", "against=als"))
    with pytest.raises(ConfigError, match="against=mf: expected null with target=rating"):
        run_experiment(settings(tmp_path / "x", "arms=[mf]", "against=mf", "target=rating"))


def test_splits_differ_and_bad_ones_are_named(folder: Path, tmp_path: Path) -> None:
    other = run_experiment(settings(tmp_path / "time", "arms=[popularity]", "split=time"))
    table = pl.read_csv(other / "tables" / "leaderboard.csv")
    assert table["n_users"][0] != pl.read_csv(folder / "tables" / "leaderboard.csv")["n_users"][0]
    with pytest.raises(ConfigError, match=r"split=.?weekly.?.*expected .*last.*time.*cold_items"):
        run_experiment(settings(tmp_path / "x", "split=weekly"))
    with pytest.raises(ConfigError, match="oracle cannot be judged offline"):
        run_experiment(settings(tmp_path / "x", "arms=[oracle]"))


def test_stars_are_a_target(tmp_path: Path) -> None:
    folder = run_experiment(settings(tmp_path / "stars", "arms=[mf]", "target=rating"))
    values = {(row["recommender"], row["metric"]): row for row in _table(folder)}
    assert set(values) == {(name, metric) for name in ("mf", "item mean") for metric in ("rmse", "mae")}
    for (_, metric), row in values.items():
        assert row["ci_low"] < row["value"] < row["ci_high"], metric
    assert values["mf", "mae"]["value"] <= values["mf", "rmse"]["value"]
    card = json.loads((folder / "run_card.json").read_text())
    assert (card["target"], card["split"], len(card["split_digest"])) == ("rating", "leave-one-out", 12)
    with pytest.raises(RecommenderError, match="popularity: predicts no ratings; expected"):
        run_experiment(settings(tmp_path / "no", "arms=[popularity]", "target=rating"))
