"""Attn2Seq, NRT, PETER and PETER+: that they write what was planted, and predict stars."""

import numpy as np
import pytest
import torch

from recommenders.neural.explainers import NRT, PETER, Attn2Seq
from recommenders.testing import KEY, RecommenderSuite, small_log
from simenv.datasets.base import Interactions
from simenv.datasets.reviews import Reviews
from simenv.errors import ConfigError, RecommenderError
from tests.recommenders.flat import flat

TINY = {"embedding_size": 8, "layers": 1, "epochs": 1, "batch_size": 512}
ADJECTIVES, NOUNS, FEATURES = ("warm", "cold", "odd"), ("story", "music"), ("plot", "light", "cast", "sound")


def reviewed(log: Interactions) -> Reviews:
    """Of each pair: an adjective of the item, a noun of the user, and a feature that nobody could guess."""
    users, items = log.users.astype(np.int64), log.items.astype(np.int64)
    about = np.random.default_rng(0).integers(0, len(FEATURES), len(log))
    said = tuple(
        f"because the {NOUNS[user % 2]} is {ADJECTIVES[item % 3]} and its {FEATURES[feature]} too"
        for user, item, feature in zip(users, items, about, strict=True)
    )
    features = tuple(FEATURES[feature] for feature in about)
    return Reviews(users=users, items=items, texts=said, summaries=said, features=features, explanations=said)


class TestPETERSuite(RecommenderSuite):
    def make(self):
        return flat(PETER, **TINY)

    def bound(self, log):
        recommender = self.make()
        users, items = np.divmod(np.arange(log.n_users * log.n_items), log.n_items)
        everything = Interactions(
            users=users.astype(np.int32),
            items=items.astype(np.int32),
            ratings=np.full(len(users), np.nan, np.float32),
            times=np.arange(len(users)),
            n_users=log.n_users,
            n_items=log.n_items,
        )
        recommender.bind_reviews(reviewed(everything))  # of pairs that are not in the log nothing is learned
        return recommender


def rated() -> Interactions:
    rng = np.random.default_rng(1)
    users, items = np.divmod(rng.permutation(30 * 24)[:480], 24)
    return Interactions(
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        ratings=(2 + users % 2 + 2 * (items % 3 == 0)).astype(np.float32),
        times=np.arange(480),
        n_users=30,
        n_items=24,
    )


@pytest.mark.parametrize(("model", "options"), [(Attn2Seq, {}), (NRT, {}), (PETER, {}), (PETER, {"told": True})])
def test_it_writes_what_was_planted(model, options, tmp_path):
    log, rng = rated(), np.random.default_rng(2)
    make = lambda: flat(  # noqa: E731
        model, embedding_size=16, layers=1, dropout=0.0, **{"epochs": 12, **options}, batch_size=32, learning_rate=0.01
    )
    recommender = make()
    recommender.bind_reviews(reviewed(log))
    recommender.fit(log, key=KEY)
    users, items = rng.integers(0, 30, 60), rng.integers(0, 24, 60)
    about = [FEATURES[feature] for feature in rng.integers(0, len(FEATURES), 60)]
    texts = recommender.explain(users, items, features=about)
    known = [
        f"because the {NOUNS[user % 2]} is {ADJECTIVES[item % 3]} and its" in text
        for user, item, text in zip(users, items, texts, strict=True)
    ]
    assert np.mean(known) > 0.9  # chance is 1/6
    spoken = np.mean([feature in text.split() for feature, text in zip(about, texts, strict=True)])
    assert spoken > 0.9 if "told" in options else spoken < 0.5
    recommender.save(tmp_path)
    again = make()
    again.load(tmp_path)
    assert again.explain(users, items, features=about) == texts
    if model is Attn2Seq:
        with pytest.raises(RecommenderError, match="attn2seq: writes explanations and neither predicts"):
            recommender.scores(users[:1])
        return
    stars = recommender.predict_ratings(users, items)
    assert np.abs(stars - (2 + users % 2 + 2 * (items % 3 == 0))).mean() < 0.4  # .9 for the mean
    np.testing.assert_allclose(recommender.scores(users[:2])[[0, 1], items[:2]], stars[:2], atol=1e-4)


def test_no_word_of_peter_sees_what_comes_after_it_and_users_see_items():
    recommender = flat(PETER, **TINY)
    log = small_log()
    recommender.bind_reviews(reviewed(log))
    recommender.fit(log, key=KEY)
    network, user, item = recommender.network, torch.tensor([1]), torch.tensor([2])
    nothing, written = torch.tensor([0]), torch.tensor([[0, 3, 4, 5]])
    with torch.no_grad():
        before = network.states(user, item, nothing, written)
        later = network.states(user, item, nothing, torch.tensor([[0, 3, 6, 7]]))
        other = network.states(user, item + 1, nothing, written)
    torch.testing.assert_close(before[:, :4], later[:, :4])
    assert (before[:, 4] - later[:, 4]).abs().max() > 1e-4
    assert (before[:, 0] - other[:, 0]).abs().max() > 1e-5


def test_what_is_missing_or_wrong_is_named():
    with pytest.raises(RecommenderError, match="nrt: nobody explains anything; expected a data set with reviews"):
        flat(NRT, **TINY).fit(small_log(), key=KEY)
    with pytest.raises(ConfigError, match="max_words=0"):
        flat(PETER, max_words=0)
    with pytest.raises(ConfigError, match="peter: heads=3"):
        flat(PETER, heads=3)
