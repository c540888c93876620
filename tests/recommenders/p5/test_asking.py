"""The ways P5 is asked beside the next item: a choice, yes or no, stars, words about a feature, pros and cons."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recommenders.evaluation.explanations import faithfulness, read_opinions, true_opinions
from recommenders.evaluation.offline import sampled_ranks
from recommenders.evaluation.texts import measured_texts
from recommenders.p5.language.text import OPINIONS_KEPT_BACK
from recommenders.p5.prompted import P5
from recommenders.p5.trie import item_scores
from simenv.candidates import Candidates
from simenv.datasets import synthetic
from simenv.datasets.reviews import opinion_text, pros_and_cons, reviewer_of
from simenv.datasets.splits import leave_one_out
from simenv.errors import ConfigError, RecommenderError
from simenv.randomness import Key
from tests.recommenders.flat import flat

FAMILIES = ["sequential", "rating", "direct", "explanation", "review", "opinions"]
TINY = {
    "embedding_size": 8,
    "layers": 1,
    "heads": 2,
    "epochs": 1,
    "batch_size": 256,
    "history": 5,
    "families": FAMILIES,
    "other_share": 2.0,
    "candidates": 5,
    "index_options": {"leaf_size": 20},
}
WORLD = synthetic(n_users=60, n_items=30, mean_activity=8, seed=2)
SPLIT = leave_one_out(WORLD.interactions)


@pytest.fixture(scope="module")
def fitted() -> P5:
    recommender = flat(P5, **TINY)
    recommender.bind_dataset(WORLD)
    recommender.fit(SPLIT.train, key=Key(0))
    return recommender


def test_every_family_is_trained(fitted):
    assert fitted.skipped == {}


def test_a_choice_is_the_best_candidate_at_its_leaf(fitted):
    users, candidates = np.array([3, 9]), np.array([[4, 8, 2], [7, -1, 1]])
    found = fitted.choose(users, candidates, k=3)
    assert set(found[0]) == {4, 8, 2}
    assert found[1].tolist()[-1] == -1
    prompt = fitted._prompt("direct", "candidates")
    rows = replace(fitted._question(users, np.zeros(2, np.int64)), candidates=candidates)
    with torch.no_grad():
        scores = item_scores(fitted.trie, fitted.network.scorer(fitted._rendered(prompt, rows))).numpy()
    assert found[0].tolist() == sorted((4, 8, 2), key=lambda item: -scores[0, item])
    with pytest.raises(RecommenderError, match=r"candidates have shape \(3,\); expected \(2, at most 512\)"):
        fitted.choose(users, np.arange(3))


def test_yes_is_a_probability_of_each_pair(fitted):
    users, items = np.array([3, 3, 9]), np.array([4, 8, 4])
    chances = fitted.likes(users, items)
    assert ((chances > 0) & (chances < 1)).all()
    assert len(set(chances.tolist())) == 3
    np.testing.assert_allclose(fitted.likes(users[::-1], items[::-1])[::-1], chances, rtol=1e-4)


def test_a_question_may_be_put_in_other_words(fitted, monkeypatch):
    users, items = np.array([3, 3, 9]), np.array([4, 8, 4])
    usual = fitted.likes(users, items)
    monkeypatch.setattr(fitted, "wording", 1)
    assert "history" in fitted._prompt("direct", "answer").fields
    other = fitted.likes(users, items)
    assert not np.allclose(usual, other)
    monkeypatch.setattr(fitted, "wording", 2)
    with pytest.raises(ConfigError, match=r"wording=2: 2 trained direct prompts with \{answer\}.* expected another"):
        fitted.likes(users, items)
    monkeypatch.setattr(fitted, "ask", "unseen")
    with pytest.raises(ConfigError, match=r"no direct prompt with \{answer\} is kept unseen"):
        fitted.likes(users, items)


@pytest.mark.parametrize("task", ["choose", "likes"])
def test_recommending_may_ask_for_a_choice_or_for_yes(fitted, task, monkeypatch):
    monkeypatch.setattr(fitted, "task", task)
    users, out = np.array([3, 9]), np.ones((2, 30), np.bool_)
    out[0, [4, 8, 2]] = out[1, [1, 7]] = False
    found = fitted.recommend(users, 3, Candidates.of(30, out=out)).item_ids
    if task == "choose":
        expected = fitted.choose(users, np.array([[2, 4, 8], [1, 7, -1]]), k=3)
    else:
        chances = fitted.likes(np.full(3, 3), np.array([2, 4, 8]))
        expected = [np.array([2, 4, 8])[np.argsort(-chances, kind="stable")], None]
    assert found[0].tolist() == list(expected[0])
    assert sorted(found[1].tolist()) == [-1, 1, 7]
    monkeypatch.setattr("recommenders.p5.prompted.MOST_CANDIDATES", 20)
    with pytest.raises(RecommenderError, match=f"task={task} among 30 candidates; expected at most 20"):
        fitted.recommend(users, 3)
    assert sampled_ranks(fitted, SPLIT, n_negatives=4).shape == SPLIT.users.shape


def test_asking_needs_the_family(fitted):
    with pytest.raises(ConfigError, match=r"task=choose, families=.*: expected 'direct' among them"):
        flat(P5, **TINY | {"families": ["sequential"], "task": "choose"})
    plain = flat(P5, **TINY | {"families": ["sequential"]})
    plain.fit(SPLIT.train, key=Key(0))
    for ask in (lambda: plain.likes([0], [0]), lambda: plain.choose([0], [[0, 1]]), lambda: plain.pros_and_cons([4])):
        with pytest.raises(RecommenderError, match="family was not trained"):
            ask()


@pytest.mark.parametrize("unseen", [False, True])
def test_an_explanation_speaks_of_the_feature_it_is_told(fitted, unseen, monkeypatch):
    users, items = np.array([3, 9]), np.array([4, 8])
    data, prompt = fitted._data(fitted.histories), fitted._prompt("explanation", "feature", unseen)
    assert prompt.trained is not unseen
    told = replace(fitted._question(users, items), features=data.words(["pace", "craft"]))
    source = data.source(prompt, told, np.random.default_rng(0))
    assert data.words(["pace"])[0, 0] in source[0]
    assert data.words(["craft"])[0, 0] in source[1]
    written = fitted.explain(users, items, features=["pace", "craft"], unseen=unseen)
    assert len(written) == 2
    monkeypatch.setattr(fitted, "ask", "unseen" if unseen else "seen")
    assert fitted.explain(users, items, features=["pace", "craft"]) == written
    with pytest.raises(RecommenderError, match="1 features for 2 pairs"):
        fitted.explain(users, items, features=["pace"])


def test_stars_are_read_off_reviews(fitted):
    stars = fitted.stars_of(np.arange(6))
    assert ((stars >= 1) & (stars <= 5)).all()


def test_pros_and_cons_count_likes_against_dislikes():
    said = [{("dark", 1), ("slow", -1)}, {("dark", 1), ("plain", 1)}, {("slow", -1), ("plain", -1)}, {("dark", 1)}]
    found = pros_and_cons([0, 0, 0, 1], said)
    assert found == {0: {("dark", 1), ("slow", -1)}}
    assert opinion_text(found[0]) == "pros : dark . cons : slow ."
    assert opinion_text(set()) == "pros : none . cons : none ."
    assert pros_and_cons([0, 0], [{("a", 1), ("b", 1)}, {("a", 1)}], most=1) == {0: {("a", 1)}}


def test_opinions_are_judged_against_what_everybody_would_say(fitted):
    data = fitted._data(fitted.histories)
    learned = set(data.histories.items[data.opinionated[1]].tolist())
    assert learned
    assert all(item % OPINIONS_KEPT_BACK != OPINIONS_KEPT_BACK - 1 for item in learned)
    assert len(fitted.pros_and_cons(np.array([4, 9]))) == 2
    reviewer = reviewer_of(WORLD)
    items = np.array([4, 9, 14])
    truth = true_opinions(reviewer, WORLD.n_users, items)
    from simenv.datasets import wording

    texts = [opinion_text({(wording.terms()[term], sign) for term, sign in row}) for row in truth]
    assert read_opinions(texts) == truth
    assert faithfulness(read_opinions(texts), truth)["f1"] == 1.0
    assert faithfulness([{(term, -sign) for term, sign in row} for row in truth], truth)["f1"] == 0.0


def test_texts_are_measured_against_those_held_out(fitted):
    held = reviewer_of(WORLD).write(SPLIT.held).take(np.arange(4))
    for target in ("explanation", "feature_explanation", "summary"):
        found = measured_texts(fitted, held, target)
        assert set(found) == {"rouge1", "rouge2", "rougeL", "bleu2", "bleu4"}
        assert len(found["rouge1"]) == len(held)
