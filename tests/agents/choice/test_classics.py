import numpy as np
import pytest

from agents.choice.classics import DriftingInterest, RankDiscountedChoice, beta_around, chosen_by_rank
from experiments.replications.chaney2018 import world as chaney_world
from experiments.replications.jiang2019 import world as jiang_world
from simenv.candidates import Candidates, unpack
from simenv.errors import ConfigError
from simenv.randomness import Key


def chaney_users(repeat="never", **options):
    dataset = chaney_world(n_users=12, n_items=60, seed=1, steps=20, startup=10)
    users = RankDiscountedChoice(**options)
    users.bind(dataset, dataset.tastes, seed=1, repeat=repeat)
    return dataset, users


def jiang_users(seed=0, **options):
    dataset = jiang_world(n_users=6, n_items=20, seed=seed)
    users = DriftingInterest(**options)
    users.bind(dataset, dataset.tastes, seed=seed, repeat="always")
    return users


# -- a table of utilities -------------------------------------------------------------------------------------


def test_best_utility_is_the_mean_of_the_best_allowed():
    _, users = chaney_users(repeat="always")
    rows, k = np.arange(12), 4
    exclude = np.zeros((12, 60), bool)
    exclude[:, ::3] = True
    available = np.ones(60, bool)
    available[50:] = False
    allowed = np.where(exclude | ~available, -1.0, users.table)
    expected = -np.sort(-allowed, axis=1)[:, :k].mean(axis=1)
    np.testing.assert_allclose(
        users.best_utility(rows, k, Candidates.of(60, out=exclude, available=available)), expected, rtol=1e-6
    )


def test_best_utility_where_fewer_are_left_and_where_none_is():
    _, users = chaney_users()
    exclude = np.ones((2, 60), bool)
    exclude[0, 5] = False
    best = users.best_utility(np.array([3, 4]), 4, Candidates.of(60, out=exclude))
    assert best[0] == pytest.approx(users.table[3, 5])
    assert np.isnan(best[1])


def test_unaided_slates_follow_taste_and_leave_out_what_is_excluded():
    _, users = chaney_users(repeat="always")
    rows = np.arange(12)
    exclude = np.zeros((12, 60), bool)
    exclude[:, :10] = True
    candidates = Candidates.of(60, out=exclude)
    own = users.unaided_slates(rows, 10, Key(1), candidates, awareness=0.0, taste=5.0)
    blind = users.unaided_slates(rows, 10, Key(1), candidates, awareness=0.0, taste=0.0)
    assert own.min() >= 10
    mean = [np.take_along_axis(users.table, slates.astype(int), 1).mean() for slates in (own, blind)]
    assert mean[0] > 1.5 * mean[1]


# -- Chaney et al. 2018 ---------------------------------------------------------------------------------------


def test_utilities_lie_around_the_product_of_attributes():
    dataset, users = chaney_users(noise=1e-3, knowledge=0.9)
    head = dataset.tastes.choice
    mean = head.user_vectors @ head.item_vectors.T
    assert np.abs(users.table - mean).max() < 1e-2
    assert np.median(users.known / users.table) == pytest.approx(0.9, abs=5e-3)


def test_beta_has_the_moments_asked_for():
    draws = beta_around(np.full(200_000, 0.3), 0.05, np.random.default_rng(0))
    assert draws.mean() == pytest.approx(0.3, abs=1e-3)
    assert draws.std() == pytest.approx(0.05, rel=0.02)


