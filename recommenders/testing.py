"""Checks that every recommender must pass, to inherit for one of your own; needs pytest.

    class TestMine(RecommenderSuite):
        def make(self) -> Recommender:
            return Mine()

It knows the public interface alone. Where `update` is only close to a refit, set `update_tolerance`.
"""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from recommenders.base import Recommender
from simenv.candidates import Candidates
from simenv.datasets.base import Catalog, Dataset, Interactions
from simenv.errors import ConfigError, RecommenderError, RunDirectoryError
from simenv.randomness import Key
from simenv.slates import SeesDataset, SeesTruth, Slates

KEY = Key(seed=11, round=3)


def small_log(*, n_users: int = 40, n_items: int = 60, n: int = 600, seed: int = 0) -> Interactions:
    """A random log with long-tailed items and repetitions; half of it rated; the last three users have no history."""
    rng = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, n_items + 1)
    ratings = rng.integers(1, 6, n).astype(np.float32)
    ratings[rng.random(n) < 0.5] = np.nan
    return Interactions(
        users=rng.integers(0, n_users - 3, n).astype(np.int32),
        items=rng.permutation(n_items)[rng.choice(n_items, n, p=share / share.sum())].astype(np.int32),
        ratings=ratings,
        times=np.arange(n, dtype=np.int64),
        n_users=n_users,
        n_items=n_items,
    )


def small_dataset(log: Interactions, *, seed: int = 0) -> Dataset:
    """A data set around `log` with four genres and titles that share words."""
    rng = np.random.default_rng(seed)
    words = np.array(["river", "night", "garden", "stone", "winter", "letter", "harbour", "crow"])
    genres = rng.random((log.n_items, 4)) < 0.4
    genres[np.arange(log.n_items), rng.integers(0, 4, log.n_items)] = True
    picks = rng.integers(0, len(words), (log.n_items, 2))
    catalog = Catalog(
        item_ids=tuple(f"i{row}" for row in range(log.n_items)),
        titles=tuple(" ".join(words[pick]) for pick in picks),
        genre_names=("drama", "comedy", "war", "noir"),
        genres=genres,
    )
    users = tuple(f"u{row}" for row in range(log.n_users))
    return Dataset(name="small", catalog=catalog, interactions=log, user_ids=users)


def small_truth(log: Interactions, *, seed: int = 0) -> NDArray[np.float32]:
    """Utilities in (0, 1), (n_users, n_items)."""
    return np.random.default_rng(seed).random((log.n_users, log.n_items), dtype=np.float32)


