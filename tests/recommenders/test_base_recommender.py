from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recommenders.base import Recommender, top_k, user_items
from recommenders.factors import ALS
from recommenders.linear import EASE
from recommenders.neighbours import ItemKNN, SeqKNN
from recommenders.popularity import Popularity
from recommenders.rerank import Calibrated, PopularityPenalty
from recommenders.shared import Shared
from recommenders.testing import KEY, RecommenderSuite, small_dataset, small_log
from simenv.candidates import Candidates
from simenv.datasets.base import Interactions
from simenv.errors import RecommenderError
from simenv.slates import Slates


class Given(Recommender):
    """Serves the scores or slates it was made with."""

    name = "given"

    def __init__(self, scores=None, slates=None):
        self.given_scores, self.given_slates = scores, slates

    def _fit(self, log, key):
        pass

    def _score(self, users):
        return self.given_scores if self.given_scores.ndim == 3 else self.given_scores[users]

    def _recommend(self, users, k, candidates, key):
        if self.given_slates is None:
            return super()._recommend(users, k, candidates, key)
        return Slates(item_ids=self.given_slates)


def given_fitted(**kwargs):
    recommender = Given(**kwargs)
    recommender.fit(small_log(), key=KEY)
    return recommender


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.booleans(), st.booleans())
def test_top_k_is_a_stable_sort_of_the_allowed(seed, k, excludes, limits):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, (5, 12)).astype(np.float32)  # many ties
    excluded = rng.random((5, 12)) < (0.5 if excludes else 0.0)
    available = rng.random(12) < (0.7 if limits else 2.0)
    candidates = Candidates.of(12, out=excluded if excludes else None, available=available if limits else None)
    got = top_k(scores, k, candidates)
    for row in range(5):
        allowed = np.flatnonzero(~excluded[row] & available)
        best = allowed[np.argsort(-scores[row, allowed], kind="stable")][:k]
        np.testing.assert_array_equal(got[row], np.concatenate([best, np.full(k - len(best), -1)]))


def test_top_k_takes_minus_infinity_as_forbidden():
    np.testing.assert_array_equal(top_k(np.array([[1.0, -np.inf, 3.0]]), 3), [[2, 0, -1]])


def test_nan_names_recommender_round_and_user():
    scores = np.zeros((40, 60))
    scores[17, 5] = np.nan
    with pytest.raises(RecommenderError, match="given, round 3, user 17: NaN among the scores"):
        given_fitted(scores=scores).recommend(np.arange(40), 4, key=KEY)


def test_scores_of_a_wrong_shape_name_both_shapes():
    with pytest.raises(RecommenderError, match=r"scores have shape \(256, 59\); expected \(256, 60\)"):
        given_fitted(scores=np.zeros((40, 59))).recommend(np.arange(40), 4, key=KEY)


def test_slates_of_a_wrong_shape_name_both_shapes():
    with pytest.raises(RecommenderError, match=r"given, round 3: slates have shape \(2, 3\); expected \(2, 4\)"):
        given_fitted(slates=np.zeros((2, 3), np.int32)).recommend(np.arange(2), 4, key=KEY)


def test_an_unknown_item_names_round_and_user():
    slates = np.array([[0, 1], [2, 60]], np.int32)
    with pytest.raises(RecommenderError, match="given, round 3, user 8: unknown item 60; expected -1"):
        given_fitted(slates=slates).recommend(np.array([5, 8]), 2, key=KEY)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (None, "scores are NoneType"),
        ([[1.0] * 60] * 40, "scores are list"),
        (np.zeros((40, 60), complex), "scores are ndarray of complex128"),
        (np.full((40, 60), "1"), "scores are ndarray of <U1"),
        (np.ma.masked_array(np.zeros((40, 60)), mask=True), "scores are MaskedArray of float64"),
    ],
)
@pytest.mark.parametrize("within", [lambda inner: inner, Calibrated])
def test_scores_that_are_no_real_numbers_are_named(scores, words, within):
    class Odd(Recommender):
        name = "odd"

        def _fit(self, log, key):
            pass

        def _score(self, users):
            return scores

    recommender = within(Odd())
    if within is Calibrated:
        recommender.bind_dataset(small_dataset(small_log()))
    recommender.fit(small_log(), key=KEY)
    with pytest.raises(RecommenderError, match=f"odd, (round 3, )?user 5 and .* more: {words}; expected an array"):
        recommender.recommend(np.array([5, 8]), 4, key=KEY)


