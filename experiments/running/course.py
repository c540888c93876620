"""The course of a run: from a resolved configuration over jobs and conclusions to the page.

An experiment is a module of four names, which `run_experiment` calls in this order:

    class Settings(course.Settings)   what it is told, a dataclass with a field for each of its own keys
    play(settings, run)               the work; after an interruption it is called again and goes on
    score(settings, run)              the claims, or None; may write tables
    plot(settings, run)               its own figures

`score` and `plot` read what the run directory holds. The module does not know any experiment.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

import numpy as np

from experiments.running.design import Design, Spec, design_from, without_carrying
from experiments.running.directory import (
    RunDirectory,
    card_of_jobs,
    card_of_machine,
    save_figure,
    write_json,
    write_metrics,
    write_table,
    write_transcripts,
    write_world_tables,
)
from experiments.running.workers import run_jobs
from simenv import checks
from simenv.candidates import Candidates
from simenv.conclusions.judged import JudgedClaim
from simenv.conclusions.words import undecidable
from simenv.errors import ConfigError
from simenv.language_models.wire.secrets import redacted
from simenv.platform import TWIN_PAGES
from simenv.randomness import Key
from simenv.slates import Rehearses, SeesDataset, SeesTruth, asks_model

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

CARRYING = (
    "resume",
    "workers",
    "shards",
    "checkpoint_every",
    "progress",
    "run_dir",
    "command",
    "dry_run",
)  # change no result
Claims = Sequence[JudgedClaim | Mapping[str, Any]]  # a mapping as an entry of claims.json
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every experiment is told; one of its own adds a field for each further key of its configuration."""

    design: Design

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """The settings that a resolved configuration describes, whole or as a run directory keeps it.

        Raises:
            ConfigError: a key is missing, or its value is none that the experiment can have.
        """
        own = [f.name for f in fields(cls) if f.name != "design"]
        if missing := [name for name in own if name not in config]:
            raise ConfigError(f"{missing[0]}: missing; expected a key of the experiment's configuration")
        values = {name: config[name] for name in own}
        checks.conform(cls, values)
        return cls(design=design_from(config), **values)

    def designs(self) -> dict[str, Design]:
        """What is played, by sub-folder; "" is the run directory itself."""
        return {"": self.design}

    def recommenders(self) -> dict[str, Spec]:
        """The specs that decide results; the others are not kept."""
        return {name: spec for design in self.designs().values() for name, spec in design.used_recommenders().items()}

    def check(self) -> None:
        """Build what can be built, so that bad options and bad data fail before anything is written.

        Raises:
            SimenvError: naming what cannot be made.
        """
        loaded: set[tuple[str, int]] = set()
        for design in self.designs().values():
            world = design.worlds_digest(), design.seed
            design.check(data=world not in loaded)
            loaded.add(world)


class Experiment(Protocol):
    """What a module needs to be an experiment."""

    Settings: type[Settings]

    def play(self, settings: Any, run: Run, /) -> None: ...
    def score(self, settings: Any, run: Run, /) -> Claims | None: ...
    def plot(self, settings: Any, run: Run, /) -> None: ...


