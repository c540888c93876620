"""Simulated users: the embedded choice model, users a language model drives, and mixtures of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simenv.faces import lazy

if TYPE_CHECKING:
    from agents.base import UserModel
    from agents.choice.model import ChoiceModel
    from agents.llm.user import LLMUser
    from agents.mixed import MixedUsers
    from agents.population.rows import Population

__all__ = ["ChoiceModel", "LLMUser", "MixedUsers", "Population", "UserModel"]

__getattr__ = lazy(
    __name__,
    {
        "ChoiceModel": "agents.choice.model",
        "LLMUser": "agents.llm.user",
        "MixedUsers": "agents.mixed",
        "Population": "agents.population.rows",
        "UserModel": "agents.base",
    },
)
