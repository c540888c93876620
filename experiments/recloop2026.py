"""recloop2026: do generative recommenders deepen the cocoon? RecLoop's question (arXiv 2606.17707), with controls.

Their setting: users played by a language model, recommenders retrained for fifteen cycles, one seed, no control. Here:
paired seeds, frozen controls, intervals; its three findings are claims. Who plays the users is an option, as in any
loop.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments import bias_loop
from simenv.conclusions.claims import Claim
from simenv.errors import ConfigError
from simenv.metrics.table import BY_NAME

CODES = "code_gini_level1"
INDIVIDUAL = ("ild", "genre_kl")  # diversity within a page; distance of its genres from the user's past


@dataclass(frozen=True, kw_only=True)
class Settings(bias_loop.Settings):
    """Which arms stand for what.

    Attributes:
        sequential: the arm that generative ones are compared with.
        collaborative: generative arm whose codes come from who consumed what.
        semantic: generative arm whose codes come from what items are.
        codes_margin: the largest change of the Gini of codes that counts as none.
    """

    sequential: str
    collaborative: str
    semantic: str
    codes_margin: float

    def __post_init__(self) -> None:
        super().__post_init__()
        played = dict(self.design.arms)
        for name in ("sequential", "collaborative", "semantic"):
            if getattr(self, name) not in played:
                raise ConfigError(f"{name}={getattr(self, name)}: is not played; expected one of {', '.join(played)}")

    def own_claims(self) -> list[Claim]:
        """RecLoop's three findings.

        1. Generative recommenders narrow what a user is shown less than a sequential one. 2. The codes of what they
        show concentrate. 3. Collaborative codes narrow more than semantic ones.
        """
        generative = (self.collaborative, self.semantic)
        rows: list[tuple[str, str, str, str | None, str, str]] = [
            (
                f"recloop-codes:{arm}",
                arm,
                CODES,
                None,
                f"retraining {arm}",
                "the Gini of the first codes of what is shown",
            )
            for arm in generative
        ]
        for kind, arm, control in (
            *(("individual", arm, self.sequential) for arm in generative),
            ("tokens", self.semantic, self.collaborative),
        ):
            for metric in INDIVIDUAL:
                cause, quantity = f"retraining {arm} instead of {control}", f"the change of the {BY_NAME[metric].label}"
                rows.append((f"recloop-{kind}:{arm}", arm, metric, control, cause, quantity))
        collaborative, semantic = self.collaborative, self.semantic
        cause, quantity = f"retraining {collaborative} instead of {semantic}", f"the change of {rows[0][-1]}"
        rows.append((f"recloop-tokens:{collaborative}", collaborative, CODES, semantic, cause, quantity))
        return [
            Claim(
                name=f"{kind}:{metric}:{control or 'frozen'}",
                arm=arm,
                metric=metric,
                cause=f"{cause} on its own feedback",
                quantity=quantity,
                control_arm=control,
                control_mode="loop" if control else "frozen",
                direction="down" if metric == "genre_kl" else "up",
                margin=self.codes_margin if metric == CODES else BY_NAME[metric].margin,
            )
            for kind, arm, metric, control, cause, quantity in rows
        ]


play, score, plot = bias_loop.play, bias_loop.score, bias_loop.plot
