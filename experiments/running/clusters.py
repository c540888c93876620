"""Jobs and shards on a Ray cluster: the one that `RAY_ADDRESS` names (``auto`` = this machine's), else a local one.

Tasks that lose their worker or their node are run again, and go on from their checkpoint: the run directory has to lie
where all nodes see it under the same path. The module does not know what a job or a shard does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.running.design import Design, Job, World
from experiments.running.jobs import check_gates, play_job
from experiments.running.shards import Put, ShardMaker
from simenv.errors import MissingExtraError, WorkerError
from simenv.shards import Shard, ShardLost

RETRIES = 3  # of what lost its worker or its node
_LOOK = 0.5  # seconds between two looks at whether to stop


@contextmanager
def on_ray() -> Iterator[None]:
    """A connection to the cluster; one that is there already is used and left as it is."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("workers=ray", "ray") from error
    if ray.is_initialized():
        yield
        return
    try:
        where = os.environ.get("RAY_ADDRESS")
        ray.init(address=where or "local", include_dashboard=None if where else False, log_to_driver=False)
    except Exception as error:  # Ray raises bare ones
        said = str(error).strip().splitlines()[0]
        raise WorkerError(
            f"workers=ray: no cluster at {os.environ.get('RAY_ADDRESS', 'this machine')} ({said})"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


class _Desk:
    """An actor through which jobs tell of their rounds and hear whether to stop."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        self.stopped = False

    def tell(self, rounds: int, steps: int) -> None:
        self.told.append((rounds, steps))

    def take(self) -> list[tuple[int, int]]:
        told, self.told = self.told, []
        return told

    def stop(self) -> None:
        self.stopped = True

    def has_stopped(self) -> bool:
        return self.stopped


class RayCrew:
    """A crew of Ray's workers; worlds lie in the object store, where those of a node share them."""

    def __init__(self) -> None:
        import ray

        self.ray = ray
        here = ray.get_runtime_context().get_node_id()
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=True)
        where = {"num_cpus": 0, "scheduling_strategy": strategy, "max_restarts": -1, "max_task_retries": -1}
        self.desk: Any = ray.remote(_Desk).options(**where).remote()
        self._worlds: dict[Any, Any] = {}
        self._refs: list[Any] = []

    def make(self, made: Any, design: Design) -> Future[Any]:
        self._worlds[made] = self._task(_make, design, made[1])
        return self._future(self._worlds[made])

    def play(self, made: Any, design: Design, job: Job, folder: Path, checkpoint_every: int) -> Future[Any]:
        ref = self._task(_play, design, job, folder.resolve(), checkpoint_every, self._worlds[made], self.desk)
        return self._future(ref)

    def check(self, made: Any, design: Design, folder: Path) -> Future[Any]:
        return self._future(self._task(check_gates, design, self._worlds[made], folder.resolve()))

    def reports(self) -> Iterator[tuple[int, int]]:
        yield from self.ray.get(self.desk.take.remote())

    def stop(self) -> None:
        self.desk.stop.remote()

    def kill(self) -> None:
        for ref in self._refs:
            self.ray.cancel(ref, force=True)

    def close(self) -> None:
        self.ray.wait(self._refs, num_returns=len(self._refs)) if self._refs else None

    def world(self, made: Any) -> World:
        world: World = self.ray.get(self._worlds[made])
        return world

    def _task(self, function: Callable[..., Any], *args: Any) -> Any:
        ref = self.ray.remote(function).options(num_cpus=1, max_retries=RETRIES).remote(*args)
        self._refs.append(ref)
        return ref

    def _future(self, ref: Any) -> Future[Any]:
        """Of a task, with its own errors instead of Ray's around them."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def done(inner: Future[Any]) -> None:
            error = inner.exception()
            if error is None:
                future.set_result(None if ref in self._worlds.values() else inner.result())
            else:
                future.set_exception(own_error(error))

        ref.future().add_done_callback(done)
        return future


def own_error(error: BaseException) -> BaseException:
    """What a task raised, or a `WorkerError` where Ray lost it for good."""
    import ray

    if isinstance(error, ray.exceptions.RayTaskError):
        return error.cause if isinstance(error.cause, Exception) else error
    if isinstance(error, ray.exceptions.RayError):
        return WorkerError(
            f"a worker of the cluster was lost ({type(error).__name__}); nothing is lost: go on with resume=DIR"
        )
    return error


def _make(design: Design, seed: int) -> World:
    return design.make_world(seed)


def _play(design: Design, job: Job, folder: Path, checkpoint_every: int, world: World, desk: Any) -> bool:
    import ray

    looked, stopped = 0.0, False

    def stop() -> bool:
        nonlocal looked, stopped
        if time.monotonic() - looked > _LOOK:
            looked, stopped = time.monotonic(), ray.get(desk.has_stopped.remote())
        return stopped

    if stop():
        return False

    def report(rounds: int, steps: int) -> None:
        desk.tell.remote(rounds, steps)

    return play_job(design, job, folder, checkpoint_every, world, report, stop)


# -- shards -------------------------------------------------------------------------------------------------------


class _Keeper:
    """An actor that holds one shard."""

    def __init__(self, maker: ShardMaker, world: World) -> None:
        self.shard: Shard = maker(world)

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self.shard, method)(*args)


class RayPlace:
    """Shards in actors: all play at the same time, and what they are told goes through the object store once."""

    def __init__(self, makers: Sequence[ShardMaker], world: World) -> None:
        import ray

        self.ray = ray
        ref, actor = ray.put(world), ray.remote(_Keeper)
        self.actors: list[Any] = [actor.options(num_cpus=0.5).remote(maker, ref) for maker in makers]
        self._sent: list[Any] = []

    def each(self, method: str, *args: Any) -> list[Any]:
        shared = [self.ray.put(arg) for arg in args]
        self._get(self._sent)
        self._sent = []
        return self._get([actor.call.remote(method, *shared) for actor in self.actors])

    def send(self, method: str, args: Sequence[tuple[Any, ...]]) -> None:
        self._sent += [actor.call.remote(method, *own) for actor, own in zip(self.actors, args, strict=True)]

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor)

    def _get(self, refs: list[Any]) -> list[Any]:
        try:
            found: list[Any] = self.ray.get(refs)
        except self.ray.exceptions.RayTaskError as error:
            raise own_error(error) from None
        except self.ray.exceptions.RayError as error:
            raise ShardLost(str(own_error(error))) from error
        return found


@contextmanager
def shards_on_ray() -> Iterator[Put]:
    """What puts the shards of a job into the cluster; those of the job before make way."""
    places: list[RayPlace] = []

    def put(makers: Sequence[ShardMaker], world: World) -> RayPlace:
        while places:
            places.pop().close()
        places.append(RayPlace(makers, world))
        return places[0]

    try:
        yield put
    finally:
        while places:
            places.pop().close()
