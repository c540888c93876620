"""Mixed populations: who is answered by whom, one population for both, and an audit that is right on average."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from agents.choice.model import ChoiceModel, RankAcceptance
from agents.llm.user import LLMUser
from agents.mixed import MixedUsers, corrected_ratio, probe, stratified
from recommenders.popularity import Popularity
from simenv.datasets import synthetic
from simenv.errors import ConfigError
from simenv.language_models import openai
from simenv.language_models.fake_server import LLMServer
from simenv.platform import Platform, Schedule
from simenv.randomness import Key

WORLD = synthetic(n_users=200, n_items=150, seed=4)
EVERYONE = np.arange(WORLD.n_users)
rng = np.random.default_rng(0)
SLATES = np.stack([rng.permutation(WORLD.n_items)[:8] for _ in EVERYONE]).astype(np.int32)


def bound(model, world=WORLD):
    model.bind(world, world.tastes, seed=6)
    return model


def mixed(**options):
    return bound(MixedUsers(ChoiceModel(base=1.0), ChoiceModel(), **({"share": 0.2} | options)))


def play(model, rounds=range(3), pages=2):
    happened = []
    for round in rounds:
        for page in range(pages):
            answered = model.respond(EVERYONE, SLATES, Key(6, round, page))
            happened += [answered.clicked, answered.ratings, answered.exited, answered.examined, answered.utility]
        model.end_round(round)
    return happened


def test_two_copies_of_one_model_are_that_model():
    """Same rule on both sides: the mixture must be the plain model to the bit, state and passing of time included."""
    both, plain = bound(MixedUsers(ChoiceModel(), ChoiceModel(), share=0.3)), bound(ChoiceModel())
    for one, other in zip(play(both), play(plain), strict=True):
        np.testing.assert_array_equal(one, other)
    for name, values in plain.population.state_dict().items():
        np.testing.assert_array_equal(both.population.state_dict()[name], values)
    found = both.corrected["ctr"]
    assert found.estimate == pytest.approx(found.others)
    assert found.se == 0.0


def test_the_sample_is_answered_by_its_model_and_nobody_else():
    model = mixed()
    answered = model.respond(EVERYONE, SLATES, Key(6))
    keen, plain = bound(ChoiceModel(base=1.0)), bound(ChoiceModel())
    expected = np.where(
        model.sampled[:, None],
        keen.respond(EVERYONE, SLATES, Key(6)).clicked,
        plain.respond(EVERYONE, SLATES, Key(6)).clicked,
    )
    np.testing.assert_array_equal(answered.clicked, expected)
    assert expected[model.sampled].mean() > expected[~model.sampled].mean()


def test_the_order_and_split_of_batches_do_not_matter():
    whole = mixed().respond(EVERYONE, SLATES, Key(6))
    model, order = mixed(), np.random.default_rng(1).permutation(WORLD.n_users)
    for part in (order[:70], order[70:]):
        answered = model.respond(part, SLATES[part], Key(6))
        np.testing.assert_array_equal(answered.clicked, whole.clicked[part])
        np.testing.assert_array_equal(answered.ratings, whole.ratings[part])


def test_resumed_and_twin_go_on_as_the_original():
    model, resumed = mixed(), mixed()
    play(model, range(2))
    resumed.load_state_dict(model.state_dict())
    twin = model.twin()
    before = model.population.state_dict()
    rest = [play(each, range(2, 4)) for each in (twin, resumed)]
    for name, values in before.items():  # the twin went its own way
        np.testing.assert_array_equal(model.population.state_dict()[name], values)
    rest.append(play(model, range(2, 4)))
    for other in rest[1:]:
        for one, two in zip(rest[0], other, strict=True):
            np.testing.assert_array_equal(one, two)
    assert model.corrected == resumed.corrected == twin.corrected


def test_forgetting_puts_users_back():
    model = mixed()
    start = model.state_dict()
    play(model, range(1))
    model.forget(EVERYONE[:50], start)
    now = model.population.state_dict()
    np.testing.assert_array_equal(now["memory_count"][:50], start["sample.memory_count"][:50])
    assert (now["memory_count"][50:] > start["sample.memory_count"][50:]).any()


def test_every_stratum_is_sampled():
    stratum = np.repeat([0, 1, 2, 3], [100, 50, 5, 1])
    sampled = stratified(stratum, 0.1, np.random.default_rng(0).random(156))
    assert np.bincount(stratum[sampled]).tolist() == [10, 5, 2, 1]
    model = mixed(share=0.1, strata=("activity_tier", "conformity_tier"))
    assert (np.bincount(model.stratum[model.sampled]) >= np.minimum(2, np.bincount(model.stratum))).all()


def test_corrected_by_hand():
    """One stratum of four: the sampled two give 3 of 8 and 1 of 8 where the others' model gives 2 and 1."""
    top, other = np.array([3.0, 1, 0, 0]), np.array([2.0, 1, 4, 1])
    bottom = np.full(4, 8.0)
    sampled = np.array([True, True, False, False])
    found = corrected_ratio(top, bottom, other, bottom, sampled, np.zeros(4, int))
    assert found.estimate == pytest.approx((8 + 4 * 0.5) / 32)
    assert found.others == pytest.approx(8 / 32)
    # residuals 1 and 0: variance 1/2; 4^2 (1 - 2/4) (1/2) / 2 = 2
    assert found.se == pytest.approx(np.sqrt(2) / 32)
    assert found.n_sampled == 2


