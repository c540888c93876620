"""Gates: each lets a healthy log pass and is broken here on purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from experiments.running import gates
from experiments.running.design import Design, spec_from_conf
from experiments.running.gates import (
    byte_identical,
    check_seed,
    constant_lists,
    digest,
    gini_endpoints,
    log_growth,
    one_step_identity,
    oracle_regret,
    random_at_round_zero,
    response_logic,
    same_digests,
    same_first_round,
)
from simenv.candidates import unpack
from simenv.errors import GateError
from simenv.events import Events
from simenv.platform import Platform, Schedule

USERS, ITEMS, K, ROUNDS = 60, 120, 6, 4
PERCENTILE = (np.arange(ITEMS) + 0.5) / ITEMS
UTILITY = np.random.default_rng(0).uniform(0.1, 0.9, (USERS, ITEMS)).astype(np.float32)


def log_of(slates: np.ndarray, *, seed: int = 0, propensity: float = 1.0) -> Events:
    """The events of slates (rounds, users, k), each item at most once a slate; users click about a quarter."""
    k = slates.shape[2]
    round_, user, rank = (axis.ravel() for axis in np.indices(slates.shape))
    item = slates.ravel()
    draw = np.random.default_rng([seed, 1]).random(slates.shape).ravel()
    utility = UTILITY[user, item]
    best = np.sort(UTILITY, axis=1)[:, -k:].mean(axis=1)
    return Events(
        round=round_.astype(np.int32),
        page=np.zeros(len(item), np.int16),
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        rank=rank.astype(np.int16),
        propensity=np.full(len(item), propensity),
        examined=draw < 0.6,
        clicked=draw < 0.25,
        rating=np.where(draw < 0.1, 4.0, np.nan).astype(np.float32),
        true_utility=utility,
        best_utility=best[user].astype(np.float32),
        popularity0_pct=PERCENTILE[item].astype(np.float32),
    )


def random_log(eligible: np.ndarray, seed: int) -> Events:
    rng = np.random.default_rng(seed)
    slates = [[rng.choice(np.flatnonzero(can), K, replace=False) for can in eligible] for _ in range(2)]
    return log_of(np.array(slates))


def oracle_log() -> Events:
    best = np.argsort(-UTILITY, axis=1)[:, :K]
    return log_of(np.tile(best, (ROUNDS, 1, 1)))


def frozen_log() -> Events:
    lists = np.random.default_rng(3).permuted(np.tile(np.arange(ITEMS), (USERS, 1)), axis=1)[:, :K]
    return log_of(np.tile(lists, (ROUNDS, 1, 1)))


def edited(events: Events, row: int, **values: float) -> Events:
    columns = {name: getattr(events, name).copy() for name in values}
    for name, value in values.items():
        columns[name][row] = value
    return replace(events, **columns)


@pytest.fixture
def eligible() -> np.ndarray:
    """Popular items are mostly consumed already, so that the expected percentile is far from .5."""
    return np.random.default_rng(4).random((USERS, ITEMS)) > 0.8 * PERCENTILE


# -- one-step identity


def grown_log(events: Events) -> np.ndarray:
    warm = np.random.default_rng(5).integers(0, ITEMS, 300)
    return np.concatenate([warm, events.item[events.clicked]])


def test_one_step_identity_holds_exactly_on_the_log_itself() -> None:
    events = frozen_log()
    growth = log_growth(PERCENTILE, grown_log(events), 300, events)
    assert growth.size[-1] == 300 + events.clicked.sum()
    assert growth.popularity[-1] == pytest.approx(PERCENTILE[grown_log(events)].mean())
    one_step_identity(growth)


def test_one_step_identity_breaks_on_foreign_lost_and_miscounted_rows() -> None:
    events = frozen_log()
    log = grown_log(events)
    swapped = log.copy()
    swapped[310] = (swapped[310] + 60) % ITEMS
    with pytest.raises(GateError, match=r"'one-step identity': round 0: .*off by"):
        one_step_identity(log_growth(PERCENTILE, swapped, 300, events))
    with pytest.raises(GateError, match=r"off by -1\)"):
        log_growth(PERCENTILE, log[:-1], 300, events)
    growth = log_growth(PERCENTILE, log, 300, events)
    with pytest.raises(GateError, match="round 2"):
        one_step_identity(replace(growth, added=growth.added + np.array([0, 0, 1, 0])))
    nudged = growth.popularity.copy()
    nudged[-1] += 2e-9
    with pytest.raises(GateError, match="tolerance 1e-09"):
        one_step_identity(replace(growth, popularity=nudged))


def test_one_step_identity_passes_a_round_without_clicks() -> None:
    events = frozen_log()
    quiet = replace(events, clicked=events.clicked & (events.round != 1))
    one_step_identity(log_growth(PERCENTILE, grown_log(quiet), 300, quiet))


# -- the random arm


def test_random_arm_passes_in_many_worlds(eligible: np.ndarray) -> None:
    for seed in range(100):
        random_at_round_zero(random_log(eligible, seed), eligible, PERCENTILE)


def test_random_arm_breaks_when_drawn_from_elsewhere(eligible: np.ndarray) -> None:
    everything = np.ones_like(eligible)
    with pytest.raises(GateError, match="are not eligible"):
        random_at_round_zero(random_log(everything, 1), eligible, PERCENTILE)
    with pytest.raises(GateError, match=r"ARP percentile .* standard errors"):
        random_at_round_zero(random_log(eligible, 1), everything, PERCENTILE)


def test_random_arm_breaks_when_it_prefers_popular_items(eligible: np.ndarray) -> None:
    rng = np.random.default_rng(6)
    weights = eligible * (0.3 + PERCENTILE)
    slates = [[rng.choice(ITEMS, K, replace=False, p=row / row.sum()) for row in weights]]
    with pytest.raises(GateError, match=r"ARP percentile .* expected \.?0?\.\d+ \+- 4 x"):
        random_at_round_zero(log_of(np.array(slates)), eligible, PERCENTILE)


def test_random_arm_breaks_when_all_users_share_their_draws() -> None:
    """The right percentile on average, but everyone sees the same few items."""
    everything = np.ones((USERS, ITEMS), np.bool_)
    same = np.array([10, 110, 30, 90, 50, 69])  # percentiles average .5
    with pytest.raises(GateError, match=r"coverage 0\.05000 .*114 items shown to nobody"):
        random_at_round_zero(log_of(np.tile(same, (1, USERS, 1))), everything, PERCENTILE)


def test_large_catalogues_have_the_same_tails(monkeypatch: pytest.MonkeyPatch) -> None:
    chances = np.random.default_rng(0).uniform(0.2, 0.95, 4000)
    exact = gates._count_of(chances)
    monkeypatch.setattr(gates, "_EXACT", 1000)
    quick = gates._count_of(chances)
    assert type(quick) is not type(exact)
    for count in (int(exact.mean() + sigmas * exact.std()) for sigmas in (-4, -2, 0, 1, 4)):
        assert quick.cdf(count) == pytest.approx(float(exact.cdf(count)), rel=0.05)
        assert quick.sf(count) == pytest.approx(float(exact.sf(count)), rel=0.05)
    few = np.full(4000, 0.02)  # near full coverage it is far from normal
    assert type(gates._count_of(few)) is type(exact)


def test_random_arm_breaks_when_coverage_is_too_even() -> None:
    """Dealing the items out like cards covers everything, which chance would not."""
    users = ITEMS // K
    deck = np.random.default_rng(7).permutation(ITEMS).reshape(1, users, K)
    with pytest.raises(GateError, match=r"0 items shown to nobody"):
        random_at_round_zero(log_of(deck), np.ones((users, ITEMS), np.bool_), PERCENTILE)


def test_random_arm_looks_at_the_first_page_of_round_0_only(eligible: np.ndarray) -> None:
    events = random_log(eligible, 2)
    later = replace(events, round=events.round + 1)
    with pytest.raises(GateError, match="no impressions at round 0"):
        random_at_round_zero(later, eligible, PERCENTILE)
    popular = log_of(np.tile(np.arange(ITEMS - K, ITEMS), (1, USERS, 1)))
    page_two = replace(popular, page=np.ones(len(popular), np.int16))
    random_at_round_zero(Events.concat([events, page_two]), eligible, PERCENTILE)


# -- oracle, frozen lists, Gini


def test_oracle_regret() -> None:
    events = oracle_log()
    oracle_regret(events)
    row = 2 * USERS * K + 5 * K + 1  # round 2, user 5, rank 1
    worse = edited(events, row, true_utility=float(events.true_utility[row]) * 0.5)
    with pytest.raises(GateError, match=r"for user 5 in round 2, page 0; expected 0 \+- 0.0001 \(1 of 240"):
        oracle_regret(worse)
    with pytest.raises(GateError, match="'oracle regret': -"):  # better than the best: the best is not the best
        oracle_regret(replace(events, best_utility=events.best_utility * np.float32(0.99)))
    with pytest.raises(GateError, match="1 slates was not measured"):
        oracle_regret(edited(events, 0, best_utility=np.nan))
    with pytest.raises(GateError, match="slates are off"):
        oracle_regret(frozen_log())


def test_constant_lists() -> None:
    events = frozen_log()
    constant_lists(events)
    constant_lists(events.take(np.random.default_rng(8).permutation(len(events))))
    row = 3 * USERS * K + 7 * K + 2
    with pytest.raises(GateError, match=r"user 7, page 0, rank 2: item \d+ in round 2, item \d+ in round 3; .*1 slots"):
        constant_lists(edited(events, row, item=(int(events.item[row]) + 1) % ITEMS))
    shorter = np.delete(np.arange(len(events)), 1 * USERS * K + 4 * K + K - 1)
    with pytest.raises(GateError, match=r"user 4, page 0: 6 items in round 0, 5 in round 1"):
        constant_lists(events.take(shorter))


def gini(counts: np.ndarray) -> float:
    x, n = np.sort(counts), len(counts)
    return float(((2 * np.arange(1, n + 1) - n - 1) * x).sum() / (n * x.sum()))


def test_gini_endpoints() -> None:
    gini_endpoints(gini)
    with pytest.raises(GateError, match=r"'Gini endpoints': 1 for equal exposure .* expected 0"):
        gini_endpoints(lambda counts: 1 - gini(counts))
    with pytest.raises(GateError, match=r"one item's exposure over 1000 items; expected 0\.999"):
        gini_endpoints(lambda counts: gini(counts[counts > 0]))  # zeros left out


def test_the_runs_own_gini_passes() -> None:
    measures = pytest.importorskip("simenv.metrics.formulas")
    gini_endpoints(measures.gini)


# -- the same again


def test_same_first_round_looks_at_bits_of_round_0() -> None:
    loop, frozen = frozen_log(), frozen_log()
    same_first_round(loop, edited(frozen, len(frozen) - 1, item=0))  # a later round may differ
    with pytest.raises(GateError, match=r"column true_utility differs in 1 of 360 impressions, first in row 3"):
        same_first_round(loop, edited(frozen, 3, true_utility=np.nextafter(frozen.true_utility[3], np.float32(1))))
    with pytest.raises(GateError, match=r"359 in frozen; expected as many"):
        same_first_round(loop, frozen.take(slice(1, None)))
    with pytest.raises(GateError, match="column round is int32 in loop, int64 in frozen"):
        same_first_round(loop, replace(frozen, round=frozen.round.astype(np.int64)))


def test_byte_identical_and_digests() -> None:
    events = frozen_log()
    byte_identical(events, frozen_log())
    assert digest(events) == digest(frozen_log())
    changed = edited(events, 9, propensity=0.5)
    assert digest(changed) != digest(events)
    with pytest.raises(
        GateError, match=r"column propensity differs .* row 9 .* 1.0 in the first run, 0.5 in the second"
    ):
        byte_identical(events, changed)
    same_digests({"a": "1"}, {"a": "1"})
    with pytest.raises(GateError, match="2 of 3 results differ, the first b: 2 against 3"):
        same_digests({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"})


# -- every log


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"propensity": 0.0}, "propensity in"),
        ({"propensity": 1.01}, "propensity in"),
        ({"clicked": True, "examined": False}, "clicked implies examined"),
        ({"rating": 3.0, "clicked": False}, "a rating implies a click"),
        ({"popularity0_pct": 1.5}, "percentile in"),
        ({"popularity0_pct": np.nan}, "percentile in"),
    ],
)
def test_response_logic(values: dict[str, float], rule: str) -> None:
    events = frozen_log()
    response_logic(events)
    response_logic(edited(events, 4, propensity=np.nan))
    with pytest.raises(GateError, match=rf"{rule}.*: broken in 1 of {len(events)} impressions, first round 0, page 0"):
        response_logic(edited(events, 4, **values))


def test_a_copy_in_a_slate_is_not_examined() -> None:
    events = frozen_log()
    copy = {"item": int(events.item[0]), "clicked": False, "rating": np.nan}
    response_logic(edited(events, 1, **copy, examined=False))
    with pytest.raises(GateError, match="a copy is not examined"):
        response_logic(edited(events, 1, **copy, examined=True))


def test_check_seed_applies_what_fits_and_names_where(eligible: np.ndarray) -> None:
    events = {
        ("als", "loop"): frozen_log(),
        ("als", "frozen"): frozen_log(),
        ("random", "loop"): random_log(eligible, 3),
        ("oracle", "loop"): oracle_log(),
        ("none", "none"): replace(frozen_log(), propensity=np.full(USERS * K * ROUNDS, np.nan)),
    }

    def check(changed: dict | None = None, repeat: str = "always") -> list[str]:
        return check_seed(
            {**events, **(changed or {})}, seed=3, eligible=eligible, popularity_pct=PERCENTILE, repeat=repeat,
            deterministic={"als"},
        )  # fmt: skip

    assert check() == [
        "als/loop: response logic",
        "als/loop: round 0",
        "als/frozen: response logic",
        "als/frozen: constant lists",
        "random/loop: response logic",
        "random/loop: random arm",
        "oracle/loop: response logic",
        "oracle/loop: oracle regret",
        "none/none: response logic",
    ]
    drifting = {("als", "frozen"): edited(frozen_log(), len(events["als", "frozen"]) - 1, item=1)}
    with pytest.raises(GateError, match=r"^seed 3, als/frozen: gate 'constant lists'"):
        check(drifting)
    assert "als/frozen: constant lists" not in check(drifting, repeat="never")
    with pytest.raises(GateError, match=r"^seed 3, als/loop: gate 'round 0'"):
        check({("als", "loop"): edited(events["als", "loop"], 0, rating=2.0, clicked=True, examined=True)})


@pytest.mark.parametrize("repeat", ["never", "always"])
def test_every_gate_passes_on_a_played_world(repeat: str) -> None:
    """The real loop on a small synthetic world, two pages a session."""
    arms = ("popularity", "itemknn")
    pairs = [(arm, mode) for arm in arms for mode in ("loop", "frozen", "organic")] + [
        ("none", "none"),
        ("random", "loop"),
        ("oracle", "loop"),
    ]
    design = Design(
        dataset=spec_from_conf("dataset", "synthetic"),
        agent=spec_from_conf("agent", "choice"),
        recommenders={arm: spec_from_conf("recommender", arm) for arm in (*arms, "random", "oracle")},
        arms=tuple(pairs),
        n_users=80,
        n_items=150,
        repeat=repeat,
        schedule=Schedule(max_pages=2),
    )
    world = design.make_world(5)
    n_users, n_items = world.dataset.n_users, world.dataset.n_items
    eligible = np.ones((n_users, n_items), np.bool_)
    logs = {}
    for arm, mode in pairs:
        users = design.make_users()
        users.bind(world.dataset, world.tastes, seed=5, repeat=repeat, traits=world.traits)
        bits = users.excluded(np.arange(n_users))
        eligible = eligible if bits is None else ~unpack(bits, n_items)
        recommender = design.make_recommender(arm)
        platform = Platform(world.dataset, users, recommender, seed=5, mode=mode, schedule=design.schedule)
        rounds = []
        for _ in range(4):
            platform.step()
            assert platform.round_events is not None
            rounds.append(platform.round_events)
        logs[arm, mode] = Events.concat(rounds)
        if mode == "loop":
            n_warm = len(world.dataset.interactions)
            items = platform.training_log().items
            one_step_identity(log_growth(world.reference.percentile, items, n_warm, logs[arm, mode]))
    checked = check_seed(
        logs, seed=5, eligible=eligible, popularity_pct=world.reference.percentile, repeat=repeat, deterministic=arms
    )
    assert len(checked) == len(pairs) + 2 + 2 + (2 if repeat == "always" else 0)
    with pytest.raises(GateError, match="'constant lists'"):
        constant_lists(logs["itemknn", "loop"])  # it learned, so its lists moved
