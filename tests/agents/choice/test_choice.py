"""ChoiceModel against plain NumPy, and every parameter against its absence."""

from __future__ import annotations

import numpy as np
import pytest

from agents.choice.model import ChoiceModel, RankAcceptance, first_copies
from simenv.candidates import Candidates
from simenv.datasets import Dataset
from simenv.errors import ConfigError
from simenv.randomness import Key, Purpose, uniforms
from simenv.slates import Responses

OFF = dict.fromkeys(("conformity", "novelty", "satiation", "fatigue", "drift", "satiation_gain", "fatigue_gain"), 0.0)


def bound(world: Dataset, *, repeat: str = "never", **options: object) -> ChoiceModel:
    users = ChoiceModel(**options)  # type: ignore[arg-type]
    users.bind(world, world.tastes, seed=11, repeat=repeat)
    return users


def some_slates(world: Dataset, k: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(world.n_items)[:k] for _ in range(world.n_users)]).astype(np.int32)


def respond(world: Dataset, rounds: int = 1, repeat: str = "never", **options: object) -> Responses:
    """Responses of the last of some rounds of fixed slates."""
    users = bound(world, repeat=repeat, **options)
    for round_ in range(rounds):
        responses = users.respond(np.arange(world.n_users), some_slates(world, seed=round_), Key(11, round_))
        users.end_round(round_)
    return responses


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def in_numpy(users: ChoiceModel, slates: np.ndarray, key: Key, **options: float) -> dict[str, np.ndarray]:
    """The choice step written again in array form, position-based and cascade."""
    p, o = (
        users.population,
        {
            "base": 0.0,
            "taste": 1.0,
            "conformity": 1.0,
            "novelty": 0.5,
            "satiation": 0.3,
            "fatigue": 0.5,
            "position_decay": 0.8,
        }
        | options,
    )
    rows = np.arange(len(slates))[:, None]
    filled, safe = slates >= 0, np.maximum(slates, 0)
    head, tail = p.tastes.choice, p.tastes.rating
    affinity = np.einsum("bd,bkd->bk", p.vectors.astype(float), head.item_vectors[safe].astype(float))
    bias = head.user_bias[rows] + head.item_bias[safe]
    utility = np.where(filled, sigmoid(affinity + bias), np.nan)
    genres = p.catalog.genres.astype(float)
    weights = genres / np.maximum(genres.sum(axis=1, keepdims=True), 1)
    sated = np.einsum("bkg,bg->bk", weights[safe], p.satiation)
    total = p.genre_counts.sum(axis=1, keepdims=True)
    familiar = np.einsum("bkg,bg->bk", weights[safe], p.genre_counts) / np.where(total > 0, total, 1)
    logit = (
        o["base"]
        + o["taste"] * affinity
        + bias
        + o["conformity"] * (1 - p.traits.conformity_pct[rows]) * (users._popularity[safe] - 0.5)
        + o["novelty"] * p.traits.diversity_pct[rows] * (0.5 - familiar)
        - o["satiation"] * sated
        - o["fatigue"] * p.fatigue[rows]
    )
    wants = uniforms(key, Purpose.CLICK, rows, safe) < sigmoid(logit)
    first = first_copies(slates)
    look = uniforms(key, Purpose.EXAMINE, rows, safe)
    if users.examination.kind == "position":
        examined = first & (look < np.arange(1, slates.shape[1] + 1) ** -o["position_decay"])
    elif users.examination.kind == "all":
        examined = first
    else:
        examined = np.zeros_like(first)
        for row in range(len(slates)):
            for rank in range(slates.shape[1]):
                if not first[row, rank]:
                    continue
                examined[row, rank] = True
                if look[row, rank] >= (
                    users.examination.continue_click if wants[row, rank] else users.examination.continue_skip
                ):
                    break
    clicked = examined & wants
    u1 = uniforms(key, Purpose.RATING, rows, safe)
    u2 = uniforms(key, Purpose.RATING_SECOND, rows, safe)
    normal = np.sqrt(-2 * np.log(1 - u1)) * np.cos(2 * np.pi * u2)
    latent = (
        np.einsum("bd,bkd->bk", tail.user_vectors.astype(float), tail.item_vectors[safe].astype(float))
        + tail.user_bias[rows]
        + tail.item_bias[safe]
        + p.tastes.rating_noise * normal
    )
    ratings = np.where(clicked, np.floor(np.clip(latent, 1, 5) - 1 + 0.5) + 1, np.nan)
    return {"examined": examined, "clicked": clicked, "ratings": ratings, "utility": utility}


