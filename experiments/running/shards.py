"""A job's platform with its users in shards: `simenv.shards` for a Design and a World.

The module does not know in which processes the shards lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from experiments.running.design import Design, Job, World
from simenv.datasets.base import Head, LongArray
from simenv.shards import Everybody, Here, Place, Shard, ShardedPlatform, bounds_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardMaker:
    """Makes the shard of some rows of a world; can be sent elsewhere, the world apart."""

    design: Design
    job: Job
    first: int
    last: int
    options: dict[str, Any]

    def __call__(self, world: World) -> Shard:
        """The shard, in this world of the job's seed."""
        rows = np.arange(self.first, self.last)
        users = self.design.make_users()
        dataset = world.dataset.take_users(rows)
        tastes = replace(world.tastes, choice=_take(world.tastes.choice, rows), rating=_take(world.tastes.rating, rows))
        users.bind(dataset, tastes, seed=self.job.seed, repeat=self.design.repeat, traits=world.traits.take(rows))
        log = world.dataset.interactions
        everybody = Everybody(first=self.first, n_users=log.n_users, item_counts=log.item_counts())
        return Shard(dataset, users, everybody, mode=self.job.mode, schedule=self.design.schedule, **self.options)


Put = Callable[[Sequence[ShardMaker], World], Place]


def sharded(
    design: Design, job: Job, world: World, n_shards: int, options: dict[str, Any], put: Put | None = None
) -> ShardedPlatform:
    """The platform of a job whose users are cut into `n_shards`.

    Args:
        design, job, world: of the run.
        n_shards: equal parts, at most one a user; fewer users make fewer shards.
        options: seeds and course of the platform.
        put: what puts shards somewhere; None = into this process.
    """
    bounds = bounds_of(world.dataset.n_users, min(n_shards, world.dataset.n_users))
    makers = [
        ShardMaker(design=design, job=job, first=first, last=last, options=options) for first, last in pairwise(bounds)
    ]
    place = Here([make(world) for make in makers]) if put is None else put(makers, world)
    return ShardedPlatform(
        world.dataset,
        place,
        bounds,
        design.make_recommender(job.arm),
        mode=job.mode,
        schedule=design.schedule,
        **options,
    )


def _take(head: Head, rows: LongArray) -> Head:
    return replace(head, user_vectors=head.user_vectors[rows], user_bias=head.user_bias[rows])
