"""The answer of a run in a few plain sentences, made from its claims by rule, and the claims as arms against metrics.

No language model writes here. The module knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simenv.conclusions.judged import VERDICTS, JudgedClaim, Verdict
from simenv.conclusions.standard import ARM_LABELS
from simenv.conclusions.words import number, signed, undecidable
from simenv.errors import DataError
from simenv.metrics.frame import CONTROLS, series
from simenv.metrics.table import metric_label

if TYPE_CHECKING:
    import polars as pl

HEADLINE = "arp_pct"
AGAINST = {
    "organic": "Compared with learning from what users choose unaided",
    "frozen": "Compared with never learning anew",
    "exogenous": "Compared with learning from random slates",
    "oracle": "Compared with the oracle",
    "everybody": "Compared with switching everybody",
}
EFFECTS: tuple[Verdict, ...] = ("raised", "lowered")
REST: dict[Verdict, str] = {"negligible": "{} changed too little to count", "unclear": "whether {} changed is unclear"}
SIZED = 3  # arms whose sizes a sentence gives
ALONE = 3  # sentences of claims that are about no metric
SIDES = 2  # metrics beside the headline that a sentence is made about


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the grid: a metric against one control, or a difference between groups."""

    metric: str
    control: str  # "organic", "oracle", ...
    groups: str  # "taste=minority - taste=majority"; empty = all users
    margin: float | None

    @property
    def label(self) -> str:
        """The words of its head."""
        return metric_label(self.metric)

    @property
    def gap(self) -> str:
        """Which groups it compares, in short: `taste minority − majority`."""
        one, _, versus = self.groups.partition(" - ")
        attribute, _, level = versus.partition("=")
        return f"{_group(one)} − {level if one.startswith(f'{attribute}=') else _group(versus)}" if self.groups else ""


def grid(claims: Sequence[JudgedClaim]) -> tuple[list[Column], dict[str, list[JudgedClaim | None]]]:
    """The claims about metrics as a table: for each metric its most telling control, then the differences of groups.

    Returns:
        The columns, and for each arm one claim or None per column.
    """
    held: dict[tuple[str, str, str], dict[str, JudgedClaim]] = {}
    for claim in claims:
        if claim.metric is not None and claim.arm != "all":
            control, groups = _control(claim)
            held.setdefault((claim.metric, groups, control), {})[claim.arm] = claim
    best: dict[tuple[str, str], str] = {}
    for metric, groups, control in held:
        kept = best.get((metric, groups))
        if kept is None or _order(control) < _order(kept):
            best[metric, groups] = control
    keys = sorted(((m, g, c) for (m, g), c in best.items()), key=lambda key: bool(key[1]))
    columns, arms = [], dict.fromkeys(claim.arm for key in keys for claim in held[key].values())
    for metric, groups, control in keys:
        margin = next(iter(held[metric, groups, control].values())).margin
        columns.append(Column(metric=metric, control=control, groups=groups, margin=margin))
    return columns, {arm: [held[key].get(arm) for key in keys] for arm in arms}


NO_CONTROL = (
    "No arm was played against a control, so that nothing says what its feedback caused: add a mode, as in "
    "modes=[loop, frozen]."
)


def answer(claims: Sequence[JudgedClaim], metrics: pl.DataFrame | None, *, n_seeds: int) -> list[str]:
    """Two to four sentences: the headline metric, what users got, for whom, and how sure; fewer where claims lack.

    Claims about no metric, such as those of the realism suite, are told as they stand.

    Args:
        claims: of a run.
        metrics: its frame, for levels ("93rd percentile instead of the 88th"); None = differences alone.
        n_seeds: of the run.
    """
    if not claims:
        return []
    primary = next((claim for claim in claims if claim.primary), None)
    columns, rows = grid(claims)
    if not columns:
        told = [primary] if primary is not None else []
        if all(claim.control == "chance" for claim in claims):  # whether seeds agree, and nothing else
            return [f"{NO_CONTROL} {claims[0].sentence}"]
        return [claim.sentence for claim in [*told, *(c for c in claims if c is not primary)][:ALONE]]
    headline = primary.metric if primary is not None and primary.metric else HEADLINE
    whole = [i for i, column in enumerate(columns) if not column.groups]
    first = next((i for i in whole if columns[i].metric == headline), whole[0] if whole else 0)
    found = [_about(columns[first], [row[first] for row in rows.values()], metrics)]
    others = [i for i in whole if i != first]
    sides = [i for i in others if _kind(rows, i) == "users"] or others
    effects = {i: sum(cell.verdict in EFFECTS for row in rows.values() if (cell := row[i])) for i in sides}
    sides.sort(key=lambda i: (-effects[i], columns[i].metric != "true_utility"))
    found += [_about(columns[i], [row[i] for row in rows.values()], metrics) for i in sides[: SIDES - 1]]
    if any(column.groups for column in columns):
        found.append(_for_whom(columns, rows))
    return [*found, _sure(claims, n_seeds)]


def _kind(rows: dict[str, list[JudgedClaim | None]], column: int) -> str:
    return next((cell.kind for row in rows.values() if (cell := row[column]) is not None), "")