@pytest.mark.parametrize("examination", ["position", "cascade", "all"])
def test_kernel_equals_numpy(world: Dataset, examination: str) -> None:
    users = bound(world, examination=examination)
    everyone = np.arange(world.n_users)
    for round_ in range(4):
        slates = some_slates(world, seed=round_)
        slates[::5, 3] = slates[::5, 1]  # duplicates
        slates[::7, -2:] = -1  # empty slots
        key = Key(11, round_)
        expected = in_numpy(users, slates, key)
        got = users.respond(everyone, slates, key)
        np.testing.assert_array_equal(got.examined, expected["examined"])
        np.testing.assert_array_equal(got.clicked, expected["clicked"])
        np.testing.assert_array_equal(got.ratings, expected["ratings"].astype(np.float32))
        np.testing.assert_allclose(got.utility, expected["utility"], rtol=1e-4)
        seen = users.examination.examined(everyone, slates, got.clicked, key)
        np.testing.assert_array_equal(seen, got.examined)
        activity, mood = users.population.traits.activity_pct, users.population.satisfaction
        np.testing.assert_array_equal(users.exit_rule.leaves(everyone, key, activity, mood), got.exited)
        users.end_round(round_)
    assert got.clicked.any()
    assert 0 < got.exited.sum() < world.n_users


def test_answering_changes_nothing(world: Dataset) -> None:
    users, rows, slates = bound(world), np.arange(world.n_users), some_slates(world)
    before = users.state_dict()
    answered = users.answer(rows, slates, Key(11))
    for name, values in users.state_dict().items():
        np.testing.assert_array_equal(values, before[name])
    lived = users.respond(rows, slates, Key(11))
    np.testing.assert_array_equal(answered.clicked, lived.clicked)
    assert (users.population.satisfaction != before["satisfaction"]).any()


def test_batches_may_be_split_and_reordered(world: Dataset) -> None:
    slates, key = some_slates(world), Key(11, 2)
    whole = bound(world).respond(np.arange(world.n_users), slates, key)
    users = bound(world)
    order = np.random.default_rng(1).permutation(world.n_users)
    parts = [(rows, users.respond(rows, slates[rows], key)) for rows in np.array_split(order, 7)]
    for name in ("examined", "clicked", "ratings", "utility", "exited"):
        for rows, part in parts:
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("base", 2.0),
        ("taste", 0.0),
        ("examination", "all"),
        ("position_decay", 0.0),
        ("conformity", 6.0),
        ("novelty", 6.0),
        ("rating_rate", 0.5),
        ("exit_base", 5.0),
        ("exit_activity", -5.0),
        ("exit_satisfaction", -9.0),
        ("satisfaction_memory", 0.0),
    ],
)
def test_option_has_an_effect_on_one_page(world: Dataset, option: str, value: object) -> None:
    default, changed = respond(world), respond(world, **{option: value})
    different = [
        name
        for name in ("examined", "clicked", "ratings", "exited")
        if not np.array_equal(getattr(default, name), getattr(changed, name), equal_nan=name == "ratings")
    ]
    assert different


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("satiation", 0.0),
        ("satiation_gain", 0.0),
        ("satiation_decay", 0.0),
        ("fatigue", 0.0),
        ("fatigue_gain", 0.0),
        ("fatigue_recovery", 0.0),
        ("drift", 0.0),
        ("drift_skip", 0.2),
    ],
)
def test_option_has_an_effect_over_rounds(world: Dataset, option: str, value: float) -> None:
    strong = {
        "satiation": 3.0,
        "satiation_decay": 0.9,
        "fatigue": 3.0,
        "fatigue_gain": 0.5,
        "fatigue_recovery": 0.9,
        "drift": 0.3,
    }
    default, changed = respond(world, rounds=8, **strong), respond(world, rounds=8, **strong | {option: value})
    assert not np.array_equal(default.clicked, changed.clicked) or not np.array_equal(default.utility, changed.utility)


@pytest.mark.parametrize(("option", "value"), [("continue_click", 0.0), ("continue_skip", 0.2)])
def test_cascade_option_has_an_effect(world: Dataset, option: str, value: float) -> None:
    default = respond(world, examination="cascade", base=1.0)
    changed = respond(world, examination="cascade", base=1.0, **{option: value})
    assert changed.examined.sum() < default.examined.sum()


def test_exit_depends_on_the_page(world: Dataset) -> None:
    users = bound(world, exit_page=3.0)
    everyone, slates = np.arange(world.n_users), some_slates(world)
    early = users.respond(everyone, slates, Key(11, 0, 0)).exited.mean()
    late = users.respond(everyone, slates, Key(11, 0, 5)).exited.mean()
    assert late > early + 0.2


def test_directions(world: Dataset) -> None:
    """Conformists click popular items more, satiation and fatigue lower clicks, higher utility means more clicks."""
    everyone, key = np.arange(world.n_users), Key(11)
    popular = np.argsort(-world.interactions.item_counts(), kind="stable")[:8].astype(np.int32)
    slates = np.tile(popular, (world.n_users, 1))

    def rate(prepare: object = None, **options: float) -> float:
        users = bound(world, examination="all", **OFF | options)
        if callable(prepare):
            prepare(users.population)
        return float(users.respond(everyone, slates, key).clicked.mean())

    assert rate(conformity=4.0) > rate()
    assert rate(lambda p: p.satiation.fill(2.0), satiation=1.0) < rate()
    assert rate(lambda p: p.fatigue.fill(2.0), fatigue=1.0) < rate()
    responses = bound(world, examination="all", **OFF).respond(everyone, some_slates(world), key)
    assert responses.utility[responses.clicked].mean() > 1.5 * responses.utility[~responses.clicked].mean()


