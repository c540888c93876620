"""Logged pages of a run: read for a user language model to learn from, and to judge one by what was clicked on them.

`read_logs` gives the jobs of a run directory whose world is the configured one; `judge` says how well a model tells, on
pages it never saw, what was clicked from what was looked at and passed over. The module does not know how models learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agents.user_lm import Example, HeldOut, PromptOptions, ShownLog
from agents.user_lm.exposure import any_of, live_through_again
from experiments.realism.tests import Row, UserBootstrap, ratio
from experiments.running.directory import config_of
from simenv.datasets.base import Dataset, LongArray
from simenv.datasets.splits import hold_out
from simenv.errors import ConfigError
from simenv.events import Events, read_events, scan_events
from simenv.numeric import group_auc

if TYPE_CHECKING:
    import polars as pl

    from simenv.report.run_data import RunData

MODEL = "user language model"
BASELINES = {"rank": "rank", "popularity": "popularity0_pct", "true utility": "true_utility"}
Interests = Callable[[Sequence[Example]], list[NDArray[Any]]]


def read_logs(run: Path, dataset: Dataset, option: str = "user_lm.log") -> list[ShownLog]:
    """What the jobs of a run showed, for those seeds whose world is this data set.

    In a synthetic world every seed has items and users of its own, so that only the configured seed is left; on real
    data the seeds share the data set, each with a sample of its users.

    Args:
        run: a run directory.
        dataset: as configured, before anything is held out.
        option: by which the run was named, for messages.

    Raises:
        ConfigError: no seed has this world, or the run keeps too little of itself.
        RunDirectoryError: there is no run, or it is damaged.
    """
    from simenv.report.run_data import read_run

    data = read_run(run)
    if data.items is None or data.users is None or not data.event_files:
        raise ConfigError(f"{option}={run}: expected a run directory with events, items.parquet and users.parquet")
    config = config_of(run)
    if config.get("record_every", 1) != 1:
        raise ConfigError(
            f"{option}={run}: keeps every {config['record_every']}th round only; expected record_every=1, since "
            "memories are made of every page"
        )
    before = hold_out(dataset, float(config.get("holdout", 0.0)))
    logs, strange = [], []
    jobs = scan_events(run).select("seed", "arm", "mode").unique().collect().sort("seed", "arm", "mode")
    for seed in jobs["seed"].unique().sort().to_list():
        world, difference = _world(data, seed, before)
        if world is None:
            strange.append(f"seed {seed}: {difference}")
            continue
        own, users = world
        for _, arm, mode in jobs.filter(jobs["seed"] == seed).iter_rows():
            events = read_events(run, seed=seed, arm=arm, mode=mode)
            order = np.lexsort((events.rank, events.user, events.page, events.round))
            name = f"{option}={run}: seed {seed}, {arm}/{mode}"
            logs.append(ShownLog(name=name, dataset=own, users=users, events=events.take(order)))
    if not logs:
        raise ConfigError(
            f"{option}={run}: is not a run in the configured world ({strange[0]}); "
            f"expected the run's own dataset, n_users, n_items and seed, not {dataset.name} as configured"
        )
    return logs


def _world(data: RunData, seed: int, before: Dataset) -> tuple[tuple[Dataset, LongArray] | None, str]:
    """The data set of one seed of a run and its users' rows in the configured one; or None, and what differs."""
    assert data.items is not None
    assert data.users is not None
    items, users = _block(data.items, seed, "item"), _block(data.users, seed, "user")
    catalog = before.catalog
    for column, ours in (("item_id", catalog.item_ids), ("title", catalog.titles)):
        theirs = items[column].to_list()
        if len(theirs) != len(ours):
            return None, f"{len(theirs)} items, configured {len(ours)}"
        for a, b in zip(theirs, ours, strict=True):
            if a != b:
                return None, f"{column} {a!r} where the configured one is {b!r}"
    row = {user: place for place, user in enumerate(before.user_ids)}
    absent = next((user for user in users["user_id"].to_list() if user not in row), None)
    if absent is not None:
        return None, f"user {absent!r} is not among the configured {len(row)}"
    rows = np.array([row[user] for user in users["user_id"].to_list()], np.int64)
    world = before.take_users(rows)
    counts, told = world.interactions.user_counts(), users["n_warm_start"].to_numpy()
    if (counts != told).any():
        worst = int(np.flatnonzero(counts != told)[0])
        return (
            None,
            f"user {users['user_id'][worst]!r} began with {told[worst]} interactions, configured {counts[worst]}",
        )
    return (world, rows), ""


