"""Jiang, Chiappa, Lattimore, Gyorgy and Kohli 2019, "Degenerate feedback loops in recommender systems": where clicks
move interests, accurate recommenders drive them from where they began; exploration or a growing pool slows that.

100 items, slates of 5, 5,000 steps; 30 users are 30 independent runs, because a bandit learns of one user alone. The
growing pool (`growing/`): as many items at first, ten times as many in the end, arriving evenly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.choice.classics import DriftingInterest
from experiments.replications.targets import above, reported, within, write_targets
from experiments.running import course
from experiments.running.course import Run
from experiments.running.design import Design
from simenv.conclusions.statistics import Interval
from simenv.datasets.base import Catalog, Dataset, Head, Interactions, Tastes
from simenv.errors import ConfigError
from simenv.metrics.frame import read_metrics, series
from simenv.platform import Platform

PILOT = {"oracle": 53.6, "greedy-bandit": 51.7, "thompson": 47.5, "ucb": 35.8, "random": 4.6}
LABELS = {"greedy-bandit": "greedy", "thompson": "Thompson", "ucb": "UCB"}
N_USERS, N_ITEMS = 30, 100
GROWTH = 10  # items at the end of the growing pool / at its start


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """The paper's world and arms."""

    def designs(self) -> dict[str, Design]:
        """The two designs, by sub-folder: the fixed and the growing pool."""
        base = self.design
        if not isinstance(base.dataset, Mapping) or base.dataset.get("_target_") != f"{__name__}.world":
            raise ConfigError("jiang2019: expected dataset=jiang2019, the world of the paper")
        growing = replace(
            base,
            n_items=GROWTH * (base.n_items or N_ITEMS),
            arms=(("random", "loop"),),
            dataset=dict(base.dataset) | {"growth_rounds": base.rounds},
        )
        return {"": base, "growing": growing}


def play(settings: Settings, run: Run) -> None:
    """The fixed and the growing pool."""
    run.play(settings.designs())


def world(
    *, n_users: int | None = None, n_items: int | None = None, seed: int = 0, growth_rounds: int | None = None
) -> Dataset:
    """Users and items without content; every user has one past click, on item 0, since a log is never empty.

    Args:
        n_users: None = 30.
        n_items: None = 100.
        seed: unused here: the agent draws the interests.
        growth_rounds: None = all items are there from the start; a number = a tenth is, the others are released evenly
            over so many rounds.
    """
    n_users, n_items = n_users or N_USERS, n_items or N_ITEMS
    later = np.arange(n_items) - n_items // GROWTH
    release = np.full(n_items, -1)
    if growth_rounds is not None:
        release[later >= 0] = 1 + later[later >= 0] * (growth_rounds - 1) // (n_items - n_items // GROWTH)
    catalog = Catalog(
        item_ids=tuple(f"i{i}" for i in range(n_items)),
        titles=tuple(f"Item {i}" for i in range(n_items)),
        genre_names=("none",),
        genres=np.zeros((n_items, 1), np.bool_),
        attributes={"release": release},
    )
    flat = Head(
        user_vectors=np.zeros((n_users, 1), np.float32),
        item_vectors=np.zeros((n_items, 1), np.float32),
        user_bias=np.zeros(n_users, np.float32),
        item_bias=np.zeros(n_items, np.float32),
    )
    return Dataset(
        name="jiang2019",
        catalog=catalog,
        interactions=Interactions(
            users=np.arange(n_users, dtype=np.int32),
            items=np.zeros(n_users, np.int32),
            ratings=np.full(n_users, np.nan, np.float32),
            times=np.zeros(n_users, np.int64),
            n_users=n_users,
            n_items=n_items,
        ),
        user_ids=tuple(f"u{u}" for u in range(n_users)),
        tastes=Tastes(choice=flat, rating=flat, rating_noise=1.0, kind="true"),
    )


def probe(platform: Platform) -> dict[str, float]:
    """Distance of the users' interests from where they began: mean, and standard error over users."""
    users = platform.users
    if not isinstance(users, DriftingInterest):
        raise ConfigError(
            f"agent: {type(users).__name__} has no interests; expected agents.choice.classics.DriftingInterest"
        )
    drift = users.drift
    error = float(drift.std(ddof=1) / np.sqrt(len(drift))) if len(drift) > 1 else float("nan")
    return {"interest_drift": float(drift.mean()), "interest_drift_se": error}


# -- scoring ------------------------------------------------------------------------------------------------------


