"""leaderboard: offline accuracy of recommenders on one data set, over the whole catalogue, with intervals over users.

There is no simulated user here. `run(config)` fits every arm once per seed on a split by time and writes
`tables/leaderboard.csv` after each arm, so that an interrupted run goes on with the next.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.bias_loop import NOT_RESULTS, design_from
from experiments.running.design import Design
from experiments.running.directory import RunDirectory, card_of_machine
from recommenders.evaluation.offline import leaderboard
from simenv.datasets.base import Dataset, Interactions
from simenv.datasets.splits import Split, global_time_split, leave_one_out
from simenv.errors import ConfigError
from simenv.randomness import Key
from simenv.slates import SeesDataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLITS: dict[str, Callable[[Interactions], Split]] = {"leave_one_out": leave_one_out, "global_time": global_time_split}
Rows = list[dict[str, Any]]


def run(config: Mapping[str, Any]) -> Path:
    """Write the leaderboard of `config["arms"]` on `config["dataset"]`; returns the run directory.

    Args:
        config: resolved configuration; `split` is ``leave_one_out`` (the last interaction of each user is the target,
            the one before it is in the input) or ``global_time``; with `save_models`, each arm fitted with the first
            seed is kept in ``models/<arm>``.

    Raises:
        ConfigError: an unknown split, or an arm that needs the simulation's truth.
        SimenvError: bad data or run directory.
    """
    started = time.time()
    design = design_from(dict(config) | {"modes": ["loop"], "references": []})
    if config["split"] not in SPLITS:
        raise ConfigError(f"split={config['split']}: expected one of {', '.join(SPLITS)}")
    if wrong := [arm for arm, _ in design.arms if arm in ("oracle", "none")]:
        raise ConfigError(
            f"arms: {', '.join(wrong)} cannot be judged offline; expected recommenders that learn from a log"
        )
    design.check()
    dataset = design.load_dataset(design.seed)
    split: Split = SPLITS[config["split"]](dataset.interactions)
    kept = {name: value for name, value in config.items() if name not in NOT_RESULTS}
    kept["recommenders"] = design.used_recommenders()
    folder = RunDirectory(Path(config["run_dir"]), kept, resume=bool(config["resume"]))
    if folder.complete:
        return folder.path
    with folder.locked():
        rows, seconds = _play(design, dataset, split, folder, config)
        _write_table(rows, folder.path)
        card = {
            "question": config["question"],
            "command": config["command"],
            "dataset": dataset.name,
            "split": split.name,
            "n_test_users": len(split.users),
            "n_train": len(split.train),
            "n_items": dataset.n_items,
            "seeds": list(design.seeds),
            "fit_cpu_seconds": seconds,
            **card_of_machine(started),
        }
        (folder.path / "run_card.json").write_text(json.dumps(card, indent=1) + "\n")
        plot(folder.path)
        folder.finish()
    return folder.path


def score(rows: Rows, metric: str = "ndcg@10") -> Rows:
    """The rows of one metric with seen items filtered, best first."""
    chosen = [row for row in rows if row["metric"] == metric and row["filter_seen"]]
    return sorted(chosen, key=lambda row: -row["value"])


def plot(folder: Path) -> Path:
    """The figure of accuracies and the page, from the directory's files alone."""
    import polars as pl

    from experiments.replications.targets import save_figure
    from simenv.report import build

    rows = pl.read_csv(folder / "tables" / "leaderboard.csv").to_dicts()
    save_figure(
        folder,
        "leaderboard",
        plot_leaderboard(rows),
        title="Accuracy on held-out interactions",
        caption="NDCG@10 over the whole catalogue, seen items filtered; bars are 95 % bootstrap intervals over users, "
        "ticks the lowest and the highest seed.",
    )
    return build(folder)


def plot_leaderboard(rows: Rows, metric: str = "ndcg@10") -> Figure:
    """Recommenders by one metric, best on top, with intervals, and of several seeds the lowest and highest."""
    from simenv.figures.style import arm_styles, small_multiples

    ordered = score(rows, metric)[::-1]
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


def _play(
    design: Design, dataset: Dataset, split: Split, folder: RunDirectory, config: Mapping[str, Any]
) -> tuple[Rows, dict[str, float]]:
    """All rows, and per arm the CPU seconds that fitting took, all threads and seeds together."""
    from rich.console import Console
    from rich.progress import track

    rows: Rows = []
    seconds: dict[str, float] = {}
    arms = [arm for arm, _ in design.arms]
    console = Console(stderr=True)
    for arm in track(arms, "recommenders", console=console, disable=not config["progress"]):
        done = folder.checkpoint / f"{arm}.json"
        if not done.is_file():
            judged = _judge(arm, design, dataset, split, folder, keep=config["save_models"])
            partial = done.with_suffix(".partial")
            partial.write_text(json.dumps(judged))
            partial.replace(done)
        found, seconds[arm] = json.loads(done.read_text())
        rows += found
        _write_table(rows, folder.path)
    return rows, seconds


def _judge(
    arm: str, design: Design, dataset: Dataset, split: Split, folder: RunDirectory, *, keep: bool
) -> tuple[Rows, float]:
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
        models[0].save(folder.path / "models" / arm)
    return rows, round(seconds, 1)


def _write_table(rows: Rows, folder: Path) -> None:
    import polars as pl

    (folder / "tables").mkdir(exist_ok=True)
    pl.DataFrame(rows).write_csv(folder / "tables" / "leaderboard.csv")
