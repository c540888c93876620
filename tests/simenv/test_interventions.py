"""What is done to one course of the loop, and that nothing else changes."""

import numpy as np
import pytest

from agents.choice import ChoiceModel
from recommenders.factors import ALS
from recommenders.popularity import Popularity
from simenv.errors import ConfigError
from simenv.interventions import Course, Intervention
from simenv.platform import Platform, Schedule

ROUNDS = 4


def played(world, *texts, round=1, recommenders=None, mode="loop", luck_from=0, luck_seed=None):
    """The platform and its events by round, with these interventions in `round`."""
    users = ChoiceModel()
    users.bind(world, world.tastes, seed=3)
    course = Course([Intervention.parse(text, round) for text in texts], recommenders=recommenders, luck_from=luck_from)
    platform = Platform(
        world,
        users,
        Popularity(),
        seed=3,
        luck_seed=luck_seed,
        mode=mode,
        schedule=Schedule(slate_size=5),
        course=course,
    )
    rounds = []
    for _ in range(ROUNDS):
        platform.step()
        rounds.append(platform.round_events)
    return platform, rounds


def slate(events, user):
    return events.item[events.user == user].tolist()


@pytest.fixture(scope="module")
def plain(world):
    return played(world)[1]


def test_a_click_is_shown_on_top_made_and_learnt(world, plain):
    rare = int(np.setdiff1d(np.arange(80), plain[1].item)[0])
    platform, forked = played(world, f"click user=7 item={rare}")
    np.testing.assert_array_equal(forked[0].item, plain[0].item)
    before, after = slate(plain[1], 7), slate(forked[1], 7)
    assert after == [rare, *before[:4]]
    mine = (forked[1].user == 7) & (forked[1].item == rare)
    assert forked[1].clicked[mine].all()
    assert forked[1].examined[mine].all()
    log = platform.training_log()
    assert ((log.users == 7) & (log.items == rare)).any()
    others = forked[1].user != 7
    np.testing.assert_array_equal(forked[1].clicked[others], plain[1].clicked[plain[1].user != 7])
    assert rare not in slate(forked[2], 7)  # the user has had it


def test_an_undone_click_never_was(world, plain):
    row = int(np.flatnonzero(plain[1].clicked)[0])
    user, item = int(plain[1].user[row]), int(plain[1].item[row])
    platform, forked = played(world, f"unclick user={user} item={item}")
    mine = (forked[1].user == user) & (forked[1].item == item)
    assert not forked[1].clicked[mine].any()
    assert np.isnan(forked[1].rating[mine]).all()
    assert forked[1].clicked.sum() == plain[1].clicked.sum() - 1
    log = platform.training_log()
    assert item in slate(forked[2], user) or item not in slate(forked[1], user)  # it may be shown again
    assert np.count_nonzero((log.users == user) & (log.items == item)) <= 1


def test_a_boosted_item_stands_on_top_in_that_round_only(world, plain):
    rare = int(np.setdiff1d(np.arange(80), plain[1].item)[0])
    _, forked = played(world, f"boost item={rare}")
    shown = forked[1].user[(forked[1].item == rare)]
    assert (forked[1].rank[forked[1].item == rare] == 0).all()
    had = np.unique(world.interactions.users[world.interactions.items == rare])
    assert not np.isin(shown, had).any()
    assert len(shown) == 60 - len(had)


def test_a_removed_item_is_gone_for_good(world, plain):
    item = int(np.bincount(plain[1].item).argmax())
    _, forked = played(world, f"remove item={item}")
    assert item in forked[0].item
    assert all(item not in events.item for events in forked[1:])


def test_the_recommender_swapped_in_has_learnt_from_all_so_far_and_survives_a_checkpoint(world, tmp_path):
    platform, forked = played(world, "swap recommender=als", round=2, recommenders={"als": ALS()})
    assert platform.recommender.name == "als"
    np.testing.assert_array_equal(forked[1].item, played(world)[1][1].item)
    platform.save(tmp_path / "saved")
    platform.step()
    again, _ = played(world, "swap recommender=als", round=2, recommenders={"als": ALS()})
    again.load(tmp_path / "saved")
    again.step()
    np.testing.assert_array_equal(again.round_events.item, platform.round_events.item)


def test_luck_counts_from_its_round(world, plain):
    _, other = played(world, luck_from=2, luck_seed=99)
    np.testing.assert_array_equal(other[1].clicked, plain[1].clicked)
    assert not np.array_equal(other[2].clicked, plain[2].clicked)


def test_shadow_twins_go_their_own_way(world):
    users = ChoiceModel()
    users.bind(world, world.tastes, seed=3)
    users.follow(Course([Intervention.parse("click user=1 item=2", 0)]))
    assert users.twin().course is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected one of click user=N item=N"),
        ("delete item=3", "expected one of"),
        ("click user=3", "expected click user=N item=N"),
        ("boost item=x", "the rows of users and items from 0"),
        ("remove item=1 item=2", "expected remove item=N"),
        ("swap", "expected swap recommender=NAME"),
    ],
)
def test_texts_that_describe_nothing(text, words):
    with pytest.raises(ConfigError, match=words):
        Intervention.parse(text, 0)


def test_rows_that_do_not_exist_are_named():
    with pytest.raises(ConfigError, match="there is no item 80"):
        Intervention.parse("boost item=80", 1).check(60, 80, 4)
