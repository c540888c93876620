"""How real the users are: any user model beside baselines on held-out behaviour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simenv.faces import lazy

if TYPE_CHECKING:
    from experiments.realism.bench import plot, run, score

__all__ = ["plot", "run", "score"]

__getattr__ = lazy(
    __name__,
    {
        "plot": "experiments.realism.bench",
        "run": "experiments.realism.bench",
        "score": "experiments.realism.bench",
    },
)
