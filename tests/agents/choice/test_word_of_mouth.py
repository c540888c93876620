"""Word of mouth: who hears of what, that it moves clicks, stays off, resumes and is refused where it must be."""

from dataclasses import replace

import numpy as np
import pytest

from agents.choice.model import ChoiceModel
from agents.mixed import MixedUsers
from agents.population.hearsay import friends_who_clicked, said
from agents.sessions import open_sessions
from recommenders.popularity import Popularity
from recommenders.social import Social
from simenv.datasets import synthetic
from simenv.errors import ConfigError
from simenv.events import Events
from simenv.platform import Platform
from simenv.randomness import Key
from simenv.slates import Responses


@pytest.fixture(scope="module")
def social():
    return synthetic(n_users=60, n_items=80, seed=3, mean_degree=6, homophily=0.8)


def bound(world, **options):
    users = ChoiceModel(**options)
    users.bind(world, world.tastes, seed=11)
    return users


def played(world, rounds=4, recommender=Popularity, **options):
    platform = Platform(world, bound(world, **options), recommender(), seed=11)
    events = []
    for _ in range(rounds):
        platform.step()
        events.append(platform.round_events)
    return Events.concat(events), platform


def test_friends_who_clicked_are_counted_once_and_only_of_the_last_rounds(social):
    users = bound(social)
    slates = np.tile(np.array([[4, 7, 9, -1]], np.int32), (60, 1))
    clicked = np.zeros(slates.shape, np.bool_)
    clicked[:30, 0] = clicked[::2, 1] = True
    page = Responses(
        examined=slates >= 0,
        clicked=clicked,
        ratings=np.where(clicked, 4, np.nan).astype(np.float32),
        utility=np.full(slates.shape, 0.5, np.float32),
        exited=np.zeros(60, np.bool_),
    )
    everyone, friends = np.arange(60), social.friends
    for visit in range(2):
        users.population.absorb(everyone, slates, page, Key(11, 2, visit))  # twice in a round, which counts once
    expected = np.stack([clicked[friends[user]].sum(axis=0) for user in range(60)])
    heard = {now: friends_who_clicked(users.population, friends, everyone, slates, now, 2) for now in (2, 3, 4, 5)}
    assert not heard[2].any()
    np.testing.assert_array_equal(heard[3], expected)
    np.testing.assert_array_equal(heard[4], expected)
    assert not heard[5].any()
    some = np.array([7, 3, 40])
    np.testing.assert_array_equal(
        friends_who_clicked(users.population, friends, some, slates[:3], 3, 1), expected[some]
    )
    told = said(users.population, friends, 7, 3, 1)
    assert {friend for friend, _, _ in told} == {f for f in friends[7].tolist() if clicked[f].any()}
    assert {(item, rating) for _, item, rating in told} <= {(4, 4.0), (7, 4.0)}


def test_off_is_what_it_was_and_on_begins_in_the_second_round(social, world):
    off, _ = played(social)
    plain, _ = played(world)  # the same world, where nobody knows anybody
    on, _ = played(social, word_of_mouth=3.0)
    np.testing.assert_array_equal(off.clicked, plain.clicked)
    first = on.round == 0
    np.testing.assert_array_equal(on.clicked[first], off.clicked[off.round == 0])
    assert on.clicked[~first].mean() > 1.1 * off.clicked[off.round > 0].mean()


@pytest.mark.parametrize("change", [{"heard_from": "strangers"}, {"heard_rounds": 3}, {"word_of_mouth": 1.0}])
def test_options_have_an_effect(social, change):
    one, other = (played(social, **({"word_of_mouth": 3.0} | extra))[0] for extra in ({}, change))
    assert not np.array_equal(one.clicked[one.round == 2], other.clicked[other.round == 2])


@pytest.mark.parametrize("mode", ["loop", "organic"])
def test_a_platform_goes_on_from_a_snapshot(social, tmp_path, mode):
    whole, cut, again = (
        Platform(social, bound(social, word_of_mouth=3.0), popularity(social), seed=11, mode=mode) for _ in range(3)
    )
    for platform in (whole, cut):
        platform.step()
        platform.step()
    cut.save(tmp_path / "snapshot")
    again.load(tmp_path / "snapshot")
    for platform in (whole, again):
        platform.step()
    np.testing.assert_array_equal(whole.round_events.clicked, again.round_events.clicked)
    np.testing.assert_array_equal(whole.round_events.item, again.round_events.item)


def popularity(world):
    mine = Social()
    mine.bind_dataset(world)
    return mine


def test_users_without_friends_and_sessions_are_refused(social, world):
    with pytest.raises(ConfigError, match="agent=choice: hears of friends, and synthetic knows none"):
        bound(world, word_of_mouth=1.0)
    mixed = MixedUsers(ChoiceModel(), ChoiceModel(word_of_mouth=1.0))
    with pytest.raises(ConfigError, match="agent=mixed: hears of friends"):
        mixed.bind(replace(social, friends=None), social.tastes, seed=0)
    with pytest.raises(ConfigError, match="agent=choice: word of mouth goes from one round of a platform to the next"):
        open_sessions(bound(social, word_of_mouth=1.0), 4)
    with pytest.raises(ConfigError, match=r"agent\.heard_from=foes: expected one of friends, strangers"):
        ChoiceModel(heard_from="foes")
    with pytest.raises(ConfigError, match=r"agent\.heard_rounds=0: expected a number of rounds >= 1"):
        ChoiceModel(heard_rounds=0)
