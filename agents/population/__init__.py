"""The rows of users: who they are, what they like, what they remember, and how they change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simenv.faces import lazy

if TYPE_CHECKING:
    from agents.population.rows import Dynamics, Population
    from agents.population.traits import Traits
    from agents.population.user_agent import UserAgent

__all__ = ["Dynamics", "Population", "Traits", "UserAgent"]

__getattr__ = lazy(
    __name__,
    {
        "Dynamics": "agents.population.rows",
        "Population": "agents.population.rows",
        "Traits": "agents.population.traits",
        "UserAgent": "agents.population.user_agent",
    },
)
