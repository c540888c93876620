"""leaderboard: offline accuracy of recommenders on one data set, with intervals over users.

Over the whole catalogue, among 100 candidates, or of stars. There is no simulated user here. Every arm is fitted once
per seed on a split, and `tables/leaderboard.csv` written after each, so that an interrupted run goes on with the next.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from experiments.running import course
from experiments.running.course import Row, Run
from experiments.running.design import Design, Spec, build
from recommenders.evaluation.offline import TARGETS, item_means, leaderboard, rating_metrics, table_rows
from recommenders.evaluation.transfer import ZeroShot, carried_over, joined
from simenv import checks
from simenv.datasets.base import Dataset
from simenv.datasets.splits import SPLITS, Split
from simenv.errors import ConfigError
from simenv.files import read_sealed, write_sealed
from simenv.randomness import Key
from simenv.slates import SeesDataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        save_models: each arm, fitted with the first seed, is kept in ``models/<arm>``.
    """

    split: str
    target: str
    learn_from: Mapping[str, Any] | None
    save_models: bool

    def __post_init__(self) -> None:
        checks.one_of("split", self.split, tuple(SPLITS))
        checks.one_of("target", self.target, TARGETS)
        if wrong := [arm for arm, _ in self.design.arms if arm in ("oracle", "none")]:
            raise ConfigError(
                f"arms: {', '.join(wrong)} cannot be judged offline; expected recommenders that learn from a log"
            )

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """The settings that a configuration describes; modes and references do not matter."""
        before = {"target": "ranking", "learn_from": None}  # runs from before there were others
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
    """Judge arm after arm; what is judged stays judged."""
    from rich.console import Console
    from rich.progress import track

    dataset, split = settings.data
    design, rows = settings.design, list[Row]()
    seconds: dict[str, float] = {}
    arms = [arm for arm, _ in design.arms]
    for arm in track(arms, "recommenders", console=Console(stderr=True), disable=not run.progress):
        done = run.directory.checkpoint / f"{arm}.json"
        judged = read_sealed(done)
        if judged is None:
            found, cost = _judge(arm, settings, run.path)
            judged = {"rows": found, "seconds": cost}
            write_sealed(done, judged)
        rows += judged["rows"]
        seconds[arm] = judged["seconds"]
        run.table("leaderboard", rows)
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


def _judge(arm: str, settings: Settings, folder: Path) -> tuple[list[dict[str, Any]], float]:
    """One arm's rows and CPU seconds; it sees the catalogue and the training interactions, never the targets."""
    design, (dataset, split) = settings.design, settings.data
    zero_shot = settings.learn_from is not None
    seen = dataset if zero_shot else dataset.replace_interactions(split.train)
    started, seconds = 0.0, 0.0
    models: list[Any] = []

    def make() -> Any:
        nonlocal started
        recommender = design.make_recommender(arm)
        if isinstance(recommender, SeesDataset):
            recommender.bind_dataset(seen)
        started = time.process_time()
        return ZeroShot(recommender, dataset.interactions) if zero_shot else recommender

    def fitted(name: str, recommender: Any) -> None:
        nonlocal seconds
        seconds += time.process_time() - started
        if not models:
            models.append(recommender)

    keys = [Key(seed) for seed in design.seeds]
    rows = leaderboard({arm: make}, split, keys=keys, target=settings.target, after_fit=fitted)
    if settings.save_models:
        models[0].save(folder / "models" / arm)
    return rows, round(seconds, 1)
