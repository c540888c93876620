"""Leave-one-out figures on real data: full ranking, seen items filtered, the validation item in the input."""

import os
from pathlib import Path

import numpy as np
import pytest

from recommenders.neighbours import SeqKNN
from recommenders.popularity import Popularity
from simenv.candidates import Candidates
from simenv.datasets import load

pytestmark = pytest.mark.realdata


def dataset(name, folder):
    root = Path(os.environ.get("SIMENV_DATA", Path(__file__).parents[4] / "shared" / "data")) / folder
    if not root.exists():
        pytest.skip(f"no {root}")
    return load(name, root=str(root))


def leave_one_out(recommender, log):
    """HR@10 and NDCG@10."""
    order = np.lexsort((np.arange(len(log)), log.times, log.users))
    last = order[np.cumsum(log.user_counts()) - 1]
    kept = np.ones(len(log), np.bool_)
    kept[last] = False
    train = log.take(kept)
    recommender.fit(train)
    hits = []
    for users in np.array_split(np.arange(log.n_users), max(1, log.n_users // 2000)):
        seen = np.zeros((len(users), log.n_items), np.bool_)
        mine = (train.users >= users[0]) & (train.users <= users[-1])
        seen[train.users[mine] - users[0], train.items[mine]] = True
        slates = recommender.recommend(users, 10, Candidates.of(log.n_items, out=seen)).item_ids
        hits.append(slates == log.items[last[users]][:, None])
    hits = np.concatenate(hits)
    return hits.any(axis=1).mean(), (hits / np.log2(np.arange(10) + 2)).sum(axis=1).mean()


def test_movielens_100k():
    log = dataset("ml-100k", "ml-100k").interactions
    assert leave_one_out(Popularity(), log)[0] == pytest.approx(0.086, abs=0.002)
    assert leave_one_out(SeqKNN(), log)[0] == pytest.approx(0.200, abs=0.005)


@pytest.mark.slow
def test_amazon_beauty():
    log = dataset("amazon", "amazon-beauty-2014").interactions
    hr, ndcg = leave_one_out(SeqKNN(recency_decay=0.6, power=0.3), log)
    assert hr == pytest.approx(0.0913, abs=0.003)
    assert ndcg == pytest.approx(0.0591, abs=0.003)
