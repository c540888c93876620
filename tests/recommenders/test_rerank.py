import numpy as np
import pytest

from recommenders.content import Content
from recommenders.factors import ALS
from recommenders.neighbours import ItemKNN
from recommenders.oracle import Oracle
from recommenders.popularity import Popularity, Random
from recommenders.rerank import Calibrated, EpsilonGreedy, PopularityPenalty
from recommenders.testing import KEY, RecommenderSuite, small_dataset, small_log, small_truth
from simenv.candidates import Candidates
from simenv.errors import ConfigError, RecommenderError
from simenv.events import Events
from simenv.randomness import Key

USERS = np.arange(40)


def fitted(recommender, log=None):
    recommender.fit(small_log() if log is None else log, key=KEY)
    return recommender


class TestPenaltyAroundContent(RecommenderSuite):
    def make(self):
        return PopularityPenalty(Content())


class TestExplorationAroundOracle(RecommenderSuite):
    def make(self):
        return EpsilonGreedy(Oracle(), epsilon=0.5)


class TestExplorationAroundPenalty(RecommenderSuite):
    def make(self):
        return EpsilonGreedy(PopularityPenalty(ItemKNN()), epsilon=0.3)


def test_what_the_base_measures_is_measured_through_wrappers():
    class Measuring(ItemKNN):
        def measures(self, events):
            return {"shown": float(len(events))}

    events = Events.empty()
    assert EpsilonGreedy(PopularityPenalty(Measuring())).measures(events) == {"shown": 0.0}
    assert EpsilonGreedy(ItemKNN()).measures(events) == {}


# -- popularity penalty ---------------------------------------------------------------------------------------


def test_penalty_by_the_formula():
    log = small_log()
    base, penalised = fitted(ALS(), log), fitted(PopularityPenalty(ALS(), strength=0.7), log)
    scores = base.scores(USERS).astype(float)
    z = (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, keepdims=True)
    counts = log.item_counts() + 0.5
    expected = z - 0.7 * np.log(counts / counts.sum())
    np.testing.assert_allclose(penalised.scores(USERS), expected, rtol=1e-5, atol=1e-5)


def test_no_strength_leaves_the_bases_slates():
    base, same = fitted(ItemKNN()), fitted(PopularityPenalty(ItemKNN(), strength=0.0))
    np.testing.assert_array_equal(same.recommend(np.arange(37), 5).item_ids, base.recommend(np.arange(37), 5).item_ids)


def test_more_strength_less_popularity():
    log = small_log()
    counts = log.item_counts()
    shown = [
        counts[fitted(PopularityPenalty(ALS(), strength=s), log).recommend(USERS, 10).item_ids].mean()
        for s in (0.0, 0.3, 1.0, 4.0)
    ]
    assert shown[0] > shown[1] > shown[2] > shown[3]


def test_a_base_without_preferences_gives_the_least_popular():
    log = small_log()
    slates = fitted(PopularityPenalty(Random(), strength=1.0), log).recommend(USERS, 5).item_ids
    np.testing.assert_array_equal(slates, np.tile(np.argsort(log.item_counts(), kind="stable")[:5], (40, 1)))


# -- epsilon-greedy -------------------------------------------------------------------------------------------


def test_without_exploration_it_is_the_base():
    slates = fitted(EpsilonGreedy(ALS(), epsilon=0.0)).recommend(USERS, 8, key=KEY)
    np.testing.assert_array_equal(slates.item_ids, fitted(ALS()).recommend(USERS, 8, key=KEY).item_ids)
    assert (slates.propensity == 1).all()


def test_all_exploration_is_random():
    explored = fitted(EpsilonGreedy(ALS(), epsilon=1.0)).recommend(USERS, 8, key=KEY)
    drawn = fitted(Random()).recommend(USERS, 8, key=KEY)
    np.testing.assert_array_equal(explored.item_ids, drawn.item_ids)
    np.testing.assert_allclose(explored.propensity, drawn.propensity)


def test_slots_are_explored_at_the_rate_of_epsilon():
    recommender, base = fitted(EpsilonGreedy(Popularity(), epsilon=0.3)), fitted(Popularity())
    best = base.recommend(USERS, 1).item_ids[:, 0]
    kept = [(recommender.recommend(USERS, 1, key=Key(4, round=r)).item_ids[:, 0] == best).mean() for r in range(100)]
    assert abs(np.mean(kept) - (0.7 + 0.3 / 60)) < 4 * np.sqrt(0.21 / 4000)


