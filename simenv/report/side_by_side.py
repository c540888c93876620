"""Several runs at once: in which options they differ, what that did to the metrics, and a table of all of them.

The module does not know how a page is laid out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from simenv.conclusions.statistics import t_interval
from simenv.errors import DataError, RunDirectoryError
from simenv.figures.style import sort_arms
from simenv.metrics.frame import all_series
from simenv.metrics.table import metric_label
from simenv.report.run_data import RunData, read_run

TABLE_METRICS = ("arp_pct", "gini", "coverage", "tail_share", "true_utility", "ctr", "jaccard")
NO_OPTIONS = ("name", "question", "module")  # of a configuration: which experiment, not how it is set


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option and its value in each run, by name of the run."""

    name: str
    values: Mapping[str, Any]

    @property
    def numeric(self) -> bool:
        """Whether the values are points on an axis."""
        return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in self.values.values())

    def text(self, run: str) -> str:
        """The value as it stands on a command line."""
        value = self.values[run]
        return value if isinstance(value, str) else json.dumps(value)


def runs_in(folder: Path) -> list[Path]:
    """The finished run directories at or below `folder`, in the order of their names; parts of a run are not runs."""
    found = []
    for place, inside, files in os.walk(folder):
        inside[:] = sorted((name for name in inside if not name.startswith(".")), key=_by_number)
        if "run_card.json" in files:
            found.append(Path(place))
        if "run_card.json" in files or "config.yaml" in files:
            inside.clear()
    return found


def read_folder(folder: Path) -> dict[str, RunData]:
    """All finished runs of a folder, by their paths in it.

    Raises:
        RunDirectoryError: it has none, or one is damaged.
    """
    if not (paths := runs_in(folder)):
        raise RunDirectoryError(
            f"{folder}: not a run directory; expected a run_card.json in it, or finished runs below it"
        )
    return {path.relative_to(folder).as_posix(): read_run(path) for path in paths}


def differing(runs: Mapping[str, RunData]) -> list[Option]:
    """The options in which the runs' configurations differ, the one for the axis first.

    That is the one with most values, of several a numeric one.
    """
    flat = {name: dict(_leaves(_config(run))) for name, run in runs.items()}
    names = dict.fromkeys(key for one in flat.values() for key in one)
    options = [Option(name=key, values={run: one.get(key) for run, one in flat.items()}) for key in names]
    found = [option for option in options if len(_distinct(option)) > 1]
    return sorted(found, key=lambda option: (-len(_distinct(option)), not option.numeric, option.name))


def leaderboard(runs: Mapping[str, RunData], options: list[Option]) -> dict[str, Any]:
    """Head and rows of the table over all runs: one row an arm, its metrics in the last round of mode loop."""
    rows: list[dict[str, Any]] = []
    for name, run in runs.items():
        measured: dict[str, dict[str, tuple[float, float | None]]] = {}
        for metric in TABLE_METRICS:
            for arm, cell in _last_round(run, metric).items():
                measured.setdefault(arm, {})[metric_label(metric)] = cell
        for arm, cells in _ranking(run).items():
            measured.setdefault(arm, {}).update(cells)
        for arm in sort_arms(measured):
            rows.append(
                {
                    "run": name,
                    "experiment": str(_config(run).get("name") or "–"),
                    "options": [option.text(name) for option in options],
                    "arm": arm,
                    "seeds": run.n_seeds or len(run.card.get("seeds") or []) or None,
                    "cells": measured[arm],
                }
            )
    columns = list(dict.fromkeys(label for row in rows for label in row["cells"]))
    order = [metric_label(metric) for metric in TABLE_METRICS]
    columns.sort(key=lambda label: order.index(label) if label in order else len(order))
    return {"options": [option.name for option in options], "columns": columns, "rows": rows}


def _last_round(run: RunData, metric: str) -> dict[str, tuple[float, float | None]]:
    """Mean over seeds and half its 95 % interval, by arm in mode loop."""
    if run.metrics is None:
        return {}
    try:
        found = all_series(run.metrics, metric)
    except DataError:
        return {}
    cells = {}
    for (arm, mode), own in found.items():
        last = own.values[:, -1]
        if mode in ("loop", "none") and np.isfinite(last).any():
            mean, _, high = (float(v) for v in t_interval(last[np.isfinite(last)]))
            cells[arm] = mean, None if np.isnan(high) else high - mean
    return cells


def _ranking(run: RunData) -> dict[str, dict[str, tuple[float, float | None]]]:
    """What `tables/leaderboard.csv` says of each recommender, items seen before left out."""
    table = run.tables.get("leaderboard")
    if table is None or not {"recommender", "filter_seen", "metric", "value"} <= set(table.columns):
        return {}
    cells: dict[str, dict[str, tuple[float, float | None]]] = {}
    for row in table.to_dicts():
        if str(row["filter_seen"]).lower() == "true" and row["value"] is not None:
            known = row.get("ci_low") is not None and row.get("ci_high") is not None
            half = (row["ci_high"] - row["ci_low"]) / 2 if known else None
            cells.setdefault(str(row["recommender"]), {})[str(row["metric"])] = float(row["value"]), half
    return cells


def _config(run: RunData) -> dict[str, Any]:
    try:
        config = yaml.safe_load(run.config)
    except yaml.YAMLError as error:
        raise RunDirectoryError(f"{run.folder / 'config.yaml'}: damaged; expected YAML") from error
    return config if isinstance(config, dict) else {}


def _leaves(config: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in config.items():
        name = f"{above}{key}"
        if name not in NO_OPTIONS:
            found += _leaves(value, f"{name}.") if isinstance(value, Mapping) and value else [(name, value)]
    return found


def _distinct(option: Option) -> set[str]:
    return {json.dumps(value, sort_keys=True, default=str) for value in option.values.values()}


def _by_number(name: str) -> tuple[int, str]:
    """Sweeps number their runs: 2 comes before 10."""
    return (int(name), name) if name.isdigit() and name.isascii() else (-1, name)
