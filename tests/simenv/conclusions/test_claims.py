"""Claims: planted effects are found, A/A runs are not, and every rule of the verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from simenv.conclusions import statistics
from simenv.conclusions.across import flips, marked
from simenv.conclusions.answer import NO_CONTROL, answer
from simenv.conclusions.claims import Claim, judge
from simenv.conclusions.judged import JudgedClaim, Verdict, read_claims, verdict_of, write_claims
from simenv.conclusions.standard import pairs_of_groups, standard_claims
from simenv.conclusions.words import undecidable
from simenv.errors import ConfigError, DataError

METRICS = ("arp_pct", "gini", "tail_share", "coverage", "jaccard", "true_utility", "ctr", "genre_kl")
GROUPS = ("all", "taste=majority", "taste=minority")
PRIMARY = "amplification:als:arp_pct:organic"


def null_world(
    rng: np.random.Generator,
    *,
    n_seeds: int = 8,
    arms: tuple[str, ...] = ("als", "bpr", "itemknn"),
    modes: tuple[str, ...] = ("loop", "frozen", "organic", "exogenous"),
    metrics: tuple[str, ...] = METRICS,
    groups: tuple[str, ...] = GROUPS,
    rounds: int = 3,
) -> pl.DataFrame:
    """Metrics of a run in which arms and modes are exchangeable: a skewed world level, correlated exponential noise."""
    shape = (n_seeds, len(arms), len(modes), rounds, len(groups), len(metrics))
    world = rng.gamma(2.0, 1.0, (n_seeds, 1, 1, 1, 1, len(metrics)))
    shared = rng.exponential(1.0, (n_seeds, len(arms), len(modes), rounds, 1, 1))
    values = 0.5 + 0.05 * world + 0.02 * (shared + rng.exponential(1.0, shape))
    seeds, arm, mode, round_, group, metric = (axis.ravel() for axis in np.indices(shape))
    return pl.DataFrame(
        {
            "seed": seeds + 100,
            "arm": np.array(arms)[arm],
            "mode": np.array(modes)[mode],
            "round": round_,
            "group": np.array(groups)[group],
            "metric": np.array(metrics)[metric],
            "value": values.ravel(),
        }
    )


def planted(table: pl.DataFrame, effect: float, *, arm: str, metric: str, mode: str = "loop") -> pl.DataFrame:
    last = table["round"].max()
    here = (pl.col("arm") == arm) & (pl.col("mode") == mode) & (pl.col("metric") == metric) & (pl.col("round") == last)
    return table.with_columns(pl.when(here).then(pl.col("value") + effect).otherwise(pl.col("value")).alias("value"))


def amp_table(differences: list[float | None], arm: str = "als") -> pl.DataFrame:
    """Two rounds of loop and frozen whose AMP per seed is exactly `differences`."""
    rows = []
    for seed, difference in enumerate(differences):
        for mode, gain in (("loop", difference), ("frozen", 0.0)):
            rows.append((seed, arm, mode, 0, "all", "arp_pct", 0.25))
            rows.append((seed, arm, mode, 1, "all", "arp_pct", None if gain is None else 0.25 + gain))
    return pl.DataFrame(
        rows,
        schema=["seed", "arm", "mode", "round", "group", "metric", "value"],
        orient="row",
        infer_schema_length=None,
    )


AMP = Claim(
    name="amp",
    arm="als",
    metric="arp_pct",
    cause="retraining on its own feedback",
    quantity="the popularity percentile of ALS's slates",
)
RISE = [0.031, 0.047, 0.039, 0.052, 0.028, 0.041, 0.036, 0.046]


def only(records):
    assert len(records) == 1
    return records[0]


def test_estimate_is_the_exact_amp() -> None:
    table = null_world(np.random.default_rng(1))
    record = only(judge(table, [AMP], regime="never"))
    wide = table.filter((pl.col("arm") == "als") & (pl.col("metric") == "arp_pct") & (pl.col("group") == "all"))
    cell = {(s, m, t): v for s, m, t, v in wide.select("seed", "mode", "round", "value").iter_rows()}
    by_hand = [
        (cell[s, "loop", 2] - cell[s, "loop", 0]) - (cell[s, "frozen", 2] - cell[s, "frozen", 0])
        for s in range(100, 108)
    ]
    assert record.estimate == pytest.approx(np.mean(by_hand), abs=1e-15)
    reference = stats.ttest_1samp(by_hand, 0.0).confidence_interval(0.95)
    assert (record.ci_low, record.ci_high) == pytest.approx((reference.low, reference.high))


def test_level_and_group_estimands() -> None:
    table = null_world(np.random.default_rng(2), arms=("als", "oracle"))
    last = table.filter((pl.col("round") == 2) & (pl.col("metric") == "jaccard"))

    def mean(arm: str, mode: str, group: str) -> float:
        return float(
            last.filter((pl.col("arm") == arm) & (pl.col("mode") == mode) & (pl.col("group") == group))["value"].mean()
        )

    level = replace(AMP, metric="jaccard", estimand="level", control_arm="oracle", control_mode="loop")
    gap = replace(level, name="gap", group="taste=minority", versus_group="taste=majority")
    records = judge(table, [level, gap], regime="never")
    assert records[0].estimate == pytest.approx(mean("als", "loop", "all") - mean("oracle", "loop", "all"))
    minority, majority = (
        mean("als", "loop", f"taste={g}") - mean("oracle", "loop", f"taste={g}") for g in ("minority", "majority")
    )
    assert records[1].estimate == pytest.approx(minority - majority)
    assert records[0].control == "oracle/loop"
    assert records[1].control == "oracle/loop, taste=minority - taste=majority"


def test_planted_effect_is_supported_with_its_sentence() -> None:
    record = only(judge(amp_table(RISE), [replace(AMP, primary=True)], regime="never"))
    assert record.test == "supported"
    assert record.p == record.p_adjusted == 2 / 2**8
    assert record.sentence == (
        "Retraining on its own feedback raised the popularity percentile of ALS's slates by .040 "
        "(95 % CI .033 to .047, 8 seeds, adjusted p = .008, regime never)."
    )
    assert (record.verdict, record.seeds_needed) == ("raised", None)


def test_planted_effect_is_supported_among_all_the_claims_and_the_rest_is_not() -> None:
    table = planted(null_world(np.random.default_rng(3)), 0.5, arm="als", metric="arp_pct")
    claims = standard_claims(table, primary=PRIMARY)
    records = {record.name: record for record in judge(table, claims, regime="never")}
    found = {name for name, record in records.items() if record.test == "supported"}
    assert {PRIMARY, "amplification:als:arp_pct:frozen"} <= found
    assert all(name.startswith(("amplification:als:arp_pct", "stability")) for name in found)
    assert records[PRIMARY].primary
    assert records["amplification:als:arp_pct:frozen"].p_adjusted == 2 / 2**8


def test_aa_runs_have_at_most_five_percent_with_any_supported_claim() -> None:
    """100 worlds without any effect, 28 correlated claims each; a run errs if it supports one of them."""
    worlds = 100
    rng = np.random.default_rng(20)
    with_primary = without = 0
    for _ in range(worlds):
        table = null_world(rng, rounds=2, metrics=("arp_pct", "gini", "coverage", "jaccard", "ctr"))
        claims = standard_claims(table, primary=PRIMARY)
        with_primary += any(r.test == "supported" for r in judge(table, claims, regime="never", primary_first=True))
        records = judge(table, claims, regime="never")
        without += any(r.test == "supported" for r in records)
    allowed = stats.binom.ppf(0.995, worlds, 0.05)
    assert with_primary <= allowed
    assert 0 < without <= allowed  # 0 would mean a test without power, not a careful one


def test_unadjusted_tests_would_fail_the_aa_run() -> None:
    """The adjustment is what keeps the rate down: the same worlds, read claim by claim, err far more often."""
    rng = np.random.default_rng(20)
    wrong = 0
    for _ in range(40):
        table = null_world(rng, rounds=2)
        wrong += any(r.p <= 0.05 for r in judge(table, standard_claims(table), regime="never"))
    assert wrong / 40 > 0.3


def test_one_seed_has_null_intervals_and_its_file_is_read_back(tmp_path: Path) -> None:
    table = null_world(np.random.default_rng(4), n_seeds=1)
    records = judge(table, standard_claims(table, primary=PRIMARY), regime="never")
    assert records
    for record in records:
        assert (record.test, record.verdict, record.seeds_needed) == ("inconclusive", "unclear", 6)
        numbers = (record.ci_low, record.ci_high, record.p, record.p_adjusted, record.tost_p, record.mde)
        assert numbers == (None,) * 6
    assert "one seed carries no interval" in records[0].sentence
    write_claims(tmp_path, records)
    assert "NaN" not in (tmp_path / "claims.json").read_text()
    assert read_claims(tmp_path) == records


def test_five_seeds_can_support_nothing_and_say_so() -> None:
    record = only(judge(amp_table(RISE[:5]), [AMP], regime="always"))
    assert record.test == "inconclusive"
    assert record.ci_low > 0
    assert "with 5 seeds no p is below .062, so that no effect can be shown; at least 6 are needed" in record.sentence
    assert (record.verdict, record.seeds_needed) == ("unclear", 6)
    assert only(judge(amp_table(RISE[:6]), [AMP], regime="always")).test == "supported"


def test_equivalence_is_not_supported_and_noise_is_inconclusive() -> None:
    tiny = [0.001, -0.002, 0.0015, -0.0005, 0.002, -0.0015, 0.0005, -0.001]
    equal = only(judge(amp_table(tiny), [replace(AMP, margin=0.01)], regime="never"))
    assert equal.test == "not_supported"
    assert equal.tost_p < 0.05
    assert equal.verdict == "negligible"
    assert "changed the popularity percentile of ALS's slates by less than the margin of .01" in equal.sentence
    noise = only(judge(amp_table([30 * x for x in tiny]), [replace(AMP, margin=0.01)], regime="never"))
    assert noise.test == "inconclusive"
    assert noise.mde == pytest.approx(1.1560354 * np.std([30 * x for x in tiny], ddof=1), rel=1e-6)
    assert noise.verdict == "unclear"
    assert f"about {noise.seeds_needed} seeds would decide" in noise.sentence


def test_the_verdict_reads_the_interval_against_the_margin() -> None:
    """The same supported effect of .040 (.033 to .047): beyond, inside and across the margin."""
    words = {}
    for margin in (0.02, 0.1, 0.035):
        record = only(judge(amp_table(RISE), [replace(AMP, margin=margin)], regime="never"))
        assert record.test == "supported"
        words[record.verdict] = record.sentence
    assert "raised the popularity percentile of ALS's slates by .040, beyond the margin of .02" in words["raised"]
    assert "by less than the margin of .1 (+.040" in words["negligible"]
    assert "that it rose is sure, that it rose by more than the margin is not" in words["unclear"]
    fall = amp_table([-x for x in RISE])
    assert only(judge(fall, [replace(AMP, margin=0.02)], regime="never")).verdict == "lowered"


def test_the_seeds_said_to_decide_do_decide() -> None:
    """Worlds of the size that an unclear claim asks for are decided about as often as its power says."""
    rng = np.random.default_rng(8)
    first = only(judge(amp_table([0.02, -0.018, 0.03, 0.001, -0.01, 0.022, 0.012, -0.006]), [replace(AMP, margin=0.02)],
                       regime="never"))  # fmt: skip
    assert first.verdict == "unclear"
    assert first.seeds_needed is not None
    assert first.estimate is not None
    sd = float(np.std([0.02, -0.018, 0.03, 0.001, -0.01, 0.022, 0.012, -0.006], ddof=1))
    decided = 0
    for _ in range(100):
        values = rng.normal(first.estimate, sd, first.seeds_needed)
        low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        decided += verdict_of(low, high, 0.02) != "unclear"
    assert 60 <= decided <= 95
    assert statistics.seeds_to_detect(0.0, sd) is None
    exact = statistics.seeds_to_detect(0.5 * sd, sd)
    assert exact is not None
    assert statistics.minimum_detectable_effect(sd, exact) <= 0.5 * sd
    assert statistics.minimum_detectable_effect(sd, exact - 1) > 0.5 * sd


def test_what_no_number_of_seeds_says_is_told_before_the_run() -> None:
    assert "smallest p that they can give is .250" in str(undecidable(3))
    assert "One seed" in str(undecidable(1))
    assert undecidable(6) is None
    assert statistics.fewest_seeds(0.001) == 11


def test_directed_claims() -> None:
    fall = amp_table([-x for x in RISE])
    assert only(judge(fall, [replace(AMP, direction="down")], regime="never")).test == "supported"
    against = only(judge(fall, [replace(AMP, direction="up")], regime="never"))
    assert against.test == "not_supported"
    assert "lowered" in against.sentence
    assert "against the claim" in against.sentence


def test_a_directed_claim_that_is_only_equivalent_is_not_called_contrary() -> None:
    """The interval is below 0, but the p is not small enough to say so; the margin decides."""
    dip = [-0.010, -0.012, 0.001, -0.009, -0.011, -0.008]
    record = only(judge(amp_table(dip), [replace(AMP, direction="up", margin=0.05)], regime="never"))
    assert record.ci_high < 0
    assert record.p_adjusted > 0.05
    assert record.test == "not_supported"
    assert "by less than the margin" in record.sentence
    assert "against the claim" not in record.sentence


def test_with_primary_first_an_unsupported_primary_claim_keeps_the_others_open() -> None:
    flat = amp_table([0.01, -0.01, 0.02, -0.02, 0.03, -0.03, 0.01, -0.01], arm="bpr")
    table = pl.concat([amp_table(RISE), flat])
    claims = [replace(AMP, name="first", arm="bpr", primary=True), AMP]
    first, second = judge(table, claims, regime="never", primary_first=True)
    assert second.p == 2 / 2**8
    assert second.p_adjusted == first.p > 0.05
    assert second.test == "inconclusive"
    assert "it would be decided if the claims that are tested before it were supported" in second.sentence
    assert judge(table, claims, regime="never")[1].test == "supported"


def test_missing_seeds_are_counted_not_hidden() -> None:
    seven = only(judge(amp_table([*RISE[:7], None]), [AMP], regime="never"))
    assert (seven.n_seeds, seven.p, seven.test) == (7, 2 / 2**7, "supported")
    assert "7 of 8 seeds have a value" in seven.sentence
    few = only(judge(amp_table([0.001, -0.001, 0.001, None, None, None, None, float("nan")]),
                     [replace(AMP, margin=0.1)], regime="never"))  # fmt: skip
    assert few.tost_p < 0.05
    assert few.test == "inconclusive"
    none = only(judge(amp_table([None] * 8), [AMP], regime="never"))
    assert (none.n_seeds, none.estimate, none.test) == (0, None, "inconclusive")
    assert "No seed has a value" in none.sentence


def test_a_run_of_one_round_cannot_amplify() -> None:
    table = amp_table(RISE).filter(pl.col("round") == 0)
    record = only(judge(table, [replace(AMP, margin=0.1)], regime="never"))
    assert (record.estimate, record.test) == (None, "inconclusive")


def test_a_constant_effect_and_no_effect_at_all() -> None:
    constant = only(judge(amp_table([0.5] * 8), [AMP], regime="never"))
    assert (constant.ci_low, constant.ci_high, constant.test) == (0.5, 0.5, "supported")
    zero = only(judge(amp_table([0.0] * 8), [replace(AMP, margin=0.01)], regime="never"))
    assert (zero.estimate, zero.p, zero.test) == (0.0, 1.0, "not_supported")


def test_stability_claim() -> None:
    rng = np.random.default_rng(5)
    table = null_world(rng, rounds=2)
    for step, arm in enumerate(("als", "bpr", "itemknn")):
        table = planted(table, step * 1.0, arm=arm, metric="arp_pct")
    claim = next(c for c in standard_claims(table) if c.name.startswith("stability"))
    record = only(judge(table, [claim], regime="never"))
    assert (record.estimate, record.p, record.test) == (1.0, 2 / 2**8, "supported")
    assert record.sentence.startswith("Seeds agree on the order of the arms by popularity percentile")
    alone = only(judge(table.filter(pl.col("seed") == pl.col("seed").min()), [claim], regime="never"))
    assert alone.sentence.startswith("Whether seeds agree on the order of the arms by popularity percentile takes two")
    (said,) = answer([alone], None, n_seeds=1)
    assert said == f"{NO_CONTROL} {alone.sentence}"


def test_bad_input_is_one_clear_error() -> None:
    table = amp_table(RISE)
    with pytest.raises(ConfigError, match="no gini of als/loop in group all"):
        judge(table, [replace(AMP, metric="gini")], regime="never")
    with pytest.raises(ConfigError, match="more than once"):
        judge(table, [AMP, AMP], regime="never")
    with pytest.raises(ConfigError, match="all primary"):
        judge(table, [replace(AMP, primary=True), replace(AMP, name="b", primary=True)], regime="never")
    with pytest.raises(DataError, match="occurs more than once"):
        judge(pl.concat([table, table]), [AMP], regime="never")
    with pytest.raises(DataError, match="no column value"):
        judge(table.drop("value"), [AMP], regime="never")
    with pytest.raises(ConfigError, match="has no such claim"):
        standard_claims(table, primary="amplification:als:arp_pct:organic")
    with pytest.raises(ConfigError, match="margin"):
        replace(AMP, margin=0.0)


def test_standard_claims_follow_what_the_run_has() -> None:
    table = null_world(np.random.default_rng(6), arms=("als", "oracle", "random"), n_seeds=2)
    names = [claim.name for claim in standard_claims(table)]
    assert "homogenisation:als:jaccard:oracle" in names
    assert "group-gap:als:arp_pct:organic:taste=minority-taste=majority" in names
    assert not any(":random:" in name or name.split(":")[1] == "oracle" for name in names)
    assert not any("exposure_merit" in name for name in names)
    assert pairs_of_groups(table) == [("taste=minority", "taste=majority")]
    margins = {c.name: c.margin for c in standard_claims(table, margins={"gini": 0.5})}
    assert margins["exposure:als:gini:frozen"] == 0.5


def test_claims_do_not_depend_on_the_order_of_rows() -> None:
    table = null_world(np.random.default_rng(7))
    claims = standard_claims(table, primary=PRIMARY)
    shuffled = table.sample(fraction=1.0, shuffle=True, seed=1)
    assert standard_claims(shuffled, primary=PRIMARY) == claims
    assert judge(shuffled, claims, regime="never") == judge(table, claims, regime="never")


# -- across regimes and user models -------------------------------------------------------------------------------


def decided(verdict: Verdict, estimate: float | None = 0.1) -> JudgedClaim:
    return JudgedClaim(name="amp", test="supported", verdict=verdict, estimate=estimate)


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        (("raised", "raised"), "holds"),
        (("negligible", "negligible"), "holds"),
        (("raised", "lowered"), "flips"),
        (("raised", "negligible"), "flips"),
        (("negligible", "lowered"), "flips"),
        (("raised", "unclear"), "open"),
        (("unclear", "unclear"), "open"),
        (("unclear", "raised", "negligible"), "flips"),
    ],
)
def test_a_verdict_flips_where_two_conditions_decide_differently(verdicts, status) -> None:
    row = only(flips({f"r{i}": [decided(verdict)] for i, verdict in enumerate(verdicts)}))
    assert row.status == status
    assert bool(row.note) == (status != "holds")


def test_a_claim_that_a_regime_lacks_is_open_and_the_note_has_the_sizes() -> None:
    assert only(flips({"never": [decided("raised")], "always": []})).status == "open"
    row = only(flips({"never": [decided("raised")], "always": [decided("lowered", -0.25)]}))
    assert row.note == "the verdict flips: raised (+.100) under never, lowered (-.250) under always"


def test_a_run_that_is_unclear_itself_is_marked_where_its_other_regimes_disagree() -> None:
    ours = [decided("unclear")]
    regimes = {"never": ours, "cooldown": [decided("raised")], "always": [decided("negligible")]}
    marks = only(marked(ours, regimes=regimes, user_models={"main": ours}))
    assert (marks.regime_status, marks.user_model_status, marks.flips) == ("flips", None, True)


# -- the file -----------------------------------------------------------------------------------------------------


def test_claims_of_older_runs_are_read_with_the_verdict_of_their_interval() -> None:
    old = {"name": "amp", "verdict": "supported", "ci_low": 0.02, "ci_high": 0.04, "p_adjusted": 0.01, "margin": 0.01}
    claim = JudgedClaim.from_json(old | {"note": "no such key"})
    assert (claim.test, claim.verdict) == ("supported", "raised")
    assert JudgedClaim.from_json(old | {"p_adjusted": 0.2}).verdict == "unclear"
    assert JudgedClaim.from_json(old | {"margin": 0.05}).verdict == "negligible"
    assert JudgedClaim.from_json(claim.to_json()) == claim
    for damage, words in (
        ({"verdict": "sure"}, "amp has test 'sure'; expected supported"),
        ({"test": "supported", "verdict": "up"}, "amp has verdict 'up'; expected raised"),
        ({"estimate": "much"}, "amp has estimate 'much'; expected a number"),
        ({"name": None}, "each an object with a name"),
    ):
        with pytest.raises(DataError, match=words):
            JudgedClaim.from_json(old | damage)
