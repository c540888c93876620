"""What replications of published results share: targets with a verdict, and their table.

A replication computes its targets from its run directory's files. A target that fails is reported as failed. The module
does not know any paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from experiments.running.course import Run
from simenv.conclusions.statistics import Interval, paired_t

if TYPE_CHECKING:
    from simenv.events import Events


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One published result beside ours.

    Attributes:
        name: short, unique in its experiment.
        target: what the paper found, in words, with the pass criterion.
        published: the published figure, where there is one.
        ours: our estimate with its 95 % interval over replicates.
        passed: whether the criterion is met; None = a figure without one.
    """

    name: str
    target: str
    published: float | None
    ours: Interval
    passed: bool | None


def interval(values: ArrayLike | Interval) -> Interval:
    """An Interval as it is; values (S,), one per replicate, as their mean with Student's t interval."""
    return values if isinstance(values, Interval) else paired_t(values)


def above(
    name: str, target: str, values: ArrayLike | Interval, *, bound: float = 0.0, published: float | None = None
) -> Target:
    """Passes where the whole interval lies above `bound`; the estimate, where one replicate has no interval."""
    ours = interval(values)
    low = ours.low if np.isfinite(ours.low) else ours.estimate
    return Target(name=name, target=target, published=published, ours=ours, passed=bool(low > bound))


def below(
    name: str, target: str, values: ArrayLike | Interval, *, bound: float = 0.0, published: float | None = None
) -> Target:
    """Passes where the whole interval lies below `bound`; the estimate, where one replicate has no interval."""
    ours = interval(values)
    high = ours.high if np.isfinite(ours.high) else ours.estimate
    return Target(name=name, target=target, published=published, ours=ours, passed=bool(high < bound))


def within(
    name: str, target: str, values: ArrayLike | Interval, *, bound: float, published: float | None = None
) -> Target:
    """Passes where the whole interval lies between -`bound` and `bound`."""
    low, high = (side(name, target, values, bound=b) for side, b in ((above, -bound), (below, bound)))
    return Target(name=name, target=target, published=published, ours=low.ours, passed=bool(low.passed and high.passed))


def reported(name: str, target: str, values: ArrayLike | Interval, *, published: float | None = None) -> Target:
    """A figure to compare by eye: the paper states no criterion."""
    return Target(name=name, target=target, published=published, ours=interval(values), passed=None)


def write_targets(run: Run, targets: Sequence[Target]) -> None:
    """`tables/replication.csv`: name, target, published, ours, ci_low, ci_high, passed (true, false or empty)."""
    run.table(
        "replication",
        [
            {
                "name": t.name,
                "target": t.target,
                "published": t.published,
                "ours": t.ours.estimate,
                "ci_low": t.ours.low,
                "ci_high": t.ours.high,
                "passed": t.passed,
            }
            for t in targets
        ],
        {"published": "Float64", "passed": "Boolean"},
    )


def consumed(folder: Path, seed: int, arm: str, mode: str) -> Events:
    """The clicks of one job, in the order they happened."""
    from simenv.events import read_events

    events = read_events(folder, seed=seed, arm=arm, mode=mode)
    return events.take(np.flatnonzero(events.clicked))
