"""The same claims under other conditions: which verdicts hold, and which flip.

One rule for consumption regimes, user models and runs set side by side. The module does not know what was changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from simenv.conclusions.judged import JudgedClaim, Status, Verdict
from simenv.conclusions.words import number, signed


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """One claim under every condition that has it."""

    name: str
    verdicts: Mapping[str, Verdict]  # by condition
    status: Status
    note: str  # a clause for the reader; empty where it holds


def flips(claims: Mapping[str, Sequence[JudgedClaim]]) -> list[Fate]:
    """How each claim fares.

    A verdict `flips` where two conditions decide differently: raised in one, and lowered or negligible in another. It
    is `open` where they do not, but one is unclear or lacks the claim: losing power is no flip. Else it `holds`.

    Args:
        claims: by condition.

    Returns:
        One entry per claim, in order of first appearance.
    """
    found: dict[str, dict[str, JudgedClaim]] = {}
    for condition, judged in claims.items():
        for claim in judged:
            found.setdefault(claim.name, {})[condition] = claim
    rows = []
    for name, held in found.items():
        verdicts = {condition: claim.verdict for condition, claim in held.items()}
        decided = set(verdicts.values()) - {"unclear"}
        whole = len(held) == len(claims) and "unclear" not in verdicts.values()
        status: Status = "flips" if len(decided) > 1 else "holds" if whole else "open"
        words = ", ".join(f"{_outcome(claim)} under {condition}" for condition, claim in held.items())
        notes = {"flips": f"the verdict flips: {words}", "open": f"not decided everywhere: {words}", "holds": ""}
        rows.append(Fate(name=name, verdicts=verdicts, status=status, note=notes[status]))
    return rows


def marked(
    judged: Sequence[JudgedClaim],
    *,
    regimes: Mapping[str, Sequence[JudgedClaim]],
    user_models: Mapping[str, Sequence[JudgedClaim]],
) -> list[JudgedClaim]:
    """The claims of a run with their status and note under its other regimes and user models.

    Args:
        judged: the run's own claims.
        regimes: by regime, the run's own among them; fewer than two = not repeated.
        user_models: by user model, likewise.
    """
    by_regime = {row.name: row for row in flips(regimes)} if len(regimes) > 1 else {}
    by_user_model = {row.name: row for row in flips(user_models)} if len(user_models) > 1 else {}
    out = []
    for claim in judged:
        if row := by_regime.get(claim.name):
            claim = replace(claim, regime_status=row.status, regime_note=row.note)
        if row := by_user_model.get(claim.name):
            claim = replace(claim, user_model_status=row.status, user_model_note=row.note)
        out.append(claim)
    return out


def _outcome(claim: JudgedClaim) -> str:
    return claim.verdict if claim.estimate is None else f"{claim.verdict} ({signed(claim.estimate, number)})"
