"""leaderboard: offline accuracy of recommenders on one data set, with intervals over users.

Over the whole catalogue, among 100 candidates, or of stars. There is no simulated user here. Every arm is fitted once
per seed on a split, and what it found is kept, so that an interrupted run goes on with the next fit.
`tables/leaderboard.csv` is written after each arm.
"""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from experiments.running import course
from experiments.running.course import Row, Run
from experiments.running.design import Design, Spec, build
from recommenders.evaluation.offline import TARGETS, item_means, measured, rating_metrics, table_rows
from recommenders.evaluation.transfer import ZeroShot, carried_over, joined
from simenv import checks
from simenv.datasets.base import Dataset
from simenv.datasets.splits import SPLITS, Split
from simenv.errors import ConfigError
from simenv.files import write_whole
from simenv.randomness import Key
from simenv.slates import SeesDataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = Mapping[bool, Mapping[str, NDArray[Any]]]  # setting of the seen-item filter -> metric -> values per test user
FIGURES = {"ranking": "ndcg@10", "candidates99": "ndcg@10", "rating": "rmse"}  # the metric that is drawn


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """How the arms are judged.

    Attributes:
        split: ``last`` (the last interaction of each user is the target, the one before it is in the input), ``time``,
            ``cold_items``, ``cold_users`` or ``random``, see `simenv.datasets.splits`.
        target: what is asked for: ``ranking`` of the whole catalogue, of ``candidates99`` and the target, or the
            ``rating`` of the target, see `recommenders.evaluation.offline.measured`.
        learn_from: a data set to learn from in place of `dataset`, of whose users the histories are then read and not
            learned from (`recommenders.evaluation.transfer`); None = `dataset`. Its own `n_users` and `n_items` count.
        against: an arm that the others are held against, user by user, in ``tables/leaderboard_differences.csv``; None
            = none. Of rankings.
        save_models: each arm, fitted with the first seed, is kept in ``models/<arm>``.
    """

    split: str
    target: str
    learn_from: Mapping[str, Any] | None
    against: str | None
    save_models: bool

    def __post_init__(self) -> None:
        checks.one_of("split", self.split, tuple(SPLITS))
        checks.one_of("target", self.target, TARGETS)
        if wrong := [arm for arm, _ in self.design.arms if arm in ("oracle", "none")]:
            raise ConfigError(
                f"arms: {', '.join(wrong)} cannot be judged offline; expected recommenders that learn from a log"
            )
        if self.against is not None:
            checks.one_of("against", self.against, [arm for arm, _ in self.design.arms])
            ranked = self.target != "rating"
            checks.require(ranked, "against", self.against, "null with target=rating: root mean squares have no pairs")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """The settings that a configuration describes; modes and references do not matter."""
        before = {"target": "ranking", "learn_from": None, "against": None}  # runs from before there were others
        return super().of({**before, **config, "modes": ["loop"], "references": []})

    @cached_property
    def data(self) -> tuple[Dataset, Split]:
        """The data set, and what is known and asked of it; with `learn_from` both together, and of it what is asked."""
        dataset = self.design.load_dataset(self.design.seed)
        split = SPLITS[self.split](dataset)
        if self.learn_from is None:
            return dataset, split
        source = build(self.learn_from, "learn_from")
        return joined(source, dataset), carried_over(split, source)

    def designs(self) -> dict[str, Design]:
        """Nothing is played."""
        return {}

    def recommenders(self) -> dict[str, Spec]:
        """The arms."""
        return self.design.used_recommenders()

    def check(self) -> None:
        """Make every arm, and split the data."""
        self.design.check(data=False)
        _ = self.data


def play(settings: Settings, run: Run) -> None:
    """Judge arm after arm, seed after seed; what is judged stays judged."""
    from rich.console import Console
    from rich.progress import track

    dataset, split = settings.data
    design, rows = settings.design, list[Row]()
    found: dict[str, list[Found]] = {}
    seconds: dict[str, float] = {}
    fits = [(arm, seed) for arm, _ in design.arms for seed in design.seeds]
    for arm, seed in track(fits, "fits", console=Console(stderr=True), disable=not run.progress):
        done = run.directory.checkpoint / f"{arm}-{seed}.npz"
        judged = _read(done)
        if judged is None:
            judged = _judge(arm, seed, settings, run.path)
            _write(done, *judged)
        found.setdefault(arm, []).append(judged[0])
        seconds[arm] = round(seconds.get(arm, 0.0) + judged[1], 1)
        if seed == design.seeds[-1]:
            rows += _rows(arm, found[arm])
            run.table("leaderboard", rows)
    if settings.against is not None:
        run.table("leaderboard_differences", differences(found, settings.against))
    if settings.target == "rating":
        means = rating_metrics(item_means(split.train)[split.held.items], split.held.ratings)
        run.table("leaderboard", [*rows, *table_rows("item mean", [means], True)])
    run.card(
        dataset=dataset.name,
        split=split.name,
        split_digest=split.digest(),
        target=settings.target,
        n_test_users=len(split.users),
        n_train=len(split.train),
        n_items=dataset.n_items,
        seeds=list(design.seeds),
        fit_cpu_seconds=seconds,
    )


