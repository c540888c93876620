"""From measurements to conclusions: paired statistics, claims and their verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simenv.faces import lazy

if TYPE_CHECKING:
    from simenv.conclusions.claims import Claim, judge
    from simenv.conclusions.standard import standard_claims
    from simenv.conclusions.statistics import paired_t, tost_p, variance_split

__all__ = ["Claim", "judge", "paired_t", "standard_claims", "tost_p", "variance_split"]

__getattr__ = lazy(
    __name__,
    {
        "Claim": "simenv.conclusions.claims",
        "judge": "simenv.conclusions.claims",
        "paired_t": "simenv.conclusions.statistics",
        "standard_claims": "simenv.conclusions.standard",
        "tost_p": "simenv.conclusions.statistics",
        "variance_split": "simenv.conclusions.statistics",
    },
)
