"""The jobs of a run over processes: progress, interruption, resumption.

Each world is made once and handed to the worker processes through a temporary folder that goes away with the run, or to
those of a cluster through its object store (`experiments.running.clusters`). The module does not know what a run
directory holds beside its checkpoints.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from experiments.running.design import Design, Job, World
from experiments.running.directory import RunDirectory
from experiments.running.jobs import check_gates, play_job
from experiments.running.shards import Put
from simenv.checks import whole
from simenv.errors import ConfigError, WorkerError
from simenv.files import write_whole
from simenv.shards import ShardLost

_STOPS = (signal.SIGINT, signal.SIGTERM)
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Interrupted(KeyboardInterrupt):
    """The run was stopped from outside; a checkpoint was saved."""


Played = tuple[dict[int, World], list[str]]  # of one design: its worlds by seed, and the gates that passed
Made = tuple[str, int]  # what decides a world: `Design.worlds_digest` and the seed
RAY = "ray"
_ATTEMPTS = 4  # at a job whose shards are lost


class Crew(Protocol):
    """Who makes worlds, plays jobs and checks gates, elsewhere and at the same time."""

    def make(self, made: Made, design: Design) -> Future[Any]:
        """Make the world of a seed, and keep it for whoever needs it."""

    def play(self, made: Made, design: Design, job: Job, folder: Path, checkpoint_every: int) -> Future[Any]:
        """Play a job, see `JobRun.play`."""

    def check(self, made: Made, design: Design, folder: Path) -> Future[Any]:
        """Check the gates of a seed, see `check_gates`."""

    def reports(self) -> Iterator[tuple[int, int]]:
        """Rounds and user-steps that were reported since the last time."""

    def stop(self) -> None:
        """Let everybody stop at the end of a round, and leave a checkpoint."""

    def kill(self) -> None:
        """End those who do not stop."""

    def close(self) -> None:
        """Wait for whoever is still at work."""

    def world(self, made: Made) -> World:
        """A world that was made."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One design of a run, and where it is played."""

    design: Design
    folder: Path
    open_jobs: list[Job]
    worlds: str

    def world(self, seed: int) -> Made:
        return self.worlds, seed


def run_jobs(
    parts: Sequence[tuple[Design, RunDirectory]],
    *,
    workers: int | str | None = None,
    shards: int = 1,
    checkpoint_every: int = 5,
    progress: bool = True,
    progress_file: Path | None = None,
) -> list[Played]:
    """Play every job of some designs that is not finished yet, and check the sanity gates of every seed.

    All jobs share one pool of processes, and designs whose worlds are the same share these.

    Args:
        parts: what to run, and where.
        workers: processes; None = one per core, 0 = this process; ``ray`` = those of a Ray cluster.
        shards: parts of the population that are played apart. With more than one, jobs are played one after the other,
            and with ``ray`` the shards lie in the cluster.
        checkpoint_every: rounds between checkpoints of a job.
        progress: show a progress bar.
        progress_file: where rounds, rates and the time are told to whoever watches; None = nowhere.

    Returns:
        For each part the worlds by seed, and the gates that passed.

    Raises:
        Interrupted: on Ctrl-C or SIGTERM, after a checkpoint of every running job.
        GateError: a gate failed.
    """
    if workers is None:
        workers = os.cpu_count() or 1
    if isinstance(workers, str) and workers != RAY:
        raise ConfigError(f"workers={workers}: expected a number of processes, null or {RAY}")
    if workers != RAY:
        whole("workers", workers)
    whole("shards", shards, 1)
    whole("checkpoint_every", checkpoint_every, 1)
    found = []
    for design, run in parts:
        digest = design.digest()
        open_jobs = [job for job in design.jobs() if not run.job_done(job, digest)]
        found.append(_Part(design, run.path, open_jobs, design.worlds_digest()))
    total = sum(len(part.open_jobs) * part.design.rounds for part in found)
    label = "rounds" if len(found) == 1 else f"rounds of {len(found)} designs"
    with _Progress(label, total, enabled=progress, file=progress_file) as bar:
        if workers == RAY:
            from experiments.running.clusters import RayCrew, on_ray, shards_on_ray

            with on_ray():
                if shards > 1:
                    with shards_on_ray() as put:
                        return _run_here(found, checkpoint_every, bar, shards, put)
                return _run_by(RayCrew(), found, checkpoint_every, bar)
        if shards > 1 or int(workers) <= 1 or sum(len(part.design.jobs()) for part in found) <= 1:
            return _run_here(found, checkpoint_every, bar, shards)
        with tempfile.TemporaryDirectory(prefix="simenv-") as scratch, one_thread_each():
            return _run_by(_Processes(int(workers), Path(scratch)), found, checkpoint_every, bar)