class Run:
    """An open run directory: what an experiment writes into it and reads from it.

    Args:
        directory: of the run.
        question: for the run card.
        command: likewise.
        workers: processes of its jobs; None = one per core, 0 = this process; ``ray`` = those of a Ray cluster.
        shards: parts of the population that are played apart.
        checkpoint_every: rounds between checkpoints of a job.
        progress: whether bars are shown.
    """

    def __init__(
        self,
        directory: RunDirectory,
        *,
        question: str = "",
        command: str = "",
        workers: int | str | None = None,
        shards: int = 1,
        checkpoint_every: int = 5,
        progress: bool = False,
    ) -> None:
        self.directory, self.path = directory, directory.path
        self.workers, self.shards = workers, shards
        self.checkpoint_every, self.progress = checkpoint_every, progress
        self._card: dict[str, Any] = {"question": question, "command": redacted(command)}
        self._started = time.time()

    def play(self, designs: Mapping[str, Design]) -> None:
        """Play designs, each into its sub-folder, and write all that is known of them without a conclusion."""
        parts: dict[str, tuple[Design, RunDirectory]] = {}
        for name, design in designs.items():
            directory = self._part(name) if name else self.directory
            if not directory.complete:
                parts[name] = design.with_run_files(self.path), directory
        played = run_jobs(
            list(parts.values()),
            workers=self.workers,
            shards=self.shards,
            checkpoint_every=self.checkpoint_every,
            progress=self.progress,
            progress_file=self.directory.progress,
        )
        for (name, (design, directory)), (worlds, gates) in zip(parts.items(), played, strict=True):
            write_metrics(design, directory)
            write_world_tables(worlds, directory)
            write_transcripts(design, directory)
            card = card_of_jobs(design, directory, worlds, gates)
            if not name:
                self.card(**card)
                continue
            words = {key: self._card[key] for key in ("question", "command")}
            write_json(directory.path / "run_card.json", words | card | card_of_machine(self._started))
            directory.finish()

    def _part(self, name: str) -> RunDirectory:
        path = self.path / name
        return RunDirectory(path, self.directory.config | {"part_of": name}, resume=path.is_dir())

    def table(self, name: str, rows: Sequence[Row], types: Mapping[str, str] | None = None) -> None:
        """`tables/<name>.csv`, see `write_table`."""
        write_table(self.path / "tables" / f"{name}.csv", rows, types)

    def read_table(self, name: str) -> pl.DataFrame:
        """`tables/<name>.csv`, as it was written."""
        import polars as pl

        return pl.read_csv(self.path / "tables" / f"{name}.csv", glob=False)

    def figure(self, name: str, figure: Figure, *, title: str, caption: str) -> None:
        """`figures/<name>.png` with its words, see `save_figure`."""
        save_figure(self.path, name, figure, title=title, caption=caption)

    def card(self, **entries: Any) -> None:
        """Add to `run_card.json`; question, command, versions and wall time are there without being asked for."""
        self._card |= entries
        write_json(self.path / "run_card.json", self._card | card_of_machine(self._started))

    def claims(self, claims: Claims, part: str = "") -> None:
        """`claims.json` of the run or of one of its sub-folders."""
        judged = [claim if isinstance(claim, JudgedClaim) else JudgedClaim.from_json(claim) for claim in claims]
        write_json(self.path / part / "claims.json", [claim.to_json() for claim in judged])


@contextmanager
def open_run(
    config: Mapping[str, Any], *, recommenders: Mapping[str, Spec] | None = None, page: bool = True
) -> Iterator[Run | None]:
    """The run directory of a resolved configuration, held by this process; None where the run is finished.

    Leaving the block builds the page and marks the run complete; an exception leaves the checkpoint.

    Args:
        config: with `run_dir`, and with `resume` to go on with an interrupted run. All of it but `CARRYING` is kept
            in ``config.yaml``, language models without the options that say how answers are got.
        recommenders: what is kept of the configuration's `recommenders`; None = all.
        page: whether a page is built.

    Raises:
        RunDirectoryError: the directory holds another run, is missing, damaged, or in use by another process.
    """
    kept = {name: value for name, value in config.items() if name not in CARRYING}
    if recommenders is not None:
        kept["recommenders"] = dict(recommenders)
    directory = RunDirectory(Path(config["run_dir"]), without_carrying(kept), resume=bool(config["resume"]))
    if directory.complete:
        yield None
        return
    with directory.locked():
        run = Run(
            directory,
            question=config["question"],
            command=config["command"],
            workers=config["workers"],
            shards=config.get("shards", 1),
            checkpoint_every=config["checkpoint_every"],
            progress=config["progress"],
        )
        yield run
        run.card()
        if page:
            from simenv.report import build

            build(directory.path)
        directory.finish()