def score(settings: Settings, run: Run) -> None:
    """No claims: the table says it."""


def plot(settings: Settings, run: Run) -> None:
    """The figure of accuracies."""
    metric = FIGURES[settings.target]
    what = {
        "ranking": "NDCG@10 over the whole catalogue, seen items filtered",
        "candidates99": "NDCG@10 of the target among itself and 99 items the user never had",
        "rating": "RMSE of the stars of what each user took last, the best on top",
    }[settings.target]
    run.figure(
        "leaderboard",
        plot_leaderboard(run.read_table("leaderboard").to_dicts(), metric),
        title="Accuracy on held-out interactions",
        caption=f"{what}; bars are 95 % bootstrap intervals over users, ticks the lowest and the highest seed.",
    )


def best_first(rows: Sequence[Row], metric: str = "ndcg@10") -> list[Row]:
    """The rows of one metric with seen items filtered, best first."""
    chosen = [row for row in rows if row["metric"] == metric and row["filter_seen"]]
    return sorted(chosen, key=lambda row: row["value"] * (1 if metric in ("rmse", "mae") else -1))


def plot_leaderboard(rows: Sequence[Row], metric: str = "ndcg@10") -> Figure:
    """Recommenders by one metric, best on top, with intervals, and of several seeds the lowest and highest."""
    from simenv.figures.style import arm_styles, small_multiples

    ordered = best_first(rows, metric)[::-1]
    styles = arm_styles([row["recommender"] for row in ordered])
    figure, (panel,) = small_multiples(1, height=1.5 + 0.4 * len(ordered))
    for place, row in enumerate(ordered):
        style = styles[row["recommender"]]
        panel.plot([row["ci_low"], row["ci_high"]], [place, place], color=style.color, linewidth=2)
        panel.plot([row["value"]], [place], color=style.color, marker=style.marker)
        if row.get("n_seeds", 1) > 1:  # tables of older runs do not say
            panel.plot([row["seed_low"], row["seed_high"]], [place] * 2, "|", color=style.color, markersize=11)
    panel.set_yticks(range(len(ordered)), [row["recommender"] for row in ordered])
    panel.set_xlabel(metric)
    return figure


def differences(found: Mapping[str, Sequence[Found]], against: str) -> list[dict[str, Any]]:
    """The rows of `tables/leaderboard_differences.csv`: each other arm minus `against`, paired by user and seed.

    Intervals are over users, of a user's mean over the seeds; `seed_low` and `seed_high` are differences of one seed.
    """
    rows = []
    for arm, by_seed in found.items():
        if arm == against:
            continue
        paired = [
            {
                filter_seen: {metric: values - theirs[filter_seen][metric] for metric, values in metrics.items()}
                for filter_seen, metrics in ours.items()
            }
            for ours, theirs in zip(by_seed, found[against], strict=True)
        ]
        rows += [{"recommender": arm, "against": against, **row} for row in _rows(arm, paired)]
    return rows


def _rows(arm: str, by_seed: Sequence[Found]) -> list[dict[str, Any]]:
    filters = by_seed[0]
    return [row for setting in filters for row in table_rows(arm, [found[setting] for found in by_seed], setting)]


def _judge(arm: str, seed: int, settings: Settings, folder: Path) -> tuple[Found, float]:
    """What one fit of an arm finds, and its CPU seconds; it sees catalogue and training interactions, no targets."""
    design, (dataset, split) = settings.design, settings.data
    zero_shot = settings.learn_from is not None
    recommender = design.make_recommender(arm)
    if isinstance(recommender, SeesDataset):
        recommender.bind_dataset(dataset if zero_shot else dataset.replace_interactions(split.train))
    judged: Any = ZeroShot(recommender, dataset.interactions) if zero_shot else recommender
    started = time.process_time()
    judged.fit(split.train, key=Key(seed))
    seconds = time.process_time() - started
    if settings.save_models and seed == design.seeds[0]:
        judged.save(folder / "models" / arm)
    filters = (True, False) if settings.target == "ranking" else (True,)
    return {each: measured(judged, split, settings.target, each, Key(seed)) for each in filters}, round(seconds, 1)


def _write(path: Path, found: Found, seconds: float) -> None:
    arrays: dict[str, Any] = {"seconds": np.float64(seconds)}
    for seen, metrics in found.items():
        arrays |= {f"{int(seen)} {metric}": values for metric, values in metrics.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_whole(path, content.getvalue())


def _read(path: Path) -> tuple[Found, float] | None:
    """What `_write` wrote; None where it is missing or damaged."""
    found: dict[bool, dict[str, NDArray[Any]]] = {}
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            seconds = float(arrays["seconds"])
            for name in (each for each in arrays.files if each != "seconds"):
                seen, metric = name.split(" ")
                found.setdefault(seen == "1", {})[metric] = arrays[name]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return found, seconds
