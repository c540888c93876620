"""Candidates: their mask, counts and rows are those of the plain masks they were made of."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simenv.candidates import Candidates, is_out, pack, unpack
from simenv.errors import RecommenderError


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 4), st.booleans())
def test_they_are_the_masks_they_were_made_of(seed: int, n_items: int, n_users: int, packed: bool) -> None:
    rng = np.random.default_rng(seed)
    out, available = rng.random((n_users, n_items)) < 0.4, rng.random(n_items) < 0.7
    candidates = Candidates.of(n_items, out=pack(out) if packed else out, available=available)
    allowed = ~out & available
    np.testing.assert_array_equal(candidates.mask(), allowed)
    np.testing.assert_array_equal(candidates.count(), allowed.sum(axis=1))
    some = rng.integers(0, n_users, 3)
    if n_users > 1:
        np.testing.assert_array_equal(candidates.rows(some).mask(), allowed[some])
    looked = [[bool(is_out.py_func(candidates.bits, row, item)) for item in range(n_items)] for row in range(n_users)]
    np.testing.assert_array_equal(looked, unpack(candidates.bits, n_items))


def test_one_row_holds_for_everybody() -> None:
    everyone = Candidates.of(9)
    assert everyone.rows(np.array([3, 4, 5])) is everyone
    assert everyone.mask().shape == (1, 9)
    assert everyone.count().tolist() == [9]


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"out": np.zeros((2, 8), np.bool_)}, r"out is \(2, 8\); expected \(n_users, 9\)"),
        ({"out": np.zeros((2, 9), np.uint8)}, r"bits are uint8 \(2, 9\); expected uint8 \(n_users, 2\)"),
        ({"out": np.zeros((2, 2))}, r"bits are float64 \(2, 2\)"),
        ({"available": np.ones(8, np.bool_)}, r"available is bool \(8,\); expected bool \(9,\)"),
    ],
)
def test_masks_of_a_wrong_shape_are_an_error(given_: dict[str, Any], words: str) -> None:
    with pytest.raises(RecommenderError, match=words):
        Candidates.of(9, **given_)
