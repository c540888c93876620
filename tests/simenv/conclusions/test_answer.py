"""The answer by rule: which claims it is made from, how sizes are told, and the grid of arms against metrics."""

from __future__ import annotations

import polars as pl

from simenv.conclusions.answer import answer, grid
from simenv.conclusions.judged import JudgedClaim, Verdict
from simenv.metrics.frame import schema


def claim(metric: str, arm: str, mode: str, verdict: Verdict, estimate: float, **more: object) -> JudgedClaim:
    values = {
        "name": f"kind:{arm}:{metric}:{mode}",
        "arm": arm,
        "metric": metric,
        "control": f"{arm}/{mode}",
        "estimate": estimate,
        "margin": 0.01,
        "test": "supported",
        "verdict": verdict,
    }
    return JudgedClaim(**values | more)


def levels(**last: float) -> pl.DataFrame:
    rows = [
        (seed, arm, "loop", t, "all", "arp_pct", value)
        for seed in (0, 1)
        for arm, value in last.items()
        for t in (0, 1)
    ]
    return pl.DataFrame(rows, schema=schema(), orient="row")


CLAIMS = [
    claim("arp_pct", "als", "frozen", "negligible", 0.003),
    claim("arp_pct", "als", "organic", "raised", 0.05, primary=True),
    claim("arp_pct", "bpr", "organic", "lowered", -0.02),
    claim("arp_pct", "mf", "organic", "unclear", 0.01),
    claim("true_utility", "als", "frozen", "negligible", 0.001, name="users:als:true_utility:frozen"),
    claim("arp_pct", "als", "organic, taste=b - taste=a", "raised", 0.03, name="group-gap:als"),
]


def test_each_metric_stands_against_its_most_telling_control_and_groups_come_last() -> None:
    columns, rows = grid(CLAIMS)
    assert [(c.metric, c.control, c.groups) for c in columns] == [
        ("arp_pct", "organic", ""),
        ("true_utility", "frozen", ""),
        ("arp_pct", "organic", "taste=b - taste=a"),
    ]
    assert columns[2].gap == "taste b − a"
    assert list(rows) == ["als", "bpr", "mf"]
    assert rows["als"] == [CLAIMS[1], CLAIMS[4], CLAIMS[5]]
    assert rows["mf"] == [CLAIMS[3], None, None]


def test_the_answer_tells_what_happened_for_whom_and_how_sure() -> None:
    told = answer(CLAIMS, levels(als=0.93, bpr=0.41, mf=0.5), n_seeds=8)
    assert told == [
        "Compared with learning from what users choose unaided, the popularity percentile was raised for ALS (93rd "
        "percentile instead of the 88th) and lowered for BPR (41st percentile instead of the 43rd); for MF whether it "
        "changed is unclear.",
        "Compared with never learning anew, for ALS the utility of what was shown changed too little to count.",
        "Groups differ in what was added to the popularity percentile: taste b more than taste a under ALS (by .030).",
        "8 seeds decide 5 of 6 claims (95 % intervals, tests adjusted for all claims together).",
    ]


def test_without_levels_differences_are_told_and_without_seeds_nothing_is_sure() -> None:
    told = answer(CLAIMS[:3], None, n_seeds=3)
    assert "raised for ALS (+.050) and lowered for BPR (-.020)." in told[0]
    assert told[-1].startswith("3 seeds cannot show an effect")


def test_claims_about_no_metric_are_told_as_they_stand() -> None:
    about = JudgedClaim(
        name="verdict: valid", sentence="It is valid.", test="supported", verdict="unclear", primary=True
    )
    assert grid([about]) == ([], {})
    others = [
        JudgedClaim(name=f"verdict: {i}", sentence=f"{i}.", test="supported", verdict="unclear") for i in range(4)
    ]
    assert answer([*others, about], None, n_seeds=0) == ["It is valid.", "0.", "1."]
    assert answer([], None, n_seeds=8) == []