def _experiment(name: str) -> Experiment:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(f"module={name}: no such module; expected an experiment's") from error
    if absent := [part for part in ("Settings", "play", "score", "plot") if not hasattr(module, part)]:
        raise ConfigError(f"module={name}: has no {absent[0]}; expected Settings, play, score and plot")
    return cast(Experiment, module)


def run_experiment(config: Mapping[str, Any]) -> Path | None:
    """Run the experiment that a resolved configuration names, or go on with it.

    Args:
        config: conf/config.yaml with an experiment, and `run_dir` and `command`.

    Returns:
        The run directory; None after a dry run.

    Raises:
        SimenvError: bad configuration, data or run directory; a gate that failed.
        Interrupted: stopped from outside, checkpoint saved.
    """
    experiment: Experiment = _experiment(config["module"])
    settings = experiment.Settings.of(config)
    settings.check()
    if config.get("shards", 1) != 1:
        for design in settings.designs().values():
            design.check_shards(config["shards"])
    if config["dry_run"]:
        dry_run(settings.designs())
        return None
    if any(design.rounds == 1 for design in settings.designs().values()):
        print("warning: rounds=1: with one round nothing changes, so that no amplification is judged", file=sys.stderr)
    with open_run(config, recommenders=settings.recommenders()) as run:
        if run is not None:
            experiment.play(settings, run)
            claims = experiment.score(settings, run)
            if claims is not None:
                run.claims(claims)
            experiment.plot(settings, run)
    return Path(config["run_dir"])


def warn_if_undecidable(design: Design, alpha: float) -> None:
    """One line on stderr where a design has too few seeds to show any effect."""
    if words := undecidable(design.n_seeds, alpha):
        print(f"note: {words}", file=sys.stderr)


def dry_run(designs: Mapping[str, Design]) -> None:
    """Print, for whoever asks a language model, one full prompt and what the run's pages would cost at most; nothing is
    asked or written.

    Raises:
        ConfigError: no rounds are played, or neither the users nor an arm ask a language model.
    """
    if not designs:
        raise ConfigError("dry_run: this experiment plays no rounds; expected one that does")
    design = next(iter(designs.values()))
    users = design.make_users()
    arms = {arm: design.make_recommender(arm) for arm in dict(design.arms)}
    asking = [arm for arm, one in arms.items() if asks_model(one)]
    if not asks_model(users) and not asking:
        raise ConfigError(f"dry_run: agent {users.name} asks no language model; expected agent=llm")
    world = design.make_world(design.seed)
    users.bind(world.dataset, world.tastes, seed=design.seed, repeat=design.repeat, traits=world.traits)
    key = Key(design.seed)
    sample = np.arange(min(20, world.dataset.n_users))
    candidates = Candidates.of(world.dataset.n_items, out=users.excluded(sample))
    slates = users.unaided_slates(sample, design.schedule.slate_size, key, candidates)
    pages: Counter[str] = Counter()
    for each in designs.values():
        served = each.n_seeds * each.rounds * each.schedule.max_pages * world.dataset.n_users
        for arm, mode in each.arms:
            pages[arm] += served
            pages["agent"] += served * (1 + (TWIN_PAGES if mode == "organic" else mode == "exogenous"))
    if asks_model(users):
        print(users.dry_run(sample, slates, key, pages=pages["agent"]))
    for arm in asking:
        recommender = arms[arm]
        if isinstance(recommender, Rehearses):
            recommender.rehearse()
        if isinstance(recommender, SeesDataset):
            recommender.bind_dataset(world.dataset)
        if isinstance(recommender, SeesTruth):
            recommender.bind_truth(users.utility)
        recommender.fit(world.dataset.interactions, key=key)
        print(f"arm {arm}:\n\n{recommender.dry_run(sample, slates, key, pages=pages[arm])}")