def _about(column: Column, cells: Iterable[JudgedClaim | None], metrics: pl.DataFrame | None) -> str:
    """One sentence: which arms it was raised for, lowered, neither, unclear."""
    by_verdict: dict[Verdict, list[JudgedClaim]] = {verdict: [] for verdict in VERDICTS}
    for cell in cells:
        if cell is not None:
            by_verdict[cell.verdict].append(cell)
    start = AGAINST.get(column.control, f"Compared with {_name(column.control)}")
    parts = []
    for verdict in EFFECTS:
        if held := by_verdict[verdict]:
            more = f" and {len(held) - SIZED} more" if len(held) > SIZED else ""
            parts.append(f"{verdict} for {_listed(_sized(claim, metrics) for claim in _largest(held))}{more}")
    changed = [f"the {column.label} was {' and '.join(parts)}"] if parts else []
    for verdict, words in REST.items():
        if by_verdict[verdict]:
            names = _listed(_name(claim.arm) for claim in by_verdict[verdict])
            what = "it" if changed else f"the {column.label}"
            changed.append(f"for {names} {words.format(what)}")
    return f"{start}, {'; '.join(changed)}."


def _for_whom(columns: Sequence[Column], rows: dict[str, list[JudgedClaim | None]]) -> str:
    cells = [cell for i, column in enumerate(columns) if column.groups for row in rows.values() if (cell := row[i])]
    apart = [cell for cell in cells if cell.verdict in EFFECTS]
    label = next(column.label for column in columns if column.groups)
    if apart:
        words = []
        for cell in _largest(apart):
            one, _, versus = _control(cell)[1].partition(" - ")
            more, less = (one, versus) if (cell.estimate or 0.0) > 0 else (versus, one)
            size = number(abs(cell.estimate or 0.0))
            words.append(f"{_group(more)} more than {_group(less)} under {_name(cell.arm)} (by {size})")
        rest = f", and {len(apart) - SIZED} more differences" if len(apart) > SIZED else ""
        return f"Groups differ in what was added to the {label}: {_listed(words)}{rest}."
    open_ = sum(cell.verdict == "unclear" for cell in cells)
    if not open_:
        return f"What was added to the {label} is alike for all groups of users, as far as the margins count."
    return (
        f"Whether more was added to the {label} of some groups of users than of others is unclear in {open_} of "
        f"{len(cells)} comparisons."
    )


def _sure(claims: Sequence[JudgedClaim], n_seeds: int) -> str:
    """How sure: seeds, decided claims, flips."""
    if words := undecidable(n_seeds) if n_seeds else None:
        return words
    decided, flips = sum(claim.verdict != "unclear" for claim in claims), sum(claim.flips for claim in claims)
    seeds = f"{n_seeds} seeds decide" if n_seeds else "The seeds decide"
    turned = f"; {flips} of them turn round under other conditions" if flips else ""
    return (
        f"{seeds} {decided} of {len(claims)} claims (95 % intervals, tests adjusted for all claims together){turned}."
    )


# -- words --------------------------------------------------------------------------------------------------------


def _control(claim: JudgedClaim) -> tuple[str, str]:
    """("organic", "") for `als/organic`, ("oracle", "") for `oracle/loop`, with the groups if there are any."""
    control, _, groups = claim.control.partition(", ")
    arm, _, mode = control.partition("/")
    return (mode if arm == claim.arm else arm) or "its control", groups


def _order(control: str) -> int:
    return CONTROLS.index(control) if control in CONTROLS else len(CONTROLS)


def _largest(claims: Sequence[JudgedClaim]) -> list[JudgedClaim]:
    return sorted(claims, key=lambda claim: -abs(claim.estimate or 0.0))[:SIZED]


def _sized(claim: JudgedClaim, metrics: pl.DataFrame | None) -> str:
    """`ALS (93rd percentile instead of the 88th)`, or the difference where no levels are known."""
    estimate = claim.estimate or 0.0
    level = _level(claim, metrics)
    if level is None:
        return f"{_name(claim.arm)} ({signed(estimate)})"
    ours, control = level, level - estimate
    if claim.metric == HEADLINE:
        return f"{_name(claim.arm)} ({_ordinal(ours)} percentile instead of the {_ordinal(control)})"
    return f"{_name(claim.arm)} ({number(ours)} instead of {number(control)})"


def _level(claim: JudgedClaim, metrics: pl.DataFrame | None) -> float | None:
    """Where the loop ended, mean over seeds."""
    if metrics is None or claim.metric is None:
        return None
    try:
        last = series(metrics, claim.arm, "loop", claim.metric)[:, -1]
    except DataError:
        return None
    return float(np.nanmean(last)) if np.isfinite(last).any() else None


def _ordinal(share: float) -> str:
    whole = round(100 * share)
    ending = {1: "st", 2: "nd", 3: "rd"}.get(whole % 10, "th") if whole % 100 not in (11, 12, 13) else "th"
    return f"{whole}{ending}"


def _name(arm: str) -> str:
    return ARM_LABELS.get(arm, arm)


def _group(group: str) -> str:
    return group.replace("=", " ")


def _listed(words: Iterable[str]) -> str:
    held = list(words)
    return held[0] if len(held) == 1 else f"{', '.join(held[:-1])} and {held[-1]}"