def test_the_estimate_is_unbiased_and_its_error_honest():
    rng = np.random.default_rng(5)
    n = 600
    stratum = np.repeat([0, 1, 2], [400, 150, 50])
    other = rng.poisson(1 + stratum).astype(float)
    target = other + rng.binomial(1, 0.2 + 0.2 * stratum) + rng.normal(0, 0.5, n)
    bottom = rng.integers(4, 9, n).astype(float)
    truth = target.sum() / bottom.sum()
    estimates, inside, errors = [], 0, []
    for _ in range(400):
        sampled = stratified(stratum, 0.1, rng.random(n))
        found = corrected_ratio(np.where(sampled, target, np.nan), bottom, other, bottom, sampled, stratum)
        estimates.append(found.estimate)
        errors.append(found.se)
        inside += abs(found.estimate - truth) < 1.96 * found.se
    spread = np.std(estimates)
    assert abs(np.mean(estimates) - truth) < 4 * spread / 20
    assert np.mean(errors) == pytest.approx(spread, rel=0.15)
    assert 0.90 < inside / 400 < 0.98
    assert abs(other.sum() / bottom.sum() - truth) > 3 * spread  # uncorrected, it would be far off


def test_nobody_sampled_is_no_estimate():
    nothing = np.zeros(3, bool)
    found = corrected_ratio(np.ones(3), np.ones(3), np.ones(3), np.ones(3), nothing, np.zeros(3, int))
    assert np.isnan(found.estimate)
    assert np.isnan(found.se)
    assert found.others == 1.0


def test_in_a_platform_the_correction_finds_what_everyone_would_have_done():
    """The first round's pages are the same whoever answers, so the target's own run is the truth to be met."""
    schedule = Schedule(slate_size=8, max_pages=2)

    def first_round(users):
        platform = Platform(WORLD, bound(users), Popularity(), seed=6, schedule=schedule)
        platform.step()
        return platform

    truth = first_round(ChoiceModel(base=1.0, exit_base=30.0)).round_events.clicked.mean()
    users = MixedUsers(ChoiceModel(base=1.0, exit_base=30.0), ChoiceModel(exit_base=30.0), share=0.3)
    platform = first_round(users)
    found = probe(platform)
    assert set(found) == {
        f"{name}_{what}"
        for name in ("ctr", "mean_rating", "exit_rate")
        for what in ("corrected", "corrected_se", "others")
    }
    assert abs(found["ctr_corrected"] - truth) < 4 * found["ctr_corrected_se"]
    assert abs(found["ctr_others"] - truth) > 4 * found["ctr_corrected_se"]
    with pytest.raises(ConfigError, match="expected agent=mixed"):
        probe(first_round(ChoiceModel()))


def test_a_language_model_answers_the_sample_alone(tmp_path):
    """Calls are made for the sample only, a resumed mixture goes on from its cache, and the correction is reported."""
    with LLMServer() as server:

        def mixture():
            language_model = openai("test", server.base_url, cache=tmp_path / "answers.db", backoff=0.001)
            return bound(MixedUsers(LLMUser(language_model), ChoiceModel(), share=0.05))

        model = mixture()
        n_sampled = int(model.sampled.sum())
        whole = play(model, range(2), pages=1)
        assert len(server.seen) == 2 * n_sampled
        assert model.accounting["total"]["calls"] == 2 * n_sampled
        assert model.corrected["ctr"].n_sampled == n_sampled
        assert model.corrected["ctr"].se > 0
        half = mixture()
        first = play(half, range(1), pages=1)
        resumed = mixture()
        resumed.load_state_dict(half.state_dict())
        rest = play(resumed, range(1, 2), pages=1)
        twin = half.twin()
        assert_all_equal(play(twin, range(1, 2), pages=1), rest)
        assert_all_equal([*first, *rest], whole)
        assert len(server.seen) == 2 * n_sampled
        assert resumed.corrected == model.corrected


def assert_all_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixedUsers(ChoiceModel(), ChoiceModel(), share=0.0), "agent.share=0.0"),
        (lambda: MixedUsers(ChoiceModel(), ChoiceModel(), strata=("colour",)), "agent.strata=colour"),
        (lambda: MixedUsers(ChoiceModel(), "choice"), "agent.others: str"),
        (lambda: MixedUsers(ChoiceModel(drift=0.5), ChoiceModel()), "different rules|same dynamics"),
        (lambda: MixedUsers(RankAcceptance(), ChoiceModel()), "same dynamics"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_language_model_on_the_cheap_side_is_refused():
    class Asks(ChoiceModel):
        accounting: ClassVar = {"model": "m"}

        def dry_run(self, users, slates, key, *, pages):
            return pages

    with pytest.raises(ConfigError, match="is asked too"):
        MixedUsers(ChoiceModel(), Asks())
