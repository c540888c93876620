"""What replications of published results share: targets with a verdict, their table, and the course of a run.

A replication plays one or more designs into a run directory, computes its targets from the directory's files, and
draws its own figure. A target that fails is reported as failed. The module does not know any paper.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.bias_loop import NOT_RESULTS, Carrying, conclude, design_from, dry_run, play
from experiments.running.design import Design, without_carrying
from experiments.running.directory import RunDirectory
from simenv.conclusions.statistics import Interval, paired_t
from simenv.errors import DataError

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

    from simenv.events import Events

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One published result beside ours.

    Attributes:
        name: short, unique in its experiment.
        target: what the paper found, in words, with the pass criterion.
        published: the published figure, where there is one.
        ours: our estimate with its 95 % interval over replicates.
        passed: whether the criterion is met; None = a figure without one.
    """

    name: str
    target: str
    published: float | None
    ours: Interval
    passed: bool | None


def interval(values: ArrayLike | Interval) -> Interval:
    """An Interval as it is; values (S,), one per replicate, as their mean with Student's t interval."""
    return values if isinstance(values, Interval) else paired_t(values)


def above(
    name: str, target: str, values: ArrayLike | Interval, *, bound: float = 0.0, published: float | None = None
) -> Target:
    """Passes where the whole interval lies above `bound`; the estimate, where one replicate has no interval."""
    ours = interval(values)
    low = ours.low if np.isfinite(ours.low) else ours.estimate
    return Target(name=name, target=target, published=published, ours=ours, passed=bool(low > bound))


def below(
    name: str, target: str, values: ArrayLike | Interval, *, bound: float = 0.0, published: float | None = None
) -> Target:
    """Passes where the whole interval lies below `bound`; the estimate, where one replicate has no interval."""
    ours = interval(values)
    high = ours.high if np.isfinite(ours.high) else ours.estimate
    return Target(name=name, target=target, published=published, ours=ours, passed=bool(high < bound))


def within(
    name: str, target: str, values: ArrayLike | Interval, *, bound: float, published: float | None = None
) -> Target:
    """Passes where the whole interval lies between -`bound` and `bound`."""
    low, high = (side(name, target, values, bound=b) for side, b in ((above, -bound), (below, bound)))
    return Target(name=name, target=target, published=published, ours=low.ours, passed=bool(low.passed and high.passed))


def reported(name: str, target: str, values: ArrayLike | Interval, *, published: float | None = None) -> Target:
    """A figure to compare by eye: the paper states no criterion."""
    return Target(name=name, target=target, published=published, ours=interval(values), passed=None)


def replicate(
    config: Mapping[str, Any],
    designs: Mapping[str, Design],
    score: Callable[[Path], Sequence[Target]],
    plot: Callable[[Path], object],
    *,
    claims: bool = False,
) -> Path | None:
    """Play a replication's designs, score it, draw it, and complete the run directory.

    Returns:
        The directory; None after a dry run.

    Args:
        config: resolved configuration, with `run_dir` and, to go on with an interrupted run, `resume`.
        designs: by sub-folder; "" is the run directory itself.
        score: targets from the directory's files.
        plot: figures and page from the directory's files.
        claims: whether the standard claims about the main design are judged into `claims.json` as well.
    """
    carrying = Carrying.of(config)
    for design in designs.values():
        design.check()
    main, others = designs[""], {name: design for name, design in designs.items() if name}
    if config["dry_run"]:
        dry_run(main, others)
        return None
    kept = {name: value for name, value in config.items() if name not in NOT_RESULTS}
    played = {arm for design in designs.values() for arm, _ in design.arms} | {config.get("base")}
    recommenders = {name: spec for name, spec in config["recommenders"].items() if name in played}
    kept = without_carrying(kept | {"recommenders": recommenders})
    folder = RunDirectory(Path(config["run_dir"]), kept, resume=carrying.resume)
    if folder.complete:
        return folder.path
    with folder.locked():
        play(main.with_run_files(folder.path), folder, carrying)
        for name, design in others.items():
            part = RunDirectory(folder.path / name, kept | {"part_of": name}, resume=(folder.path / name).is_dir())
            if not part.complete:
                play(design.with_run_files(folder.path), part, carrying)
                part.finish()
        if claims:
            conclude(folder.path, main, config, [])
        targets = score(folder.path)
        if targets:
            write_targets(folder.path, targets)
        plot(folder.path)
        folder.finish()
    return folder.path


