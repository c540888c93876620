"""``simenv watch RUN``: a page of a running experiment, written anew as rounds end, until the run is complete.

The page is a file that reloads itself; there is no server. All of it is read from the run directory: progress and
checkpoints of the run's own processes, and what its language models have spent. The module does not know how a run
is made.
"""

from __future__ import annotations

import argparse
import json
import math
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl

from simenv.errors import DataError, RunDirectoryError
from simenv.files import COMPLETE
from simenv.metrics.frame import schema

PROGRESS = Path("checkpoint") / "progress.json"  # rounds, total, played, steps, seconds, time: see the run's processes
BUDGETS = {"users": "llm-budget.sqlite", "recommenders": "recommender-llm-budget.sqlite"}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="simenv watch", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="RUN", help="directory of a running experiment")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two looks (default: 2)")
    parser.add_argument("--once", action="store_true", help="write the page once, and end")
    options = parser.parse_args(argv)
    if not options.every > 0:
        print(f"error: --every={options.every}: expected seconds above 0", file=sys.stderr)
        return 2
    last = None
    while True:
        state = _state(options.folder)
        if state != last:
            page = write_page(options.folder, state, every=None if options.once else options.every)
            if last is None:
                print(page, flush=True)
            last = state
        if options.once or state["complete"]:
            return 0
        time.sleep(options.every)


def write_page(folder: Path, state: dict[str, Any] | None = None, *, every: float | None = None) -> Path:
    """Write `watch.html` of a run directory; returns its path.

    Args:
        folder: the run directory.
        state: what is known of the run; None = as it is now.
        every: seconds after which an open page reloads itself while the run goes on; None = never.

    Raises:
        RunDirectoryError: `folder` holds no run, or the page cannot be written.
    """
    from simenv.figures import plot_metric_over_rounds
    from simenv.figures.style import png_bytes
    from simenv.report.page import render, write_files
    from simenv.report.views import figure_view

    state = state or _state(folder)
    figure = None
    measured = _metrics_so_far(folder)
    if measured is not None and (measured["metric"] == "arp_pct").any() and measured["round"].n_unique() > 1:
        jobs = measured.select("seed", "arm", "mode").unique().height
        caption = (
            f"Popularity percentile of what was shown, per round, from the {jobs} jobs that have saved any so far. "
            "Means and bands change as further seeds come in: nothing is concluded from an unfinished run."
        )
        try:
            png = png_bytes(plot_metric_over_rounds(measured))
            figure = figure_view("So far", caption, "Line chart of the popularity percentile per round so far.", png)
        except DataError:  # no value in any round yet
            figure = None
    again = every is not None and not state["complete"]
    shown = {
        "title": f"Run {folder.resolve().name}",
        "state": state,
        "figure": figure,
        "again": math.ceil(every) if again and every else None,
    }
    page = folder / "watch.html"
    write_files({page: render("watch.html.j2", shown, scripts=["reload.js"] if again else []).encode()})
    return page


def _state(folder: Path) -> dict[str, Any]:
    """What a run directory tells of its course."""
    if not (folder / "config.yaml").is_file():
        raise RunDirectoryError(f"{folder}: not a run directory; expected the config.yaml of a run that has begun")
    state: dict[str, Any] = {
        "complete": (folder / COMPLETE).is_file(),
        "page": "report.html" if (folder / "report.html").is_file() else None,
        "spent": _spent(folder),
        "progress": None,
    }
    try:
        told = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return state  # no round has ended yet, or all is over
    left = told["total"] - told["rounds"]
    known = told["played"] > 0 and told["seconds"] > 0
    state["progress"] = {
        **told,
        "share": told["rounds"] / told["total"] if told["total"] else 1.0,
        "rounds_per_s": told["played"] / told["seconds"] if known else None,
        "steps_per_s": told["steps"] / told["seconds"] if known else None,
        "eta": _duration(left * told["seconds"] / told["played"]) if known else None,
        "elapsed": _duration(told["seconds"]),
        "at": time.strftime("%H:%M:%S", time.localtime(told["time"])),
    }
    return state


def _spent(folder: Path) -> list[dict[str, Any]]:
    """Calls, tokens and dollars of the language models so far, by who asks them."""
    found = []
    for who, name in BUDGETS.items():
        if (folder / name).is_file():
            try:
                address = f"{(folder / name).resolve().as_uri()}?mode=ro"
                with closing(sqlite3.connect(address, uri=True, timeout=10)) as file:
                    row = file.execute("SELECT calls, tokens, dollars FROM spending").fetchone()
            except sqlite3.OperationalError:  # made this moment, its table is not there yet
                continue
            if row is not None:
                found.append({"who": who, "calls": round(row[0]), "tokens": round(row[1]), "dollars": row[2]})
    return found


def _metrics_so_far(folder: Path) -> pl.DataFrame | None:
    """The metrics of finished jobs and of the checkpoints of the others."""
    rows: list[list[Any]] = []
    for job in sorted((folder / "checkpoint").glob("*/")):
        saved = [job / "metrics.json", *sorted(job.glob("round-*/rows.json"), reverse=True)]
        for path in saved:
            try:
                rows += json.loads(path.read_text(encoding="utf-8"))
                break
            except FileNotFoundError:  # not yet, or replaced by a newer one this moment
                continue
    if not rows:
        return None
    frame = pl.DataFrame(rows, schema=schema(), orient="row", infer_schema_length=None)
    return frame.with_columns(pl.col("value").fill_nan(None))


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
