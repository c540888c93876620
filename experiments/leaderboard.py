"""leaderboard: offline accuracy of recommenders on one data set, over the whole catalogue, with intervals over users.

There is no simulated user here. Every arm is fitted once per seed on a split by time, and `tables/leaderboard.csv`
written after each, so that an interrupted run goes on with the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from experiments.running import course
from experiments.running.course import Row, Run
from experiments.running.design import Design, Spec
from recommenders.evaluation.offline import leaderboard
from simenv.datasets.base import Dataset, Interactions
from simenv.datasets.splits import Split, global_time_split, leave_one_out
from simenv.errors import ConfigError
from simenv.files import read_sealed, write_sealed
from simenv.randomness import Key
from simenv.slates import SeesDataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLITS: dict[str, Callable[[Interactions], Split]] = {"leave_one_out": leave_one_out, "global_time": global_time_split}


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """How the arms are judged.

    Attributes:
        split: ``leave_one_out`` (the last interaction of each user is the target, the one before it is in the input) or
            ``global_time``.
        save_models: each arm, fitted with the first seed, is kept in ``models/<arm>``.
    """

    split: str
    save_models: bool

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ConfigError(f"split={self.split}: expected one of {', '.join(SPLITS)}")
        if wrong := [arm for arm, _ in self.design.arms if arm in ("oracle", "none")]:
            raise ConfigError(
                f"arms: {', '.join(wrong)} cannot be judged offline; expected recommenders that learn from a log"
            )

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """The settings that a configuration describes; modes and references do not matter."""
        return super().of({**config, "modes": ["loop"], "references": []})

    @cached_property
    def data(self) -> tuple[Dataset, Split]:
        """The data set, and what is known and asked of it."""
        dataset = self.design.load_dataset(self.design.seed)
        return dataset, SPLITS[self.split](dataset.interactions)

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
            found, cost = _judge(arm, design, dataset, split, run.path, keep=settings.save_models)
            judged = {"rows": found, "seconds": cost}
            write_sealed(done, judged)
        rows += judged["rows"]
        seconds[arm] = judged["seconds"]
        run.table("leaderboard", rows)
    run.card(
        dataset=dataset.name,
        split=split.name,
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
    run.figure(
        "leaderboard",
        plot_leaderboard(run.read_table("leaderboard").to_dicts()),
        title="Accuracy on held-out interactions",
        caption="NDCG@10 over the whole catalogue, seen items filtered; bars are 95 % bootstrap intervals over users, "
        "ticks the lowest and the highest seed.",
    )


def best_first(rows: Sequence[Row], metric: str = "ndcg@10") -> list[Row]:
    """The rows of one metric with seen items filtered, best first."""
    chosen = [row for row in rows if row["metric"] == metric and row["filter_seen"]]
    return sorted(chosen, key=lambda row: -row["value"])


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


def _judge(
    arm: str, design: Design, dataset: Dataset, split: Split, folder: Path, *, keep: bool
) -> tuple[list[dict[str, Any]], float]:
    """One arm's rows and CPU seconds; it sees the catalogue and the training interactions, never the targets."""
    seen = dataset.replace_interactions(split.train)
    started, seconds = 0.0, 0.0
    models: list[Any] = []

    def make() -> Any:
        nonlocal started
        recommender = design.make_recommender(arm)
        if isinstance(recommender, SeesDataset):
            recommender.bind_dataset(seen)
        started = time.process_time()
        return recommender

    def fitted(name: str, recommender: Any) -> None:
        nonlocal seconds
        seconds += time.process_time() - started
        if not models:
            models.append(recommender)

    rows = leaderboard({arm: make}, split, keys=[Key(seed) for seed in design.seeds], after_fit=fitted)
    if keep:
        models[0].save(folder / "models" / arm)
    return rows, round(seconds, 1)
