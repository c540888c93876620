"""From measurements to conclusions: statistics, claims stated beforehand, verdicts, and where they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simenv.faces import lazy

if TYPE_CHECKING:
    from simenv.conclusions.across import flips
    from simenv.conclusions.claims import Claim, judge
    from simenv.conclusions.judged import JudgedClaim, read_claims, write_claims
    from simenv.conclusions.standard import standard_claims
    from simenv.conclusions.statistics import paired_t, tost_p, variance_split

__all__ = [
    "Claim",
    "JudgedClaim",
    "flips",
    "judge",
    "paired_t",
    "read_claims",
    "standard_claims",
    "tost_p",
    "variance_split",
    "write_claims",
]

__getattr__ = lazy(
    __name__,
    {
        "Claim": "simenv.conclusions.claims",
        "JudgedClaim": "simenv.conclusions.judged",
        "flips": "simenv.conclusions.across",
        "judge": "simenv.conclusions.claims",
        "paired_t": "simenv.conclusions.statistics",
        "read_claims": "simenv.conclusions.judged",
        "standard_claims": "simenv.conclusions.standard",
        "tost_p": "simenv.conclusions.statistics",
        "variance_split": "simenv.conclusions.statistics",
        "write_claims": "simenv.conclusions.judged",
    },
)
