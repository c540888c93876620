"""Plackett-Luce slates with exact propensities; LinUCB against its formula."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from recommenders.base import Recommender
from recommenders.factors import ALS
from recommenders.linucb import LinUCB
from recommenders.plackett_luce import PlackettLuce, slate_propensity
from recommenders.popularity import Popularity
from recommenders.testing import KEY, RecommenderSuite, small_dataset, small_log
from simenv.candidates import Candidates
from simenv.datasets import Interactions
from simenv.errors import ConfigError, RecommenderError
from simenv.randomness import Key


class TestPlackettLuce(RecommenderSuite):
    def make(self) -> Recommender:
        return PlackettLuce(Popularity(), temperature=0.7)


class TestLinUCB(RecommenderSuite):
    def make(self) -> Recommender:
        return LinUCB()

    def test_update_is_a_refit(self) -> None:
        """It is not: popularity stays that of the fit, and a pair counts once an update. Only who clicked changes."""
        recommender, new = self.fitted(), small_log(seed=1, n=5)
        before = recommender.scores(np.arange(40))
        recommender.update(new, key=KEY)
        changed = (recommender.scores(np.arange(40)) != before).any(axis=1)
        assert np.flatnonzero(changed).tolist() == sorted(set(new.users.tolist()))

    def test_empty_update_changes_nothing(self) -> None:
        recommender = self.fitted()
        before = recommender.scores(np.arange(40))
        recommender.update(Interactions.empty(40, 60), key=KEY)
        np.testing.assert_array_equal(recommender.scores(np.arange(40)), before)


def fitted(temperature: float = 0.7) -> PlackettLuce:
    recommender = PlackettLuce(Popularity(), temperature=temperature)
    recommender.fit(small_log(n_items=5, n=60))
    return recommender


def test_probabilities_of_all_slates_sum_to_one() -> None:
    recommender = fitted()
    slates = np.array(list(itertools.permutations(range(5), 3)))
    p = recommender.propensity(np.zeros(len(slates), int), slates)
    assert slate_propensity(p).sum() == pytest.approx(1.0)
    candidates = Candidates.of(5, out=(np.arange(5) == 2)[None, :])
    p = recommender.propensity(np.zeros(len(slates), int), slates, candidates)
    assert slate_propensity(p).sum() == pytest.approx(1.0)
    assert (slate_propensity(p)[(slates == 2).any(axis=1)] == 0).all()


def test_slates_are_drawn_as_often_as_their_propensity_says() -> None:
    recommender, n = fitted(), 20_000
    slates = np.concatenate([recommender.recommend(np.arange(40), 2, key=Key(0, r)).item_ids for r in range(n // 40)])
    for first, second in itertools.permutations(range(5), 2):
        p = float(slate_propensity(recommender.propensity(np.array([0]), np.array([[first, second]])))[0])
        share = ((slates[:, 0] == first) & (slates[:, 1] == second)).mean()
        assert abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / n)


def test_logged_propensities_are_those_of_the_slates() -> None:
    recommender = PlackettLuce(ALS(embedding_size=4, epochs=2))
    recommender.fit(small_log())
    candidates = Candidates.of(60, out=np.random.default_rng(0).random((40, 60)) < 0.3)
    slates = recommender.recommend(np.arange(40), 6, candidates, key=KEY)
    assert slates.propensity is not None
    again = recommender.propensity(np.arange(40), slates.item_ids, candidates)
    np.testing.assert_array_equal(slates.propensity, again)
    assert (recommender.propensity(np.arange(2), np.array([[1, 1], [2, -1]]))[[0, 1], 1] == [0.0, 1.0]).all()


def test_temperature_goes_from_the_bases_slate_to_uniform() -> None:
    cold, hot = fitted(1e-3), fitted(1e6)
    assert (cold.recommend(np.arange(40), 3, key=KEY).item_ids == cold.base.recommend(np.arange(40), 3).item_ids).all()
    np.testing.assert_allclose(
        hot.propensity(np.array([0]), np.array([[4, 1, 3]]))[0], [1 / 5, 1 / 4, 1 / 3], rtol=1e-4
    )
    with pytest.raises(ConfigError, match="temperature=0"):
        PlackettLuce(Popularity(), temperature=0)
    with pytest.raises(RecommenderError, match="slates"):
        cold.propensity(np.arange(2), np.array([[1, 2]]))


def test_linucb_is_its_formula() -> None:
    log: Any = small_log()
    recommender = LinUCB(alpha=0.7, reg=2.0)
    dataset = small_dataset(log)
    recommender.bind_dataset(dataset)
    recommender.fit(log)
    served = recommender.recommend(np.array([3]), 4, key=KEY).item_ids[0]
    clicks = Interactions(
        users=np.array([3, 3], np.int32),
        items=np.array([served[1], 17], np.int32),
        ratings=np.full(2, np.nan, np.float32),
        times=np.array([9999, 9999]),
        n_users=40,
        n_items=60,
    )
    recommender.update(clicks, key=KEY)
    genres = dataset.catalog.genres / np.maximum(dataset.catalog.genres.sum(axis=1, keepdims=True), 1)
    counts = log.item_counts()
    x = np.column_stack([genres, counts / counts.max(), np.ones(60)])
    tried = [*log.items[log.users == 3].tolist(), *served.tolist(), *([] if 17 in served else [17])]
    liked = [*log.items[log.users == 3].tolist(), int(served[1]), 17]
    a = 2.0 * np.eye(x.shape[1]) + sum(np.outer(x[i], x[i]) for i in tried)
    theta = np.linalg.solve(a, sum(x[i] for i in liked))
    width = np.sqrt(np.einsum("id,de,ie->i", x, np.linalg.inv(a), x))
    np.testing.assert_allclose(recommender.scores(np.array([3]))[0], x @ theta + 0.7 * width, rtol=1e-4, atol=1e-5)
