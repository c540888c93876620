"""bias_loop: what does a recommender that learns from its own feedback do to users and catalogue?

`run(config)` plays the design, re-plays it in the other consumption regimes and, if asked, under other user models,
judges the claims stated beforehand, and writes a complete run directory.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.running.design import Design, expand_arms, spec_from_conf, without_carrying
from experiments.running.directory import RunDirectory, write_metrics, write_run_card, write_world_tables
from experiments.running.workers import run_jobs
from simenv.conclusions.claims import Claim, flips, judge, seed_differences, sign_changes
from simenv.conclusions.standard import standard_claims
from simenv.conclusions.statistics import variance_split
from simenv.errors import ConfigError
from simenv.metrics.table import METRICS
from simenv.platform import TWIN_PAGES, Schedule
from simenv.randomness import Key
from simenv.slates import SeesDataset, SeesTruth, asks_model

if TYPE_CHECKING:
    import polars as pl

NOT_RESULTS = ("resume", "workers", "checkpoint_every", "progress", "run_dir", "command", "dry_run")
_OWN = tuple(f.name for f in fields(Design) if f.name not in ("arms", "schedule", "fit", "luck"))
VARIANTS = ((0, 1), (1, 0))  # (fitting seed, luck) beside the main run's (0, 0)
Claims = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrying:
    """How a run is carried out, which changes no result."""

    workers: int | None
    checkpoint_every: int
    progress: bool
    question: str
    command: str
    resume: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Carrying:
        values = {f.name: config[f.name] for f in fields(cls)}
        return cls(**values | {"resume": bool(config["resume"])})


def design_from(config: Mapping[str, Any]) -> Design:
    """The Design that a resolved configuration describes."""
    schedule = {f.name: config[f.name] for f in fields(Schedule)}
    return Design(
        arms=expand_arms(config["arms"], config["modes"], config["references"]),
        schedule=Schedule(**schedule),
        **{name: config[name] for name in _OWN},
    )


def run(config: Mapping[str, Any]) -> Path | None:
    """Play a bias_loop and write its run directory; returns the directory, or None after a dry run.

    Args:
        config: resolved configuration (conf/config.yaml plus an experiment), with `run_dir` and, to go on with an
            interrupted run, `resume`.

    Raises:
        SimenvError: bad configuration, data or run directory; a gate that failed.
        Interrupted: stopped from outside, checkpoint saved.
    """
    design = design_from(config)
    carrying = Carrying.of(config)
    others = _other_designs(design, config, _check_claims(design, config))
    for each in (design, *others.values()):
        each.check()
    if config["dry_run"]:
        dry_run(design, others)
        return None
    kept = {name: value for name, value in config.items() if name not in NOT_RESULTS}
    kept = without_carrying(kept | {"recommenders": design.used_recommenders()})
    folder = RunDirectory(Path(config["run_dir"]), kept, resume=carrying.resume)
    if folder.complete:
        return folder.path
    with folder.locked():
        play(design.with_run_files(folder.path), folder, carrying)
        for name, other in others.items():
            part = RunDirectory(folder.path / name, kept | {"part_of": name}, resume=(folder.path / name).is_dir())
            if not part.complete:
                play(other.with_run_files(folder.path), part, carrying)
                part.finish()
        conclude(folder.path, design, config, list(others))
        plot(folder.path)
        folder.finish()
    return folder.path


def dry_run(design: Design, others: Mapping[str, Design]) -> None:
    """Print, for whoever asks a language model, one full prompt and what the run's pages would cost at most; nothing is
    asked or written.

    Raises:
        ConfigError: neither the users nor an arm ask a language model.
    """
    users = design.make_users()
    arms = {arm: design.make_recommender(arm) for arm in dict(design.arms)}
    asking = [arm for arm, one in arms.items() if asks_model(one)]
    if not asks_model(users) and not asking:
        raise ConfigError(f"dry_run: agent {users.name} asks no language model; expected agent=llm")
    world = design.make_world(design.seed)
    users.bind(world.dataset, world.tastes, seed=design.seed, repeat=design.repeat, traits=world.traits)
    key = Key(design.seed)
    sample = np.arange(min(20, world.dataset.n_users))
    slates = users.unaided_slates(sample, design.schedule.slate_size, key, exclude=users.excluded(sample))
    pages: Counter[str] = Counter()
    for each in (design, *others.values()):
        served = each.n_seeds * each.rounds * each.schedule.max_pages * world.dataset.n_users
        for arm, mode in each.arms:
            pages[arm] += served
            pages["agent"] += served * (1 + (TWIN_PAGES if mode == "organic" else mode == "exogenous"))
    if asks_model(users):
        print(users.dry_run(sample, slates, key, pages=pages["agent"]))
    for arm in asking:
        recommender = arms[arm]
        if isinstance(recommender, SeesDataset):
            recommender.bind_dataset(world.dataset)
        if isinstance(recommender, SeesTruth):
            recommender.bind_truth(users.utility)
        recommender.fit(world.dataset.interactions, key=key)
        print(f"arm {arm}:\n\n{recommender.dry_run(sample, slates, key, pages=pages[arm])}")


def _other_designs(design: Design, config: Mapping[str, Any], primary: Claim | None) -> dict[str, Design]:
    """What is played beside the design, by sub-folder: the other regimes, the other user models, and the primary
    claim's two arms with other fitting seeds and other luck in the same worlds.
    """
    others = {}
    for regime in config["regimes"]:
        if regime != design.repeat:
            others[f"regimes/{regime}"] = replace(
                design, repeat=regime, n_seeds=min(config["robustness_seeds"], design.n_seeds)
            )
    for name in config["user_models"]:
        others[f"user_models/{name}"] = replace(
            design,
            tastes=spec_from_conf("tastes", name),
            refit_tastes=True,
            n_seeds=min(config["robustness_seeds"], design.n_seeds),
        )
    if config["variance_worlds"] and primary is not None:
        arms = ((primary.arm, primary.mode), (primary.control_arm or primary.arm, primary.control_mode))
        small = replace(design, arms=arms, n_seeds=min(config["variance_worlds"], design.n_seeds))
        others |= {f"variance/fit{fit}-luck{luck}": replace(small, fit=fit, luck=luck) for fit, luck in VARIANTS}
    return others


def play(design: Design, folder: RunDirectory, carrying: Carrying) -> None:
    """Play a design and write everything but claims, figures and page."""
    started = time.time()
    worlds, gates = run_jobs(
        design,
        folder,
        workers=carrying.workers,
        checkpoint_every=carrying.checkpoint_every,
        progress=carrying.progress,
        label=f"rounds, {design.n_seeds} seeds, repeat={design.repeat}",
    )
    write_metrics(design, folder)
    write_world_tables(worlds, folder)
    write_run_card(
        design,
        folder,
        worlds,
        question=carrying.question,
        command=carrying.command,
        started=started,
        gates=gates,
    )


def conclude(folder: Path, design: Design, config: Mapping[str, Any], others: Sequence[str]) -> Claims:
    """Judge the claims of a run and of its re-runs, mark what does not hold everywhere, and write `claims.json`.

    Raises:
        ConfigError: the claim declared primary is none that this run makes.
    """
    judged = _judge(folder, design.repeat, config, primary_first=config["primary_first"])
    by_regime = {design.repeat: judged}
    by_user_model = {"main": judged}
    for name in others:
        kind, _, which = name.partition("/")
        if kind == "variance":
            continue
        regime = which if kind == "regimes" else design.repeat
        found = _judge(folder / name, regime, config, primary_first=False)
        _write_claims(folder / name, found)
        (by_regime if kind == "regimes" else by_user_model)[which] = found
    notes = {row["name"]: {"regime_note": row["note"]} for row in flips(by_regime) if row["status"] == "flips"}
    for row in sign_changes(by_user_model) if len(by_user_model) > 1 else []:
        if row["changes_sign"]:
            notes.setdefault(row["name"], {})["user_model_note"] = row["note"]
    judged = [claim | notes.get(claim["name"], {}) for claim in judged]
    _write_claims(folder, judged)
    if any(name.startswith("variance/") for name in others):
        _write_variance(folder, design, config)
    return judged


def _write_variance(folder: Path, design: Design, config: Mapping[str, Any]) -> None:
    """`tables/variance.csv`: where the spread of the primary claim's difference comes from."""
    import polars as pl

    primary = _check_claims(design, config)
    assert primary is not None
    values: list[float] = []
    worlds: list[int] = []
    models: list[int] = []
    for fit, luck in ((0, 0), *VARIANTS):
        part = folder if (fit, luck) == (0, 0) else folder / f"variance/fit{fit}-luck{luck}"
        metrics = pl.read_csv(part / "metrics.csv", schema_overrides={"group": pl.String})
        found = seed_differences(metrics, primary)[: config["variance_worlds"]]
        values += found.tolist()
        worlds += range(len(found))
        models += [fit] * len(found)
    split = variance_split(values, worlds, models)
    table = pl.DataFrame(
        {
            "claim": [primary.name] * 3,
            "component": ["world", "model", "luck"],
            "sd": [float(getattr(split, name)) ** 0.5 for name in ("world", "model", "luck")],
            "share": [split.shares[name] for name in ("world", "model", "luck")],
            "n_worlds": [len(set(worlds))] * 3,
            "n_runs": [len(values)] * 3,
        }
    )
    (folder / "tables").mkdir(exist_ok=True)
    table.fill_nan(None).write_csv(folder / "tables" / "variance.csv")


