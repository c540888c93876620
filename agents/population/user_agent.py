"""UserAgent: one user as a `mesa.Agent`, a light view of one row of the Population.

Agents are made when someone asks for one; a Platform of a million users has none by default. The view holds no state
of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from agents.base import UserModel
from agents.population.rows import Population
from simenv.errors import ConfigError
from simenv.platform import Agent, Platform

_views: WeakKeyDictionary[Platform, dict[int, UserAgent]] = WeakKeyDictionary()


class UserAgent(Agent):
    """A view of one user; make it with `UserAgent.of(platform, row)`, which gives the same object each time.

    `unique_id` is the user's row. Mesa counts its own ids from 1 and keeps every Model that ever had an agent alive
    through ``mesa.Agent._ids``; the view overwrites the one and `release` ends the other.
    """

    model: Platform

    def __init__(self, platform: Platform, row: int) -> None:
        super().__init__(platform)
        self.unique_id = row

    @classmethod
    def of(cls, platform: Platform, row: int) -> UserAgent:
        """The one agent of this row.

        Raises:
            ConfigError: the row does not exist, or the platform's users are not a Population's.
        """
        if not isinstance(platform.users, UserModel):
            raise ConfigError("UserAgent: the platform's users are no agents.base.UserModel")
        if not 0 <= row < platform.dataset.n_users:
            raise ConfigError(f"user {row}: expected a row in 0 to {platform.dataset.n_users - 1}")
        views = _views.setdefault(platform, {})
        if row not in views:
            views[row] = cls(platform, row)
        return views[row]

    @property
    def population(self) -> Population:
        """The arrays behind the view."""
        users = self.model.users
        assert isinstance(users, UserModel)
        return users.population

    @property
    def taste(self) -> NDArray[np.float32]:
        """The choice taste as it is now, a copy, (d,)."""
        return self.population.vectors[self.unique_id].copy()

    @property
    def satisfaction(self) -> float:
        """Moving average of page satisfaction, in [0, 1]."""
        return float(self.population.satisfaction[self.unique_id])

    @property
    def fatigue(self) -> float:
        """Fatigue, >= 0."""
        return float(self.population.fatigue[self.unique_id])

    @property
    def traits(self) -> dict[str, Any]:
        """The fixed profile by name."""
        return {name: values[self.unique_id] for name, values in self.population.traits.columns().items()}

    def memory(self, n: int | None = None) -> Iterator[dict[str, Any]]:
        """The last `n` remembered events, newest first."""
        return self.population.recent(self.unique_id, n)

    def remove(self) -> None:
        """Forget this view; the user stays in the population."""
        _views.get(self.model, {}).pop(self.unique_id, None)
        super().remove()


def release(platform: Platform) -> None:
    """Drop every view of a platform and Mesa's hold on it, so that it can be freed."""
    for agent in list(platform.agents):
        agent.remove()
    _views.pop(platform, None)
    Agent._ids.pop(platform, None)
