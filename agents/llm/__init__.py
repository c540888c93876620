"""Users that a language model drives: what they are told, how they score a page, and what they then do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simenv.faces import lazy

if TYPE_CHECKING:
    from agents.llm.memory import Retrieval
    from agents.llm.user import LLMUser

__all__ = ["LLMUser", "Retrieval"]

__getattr__ = lazy(
    __name__,
    {
        "LLMUser": "agents.llm.user",
        "Retrieval": "agents.llm.memory",
    },
)
