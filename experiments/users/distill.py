"""distill: fit the embedded user model to another run's event log, and say what is lost by it.

The log of a run - users of a language model, or any others - is gone through once more in the order it happened, so
that every examined item has the circumstances it was seen under; the choice model's weights are then fitted by
maximum likelihood, judged on later rounds, and played in the same arm again. `experiments.users.fitting` fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.choice.model import ChoiceModel
from experiments.realism.tests import Row, UserBootstrap, mean, ratio
from experiments.running import course
from experiments.running.course import Run
from experiments.running.design import Design, Job
from experiments.running.directory import design_of
from experiments.users.fitting import Fit, Log, click_logits, fit_all, go_through, plain_spec
from simenv.checks import share
from simenv.errors import ConfigError, RunDirectoryError
from simenv.events import read_events
from simenv.metrics.frame import read_metrics
from simenv.numeric import DoubleArray, group_auc, sigmoid

BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The job whose users are distilled."""

    folder: Path
    design: Design
    job: Job


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """Whose users are distilled, and where the fit starts; world, arm and schedule are the source's.

    Attributes:
        source: a run directory with its events.
        source_arm, source_mode, source_seed: which of its jobs; None = the first.
        heldout: last share of the rounds by which the fit is judged.
        agent: spec of a ChoiceModel, where the fit starts.
    """

    source: str | None
    source_arm: str | None
    source_mode: str | None
    source_seed: int | None
    heldout: float
    agent: Mapping[str, Any]

    @cached_property
    def job(self) -> Source:
        """The job, found in the source."""
        return _source(self)

    def designs(self) -> dict[str, Design]:
        """Nothing that is known before the fit."""
        return {}

    def check(self) -> None:
        """Check the options and find the job."""
        _start(self.job, self.agent)


def play(settings: Settings, run: Run) -> None:
    """Fit, and play the distilled users in the same arm."""
    parameters, rows, bins, spec = distil(settings.job, settings.agent, settings.heldout)
    run.table("distilled", parameters)
    write_agent(run.path / "agent" / "distilled.yaml", spec)
    run.play({"": again(settings.job, spec)})
    run.table("fidelity", [asdict(row) for row in rows + beside(settings.job, run.path)])
    run.table("click_rate", bins)


def score(settings: Settings, run: Run) -> None:
    """No claims: `tables/fidelity.csv` says what is kept."""


def distil(
    source: Source, start: Mapping[str, Any], heldout: float
) -> tuple[list[dict[str, Any]], list[Row], list[dict[str, Any]], dict[str, Any]]:
    """Fit on the earlier rounds, judge on the later ones, and fit again on all.

    Args:
        source: whose log it is.
        start: spec of a ChoiceModel; what the log cannot tell stays as it is there.
        heldout: last share of the rounds by which the fit is judged.

    Returns:
        parameters, fidelity, click rates by tenth of the prediction, and the spec of the distilled agent.
    """
    world = source.design.make_world(source.job.seed)
    model = _start(source, start)
    events = read_events(source.folder, seed=source.job.seed, arm=source.job.arm, mode=source.job.mode)
    spec = plain_spec(start)
    log = go_through(world, events, model.dynamics, repeat=source.design.repeat)
    later = _later(log, heldout)
    earlier = fit_all(log.where(~later), spec, more_pages=source.design.schedule.max_pages)
    judged = log.where(later)
    rows, bins = fidelity(judged, log.where(~later), spec, earlier.spec)
    final = fit_all(log, spec, more_pages=source.design.schedule.max_pages)
    return _parameters(final, spec), rows, bins, final.spec