def score(settings: Settings, run: Run) -> None:
    """The paper's order of recommenders, and the effect of a growing pool, against ours."""
    ends = {arm: _end(run.path, arm) for arm in _arms(run.path)}
    growing = _end(run.path / "growing", "random")
    targets = [
        reported(
            f"drift:{LABELS.get(arm, arm)}", "L2 drift at the end (the project's pilot)", ours, published=PILOT[arm]
        )
        for arm, ours in ends.items()
        if arm in PILOT
    ]
    for low, high in (("random", "ucb"), ("ucb", "oracle"), ("thompson", "oracle")):
        if low in ends and high in ends:
            name = f"{LABELS.get(low, low)}-below-{LABELS.get(high, high)}"
            targets.append(above(name, f"{low} drifts less than {high}: > 0", _difference(ends[high], ends[low])))
    if {"random", "oracle"} <= ends.keys():
        share = Interval(
            estimate=ends["random"].estimate / ends["oracle"].estimate,
            low=ends["random"].low / ends["oracle"].high,
            high=ends["random"].high / ends["oracle"].low,
            n=ends["random"].n,
        )
        targets.append(within("random-share", "random drifts at most 15 % as far as the oracle", share, bound=0.15))
    if "random" in ends:
        slower = _difference(ends["random"], growing)
        targets.append(above("growing-pool", "a growing pool lowers random's drift: > 0", slower))
    write_targets(run, targets)


def _arms(folder: Path) -> list[str]:
    return list(read_metrics(folder)["arm"].unique(maintain_order=True))


def _end(folder: Path, arm: str) -> Interval:
    """Mean drift over users at the last round, with a t interval over users; seeds, if several, are pooled."""
    from scipy.stats import t

    metrics = read_metrics(folder)
    mean = series(metrics, arm, "loop", "interest_drift")[:, -1]
    error = series(metrics, arm, "loop", "interest_drift_se")[:, -1]
    n_users = int(_users_per_seed(folder))
    pooled = float(np.sqrt(np.sum(error**2)) / len(error))
    half = float(t.ppf(0.975, len(mean) * (n_users - 1))) * pooled if n_users > 1 else np.nan
    estimate = float(mean.mean())
    return Interval(estimate=estimate, low=estimate - half, high=estimate + half, n=n_users * len(mean))


def _users_per_seed(folder: Path) -> int:
    import polars as pl

    users = pl.read_parquet(folder / "users.parquet", glob=False)
    return int(users.height // users["seed"].n_unique())


def _difference(first: Interval, second: Interval) -> Interval:
    """first - second, as if independent (users share their luck in all arms, so this is on the wide side)."""
    half = np.hypot(first.high - first.estimate, second.high - second.estimate)
    gap = first.estimate - second.estimate
    return Interval(estimate=gap, low=float(gap - half), high=float(gap + half), n=min(first.n, second.n))


# -- figure -------------------------------------------------------------------------------------------------------


def plot(settings: Settings, run: Run) -> None:
    """Drift over steps on both axes' logarithms."""
    from simenv.figures.style import (
        INK,
        LABEL,
        arm_styles,
        key_line,
        legend_below,
        new_figure,
        sort_arms,
    )

    metrics = read_metrics(run.path)
    arms = sort_arms(_arms(run.path))
    styles = arm_styles(arms)
    figure, grid = new_figure(1, 1, (9.0, 5.2))
    panel = grid[0, 0]

    def draw(source: Any, arm: str, color: str, **style: Any) -> None:
        rounds = np.sort(source.filter(source["arm"] == arm)["round"].unique().to_numpy())
        mean = series(source, arm, "loop", "interest_drift").mean(axis=0)
        error = series(source, arm, "loop", "interest_drift_se").mean(axis=0)
        panel.plot(rounds + 1, mean, color=color, linewidth=2, markevery=0.15, **style)
        panel.fill_between(rounds + 1, mean - 2 * error, mean + 2 * error, color=color, alpha=0.18, linewidth=0)

    for arm in arms:
        draw(metrics, arm, styles[arm].color, marker=styles[arm].marker)
    entries = [key_line(LABELS.get(arm, arm), color=styles[arm].color, marker=styles[arm].marker) for arm in arms]
    if "random" in arms:
        draw(read_metrics(run.path / "growing"), "random", INK, linestyle=":")
        entries.append(key_line("random, growing pool", color=INK, dashes=":"))
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("step", fontsize=LABEL)
    panel.set_ylabel("L2 distance of interests from the start", fontsize=LABEL)
    legend_below(figure, entries)
    run.figure(
        "replication",
        figure,
        title="Jiang et al. 2019: recommenders that exploit what users click move their interests furthest",
        caption=(
            "Euclidean distance between a user's interests now and at the start, mean over independent users with two "
            "standard errors. A straight line of slope one is drift without bound; random drifts like a random walk."
        ),
    )
