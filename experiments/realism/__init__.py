"""How real the users are: any user model beside baselines on held-out behaviour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simenv.faces import lazy

if TYPE_CHECKING:
    from experiments.realism.bench import Settings, play, plot, score

__all__ = ["Settings", "play", "plot", "score"]

__getattr__ = lazy(
    __name__,
    {
        "Settings": "experiments.realism.bench",
        "play": "experiments.realism.bench",
        "plot": "experiments.realism.bench",
        "score": "experiments.realism.bench",
    },
)
