"""paper_tables: every shipped table is readable, rows share fits and cells, and ours stand beside the published."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import paper_tables
from experiments.paper_tables import Protocol, Table, TableRow, verdict
from experiments.running.course import run_experiment
from experiments.running.design import CONF
from recommenders.popularity import Popularity
from simenv import names
from simenv.errors import ConfigError

TABLES = sorted(names.paths("paper_table"))
OWN = """
title: a small one
source: nobody
metrics: [hr@10, ndcg@10]
columns: {synthetic: {80: World, 81: Other}}
protocol: {split: last, target: ranking, validation: read}
differs: [users are made up]
rows:
  - {row: Pop upside down, published: {World: "/.0001"}, arm: popularity, ask: {sign: -1}, mark: leaky}
  - {row: Pop, published: {World: ".9/.0"}, arm: popularity}
  - {row: KNN, published: {Other: ".1/.1"}, arm: itemknn, options: {all: {neighbours: 3}, synthetic: {shrinkage: 1.0}}}
  - {row: Large, published: {World: ".2/.1"}, why: for a GPU}
  - {row: Unknown, arm: no-such-arm}
  - row: Spelt
    arm: p5-fast
    options: {all: {index: {name: file, options: {}}}, World: {index: {options: {path: nowhere.json}}}}
"""
HIDING = """
title: what states tell
source: nobody
metrics: [hr@3, attacker_auc]
columns: {synthetic: World}
protocol: {split: last, target: candidates99}
rows:
  - {row: Open, published: {World: ".5/.5"}, arm: sasrec, attribute: taste, options: {all: {training: {epochs: 1}}}}
  - {row: Height, arm: sasrec, attribute: height}
  - {row: Blank, arm: popularity, attribute: taste}
