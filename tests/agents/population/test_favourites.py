"""Favourites: whatever happened to tastes and candidates, the figures are those of the whole catalogue."""

from __future__ import annotations

import numpy as np
import pytest

import agents.population.favourites
from agents.choice.model import ChoiceModel
from simenv.candidates import Candidates
from simenv.datasets import synthetic

K = 5


@pytest.mark.parametrize("drift", [0.0, 0.02, 0.5])
def test_lists_change_no_figure(drift: float) -> None:
    world = synthetic(n_users=60, n_items=200, seed=3)
    assert world.tastes is not None
    users, rng, everyone = ChoiceModel(), np.random.default_rng(0), np.arange(60)
    users.bind(world, world.tastes, seed=0)
    vectors, out = users.population.vectors, np.zeros((60, 200), np.bool_)
    made = []
    for round_ in range(12):
        out |= rng.random(out.shape) < 0.02
        if round_ == 7:
            out[:30] = False  # what was out comes back
        if round_ == 9:
            out[40:50, 3:] = True  # fewer are left than asked for
            out[50:] = True  # nobody is left
        available = rng.random(200) < 0.95 if round_ % 4 == 3 else None
        candidates = Candidates.of(200, out=out, available=available)
        served, k = rng.permutation(everyone)[: 60 if round_ % 3 else 40], 7 if round_ == 10 else K
        found = users.best_utility(served, k, candidates.rows(served))
        np.testing.assert_array_equal(found, users.twin().best_utility(served, k, candidates.rows(served)))
        utility = np.where(candidates.mask()[served], users.utility(served), -np.inf)
        best = -np.sort(-utility, axis=1)[:, :k]
        expected = np.ma.masked_invalid(best).mean(axis=1).filled(np.nan)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        vectors += drift * rng.standard_normal(vectors.shape).astype(np.float32) * (rng.random((60, 1)) < 0.3)
        lists = users._favourites
        assert lists is not None
        assert lists._lists is not None
        made.append(lists._lists[3].copy())
    if drift == 0.0:  # lists last until something comes back
        assert (made[5] == made[4]).mean() > 0.9


def test_without_room_for_lists_every_row_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    world = synthetic(n_users=20, n_items=50, seed=3)
    assert world.tastes is not None
    users = ChoiceModel()
    users.bind(world, world.tastes, seed=0)
    everyone, candidates = np.arange(20), Candidates.of(50)
    expected = users.twin().best_utility(everyone, K, candidates)
    monkeypatch.setattr(agents.population.favourites, "MOST_BYTES", 0)
    for _ in range(3):
        np.testing.assert_array_equal(users.best_utility(everyone, K, candidates), expected)
    assert users._favourites is not None
    assert users._favourites._lists is not None
    assert len(users._favourites._lists[5]) == 0
