"""Figures in a notebook: plain functions from the frames of a run to matplotlib figures.

    python examples/notebook_figures.py             # plays a small run of its own first
    python examples/notebook_figures.py RUN_DIR     # a run directory

In a notebook, the figure that a function returns is shown by itself; here they are saved.
"""

import sys
import tempfile
from pathlib import Path

import polars as pl

from simenv import figures
from simenv.metrics.frame import read_metrics


def main(run: Path, out: Path) -> None:
    metrics = read_metrics(run)
    events = pl.scan_parquet(run / "events" / "**" / "*.parquet")  # lazy: a long log is never held in memory
    items = pl.read_parquet(run / "items.parquet")

    lorenz = figures.plot_lorenz(events)
    by_rank = figures.plot_popularity_by_rank(events, last_rounds=2)
    genres = figures.plot_genre_stream(events, items)

    popularity = figures.plot_loop_against_controls(metrics, "arp_pct")
    popularity.suptitle("Popularity of what is shown")  # a figure is a matplotlib Figure: go on with it as you like

    gini = figures.plot_metric_over_rounds(metrics, "gini")
    gini.axes[0].set_ylim(0, 1)

    for name, figure in {
        "lorenz": lorenz,
        "by_rank": by_rank,
        "genres": genres,
        "popularity": popularity,
        "gini": gini,
    }.items():
        figure.savefig(out / f"{name}.png")
        print(out / f"{name}.png")


if __name__ == "__main__":
    out = Path(tempfile.mkdtemp(prefix="simenv-figures-"))
    if len(sys.argv) > 1:
        run = Path(sys.argv[1])
    else:
        from experiments.comparison import compare

        run = out / "run"
        compare(
            ["popularity", "als"], modes=["loop", "frozen"], rounds=4, n_users=60, n_items=120, n_seeds=2, folder=run
        )
    main(run, out)