def test_click_rate_is_the_utility_when_every_other_term_is_off(world: Dataset) -> None:
    users = bound(world, examination="all", **OFF)
    clicks, expected, variance = 0.0, 0.0, 0.0
    for round_ in range(30):
        r = users.respond(np.arange(world.n_users), some_slates(world, seed=round_), Key(11, round_))
        clicks += r.clicked.sum()
        expected += float(r.utility.sum())
        variance += float((r.utility * (1 - r.utility)).sum())
    assert abs(clicks - expected) < 4 * np.sqrt(variance)


def test_ratings_lie_on_the_scale_and_only_on_clicks(world: Dataset) -> None:
    r = respond(world, base=2.0)
    given = r.ratings[~np.isnan(r.ratings)]
    assert set(given.tolist()) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert len(set(given.tolist())) >= 4
    np.testing.assert_array_equal(~np.isnan(r.ratings), r.clicked)
    assert not (r.clicked & ~r.examined).any()


def test_duplicates_only_the_first_copy_counts(world: Dataset) -> None:
    slates = np.tile(np.int32([4, 4, 9, 4]), (world.n_users, 1))
    r = bound(world, examination="all", base=50.0).respond(np.arange(world.n_users), slates, Key(11))
    np.testing.assert_array_equal(r.clicked, np.tile([True, False, True, False], (world.n_users, 1)))
    assert not np.isnan(r.utility).any()


def test_best_utility_and_utility_agree(world: Dataset) -> None:
    users = bound(world)
    everyone = np.arange(world.n_users)
    exclude = users.excluded(everyone)
    seen = np.unpackbits(exclude, axis=1, count=world.n_items, bitorder="little").astype(bool)
    utility = np.where(seen, -1, users.utility(everyone))
    expected = np.sort(utility, axis=1)[:, ::-1][:, :10].mean(axis=1)
    np.testing.assert_allclose(
        users.best_utility(everyone, 10, Candidates.of(world.n_items, out=exclude)), expected, rtol=1e-5
    )


def test_unaided_slates_follow_plackett_luce(world: Dataset) -> None:
    users = bound(world)
    head = world.tastes.choice
    weights = np.exp(head.scores(np.array([5]))[0]) * (users.population.click_counts + 0.5) ** 0.5
    n = 20_000
    first = np.array([users.unaided_slates(np.array([5]), 3, Key(s))[0] for s in range(n)])
    counts = np.bincount(first[:, 0], minlength=world.n_items)
    p = weights / weights.sum()
    assert np.abs(counts / n - p).max() < 5 * np.sqrt(p.max() / n)
    assert all(len(set(row)) == 3 for row in first[:200].tolist())
    uniform = np.array(
        [users.unaided_slates(np.array([5]), 1, Key(s), awareness=0.0, taste=0.0)[0, 0] for s in range(n)]
    )
    assert np.abs(np.bincount(uniform, minlength=world.n_items) * world.n_items / n - 1).max() < 0.5


def test_bad_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"agent\.examination=sometimes: expected one of position, cascade, all"):
        ChoiceModel(examination="sometimes")
    with pytest.raises(ConfigError, match=r"agent\.rating_rate=1\.5"):
        ChoiceModel(rating_rate=1.5)
    with pytest.raises(ConfigError, match=r"agent\.drift=-1"):
        ChoiceModel(drift=-1)
    with pytest.raises(ConfigError, match=r"agent\.memory_size=0"):
        ChoiceModel(memory_size=0)


def test_rank_acceptance_accepts_one_item_by_rank(world: Dataset) -> None:
    users = RankAcceptance(decay=0.1)
    users.bind(world, world.tastes, seed=1)
    everyone = np.arange(world.n_users)
    slates = some_slates(world, k=10)
    slates[0, 4:] = -1
    counts = np.zeros(10)
    n = 400
    for round_ in range(n):
        r = users.respond(everyone, slates, Key(1, round_))
        assert (r.clicked.sum(axis=1) == 1).all()
        assert not r.clicked[slates < 0].any()
        counts += r.clicked[1:].sum(axis=0)
    expected = np.exp(-0.1 * np.arange(10))
    expected /= expected.sum()
    total = n * (world.n_users - 1)
    assert np.abs(counts / total - expected).max() < 4 * np.sqrt(0.15 / total)


def test_rank_acceptance_ignores_taste_and_decay_has_an_effect(world: Dataset) -> None:
    everyone, slates = np.arange(world.n_users), some_slates(world, k=10)

    def ranks(decay: float) -> float:
        users = RankAcceptance(decay=decay)
        users.bind(world, world.tastes, seed=1)
        return float(
            np.mean([users.respond(everyone, slates, Key(1, r)).clicked.argmax(axis=1).mean() for r in range(50)])
        )

    assert ranks(1.0) < ranks(0.1) < ranks(0.0)
