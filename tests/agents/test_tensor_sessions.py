"""TensorSessions against the compiled sessions they must equal: the same luck, the same answers up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from agents.choice.model import ChoiceModel
from agents.sessions import open_sessions
from agents.sessions.tensors import TensorSessions
from simenv.datasets import synthetic
from simenv.envs.sessions import Who
from simenv.errors import ConfigError

B, K, N = 64, 6, 80


def pair(repeat: str, **options: Any) -> tuple[Any, TensorSessions]:
    world = synthetic(n_users=50, n_items=N, seed=1)
    assert world.tastes is not None
    users = ChoiceModel(**options)
    users.bind(world, world.tastes, seed=0)
    sessions = open_sessions(users, B, slate_size=K, repeat=repeat)
    seeds = np.arange(7, 7 + B)
    sessions.who[:, Who.SEED] = seeds
    return sessions, TensorSessions(users, seeds, repeat=repeat)


@pytest.mark.parametrize(
    ("repeat", "options"),
    [
        ("never", {}),
        ("always", {"examination": "cascade", "rating_rate": 0.5, "drift": 0.2, "drift_skip": 0.05}),
        ("never", {"examination": "all", "base": 1.0, "satiation_gain": 3.0, "conformity": 3.0, "exit_base": -1.0}),
    ],
)
def test_pages_are_those_of_the_kernel(repeat: str, options: dict[str, Any]) -> None:
    kernel, tensors = pair(repeat, **options)
    rng, begins = np.random.default_rng(0), np.ones(B, np.bool_)
    n_clicks = 0
    for page in range(12):
        kernel.begin(begins)
        tensors.begin(torch.from_numpy(begins))
        np.testing.assert_array_equal(tensors.user, kernel.who[:, Who.USER])
        np.testing.assert_array_equal(tensors.allowed(), kernel.allowed())
        np.testing.assert_allclose(tensors.logits().sigmoid(), kernel.true_utility(), atol=1e-5)
        slates = rng.integers(0, N, (B, K))
        slates[0] = slates[0, 0]  # one item in every slot
        kernel.play(slates)
        found = tensors.play(torch.from_numpy(slates))
        np.testing.assert_array_equal(found.examined, kernel.examined)
        np.testing.assert_array_equal(found.clicked, kernel.clicked)
        np.testing.assert_array_equal(found.ratings, kernel.ratings)
        np.testing.assert_allclose(found.utility, kernel.utility, atol=1e-5)
        np.testing.assert_array_equal(found.left, kernel.parts[:, 4] > 0)
        for name in ("vectors", "satiation", "genre_counts"):
            np.testing.assert_allclose(getattr(tensors, name), getattr(kernel, name), atol=1e-4, err_msg=name)
        np.testing.assert_allclose(torch.stack([tensors.fatigue, tensors.satisfaction], 1), kernel.mood, atol=1e-5)
        np.testing.assert_array_equal(tensors.click_counts, kernel.click_counts)
        begins = kernel.parts[:, 4] > 0
        n_clicks += int(kernel.clicked.sum())
        if page == 6:
            kernel.renew_popularity()
            tensors.renew_popularity()
    assert n_clicks > 100


def test_users_of_other_rules_are_refused() -> None:
    users = ChoiceModel(word_of_mouth=1.0)
    with pytest.raises(ConfigError, match="more than the choice rule"):
        TensorSessions(users, np.arange(3))
    with pytest.raises(ConfigError, match="repeat=cooldown"):
        TensorSessions(pair("never")[0].users, np.arange(3), repeat="cooldown")
