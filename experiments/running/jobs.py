"""One job of a run: a seed of an arm in a mode, played round by round, with checkpoints.

A job writes its events under the run directory and everything else under `checkpoint/<job>`; it does not know which
other jobs there are, nor where it runs.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from experiments.running import gates
from experiments.running.design import Design, Job, World
from experiments.running.shards import Put, sharded
from recommenders.base import Recommender
from simenv.candidates import Candidates
from simenv.errors import GateError, RunDirectoryError, SimenvError
from simenv.events import ROWS_PER_FILE, Events, EventWriter, read_events
from simenv.files import checksums, damaged, read_sealed, write_sealed, write_whole
from simenv.heard import Heard, HeardWriter
from simenv.language_models.accounting import paid_by
from simenv.metrics.table import MetricRow, metric_rows
from simenv.platform import Platform
from simenv.slates import asks_model
from simenv.stopping import Stopped, stopping

_VARIANT = 1_000_003  # between the seeds of one world's variants
GATE_ROWS = 30_000_000  # impressions of a seed up to which the gates read its whole log
Report = Callable[[int, int], None]  # rounds played, user-steps in them


class JobRun:
    """Plays one job; `play` returns whether it is finished.

    Args:
        design: of the run.
        job: which part of it.
        world: of the job's seed.
        folder: the run directory.
        checkpoint_every: rounds between checkpoints; every round where a language model is asked.
        shards: parts of the population that are played apart; a checkpoint does not depend on how many.
        put: where they lie; None = in this process.
    """

    def __init__(
        self,
        design: Design,
        job: Job,
        world: World,
        folder: Path,
        *,
        checkpoint_every: int,
        shards: int = 1,
        put: Put | None = None,
    ) -> None:
        self.design, self.job, self.world = design, job, world
        self.run, self.folder = folder, folder / "checkpoint" / job.id
        self.digest = design.digest()
        users = design.make_users()
        # A language model's budget may end in any round, and the round before it must then be on disk.
        recommender = design.make_recommender(job.arm)
        self.checkpoint_every = 1 if asks_model(users) or asks_model(recommender) else checkpoint_every
        options: dict[str, Any] = {
            "seed": job.seed,
            "fit_seed": job.seed + _VARIANT * design.fit,
            "luck_seed": job.seed + _VARIANT * design.luck,
            "course": design.make_course(job.arm),
        }
        self.platform: Platform
        if shards > 1:
            self.platform = sharded(design, job, world, shards, options, put)
        else:
            users.bind(world.dataset, world.tastes, seed=job.seed, repeat=design.repeat, traits=world.traits)
            self.platform = Platform(
                world.dataset, users, recommender, mode=job.mode, schedule=design.schedule, **options
            )
        page_rows = max(1, world.dataset.n_users * design.schedule.slate_size * design.schedule.max_pages)
        named: dict[str, Any] = {"seed": job.seed, "arm": job.arm, "mode": job.mode}
        named["rounds_per_file"] = max(1, ROWS_PER_FILE // page_rows)
        self.writer = EventWriter(folder / "events", **named)
        self.heard = HeardWriter(folder / "heard", **named) if users.hears_friends else None
        self.probe = design.make_probe()
        self.rows: list[MetricRow] = []
        self.metrics = design.make_metrics()
        self.recent: deque[Events] = deque(maxlen=max(metric.window for metric in self.metrics) - 1)
        self.seconds = 0.0
        self._summed: dict[Path, str] = {}

    def play(self, report: Report, stop: Callable[[], bool]) -> bool:
        """Play from the last checkpoint to the end, or until `stop()`; a stop leaves a checkpoint."""
        self._restore()
        report(self.platform.round, 0)
        started = time.perf_counter()
        while self.platform.round < self.design.rounds:
            if stop():
                self.seconds += time.perf_counter() - started
                self._checkpoint()
                return False
            try:
                steps = self._round()
            except SimenvError:
                self._close(self.platform.round)
                self._write_metrics()
                raise
            report(1, steps)
            if self.platform.round % self.checkpoint_every == 0 and self.platform.round < self.design.rounds:
                self.seconds += time.perf_counter() - started
                self._checkpoint()
                started = time.perf_counter()
        self.seconds += time.perf_counter() - started
        self._finish()
        return True

    def _round(self) -> int:
        """One round; returns its user-steps (pages served)."""
        platform = self.platform
        round_ = platform.round
        platform.step()
        events = platform.round_events
        assert events is not None
        kept = round_ % self.design.record_every == 0 or round_ == self.design.rounds - 1
        self.writer.append(events if kept else Events.empty(), round_)
        if self.heard is not None:
            self.heard.append(platform.round_heard if kept else Heard.empty(), round_)
        if kept:
            self._measure(events, round_)
        self.recent.append(events.take(np.flatnonzero(events.clicked)))  # longer windows look at clicks only
        return int(np.count_nonzero(events.rank == 0))

    def _measure(self, events: Events, round_: int) -> None:
        job = self.job
        window = Events.concat([*self.recent, events])
        self.rows += metric_rows(
            window, self.world.reference, self.metrics, seed=job.seed, arm=job.arm, mode=job.mode, rounds=[round_]
        )
        found = dict(self.platform.round_measures)
        if self.probe is not None:
            found |= self.probe(self.platform)
        self.rows += [
            MetricRow(job.seed, job.arm, job.mode, round_, "all", name, float(value)) for name, value in found.items()
        ]

    # -- checkpoints -------------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """Replace this job's checkpoint, atomically."""
        partial = self.folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        self.platform.save(partial / "platform")
        arrays: dict[str, Any] = _event_arrays("pending", Events.concat([Events.empty(), *self.writer.pending]))
        if self.heard is not None:
            arrays |= _event_arrays("heard", Heard.concat(self.heard.pending))
        for place, events in enumerate(self.recent):
            arrays |= _event_arrays(f"recent{place}", events)
        np.savez(partial / "events.npz", **arrays)
        (partial / "rows.json").write_text(json.dumps(self.rows))
        meta = {
            "digest": self.digest,
            "round": self.platform.round,
            "recent": len(self.recent),
            "seconds": self.seconds,
            "files": checksums(partial, (path for path in partial.rglob("*") if path.is_file())),
            "events": self._event_sums(),
        }
        write_sealed(partial / "meta.json", meta)
        kept = self.folder / f"round-{self.platform.round:06d}"
        shutil.rmtree(kept, ignore_errors=True)
        partial.rename(kept)
        for other in self._checkpoints():
            if other != kept:
                shutil.rmtree(other)

    def _event_sums(self) -> dict[str, str]:
        """Checksums of the event files so far; each is read once."""
        written = self.writer.files() + ([] if self.heard is None else self.heard.files())
        new = [path for path in written if path not in self._summed]
        self._summed |= dict(zip(new, checksums(self.run, new).values(), strict=True))
        return {path.relative_to(self.run).as_posix(): digest for path, digest in self._summed.items()}

    def _checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("round-*"))

    def _restore(self) -> None:
        """Go back to the newest checkpoint; to round 0 where there is none, or where it is not whole: a job can be
        played again.
        """
        meta = read_checked(checkpoints[-1], self.run) if (checkpoints := self._checkpoints()) else None
        if meta is None:
            self._restart(0, Events.empty(), Heard.empty())
            return
        folder = checkpoints[-1]
        if meta["digest"] != self.digest:
            raise RunDirectoryError(f"{folder}: checkpoint of another configuration; expected this run's own")
        self.platform.load(folder / "platform")
        with np.load(folder / "events.npz", allow_pickle=False) as stored:
            pending = _events_from(stored, "pending")
            heard = Heard.empty() if self.heard is None else _events_from(stored, "heard", Heard)
            self.recent.extend(_events_from(stored, f"recent{place}") for place in range(meta["recent"]))
        self.rows = [MetricRow(*row) for row in json.loads((folder / "rows.json").read_text())]
        self.seconds = meta["seconds"]
        self._restart(self.platform.round, pending, heard)

    def _restart(self, round: int, pending: Events, heard: Heard) -> None:
        self.writer.restart(round, pending)
        if self.heard is not None:
            self.heard.restart(round, heard)

    def _close(self, rounds: int) -> None:
        self.writer.close(rounds)
        if self.heard is not None:
            self.heard.close(rounds)

    def _finish(self) -> None:
        self._close(self.design.rounds)
        self._check_log_growth()
        self._write_metrics()
        done: dict[str, Any] = {"digest": self.digest, "seconds": self.seconds}
        for name, one in (("llm", self.platform.users), ("recommender_llm", self.platform.recommender)):
            done[name] = one.accounting if asks_model(one) else None
        done["transcript"] = getattr(self.platform.users, "transcript", [])
        done["files"] = self._event_sums() | checksums(self.run, [self.folder / "metrics.json"])
        write_sealed(self.folder / "done.json", done)
        for folder in self._checkpoints():
            shutil.rmtree(folder)

    def _check_log_growth(self) -> None:
        """Gate: the recommender's own log grew by exactly the clicks that the event log shows."""
        design, platform = self.design, self.platform
        recommender = platform.recommender
        learns_all = design.schedule.retrain != "window" and design.rounds % design.schedule.retrain_every == 0
        if not isinstance(recommender, Recommender) or self.job.mode != "loop" or not learns_all:
            return
        if design.record_every > 1:  # the event log has gaps
            return
        if most_impressions(design, self.world) > GATE_ROWS:
            return
        job = self.job
        events = read_events(self.run, seed=job.seed, arm=job.arm, mode=job.mode)
        try:
            growth = gates.log_growth(self.world.reference.percentile, recommender.log.items, len(platform.log), events)
            gates.one_step_identity(growth)
        except GateError as error:
            raise GateError(f"seed {job.seed}, {job.arm}/{job.mode}: {error}") from error

    def _write_metrics(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / "metrics.json", json.dumps(self.rows))