def fidelity(
    judged: Log, known: Log, start: Mapping[str, Any], fitted: Mapping[str, Any]
) -> tuple[list[Row], list[dict[str, Any]]]:
    """How well clicks on examined items are foretold: by one rate for all, the start's weights, the distilled ones.

    Returns:
        rows (log-likelihood per examined item in nats, mean AUC within users, calibration), and the click rate by
        tenth of the predicted one.
    """
    users, who = np.unique(judged.users, return_inverse=True)
    boot = UserBootstrap(len(users))
    y = judged.clicked.astype(np.float64)
    rate = float(np.clip(known.clicked.mean(), 1e-6, 1 - 1e-6))
    constant = np.full(len(y), np.log(rate / (1 - rate)))
    rows: list[Row] = []
    bins: list[dict[str, Any]] = []
    count = _sums(who, np.ones(len(y)))
    clicks = _sums(who, y)
    likelihoods: dict[str, DoubleArray] = {}
    models = {"one rate": constant, "start": click_logits(judged, start), "distilled": click_logits(judged, fitted)}
    for name, logits in models.items():
        p = sigmoid(logits)
        likelihoods[name] = _sums(who, y * logits - np.logaddexp(0, logits))
        rows.append(boot.row("clicks", "later rounds", name, "log-likelihood", ratio(likelihoods[name], count)))
        rows.append(boot.row("clicks", "later rounds", name, "auc", mean(group_auc(who, p, judged.clicked))))
        foretold = _sums(who, p)
        rows.append(boot.row("clicks", "later rounds", name, "click rate foretold / observed", ratio(foretold, clicks)))
        own, error = _tenths(p, judged.clicked)
        rows.append(Row(test="clicks", setting="later rounds", model=name, metric="calibration error", value=error))
        bins += [{"model": name} | each for each in own]
    for other in ("one rate", "start"):
        gain = likelihoods["distilled"] - likelihoods[other]
        metric = f"log-likelihood gained over {other}"
        rows.append(boot.row("clicks", "later rounds", "distilled", metric, ratio(gain, count)))
    return rows, bins


def beside(source: Source, folder: Path) -> list[Row]:
    """The distilled users in the source's arm, beside the source: every metric's mean over rounds, and the distance."""
    import polars as pl

    job = source.job
    means = {}
    for name, path in (("source", source.folder), ("distilled", folder)):
        metrics = read_metrics(path).filter(
            (pl.col("seed") == job.seed)
            & (pl.col("arm") == job.arm)
            & (pl.col("mode") == job.mode)
            & (pl.col("group") == "all")
        )
        table = metrics.group_by("metric", maintain_order=True).agg(pl.col("value").mean())
        means[name] = dict(zip(table["metric"].to_list(), table["value"].to_list(), strict=True))
    rows = []
    for metric, value in means["source"].items():
        if value is None or means["distilled"].get(metric) is None:
            continue
        for name in ("source", "distilled"):
            rows.append(
                Row(test="loop", setting="mean over rounds", model=name, metric=metric, value=means[name][metric])
            )
        lost = means["distilled"][metric] - value
        rows.append(Row(test="loop", setting="mean over rounds", model="distilled - source", metric=metric, value=lost))
    return rows


def again(source: Source, spec: Mapping[str, Any]) -> Design:
    """The source's job as a design of its own, with other users."""
    design, job = source.design, source.job
    n_users = design.make_world(job.seed).dataset.n_users
    return replace(
        design,
        agent=spec,
        arms=((job.arm, job.mode),),
        seed=job.seed,
        n_seeds=1,
        probe=None,
        user_fraction=n_users / design.load_dataset(job.seed).n_users,
    )


def write_agent(path: Path, spec: Mapping[str, Any]) -> None:
    """The distilled agent as a configuration: ``hydra.searchpath=[file://RUN] agent=distilled``."""
    from omegaconf import OmegaConf

    path.parent.mkdir(exist_ok=True)
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(spec))))