class RecommenderSuite:
    """What a recommender promises, one test each. Override `make`."""

    update_tolerance: ClassVar[float] = 0.0  # largest difference of scores between update and refit

    def make(self) -> Recommender:
        """A fresh, unfitted recommender."""
        raise NotImplementedError("a subclass of RecommenderSuite defines make()")

    # -- fixtures in plain methods ----------------------------------------------------------------------------

    def bound(self, log: Interactions) -> Recommender:
        """A fresh recommender that has seen whatever it wants to see beside the log."""
        recommender = self.make()
        if isinstance(recommender, SeesDataset):
            recommender.bind_dataset(small_dataset(log))
        if isinstance(recommender, SeesTruth):
            recommender.bind_truth(partial(np.take, small_truth(log), axis=0))  # can be pickled, unlike a lambda
        return recommender

    def fitted(self, log: Interactions | None = None) -> Recommender:
        log = small_log() if log is None else log
        recommender = self.bound(log)
        recommender.fit(log, key=KEY)
        return recommender

    def assert_same(self, left: Slates, right: Slates) -> None:
        np.testing.assert_array_equal(left.item_ids, right.item_ids)
        assert (left.propensity is None) == (right.propensity is None)
        if left.propensity is not None and right.propensity is not None:
            np.testing.assert_array_equal(left.propensity, right.propensity)

    # -- slates -----------------------------------------------------------------------------------------------

    def test_has_a_name(self) -> None:
        assert self.make().name

    def test_slates_are_distinct_known_items(self) -> None:
        slates = self.fitted().recommend(np.arange(40), 7, key=KEY)
        assert slates.item_ids.shape == (40, 7)
        assert slates.item_ids.dtype == np.int32
        assert all(len(set(row)) == 7 for row in slates.item_ids.tolist())
        assert slates.item_ids.min() >= 0
        assert slates.item_ids.max() < 60

    def test_propensities_are_probabilities(self) -> None:
        slates = self.fitted().recommend(np.arange(40), 7, key=KEY)
        if slates.propensity is not None:
            assert slates.propensity.shape == (40, 7)
            assert (slates.propensity > 0).all()
            assert (slates.propensity <= 1).all()

    def test_no_users_no_slates(self) -> None:
        assert self.fitted().recommend(np.arange(0), 5, key=KEY).item_ids.shape == (0, 5)

    def test_scores_are_finite_numbers(self) -> None:
        scores = self.fitted().scores(np.arange(40))
        assert scores.shape == (40, 60)
        assert np.isfinite(scores).all()

    def test_excluded_items_are_not_shown(self) -> None:
        log = small_log()
        seen = np.zeros((40, 60), np.bool_)
        seen[log.users, log.items] = True
        slates = self.fitted(log).recommend(np.arange(40), 10, Candidates.of(60, out=seen), key=KEY).item_ids
        assert (slates >= 0).all()
        assert not seen[np.arange(40)[:, None], slates].any()

    def test_unavailable_items_are_not_shown(self) -> None:
        available = np.arange(60) % 3 == 0
        slates = self.fitted().recommend(np.arange(40), 10, Candidates.of(60, available=available), key=KEY).item_ids
        assert (slates % 3 == 0).all()

    def test_fewer_candidates_than_slots_leave_the_rest_empty(self) -> None:
        excluded = np.ones((2, 60), np.bool_)
        excluded[0, [4, 9, 30]] = False
        available = np.arange(60) != 30
        candidates = Candidates.of(60, out=excluded, available=available)
        slates = self.fitted().recommend(np.array([1, 2]), 5, candidates, key=KEY)
        assert sorted(slates.item_ids[0, :2].tolist()) == [4, 9]
        assert (slates.item_ids[0, 2:] == -1).all()
        assert (slates.item_ids[1] == -1).all()

    def test_whole_catalogue_can_be_ranked(self) -> None:
        slates = self.fitted().recommend(np.arange(3), 60, key=KEY).item_ids
        np.testing.assert_array_equal(np.sort(slates, axis=1), np.tile(np.arange(60), (3, 1)))

    def test_users_without_history_get_full_slates(self) -> None:
        slates = self.fitted().recommend(np.array([37, 38, 39]), 10, key=KEY).item_ids
        assert (slates >= 0).all()

    # -- determinism ------------------------------------------------------------------------------------------

    def test_same_key_same_slates(self) -> None:
        users = np.arange(40)
        first, second = self.fitted(), self.fitted()
        self.assert_same(first.recommend(users, 10, key=KEY), second.recommend(users, 10, key=KEY))
        self.assert_same(first.recommend(users, 10, key=KEY), second.recommend(users, 10, key=KEY))

    def test_batches_can_be_split_anywhere(self) -> None:
        recommender, users = self.fitted(), np.arange(40)
        whole = recommender.recommend(users, 10, key=KEY)
        for sizes in ([40], [1, 39], [13, 14, 13], [1] * 40):
            bounds = np.cumsum([0, *sizes])
            parts = [recommender.recommend(users[a:b], 10, key=KEY) for a, b in itertools.pairwise(bounds)]
            items = np.concatenate([part.item_ids for part in parts])
            np.testing.assert_array_equal(items, whole.item_ids)
            if whole.propensity is not None:
                propensity = [part.propensity for part in parts if part.propensity is not None]
                np.testing.assert_array_equal(np.concatenate(propensity), whole.propensity)

    def test_scores_do_not_depend_on_the_batch(self) -> None:
        recommender = self.fitted()
        users = np.random.default_rng(0).integers(0, 40, 600)
        alone = np.concatenate([recommender.scores(np.array([user])) for user in range(40)])
        np.testing.assert_array_equal(recommender.scores(users), alone[users])

    def test_what_was_ranked_before_changes_no_slate(self) -> None:
        mine, rng = self.fitted(), np.random.default_rng(2)
        anew, users = pickle.dumps(mine), np.arange(40)
        out = np.zeros((40, mine.n_items), np.bool_)
        for share, available in ((0.1, 1.0), (0.1, 1.0), (0.2, 0.9), (0.3, 1.0), (-1, 1.0)):
            out = (out | (rng.random(out.shape) < share)) & (share >= 0)  # at the end everything comes back
            candidates = Candidates.of(mine.n_items, out=out, available=rng.random(mine.n_items) <= available)
            fresh = pickle.loads(anew).recommend(users, 7, candidates, key=KEY)
            self.assert_same(mine.recommend(users, 7, candidates, key=KEY), fresh)

    def test_order_of_users_does_not_matter(self) -> None:
        recommender, order = self.fitted(), np.random.default_rng(1).permutation(40)
        shuffled = recommender.recommend(order, 10, key=KEY)
        whole = recommender.recommend(np.arange(40), 10, key=KEY)
        np.testing.assert_array_equal(shuffled.item_ids, whole.item_ids[order])

    def test_fit_forgets(self) -> None:
        users, recommender = np.arange(40), self.fitted(small_log(seed=5))
        recommender.fit(small_log(), key=KEY)
        np.testing.assert_array_equal(recommender.scores(users), self.fitted().scores(users))

    # -- learning, saving -------------------------------------------------------------------------------------

    def test_update_is_a_refit(self) -> None:
        log, new, users = small_log(), small_log(seed=1, n=150), np.arange(40)
        updated, refitted = self.fitted(log), self.fitted(log.concat(new))
        updated.update(new, key=KEY)
        np.testing.assert_allclose(updated.scores(users), refitted.scores(users), rtol=0, atol=self.update_tolerance)
        if self.update_tolerance == 0:
            self.assert_same(updated.recommend(users, 10, key=KEY), refitted.recommend(users, 10, key=KEY))

    def test_empty_update_changes_nothing(self) -> None:
        recommender, users = self.fitted(), np.arange(40)
        before = recommender.scores(users)
        recommender.update(Interactions.empty(40, 60), key=KEY)
        np.testing.assert_allclose(recommender.scores(users), before, rtol=0, atol=self.update_tolerance)

    def test_saved_and_loaded_is_the_same(self, tmp_path: Path) -> None:
        log, new, users = small_log(), small_log(seed=2, n=100), np.arange(40)
        saved, loaded = self.fitted(log), self.bound(log)
        saved.save(tmp_path / "model")
        loaded.load(tmp_path / "model")
        self.assert_same(loaded.recommend(users, 10, key=KEY), saved.recommend(users, 10, key=KEY))
        for recommender in (saved, loaded):
            recommender.update(new, key=KEY)
        self.assert_same(loaded.recommend(users, 10, key=KEY), saved.recommend(users, 10, key=KEY))

    def test_pickled_is_the_same(self) -> None:
        recommender, users = self.fitted(), np.arange(40)
        copy = pickle.loads(pickle.dumps(recommender))
        self.assert_same(copy.recommend(users, 10, key=KEY), recommender.recommend(users, 10, key=KEY))

    def test_another_recommender_is_not_loaded(self, tmp_path: Path) -> None:
        self.fitted().save(tmp_path)
        (tmp_path / "recommender.json").write_text(json.dumps({"recommender": "other", "n_users": 1, "n_items": 1}))
        with pytest.raises(RunDirectoryError, match="holds recommender 'other'"):
            self.bound(small_log()).load(tmp_path)

    @pytest.mark.parametrize("file", ["recommender.json", "arrays.npz"])
    def test_a_damaged_file_is_not_loaded(self, tmp_path: Path, file: str) -> None:
        self.fitted().save(tmp_path)
        (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:20])
        with pytest.raises(RunDirectoryError, match="no readable saved recommender"):
            self.bound(small_log()).load(tmp_path)

    # -- errors -----------------------------------------------------------------------------------------------

    def test_unfitted_is_an_error(self, tmp_path: Path) -> None:
        uses: tuple[Callable[[Recommender], object], ...] = (
            lambda r: r.recommend(np.arange(2), 3, key=KEY),
            lambda r: r.scores(np.arange(2)),
            lambda r: r.update(small_log(), key=KEY),
            lambda r: r.save(tmp_path),
        )
        for use in uses:
            with pytest.raises(RecommenderError, match="before fit"):
                use(self.bound(small_log()))

    def test_empty_log_is_an_error(self) -> None:
        with pytest.raises(RecommenderError, match="empty log"):
            self.bound(small_log()).fit(Interactions.empty(40, 60), key=KEY)

    @pytest.mark.parametrize("users", [[40], [-1], [0, 99], [[0, 1]]])
    def test_unknown_users_are_an_error(self, users: Any) -> None:
        with pytest.raises(RecommenderError, match="users"):
            self.fitted().recommend(np.array(users), 3, key=KEY)

    @pytest.mark.parametrize("sizes", [{"n_items": 61}, {"n_users": 41}])
    def test_unknown_items_and_users_in_an_update_are_an_error(self, sizes: dict[str, int]) -> None:
        recommender, users = self.fitted(), np.arange(40)
        before = recommender.scores(users)
        with pytest.raises(RecommenderError, match=r"expected \d+, as fitted"):
            recommender.update(small_log(seed=1, **sizes), key=KEY)
        np.testing.assert_array_equal(recommender.scores(users), before)

    @pytest.mark.parametrize("k", [0, -1, 61])
    def test_slate_size_out_of_range_is_an_error(self, k: int) -> None:
        with pytest.raises(ConfigError, match=f"slate_size={k}"):
            self.fitted().recommend(np.arange(2), k, key=KEY)

    def test_candidates_of_others_are_an_error(self) -> None:
        for others in (Candidates.of(59), Candidates.of(60, out=np.zeros((3, 60), np.bool_))):
            with pytest.raises(RecommenderError, match="expected 2 users and 60 items"):
                self.fitted().recommend(np.arange(2), 3, others, key=KEY)
