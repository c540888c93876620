"""Last.fm-2k: both forms of the files, what plays become, damaged files, the real data."""

import numpy as np
import pytest

from simenv.datasets import lastfm_2k
from simenv.errors import ConfigError, DataError

FILES = {
    "artists.dat": "id\tname\turl\n1\tAbba\tu\n2\tBach, J. S.\tu\n3\tCan\tu\n4\tNobody's\tu\n",
    "user_artists.dat": "userID\tartistID\tweight\n9\t1\t60\n9\t2\t30\n9\t3\t10\n4\t3\t8\n4\t1\t1\n",
    "user_friends.dat": "userID\tfriendID\n9\t4\n4\t9\n",
}


def test_who_listened_and_who_knows_whom(write):
    data = lastfm_2k(root=str(write(FILES)))
    assert data.user_ids == ("4", "9")
    assert data.catalog.titles == ("Abba", "Bach, J. S.", "Can")
    assert data.friends.ties.tolist() == [[0, 1]]
    log = data.interactions
    stars = {(data.user_ids[u], int(i)): r for u, i, r in zip(log.users, log.items, log.ratings)}
    # of user 9's 100 plays the artists end at 10, 40 and 100, of user 4's nine at 1 and 9
    assert stars == {("9", 2): 1, ("9", 1): 2, ("9", 0): 5, ("4", 0): 1, ("4", 2): 5}
    assert (np.diff(log.times) > 0).all()


def test_the_copy_with_counts_instead_of_names(write):
    counted = {
        "artists.dat": "id\tname\n1\tAbba\n2\tBach, J. S.\n3\tCan\n",
        "user_artists.dat": FILES["user_artists.dat"].replace("userID\tartistID\tweight", "3\n5"),
        "user_friends.dat": FILES["user_friends.dat"].replace("userID\tfriendID", "9\n2"),
    }
    one, other = lastfm_2k(root=str(write(FILES))), lastfm_2k(root=str(write(counted, "counted")))
    assert (one.interactions.items == other.interactions.items).all()
    assert one.friends.ties.tolist() == other.friends.ties.tolist()


def test_plays_as_counts_and_as_nothing(write):
    root = str(write(FILES))
    counts = lastfm_2k(root=root, plays="counts").interactions
    pairs = np.stack([counts.users, counts.items], axis=1).tolist()
    assert pairs.count([1, 0]) == 6  # 60 plays, 2 ** 5 <= 60
    assert pairs.count([0, 0]) == 1
    bare = lastfm_2k(root=root, plays="none").interactions
    assert len(bare) == 5
    assert np.isnan(bare.ratings).all()
    with pytest.raises(ConfigError, match="lastfm-2k: plays=hours: expected one of ratings, counts, none"):
        lastfm_2k(root=root, plays="hours")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("artists.dat", "id\tname\n1\tAbba\n2\n", "artists.dat, line 3: '2'; expected id and name"),
        ("artists.dat", "id\tname\n1\tAbba\n1\tBach\n", "an artist twice"),
        ("user_artists.dat", "userID\tartistID\tweight\n9\t1\tmany\n", "line 2: '9.tmany'|line 2: .*whole numbers"),
        ("user_artists.dat", "userID\tartistID\tweight\n9\t1\t0\n", "line 2: 0 plays; expected at least 1"),
        ("user_artists.dat", "3\n6\n9\t1\t60\n", "1 rows; line 2 tells of 6"),
        ("user_artists.dat", "userID\tartistID\tweight\n9\t7\t3\n", "line 2: item 7 is not in artists.dat"),
        ("user_friends.dat", "userID\tfriendID\n9\t5\n", "line 2: user 5 is not in user_artists.dat"),
        ("user_friends.dat", "userID\tfriendID\n9\t9\n", "is a friend of itself"),
    ],
)
def test_damaged_files_are_told(write, file, text, message):
    with pytest.raises(DataError, match=message):
        lastfm_2k(root=str(write(FILES | {file: text})))


@pytest.mark.realdata
def test_real_lastfm_2k(real_folder):
    data = lastfm_2k(root=real_folder("lastfm-2k"))
    assert (data.n_users, data.n_items, len(data.interactions)) == (1892, 17632, 92_834)
    assert (len(data.friends.ties), int(data.friends.degrees.min())) == (12_717, 1)
    assert set(np.unique(data.interactions.ratings)) == {1, 2, 3, 4, 5}
    smaller = lastfm_2k(root=real_folder("lastfm-2k"), n_users=300, n_items=500)
    assert (smaller.n_users, smaller.n_items, smaller.friends.n_users) == (300, 500, 300)
    # friends listen to the same artists more than strangers do
    listened = np.zeros((data.n_users, data.n_items), np.float32)
    listened[data.interactions.users, data.interactions.items] = 1
    shared = [
        (listened[g.ties[:, 0]] * listened[g.ties[:, 1]]).sum(axis=1).mean()
        for g in (data.friends, data.friends.shuffled(0))
    ]
    assert shared[0] > 2 * shared[1]
