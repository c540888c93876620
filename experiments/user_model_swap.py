"""user_model_swap: does the user model make the result? The same arms, worlds and seeds under other kinds of users.

The run directory is that of a bias_loop with embedded users; every other kind is played beside it, in
`user_models/<kind>`, and all claims are judged under each. `tables/user_model_swap.csv` has every claim under every
kind, `tables/user_model_cost.csv` what a thousand sessions of each took.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from experiments import bias_loop
from experiments.running.course import Run
from experiments.running.design import Design, spec_from_conf
from experiments.users.distill import Source, distil, write_agent
from simenv.conclusions.across import flips
from simenv.conclusions.judged import JudgedClaim, read_claims
from simenv.errors import ConfigError
from simenv.events import read_events

EMBEDDED, DISTILLED, USER_LM, MIXED = "embedded", "distilled", "user-lm", "mixed"


@dataclass(frozen=True, kw_only=True)
class Settings(bias_loop.Settings):
    """Which kinds of users play.

    Attributes:
        kinds: beside the embedded users.
        swap: by kind, its agent and the language model that it asks.
        distilled_from: the kind whose log the distilled users are fitted to.
    """

    kinds: Sequence[str]
    swap: Mapping[str, Any]
    distilled_from: str

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [DISTILLED, *self.swap]
        for kind in self.kinds:
            if kind not in known:
                raise ConfigError(f"kinds: '{kind}'; expected some of {', '.join(known)}")
        if USER_LM in self.kinds and self.swap[USER_LM]["llm"]["path"] is None:
            raise ConfigError(
                "kinds: 'user-lm' needs swap.user-lm.llm.path, the model/ of a run of +experiment=train_user_lm; "
                "without one leave it out of kinds"
            )
        if DISTILLED in self.kinds and self.distilled_from not in set(self.kinds) - {DISTILLED, MIXED}:
            raise ConfigError(f"distilled_from={self.distilled_from}: expected one of kinds, but distilled and mixed")

    def designs(self) -> dict[str, Design]:
        """Those of the loop, and of every kind but the distilled users, who are not known yet."""
        played = {_part(kind): _as_played_by(self.design, kind, self.swap[kind]) for kind in self._asking()}
        return super().designs() | played

    def _asking(self) -> list[str]:
        return [kind for kind in self.kinds if kind != DISTILLED]


def play(settings: Settings, run: Run) -> None:
    """The embedded users and the kinds that ask; then, from what one of these left, the distilled ones."""
    designs = settings.designs()
    run.play(designs)
    if DISTILLED in settings.kinds:
        part = _part(settings.distilled_from)
        run.play({_part(DISTILLED): replace(settings.design, agent=distilled(designs[part], part, run))})


def score(settings: Settings, run: Run) -> list[JudgedClaim]:
    """The claims under every kind of users, and what depends on who plays them."""
    claims = {EMBEDDED: bias_loop.score(settings, run)}
    for kind in settings.kinds:
        if kind == DISTILLED:
            found = bias_loop.claims_of(run.path / _part(kind), settings.design.repeat, settings, primary_first=False)
            run.claims(found, _part(kind))
        claims[kind] = read_claims(run.path / _part(kind))
    run.table("user_model_swap", compared(claims), dict.fromkeys(("estimate", "ci_low", "ci_high"), "Float64"))
    parts = {EMBEDDED: run.path} | {kind: run.path / _part(kind) for kind in settings.kinds}
    run.table("user_model_cost", [cost(kind, path) for kind, path in parts.items()])
    return depending(claims)


def plot(settings: Settings, run: Run) -> None:
    """Nothing of its own: the page draws the figures that every loop has, other users among them."""


def _as_played_by(design: Design, kind: str, given: Mapping[str, Any]) -> Design:
    """The design with the users of a kind, who ask the language model of the kind."""

    def asking(agent: Any) -> Any:
        if not isinstance(agent, Mapping):
            return agent
        own = {name: asking(value) for name, value in agent.items()}
        return own | {"language_model": given["llm"]} if "language_model" in own else own

    return replace(design, agent=asking(given["agent"]), probe="agents.mixed.probe" if kind == MIXED else design.probe)


def _part(kind: str) -> str:
    return f"user_models/{kind}"


def distilled(design: Design, part: str, run: Run) -> dict[str, Any]:
    """The embedded users fitted to the log that users of a kind left in the first job; also as `agent/distilled.yaml`.

    Args:
        design: as it was played by them.
        part: of the run directory, where they played.
        run: the whole run.
    """
    source = Source(folder=run.path / part, design=design, job=design.jobs()[0])
    parameters, _, _, spec = distil(source, spec_from_conf("agent", "choice"), heldout=0.2)
    run.table("distilled", parameters)
    write_agent(run.path / "agent" / "distilled.yaml", spec)
    return spec


def compared(claims: Mapping[str, Sequence[JudgedClaim]]) -> list[dict[str, Any]]:
    """A row per claim and kind of users: estimate, interval, verdict; whether it agrees with the embedded users' one.

    `sign` is that of the estimate; `same_sign`, and `overlap` of the 95 % intervals, are against the embedded users'.
    They are empty where there is no estimate or interval.
    """
    rows = []
    for base in claims[EMBEDDED]:
        for kind, found in claims.items():
            for claim in (each for each in found if each.name == base.name):
                signs = [_sign(each.estimate) for each in (claim, base)]
                rows.append(
                    {
                        "claim": base.name,
                        "users": kind,
                        "estimate": claim.estimate,
                        "ci_low": claim.ci_low,
                        "ci_high": claim.ci_high,
                        "n_seeds": claim.n_seeds,
                        "verdict": claim.verdict,
                        "test": claim.test,
                        "sign": signs[0],
                        "same_sign": None if None in signs else signs[0] == signs[1],
                        "overlap": _overlap(claim, base),
                    }
                )
    return rows


def depending(claims: Mapping[str, Sequence[JudgedClaim]]) -> list[JudgedClaim]:
    """The embedded users' claims, each with its fate under the other kinds, and a sentence where it depends on them.

    It depends where two kinds decide differently (`simenv.conclusions.across`), or where two of their 95 % intervals do
    not overlap. What is unclear under one kind disagrees with nothing.
    """
    out = []
    for claim, fate in zip(claims[EMBEDDED], flips(claims), strict=False):
        held = {kind: each for kind, found in claims.items() for each in found if each.name == claim.name}
        apart = [(a, b) for a, b in combinations(held, 2) if _overlap(held[a], held[b]) is False]
        note = fate.note if fate.status == "flips" else ""
        if apart:
            words = " and ".join(f"{_interval(held[kind])} under {kind} users" for kind in apart[0])
            note = "; ".join(filter(None, [note, f"the size depends on who plays the users: {words}"]))
        out.append(replace(claim, user_model_status=fate.status, user_model_note=note))
    return out


def cost(kind: str, path: Path) -> dict[str, Any]:
    """What a thousand sessions, visits of one user in one round, of a played part took, fits and twins included."""
    card = json.loads((path / "run_card.json").read_text(encoding="utf-8"))
    sessions = 0
    for seed in card["seeds"]:
        for arm, mode in (name.rsplit(":", 1) for name in card["arms"]):
            events = read_events(path, seed=seed, arm=arm, mode=mode)
            sessions += len(set(zip(events.user.tolist(), events.round.tolist(), strict=True)))
    asked = card.get("llm", {})
    spent = {
        "calls": asked.get("calls", 0),
        "tokens": asked.get("prompt_tokens", 0) + asked.get("completion_tokens", 0),
        "seconds": sum(card["job_seconds"].values()),
        "dollars": asked.get("dollars", 0.0),
    }
    return {"users": kind, "model": asked.get("model", ""), "sessions": sessions} | {
        f"{name}_per_1000_sessions": round(1000 * value / max(sessions, 1), 3) for name, value in spent.items()
    }


def _sign(value: float | None) -> str | None:
    return None if value is None else "+" if value > 0 else "-" if value < 0 else "0"


def _overlap(one: JudgedClaim, other: JudgedClaim) -> bool | None:
    if one.ci_low is None or one.ci_high is None or other.ci_low is None or other.ci_high is None:
        return None
    return one.ci_low <= other.ci_high and other.ci_low <= one.ci_high


def _interval(claim: JudgedClaim) -> str:
    return f"{claim.estimate:+.3f} ({claim.ci_low:+.3f} to {claim.ci_high:+.3f})"
