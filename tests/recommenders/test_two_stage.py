"""TwoStage: near the exact slates at a fraction of the products, and whole slates where the index finds too little."""

import numpy as np
import pytest

from recommenders.factors import ALS
from recommenders.popularity import Popularity
from recommenders.testing import small_log
from recommenders.two_stage import TwoStage
from simenv.candidates import Candidates
from simenv.errors import ConfigError


def test_slates_are_nearly_the_exact_ones_and_less_so_with_less_search():
    log = small_log(n_users=200, n_items=3000, n=20_000)
    users = np.arange(197)

    def slates(recommender):
        recommender.fit(log)
        return recommender.recommend(users, 10).item_ids

    def shared(a, b):
        return np.mean([len(np.intersect1d(one, other)) / 10 for one, other in zip(a, b, strict=True)])

    exact = slates(ALS(embedding_size=8))
    made = TwoStage(ALS(embedding_size=8), candidates=100)
    assert shared(exact, slates(made)) > 0.97
    assert len(made._index) == np.count_nonzero(log.item_counts()) < 3000  # nobody's items are not looked for
    few = slates(TwoStage(ALS(embedding_size=8), candidates=12))
    assert shared(exact, few) < 1
    for less in ({"connectivity": 2}, {"expansion": 1}):
        assert not np.array_equal(few, slates(TwoStage(ALS(embedding_size=8), candidates=12, **less)))


def test_popular_items_fill_what_the_index_leaves_open():
    log = small_log()
    made, popular = TwoStage(ALS(embedding_size=4), candidates=5), Popularity()
    made.fit(log)
    popular.fit(log)
    out = np.zeros((37, 60), np.bool_)
    out[:, ::2] = True
    slates = made.recommend(np.arange(37), 10, Candidates.of(60, out=out)).item_ids
    assert (slates % 2 == 1).all()
    assert all(len(set(row)) == 10 for row in slates.tolist())
    new = np.array([37, 38, 39])  # without a history
    np.testing.assert_array_equal(made.recommend(new, 10).item_ids, popular.recommend(new, 10).item_ids)


def test_a_base_needs_vectors():
    with pytest.raises(ConfigError, match="two-stage: base is a Popularity; expected als, bpr or mf"):
        TwoStage(Popularity())