def design_of(folder: Path) -> Design:
    """The design that a run directory's `config.yaml` describes."""
    return design_from(config_of(folder))


def config_of(folder: Path) -> dict[str, Any]:
    """The resolved configuration in a run directory's `config.yaml`."""
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(OmegaConf.load(Path(folder) / "config.yaml"))
    return {str(key): value for key, value in config.items()}


def write_targets(folder: Path, targets: Sequence[Target]) -> None:
    """`tables/replication.csv`: name, target, published, ours, ci_low, ci_high, passed (true, false or empty)."""
    write_table(
        folder / "tables" / "replication.csv",
        [
            {
                "name": t.name,
                "target": t.target,
                "published": t.published,
                "ours": t.ours.estimate,
                "ci_low": t.ours.low,
                "ci_high": t.ours.high,
                "passed": t.passed,
            }
            for t in targets
        ],
        {"published": "Float64", "passed": "Boolean"},
    )


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], types: Mapping[str, str] | None = None) -> None:
    """A tidy CSV table; NaN is an empty cell.

    Args:
        path: of the file; its folder is made.
        rows: with the same keys.
        types: polars type names of columns that may hold nothing but None.
    """
    import polars as pl

    path.parent.mkdir(exist_ok=True)
    overrides = {name: getattr(pl, kind) for name, kind in (types or {}).items()}
    table = pl.DataFrame(list(rows), schema_overrides=overrides, infer_schema_length=None)
    table.with_columns(pl.col(pl.Float64).fill_nan(None)).write_csv(path)


def read_metrics(folder: Path) -> pl.DataFrame:
    """`metrics.csv` of a run directory."""
    import polars as pl

    return pl.read_csv(folder / "metrics.csv", schema_overrides={"group": pl.String, "value": pl.Float64})


def series(metrics: pl.DataFrame, arm: str, mode: str, metric: str, group: str = "all") -> Values:
    """One metric of one arm, (seeds, rounds), seeds and rounds ascending.

    Raises:
        DataError: the table does not hold it.
    """
    import polars as pl

    rows = metrics.filter(
        (pl.col("arm") == arm) & (pl.col("mode") == mode) & (pl.col("metric") == metric) & (pl.col("group") == group)
    ).sort("seed", "round")
    if rows.height == 0:
        raise DataError(f"metrics: no {metric} of {arm}/{mode} in group {group}")
    values = rows["value"].to_numpy().astype(np.float64).reshape(rows["seed"].n_unique(), -1)
    return np.asarray(values)


def amplification(metrics: pl.DataFrame, arm: str, metric: str, group: str = "all", control: str = "frozen") -> Values:
    """AMP of one metric, (seeds,): [last - first round] in the loop minus the same in the control."""
    loop, other = (series(metrics, arm, mode, metric, group) for mode in ("loop", control))
    return np.asarray((loop[:, -1] - loop[:, 0]) - (other[:, -1] - other[:, 0]))


def consumed(folder: Path, seed: int, arm: str, mode: str) -> Events:
    """The clicks of one job, in the order they happened."""
    from simenv.events import read_events

    events = read_events(folder, seed=seed, arm=arm, mode=mode)
    return events.take(np.flatnonzero(events.clicked))


def save_figure(folder: Path, name: str, figure: Figure, *, title: str, caption: str) -> None:
    """`figures/<name>.png`, and beside it a `.json` with title and caption for who builds a page from it."""
    from simenv.figures.style import png_bytes

    path = folder / "figures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(png_bytes(figure))
    path.with_suffix(".json").write_text(json.dumps({"title": title, "caption": caption}, indent=1) + "\n")
