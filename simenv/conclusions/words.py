"""Judged claims in plain words: the sentence of each, and how numbers are written in it.

The module does not know how a claim was tested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from simenv.conclusions.statistics import fewest_seeds, smallest_p

if TYPE_CHECKING:
    from simenv.conclusions.claims import Claim
    from simenv.conclusions.judged import JudgedClaim

MANY_SEEDS = 1_000  # from here on a sentence says "more than"


def sentence(claim: Claim, judged: JudgedClaim, *, alpha: float, n_all: int, held_back: bool) -> str:
    """The claim with its numbers; its verb is the verdict.

    Args:
        claim: what was stated.
        judged: its numbers and verdict.
        alpha: error rate of the test, 1 minus the coverage of the interval.
        n_all: seeds of the run.
        held_back: the claim fails only because another is tested before it.
    """
    if judged.estimate is None and claim.estimand == "stability" and n_all < 2:
        order = f"the order of the arms by {claim.quantity}"
        return f"Whether seeds agree on {order} takes two seeds or more (regime {judged.regime}): unclear."
    if judged.estimate is None:
        return f"No seed has a value for {claim.quantity} (regime {judged.regime}): unclear."
    estimate, write = judged.estimate, _decimals(judged)
    evidence = _evidence(judged, write, alpha, n_all)
    notes = "".join(f"; {note}" for note in _notes(claim, judged, write, alpha, held_back))
    size = "" if judged.margin is None else f" the margin of {trim(judged.margin)}"
    if claim.estimand == "stability":
        opening = {
            "supported": "Seeds agree on the order of the arms by",
            "not_supported": "Seeds do not agree on the order of the arms by",
            "inconclusive": "It is unclear whether seeds agree on the order of the arms by",
        }[judged.test]
        text = f"{opening} {claim.quantity}: mean Kendall tau {write(estimate)} ({evidence}){notes}"
    elif judged.verdict in ("raised", "lowered"):
        beyond = f", beyond{size}" if size else ""
        text = f"{claim.cause} {judged.verdict} {claim.quantity} by {write(abs(estimate))}{beyond} ({evidence}){notes}"
    elif judged.verdict == "negligible":
        change = f"{signed(estimate, write)}, {evidence}"
        text = f"{claim.cause} changed {claim.quantity} by less than{size} ({change}){notes}"
    else:
        by = f" by more than{size}" if size else ""
        text = (
            f"It is unclear whether {claim.cause} changed {claim.quantity}{by} "
            f"({signed(estimate, write)}, {evidence}){notes}"
        )
    return f"{text[0].upper()}{text[1:]}."


def undecidable(n_seeds: int, alpha: float = 0.05) -> str | None:
    """What to say of a design with too few seeds to find any effect, before it runs and above its results; else None.

    Args:
        n_seeds: of the design.
        alpha: error rate of the tests.
    """
    needed = fewest_seeds(alpha)
    if n_seeds >= needed:
        return None
    if n_seeds < 2:
        return (
            f"One seed cannot be told from luck: no interval, no test, every verdict unclear. "
            f"Verdicts need at least {needed} seeds."
        )
    return (
        f"{n_seeds} seeds cannot show an effect: the smallest p that they can give is "
        f"{number(smallest_p(n_seeds))}, so that nothing can be called raised or lowered. At least {needed} seeds can."
    )


def _evidence(judged: JudgedClaim, write: Callable[[float], str], alpha: float, n_all: int) -> str:
    """What stands in the brackets: interval, seeds, p, regime."""
    n = judged.n_seeds
    parts = [f"{n} seed{'s' * (n != 1)}" if n == n_all else f"{n} of {n_all} seeds have a value"]
    if judged.ci_low is not None and judged.ci_high is not None:
        parts.insert(0, f"{100 * (1 - alpha):g} % CI {write(judged.ci_low)} to {write(judged.ci_high)}")
    if judged.p_adjusted is not None:
        parts.append(f"adjusted p {_p(judged.p_adjusted)}")
    return ", ".join([*parts, f"regime {judged.regime}"])


def _notes(
    claim: Claim, judged: JudgedClaim, write: Callable[[float], str], alpha: float, held_back: bool
) -> list[str]:
    notes, n = [], judged.n_seeds
    if claim.direction and judged.verdict == {"up": "lowered", "down": "raised"}[claim.direction]:
        notes.append("against the claim")
    if judged.verdict != "unclear":
        return notes
    if n < 2:
        return [*notes, "one seed carries no interval"]
    if smallest_p(n) > alpha:
        return [
            *notes,
            f"with {n} seeds no p is below {number(smallest_p(n))}, so that no effect can be shown; "
            f"at least {fewest_seeds(alpha)} are needed",
        ]
    if held_back:
        notes.append("it would be decided if the claims that are tested before it were supported")
    elif judged.test != "inconclusive" and judged.margin is not None and claim.estimand != "stability":
        way = "rose" if (judged.estimate or 0.0) > 0 else "fell"
        notes.append(f"that it {way} is sure, that it {way} by more than the margin is not")
    if judged.seeds_needed is not None and claim.estimand != "stability":
        many = judged.seeds_needed > MANY_SEEDS
        about = f"more than {MANY_SEEDS:,}" if many else f"about {judged.seeds_needed}"
        notes.append(f"{about} seeds would decide")
    return notes


# -- numbers ------------------------------------------------------------------------------------------------------


def _decimals(judged: JudgedClaim) -> Callable[[float], str]:
    """Numbers of one sentence share their decimals: down to the first digit of the interval's half-width, 3 to 6."""
    low, high = judged.ci_low, judged.ci_high
    scale = (high - low) / 2 if low is not None and high is not None and high > low else abs(judged.estimate or 0.0)
    decimals = 3 if scale == 0 else int(np.clip(-np.floor(np.log10(scale)), 3, 6))
    return lambda value: number(value, decimals)


def number(value: float, decimals: int = 3) -> str:
    """`.040`, `-.2`, `12.300`: fixed decimals without the leading zero."""
    text = f"{value:.{decimals}f}"
    text = text[1:] if text.startswith("-") and float(text) == 0 else text
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def trim(value: float) -> str:
    """`.01`, `2.5`: as few digits as say it."""
    text = f"{value:g}"
    return text[1:] if text.startswith("0.") else text


def signed(value: float, write: Callable[[float], str] = number) -> str:
    """`+.040`, `-.2`."""
    return f"+{write(value)}" if value > 0 else write(value)


def _p(value: float) -> str:
    return "< .001" if value < 0.0005 else f"= {number(value)}"
