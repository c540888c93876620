import numpy as np
import pytest

from recommenders.factors import ALS
from recommenders.popularity import Popularity, Random
from recommenders.shared import Shared, treated, treated_clusters
from recommenders.testing import KEY, RecommenderSuite, small_log
from simenv.datasets import synthetic
from simenv.datasets.base import Interactions
from simenv.errors import ConfigError, RecommenderError

USERS = np.arange(40)


class TestPooled(RecommenderSuite):
    def make(self):
        return Shared(Popularity(), ALS())


class TestWithPropensities(RecommenderSuite):
    def make(self):
        return Shared(Random(), Popularity(), share=0.3)


def feedback(log, users, item):
    n = len(users)
    new = Interactions(
        users=np.asarray(users, np.int32),
        items=np.full(n, item, np.int32),
        ratings=np.full(n, 5, np.float32),
        times=np.full(n, int(log.times.max()) + 1, np.int64),
        n_users=log.n_users,
        n_items=log.n_items,
    )
    return log.concat(new)


def test_each_user_is_served_by_one_of_the_two_as_it_serves_alone():
    log = small_log()
    both, popularity, als = Shared(Popularity(), ALS(), share=0.4), Popularity(), ALS()
    for one in (both, popularity, als):
        one.fit(log, key=KEY)
    shown = both.recommend(USERS, 5).item_ids
    group = treated(KEY.seed, log.n_users, 0.4)[USERS]
    assert 0 < group.sum() < len(USERS)
    np.testing.assert_array_equal(shown[group], als.recommend(USERS[group], 5).item_ids)
    np.testing.assert_array_equal(shown[~group], popularity.recommend(USERS[~group], 5).item_ids)


@pytest.mark.parametrize("refits", [True, False])
def test_the_own_log_hides_the_other_groups_feedback(refits):
    log = small_log()
    group = treated(KEY.seed, log.n_users, 0.5)
    rare = int(np.argmin(log.item_counts()))
    full = feedback(log, np.repeat(np.flatnonzero(group), 40), rare)  # all the treated click on a rare item
    first = {}
    for learns_from in ("pooled", "own"):
        both = Shared(Popularity(), Popularity(), log=learns_from)
        both.fit(log, key=KEY)
        if refits:
            both.fit(full, key=KEY.at(round=1))
        else:
            both.update(full.take(slice(len(log), None)), key=KEY.at(round=1))
        first[learns_from] = both.recommend(np.arange(log.n_users), 1).item_ids[:, 0] == rare
    assert first["pooled"].all()
    np.testing.assert_array_equal(first["own"], group)


def test_the_share_is_that_of_the_treated():
    assert treated(3, 20_000, 0.2).mean() == pytest.approx(0.2, abs=0.01)


def test_whole_clusters_are_treated_in_their_share():
    sizes = np.array([30, 5, 1, 1, 14, 20, 9, 20])
    clusters = np.repeat(np.arange(8), sizes)
    chosen = np.array([treated_clusters(seed, clusters, 0.4) for seed in range(400)])
    for cluster in range(8):
        inside = chosen[:, clusters == cluster]
        assert (inside == inside[:, :1]).all()
    assert (abs(chosen.mean(axis=1) - 0.4) <= sizes.max() / 2 / 100 + 1e-9).all()
    assert chosen.mean() == pytest.approx(0.4, abs=0.02)
    assert chosen[:, clusters == 2].mean() == pytest.approx(0.4, abs=0.08)
    with pytest.raises(ConfigError, match=r"1 clusters of friends leave one of the two groups empty at share=0\.4"):
        treated_clusters(0, np.zeros(100, np.int64), 0.4)


def test_friends_are_served_alike_where_clusters_are_assigned():
    world = synthetic(n_users=120, n_items=40, seed=2, mean_degree=6)
    both = Shared(Popularity(), ALS(), users="friends")
    with pytest.raises(RecommenderError, match="whose friends it was not shown"):
        both.fit(world.interactions, key=KEY)
    both.bind_dataset(world)
    both.fit(world.interactions, key=KEY)
    group = treated_clusters(KEY.seed, world.friends.clusters(KEY.seed), 0.5)
    alone = ALS()
    alone.fit(world.interactions, key=KEY)
    everybody = np.arange(120)
    same = (both.recommend(everybody, 5).item_ids == alone.recommend(everybody, 5).item_ids).all(axis=1)
    assert same[group].all()
    assert not same[~group].all()
    cut = np.mean([choice[world.friends.ties[:, 0]] != choice[world.friends.ties[:, 1]]
                   for choice in (group, treated(KEY.seed, 120, 0.5))], axis=1)  # fmt: skip
    assert cut[0] < 0.5 * cut[1]  # ties between the two groups


def test_clusters_of_nobodys_friends_are_refused():
    with pytest.raises(ConfigError, match=r"shared\.users=friends: synthetic knows no friends"):
        Shared(Popularity(), ALS(), users="friends").bind_dataset(synthetic(n_users=20, n_items=20, seed=1))


@pytest.mark.parametrize("options", [{"share": 0}, {"share": 1.0}, {"log": "both"}, {"users": "all"}])
def test_bad_options_are_named(options):
    with pytest.raises(ConfigError, match=f"shared.{next(iter(options))}"):
        Shared(Popularity(), ALS(), **options)


def test_two_recommenders_are_needed():
    with pytest.raises(ConfigError, match="treatment is a str"):
        Shared(Popularity(), "als")  # type: ignore[arg-type]
