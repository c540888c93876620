import numpy as np
import pytest
from scipy.optimize import nnls

from experiments.replications.chaney2018 import world
from recommenders.oracle import Oracle
from recommenders.papers import AttributeProfile, NewestInterleaved, SocialFiltering
from recommenders.popularity import Popularity, Random
from recommenders.testing import KEY, small_dataset, small_log
from simenv.candidates import Candidates
from simenv.errors import ConfigError, RecommenderError
from simenv.randomness import Key


@pytest.fixture(scope="module")
def chaney():
    return world(n_users=20, n_items=60, seed=2, steps=20, startup=10)


def made(recommender, dataset, round_=0):
    recommender.bind_dataset(dataset)
    recommender.fit(dataset.interactions, key=Key(0, round_))
    return recommender


def test_profiles_are_the_non_negative_least_squares(chaney):
    content = made(AttributeProfile(sweeps=2000), chaney)
    a = np.stack([chaney.catalog.attributes[f"attribute{k:02d}"] for k in range(20)], axis=1).astype(float)
    counts = np.zeros((20, 60))
    np.add.at(counts, (chaney.interactions.users, chaney.interactions.items), 1)
    for user in range(20):
        _, residual = nnls(a, counts[user])
        ours = np.linalg.norm(a @ content.profiles()[user] - counts[user])
        assert ours == pytest.approx(residual, rel=1e-4)
        assert (content.profiles()[user] >= 0).all()
    np.testing.assert_allclose(content.scores(np.arange(20)), content.profiles() @ a.T, rtol=1e-5, atol=1e-6)


def test_everybody_has_a_friend_and_the_threshold_is_the_largest_such(chaney):
    social = made(SocialFiltering(), chaney)
    covariance = np.cov(chaney.tastes.choice.user_vectors.astype(float))
    np.fill_diagonal(covariance, -np.inf)
    network = social.network.astype(bool)
    assert network.any(axis=1).all()
    assert not network.diagonal().any()
    threshold = covariance[network].min()
    assert not (covariance > threshold).any(axis=1).all(), "a larger threshold leaves somebody alone"
    counts = np.zeros((20, 60))
    np.add.at(counts, (chaney.interactions.users, chaney.interactions.items), 1)
    np.testing.assert_allclose(social.scores(np.arange(20)), network @ counts)


def test_new_items_come_at_random_places_and_only_in_their_round(chaney):
    release = chaney.catalog.attributes["release"]
    mixed = made(NewestInterleaved(Popularity()), chaney)
    slates = mixed.recommend(np.arange(20), 33, key=Key(0, 0)).item_ids
    assert set(np.flatnonzero(release <= 0)) == set(slates[0].tolist()), "every known item and every new one, once"
    places = np.flatnonzero((release[slates] == 0).ravel()) % 33
    assert places.min() < 6
    assert places.max() > 26
    later = mixed.recommend(np.arange(20), 33, key=Key(0, 3)).item_ids  # not retrained since
    shown = later[later >= 0]
    assert set(np.unique(release[shown])) == {*range(-10, 0), 3}
    known = release[slates[0]] < 0
    base = Popularity()
    base.fit(chaney.interactions)
    order = base.recommend(np.array([0]), 60).item_ids[0]
    np.testing.assert_array_equal(slates[0][known], order[release[order] < 0])


def test_propensities_of_interleaving_are_the_frequencies(chaney):
    """Every slate's probability by the chain rule, against how often its first two places occur over many keys."""
    mixed = made(NewestInterleaved(Random()), chaney)
    exclude = np.ones((1, 60), bool)
    release = chaney.catalog.attributes["release"]
    exclude[0, [0, 1, 2]] = False  # three known items
    exclude[0, np.flatnonzero(release == 0)[:2]] = False  # and two new ones
    counts, expected = {}, {}
    n = 4000
    for t in range(n):
        slates = mixed.recommend(np.array([0]), 2, Candidates.of(60, out=exclude), key=Key(t, 0))
        pair = tuple(slates.item_ids[0].tolist())
        counts[pair] = counts.get(pair, 0) + 1
        expected[pair] = float(slates.propensity[0].prod())
    assert len(counts) == 20
    assert sum(expected.values()) == pytest.approx(1.0)
    for pair, chance in expected.items():
        assert chance == pytest.approx(1 / 20)
        assert abs(counts[pair] / n - chance) < 5 * np.sqrt(chance / n)


def test_saved_and_loaded_is_the_same(chaney, tmp_path):
    mixed = made(NewestInterleaved(SocialFiltering()), chaney, round_=4)
    mixed.save(tmp_path)
    again = NewestInterleaved(SocialFiltering())
    again.bind_dataset(chaney)
    again.load(tmp_path)
    ours, theirs = (each.recommend(np.arange(20), 12, key=Key(0, 4)) for each in (mixed, again))
    np.testing.assert_array_equal(ours.item_ids, theirs.item_ids)
    np.testing.assert_array_equal(ours.propensity, theirs.propensity)


@pytest.mark.parametrize("recommender", [AttributeProfile(), SocialFiltering(), NewestInterleaved(Oracle())])
def test_a_world_without_what_they_read_is_an_error(recommender):
    with pytest.raises(ConfigError, match=f"{recommender.name}: "):
        recommender.bind_dataset(small_dataset(small_log()))


@pytest.mark.parametrize("recommender", [AttributeProfile(), SocialFiltering()])
def test_fit_before_the_data_set_is_an_error(recommender):
    with pytest.raises(RecommenderError, match="before bind_dataset"):
        recommender.fit(small_log(), key=KEY)