def _block(table: pl.DataFrame, seed: int, by: str) -> pl.DataFrame:
    return table.filter(table["seed"] == seed).sort(by)


# -- judging ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """AUC of every model on each of n pages of one setting."""

    users: LongArray  # (n,), rows of the configured data set
    auc: dict[str, NDArray[np.float64]]  # model: (n,)


def judge(
    logs: Sequence[ShownLog],
    held: HeldOut,
    options: PromptOptions,
    interests: Interests,
    *,
    pages: int,
    seed: int,
) -> list[dict[str, Any]]:
    """AUC of clicks within shown pages that the model never saw: of users held out, and the last pages of the others.

    Pairs are of an item that was clicked and one of the same page that was examined and not clicked; a page counts as
    the mean of its pairs. Beside the model stand the rank at which an item was shown, its popularity before the first
    round, and the true utility by which simulated users choose, which nobody can much surpass. Intervals are of a
    bootstrap over users.

    Args:
        logs: whole, nothing held out of them.
        held: what the model was not trained on.
        options: of the prompts.
        interests: the model's opinion of the items of each example.
        pages: judged in each setting, at most.
        seed: of the pages drawn, and of the order of items.
    """
    unseen = [held.users[log.users[log.events.user[log.starts]]] for log in logs]
    settings = {
        "unseen users": unseen,
        "later pages": [~own & log.late(held.share) for log, own in zip(logs, unseen, strict=True)],
    }
    rng = np.random.default_rng([seed, 0x10D6])
    both = [any_of(log, log.events.clicked) & any_of(log, log.events.examined & ~log.events.clicked) for log in logs]
    rows: list[dict[str, Any]] = []
    for setting, theirs in settings.items():
        usable = [own & each for own, each in zip(both, theirs, strict=True)]
        judged = _judged(logs, _some(usable, pages, rng), options, interests, rng)
        if len(judged.users):
            rows += _rows(setting, judged)
    return rows


def _some(usable: Sequence[NDArray[np.bool_]], n: int, rng: np.random.Generator) -> list[LongArray]:
    """At most `n` pages in all, as numbers of pages of each log."""
    every = np.flatnonzero(np.concatenate(usable))
    chosen = np.zeros(sum(map(len, usable)), np.bool_)
    chosen[rng.permutation(every)[:n]] = True
    bounds = np.cumsum([0, *map(len, usable)])
    return [np.flatnonzero(chosen[first:last]) for first, last in pairwise(bounds)]


def _judged(
    logs: Sequence[ShownLog],
    pages: Sequence[LongArray],
    options: PromptOptions,
    interests: Interests,
    rng: np.random.Generator,
) -> _Judged:
    examples: list[Example] = []
    shown: list[Events] = []
    users: list[int] = []
    for log, own in zip(logs, pages, strict=True):
        for example, events in live_through_again(log, own, options, rng):
            examples.append(example)
            shown.append(events)
            users.append(int(log.users[example.user]))
    scores = {MODEL: interests(examples) if examples else []}
    for name, column in BASELINES.items():
        sign = -1.0 if name == "rank" else 1.0
        scores[name] = [sign * getattr(events, column).astype(np.float64) for events in shown]
    return _Judged(
        users=np.array(users, np.int64),
        auc={
            name: np.array([page_auc(each, one) for each, one in zip(examples, own, strict=True)])
            for name, own in scores.items()
        },
    )


def page_auc(example: Example, scores: NDArray[Any]) -> float:
    """How often a picked item has a higher score than an examined one that was not; ties count one half."""
    rows = example.examined | example.picked
    return float(group_auc(np.zeros(rows.sum(), np.int64), scores[rows], example.picked[rows])[0])


def _rows(setting: str, judged: _Judged) -> list[dict[str, Any]]:
    users, who = np.unique(judged.users, return_inverse=True)
    boot = UserBootstrap(len(users))
    n = np.bincount(who).astype(np.float64)

    def row(model: str, metric: str, values: NDArray[np.float64]) -> dict[str, Any]:
        found: Row = boot.row(
            "clicks", setting, model, metric, ratio(np.bincount(who, weights=values).astype(np.float64), n)
        )
        return {
            "setting": setting,
            "model": model,
            "metric": metric,
            "value": found.value,
            "ci_low": found.ci_low,
            "ci_high": found.ci_high,
            "pages": len(who),
            "users": len(users),
        }

    own = judged.auc[MODEL]
    return [
        *(row(name, "auc", values) for name, values in judged.auc.items()),
        *(row(MODEL, f"auc - auc of {name}", own - judged.auc[name]) for name in ("rank", "popularity")),
    ]