def test_one_click_a_page_where_known_utility_times_rank_is_largest_and_nothing_twice():
    dataset, users = chaney_users(repeat="always")
    slates = np.random.default_rng(0).permuted(np.tile(np.arange(60), (12, 1)), axis=1)[:, :15].astype(np.int32)
    responses = users.respond(np.arange(12), slates, Key(1))
    had = np.zeros((12, 60), bool)
    had[dataset.interactions.users, dataset.interactions.items] = True
    new = np.where(had, 0.0, users.known)
    score = np.take_along_axis(new, slates.astype(int), 1) * np.arange(1, 16) ** -0.8
    assert (responses.clicked.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(responses.clicked.argmax(axis=1), score.argmax(axis=1))
    assert responses.examined.all()
    assert not responses.exited.any()
    assert not (responses.clicked & users.respond(np.arange(12), slates, Key(1)).clicked).any()


def test_attention_decides_how_far_down_users_look():
    value = np.array([[0.1, 0.2, 0.9]])
    assert chosen_by_rank(value, np.ones((1, 3), bool), 0.0).tolist() == [[False, False, True]]
    assert chosen_by_rank(value, np.ones((1, 3), bool), -4.0).tolist() == [[True, False, False]]
    assert not chosen_by_rank(value, np.zeros((1, 3), bool), -0.8).any()


def test_items_are_out_of_reach_before_their_release():
    dataset, users = chaney_users()
    release = dataset.catalog.attributes["release"]
    for round_ in range(3):
        hidden = unpack(users.excluded(np.arange(12)), 60)
        assert hidden[:, release > round_].all()
        consumed = np.zeros((12, 60), bool)
        consumed[dataset.interactions.users, dataset.interactions.items] = True
        np.testing.assert_array_equal(hidden[:, release <= round_], consumed[:, release <= round_])
        users.end_round(round_)


def test_the_warm_start_is_one_choice_a_step_among_what_is_new():
    dataset, _ = chaney_users()
    log = dataset.interactions
    assert (log.user_counts() == 10).all()
    np.testing.assert_array_equal(dataset.catalog.attributes["release"][log.items], log.times - 10)


# -- Jiang et al. 2019 ----------------------------------------------------------------------------------------


def test_interests_move_by_less_than_a_step_up_after_clicks_and_down_without():
    users = jiang_users(step=0.1)
    before = users.interest.copy()
    slates = np.tile(np.arange(5, dtype=np.int32), (6, 1))
    responses = users.respond(np.arange(6), slates, Key(0, 3))
    moved = users.interest - before
    assert (moved[:, 5:] == 0).all()
    assert (np.sign(moved[:, :5]) == np.where(responses.clicked, 1, -1)).all()
    assert 0.02 < np.abs(moved[:, :5]).mean() < 0.08
    assert np.abs(moved).max() < 0.1
    np.testing.assert_allclose(users.table, 1 / (1 + np.exp(-users.interest)))
    np.testing.assert_allclose(users.drift, np.linalg.norm(moved, axis=1))


def test_clicks_have_the_probability_of_the_interest():
    users = jiang_users(step=0.0)
    slates = np.tile(np.arange(20, dtype=np.int32), (6, 1))
    clicked = np.mean([users.respond(np.arange(6), slates, Key(0, t)).clicked for t in range(800)], axis=0)
    assert np.abs(clicked - users.table).max() < 0.09  # 5 standard errors
    assert np.abs(clicked - users.table).mean() < 0.02


def test_seeds_are_other_users():
    assert not np.array_equal(jiang_users(seed=0).interest, jiang_users(seed=1).interest)


# -- both -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: chaney_users()[1], jiang_users])
def test_state_survives_a_checkpoint_and_a_twin_goes_its_own_way(make):
    users, fresh = make(), make()
    rows, slates = np.arange(5), np.tile(np.arange(7, 13, dtype=np.int32), (5, 1))
    users.respond(rows, slates, Key(1, 0))
    users.end_round(0)
    fresh.load_state_dict(users.state_dict())
    twin = users.twin()
    again = [each.respond(rows, slates, Key(1, 1)) for each in (users, fresh)]
    np.testing.assert_array_equal(again[0].clicked, again[1].clicked)
    for name, values in users.state_dict().items():
        np.testing.assert_array_equal(values, fresh.state_dict()[name])
    changed = [
        name for name, values in users.state_dict().items() if not np.array_equal(values, twin.state_dict()[name])
    ]
    assert changed, "what the users lived through must not reach the twin"


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: RankDiscountedChoice(attention=0.5), "attention=0.5"),
        (lambda: RankDiscountedChoice(knowledge=1.0), "knowledge=1.0"),
        (lambda: RankDiscountedChoice(noise=0.0), "noise=0.0"),
        (lambda: DriftingInterest(step=-1), "step=-1"),
        (lambda: DriftingInterest(start=-1), "start=-1"),
    ],
)
def test_an_option_out_of_range_is_one_clear_error(make, option):
    with pytest.raises(ConfigError, match=rf"agent\.{option}: expected"):
        make()