"""


@cache
def composed() -> Any:
    small = ["table=own", "dataset=synthetic", "n_users=60", "n_items=80", "progress=false", "workers=0"]
    with initialize_config_dir(str(CONF), version_base=None):
        made = compose("config", ["+experiment=paper_tables", *small, "beside=[random]"])
    return OmegaConf.to_container(made, resolve=True)


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    protocol = {**composed()["protocol"], **changes.pop("protocol", {})}
    places = {"run_dir": str(folder / "run"), "cells": str(folder.parent / "cells"), "command": "..."}
    return {**composed(), **places, "protocol": protocol, **changes}


@pytest.fixture(autouse=True)
def _own_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "extra" / "paper_table"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text(OWN)
    monkeypatch.setenv(names.EXTRA, str(tmp_path / "extra"))
    ranked = Popularity._recommend

    def in_its_direction(self: Any, *arguments: Any) -> Any:
        whole = self._order
        self._order = whole[:: self.sign]
        try:
            return ranked(self, *arguments)
        finally:
            self._order = whole

    monkeypatch.setattr(Popularity, "sign", 1, raising=False)
    monkeypatch.setattr(Popularity, "_recommend", in_its_direction)


@pytest.mark.parametrize("name", TABLES)
def test_shipped_tables_have_as_many_figures_as_metrics(name: str) -> None:
    table = Table.load(name)
    assert len({row.row for row in table.rows}) == len(table.rows)
    for row in table.rows:
        for column in row.published:
            assert row.figures(column, table.metrics)
        assert row.arm is not None or row.why or row.published
    for columns in table.columns.values():
        for column in columns.values() if isinstance(columns, dict) else [columns]:
            assert any(column in row.published for row in table.rows)


def test_rows_share_a_fit_and_cells_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fits: list[int] = []
    original = Popularity._fit
    monkeypatch.setattr(Popularity, "_fit", lambda self, log, key: fits.append(len(log)) or original(self, log, key))
    first = run_experiment(config(tmp_path / "a", rows=["Pop", "Pop upside down"]))
    assert first is not None
    table = pl.read_csv(first / "tables" / "paper_table.csv")
    rows = {(row["row"], row["metric"]): row for row in table.to_dicts()}
    assert rows["Pop", "hr@10"]["verdict"] == "worse"
    assert rows["Pop", "ndcg@10"]["verdict"] == "better"
    assert rows["Pop upside down", "hr@10"]["published"] is None
    assert rows["Pop upside down", "hr@10"]["ours"] < rows["Pop", "hr@10"]["ours"]  # asked after it, as itself again
    assert rows["KNN", "hr@10"]["note"] == "not fitted yet: run again"
    assert rows["Large", "hr@10"]["note"] == "for a GPU"
    assert rows["Unknown", "hr@10"]["note"] == "there is no recommender no-such-arm"
    card = json.loads((first / "run_card.json").read_text())
    assert len(card["split_digest"]) == 12
    assert card["n_train"] - 60 <= fits[0] < card["n_train"]  # the validation items are not learned from
    assert (first / "figures" / "paper_table.png").is_file()
    printed = capsys.readouterr().out
    assert printed.startswith("# own: a small one")
    assert "| Pop upside down | popularity |" in printed
    assert "leaky" in printed
    second = run_experiment(config(tmp_path / "b"))
    assert second is not None
    assert len(fits) == 1
    again = pl.read_csv(second / "tables" / "paper_table.csv")
    assert again.filter(row="KNN")["ours"].null_count() == 0
    assert again.filter(row="random")["ours"].null_count() == 0
    assert "nowhere.json" in again.filter(row="Spelt")["note"][0]  # and the others are fitted
    assert again.filter(row="Pop").equals(table.filter(row="Pop"))
    third = run_experiment(config(tmp_path / "c", protocol={"validation": "learned"}, rows=["Pop"], minutes=0))
    assert third is not None
    assert len(fits) == 1  # no time
    assert pl.read_csv(third / "tables" / "paper_table.csv")["ours"].null_count() == 14


def test_an_attacker_reads_an_attribute_in_the_states(tmp_path: Path) -> None:
    table = tmp_path / "extra" / "paper_table" / "hiding.yaml"
    table.write_text(HIDING)
    with pytest.raises(ConfigError, match="row Blank: attribute: popularity has no states of users"):
        run_experiment(config(tmp_path / "a", table="hiding", n_items=None))
    table.write_text(HIDING.rpartition("\n  -")[0])
    run = run_experiment(config(tmp_path / "b", table="hiding", n_items=None, n_users=120))
    assert run is not None
    found = {(row["row"], row["metric"]): row for row in pl.read_csv(run / "tables" / "paper_table.csv").to_dicts()}
    attacked = found["Open", "attacker_auc"]
    assert 0 <= attacked["ci_low"] < attacked["ours"] < attacked["ci_high"] <= 1.1
    assert found["Open", "hr@3"]["ours"] >= 0
    assert found["Height", "hr@3"]["note"] == "synthetic does not tell its users' height"


def test_options_of_a_row_change_the_arms(tmp_path: Path) -> None:
    settings = paper_tables.Settings.of(config(tmp_path, table="N2"))
    specs = {row.row: settings.spec(row) for row in settings.all_rows if row.row in ("P5 RID", "P5 CID")}
    assert specs["P5 RID"]["index"] == {"name": "random", "spare": 8, "options": {}}  # not those of another indexer
    assert specs["P5 CID"]["index"]["options"] == {"clusters": 20, "leaf_size": 50, "window": 3}
    assert specs["P5 CID"]["network"]["history"] == 100  # 50 on Beauty alone
    assert not settings.same_data
    assert settings.column == "Beauty"


def test_a_figure_within_our_interval_is_reproduced() -> None:
    ours = {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6}
    assert [verdict("hr@10", x, ours) for x in (0.45, 0.3, 0.7)] == ["reproduced", "better", "worse"]
    assert [verdict("rmse", x, ours) for x in (0.3, 0.7)] == ["worse", "better"]
    assert verdict("hr@10", None, ours) == verdict("hr@10", 0.4, {}) == ""
    assert verdict("bleu4", 0.4, {"value": 0.4, "ci_low": None, "ci_high": None}) == ""


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="paper_table=N22: unknown; expected one of N1, N2"):
        paper_tables.Settings.of(config(tmp_path, table="N22"))
    with pytest.raises(ConfigError, match=r"rows='?Popp'?: expected one of"):
        paper_tables.Settings.of(config(tmp_path, rows=["Popp"]))
    with pytest.raises(ConfigError, match=r"protocol.target='?sales'?: expected one of ranking"):
        paper_tables.Settings.of(config(tmp_path, protocol={"target": "sales"}))
    own = tmp_path / "extra" / "paper_table" / "own.yaml"
    own.write_text(OWN + "  - {row: Wrong, arm: popularity, ask: {sing: 1}}\n")
    with pytest.raises(ConfigError, match=r"row Wrong: ask \['sing'\]: popularity has no such option"):
        run_experiment(config(tmp_path))
    with pytest.raises(ConfigError, match=r"3 figures; expected hr@10, ndcg@10"):
        TableRow(row="x", published={"a": "1/2/3"}).figures("a", ["hr@10", "ndcg@10"])
    assert Protocol().validation == "read"
