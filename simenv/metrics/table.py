"""The metrics of `metrics.csv`: the `Metric` protocol, the record of each, and the rows of a run.

`METRICS` holds one record a metric: labels, margins, claims and the bounds of the tests are read from it. The module
does not know how events came about, nor what is compared with what (`simenv.metrics.comparisons`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from simenv.checks import number, whole
from simenv.errors import ConfigError, DataError
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


@runtime_checkable
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


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """All that is known of one metric: how it is computed, named, read and judged. Satisfies `Metric`.

    Attributes:
        name: the word in the `metric` column.
        compute: (events, reference, group) -> value, as `Metric.__call__`.
        window: rounds of events it sees. Of the rounds before the current one, clicks alone.
        label: the words on an axis; default: the name.
        unit: what one of it is; empty = a share or another pure number.
        bounds: the smallest and the largest value there can be.
        wanted: which way is usually wanted; `context` = neither.
        kind: of the claims about it, the first part of their names (`users:als:ctr:frozen`); None = no claims.
        controls: the modes that these claims compare the loop with.
        quantity: what it says of an arm, in a sentence, with `{arm}` or `{slates}`; default: the label.
        oracle_kind: of the claim that compares its last round with the oracle's; None = no such claim.
        oracle_quantity: what it says in that claim, where the arm is named already.
        margin: the largest effect on it that counts as none, in its unit, unless a run says otherwise.
    """

    name: str
    compute: Callable[[Events, Reference, Group], float | None]
    window: int = 1
    label: str = ""
    unit: str = ""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    wanted: Literal["up", "down", "context"] = "context"
    kind: str | None = None
    controls: tuple[str, ...] = ("frozen",)
    quantity: str = ""
    oracle_kind: str | None = None
    oracle_quantity: str = ""
    margin: float | None = None

    def __post_init__(self) -> None:
        if not self.name or not callable(self.compute):
            raise ConfigError(f"metric {self.name!r}: expected a name and a function (events, reference, group)")
        whole(f"metric {self.name}: window", self.window, 1)
        number(f"metric {self.name}: margin", self.margin, 0, open_low=True, none=True)

    def __call__(self, events: Events, reference: Reference, group: Group) -> float | None:
        return self.compute(events, reference, group)


def spec_of(metric: Metric | Callable[[Events, Reference, Group], float | None]) -> MetricSpec:
    """The record of a metric, of another object that satisfies `Metric`, or of a plain function, named as it is.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(metric, MetricSpec):
        return metric
    if isinstance(metric, Metric):
        return MetricSpec(name=metric.name, compute=metric, window=metric.window)
    name = getattr(metric, "__name__", "")
    if not callable(metric) or not name:
        raise ConfigError(f"metrics: got {metric!r}; expected a function (events, reference, group) or a MetricSpec")
    return MetricSpec(name=name, compute=metric)


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


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec(
        name="ctr",
        compute=lambda e, ref, g: ctr(e.clicked),
        label="click-through rate",
        bounds=(0, 1),
        wanted="up",
        kind="users",
        quantity="the click-through rate of {slates}",
        margin=0.01,
    ),
    MetricSpec(
        name="mean_rating",
        compute=lambda e, ref, g: mean(e.rating),
        label="mean rating",
        unit="rating scale",
        wanted="up",
    ),
    MetricSpec(
        name="true_utility",
        compute=lambda e, ref, g: mean(e.true_utility),
        label="utility of what was shown",
        bounds=(0, 1),
        wanted="up",
        kind="users",
        quantity="the true utility of {slates}",
        margin=0.01,
    ),
    MetricSpec(
        name="regret",
        compute=lambda e, ref, g: _regret(e),
        label="regret",
        bounds=(-math.inf, 1),
        wanted="down",
    ),
    MetricSpec(
        name="arp_pct",
        compute=lambda e, ref, g: mean(e.popularity0_pct),
        label="popularity percentile",
        bounds=(0, 1),
        wanted="down",
        kind="amplification",
        controls=("organic", "frozen"),
        quantity="the popularity percentile of {slates}",
        margin=0.01,
    ),
    MetricSpec(
        name="log_lift",
        compute=lambda e, ref, g: mean(ref.log_lift[e.item]),
        label="log popularity lift",
        unit="nats",
        wanted="down",
        kind="amplification",
        controls=("organic", "frozen"),
        quantity="the log popularity lift of {slates}",
        margin=0.05,
    ),
    MetricSpec(
        name="top1_share",
        compute=lambda e, ref, g: _share_on(ref.top, e),
        label="share of top 1 % items",
        bounds=(0, 1),
        wanted="down",
    ),
    MetricSpec(
        name="tail_share",
        compute=lambda e, ref, g: _share_on(ref.tail, e),
        label="tail share",
        bounds=(0, 1),
        wanted="up",
        kind="exposure",
        controls=("frozen", "exogenous"),
        quantity="the share of tail items in {slates}",
        margin=0.01,
    ),
    MetricSpec(
        name="coverage",
        compute=lambda e, ref, g: coverage(_impressions(e, ref)),
        label="coverage",
        bounds=(0, 1),
        wanted="up",
        kind="exposure",
        controls=("frozen", "exogenous"),
        quantity="the share of the catalogue that {arm} shows",
        margin=0.02,
    ),
    MetricSpec(
        name="gini",
        compute=lambda e, ref, g: gini(_impressions(e, ref)),
        label="Gini of exposure",
        bounds=(0, 1),
        wanted="down",
        kind="exposure",
        controls=("frozen", "exogenous"),
        quantity="the Gini of exposure under {arm}",
        margin=0.02,
    ),
    MetricSpec(
        name="entropy",
        compute=lambda e, ref, g: entropy(_impressions(e, ref)),
        label="entropy of exposure (nats)",
        unit="nats",
        bounds=(0, math.inf),
        wanted="up",
    ),
    MetricSpec(
        name="jaccard",
        compute=lambda e, ref, g: mean(clicked_jaccards(e, ref, g)),
        window=JACCARD_ROUNDS,
        label="overlap of users (Jaccard)",
        bounds=(0, 1),
        kind="homogenisation",
        quantity="the overlap of what pairs of {arm} users click",
        oracle_kind="homogenisation",
        oracle_quantity="the overlap of what pairs of users click",
        margin=0.01,
    ),
    MetricSpec(
        name="ild",
        compute=lambda e, ref, g: ild(_slates(e), e.item, ref.genre_bits) if ref.genres.any() else None,
        label="genre distance in a slate",
        bounds=(0, 1),
        wanted="up",
    ),
    MetricSpec(
        name="genre_kl",
        compute=lambda e, ref, g: _genre_kl(e, ref),
        label="genre miscalibration (KL)",
        unit="nats",
        bounds=(0, math.log(100)),
        wanted="down",
        kind="calibration",
        quantity="the miscalibration of clicked genres under {arm}",
        margin=0.05,
    ),
    MetricSpec(
        name=f"ndcg@{ACCURACY_K}",
        compute=lambda e, ref, g: _accuracy(e, ref)[0],
        label=f"NDCG@{ACCURACY_K}",
        bounds=(0, 1),
        wanted="up",
    ),
    MetricSpec(
        name=f"recall@{ACCURACY_K}",
        compute=lambda e, ref, g: _accuracy(e, ref)[1],
        label=f"recall@{ACCURACY_K}",
        bounds=(0, 1),
        wanted="up",
    ),
    MetricSpec(
        name="exposure_merit",
        compute=lambda e, ref, g: None if ref.quality is None else spearman(_impressions(e, ref), ref.quality),
        label="exposure-quality Spearman",
        bounds=(-1, 1),
        wanted="up",
        oracle_kind="merit",
        oracle_quantity="the rank correlation of exposure and quality",
        margin=0.05,
    ),
)
BY_NAME = {metric.name: metric for metric in METRICS}
CODE_LABELS = {"code_gini_level": "Gini", "code_entropy_level": "entropy"}  # of recommenders that spell items as codes


def metric_label(name: str) -> str:
    """The words for a metric's axis; those of one that simenv does not have are its name."""
    if name in BY_NAME:
        return BY_NAME[name].label
    for of_codes, words in CODE_LABELS.items():
        if name.startswith(of_codes):
            return f"{words} of code tokens, level {name.removeprefix(of_codes)}"
    return name


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
