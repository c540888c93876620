"""NeuMF, BPR-MLP, SimpleX, Wide & Deep, GraphRec: the suite, and that they learn what was planted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recommenders.evaluation.offline import rank_metrics, ranks
from recommenders.neural.graphrec import GraphRec
from recommenders.neural.pairs import NeuMF, SimpleX, WideDeep
from recommenders.testing import KEY, RecommenderSuite, small_dataset, small_log
from simenv.datasets.base import Interactions
from simenv.datasets.friends import Friends
from simenv.datasets.splits import leave_one_out
from simenv.errors import ConfigError, RecommenderError
from tests.recommenders.flat import flat

TINY = {"embedding_size": 8, "epochs": 1, "batch_size": 512}
N_USERS, N_ITEMS, GROUPS = 60, 60, 4


class TestNeuMFSuite(RecommenderSuite):
    def make(self):
        return flat(NeuMF, **TINY)


class Sociable:
    """The small data set, whose users sit on a ring with their neighbours."""

    def bound(self, log):
        recommender = self.make()
        users = np.arange(log.n_users)
        ring = Friends.of(log.n_users, np.column_stack([users, (users + 1) % log.n_users]))
        recommender.bind_dataset(replace(small_dataset(log), friends=ring))
        return recommender


@pytest.mark.slow
class TestGraphRecSuite(Sociable, RecommenderSuite):
    def make(self):
        return flat(GraphRec, **TINY, neighbours=4)


def groups(length: int = 8, seed: int = 0) -> Interactions:
    """Users of four groups, who consume items of their own group and like them or not by user and item."""
    rng = np.random.default_rng(seed)
    of_user = np.arange(N_USERS) % GROUPS
    items = np.concatenate([GROUPS * rng.permutation(N_ITEMS // GROUPS)[:length] + group for group in of_user])
    users = np.repeat(np.arange(N_USERS), length)
    stars = 3 + np.where(users // GROUPS % 2 == items // GROUPS % 2, 1.5, -1.5)
    return Interactions(
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        ratings=stars.astype(np.float32),
        times=np.tile(np.arange(length), N_USERS),
        n_users=N_USERS,
        n_items=N_ITEMS,
    )


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (NeuMF, {}),
        (NeuMF, {"product": False, "loss": "bpr", "learning_rate": 0.02}),
        (SimpleX, {"negatives": 60, "weight": 20.0, "own": 0.2, "learning_rate": 0.02}),
    ],
)
def test_it_finds_the_items_of_ones_group(model, options):
    split = leave_one_out(groups())
    recommender = flat(
        model, **{"embedding_size": 16, "epochs": 12, "batch_size": 32, "learning_rate": 0.01, **options}
    )
    recommender.fit(split.train, key=KEY)
    assert rank_metrics(ranks(recommender, split))["hr@10"].mean() > 0.8  # 8 items of the group are left


def test_wide_deep_predicts_stars():
    log = groups(length=15)
    known = np.random.default_rng(1).random(len(log)) < 0.8
    recommender = flat(WideDeep, embedding_size=16, epochs=14, batch_size=32, learning_rate=0.01, dropout=0.0)
    recommender.fit(log.take(known), key=KEY)
    asked = log.take(~known)
    stars = recommender.predict_ratings(asked.users, asked.items)
    assert np.sqrt(((stars - asked.ratings) ** 2).mean()) < 0.75  # 1.5 for the mean
    np.testing.assert_allclose(stars, recommender.scores(asked.users)[np.arange(len(asked)), asked.items], atol=1e-4)


def test_wide_deep_reads_who_and_what_people_and_items_are():
    log = groups(length=15)
    dataset = replace(small_dataset(log), user_attributes={"group": (np.arange(N_USERS) // GROUPS % 2).astype(str)})
    genres = np.arange(N_ITEMS)[:, None] // GROUPS % 2 == np.arange(4)
    dataset = replace(dataset, catalog=replace(dataset.catalog, genres=genres))
    known = log.users >= 8
    recommender = flat(WideDeep, embedding_size=8, epochs=15, batch_size=64, learning_rate=0.01)
    recommender.bind_dataset(dataset)
    recommender.fit(log.take(known), key=KEY)
    asked = log.take(~known)  # users without a single rating, known by their group
    assert np.abs(recommender.predict_ratings(asked.users, asked.items) - asked.ratings).mean() < 0.75


def test_graphrec_learns_from_opinions_and_from_friends():
    log = groups()
    kind, good = log.users % 2 == 0, log.items % GROUPS < 2  # half of the users give more, half of the items get more
    log = replace(log, ratings=np.where(kind, 4.0, 2.0).astype(np.float32) + good)
    ties = [(user, user + 2) for user in range(N_USERS - 2)]
    recommender = flat(GraphRec, embedding_size=8, epochs=12, batch_size=64, learning_rate=0.01, neighbours=8)
    recommender.bind_dataset(replace(small_dataset(log), friends=Friends.of(N_USERS, np.array(ties))))
    recommender.fit(log.take(log.users >= 8), key=KEY)
    asked = log.take(log.users < 8)  # who never said a word, and whose friends are all kind or all not
    off = recommender.predict_ratings(asked.users, asked.items) - asked.ratings
    assert np.sqrt((off**2).mean()) < 0.7  # 1.12 for the mean


def test_graphrec_does_not_read_the_opinion_it_predicts():
    log = groups()
    recommender = flat(GraphRec, **TINY)
    recommender._friends = Friends.of(N_USERS, np.zeros((0, 2)))
    recommender.fit(log, key=KEY)
    network, user, item = recommender.network, torch.tensor([0]), torch.tensor([int(log.items[0])])
    with torch.no_grad():
        before = network.user_states(user, item), network.item_states(item, user)
        network.said_by[0, (network.items_of[0] == item).nonzero()] = 0
        network.said_of[item[0], (network.users_of[item[0]] == 0).nonzero()] = 0
        for old, new in zip(before, (network.user_states(user, item), network.item_states(item, user)), strict=True):
            torch.testing.assert_close(old, new)


def test_simplex_mixes_a_user_with_its_history():
    log = small_log()
    for own, moved in ((1.0, False), (0.5, True)):
        recommender = flat(SimpleX, **TINY, own=own, dropout=0.0)
        recommender.fit(log, key=KEY)
        network, user = recommender.network, torch.tensor([0])
        with torch.no_grad():
            before = network.user_states(user)
            network.history[0, 0] = (network.history[0, 0] + 1) % 60
            assert bool((before - network.user_states(user)).abs().max() > 1e-5) == moved


@pytest.mark.parametrize("model", [NeuMF, SimpleX])
def test_drawn_items_were_not_consumed(model):
    recommender = flat(model, **TINY)
    log = groups()
    recommender.fit(log, key=KEY)
    users = np.repeat(np.arange(N_USERS), 3)
    drawn = recommender._others(users, np.random.default_rng(0))
    consumed = set(zip(log.users.tolist(), log.items.tolist(), strict=True))
    pairs = [(user, item) for user, row in zip(users.tolist(), drawn.tolist(), strict=True) for item in row]
    assert len(set(pairs)) > len(users)
    assert not consumed & set(pairs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: flat(NeuMF, hidden=[]), r"neumf: hidden=\[\]"),
        (lambda: flat(NeuMF, loss="hinge"), "neumf: loss=hinge: expected one of bce, bpr, mse"),
        (lambda: flat(SimpleX, loss="bpr"), "simplex: loss=bpr: expected one of cosine"),
        (lambda: flat(SimpleX, margin=1.0), "margin=1.0"),
        (lambda: flat(NeuMF, embedding_size=1.5), "neumf: embedding_size=1.5: expected a whole number"),
        (lambda: flat(WideDeep, dropout=1.0), "dropout=1.0"),
        (lambda: flat(GraphRec, neighbours=0), "neighbours=0"),
    ],
)
def test_wrong_options_are_an_error(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_what_is_missing_is_named():
    log = small_log()
    with pytest.raises(ConfigError, match="arm 'graphrec': small knows no friends"):
        flat(GraphRec).bind_dataset(small_dataset(log))
    with pytest.raises(RecommenderError, match="graphrec: knows no friends of 40 users"):
        flat(GraphRec, **TINY).fit(log, key=KEY)
    with pytest.raises(RecommenderError, match="wide-deep: none of the 600 interactions has a rating"):
        flat(WideDeep, **TINY).fit(replace(log, ratings=np.full(600, np.nan, np.float32)), key=KEY)
    neumf = flat(NeuMF, **TINY)
    neumf.fit(log, key=KEY)
    with pytest.raises(RecommenderError, match="neumf: predicts no stars with loss=bce"):
        neumf.predict_ratings(np.arange(2), np.arange(2))