@pytest.mark.parametrize(
    ("slates", "words"),
    [
        (np.zeros((2, 4)), "round 3, user 5 and 1 more: slates hold ndarray of float64; expected an array of whole"),
        (np.zeros((2, 4), bool), "slates hold ndarray of bool"),
        (np.ma.masked_array(np.zeros((2, 4), int), mask=True), "slates hold MaskedArray of int64"),
        ([[0, 1, 2, 3]] * 2, "slates hold list"),
    ],
)
def test_slates_that_are_no_whole_numbers_are_named(slates, words):
    with pytest.raises(RecommenderError, match=f"given, .*{words}"):
        given_fitted(slates=slates).recommend(np.array([5, 8]), 4, key=KEY)


def test_slates_of_any_whole_numbers_are_served():
    served = given_fitted(slates=np.array([[3, 1]], np.uint8)).recommend(np.array([5]), 2, key=KEY)
    assert served.item_ids.dtype == np.int32
    assert served.item_ids.tolist() == [[3, 1]]


def test_new_users_do_not_change_what_a_recommender_keeps():
    log = small_log().take(small_log().users > 3)
    kept = np.zeros((40, 60), np.float32)
    recommender = Given(scores=kept)
    recommender.popularity_for_new_users, recommender.pads_batches = True, False
    recommender._score = lambda users: kept[: len(users)]
    recommender.fit(log, key=KEY)
    slates = recommender.recommend(np.arange(2), 1, key=KEY).item_ids
    assert slates.tolist() == [[int(log.item_counts().argmax())]] * 2
    assert not kept.any()


def test_neither_score_nor_recommend_is_an_error():
    class Empty(Recommender):
        name = "empty"

        def _fit(self, log, key):
            pass

    recommender = Empty()
    recommender.fit(small_log(), key=KEY)
    with pytest.raises(RecommenderError, match="defines neither"):
        recommender.recommend(np.arange(2), 3, key=KEY)


@pytest.mark.parametrize(
    ("make", "reads"),
    [
        (ItemKNN, True),
        (SeqKNN, True),
        (EASE, True),
        (ALS, False),
        (Popularity, False),
        (lambda: PopularityPenalty(SeqKNN()), True),
        (lambda: Shared(SeqKNN(), SeqKNN()), True),
    ],
)
def test_what_is_remembered_is_read_and_not_learned(make, reads):
    log = small_log()
    new = log.take(log.users == 3).take(slice(0, 2))
    new = replace(new, users=np.full(2, 5, np.int32), times=np.array([1000, 1001]))
    recommender = make()
    recommender.fit(log, key=KEY)
    before = recommender.scores(np.arange(40))
    recommender.remember(new)
    after = recommender.scores(np.arange(40))
    changed = (before != after).any(axis=1)
    assert changed.tolist() == [user == 5 and reads for user in range(40)]
    with pytest.raises(RecommenderError, match="remember with a log of 9 items; expected 60, as fitted"):
        recommender.remember(Interactions.empty(40, 9))


def test_user_items_counts_or_marks():
    log = small_log()
    counts = np.zeros((40, 60))
    np.add.at(counts, (log.users, log.items), 1)
    assert counts.max() > 1
    np.testing.assert_array_equal(user_items(log, binary=False).toarray(), counts)
    np.testing.assert_array_equal(user_items(log, binary=True).toarray(), counts > 0)


class Faulty(Recommender):
    """Breaks one promise at a time."""

    name = "faulty"

    def __init__(self, fault):
        self.fault = fault

    def _fit(self, log, key):
        self.counts = log.item_counts().astype(np.float32)

    def _update(self, new, key):
        if self.fault != "update":
            self._fit(self._log, key)

    def _score(self, users):
        drift = users.sum() if self.fault == "batch" else 0
        return np.tile(self.counts, (len(users), 1)) + users[:, None] % 7 * np.arange(60) + drift % 13

    def _recommend(self, users, k, candidates, key):
        if self.fault == "exclude":
            candidates = Candidates.of(self.n_items, available=candidates.available)
        if self.fault == "available":
            candidates = Candidates.of(self.n_items, out=candidates.bits)
        return super()._recommend(users, k, candidates, key)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("batch", "test_scores_do_not_depend_on_the_batch"),
        ("exclude", "test_excluded_items_are_not_shown"),
        ("available", "test_unavailable_items_are_not_shown"),
        ("update", "test_update_is_a_refit"),
    ],
)
def test_the_suite_catches_a_broken_promise(fault, check):
    class Suite(RecommenderSuite):
        kind = fault

        def make(self):
            return Faulty(self.kind)

    with pytest.raises(AssertionError):
        getattr(Suite(), check)()
    Suite.kind = "none"
    getattr(Suite(), check)()
