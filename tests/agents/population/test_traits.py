"""Traits against cases worked by hand."""

import numpy as np
import pytest

from agents.population.traits import Traits, genre_lift, normalised_entropy, tiers
from simenv.datasets.base import Catalog, Dataset, Interactions, RatingScale
from simenv.metrics.reference import midrank_percentile

NAN = float("nan")


def make_dataset(rows, genres, n_users, genre_names=None, scale=None):
    """`rows` are (user, item, rating); `genres` one row of 0/1 per item."""
    genres = np.asarray(genres, dtype=bool)
    users, items, ratings = (np.array(column) for column in zip(*rows, strict=True))
    return Dataset(
        name="toy",
        catalog=Catalog(
            item_ids=tuple(f"i{k}" for k in range(len(genres))),
            titles=tuple(f"Item {k}" for k in range(len(genres))),
            genre_names=tuple(genre_names or (f"g{k}" for k in range(genres.shape[1]))),
            genres=genres,
        ),
        interactions=Interactions(
            users=users.astype(np.int32),
            items=items.astype(np.int32),
            ratings=ratings.astype(np.float32),
            times=np.arange(len(users), dtype=np.int64),
            n_users=n_users,
            n_items=len(genres),
        ),
        user_ids=tuple(f"u{k}" for k in range(n_users)),
        rating_scale=scale or RatingScale(),
    )


@pytest.fixture
def toy():
    """Items 0, 1 of genre A, item 2 of genre B, item 3 of both; user 3 has nothing."""
    rows = [(0, 0, 5), (0, 1, 3), (0, 2, 1), (1, 0, 3), (1, 1, 3), (2, 0, 1), (2, 3, NAN)]
    return make_dataset(rows, [[1, 0], [1, 0], [0, 1], [1, 1]], n_users=4)


def test_activity(toy):
    traits = Traits.from_dataset(toy)
    assert traits.activity.tolist() == [3, 2, 2, 0]
    np.testing.assert_allclose(traits.activity_pct, [0.875, 0.5, 0.5, 0.125])
    assert traits.activity_tier.tolist() == [2, 0, 0, 0]  # P60 = 2, P90 = 2.7


def test_activity_tiers_of_a_hundred_users():
    rows = [(u, i, 3) for u in range(100) for i in range(u + 1)]
    traits = Traits.from_dataset(make_dataset(rows, np.ones((100, 2)), n_users=100))
    assert np.bincount(traits.activity_tier).tolist() == [60, 30, 10]


def test_conformity_leaves_the_user_out(toy):
    # item 0: ratings 5, 3, 1; item 1: 3, 3; item 2 has one rater and does not count
    # user 0: ((5 - 2)^2 + (3 - 3)^2) / 2 = 4.5; user 1: (0 + 0) / 2 = 0; user 2: (1 - 4)^2 = 9; user 3: the median 4.5
    traits = Traits.from_dataset(toy)
    np.testing.assert_allclose(traits.conformity, [4.5, 0.0, 9.0, 4.5])
    assert np.argmin(traits.conformity_pct) == 1
    assert traits.conformity_tier.tolist() == [1, 0, 2, 1]  # P25 = 3.375, P80 = 6.3


def test_conformity_without_shared_ratings_is_zero():
    traits = Traits.from_dataset(make_dataset([(0, 0, 5), (1, 1, 1)], np.eye(2), n_users=2))
    assert traits.conformity.tolist() == [0.0, 0.0]


def test_diversity(toy):
    # user 0: 2/3 A, 1/3 B; user 1: A only; user 2: 1 A + (half A, half B) = 3/4, 1/4; user 3: the mean of those
    def entropy(p):
        return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))

    expected = [entropy(1 / 3), 0.0, entropy(1 / 4)]
    traits = Traits.from_dataset(toy)
    np.testing.assert_allclose(traits.diversity, [*expected, np.mean(expected)], rtol=1e-6)


def test_diversity_where_there_is_nothing_to_diversify():
    assert normalised_entropy(np.array([[3.0], [0.0]])).tolist() == [0.0, 0.0]
    assert normalised_entropy(np.zeros((2, 4))).tolist() == [0.0, 0.0]
    np.testing.assert_allclose(normalised_entropy(np.ones((1, 18))), 1.0, rtol=1e-6)


def test_pickiness_shrinks_to_the_population(toy):
    # ratings 5 3 1 | 3 3 | 1: mean 16/6; squares around own means 8 + 0 + 0 over 6 - 3 degrees of freedom
    traits = Traits.from_dataset(toy)
    mean, variance = 16 / 6, 8 / 3
    np.testing.assert_allclose(
        traits.rating_mean, [(9 + 5 * mean) / 8, (6 + 5 * mean) / 7, (1 + 5 * mean) / 6, mean], rtol=1e-6
    )
    np.testing.assert_allclose(
        np.square(traits.rating_sd), [(8 + 5 * variance) / 7, 5 * variance / 6, variance, variance], rtol=1e-5
    )


def test_pickiness_without_any_rating():
    toy = make_dataset([(0, 0, NAN), (1, 1, NAN)], np.eye(2), n_users=2, scale=RatingScale(low=0, high=10))
    traits = Traits.from_dataset(toy)
    assert traits.rating_mean.tolist() == [5.0, 5.0]
    assert traits.rating_sd.tolist() == [2.5, 2.5]


def test_popularity_propensity(toy):
    # item counts 3, 2, 1, 1: mid-rank percentiles .875, .625, .25, .25
    traits = Traits.from_dataset(toy)
    expected = [(0.875 + 0.625 + 0.25) / 3, (0.875 + 0.625) / 2, (0.875 + 0.25) / 2]
    np.testing.assert_allclose(traits.popularity, [*expected, np.mean(expected)], rtol=1e-6)


def test_taste_is_lift_and_not_frequency():
    # genre 0 is what everybody sees; user 0 alone also sees genre 1, and never genre 2
    rows = [(0, 0, 3)] * 6 + [(0, 1, 3)] * 4 + [(1, 0, 3)] * 6 + [(1, 2, 3)] * 4
    traits = Traits.from_dataset(make_dataset(rows, np.eye(4), n_users=3))
    assert traits.top_genres.tolist() == [[1, -1, -1], [2, -1, -1], [-1, -1, -1]]
    assert traits.bottom_genres.tolist() == [[2, -1, -1], [1, -1, -1], [-1, -1, -1]]


def test_lift_counts_an_unseen_genre_as_disliked_only_as_far_as_it_was_expected():
    lift = genre_lift(np.array([[10.0, 0.0, 0.0], [10.0, 18.0, 2.0]]))
    assert lift[0, 1] < lift[0, 2] < 1
    np.testing.assert_allclose(lift[0], [11 / (10 * 0.5 + 1), 1 / (10 * 0.45 + 1), 1 / (10 * 0.05 + 1)])


def test_percentile_and_tiers():
    np.testing.assert_allclose(midrank_percentile(np.array([3, 1, 3, 2])), [0.75, 0.125, 0.75, 0.375])
    assert tiers(np.arange(1, 101), (25.0, 80.0)).tolist() == [0] * 25 + [1] * 55 + [2] * 20


def test_take_keeps_what_was_computed_in_the_population(toy):
    traits = Traits.from_dataset(toy)
    few = traits.take(np.array([2, 0]))
    assert few.n_users == 2
    assert few.conformity_tier.tolist() == [2, 1]
    assert few.top_genres.shape == (2, 3)
    assert set(few.columns()) >= {"activity", "conformity", "diversity", "rating_mean", "popularity"}
    assert all(column.shape == (2,) for column in few.columns().values())
