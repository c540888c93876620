"""The transition graph and ensembles: the suite, and what their definitions say."""

from dataclasses import replace

import numpy as np
import pytest

from recommenders.ensemble import Ensemble, best_first
from recommenders.linear import EASE
from recommenders.neighbours import ItemKNN, SeqKNN
from recommenders.popularity import Popularity
from recommenders.testing import KEY, RecommenderSuite, small_dataset, small_log
from recommenders.transitions import TransitionGraph
from simenv.datasets.base import Interactions
from simenv.errors import ConfigError, RecommenderError


class TestTransitionGraphSuite(RecommenderSuite):
    def make(self):
        return TransitionGraph()


class TestEnsembleSuite(RecommenderSuite):
    def make(self):
        return Ensemble(parts=[SeqKNN(), EASE()])


def walks(*histories: list[int], n_items: int = 8) -> Interactions:
    items = np.concatenate(histories)
    return Interactions(
        users=np.repeat(np.arange(len(histories)), [len(h) for h in histories]).astype(np.int32),
        items=items.astype(np.int32),
        ratings=np.full(len(items), np.nan, np.float32),
        times=np.arange(len(items)),
        n_users=len(histories),
        n_items=n_items,
    )


def tgh(log: Interactions, genres: dict[int, int], **options) -> TransitionGraph:
    """Fitted, among items whose content is one genre each."""
    table = np.zeros((log.n_items, 4), np.bool_)
    table[np.arange(log.n_items), [genres.get(item, 3) for item in range(log.n_items)]] = True
    dataset = small_dataset(log)
    titles = tuple("word" for _ in range(log.n_items))
    recommender = TransitionGraph(**options)
    recommender.bind_dataset(replace(dataset, catalog=replace(dataset.catalog, genres=table, titles=titles)))
    recommender.fit(log, key=KEY)
    return recommender


def test_nearer_rings_come_first_and_likeness_orders_a_ring():
    # Ring 1 around 0 holds 1 and 2, ring 2 item 3; 4 and 5 cannot be reached, and 4 is the more popular one.
    log = walks([0, 1], [0, 2], [2, 3], [4, 5], [4], [0])
    recommender = tgh(log, {0: 0, 1: 1, 2: 0}, sources=1, rings=2)
    best = recommender.recommend(np.array([5]), 6).item_ids[0].tolist()
    assert best == [2, 1, 0, 3, 4, 5]  # 0 itself lies two steps away, beside 3 but more alike


def test_walks_go_both_ways_unless_directed_and_counts_matter_where_asked():
    log = walks([1, 0], [0, 2], [0, 3], [0, 3], [0])
    both, forward = tgh(log, {}, rings=1), tgh(log, {}, rings=1, directed=True)
    assert set(both.recommend(np.array([4]), 3).item_ids[0].tolist()) == {1, 2, 3}
    assert set(forward.recommend(np.array([4]), 2).item_ids[0].tolist()) == {2, 3}
    counted = tgh(log, {}, rings=1, support=1.0)
    assert counted.recommend(np.array([4]), 1).item_ids[0, 0] == 3


def test_an_ensemble_of_ranks_adds_reciprocal_ranks():
    log = small_log()
    parts = ItemKNN(), Popularity()
    ensemble = Ensemble(parts=parts, weights=[2.0, 1.0])
    ensemble.fit(log, key=KEY)
    users = np.arange(5)
    expected = np.zeros((5, 60))
    for part, weight in zip(parts, (2.0, 1.0), strict=True):
        order = np.argsort(-part.scores(users), axis=1, kind="stable")
        expected += weight / (61 + np.argsort(order, axis=1))
    np.testing.assert_allclose(ensemble.scores(users), expected, rtol=1e-6)


def test_best_first_is_a_stable_argsort():
    scores = np.random.default_rng(0).normal(size=(7, 500)).astype(np.float32).round(1) * 10
    scores[:, :4] = [0.0, -0.0, np.inf, -np.inf]
    scores[0, 5:] *= 1e-44  # subnormal
    assert np.array_equal(best_first(scores), np.argsort(-scores.astype(np.float64), axis=1, kind="stable"))


def test_an_ensemble_of_probabilities_mixes_them():
    log, users = small_log(), np.arange(5)
    part = SeqKNN()
    alone, twice = Ensemble(parts=[part, part], how="softmax", temperature=0.5), part
    alone.fit(log, key=KEY)
    scores = twice.scores(users).astype(float)
    shares = np.exp(scores / scores.std(axis=1, keepdims=True) / 0.5)
    shares /= shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(alone.scores(users)), 2 * shares, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransitionGraph(rings=4), "tgh: rings=4"),
        (lambda: TransitionGraph(recency=0), "tgh: recency=0"),
        (lambda: Ensemble(parts=[SeqKNN()]), "parts=1"),
        (lambda: Ensemble(parts=[SeqKNN(), EASE()], weights=[1]), "1 weights for 2 parts"),
        (lambda: Ensemble(parts=[SeqKNN(), EASE()], how="vote"), "how=vote; expected one of softmax, ranks"),
    ],
)
def test_wrong_options_are_an_error(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_without_content_there_is_one_clear_error():
    with pytest.raises(RecommenderError, match="tgh: knows no content of 60 items; bind_dataset first"):
        TransitionGraph().fit(small_log(), key=KEY)