def test_propensity_is_the_frequency_of_an_item_at_its_rank_given_the_ranks_before():
    """Monte Carlo over rounds: every prefix of a slate and its next item, against the logged probability."""
    recommender = fitted(EpsilonGreedy(Popularity(), epsilon=0.5))
    excluded = np.ones((40, 60), np.bool_)
    excluded[:, [2, 7, 11, 30]] = False  # four candidates, slates of three: 24 possible slates
    seen: dict[tuple[int, ...], dict[int, int]] = {}
    logged: dict[tuple[int, ...], dict[int, float]] = {}
    for r in range(1500):
        slates = recommender.recommend(USERS, 3, Candidates.of(60, out=excluded), key=Key(9, round=r))
        for items, propensity in zip(slates.item_ids.tolist(), slates.propensity.tolist(), strict=True):
            for rank in range(3):
                before, item = tuple(items[:rank]), items[rank]
                counts = seen.setdefault(before, {})
                counts[item] = counts.get(item, 0) + 1
                assert logged.setdefault(before, {}).setdefault(item, propensity[rank]) == propensity[rank]
    assert sum(len(items) for items in seen.values()) == 4 + 12 + 24
    for before, counts in seen.items():
        n = sum(counts.values())
        assert sum(logged[before].values()) == pytest.approx(1)
        for item, count in counts.items():
            p = logged[before][item]
            assert abs(count / n - p) < 4.5 * np.sqrt(p * (1 - p) / n)


def test_a_base_that_draws_is_refused():
    with pytest.raises(RecommenderError, match="base 'random' draws its slates"):
        fitted(EpsilonGreedy(Random())).recommend(USERS, 3, key=KEY)


# -- both -----------------------------------------------------------------------------------------------------


def test_data_set_and_truth_reach_the_innermost():
    log = small_log()
    wrapped = EpsilonGreedy(PopularityPenalty(Content()), epsilon=0.0)
    wrapped.bind_dataset(small_dataset(log))
    fitted(wrapped, log)
    truth = small_truth(log)
    oracle = EpsilonGreedy(PopularityPenalty(Oracle(), strength=0.0), epsilon=0.0)
    oracle.bind_truth(lambda users: truth[users])
    np.testing.assert_array_equal(fitted(oracle, log).recommend(USERS, 1).item_ids[:, 0], truth.argmax(axis=1))


def test_a_base_that_is_no_recommender_is_refused():
    with pytest.raises(ConfigError, match="base is a str; expected a Recommender"):
        EpsilonGreedy("als")


# -- calibration ----------------------------------------------------------------------------------------------


def calibrated(log, **options):
    recommender = Calibrated(ItemKNN(), **options)
    recommender.bind_dataset(small_dataset(log))
    recommender.fit(log, key=KEY)
    return recommender


def genre_shares(weights):
    return weights.sum(axis=0) / weights.sum()


def steck_divergence(p, q):
    some = p > 0
    return float((p[some] * np.log(p[some] / (0.99 * q[some] + 0.01 * p[some]))).sum())


def test_calibration_by_the_formula():
    """The greedy step, written out for one user."""
    log, user, strength = small_log(), 4, 0.6
    genres = small_dataset(log).catalog.genres
    weights = genres / genres.sum(axis=1, keepdims=True)
    wanted = genre_shares(weights[log.items[log.users == user]])
    scores = fitted(ItemKNN(), log).scores(np.array([user]))[0].astype(float)
    pool = np.argsort(-scores, kind="stable")[:30]
    value = (scores[pool] - scores[pool].min()) / np.ptp(scores[pool])
    slate = []
    for _ in range(8):
        gains = [
            -np.inf
            if i in slate
            else (1 - strength) * v - strength * steck_divergence(wanted, genre_shares(weights[[*slate, i]]))
            for i, v in zip(pool, value)
        ]
        slate.append(int(pool[int(np.argmax(gains))]))
    served = calibrated(log, strength=strength, candidates=30).recommend(np.array([user]), 8).item_ids[0]
    assert served.tolist() == slate


def test_more_calibration_less_divergence_and_none_is_the_base():
    log, users = small_log(), np.arange(37)
    genres = small_dataset(log).catalog.genres
    weights = genres / genres.sum(axis=1, keepdims=True)
    mean = []
    for strength in (0.0, 0.5, 1.0):
        slates = calibrated(log, strength=strength).recommend(users, 8).item_ids
        mean.append(
            np.mean(
                [
                    steck_divergence(genre_shares(weights[log.items[log.users == u]]), genre_shares(weights[slates[u]]))
                    for u in users
                ]
            )
        )
        if strength == 0.0:
            np.testing.assert_array_equal(slates, fitted(ItemKNN(), log).recommend(users, 8).item_ids)
    assert mean[0] > mean[1] > mean[2]


def test_calibration_without_a_data_set_is_an_error():
    with pytest.raises(RecommenderError, match="fit before bind_dataset"):
        fitted(Calibrated(ItemKNN()))
