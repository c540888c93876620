"""Gymnasium environments over simulated users: one session, many, or a whole platform."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simenv.faces import lazy

if TYPE_CHECKING:
    from simenv.envs.platform_env import PlatformEnv
    from simenv.envs.slate import SlateEnv
    from simenv.envs.vector import SlateVectorEnv
    from simenv.envs.world import fork

__all__ = ["PlatformEnv", "SlateEnv", "SlateVectorEnv", "fork"]

__getattr__ = lazy(
    __name__,
    {
        "PlatformEnv": "simenv.envs.platform_env",
        "SlateEnv": "simenv.envs.slate",
        "SlateVectorEnv": "simenv.envs.vector",
        "fork": "simenv.envs.world",
    },
)
