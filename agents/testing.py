"""Checks that every user model must pass, to inherit for one of your own; needs pytest.

    class TestMine(UserModelSuite):
        def make(self) -> UserModel:
            return Mine()

It knows the public interface alone. Where users answer what they were asked together differently from what they are
asked apart (draws that depend on the batch), set `splits = False`, and say why.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.base import UserModel
from simenv.candidates import unpack
from simenv.datasets.base import Dataset
from simenv.datasets.synthetic import synthetic
from simenv.errors import SimenvError
from simenv.randomness import Key
from simenv.slates import Responses

K = 6


class UserModelSuite:
    """What a user model promises, one test each. Override `make`."""

    splits: ClassVar[bool] = True  # a batch answers as its parts would
    pickles: ClassVar[bool] = True  # False where users hold what cannot travel, such as a connection
    seed: ClassVar[int] = 4

    def make(self) -> UserModel:
        """A fresh user model, not bound to a world."""
        raise NotImplementedError("a subclass of UserModelSuite defines make()")

    # -- fixtures in plain methods ----------------------------------------------------------------------------

    def world(self) -> Dataset:
        """A small world with tastes."""
        return synthetic(n_users=30, n_items=40, seed=self.seed)

    def bound(self, repeat: str = "never") -> UserModel:
        """Users of `world`."""
        dataset, users = self.world(), self.make()
        assert dataset.tastes is not None
        users.bind(dataset, dataset.tastes, seed=self.seed, repeat=repeat)
        return users

    def pages(self, users: UserModel, page: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Every second user and a page for each: distinct items, and an empty slot at the end of every third."""
        rows = np.arange(0, users.population.n_users, 2)
        draw = np.random.default_rng(page)
        n_items = users.population.n_items
        slates = np.stack([draw.choice(n_items, K, replace=False) for _ in rows]).astype(np.int32)
        slates[::3, -1] = -1
        return rows, slates

    def live(self, users: UserModel, rounds: range = range(2)) -> list[NDArray[Any]]:
        """Everything that happens in two pages of each of these rounds."""
        happened: list[NDArray[Any]] = []
        for round in rounds:
            for page in range(2):
                rows, slates = self.pages(users, 2 * round + page)
                happened += arrays(users.respond(rows, slates, Key(self.seed, round, page)))
            users.end_round(round)
        return happened

    # -- what a page is answered with -------------------------------------------------------------------------

    def test_responses_have_their_form(self) -> None:
        users = self.bound()
        rows, slates = self.pages(users)
        utility = users.utility(rows)
        responses = users.respond(rows, slates, Key(self.seed))
        for name, dtype in (("examined", bool), ("clicked", bool), ("ratings", np.float32), ("utility", np.float32)):
            assert getattr(responses, name).shape == slates.shape, name
            assert getattr(responses, name).dtype == dtype, name
        assert responses.exited.shape == rows.shape
        assert responses.exited.dtype == bool
        empty = slates < 0
        assert not responses.examined[empty].any()
        assert np.isnan(responses.utility[empty]).all()
        assert not (responses.clicked & ~responses.examined).any(), "what is clicked was examined"
        given = responses.ratings[~np.isnan(responses.ratings)]
        scale = users.rating_scale
        assert ((given >= scale.low) & (given <= scale.high)).all()
        assert not (~np.isnan(responses.ratings) & ~responses.examined).any(), "what is rated was examined"
        told = np.take_along_axis(utility, np.maximum(slates, 0), axis=1)
        np.testing.assert_allclose(responses.utility[~empty], told[~empty], rtol=1e-5, err_msg="before the choice")
        assert ((utility > 0) & (utility <= 1)).all()

    def test_only_the_first_copy_of_an_item_is_examined(self) -> None:
        users = self.bound()
        rows, slates = self.pages(users)
        slates[:, 3] = slates[:, 0]
        responses = users.respond(rows, slates, Key(self.seed))
        assert not responses.examined[:, 3].any()
        assert not responses.clicked[:, 3].any()

    def test_a_misshapen_page_is_refused(self) -> None:
        users = self.bound()
        rows, slates = self.pages(users)
        with pytest.raises(SimenvError, match="slates have shape"):
            users.respond(rows[:-1], slates, Key(self.seed))

    def test_somebody_clicks_and_then_does_not_see_it_again(self) -> None:
        users = self.bound()
        rows, slates = self.pages(users)
        responses = users.respond(rows, slates, Key(self.seed))
        if not responses.clicked.any():
            pytest.skip("nobody clicked; make() should give users who do")
        bits = users.excluded(rows)
        assert bits is not None
        excluded = unpack(bits, users.population.n_items)
        for row, rank in zip(*np.nonzero(responses.clicked)):
            assert excluded[row, slates[row, rank]]

    # -- the same again ---------------------------------------------------------------------------------------

    def test_the_same_world_lives_the_same_life(self) -> None:
        for one, two in zip(self.live(self.bound()), self.live(self.bound())):
            np.testing.assert_array_equal(one, two)

    def test_a_batch_answers_as_its_parts(self) -> None:
        if not self.splits:
            pytest.skip("this model's users answer as a batch")
        together, apart = self.bound(), self.bound()
        rows, slates = self.pages(together)
        whole = arrays(together.respond(rows, slates, Key(self.seed)))
        parts = [arrays(apart.respond(rows[of], slates[of], Key(self.seed))) for of in (slice(0, 5), slice(5, None))]
        for one, first, second in zip(whole, *parts):
            np.testing.assert_allclose(one, np.concatenate([first, second]), rtol=1e-6)

    def test_a_saved_state_goes_on_the_same(self) -> None:
        users, other = self.bound(), self.bound()
        self.live(users, range(1))
        other.load_state_dict(users.state_dict())
        for one, two in zip(self.live(users, range(1, 3)), self.live(other, range(1, 3))):
            np.testing.assert_array_equal(one, two)

    def test_a_copy_goes_its_own_way(self) -> None:
        """Twins, deep copies and pickles: the same life from here on, and the original does not notice."""
        users = self.bound()
        self.live(users, range(1))
        copies = [users.twin(), copy.deepcopy(users)]
        if self.pickles:
            copies.append(pickle.loads(pickle.dumps(users)))
        lives = [self.live(one, range(1, 3)) for one in copies]
        own = self.live(users, range(1, 3))
        for life in lives:
            for one, two in zip(life, own):
                np.testing.assert_array_equal(one, two)

    # -- what the loop asks besides ---------------------------------------------------------------------------

    def test_the_best_slate_is_not_beaten(self) -> None:
        users = self.bound()
        rows, slates = self.pages(users)
        slates[:, -1] = np.where(slates[:, -1] < 0, slates[:, 0], slates[:, -1])
        best = users.best_utility(rows, K)
        assert (best >= np.take_along_axis(users.utility(rows), slates, axis=1).mean(axis=1) - 1e-6).all()

    def test_unaided_users_come_across_distinct_items(self) -> None:
        users = self.bound()
        slates = users.unaided_slates(np.arange(30), K, Key(self.seed))
        assert slates.shape == (30, K)
        assert ((slates >= 0) & (slates < users.population.n_items)).all()
        assert all(len(set(row)) == K for row in slates.tolist())

    def test_activity_and_satisfaction_are_shares(self) -> None:
        users = self.bound()
        self.live(users, range(1))
        for values in (users.activity, users.satisfaction):
            assert values.shape == (users.population.n_users,)
            assert ((values >= 0) & (values <= 1)).all()


def arrays(responses: Responses) -> list[NDArray[Any]]:
    """The five arrays of a page's responses."""
    named = ("examined", "clicked", "ratings", "utility", "exited")
    return [getattr(responses, name).copy() for name in named]
