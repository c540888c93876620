"""How well synthetic worlds fit the marginals of MovieLens-100K: a table, and docs/figures/synthetic_fit.png.

    python benchmarks/synthetic_fit.py                       # three seeds of a world of 943 x 1,682
    python benchmarks/synthetic_fit.py --seeds 5 --out fit.png

The targets are the aggregates in `simenv.datasets.marginals`; no data file is read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from simenv.datasets import Dataset, synthetic
from simenv.datasets.marginals import ML_100K, QUANTILE_LEVELS, Marginals, measure
from simenv.metrics.formulas import spearman

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "synthetic_fit.png"
FITTED, TARGET = "#0072b2", "#222222"
SCALARS = {
    "interactions per user, mean": "mean_activity",
    "density": "density",
    "Gini of interactions per item": "item_gini",
    "share of the top 1 % of items": "top1_share",
    "share of the top 10 %": "top10_share",
    "items that hold 80 %, share": "head_share",
    "rating, mean": "rating_mean",
    "SD of users' mean rating": "user_mean_sd",
    "SD of items' mean rating (20+)": "item_mean_sd",
    "Spearman of count and mean rating (20+)": "count_rating_spearman",
}


def utility(world: Dataset) -> np.ndarray:
    assert world.tastes is not None
    return np.asarray(1 / (1 + np.exp(-world.tastes.choice.scores(np.arange(min(world.n_users, 1000))))))


def matched_auc(world: Dataset, n_users: int = 300) -> float:
    """Mean over users of AUC of the true choice score: consumed items against unconsumed ones of nearest popularity."""
    assert world.tastes is not None
    log = world.interactions
    by_popularity = np.argsort(log.item_counts(), kind="stable")
    place = np.empty_like(by_popularity)
    place[by_popularity] = np.arange(len(place))
    areas = []
    for user in range(min(n_users, world.n_users)):
        mine = log.items[log.users == user]
        others = np.sort(place[np.setdiff1d(np.arange(world.n_items), mine)])
        matched = by_popularity[others[np.clip(np.searchsorted(others, place[mine]), 0, len(others) - 1)]]
        scores = world.tastes.choice.scores(np.array([user]))[0]
        areas.append((scores[mine][:, None] > scores[matched]).mean())
    return float(np.mean(areas))


def table(fits: list[Marginals], defaults: list[Marginals]) -> Table:
    made = Table(title=f"MovieLens-100K and synthetic worlds, mean of {len(fits)} seeds")
    for name in ("marginal", "target", "943 x 1,682", "500 x 1,000 (default)"):
        made.add_column(name, justify="left" if name == "marginal" else "right")
    rows = {name: [getattr(m, field) for m in (ML_100K, *fits, *defaults)] for name, field in SCALARS.items()}
    for stars in range(5):
        rows[f"share of rating {stars + 1}"] = [m.rating_shares[stars] for m in (ML_100K, *fits, *defaults)]
    for name, (target, *found) in rows.items():
        means = (np.mean(found[: len(fits)]), np.mean(found[len(fits) :]))
        made.add_row(name, f"{target:.3f}", *(f"{value:.3f}" for value in means))
    return made


def truth(worlds: list[Dataset]) -> Table:
    made = Table(title=f"The truth in the default world, mean of {len(worlds)} seeds")
    made.add_column("quantity")
    made.add_column("value", justify="right")
    matrices = [utility(world) for world in worlds]
    counts = [world.interactions.item_counts() for world in worlds]
    qualities = [world.catalog.quality for world in worlds]
    for name, values in {
        "mean utility": [u.mean() for u in matrices],
        "utility of a user's best 10": [np.sort(u, axis=1)[:, -10:].mean() for u in matrices],
        "Spearman of popularity and quality": [spearman(q, c) for q, c in zip(qualities, counts)],
        "Spearman of popularity and mean utility": [spearman(u.mean(axis=0), c) for u, c in zip(matrices, counts)],
        "AUC of true choice, popularity-matched": [matched_auc(world) for world in worlds],
    }.items():
        made.add_row(name, f"{np.mean(values):.3f}")
    return made


def quantiles(axes: Axes, fits: list[Marginals], field: str, title: str, unit: str) -> None:
    """Quantiles at the levels of the target: a line with the seeds' range against the target's points."""
    levels = np.array(QUANTILE_LEVELS) * 100
    found = np.array([getattr(m, field) for m in fits])
    axes.fill_between(levels, found.min(axis=0), found.max(axis=0), color=FITTED, alpha=0.25, lw=0)
    axes.plot(levels, found.mean(axis=0), color=FITTED, lw=2, label="synthetic")
    axes.plot(levels, getattr(ML_100K, field), "o", color=TARGET, ms=5, mfc="none", label="MovieLens-100K")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_yticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1,000"])
    axes.set_ylim(0, 1000)
    axes.set_title(title, loc="left")
    axes.set_xlabel(f"percentile of {unit}")
    axes.set_ylabel("interactions")


def pairs(axes: Axes, fits: list[Marginals], names: list[str], values: list[list[float]], title: str) -> None:
    """Bars of the synthetic mean with the seeds' range beside bars of the target; values[0] is the target."""
    x = np.arange(len(names))
    found = np.array(values[1:])
    mean = found.mean(axis=0)
    bounds = np.abs(np.stack([mean - found.min(axis=0), found.max(axis=0) - mean]))
    axes.bar(x - 0.2, values[0], 0.38, color="white", ec=TARGET, lw=1.2, label="MovieLens-100K")
    axes.bar(x + 0.2, mean, 0.38, yerr=bounds, color=FITTED, ecolor=TARGET, label="synthetic")
    axes.set_xticks(x, names)
    axes.set_title(title, loc="left")


def figure(fits: list[Marginals], path: Path) -> None:
    everyone = [ML_100K, *fits]
    canvas, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    quantiles(axes[0, 0], fits, "item_count_quantiles", "Popularity of items", "items")
    quantiles(axes[0, 1], fits, "activity_quantiles", "Activity of users", "users")
    shares = [list(m.rating_shares) for m in everyone]
    pairs(axes[1, 0], fits, ["1", "2", "3", "4", "5"], shares, "Ratings")
    axes[1, 0].set_ylabel("share of ratings")
    fields = ["item_gini", "top1_share", "top10_share", "head_share", "user_mean_sd", "item_mean_sd"]
    names = [
        "Gini\nof items",
        "top 1 %\nholds",
        "top 10 %\nholds",
        "80 % held\nby",
        "SD, user\nmeans",
        "SD, item\nmeans",
    ]
    pairs(axes[1, 1], fits, names, [[getattr(m, field) for field in fields] for m in everyone], "Inequality and spread")
    axes[1, 1].tick_params(axis="x", labelsize=8)
    for each in axes.flat:
        each.spines[["top", "right"]].set_visible(False)
        each.legend(frameon=False, fontsize=9)
    canvas.suptitle(
        f"Synthetic worlds (943 x 1,682, {len(fits)} seeds) against their calibration targets", x=0.01, ha="left"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=FIGURE)
    options = parser.parse_args()
    seeds = range(options.seeds)
    fits = [measure(synthetic(n_users=ML_100K.n_users, n_items=ML_100K.n_items, seed=seed)) for seed in seeds]
    defaults = [synthetic(seed=seed) for seed in seeds]
    console = Console()
    console.print(table(fits, [measure(world) for world in defaults]))
    console.print(truth(defaults))
    figure(fits, options.out)
    console.print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