def _run_here(
    parts: Sequence[_Part], checkpoint_every: int, bar: _Progress, shards: int = 1, put: Put | None = None
) -> list[Played]:
    worlds: dict[Made, World] = {}
    gates: list[list[str]] = []
    with _stop_on_signal() as stop:
        for part in parts:
            design = part.design
            for seed in design.seeds:
                made = part.world(seed)
                if made not in worlds:
                    worlds[made] = design.make_world(seed)
                for job in (job for job in part.open_jobs if job.seed == seed):
                    if stop.is_set():
                        raise Interrupted
                    for attempt in range(_ATTEMPTS):
                        try:
                            here = (part.folder, checkpoint_every, worlds[made], bar.advance, stop.is_set)
                            if not play_job(design, job, *here, shards=shards, put=put):
                                raise Interrupted
                            break
                        except ShardLost:
                            if attempt + 1 == _ATTEMPTS:
                                raise
            checked = (check_gates(design, worlds[part.world(seed)], part.folder) for seed in design.seeds)
            gates.append([line for lines in checked for line in lines])
    return [
        ({seed: worlds[part.world(seed)] for seed in part.design.seeds}, lines)
        for part, lines in zip(parts, gates, strict=True)
    ]


def _run_by(crew: Crew, parts: Sequence[_Part], checkpoint_every: int, bar: _Progress) -> list[Played]:
    makers = {part.world(seed): part.design for part in parts for seed in part.design.seeds}
    with _stop_on_signal() as stop:
        try:
            with _signals_held_back():
                worlds = [crew.make(made, design) for made, design in makers.items()]
            _collect(worlds, crew, stop, bar)
            with _signals_held_back():
                played = [
                    crew.play(part.world(job.seed), part.design, job, part.folder, checkpoint_every)
                    for part, job in _world_by_world(parts)
                ]
            _collect(played, crew, stop, bar)
            with _signals_held_back():
                checked = [
                    [crew.check(part.world(seed), part.design, part.folder) for seed in part.design.seeds]
                    for part in parts
                ]
            _collect([future for futures in checked for future in futures], crew, stop, bar)
        except BrokenProcessPool as error:
            raise WorkerError(
                "a worker process was killed, most likely because memory ran out; nothing is lost: go on with "
                "resume=DIR and fewer workers=, or with smaller n_users= or n_items="
            ) from error
        except KeyboardInterrupt as error:
            if not isinstance(error, Interrupted):  # the second one: whoever hangs is not waited for
                crew.kill()
            raise
        finally:
            crew.stop()
            crew.close()
        if stop.is_set():
            raise Interrupted
    loaded = {made: crew.world(made) for made in makers}
    return [
        (
            {seed: loaded[part.world(seed)] for seed in part.design.seeds},
            [line for future in futures for line in future.result()],
        )
        for part, futures in zip(parts, checked, strict=True)
    ]


def _world_by_world(parts: Sequence[_Part]) -> list[tuple[_Part, Job]]:
    """All open jobs; those of one world stand together, since a worker holds one world at a time."""
    jobs = [(part, job) for part in parts for job in part.open_jobs]
    order = {made: place for place, made in enumerate(dict.fromkeys(part.world(job.seed) for part, job in jobs))}
    return sorted(jobs, key=lambda each: order[each[0].world(each[1].seed)])


def _collect(futures: Sequence[Future[Any]], crew: Crew, stop: threading.Event, bar: _Progress) -> None:
    """Wait for the futures; pass on progress and a stop; the first failure stops the rest and is raised."""
    waiting = set(futures)
    failure: BaseException | None = None
    while waiting:
        done, waiting = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
        for rounds, steps in crew.reports():
            bar.advance(rounds, steps)
        if stop.is_set():
            crew.stop()
        for future in done:
            if not future.cancelled() and future.exception() is not None and failure is None:
                failure = future.exception()
                crew.stop()
                for other in waiting:
                    other.cancel()
    if failure is not None:
        raise failure
    if stop.is_set():
        raise Interrupted


