"""bias_loop: what does a recommender that learns from its own feedback do to users and catalogue?

The design is played, then again in the other consumption regimes and, if asked, under other user models; the claims
stated beforehand are judged in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.running import course
from experiments.running.course import Run
from experiments.running.design import Design, spec_from_conf
from simenv import checks
from simenv.conclusions.across import marked
from simenv.conclusions.claims import Claim, judge, seed_differences
from simenv.conclusions.judged import JudgedClaim
from simenv.conclusions.standard import standard_claims
from simenv.conclusions.statistics import variance_split
from simenv.errors import ConfigError
from simenv.metrics.frame import read_metrics

VARIANTS = ((0, 1), (1, 0))  # (fitting seed, luck) beside the main run's (0, 0)


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """What is played and concluded beside the design; conf/config.yaml says what each key means."""

    primary: str | None
    primary_first: bool
    alpha: float
    margins: Mapping[str, float]
    regimes: Sequence[str]
    user_models: Sequence[str]
    robustness_seeds: int
    variance_worlds: int

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.design.make_metrics()]
        for metric in self.margins:
            if metric not in names:
                raise ConfigError(f"margins.{metric}: no such metric; expected one of {', '.join(names)}")
        checks.share("alpha", self.alpha, open_low=True, open_high=True)
        for name in ("robustness_seeds", "variance_worlds"):
            checks.whole(name, getattr(self, name))

    def own_claims(self) -> list[Claim]:
        """What an experiment of this kind claims before what every loop does, judged in one family with it."""
        return []

    @cached_property
    def primary_claim(self) -> Claim | None:
        """The claim declared primary; None where there is none, or where its groups are known only with the data.

        Raises:
            ConfigError: the arms and modes cannot make it.
        """
        import polars as pl

        if self.primary is None or self.primary.startswith("group-gap:"):
            return None
        specs = self.design.make_metrics()
        rows = [(arm, mode, "all", metric.name) for arm, mode in self.design.arms for metric in specs]
        present = pl.DataFrame(rows, schema=["arm", "mode", "group", "metric"], orient="row")
        stated = [*self.own_claims(), *standard_claims(present, specs=specs)]
        found = next((claim for claim in stated if claim.name == self.primary), None)
        if found is None:
            raise ConfigError(f"primary={self.primary}: this run makes no such claim; {_known_claims(stated)}")
        return found

    def designs(self) -> dict[str, Design]:
        """The design, and by sub-folder what is played beside it: the other regimes, the other user models, and the
        primary claim's two arms with other fitting seeds and other luck in the same worlds.
        """
        design, primary = self.design, self.primary_claim
        found = {"": design}
        fewer = min(self.robustness_seeds, design.n_seeds)
        for regime in self.regimes:
            if regime != design.repeat:
                found[f"regimes/{regime}"] = replace(design, repeat=regime, n_seeds=fewer)
        for name in self.user_models:
            tastes = spec_from_conf("tastes", name)
            found[f"user_models/{name}"] = replace(design, tastes=tastes, refit_tastes=True, n_seeds=fewer)
        if self.variance_worlds and primary is not None:
            arms = ((primary.arm, primary.mode), (primary.control_arm or primary.arm, primary.control_mode))
            small = replace(design, arms=arms, n_seeds=min(self.variance_worlds, design.n_seeds))
            found |= {f"variance/fit{fit}-luck{luck}": replace(small, fit=fit, luck=luck) for fit, luck in VARIANTS}
        return found


def play(settings: Settings, run: Run) -> None:
    """The design and its re-runs."""
    course.warn_if_undecidable(settings.design, settings.alpha)
    run.play(settings.designs())


def score(settings: Settings, run: Run) -> list[JudgedClaim]:
    """Judge the claims of the run and of its re-runs, and mark what does not hold everywhere.

    Raises:
        ConfigError: the claim declared primary is none that this run makes.
    """
    regime = settings.design.repeat
    judged = claims_of(run.path, regime, settings, primary_first=settings.primary_first)
    by_regime = {regime: judged}
    by_user_model = {"main": judged}
    for name, design in settings.designs().items():
        kind, _, which = name.partition("/")
        if kind not in ("regimes", "user_models"):
            continue
        found = claims_of(run.path / name, design.repeat, settings, primary_first=False)
        run.claims(found, name)
        (by_regime if kind == "regimes" else by_user_model)[which] = found
    if settings.variance_worlds and settings.primary_claim is not None:
        _write_variance(settings, settings.primary_claim, run)
    return marked(judged, regimes=by_regime, user_models=by_user_model)


def plot(settings: Settings, run: Run) -> None:
    """Nothing of its own: the page draws the figures that every loop has."""


def _write_variance(settings: Settings, primary: Claim, run: Run) -> None:
    """`tables/variance.csv`: where the spread of the primary claim's difference comes from."""
    values: list[float] = []
    worlds: list[int] = []
    models: list[int] = []
    for fit, luck in ((0, 0), *VARIANTS):
        part = run.path if (fit, luck) == (0, 0) else run.path / f"variance/fit{fit}-luck{luck}"
        metrics = read_metrics(part)
        found = seed_differences(metrics, primary)[: settings.variance_worlds]
        values += found.tolist()
        worlds += range(len(found))
        models += [fit] * len(found)
    split = variance_split(values, worlds, models)
    rows = [
        {
            "claim": primary.name,
            "component": name,
            "sd": float(getattr(split, name)) ** 0.5,
            "share": split.shares[name],
            "n_worlds": len(set(worlds)),
            "n_runs": len(values),
        }
        for name in ("world", "model", "luck")
    ]
    run.table("variance", rows)


def claims_of(folder: Path, regime: str, settings: Settings, *, primary_first: bool) -> list[JudgedClaim]:
    """The claims of a played folder: the run's, or that of one of its parts."""
    metrics = read_metrics(folder)
    standard = standard_claims(metrics, margins=settings.margins, specs=settings.design.make_metrics())
    stated = [*settings.own_claims(), *standard]
    primary = settings.primary
    if primary is not None:
        if primary not in {claim.name for claim in stated}:
            raise ConfigError(f"primary={primary}: this run makes no such claim; {_known_claims(stated)}")
        stated = [replace(claim, primary=claim.name == primary) for claim in stated]
    return judge(metrics, stated, regime=regime, alpha=settings.alpha, primary_first=primary_first)


def _known_claims(stated: Sequence[Any]) -> str:
    names = ", ".join(claim.name for claim in stated)
    return f"expected null or one of {names}" if names else "with these arms and modes it makes none"
