"""bias_loop_llm: do recommenders that ask a language model amplify popularity bias, and whose bias is it?

A loop in which each arm that asks is compared with the recommender whose candidates it orders, and with an arm that
keeps the drawn order in which its prompts show them (`recommender as-shown`): what ordering anyhow would do.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments import bias_loop
from simenv.conclusions.claims import Claim
from simenv.metrics.table import BY_NAME

METRIC = "arp_pct"


@dataclass(frozen=True, kw_only=True)
class Settings(bias_loop.Settings):
    """What arms that ask are compared with, where it is played.

    Attributes:
        base: the arm whose candidates they order.
        shown: the arm that keeps the order in which candidates are shown.
    """

    base: str
    shown: str

    def own_claims(self) -> list[Claim]:
        """Of each arm that asks: the popularity of what it shows in the last round, and what the loop adds to it,
        against the base and against the drawn order.
        """
        played = dict(self.design.arms)
        specs = self.design.used_recommenders()
        asking = [arm for arm in played if "language_model" in specs.get(arm, {}) and arm != self.shown]
        metric = BY_NAME[METRIC]
        return [
            Claim(
                name=f"{name}:{arm}:{METRIC}:{control}",
                arm=arm,
                metric=METRIC,
                cause=f"{arm} instead of {control}",
                quantity=f"{'the change of ' if name == 'llm-loop' else ''}the {metric.label}",
                estimand="amp" if name == "llm-loop" else "level",
                control_arm=control,
                control_mode="loop",
                margin=metric.margin,
            )
            for arm in asking
            for control in (self.base, self.shown)
            if control in played
            for name in ("llm-level", "llm-loop")
        ]


play, score, plot = bias_loop.play, bias_loop.score, bias_loop.plot
