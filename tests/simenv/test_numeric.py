"""Small mathematics, held against the plain way of doing it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simenv.numeric import mean_user_auc, places, places_in_groups


def test_places_within_groups_of_given_sizes():
    assert places(np.array([2, 0, 3])).tolist() == [0, 1, 0, 1, 2]
    assert places(np.array([], int)).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3))))
def test_places_in_groups_count_those_before(rows):
    groups, by = np.array([g for g, _ in rows], int), np.array([b for _, b in rows], int)
    plain = [sum(g == group for g, _ in rows[:n]) for n, (group, _) in enumerate(rows)]
    assert places_in_groups(groups).tolist() == plain
    ordered = [
        sum((g, b, m) < (group, value, n) for m, (g, b) in enumerate(rows) if g == group)
        for n, (group, value) in enumerate(rows)
    ]
    assert places_in_groups(groups, by).tolist() == ordered


def test_mean_user_auc_by_hand():
    users = np.array([0, 0, 1, 2])
    chosen = np.array([2.0, 1.0, 1.0, np.nan])
    other = np.array([1.0, 0.0, 1.0, 0.0])
    # user 0: 2>1, 2>0, 1=1, 1>0 -> 3.5/4; user 1: a tie -> 1/2; user 2: left out
    assert mean_user_auc(users, chosen, other) == pytest.approx((0.875 + 0.5) / 2)
    assert np.isnan(mean_user_auc(users[:0], chosen[:0], other[:0]))
