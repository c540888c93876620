"""simenv: recommendation slates for simulated users, and what a recommender does to them over time.

Importing it makes the environments known to Gymnasium, ``gymnasium.make("simenv/Slate-v0")``, where that is installed;
a machine that only trains P5 does without it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from simenv.faces import lazy

if TYPE_CHECKING:
    from simenv.datasets import Catalog, Dataset, Interactions
    from simenv.events import Events
    from simenv.platform import Mode, Platform, Schedule
    from simenv.randomness import Key
    from simenv.slates import Responses, Slates

__all__ = ["Catalog", "Dataset", "Events", "Interactions", "Key", "Mode", "Platform", "Responses", "Schedule", "Slates"]

__getattr__ = lazy(
    __name__,
    {
        "Catalog": "simenv.datasets",
        "Dataset": "simenv.datasets",
        "Events": "simenv.events",
        "Interactions": "simenv.datasets",
        "Key": "simenv.randomness",
        "Mode": "simenv.platform",
        "Platform": "simenv.platform",
        "Responses": "simenv.slates",
        "Schedule": "simenv.platform",
        "Slates": "simenv.slates",
    },
)

if find_spec("gymnasium") is not None:
    from simenv.registration import register_envs

    register_envs()
