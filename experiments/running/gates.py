"""Sanity gates: arithmetic a healthy run cannot contradict. A gate that breaks fails the run and says by how much.

Gates read events and round-0 arrays; they do not know how a run is played, nor what its results mean. Each raises
`GateError` or returns nothing; `check_seed` applies those that fit to all event logs of one seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from simenv.candidates import Candidates
from simenv.errors import GateError
from simenv.events import Events
from simenv.numeric import DoubleArray

_CELLS = 20_000_000  # users times items that are looked at together
_EXACT, _NEAR_NORMAL = 20_000, 400.0  # events up to which, and variance from which on, see `_count_of`
_FLOAT32 = 1e-6  # what a column stored as float32 may differ by


def check_seed(
    events: Mapping[tuple[str, str], Events],
    *,
    seed: int,
    eligible: Candidates | NDArray[np.bool_],
    popularity_pct: ArrayLike,
    repeat: str,
    deterministic: Collection[str] = (),
    fixed_catalogue: bool = True,
) -> list[str]:
    """Apply every gate that reads events to the logs of one seed.

    Args:
        events: (arm, mode) -> its events.
        seed: named in the error.
        eligible: what each user could be shown at round 0, as candidates of all users or a mask (n_users, n_items).
        popularity_pct: (n_items,), popularity percentile frozen at round 0.
        repeat: consumption regime; lists are constant under `always` only.
        deterministic: arms whose frozen recommender draws nothing.
        fixed_catalogue: no item arrives during the run.

    Returns:
        What was checked, e.g. `als/frozen: constant lists`, for the run card.

    Raises:
        GateError: naming seed, arm, mode, gate, and by how much it is missed.
    """
    checked: list[str] = []

    def gate(name: str, arm: str, mode: str, check: Callable[..., None], *args: Any) -> None:
        try:
            check(*args)
        except GateError as error:
            raise GateError(f"seed {seed}, {arm}/{mode}: {error}") from error
        checked.append(f"{arm}/{mode}: {name}")

    for (arm, mode), log in events.items():
        gate("response logic", arm, mode, response_logic, log)
        if mode == "frozen" and repeat == "always" and fixed_catalogue and arm in deterministic:
            gate("constant lists", arm, mode, constant_lists, log)
        if mode == "loop" and (arm, "frozen") in events:
            gate("round 0", arm, mode, same_first_round, log, events[arm, "frozen"])
        if (arm, mode) == ("random", "loop"):
            gate("random arm", arm, mode, random_at_round_zero, log, eligible, popularity_pct)
        if (arm, mode) == ("oracle", "loop"):
            gate("oracle regret", arm, mode, oracle_regret, log)
    return checked


# -- the training log ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LogGrowth:
    """A training log at the start of rounds 0 to T, and what each of the T rounds added; popularity frozen."""

    size: DoubleArray  # (T + 1,), interactions in the log
    popularity: DoubleArray  # (T + 1,), mean popularity of the interactions in the log
    added: DoubleArray  # (T,), interactions accepted in the round
    added_popularity: DoubleArray  # (T,), their mean popularity; anything where none was accepted


def log_growth(popularity: ArrayLike, log_items: NDArray[Any], n_warm: int, events: Events) -> LogGrowth:
    """Measure a training log against the events that should have made it.

    The log's means come from the recommender's own log, the added ones from the clicks in `events`, so that a lost,
    doubled or foreign row shows.

    Args:
        popularity: (n_items,), any popularity, frozen at round 0.
        log_items: (n,), items of the log after the last round, in order: the warm start, then round after round.
        n_warm: interactions of the warm start.
        events: of a mode `loop` that keeps everything it learned from (retraining `refit` or `update`).

    Raises:
        GateError: if the log is not as long as the warm start and the clicks together.
    """
    value = np.asarray(popularity, dtype=np.float64)
    clicks = np.flatnonzero(events.clicked)
    n_rounds = int(events.round.max()) + 1 if len(events) else 0
    added = np.bincount(events.round[clicks], minlength=n_rounds).astype(np.float64)
    total = np.bincount(events.round[clicks], value[events.item[clicks]], minlength=n_rounds)
    if len(log_items) != n_warm + len(clicks):
        raise GateError(
            f"gate 'one-step identity': the training log holds {len(log_items)} interactions; expected {n_warm} warm "
            f"and {len(clicks)} clicked = {n_warm + len(clicks)} (off by {len(log_items) - n_warm - len(clicks)})"
        )
    size = n_warm + np.concatenate([[0.0], np.cumsum(added)])
    sums = np.concatenate([[0.0], np.cumsum(value[log_items])])
    return LogGrowth(
        size=size,
        popularity=sums[size.astype(np.int64)] / size,
        added=added,
        added_popularity=total / np.maximum(added, 1.0),
    )


def one_step_identity(growth: LogGrowth, *, tolerance: float = 1e-9) -> None:
    """P_{t+1} - P_t = K theta_t / (|D_t| + K), with theta_t = popularity of what was accepted - P_t.

    Mansoury et al. 2020. K is the number of interactions accepted in round t, |D_t| the log before it.

    Raises:
        GateError: if a round misses it by more than `tolerance`.
    """
    theta = growth.added_popularity - growth.popularity[:-1]
    expected = growth.added * theta / (growth.size[:-1] + growth.added)
    gap = np.diff(growth.popularity) - expected
    gap = np.where(np.diff(growth.size) == growth.added, gap, np.inf)
    if len(gap) and not np.abs(gap).max() <= tolerance:
        t = int(np.flatnonzero(~(np.abs(gap) <= tolerance))[0])
        raise GateError(
            f"gate 'one-step identity': round {t}: the log's popularity moved by {np.diff(growth.popularity)[t]:.12g}; "
            f"expected K theta / (|D| + K) = {expected[t]:.12g} (off by {gap[t]:.3g}, tolerance {tolerance:g})"
        )


# -- what the references must do ----------------------------------------------------------------------------------


def random_at_round_zero(
    events: Events,
    eligible: Candidates | NDArray[np.bool_],
    popularity_pct: ArrayLike,
    *,
    standard_errors: float = 4.0,
) -> None:
    """The random arm's first page has the popularity and the coverage of uniform draws from what users may see.

    Each user's slate is a sample without replacement, which gives mean and variance of the percentile exactly. The
    number of items nobody is shown is compared with its Poisson-binomial distribution at the tail probability of
    `standard_errors`: near full coverage it is far from normal. (Items compete for slots, so its true spread is
    smaller still; the gate errs on the lenient side.)

    Args:
        events: of arm `random`.
        eligible: what each user could be shown at round 0, as candidates of all users or a mask (n_users, n_items).
        popularity_pct: (n_items,), in [0, 1].
        standard_errors: allowed distance.

    Raises:
        GateError: if an ineligible item is shown, or either figure is off.
    """
    first = (events.round == 0) & (events.page == 0)
    users, items = events.user[first], events.item[first]
    percentile = np.asarray(popularity_pct, dtype=np.float64)
    if len(users) == 0:
        raise GateError("gate 'random arm': no impressions at round 0; expected some")
    if not isinstance(eligible, Candidates):
        eligible = Candidates.of(eligible.shape[1], out=~eligible)
    n_users = max(len(eligible.bits), int(users.max()) + 1)
    own = np.minimum(users, len(eligible.bits) - 1)
    out = (eligible.bits[own, items >> 3] >> (items & 7).astype(np.uint8)) & 1
    wrong = np.flatnonzero((out > 0) | ~eligible.available[items])
    if len(wrong):
        raise GateError(
            f"gate 'random arm': {len(wrong)} impressions at round 0 are not eligible, the first item "
            f"{items[wrong[0]]} of user {users[wrong[0]]}; expected none"
        )
    shown = np.bincount(users, minlength=n_users).astype(np.float64)
    served = np.flatnonzero(shown)
    shown = shown[served]
    choice, first_moment, second_moment = np.zeros((3, len(served)))
    missing_chance = np.ones(eligible.n_items)
    size = max(1, _CELLS // eligible.n_items)  # a mask of everybody would outgrow memory
    for start in range(0, len(served), size):
        rows = slice(start, start + size)
        can = np.broadcast_to(eligible.rows(served[rows]).mask(), (len(served[rows]), eligible.n_items))
        choice[rows] = can.sum(axis=1)
        first_moment[rows], second_moment[rows] = can @ percentile, can @ percentile**2
        for share, own_can in zip(shown[rows] / choice[rows], can, strict=True):
            missing_chance[own_can] *= max(0.0, 1.0 - share)  # when user u is shown each eligible item with this share

    mean = first_moment / choice
    variance = np.maximum(second_moment / choice - mean**2, 0.0)
    left_over = np.maximum(choice - shown, 0.0) / np.maximum(choice - 1, 1)
    expected = float((shown * mean).sum() / shown.sum())
    error = float(np.sqrt((shown * variance * left_over).sum()) / shown.sum())
    observed = float(np.mean(events.popularity0_pct[first], dtype=np.float64))
    if not abs(observed - expected) <= standard_errors * error + _FLOAT32:
        raise GateError(
            f"gate 'random arm': ARP percentile {observed:.5f} at round 0; expected {expected:.5f} +- "
            f"{standard_errors:g} x {error:.2g} (off by {_in_units(observed - expected, error)} standard errors)"
        )

    missing = int(len(missing_chance) - len(np.unique(items)))
    distribution = _count_of(missing_chance)
    tail = min(float(distribution.cdf(missing)), float(distribution.sf(missing - 1)))
    if not tail >= stats.norm.sf(standard_errors):
        n, spread = len(missing_chance), float(distribution.std())
        raise GateError(
            f"gate 'random arm': coverage {1 - missing / n:.5f} at round 0 ({missing} items shown to nobody); expected "
            f"{1 - missing_chance.sum() / n:.5f} ({missing_chance.sum():.2f} items, SD {spread:.2g}; tail probability "
            f"{tail:.2g}, limit {stats.norm.sf(standard_errors):.2g})"
        )


def _count_of(chances: DoubleArray) -> Any:
    """The distribution of how many of independent events happen; normal where exact takes long and there are many."""
    mean, variance = chances.sum(), (chances * (1 - chances)).sum()
    if len(chances) <= _EXACT or variance < _NEAR_NORMAL:
        return stats.poisson_binom(chances)
    return _Counted(stats.norm(mean, np.sqrt(variance)))


@dataclass(frozen=True, slots=True)
class _Counted:
    """A continuous distribution in the place of one of a count, with the usual correction of half a step."""

    inner: Any

    def cdf(self, count: int) -> float:
        return float(self.inner.cdf(count + 0.5))

    def sf(self, count: int) -> float:
        return float(self.inner.sf(count + 0.5))

    def std(self) -> float:
        return float(self.inner.std())


def oracle_regret(events: Events, *, tolerance: float = 1e-4) -> None:
    """The oracle's slates are the best of their candidates by its own true utility.

    Args:
        events: of arm `oracle`.
        tolerance: largest |1 - slate / best| of a slate; columns are float32.

    Raises:
        GateError: if a slate is worse, or better, than the best, or the best was not measured.
    """
    _, start, slate, size = np.unique(_slates(events), return_index=True, return_inverse=True, return_counts=True)
    utility = np.bincount(slate, events.true_utility) / size
    best = np.bincount(slate, events.best_utility) / size
    if not np.isfinite(best).all():
        raise GateError(
            f"gate 'oracle regret': the best utility of {np.count_nonzero(~np.isfinite(best))} slates was not measured"
        )
    regret = 1.0 - utility / best
    bad = np.flatnonzero(~(np.abs(regret) <= tolerance))
    if len(bad):
        worst = int(bad[np.argmax(np.abs(regret[bad]))])
        row = start[worst]
        raise GateError(
            f"gate 'oracle regret': {regret[worst]:.3g} for user {events.user[row]} in round {events.round[row]}, page "
            f"{events.page[row]}; expected 0 +- {tolerance:g} ({len(bad)} of {len(regret)} slates are off)"
        )


def constant_lists(events: Events) -> None:
    """A frozen deterministic ranker that may repeat itself shows each user the same list in every round.

    Args:
        events: of a frozen, deterministic arm under `repeat=always` with a fixed catalogue. Lists are compared page
            by page: (user, page) against its first appearance.

    Raises:
        GateError: naming the first slot that changed, and how many did.
    """
    order = np.lexsort((events.round, events.rank, events.page, events.user))
    slot = np.stack([events.user[order], events.page[order], events.rank[order]])
    same_slot = (slot[:, 1:] == slot[:, :-1]).all(axis=0)
    item, round_ = events.item[order], events.round[order]
    changed = np.flatnonzero(same_slot & (item[1:] != item[:-1]))
    if len(changed):
        at = int(changed[0])
        user, page, rank = slot[:, at]
        raise GateError(
            f"gate 'constant lists': user {user}, page {page}, rank {rank}: item {item[at]} in round {round_[at]}, "
            f"item {item[at + 1]} in round {round_[at + 1]}; expected a constant list ({len(changed)} slots change)"
        )
    _, start, length = np.unique(_slates(events), return_index=True, return_counts=True)
    user, page, round_ = events.user[start], events.page[start], events.round[start]
    same_list = (user[1:] == user[:-1]) & (page[1:] == page[:-1])
    grown = np.flatnonzero(same_list & (length[1:] != length[:-1]))
    if len(grown):
        at = int(grown[0])
        raise GateError(
            f"gate 'constant lists': user {user[at]}, page {page[at]}: {length[at]} items in round {round_[at]}, "
            f"{length[at + 1]} in round {round_[at + 1]}; expected a constant list ({len(grown)} lists change)"
        )


def gini_endpoints(gini: Callable[[DoubleArray], float], *, n_items: int = 1000, tolerance: float = 1e-9) -> None:
    """The run's own Gini is 0 for equal exposure and (n - 1) / n for one item that gets everything."""
    one = np.zeros(n_items)
    one[n_items // 2] = 10.0
    for name, counts, expected in (("equal", np.full(n_items, 3.0), 0.0), ("one item's", one, 1 - 1 / n_items)):
        value = float(gini(counts))
        if not abs(value - expected) <= tolerance:
            raise GateError(
                f"gate 'Gini endpoints': {value:.12g} for {name} exposure over {n_items} items; "
                f"expected {expected:.12g} (off by {value - expected:.3g})"
            )


# -- the same again -----------------------------------------------------------------------------------------------


def same_first_round(loop: Events, frozen: Events) -> None:
    """An arm's loop and frozen modes have the same round 0, bit for bit, in every column."""
    _same_bytes("round 0", loop.take(loop.round == 0), frozen.take(frozen.round == 0), "loop", "frozen")


def byte_identical(first: Events, second: Events) -> None:
    """Two runs of one configuration have the same events, bit for bit."""
    _same_bytes("byte-identical", first, second, "the first run", "the second")


def same_digests(first: Mapping[str, str], second: Mapping[str, str]) -> None:
    """Two runs of one configuration have the same named digests (of `digest`, or of files)."""
    differ = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    if differ:
        name = differ[0]
        raise GateError(
            f"gate 'byte-identical': {len(differ)} of {len(first.keys() | second.keys())} results differ, the first "
            f"{name}: {first.get(name, 'absent')} against {second.get(name, 'absent')}"
        )


def digest(events: Events) -> str:
    """SHA-256 of names, types, lengths and bytes of all columns, as hex."""
    state = hashlib.sha256()
    for field in fields(events):
        column = np.ascontiguousarray(getattr(events, field.name))
        state.update(f"{field.name} {column.dtype.str} {column.shape}\n".encode())
        state.update(column.tobytes())
    return state.hexdigest()


# -- every log ----------------------------------------------------------------------------------------------------


def response_logic(events: Events) -> None:
    """Propensities lie in (0, 1]; clicked implies examined; a rating implies a click; percentiles lie in [0, 1].

    Propensity NaN is allowed (an outside action without one). A second copy of an item in a slate is not examined.

    Raises:
        GateError: naming the rule, how many rows break it, and the first one.
    """
    rated = ~np.isnan(events.rating)
    given = ~np.isnan(events.propensity)
    percentile = events.popularity0_pct
    rules = {
        "propensity in (0, 1]": ~given | ((events.propensity > 0) & (events.propensity <= 1)),
        "clicked implies examined": ~events.clicked | events.examined,
        "a rating implies a click": ~rated | events.clicked,
        "percentile in [0, 1]": (percentile >= 0) & (percentile <= 1),
        "a copy is not examined": ~_later_copy(events) | ~events.examined,
    }
    for rule, holds in rules.items():
        broken = np.flatnonzero(~holds)
        if len(broken):
            row = int(broken[0])
            raise GateError(
                f"gate 'response logic': {rule}: broken in {len(broken)} of {len(events)} impressions, first round "
                f"{events.round[row]}, page {events.page[row]}, user {events.user[row]}, item {events.item[row]} "
                f"(propensity {events.propensity[row]:g}, examined {events.examined[row]}, clicked "
                f"{events.clicked[row]}, rating {events.rating[row]:g}, percentile {percentile[row]:g})"
            )


def _slates(events: Events) -> NDArray[np.int64]:
    """One number per slate, (n,), ascending by user, page and round."""
    if len(events) == 0:
        return np.zeros(0, np.int64)
    n_pages, n_rounds = int(events.page.max()) + 1, int(events.round.max()) + 1
    return (events.user.astype(np.int64) * n_pages + events.page) * n_rounds + events.round


def _later_copy(events: Events) -> NDArray[np.bool_]:
    slates = _slates(events)
    order = np.lexsort((events.rank, events.item, slates))
    slate, item = slates[order], events.item[order]
    copies = np.zeros(len(events), np.bool_)
    copies[order[1:]] = (slate[1:] == slate[:-1]) & (item[1:] == item[:-1])
    return copies


def _same_bytes(gate: str, first: Events, second: Events, first_name: str, second_name: str) -> None:
    if len(first) != len(second):
        raise GateError(
            f"gate '{gate}': {len(first)} impressions in {first_name}, {len(second)} in {second_name}; expected as many"
        )
    for field in fields(Events):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if a.dtype != b.dtype:
            raise GateError(
                f"gate '{gate}': column {field.name} is {a.dtype} in {first_name}, {b.dtype} in {second_name}"
            )
        if a.tobytes() == b.tobytes():
            continue
        bits = (np.ascontiguousarray(x).view(np.uint8).reshape(len(a), -1) for x in (a, b))
        rows = np.flatnonzero(np.not_equal(*bits).any(axis=1))
        row = int(rows[0])
        raise GateError(
            f"gate '{gate}': column {field.name} differs in {len(rows)} of {len(a)} impressions, first in row {row} "
            f"(round {first.round[row]}, user {first.user[row]}, rank {first.rank[row]}): {a[row]} in {first_name}, "
            f"{b[row]} in {second_name}; expected the same bits"
        )


def _in_units(gap: float, unit: float) -> str:
    return f"{gap / unit:+.1f}" if unit > 0 else "infinitely many"