# -- worker processes ---------------------------------------------------------------------------------------------

_worker: dict[str, Any] = {}


class _Processes:
    """A crew of processes of this machine; worlds lie in files of a folder.

    Args:
        workers: how many processes.
        scratch: the folder.
    """

    def __init__(self, workers: int, scratch: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.scratch = scratch
        self._reports: Any = context.Queue()
        self._stop = context.Event()
        self._places: dict[Made, Path] = {}
        self._pool = ProcessPoolExecutor(
            max_workers=workers,
            mp_context=context,
            initializer=_start_worker,
            initargs=(self._reports, self._stop, os.getpid()),
        )

    def make(self, made: Made, design: Design) -> Future[Any]:
        self._places[made] = self.scratch / f"world-{len(self._places)}.pickle"
        return self._pool.submit(_make_world, design, made[1], self._places[made])

    def play(self, made: Made, design: Design, job: Job, folder: Path, checkpoint_every: int) -> Future[Any]:
        return self._pool.submit(_play_job, design, job, folder, checkpoint_every, self._places[made])

    def check(self, made: Made, design: Design, folder: Path) -> Future[Any]:
        return self._pool.submit(_check_seed, design, folder, self._places[made])

    def reports(self) -> Iterator[tuple[int, int]]:
        while True:
            try:
                yield self._reports.get_nowait()
            except queue.Empty:
                return

    def stop(self) -> None:
        self._stop.set()

    def kill(self) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def world(self, made: Made) -> World:
        return _load_world(self._places[made])


def _start_worker(reports: Any, stop: Any, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    _worker.update(reports=reports, stop=stop)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)  # the parent was killed: nobody will ever collect this work

    threading.Thread(target=watch, daemon=True).start()


def _make_world(design: Design, seed: int, path: Path) -> None:
    if _worker["stop"].is_set():
        return
    with path.open("wb") as file:
        pickle.dump(design.make_world(seed), file, protocol=5)


@lru_cache(maxsize=1)
def _load_world(path: Path) -> World:
    with path.open("rb") as file:
        world: World = pickle.load(file)
    return world


def _play_job(design: Design, job: Job, folder: Path, checkpoint_every: int, world: Path) -> bool:
    stop, reports = _worker["stop"], _worker["reports"]
    if stop.is_set():
        return False
    return play_job(
        design, job, folder, checkpoint_every, _load_world(world), lambda *done: reports.put(done), stop.is_set
    )


def _check_seed(design: Design, folder: Path, world: Path) -> list[str]:
    return [] if _worker["stop"].is_set() else check_gates(design, _load_world(world), folder)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes are the parallelism: libraries in them get one thread."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one ends the process at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in _STOPS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Processes that are started inside are deaf until they say otherwise: a Ctrl-C goes to the whole terminal, and
    must not kill them while they import.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


class _Progress:
    """Rounds played and user-steps per second, on stderr."""

    def __init__(self, label: str, total: int, *, enabled: bool, file: Path | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn(label),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not enabled,
        )
        self.task = self.bar.add_task("rounds", total=total, speed="")
        self.steps, self.started = 0, time.perf_counter()
        self.rounds, self.played, self.total = 0, 0, total
        self.file, self.told = file, -math.inf

    def __enter__(self) -> _Progress:
        self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()

    def advance(self, rounds: int, steps: int) -> None:
        self.steps += steps
        self.rounds += rounds
        self.played += rounds if steps else 0  # rounds of a checkpoint took no time now
        seconds = time.perf_counter() - self.started
        rate = self.steps / max(seconds, 1e-9)
        if self.file is not None and (seconds - self.told >= 1 or self.rounds == self.total):
            self.told = seconds
            told = {"rounds": self.rounds, "total": self.total, "played": self.played, "steps": self.steps}
            write_whole(self.file, json.dumps({**told, "seconds": round(seconds, 3), "time": time.time()}))
        self.bar.update(self.task, advance=rounds, speed=f"{rate:,.0f} user-steps/s")
