"""Figures for notebooks and the report: plain functions from polars frames to matplotlib figures."""

import os

# A notebook's choice of backend: none is needed here, and one that is not installed stops the import of matplotlib.
_backend = os.environ.pop("MPLBACKEND", None)
import matplotlib as _matplotlib  # noqa: F401

if _backend is not None:
    os.environ["MPLBACKEND"] = _backend

from simenv.figures.comparisons import (
    plot_accuracy_bias,
    plot_against_option,
    plot_amp_forest,
    plot_group_heatmap,
    plot_rank_stability,
    plot_tradeoff,
)
from simenv.figures.log import (
    count_exposure,
    plot_exposure_quality,
    plot_genre_stream,
    plot_item_stability,
    plot_lift_against_history,
    plot_lorenz,
    plot_popularity_by_rank,
)
from simenv.figures.over_rounds import (
    metric_series,
    plot_amplification,
    plot_calibration,
    plot_codes,
    plot_concentration,
    plot_engagement,
    plot_homogeneity,
    plot_loop_against_controls,
    plot_metric_over_rounds,
    plot_metric_panels,
    plot_runs,
)

__all__ = [
    "count_exposure",
    "metric_series",
    "plot_accuracy_bias",
    "plot_against_option",
    "plot_amp_forest",
    "plot_amplification",
    "plot_calibration",
    "plot_codes",
    "plot_concentration",
    "plot_engagement",
    "plot_exposure_quality",
    "plot_genre_stream",
    "plot_group_heatmap",
    "plot_homogeneity",
    "plot_item_stability",
    "plot_lift_against_history",
    "plot_loop_against_controls",
    "plot_lorenz",
    "plot_metric_over_rounds",
    "plot_metric_panels",
    "plot_popularity_by_rank",
    "plot_rank_stability",
    "plot_runs",
    "plot_tradeoff",
]