def score(metrics: pl.DataFrame, *, regime: str, primary: str | None = None, alpha: float = 0.05) -> Claims:
    """The standard claims of a tidy metrics table, judged (`simenv.conclusions.claims.judge`)."""
    return judge(metrics, standard_claims(metrics, primary=primary), regime=regime, alpha=alpha)


def plot(folder: Path) -> Path:
    """Figures and report.html of a run directory, from its files alone."""
    from simenv.report import build

    return build(folder)


def _judge(folder: Path, regime: str, config: Mapping[str, Any], *, primary_first: bool) -> Claims:
    import polars as pl

    metrics = pl.read_csv(folder / "metrics.csv", schema_overrides={"group": pl.String})
    stated = standard_claims(metrics, margins=config["margins"])
    primary = config["primary"]
    if primary is not None:
        if primary not in {claim.name for claim in stated}:
            raise ConfigError(f"primary={primary}: this run makes no such claim; {_known_claims(stated)}")
        stated = [replace(claim, primary=claim.name == primary) for claim in stated]
    return judge(metrics, stated, regime=regime, alpha=config["alpha"], primary_first=primary_first)


def _check_claims(design: Design, config: Mapping[str, Any]) -> Claim | None:
    """The claim declared primary; None where there is none, or where its groups are known only with the data.

    Raises:
        ConfigError: before work starts, on a claim that the arms and modes cannot make, or a margin of no metric.
    """
    import polars as pl

    names = [metric.name for metric in METRICS]
    for metric in config["margins"]:
        if metric not in names:
            raise ConfigError(f"margins.{metric}: no such metric; expected one of {', '.join(names)}")
    if not 0 < config["alpha"] < 1:
        raise ConfigError(f"alpha={config['alpha']}: expected a number in (0, 1)")
    for name in ("robustness_seeds", "variance_worlds"):
        if isinstance(config[name], bool) or not isinstance(config[name], int) or config[name] < 0:
            raise ConfigError(f"{name}={config[name]}: expected a whole number, at least 0")
    primary = config["primary"]
    if primary is None or primary.startswith("group-gap:"):
        return None
    rows = [(arm, mode, "all", name) for arm, mode in design.arms for name in names]
    stated = standard_claims(pl.DataFrame(rows, schema=["arm", "mode", "group", "metric"], orient="row"))
    found = next((claim for claim in stated if claim.name == primary), None)
    if found is None:
        raise ConfigError(f"primary={primary}: this run makes no such claim; {_known_claims(stated)}")
    return found


def _known_claims(stated: Sequence[Any]) -> str:
    names = ", ".join(claim.name for claim in stated)
    return f"expected null or one of {names}" if names else "with these arms and modes it makes none"


def _write_claims(folder: Path, claims: Claims) -> None:
    (folder / "claims.json").write_text(json.dumps(claims, indent=1) + "\n")
