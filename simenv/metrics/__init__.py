"""What is measured: the table of metrics, their formulas, and what they are held against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simenv.faces import lazy

if TYPE_CHECKING:
    from simenv.metrics.table import METRICS, Metric, MetricSpec, metric_rows

__all__ = ["METRICS", "Metric", "MetricSpec", "metric_rows"]

__getattr__ = lazy(
    __name__,
    {
        "METRICS": "simenv.metrics.table",
        "Metric": "simenv.metrics.table",
        "MetricSpec": "simenv.metrics.table",
        "metric_rows": "simenv.metrics.table",
    },
)
