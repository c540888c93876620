"""Rewards: what a page was worth to the platform.

A reward is a name, a weighted mixture of names, or a function of the `Page`. The module does not know who chose the
slate nor how the user answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.checks import number
from simenv.envs.errors import OptionError
from simenv.envs.sessions import Parts

NAMES = tuple(part.name.lower() for part in Parts if part is not Parts.LEFT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of a batch of sessions, as a reward function sees it; copies, B = 1 in a single environment."""

    users: NDArray[np.int64]  # (B,), rows of the data set
    page: NDArray[np.int64]  # (B,), from 0
    slates: NDArray[np.int64]  # (B, K)
    examined: NDArray[np.bool_]  # (B, K)
    clicked: NDArray[np.bool_]  # (B, K)
    ratings: NDArray[np.float32]  # (B, K), NaN = none
    utility: NDArray[np.float32]  # (B, K), true, before the choice; 0 in slots that act as empty
    exited: NDArray[np.bool_]  # (B,)


RewardFunction = Callable[[Page], NDArray[Any]]


@dataclass(frozen=True)
class Reward:
    """A checked reward: weights of `NAMES`, or a function.

    ``clicks``: clicks on the page. ``rating``: sum of the ratings given on it. ``utility``: mean true utility of its
    slots, in [0, 1). ``retention``: 1 if the user stays for another page.
    """

    weights: NDArray[np.float64]  # (4,)
    function: RewardFunction | None = None

    @classmethod
    def of(cls, spec: str | Mapping[str, float] | RewardFunction) -> Reward:
        """From a name, a mapping of names to weights, or a function of a `Page` that returns (B,) numbers.

        Raises:
            OptionError: an unknown name or a weight that is no number.
        """
        if callable(spec):
            return cls(np.zeros(len(NAMES)), spec)
        mixture = {spec: 1.0} if isinstance(spec, str) else spec
        if not isinstance(mixture, Mapping) or not mixture:
            raise OptionError(f"reward={spec!r}: expected a name, a mapping of names to weights, or a function")
        weights = np.zeros(len(NAMES))
        for name, weight in mixture.items():
            if name not in NAMES:
                raise OptionError(f"reward={name!r}: unknown; expected one of {', '.join(NAMES)}")
            number(f"reward {name}", weight, error=OptionError)
            weights[NAMES.index(name)] = weight
        return cls(weights)

    @cached_property
    def terms(self) -> list[tuple[int, float]]:
        """Index into `NAMES` and weight of each named part that counts."""
        return [(int(i), float(self.weights[i])) for i in np.flatnonzero(self.weights)]

    @property
    def needs_utility(self) -> bool:
        """Whether the utility of every slot has to be known."""
        return self.function is not None or self.weights[NAMES.index("utility")] != 0

    def __call__(self, parts: NDArray[np.float64], page: Callable[[], Page]) -> NDArray[np.float64]:
        """Rewards (B,).

        Args:
            parts: (B, 4 or more), the named parts of each row's page.
            page: makes the `Page`; called for a reward function only.

        Raises:
            OptionError: the function returned another shape, or NaN.
        """
        if self.function is None:
            return sum((weight * parts[:, at] for at, weight in self.terms), np.zeros(len(parts)))
        given = np.asarray(self.function(page()), dtype=np.float64)
        if given.shape != (len(parts),) or np.isnan(given).any():
            raise OptionError(
                f"reward function returned {given!r}; expected {len(parts)} numbers, shape ({len(parts)},)"
            )
        return given