def play_job(
    design: Design,
    job: Job,
    folder: Path,
    checkpoint_every: int,
    world: World,
    report: Report,
    stop: Callable[[], bool],
    *,
    shards: int = 1,
    put: Put | None = None,
) -> bool:
    """Play a job; False where it was stopped, between rounds or in the midst of learning. Arguments as of `JobRun`."""
    with paid_by(folder, job.id), stopping(stop):
        try:
            made = JobRun(design, job, world, folder, checkpoint_every=checkpoint_every, shards=shards, put=put)
            return made.play(report, stop)
        except Stopped:
            return False


def check_gates(design: Design, world: World, folder: Path) -> list[str]:
    """The sanity gates of one seed, on the events that were written; returns those that passed, as ``arm/mode: gate``.

    A seed of more than 30 million impressions is not checked, and nothing is returned for it.

    Raises:
        GateError: naming the gate, the arm and by how much it failed.
    """
    from simenv.metrics.formulas import gini

    if most_impressions(design, world) * len(design.arms) > GATE_ROWS:
        return []
    logs = {(arm, mode): read_events(folder, seed=world.seed, arm=arm, mode=mode) for arm, mode in design.arms}
    first = JobRun(design, Job(world.seed, *design.arms[0]), world, folder, checkpoint_every=design.rounds)
    users = first.platform.users
    everyone = np.arange(world.dataset.n_users)
    candidates = Candidates.of(
        world.dataset.n_items, out=users.excluded(everyone), available=first.platform.available_items(0)
    )
    passed = gates.check_seed(
        logs,
        seed=world.seed,
        eligible=candidates,
        popularity_pct=world.reference.percentile,
        repeat=design.repeat,
        deterministic={
            arm
            for (arm, mode), log in logs.items()
            if mode == "frozen" and arm not in design.courses and bool((log.propensity == 1).all())
        },
        fixed_catalogue=design.schedule.arriving_items == 0,
    )
    gates.gini_endpoints(gini)
    first.platform.step()
    again = first.platform.round_events
    assert again is not None
    log = logs[design.arms[0]]
    gates.byte_identical(log.take(log.round == 0), again)
    return [*passed, "run: Gini endpoints", f"{'/'.join(design.arms[0])}: byte-identical when replayed"]


def most_impressions(design: Design, world: World) -> int:
    """Upper bound on the impressions of one job."""
    schedule = design.schedule
    return world.dataset.n_users * design.rounds * schedule.slate_size * schedule.max_pages


def read_checked(folder: Path, run: Path) -> dict[str, Any] | None:
    """The meta data of a checkpoint whose files are all whole, and the event files before it; None otherwise."""
    meta = read_sealed(folder / "meta.json")
    if meta is None or damaged(folder, meta["files"]) is not None or damaged(run, meta["events"]) is not None:
        return None
    return meta


def _event_arrays(name: str, events: Events | Heard) -> dict[str, Any]:
    return {f"{name}.{f.name}": getattr(events, f.name) for f in fields(events)}


def _events_from(stored: Any, name: str, rows: Any = Events) -> Any:
    return rows(**{f.name: stored[f"{name}.{f.name}"] for f in fields(rows)})