def plot(settings: Settings, run: Run) -> None:
    """Click rates foretold and observed."""
    import polars as pl

    from simenv.figures.style import FAINT, INK, LABEL, arm_styles, new_figure

    bins = run.read_table("click_rate")
    figure, grid = new_figure(1, 1, (5.6, 5.2))
    panel = grid[0, 0]
    colors = {"start": INK, "distilled": arm_styles(["distilled"])["distilled"].color}
    for name, color in colors.items():
        own = bins.filter(pl.col("model") == name)
        panel.plot(own["foretold"], own["observed"], "o-", color=color, label=name)
    top = float(bins.select(pl.max_horizontal("foretold", "observed").max()).item())
    panel.plot([0, top], [0, top], color=FAINT, linewidth=1)
    panel.set_xlabel("click rate foretold, tenths of the examined items", fontsize=LABEL)
    panel.set_ylabel("click rate observed in later rounds", fontsize=LABEL)
    panel.legend(fontsize=LABEL, frameon=False)
    run.figure(
        "distilled",
        figure,
        title="Do the distilled users click as the source's did?",
        caption=(
            "Examined items of rounds that the fit has not seen, in tenths of the foretold click rate: before "
            "(start) and after the fit (distilled). On the line, what is foretold is what happened."
        ),
    )


def _source(settings: Settings) -> Source:
    """Check the options and find the job."""
    if not settings.source:
        raise ConfigError("source=null: expected the run directory whose users are to be distilled")
    share("heldout", settings.heldout, open_low=True, open_high=True)
    folder = Path(settings.source)
    if not (folder / "config.yaml").is_file():
        raise RunDirectoryError(f"source={folder}: has no config.yaml; expected a run directory")
    design = design_of(folder)
    if design.record_every != 1:
        raise ConfigError(f"source={folder}: keeps every {design.record_every}th round only; expected record_every=1")
    wanted = {"arm": settings.source_arm, "mode": settings.source_mode, "seed": settings.source_seed}
    for job in design.jobs():
        if all(value is None or getattr(job, name) == value for name, value in wanted.items()):
            return Source(folder=folder, design=design, job=job)
    jobs = ", ".join(job.id for job in design.jobs())
    raise ConfigError(f"source={folder}: no such job ({wanted}); expected one of {jobs}")


def _start(source: Source, spec: Mapping[str, Any]) -> ChoiceModel:
    model = replace(source.design, agent=spec).make_users()
    if type(model) is not ChoiceModel:
        raise ConfigError(f"agent: {type(model).__name__} has no weights to fit; expected agent=choice")
    return model


def _later(log: Log, heldout: float) -> NDArray[np.bool_]:
    rounds = np.unique(log.rounds)
    if len(rounds) < 2:
        raise ConfigError(f"source: {len(rounds)} round with clicks to learn from; expected at least 2")
    n_held = min(max(1, round(heldout * len(rounds))), len(rounds) - 1)
    return np.asarray(log.rounds >= rounds[-n_held])


def _parameters(fit: Fit, start: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, value in fit.spec.items():
        if name.startswith("_") or not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        se = fit.errors.get(name, float("nan"))
        rows.append(
            {
                "parameter": name,
                "start": float(start[name]),
                "value": float(value),
                "ci_low": float(value) - 1.96 * se,
                "ci_high": float(value) + 1.96 * se,
                "fitted": name in fit.errors,
            }
        )
    return rows


def _sums(who: NDArray[np.int64], values: DoubleArray) -> DoubleArray:
    return np.bincount(who, weights=values).astype(np.float64)


def _tenths(p: DoubleArray, clicked: NDArray[np.bool_]) -> tuple[list[dict[str, Any]], float]:
    """Foretold and observed click rate by tenth of the prediction, and their mean distance."""
    parts: Sequence[NDArray[np.int64]] = np.array_split(np.argsort(p, kind="stable"), BINS)
    rows = [
        {"tenth": place, "foretold": float(p[rows].mean()), "observed": float(clicked[rows].mean()), "n": len(rows)}
        for place, rows in enumerate(parts)
        if len(rows)
    ]
    total = sum(row["n"] for row in rows)
    return rows, float(sum(row["n"] * abs(row["foretold"] - row["observed"]) for row in rows) / total)
