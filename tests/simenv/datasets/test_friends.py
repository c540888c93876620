"""Friendship graphs: the value, what happens to it when data are cut, and small worlds."""

import numpy as np
import pytest

from simenv.datasets import Friends, synthetic
from simenv.datasets.splits import hold_out
from simenv.errors import ConfigError, DataError


def likeness(friends, vectors):
    """Mean cosine of friends, about the mean user."""
    unit = vectors - vectors.mean(axis=0)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    one, other = friends.ties.T
    return float((unit[one] * unit[other]).sum(axis=1).mean())


def clustering(friends):
    """Share of closed triples."""
    matrix = np.zeros((friends.n_users, friends.n_users))
    matrix[tuple(friends.ties.T)] = 1
    matrix += matrix.T
    return np.trace(matrix @ matrix @ matrix) / (friends.degrees * (friends.degrees - 1)).sum()


def test_ties_count_once_in_both_directions():
    friends = Friends.of(5, np.array([[1, 0], [0, 1], [3, 1]]))
    assert [friends[user].tolist() for user in range(5)] == [[1], [0, 3], [], [1], []]
    assert friends.degrees.tolist() == [1, 2, 0, 1, 0]
    assert friends.ties.tolist() == [[0, 1], [1, 3]]
    assert Friends.of(2, np.zeros((0, 2))).ties.shape == (0, 2)


def test_clusters_are_groups_of_friends_and_the_same_for_a_seed():
    triangles = np.array([[0, 1], [1, 2], [0, 2], [3, 4], [4, 5], [3, 5], [2, 3]])
    friends = Friends.of(7, triangles)
    assert friends.clusters(4).tolist() == [0, 0, 0, 1, 1, 1, 2]
    world = synthetic(n_users=200, n_items=40, seed=2, mean_degree=8).friends
    assert world.clusters(1).tolist() == world.clusters(1).tolist()
    assert 4 < world.clusters(-1).max() < 40


@pytest.mark.parametrize(("tie", "words"), [([0, 5], "lie in .0, 5.; expected .0, 4."), ([2, 2], "user 2 is a friend")])
def test_impossible_ties_are_refused(tie, words):
    with pytest.raises(DataError, match=words):
        Friends.of(5, np.array([tie]))


def test_the_graph_follows_its_users():
    world = synthetic(n_users=60, n_items=40, seed=3, mean_degree=6)
    names = {frozenset((world.user_ids[a], world.user_ids[b])) for a, b in world.friends.ties}
    sample = hold_out(world.sample_users(30, 1), 0.2)
    kept = {frozenset((sample.user_ids[a], sample.user_ids[b])) for a, b in sample.friends.ties}
    assert kept == {pair for pair in names if pair <= set(sample.user_ids)}
    assert len(kept) > 10
    assert sample.take_items(np.arange(20)).friends == sample.friends
    with pytest.raises(DataError, match="friends know 60 users, user_ids 30"):
        type(sample)(
            name="odd",
            catalog=sample.catalog,
            interactions=sample.interactions,
            user_ids=sample.user_ids,
            friends=world.friends,
        )


def test_a_world_with_friends_is_the_world_without_them():
    plain, social = synthetic(n_users=40, n_items=50), synthetic(n_users=40, n_items=50, mean_degree=4)
    assert plain.friends is None
    assert (plain.interactions.items == social.interactions.items).all()
    assert (social.friends.ids == synthetic(n_users=40, n_items=50, mean_degree=4).friends.ids).all()


def test_degree_rewiring_and_homophily_do_what_they_say():
    def made(**options):
        world = synthetic(n_users=300, n_items=20, mean_activity=5, seed=5, **options)
        return world.friends, world.tastes.choice.user_vectors

    for degree in (1, 5, 8):
        friends, _ = made(mean_degree=degree)
        assert friends.degrees.mean() == pytest.approx(degree, abs=0.35)
    lattice, small, random = (made(mean_degree=8, rewiring=share, homophily=0)[0] for share in (0, 0.1, 1))
    assert set(lattice.degrees) == {8}
    assert clustering(lattice) == pytest.approx(9 / 14)  # 3 (k - 2) / 4 (k - 1), Watts and Strogatz
    assert clustering(random) < 0.1 < clustering(small) < clustering(lattice)
    alike = [likeness(*made(mean_degree=8, rewiring=0, homophily=share)) for share in (0, 0.5, 1)]
    assert abs(alike[0]) < 0.05
    assert alike[0] + 0.05 < alike[1] < alike[2]


def test_a_shuffled_graph_has_the_shape_and_not_the_likeness():
    world = synthetic(n_users=300, n_items=20, mean_activity=5, mean_degree=8, homophily=1)
    other = world.friends.shuffled(7)
    assert sorted(other.degrees) == sorted(world.friends.degrees)
    assert clustering(other) == pytest.approx(clustering(world.friends))
    assert abs(likeness(other, world.tastes.choice.user_vectors)) < 0.05
    assert (other.ids == world.friends.shuffled(7).ids).all()


@pytest.mark.parametrize("option", [{"mean_degree": 40}, {"rewiring": 1.5}, {"homophily": -0.1}])
def test_options_out_of_range(option):
    with pytest.raises(ConfigError, match=f"synthetic: {next(iter(option))}="):
        synthetic(n_users=40, n_items=20, **option)
