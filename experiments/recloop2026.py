"""recloop2026: do generative recommenders deepen the cocoon? RecLoop's question (arXiv 2606.17707), with controls.

Their setting: users played by a language model, recommenders retrained for fifteen cycles, one seed, no control. Here:
paired seeds, frozen controls, intervals; its three findings are claims. Who plays the users is an option, as in any
loop.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments import bias_loop
from experiments.running.course import Run
from simenv.conclusions.claims import Claim, judge
from simenv.conclusions.judged import JudgedClaim
from simenv.errors import ConfigError
from simenv.metrics.frame import read_metrics
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


play = bias_loop.play
plot = bias_loop.plot


def score(settings: Settings, run: Run) -> list[JudgedClaim]:
    """RecLoop's findings, then what every loop claims."""
    found = judge(read_metrics(run.path), claims(settings), regime=settings.design.repeat, alpha=settings.alpha)
    return [*found, *bias_loop.score(settings, run)]


def claims(settings: Settings) -> list[Claim]:
    """The three findings, a family of their own.

    1. Generative recommenders narrow what a user is shown less than a sequential one. 2. The codes of what they show
    concentrate. 3. Collaborative codes narrow more than semantic ones.
    """
    generative = (settings.collaborative, settings.semantic)
    rows: list[tuple[str, str, str, str | None, str, str]] = [
        (f"recloop-codes:{arm}", arm, CODES, None, f"retraining {arm}", "the Gini of the first codes of what is shown")
        for arm in generative
    ]
    for kind, arm, control in (
        *(("individual", arm, settings.sequential) for arm in generative),
        ("tokens", settings.semantic, settings.collaborative),
    ):
        for metric in INDIVIDUAL:
            cause, quantity = f"retraining {arm} instead of {control}", f"the change of the {BY_NAME[metric].label}"
            rows.append((f"recloop-{kind}:{arm}", arm, metric, control, cause, quantity))
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
            margin=settings.codes_margin if metric == CODES else BY_NAME[metric].margin,
        )
        for kind, arm, metric, control, cause, quantity in rows
    ]
