"""simenv: recommendation slates for simulated users, and what a recommender does to them over time.

Importing it makes the environments known to Gymnasium, ``gymnasium.make("simenv/Slate-v0")``, where that is installed;
a machine that only trains P5 does without it.
"""

from __future__ import annotations

import os
import tempfile
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


def _keep_kernels_somewhere() -> None:
    """numba keeps compiled kernels beside their source or in the user's cache folder, and stops where neither can be
    written; then a temporary folder serves.
    """
    cache = os.path.expanduser("~/.cache")
    places = [os.path.dirname(__file__), cache if os.path.isdir(cache) else os.path.expanduser("~")]
    if "NUMBA_CACHE_DIR" not in os.environ and not any(os.access(place, os.W_OK) for place in places):
        os.environ["NUMBA_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), f"simenv-kernels-{os.getuid()}")


_keep_kernels_somewhere()
