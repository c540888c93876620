"""The embedded choice model, the compiled rule it runs, and the users of the classic papers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simenv.faces import lazy

if TYPE_CHECKING:
    from agents.choice.model import ChoiceModel, RankAcceptance

__all__ = ["ChoiceModel", "RankAcceptance"]

__getattr__ = lazy(
    __name__,
    {
        "ChoiceModel": "agents.choice.model",
        "RankAcceptance": "agents.choice.model",
    },
)
