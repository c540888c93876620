"""Faithfulness: perfect is 1, a stranger's words score lower, a trained model scores higher than they do."""

import math

import numpy as np
import pytest

from recommenders.evaluation.explanations import baselines, faithfulness, read
from simenv.datasets import synthetic, wording
from simenv.datasets.reviews import Aspects, Reviews, reviewer_of
from simenv.errors import DataError
from tests.recommenders.flat import flat


@pytest.fixture(scope="module")
def reviews() -> Reviews:
    world = synthetic(n_users=80, n_items=120, seed=1)
    return reviewer_of(world).write(world.interactions)


def truth(*rows: list[tuple[int, int]]) -> Aspects:
    terms, signs = np.full((len(rows), 3), -1), np.zeros((len(rows), 3), np.int64)
    for number, row in enumerate(rows):
        for place, (term, sign) in enumerate(row):
            terms[number, place], signs[number, place] = term, sign
    return Aspects(terms=terms, signs=signs)


def test_the_users_own_words_are_perfect(reviews):
    scores = faithfulness(read(reviews.explanations), reviews.aspects)
    assert scores == {"precision": 1, "recall": 1, "f1": 1, "polarity": 1, "faithful": 1}


def test_by_hand():
    known = truth([(0, 1), (5, -1)], [(3, 1)], [(2, 1)])
    scores = faithfulness([{(0, 1), (5, 1), (9, 1)}, {(3, 1)}, set()], known)
    assert scores["precision"] == 2 / 4
    assert scores["recall"] == 2 / 4
    assert scores["f1"] == 0.5
    assert scores["polarity"] == 2 / 3
    assert scores["faithful"] == 1 / 3


def test_silence_is_not_faithful():
    scores = faithfulness([set()], truth([(0, 1)]))
    assert (scores["precision"], scores["recall"], scores["f1"], scores["faithful"]) == (0, 0, 0, 0)
    assert math.isnan(scores["polarity"])


def test_baselines_lie_below_the_truth_and_the_item_above_the_shuffled(reviews):
    said = read(reviews.explanations)
    others = baselines(said, reviews.items, reviews, np.random.default_rng(0))
    scores = {name: faithfulness(mentions, reviews.aspects) for name, mentions in others.items()}
    assert scores["shuffled"]["f1"] < scores["item"]["f1"] < 1
    assert scores["shuffled"]["faithful"] < 0.6
    assert len({frozenset(row) for row in others["most frequent"]}) == 1


def test_shuffling_moves_every_text():
    said = [{(term, 1)} for term in range(len(wording.terms()))]
    known = reviewer_of(synthetic(n_users=5, n_items=10)).write(synthetic(n_users=5, n_items=10).interactions)
    dealt = baselines(said, np.zeros(len(said), int), known, np.random.default_rng(0))["shuffled"]
    assert all(mine != dealt[row] for row, mine in enumerate(said))
    assert sorted(map(sorted, dealt)) == sorted(map(sorted, said))


def test_what_an_item_is_known_for():
    train = Reviews(
        users=np.arange(4), items=np.array([0, 0, 0, 1]), texts=("",) * 4, summaries=("",) * 4, features=("",) * 4,
        explanations=("",) * 4, aspects=truth([(4, 1)], [(4, 1), (6, -1)], [(4, 1), (8, 1)], [(9, 1)]),
    )  # fmt: skip
    said = baselines([set()] * 3, np.array([0, 1, 2]), train, np.random.default_rng(0))
    assert said["item"] == [{(4, 1)}, {(9, 1)}, {(4, 1)}]
    assert said["most frequent"] == [{(4, 1)}] * 3


def test_bad_input_is_an_error(reviews):
    with pytest.raises(DataError, match="1 texts for 2 truths"):
        faithfulness([set()], truth([(0, 1)], [(0, 1)]))
    no_text = {"texts": ("",), "summaries": ("",), "features": ("",), "explanations": ("",)}
    silent = Reviews(users=np.array([0]), items=np.array([0]), **no_text)
    with pytest.raises(DataError, match="no true aspects"):
        baselines([set()], np.array([0]), silent, np.random.default_rng(0))


@pytest.mark.slow
def test_a_small_trained_model_is_more_faithful_than_shuffled_words():
    from recommenders.p5.prompted import P5
    from simenv.datasets.splits import leave_one_out
    from simenv.randomness import Key

    world = synthetic(n_users=100, n_items=30, seed=2, mean_activity=12)
    split = leave_one_out(world.interactions)
    recommender = flat(
        P5,
        families=["sequential", "explanation"], other_share=4.0, embedding_size=32, layers=1, epochs=4, history=5,
        batch_size=32, learning_rate=1e-2, dropout=0.0,
    )  # fmt: skip
    recommender.bind_dataset(world)
    recommender.fit(split.train, key=Key(0))
    assert recommender.skipped == {}
    known = reviewer_of(world).aspects(split.users, split.targets.astype(np.int64))
    said = read(recommender.explain(split.users, split.targets))
    own = faithfulness(said, known)
    others = baselines(said, split.targets, recommender.reviews, np.random.default_rng(0))
    assert own["f1"] > faithfulness(others["shuffled"], known)["f1"] + 0.15
    assert own["f1"] > faithfulness(others["most frequent"], known)["f1"] + 0.05
