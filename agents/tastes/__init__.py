"""Tastes fitted to real interactions: how choices and ratings follow from a history."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simenv.faces import lazy

if TYPE_CHECKING:
    from agents.tastes.structures import ContentTastes, FactorTastes, NeighbourhoodTastes, TasteModel

__all__ = ["ContentTastes", "FactorTastes", "NeighbourhoodTastes", "TasteModel"]

__getattr__ = lazy(
    __name__,
    {
        "ContentTastes": "agents.tastes.structures",
        "FactorTastes": "agents.tastes.structures",
        "NeighbourhoodTastes": "agents.tastes.structures",
        "TasteModel": "agents.tastes.structures",
    },
)
