"""The social recommender: friends first, popularity next, and no world without friends."""

from dataclasses import replace

import numpy as np
import pytest

from recommenders.social import Social
from recommenders.testing import RecommenderSuite, small_dataset
from simenv.datasets import Friends, synthetic
from simenv.errors import ConfigError, RecommenderError


class TestSocial(RecommenderSuite):
    def make(self) -> Social:
        return Knowing()


class Knowing(Social):
    """One that knows a ring of friends, whoever the users are."""

    def bind_dataset(self, dataset):
        row = np.arange(dataset.n_users)
        ties = np.stack([row, (row + 1) % dataset.n_users], axis=1)
        super().bind_dataset(replace(dataset, friends=Friends.of(dataset.n_users, ties)))


def test_scores_are_friends_who_consumed_and_popularity_below(world):
    social = synthetic(n_users=60, n_items=80, seed=3, mean_degree=4)
    mine = Social()
    mine.bind_dataset(social)
    mine.fit(social.interactions)
    consumed = np.zeros((60, 80))
    consumed[social.interactions.users, social.interactions.items] = 1
    expected = np.stack([consumed[social.friends[user]].sum(axis=0) for user in range(60)])
    counts = social.interactions.item_counts()
    np.testing.assert_allclose(mine.scores(np.arange(60)), expected + counts / (1 + counts.max()), rtol=1e-5)


def test_a_world_without_friends_is_refused(world):
    with pytest.raises(ConfigError, match="arm 'social': synthetic knows no friends"):
        Social().bind_dataset(world)
    with pytest.raises(RecommenderError, match="expected bind_dataset before"):
        Social().fit(world.interactions)
    with pytest.raises(ConfigError, match="small knows no friends"):
        Social().bind_dataset(small_dataset(world.interactions))
