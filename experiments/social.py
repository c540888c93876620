"""social: does talk damp or feed popularity bias, and do friends become more alike than strangers do?

The same worlds, arms and luck are played by users who hear of friends' clicks (the run directory itself), by the same
users in silence (`talk/silent`), and by users who hear of strangers through the same graph with everybody in another's
place (`talk/strangers`). Claims are paired by seed. How alike friends are is measured against that shuffled graph, so
that what everybody comes to share is no effect of friendship; and against silence, so that homophily, with which the
world begins, is no effect of influence (Aral, Muchnik and Sundararajan 2009, "Distinguishing influence-based contagion
from homophily-driven diffusion"). `tables/social.csv` has the means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from experiments.running import course
from experiments.running.course import Run
from experiments.running.design import Design
from simenv import checks
from simenv.conclusions.claims import Claim, judge
from simenv.conclusions.judged import JudgedClaim
from simenv.errors import ConfigError
from simenv.metrics.frame import read_metrics
from simenv.metrics.table import BY_NAME

if TYPE_CHECKING:
    import polars as pl

    from simenv.datasets.friends import Friends
    from simenv.platform import Platform

SETTINGS: Mapping[str, Mapping[str, Any]] = {"silent": {"word_of_mouth": 0.0}, "strangers": {"heard_from": "strangers"}}
MODES = {"silent": "silence", "strangers": "strangers"}  # as what claims compare with them
CAUSES = {"silent": "hearing of friends' clicks", "strangers": "hearing of friends instead of strangers"}
QUANTITIES = {
    "arp_pct": "the popularity percentile of what {arm} shows",
    "gini": "the Gini of exposure under {arm}",
    "ctr": "the click-through rate under {arm}",
    "friend_taste": "how much more alike friends' tastes are than strangers' under {arm} (cosine)",
    "friend_clicks": "how much more friends' clicks overlap than strangers' under {arm} (Jaccard)",
}
FRIEND_MARGIN = 0.01  # a hundredth of the largest cosine or overlap there is
SHUFFLES = 5  # shuffled graphs a value is held against


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """What is concluded beside the design."""

    alpha: float

    def __post_init__(self) -> None:
        checks.share("alpha", self.alpha, open_low=True, open_high=True)
        agent = self.design.agent
        if not isinstance(agent, Mapping) or not agent.get("word_of_mouth"):
            raise ConfigError(
                "agent.word_of_mouth: is 0 or none; expected users who talk, such as agent=choice with 1.0"
            )
        if any(mode != "loop" for _, mode in self.design.arms):
            raise ConfigError("modes: expected [loop], the only one in which talk is compared with silence")

    def designs(self) -> dict[str, Design]:
        """The design, and the same worlds in silence and among strangers."""
        other = {
            f"talk/{name}": replace(self.design, agent={**self.design.agent, **SETTINGS[name]}) for name in SETTINGS
        }
        return {"": self.design} | other


def play(settings: Settings, run: Run) -> None:
    """All three."""
    course.warn_if_undecidable(settings.design, settings.alpha)
    run.play(settings.designs())


def score(settings: Settings, run: Run) -> list[JudgedClaim]:
    """What talk does to popularity and to the likeness of friends, against silence and against strangers."""
    import polars as pl

    parts = {name: read_metrics(run.path / f"talk/{name}") for name in SETTINGS}
    talking = read_metrics(run.path)
    run.table("social", _means({"talking": talking} | parts))
    controls = [part.with_columns(mode=pl.lit(MODES[name])) for name, part in parts.items()]
    stated = [
        Claim(
            name=f"talk:{arm}:{metric}:{name}",
            arm=arm,
            metric=metric,
            cause=CAUSES[name],
            quantity=words.format(arm=arm),
            control_mode=MODES[name],
            margin=BY_NAME[metric].margin if metric in BY_NAME else FRIEND_MARGIN,
        )
        for arm, _ in settings.design.arms
        for metric, words in QUANTITIES.items()
        for name in SETTINGS
    ]
    return judge(pl.concat([talking, *controls]), stated, regime=settings.design.repeat, alpha=settings.alpha)


def plot(settings: Settings, run: Run) -> None:
    """Nothing of its own: the page draws the figures that every loop has."""


def _means(parts: Mapping[str, pl.DataFrame]) -> list[dict[str, Any]]:
    """A row for each arm, kind of talk and metric: means over seeds of the first and of the last round."""
    import polars as pl

    rows = []
    for talk, frame in parts.items():
        last = frame["round"].max()
        own = frame.filter((pl.col("group") == "all") & pl.col("metric").is_in(list(QUANTITIES)))
        for (arm, metric), cell in own.group_by("arm", "metric", maintain_order=True):
            ends = [cell.filter(pl.col("round") == round_)["value"].mean() for round_ in (0, last)]
            rows.append({"arm": arm, "talk": talk, "metric": metric, "first": ends[0], "last": ends[1]})
    return sorted(rows, key=lambda row: (row["metric"], row["arm"], row["talk"]))


# -- how alike friends are ----------------------------------------------------------------------------------------


def probe(platform: Platform) -> dict[str, float]:
    """How much more alike friends are than pairs of the shuffled graph, as they are now.

    ``friend_taste``: mean cosine of tastes about the mean user. ``friend_clicks``: mean Jaccard of what two users
    clicked since the warm start; 0 before anybody clicked.

    Raises:
        ConfigError: the data set knows no friends.
    """
    friends = platform.dataset.friends
    if friends is None:
        raise ConfigError(f"probe=experiments.social.probe: {platform.dataset.name} knows no friends; expected some")
    population = platform.users.population  # type: ignore[attr-defined]
    centred = population.vectors - population.vectors.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    clicked = population.clicked_bits & ~_bits(platform)
    others = [friends.shuffled(platform.world_seed + shuffle) for shuffle in range(SHUFFLES)]

    def excess(measure: Any, values: NDArray[Any]) -> float:
        return float(measure(values, friends) - np.mean([measure(values, other) for other in others]))

    return {"friend_taste": excess(_cosine, unit), "friend_clicks": excess(_jaccard, clicked)}


def _bits(platform: Platform) -> NDArray[np.uint8]:
    """Packed bits of the warm start, as `Population.clicked_bits`."""
    log = platform.dataset.interactions
    had = np.zeros((log.n_users, log.n_items), np.bool_)
    had[log.users, log.items] = True
    return np.packbits(had, axis=1, bitorder="little")


def _cosine(unit: NDArray[Any], friends: Friends) -> float:
    one, other = friends.ties.T
    return float((unit[one] * unit[other]).sum(axis=1).mean())


def _jaccard(bits: NDArray[np.uint8], friends: Friends) -> float:
    one, other = friends.ties.T
    both = np.bitwise_count(bits[one] & bits[other]).sum(axis=1, dtype=np.int64)
    either = np.bitwise_count(bits[one] | bits[other]).sum(axis=1, dtype=np.int64)
    return float((both / np.maximum(either, 1)).mean())
