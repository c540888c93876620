"""Logs with a structure that a sequence model must find."""

import numpy as np

from recommenders.evaluation.offline import rank_metrics, ranks
from recommenders.testing import KEY, small_dataset
from simenv.datasets.base import Interactions
from simenv.datasets.splits import leave_one_out
from simenv.slates import SeesDataset
from tests.recommenders.flat import flat


def cycles(n_users: int = 60, n_items: int = 20, length: int = 10) -> Interactions:
    """Users who walk round the catalogue: after item i comes i + 1."""
    starts = np.random.default_rng(0).integers(0, n_items, n_users)
    items = (starts[:, None] + np.arange(length)) % n_items
    n = n_users * length
    return Interactions(
        users=np.repeat(np.arange(n_users), length).astype(np.int32),
        items=items.ravel().astype(np.int32),
        ratings=np.full(n, np.nan, np.float32),
        times=np.tile(np.arange(length), n_users),
        n_users=n_users,
        n_items=n_items,
    )


def hits_at_1(model, **options) -> float:
    """How often the item that comes next in `cycles` is ranked first."""
    split = leave_one_out(cycles())
    recommender = flat(model, **{"embedding_size": 32, "history": 10, "learning_rate": 2e-2, **options})
    if isinstance(recommender, SeesDataset):
        recommender.bind_dataset(small_dataset(split.train))
    recommender.fit(split.train, key=KEY)
    return float(rank_metrics(ranks(recommender, split))["hr@1"].mean())
