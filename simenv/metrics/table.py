"""The metrics of `metrics.csv`: the `Metric` protocol, the table of them, and the rows of a run.

`METRICS` binds the functions of `simenv.metrics.formulas` to the columns of `Events` and to the round-0 `Reference`.
The module does not know how events came about, nor what is compared with what: differences between arms, groups and
rounds are in `simenv.metrics.comparisons`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simenv.errors import DataError
from simenv.events import Events
from simenv.metrics.formulas import (
    coverage,
    ctr,
    entropy,
    genre_kl,
    gini,
    ild,
    mean,
    pair_jaccards,
    ranking_accuracy,
    regret,
    sorted_by,
    spearman,
)
from simenv.metrics.reference import Group, Reference

JACCARD_ROUNDS = 5
ACCURACY_K = 10


class Metric(Protocol):
    """A pure function of the events of one group of users. Satisfy it and pass it to `metric_rows`."""

    @property
    def name(self) -> str:
        """The word in the `metric` column."""

    @property
    def window(self) -> int:
        """How many rounds of events it sees, the current one included."""

    def __call__(self, events: Events, reference: Reference, group: Group) -> float | None:
        """The value: NaN = undefined in this round, None = does not apply to this data set (makes no row).

        Args:
            events: those of the group's users, in rounds (t - window, t], oldest round first; may be empty.
            reference: what was fixed at round 0.
            group: the users measured, and their pairs.
        """


@dataclass(frozen=True, slots=True)
class EventMetric:
    """A named function that satisfies `Metric`."""

    name: str
    compute: Callable[[Events, Reference, Group], float | None]
    window: int = 1

    def __call__(self, events: Events, reference: Reference, group: Group) -> float | None:
        return self.compute(events, reference, group)


class MetricRow(NamedTuple):
    """One line of `metrics.csv`."""

    seed: int
    arm: str
    mode: str
    round: int
    group: str
    metric: str
    value: float  # NaN = undefined


def _impressions(events: Events, reference: Reference) -> NDArray[np.int64]:
    return np.bincount(events.item, minlength=reference.n_items)


def _slates(events: Events) -> NDArray[np.int64]:
    return events.user.astype(np.int64) << 16 | events.page


def _share_on(mask: NDArray[np.bool_], events: Events) -> float:
    return ctr(mask[events.item])


def _regret(events: Events) -> float:
    return regret(events.user, _slates(events), events.item, events.true_utility, events.best_utility)


def _genre_kl(events: Events, reference: Reference) -> float | None:
    if not reference.genres.any():
        return None
    clicked = np.flatnonzero(events.clicked)
    return genre_kl(events.user[clicked], events.item[clicked], reference.profile, reference.genre_weights)


def clicked_jaccards(events: Events, reference: Reference, group: Group) -> NDArray[np.float64]:
    """`pair_jaccards` of the clicked items, over the group's fixed pairs."""
    rows = np.flatnonzero(events.clicked)
    return pair_jaccards(events.user[rows], events.item[rows], group.pairs, reference.n_users)


def _accuracy(events: Events, reference: Reference) -> tuple[float, float] | tuple[None, None]:
    if reference.holdout_starts is None or reference.holdout_items is None:
        return None, None
    positions = events.page.astype(np.int64) << 15 | events.rank
    return ranking_accuracy(
        events.user, positions, events.item, (reference.holdout_starts, reference.holdout_items), ACCURACY_K
    )


METRICS: tuple[Metric, ...] = (
    EventMetric("ctr", lambda e, ref, g: ctr(e.clicked)),
    EventMetric("mean_rating", lambda e, ref, g: mean(e.rating)),
    EventMetric("true_utility", lambda e, ref, g: mean(e.true_utility)),
    EventMetric("regret", lambda e, ref, g: _regret(e)),
    EventMetric("arp_pct", lambda e, ref, g: mean(e.popularity0_pct)),
    EventMetric("log_lift", lambda e, ref, g: mean(ref.log_lift[e.item])),
    EventMetric("top1_share", lambda e, ref, g: _share_on(ref.top, e)),
    EventMetric("tail_share", lambda e, ref, g: _share_on(ref.tail, e)),
    EventMetric("coverage", lambda e, ref, g: coverage(_impressions(e, ref))),
    EventMetric("gini", lambda e, ref, g: gini(_impressions(e, ref))),
    EventMetric("entropy", lambda e, ref, g: entropy(_impressions(e, ref))),
    EventMetric("jaccard", lambda e, ref, g: mean(clicked_jaccards(e, ref, g)), window=JACCARD_ROUNDS),
    EventMetric("ild", lambda e, ref, g: ild(_slates(e), e.item, ref.genre_bits) if ref.genres.any() else None),
    EventMetric("genre_kl", lambda e, ref, g: _genre_kl(e, ref)),
    EventMetric(f"ndcg@{ACCURACY_K}", lambda e, ref, g: _accuracy(e, ref)[0]),
    EventMetric(f"recall@{ACCURACY_K}", lambda e, ref, g: _accuracy(e, ref)[1]),
    EventMetric(
        "exposure_merit",
        lambda e, ref, g: None if ref.quality is None else spearman(_impressions(e, ref), ref.quality),
    ),
)


def metric_rows(
    events: Events,
    reference: Reference,
    metrics: Sequence[Metric] = METRICS,
    *,
    seed: int,
    arm: str,
    mode: str,
    rounds: Sequence[int] | None = None,
) -> list[MetricRow]:
    """Every metric of every group in every round, in the order round, group, metric.

    Args:
        events: the impressions of one (seed, arm, mode), in any order of rounds. Memory is this log plus one
            group's copy of it: a very long run is measured a round at a time, with the rounds of the longest window
            before it.
        reference: what was fixed at round 0.
        metrics: any `Metric`s.
        seed: copied into the rows.
        arm: copied into the rows.
        mode: copied into the rows.
        rounds: rounds to report; default: those in `events`. A round in which a group saw nothing is NaN.

    Raises:
        DataError: an event names a user or an item that the reference does not have.
    """
    _check_range("users", events.user, reference.n_users)
    _check_range("items", events.item, reference.n_items)
    if rounds is None:
        rounds = np.unique(events.round).tolist()
    (order,) = sorted_by(events.round, np.arange(len(events)))
    windows = sorted({metric.window for metric in metrics})
    rows: list[MetricRow] = []
    for group in reference.groups.values():
        part = events.take(order if group.is_everyone else order[group.users[events.user[order]]])
        for t in rounds:
            seen = {w: part.take(slice(*np.searchsorted(part.round, (t - w + 1, t + 1)))) for w in windows}
            for metric in metrics:
                value = metric(seen[metric.window], reference, group)
                if value is not None:
                    rows.append(MetricRow(seed, arm, mode, int(t), group.name, metric.name, float(value)))
    return sorted(rows, key=lambda row: row.round)


def _check_range(name: str, values: NDArray[Any], size: int) -> None:
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < size:
        raise DataError(f"events: {name} lie in [{values.min()}, {values.max()}]; expected [0, {size - 1}]")
