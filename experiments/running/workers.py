"""The jobs of a run over processes: progress, interruption, resumption.

Worlds are made once per seed and handed to the worker processes through a temporary folder that goes away with the run.
The module does not know what a run directory holds beside its checkpoints.
"""

from __future__ import annotations

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
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiments.running.design import Design, Job, World
from experiments.running.directory import RunDirectory
from experiments.running.jobs import JobRun, check_gates
from simenv.errors import ConfigError

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Interrupted(KeyboardInterrupt):
    """The run was stopped from outside; a checkpoint was saved."""


def run_jobs(
    design: Design,
    run: RunDirectory,
    *,
    workers: int | None = None,
    checkpoint_every: int = 5,
    progress: bool = True,
    label: str = "rounds",
) -> tuple[dict[int, World], list[str]]:
    """Play every job that is not finished yet and check the sanity gates of every seed.

    Args:
        design: what to run.
        run: where.
        workers: processes; None = one per core, 0 = this process.
        checkpoint_every: rounds between checkpoints of a job.
        progress: show a progress bar.
        label: what the bar says.

    Returns:
        The worlds by seed, and the gates that passed.

    Raises:
        Interrupted: on Ctrl-C or SIGTERM, after a checkpoint of every running job.
        GateError: a gate failed.
    """
    if workers is None:
        workers = os.cpu_count() or 1
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise ConfigError(f"workers={workers}: expected null (one per core) or a whole number, at least 0")
    if isinstance(checkpoint_every, bool) or not isinstance(checkpoint_every, int) or checkpoint_every < 1:
        raise ConfigError(f"checkpoint_every={checkpoint_every}: expected a whole number, at least 1")
    digest = design.digest()
    open_jobs = [job for job in design.jobs() if not run.job_done(job, digest)]
    with _Progress(label, len(open_jobs) * design.rounds, enabled=progress) as bar:
        if workers <= 1 or design.n_seeds * len(design.arms) <= 1:
            return _run_here(design, run, open_jobs, checkpoint_every, bar)
        with tempfile.TemporaryDirectory(prefix="simenv-") as scratch:
            return _run_in_pool(design, run, open_jobs, workers, checkpoint_every, bar, Path(scratch))


def _run_here(
    design: Design, run: RunDirectory, jobs: Sequence[Job], checkpoint_every: int, bar: _Progress
) -> tuple[dict[int, World], list[str]]:
    worlds: dict[int, World] = {}
    with _stop_on_signal() as stop:
        for seed in design.seeds:
            worlds[seed] = design.make_world(seed)
            for job in (job for job in jobs if job.seed == seed):
                if stop.is_set():
                    raise Interrupted
                played = JobRun(design, job, worlds[seed], run.path, checkpoint_every=checkpoint_every)
                if not played.play(bar.advance, stop.is_set):
                    raise Interrupted
        passed = [line for seed in design.seeds for line in check_gates(design, worlds[seed], run.path)]
    return worlds, passed


def _run_in_pool(
    design: Design,
    run: RunDirectory,
    jobs: Sequence[Job],
    workers: int,
    checkpoint_every: int,
    bar: _Progress,
    scratch: Path,
) -> tuple[dict[int, World], list[str]]:
    context = multiprocessing.get_context("spawn")
    reports: Any = context.Queue()
    stop_event = context.Event()
    with _one_thread_each(), _stop_on_signal() as stop:
        pool = ProcessPoolExecutor(
            max_workers=workers,
            mp_context=context,
            initializer=_start_worker,
            initargs=(reports, stop_event, os.getpid()),
        )
        try:
            made = [pool.submit(_make_world, design, seed, scratch) for seed in design.seeds]
            _collect(made, reports, stop, stop_event, bar)
            played = [pool.submit(_play_job, design, job, run.path, checkpoint_every, scratch) for job in jobs]
            _collect(played, reports, stop, stop_event, bar)
            checked = [pool.submit(_check_seed, design, seed, run.path, scratch) for seed in design.seeds]
            _collect(checked, reports, stop, stop_event, bar)
        finally:
            stop_event.set()
            pool.shutdown(wait=True, cancel_futures=True)
        if stop.is_set():
            raise Interrupted
    return {seed: _load_world(scratch, seed) for seed in design.seeds}, [
        line for future in checked for line in future.result()
    ]


def _collect(
    futures: Sequence[Future[Any]], reports: Any, stop: threading.Event, stop_event: Any, bar: _Progress
) -> None:
    """Wait for the futures; pass on progress and a stop; the first failure stops the rest and is raised."""
    waiting = set(futures)
    failure: BaseException | None = None
    while waiting:
        done, waiting = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
        while True:
            try:
                bar.advance(*reports.get_nowait())
            except queue.Empty:
                break
        if stop.is_set():
            stop_event.set()
        for future in done:
            if not future.cancelled() and future.exception() is not None and failure is None:
                failure = future.exception()
                stop_event.set()
                for other in waiting:
                    other.cancel()
    if failure is not None:
        raise failure
    if stop.is_set():
        raise Interrupted


# -- worker processes ---------------------------------------------------------------------------------------------

_worker: dict[str, Any] = {}


def _start_worker(reports: Any, stop: Any, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _worker.update(reports=reports, stop=stop)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)  # the parent was killed: nobody will ever collect this work

    threading.Thread(target=watch, daemon=True).start()


def _make_world(design: Design, seed: int, scratch: Path) -> None:
    if _worker["stop"].is_set():
        return
    partial = scratch / f"{seed}.partial"
    with partial.open("wb") as file:
        pickle.dump(design.make_world(seed), file, protocol=5)
    partial.replace(scratch / f"{seed}.pickle")


@lru_cache(maxsize=1)
def _load_world(scratch: Path, seed: int) -> World:
    with (scratch / f"{seed}.pickle").open("rb") as file:
        world: World = pickle.load(file)
    return world


def _play_job(design: Design, job: Job, folder: Path, checkpoint_every: int, scratch: Path) -> bool:
    stop, reports = _worker["stop"], _worker["reports"]
    if stop.is_set():
        return False
    played = JobRun(design, job, _load_world(scratch, job.seed), folder, checkpoint_every=checkpoint_every)
    return played.play(lambda rounds, steps: reports.put((rounds, steps)), stop.is_set)


def _check_seed(design: Design, seed: int, folder: Path, scratch: Path) -> list[str]:
    return [] if _worker["stop"].is_set() else check_gates(design, _load_world(scratch, seed), folder)


@contextmanager
def _one_thread_each() -> Iterator[None]:
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

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Progress:
    """Rounds played and user-steps per second, on stderr."""

    def __init__(self, label: str, total: int, *, enabled: bool) -> None:
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

    def __enter__(self) -> _Progress:
        self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()

    def advance(self, rounds: int, steps: int) -> None:
        self.steps += steps
        rate = self.steps / max(time.perf_counter() - self.started, 1e-9)
        self.bar.update(self.task, advance=rounds, speed=f"{rate:,.0f} user-steps/s")
