"""User-side fairness from a run's metrics: how far groups of users differ in what they get.

Works on the tidy table alone; groups are the words of its `group` column (`gender=F`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simenv.conclusions.statistics import paired_t
from simenv.metrics.frame import series

if TYPE_CHECKING:
    import polars as pl


def group_gaps(metrics: pl.DataFrame, metric: str = "true_utility", last_rounds: int = 5) -> list[dict[str, Any]]:
    """Largest minus smallest group mean of `metric`, by arm, mode and attribute, over the last rounds.

    The gap of a seed is that between its own best and worst served group, so it is never negative: between equal groups
    it is noise, not 0. `best` and `worst` are the groups with the highest and the lowest mean over seeds; `value` is
    their paired difference, whose interval says whether they differ.

    Args:
        metrics: the tidy table of one run.
        metric: what is compared.
        last_rounds: how many rounds are averaged.

    Returns:
        One row per (arm, mode, attribute) with two or more groups: arm, mode, attribute, metric, best, worst, gap (mean
        over seeds of max - min), value (best - worst), ci_low, ci_high.
    """
    import polars as pl

    attributes: dict[str, list[str]] = {}
    for group in sorted(metrics["group"].unique().to_list()):
        if "=" in group:
            attributes.setdefault(group.split("=", 1)[0], []).append(group)
    rows = []
    table = metrics.filter(pl.col("metric") == metric)
    for arm, mode in table.select("arm", "mode").unique(maintain_order=True).iter_rows():
        for attribute, groups in attributes.items():
            values = {}
            for group in groups:
                per_round = series(metrics, arm, mode, metric, group)[:, -last_rounds:]
                values[group] = np.nanmean(per_round, axis=1)  # (seeds,)
            if len(values) < 2:
                continue
            order = sorted(values, key=lambda group: float(values[group].mean()))
            worst, best = order[0], order[-1]
            ours = paired_t(values[best] - values[worst])
            every = np.array(list(values.values()))
            rows.append(
                {
                    "arm": arm,
                    "mode": mode,
                    "attribute": attribute,
                    "metric": metric,
                    "best": best,
                    "worst": worst,
                    "gap": float(np.mean(every.max(axis=0) - every.min(axis=0))),
                    "value": ours.estimate,
                    "ci_low": ours.low,
                    "ci_high": ours.high,
                }
            )
    return rows
