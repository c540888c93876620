"""The claims every bias-loop run makes, stated before its numbers are looked at.

Which claims there are depends on the arms, modes, groups and metrics in the table, never on a value. The module does
not know how a claim is judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from simenv.conclusions.claims import Claim
from simenv.errors import ConfigError
from simenv.metrics.frame import CONTROLS, primary_control
from simenv.metrics.table import BY_NAME, METRICS, MetricSpec

if TYPE_CHECKING:
    import polars as pl

Present = set[tuple[str, str, str, str]]  # (arm, mode, group, metric)

ARM_LABELS = {
    "als": "ALS", "bpr": "BPR", "mf": "MF", "ease": "EASE", "itemknn": "ItemKNN", "seqknn": "SeqKNN",
    "sasrec": "SASRec", "bert4rec": "BERT4Rec", "gru4rec": "GRU4Rec", "p5": "P5", "p5-fast": "P5-fast",
    "popularity": "Popularity", "content": "Content",
}  # fmt: skip

CAUSES = {
    "frozen": "retraining on its own feedback",
    "organic": "retraining on its own feedback instead of its users' unaided choices",
    "exogenous": "retraining on its own feedback instead of responses to random slates",
}

KINDS = ("amplification", "exposure", "homogenisation", "users", "calibration")  # the order of an arm's claims
REFERENCE_ARMS = ("random", "oracle", "none")


def standard_claims(
    metrics: pl.DataFrame,
    *,
    primary: str | None = None,
    margins: Mapping[str, float] | None = None,
    group_pairs: Iterable[tuple[str, str]] | None = None,
    specs: Sequence[MetricSpec] = METRICS,
) -> list[Claim]:
    """The automatic claims, for every arm, mode and metric this run has.

    1. `amplification`: popularity percentile, and log lift because the percentile saturates, loop against organic and
       frozen.
    2. `exposure`: Gini, tail share and coverage against frozen and exogenous.
    3. `homogenisation`: Jaccard against frozen, and its level against the oracle's.
    4. `group-gap`: amplification of the percentile in one group minus that in another.
    5. `users`: true utility and click-through rate against frozen.
    6. `merit`: exposure-quality correlation against the oracle's.
    7. `calibration`: genre divergence against frozen.
    8. `stability`: agreement of seeds on the order of the arms by popularity percentile.

    Names read `claim:arm:metric:control`, e.g. `amplification:als:arp_pct:organic`. They depend on which arms, modes,
    groups and metrics the table has, never on its values.

    Args:
        metrics: the tidy table.
        primary: name of the claim declared primary before the run.
        margins: metric -> the largest effect that counts as none, over that of its record.
        group_pairs: groups to compare, e.g. ("taste=minority", "taste=majority"); by default `pairs_of_groups`.
        specs: the records of the run's metrics; each says which claims are made about it. One that simenv does not have
            makes its claims under its own `kind`, after the others of an arm.

    Raises:
        ConfigError: if `primary` is none of the claims.
    """
    table: Present = set(metrics.select("arm", "mode", "group", "metric").unique().iter_rows())
    arms = sorted({arm for arm, mode, _, _ in table if mode == "loop" and arm not in REFERENCE_ARMS})
    pairs = list(pairs_of_groups(metrics) if group_pairs is None else group_pairs)
    claims = list(chain.from_iterable(_about_arm(table, arm, pairs, specs) for arm in arms)) + _about_seeds(table, arms)
    margins = {spec.name: spec.margin for spec in specs if spec.margin is not None} | dict(margins or {})
    claims = [
        replace(claim, primary=claim.name == primary, margin=None if claim.arms else margins.get(claim.metric))
        for claim in claims
    ]
    if primary is not None and not any(claim.primary for claim in claims):
        known = ", ".join(claim.name for claim in claims) or "none"
        raise ConfigError(f"primary claim '{primary}': this run has no such claim; expected one of {known}")
    return claims


def pairs_of_groups(metrics: pl.DataFrame) -> list[tuple[str, str]]:
    """Pairs of groups to compare: of each attribute (`gender=F`), every level against the alphabetically first."""
    levels: dict[str, list[str]] = {}
    for group in sorted(metrics["group"].unique().to_list()):
        if "=" in group:
            levels.setdefault(group.split("=", 1)[0], []).append(group)
    return [(other, groups[0]) for groups in levels.values() for other in groups[1:]]


def _about_arm(table: Present, arm: str, pairs: Sequence[tuple[str, str]], specs: Sequence[MetricSpec]) -> list[Claim]:
    """Claims 1 to 7 about one arm, and those about metrics of the user's own."""
    kinds = dict.fromkeys((*KINDS, *(spec.kind for spec in specs if spec.kind is not None)))
    claims = [
        _amp(arm, spec, mode)
        for kind in kinds
        for spec in specs
        if spec.kind == kind
        for mode in spec.controls
        if {(arm, "loop", "all", spec.name), (arm, mode, "all", spec.name)} <= table
    ]
    claims += [
        _against_oracle(arm, spec)
        for spec in specs
        if spec.oracle_kind is not None
        and {(arm, "loop", "all", spec.name), ("oracle", "loop", "all", spec.name)} <= table
    ]
    control = primary_control(mode for mode in CONTROLS if (arm, mode, "all", "arp_pct") in table)
    if control is not None:
        claims += [
            _group_gap(arm, control, group, versus)
            for group, versus in pairs
            if {(arm, mode, g, "arp_pct") for mode in ("loop", control) for g in (group, versus)} <= table
        ]
    return claims


def _quantity(arm: str, spec: MetricSpec) -> str:
    label = ARM_LABELS.get(arm, arm)
    words = spec.quantity or f"the {spec.label or spec.name} under {{arm}}"
    return words.format(arm=label, slates=f"{label}'s slates")


def _amp(arm: str, spec: MetricSpec, mode: str) -> Claim:
    return Claim(
        name=f"{spec.kind}:{arm}:{spec.name}:{mode}",
        arm=arm,
        metric=spec.name,
        cause=CAUSES[mode],
        quantity=_quantity(arm, spec),
        control_mode=mode,
    )


def _against_oracle(arm: str, spec: MetricSpec) -> Claim:
    return Claim(
        name=f"{spec.oracle_kind}:{arm}:{spec.name}:oracle",
        arm=arm,
        metric=spec.name,
        cause=f"being served by {ARM_LABELS.get(arm, arm)} instead of the oracle",
        quantity=spec.oracle_quantity or f"the {spec.label or spec.name}",
        estimand="level",
        control_arm="oracle",
        control_mode="loop",
    )


def _group_gap(arm: str, control: str, group: str, versus: str) -> Claim:
    return Claim(
        name=f"group-gap:{arm}:arp_pct:{control}:{group}-{versus}",
        arm=arm,
        metric="arp_pct",
        cause=f"belonging to {group} rather than {versus}",
        quantity=f"the amplification (against {control}) of {_quantity(arm, BY_NAME['arp_pct'])}",
        control_mode=control,
        group=group,
        versus_group=versus,
    )


def _about_seeds(table: Present, arms: Sequence[str]) -> list[Claim]:
    """Claim 8."""
    ranked = tuple(arm for arm in arms if (arm, "loop", "all", "arp_pct") in table)
    if len(ranked) < 3:  # the order of two arms is what the other claims are about
        return []
    return [
        Claim(
            name="stability:all:arp_pct",
            arm="all",
            metric="arp_pct",
            cause="",
            quantity="popularity percentile",
            estimand="stability",
            arms=ranked,
        )
    ]
