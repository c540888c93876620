"""Splits: the one rule of the holdout, one later item per user, and unseen items to compare with."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simenv.datasets import Dataset, synthetic
from simenv.datasets.base import Interactions
from simenv.datasets.raw import numbered_items
from simenv.datasets.splits import (
    cold_items,
    cold_users,
    global_time_split,
    hold_out,
    last_share,
    leave_one_out,
    match_popularity,
    sample_unseen,
)
from simenv.errors import ConfigError, DataError
from simenv.numeric import mean_user_auc


def make_log(users, items, ratings=None, n_users=None, n_items=None):
    users, items = np.asarray(users, np.int32), np.asarray(items, np.int32)
    return Interactions(
        users=users,
        items=items,
        ratings=np.full(len(users), np.nan, np.float32) if ratings is None else np.asarray(ratings, np.float32),
        times=np.arange(len(users), dtype=np.int64),
        n_users=int(users.max()) + 1 if n_users is None else n_users,
        n_items=int(items.max()) + 1 if n_items is None else n_items,
    )


def log_of(rows, n_items=None) -> Interactions:
    """Rows of (user, item, time)."""
    users, items, times = (np.array(column) for column in zip(*rows))
    return Interactions(
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        ratings=np.full(len(rows), np.nan, np.float32),
        times=times.astype(np.int64),
        n_users=int(users.max()) + 1,
        n_items=n_items or int(items.max()) + 1,
    )


LOG = log_of([(0, 0, 5), (0, 1, 9), (0, 2, 9), (1, 3, 1), (1, 1, 2), (1, 0, 3), (2, 2, 4), (2, 3, 8)])


def world_of(log):
    return Dataset(
        name="made",
        catalog=numbered_items(np.arange(log.n_items)),
        interactions=log,
        user_ids=tuple(map(str, range(log.n_users))),
    )


rows = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=60)


@given(rows=rows, share=st.floats(0.01, 0.99))
@settings(deadline=None)
def test_held_out_is_what_is_new_in_the_last_share_of_each_users_time_line(rows, share):
    train, held = last_share(log_of(rows), share)
    for user in range(train.n_users):
        line = [item for _, item in sorted(((t, i) for u, i, t in rows if u == user), key=lambda pair: pair[0])]
        late = max(1, int(np.floor(len(line) * share + 1e-9))) if len(line) >= 3 else 0
        known, last = line[: len(line) - late], line[len(line) - late :]
        by_time = np.argsort(train.times, kind="stable")
        assert train.items[by_time][train.users[by_time] == user].tolist() == known
        assert sorted(held.items[held.users == user]) == sorted(set(last) - set(known))


def test_every_reader_of_the_key_holdout_holds_out_the_same():
    from agents.user_lm.corpus import HeldOut
    from experiments.realism.pages import time_split

    dataset = synthetic(n_users=50, n_items=100, seed=0)
    loop, realism = hold_out(dataset, 0.1), time_split(dataset, 0.1)
    everybody = HeldOut(users=np.zeros(50, bool), items=np.zeros(100, bool), share=0.1)
    assert loop.holdout is not None
    assert pairs(loop.holdout) == pairs(realism.held)
    assert pairs(loop.interactions) == pairs(realism.train.interactions)
    assert len(everybody.training_part(dataset).interactions) == len(loop.interactions)
    assert set(loop.holdout.users) == set(np.flatnonzero(dataset.interactions.user_counts() >= 3))  # light users too


def pairs(log):
    return list(zip(log.users.tolist(), log.items.tolist(), strict=True))


def test_a_holdout_in_which_nothing_could_be_found_is_refused():
    again = world_of(log_of([(0, i % 3, i) for i in range(12)]))
    with pytest.raises(DataError, match="holds nothing out, since each of the last 2 repeats an earlier one"):
        hold_out(again, 0.2)
    with pytest.raises(DataError, match="no user has 3 interactions"):
        hold_out(world_of(log_of([(0, 0, 1), (1, 1, 2)])), 0.2)
    assert hold_out(again, 0) is again


@pytest.mark.parametrize("share", [-0.1, 1.0, 3, float("nan")])
def test_a_holdout_that_is_no_share_is_refused(share):
    with pytest.raises(ConfigError, match=r"holdout=.*\[0, 1\)"):
        hold_out(world_of(LOG), share)


def test_last_share_goes_by_time_and_drops_repeats():
    log = make_log([0] * 10 + [1] * 2 + [2] * 4, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 3, 4, 5, 3])
    log = replace(log, times=np.concatenate([np.arange(10)[::-1], [0, 1], [0, 0, 0, 0]]))
    train, held = last_share(log, 0.2)
    assert list(zip(held.users, held.items, strict=True)) == [(0, 0), (0, 1)]  # user 2's last was a second viewing
    assert len(train) == 8 + 2 + 3


def test_unseen_items_are_unseen_and_follow_the_weights():
    log = make_log([0] * 5 + [1] * 8, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 7], n_items=8)
    users = np.repeat([0, 1], 3000)
    found = sample_unseen(log, users, np.random.default_rng(0), np.array([1, 1, 1, 1, 1, 6, 3, 1.0]))
    assert (found[users == 1] == -1).all()
    shares = np.bincount(found[users == 0], minlength=8) / 3000
    np.testing.assert_allclose(shares, [0, 0, 0, 0, 0, 0.6, 0.3, 0.1], atol=0.03)


def test_matching_takes_the_nearest_popularity_without_replacement():
    log = make_log([0, 0, 0], [3, 4, 0], n_items=6)
    matched = match_popularity(log, np.array([10, 20, 30, 40, 50, 60]), np.array([0, 0]), np.array([3, 4]))
    assert matched.tolist() == [2, 5]
    everything = make_log([0, 0], [0, 1], n_items=2)
    assert match_popularity(everything, np.array([2, 1]), np.array([0]), np.array([0])).tolist() == [-1]


def test_popularity_scores_one_half_on_matched_items():
    log = synthetic(n_users=150, n_items=300, seed=0).interactions
    train, held = last_share(log, 0.1)
    popularity = train.item_counts()
    matched = match_popularity(log, popularity, held.users, held.items)
    assert mean_user_auc(held.users, popularity[held.items], popularity[matched]) == pytest.approx(0.5, abs=0.06)


def test_leave_one_out_takes_the_last_item_and_ties_keep_the_order_of_the_log():
    split = leave_one_out(LOG)
    assert split.users.tolist() == [0, 1]  # user 2 has two interactions only
    assert split.targets.tolist() == [2, 0]
    assert len(split.train) == len(LOG) - 2
    assert split.train.user_counts().tolist() == [2, 2, 2]


def test_leave_one_out_can_drop_targets_consumed_before():
    log = log_of([(0, 0, 1), (0, 1, 2), (0, 0, 3), (1, 0, 1), (1, 1, 2), (1, 2, 3)])
    assert leave_one_out(log).users.tolist() == [0, 1]
    assert leave_one_out(log, repeats=False).users.tolist() == [1]


def test_global_time_split_learns_nothing_from_after_the_cut():
    split = global_time_split(LOG, share=0.4)  # the cut is at time 5
    assert split.train.times.max() < 5
    assert split.users.tolist() == [2]
    assert split.targets.tolist() == [3]


def test_cold_items_are_unknown_and_ranked_among_themselves():
    log = synthetic(n_users=60, n_items=40, seed=0).interactions
    split = cold_items(log, share=0.2)
    assert split.shown is not None
    assert split.shown.sum() == 8
    assert not split.shown[split.train.items].any()
    assert split.shown[split.held.items].all()
    assert len(split.train) + len(split.held) == len(log)
    assert split.digest() == cold_items(log, share=0.2).digest() != cold_items(log, share=0.2, seed=1).digest()
    first = dict(zip(split.held.users[::-1], split.held.items[::-1], strict=True))
    assert split.targets.tolist() == [first[user] for user in split.users]


def test_of_cold_users_the_first_interactions_are_known():
    log = synthetic(n_users=60, n_items=40, seed=0).interactions
    split = cold_users(log, share=0.2, known=2)
    assert len(split.users) == round(0.2 * (log.user_counts() > 2).sum())
    assert (split.train.user_counts()[split.users] == 2).all()
    others = np.setdiff1d(np.arange(60), split.users)
    np.testing.assert_array_equal(split.train.user_counts()[others], log.user_counts()[others])
    user = split.users[0]
    own = np.lexsort((log.times, log.users))[np.flatnonzero(np.sort(log.users) == user)]
    assert split.targets[0] == log.items[own[2]]


def test_splits_without_test_users_are_an_error():
    with pytest.raises(DataError, match="no user has 9"):
        leave_one_out(LOG, minimum=9)
    with pytest.raises(DataError, match="on both sides"):
        global_time_split(log_of([(0, 0, 1), (0, 1, 2), (1, 0, 3), (1, 1, 4)]), share=0.5)
    with pytest.raises(ConfigError, match="share=1"):
        global_time_split(LOG, share=1)
