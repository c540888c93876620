"""Popularity bias as the papers measure it: lift by user, gap by group, deviation of popularity bins.

    python examples/notebook_bias.py

Everything is computed from the events of a run and the warm start that came before it; popularity is frozen there.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from experiments import compare
from simenv.datasets.synthetic import synthetic
from simenv.metrics.comparisons import bin_shares, delta_gap, gap, lift_slope, popularity_deviation, popularity_lift
from simenv.metrics.comparisons import user_means as means
from simenv.metrics.reference import popularity_sets


def main(n_users: int = 200, n_items: int = 300, rounds: int = 5) -> dict[str, dict[str, float]]:
    """The figures of each arm, printed and returned."""
    world = synthetic(n_users=n_users, n_items=n_items, seed=0)
    played = compare(["popularity", "itemknn"], dataset=world, references=("random",), rounds=rounds)
    log, n = world.interactions, world.n_users
    counts = log.item_counts()
    share, (bins, _) = counts / counts.sum(), popularity_sets(counts)
    history = np.bincount(log.users, minlength=n)
    heavy = history > np.quantile(history, 0.8)
    profile = means(share[log.items], log.users, n)
    found: dict[str, dict[str, float]] = {}
    for (arm,), events in played.events.filter(pl.col("round") == rounds - 1).group_by("arm", maintain_order=True):
        users, items = events["user"].to_numpy(), events["item"].to_numpy()
        lift = popularity_lift(profile, means(share[items], users, n))
        gaps = {
            name: delta_gap(gap(share, log.users, log.items, group), gap(share, users, items, group))
            for name, group in (("light", ~heavy), ("heavy", heavy))
        }
        shares = bin_shares(bins, log.users, log.items, n), bin_shares(bins, users, items, n)
        found[str(arm)] = {
            "lift (mean over users)": float(np.nanmean(lift)),
            "slope on log history": lift_slope(lift, history),
            "delta-GAP, light users": gaps["light"],
            "delta-GAP, heavy users": gaps["heavy"],
            "deviation of bins (UPD)": popularity_deviation(*shares, [~heavy, heavy]),
        }
        print(arm, {name: round(value, 3) for name, value in found[str(arm)].items()})
    return found


if __name__ == "__main__":
    main()
