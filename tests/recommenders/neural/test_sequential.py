"""SASRec, BERT4Rec and GRU4Rec: the suite, that they learn, and that no position sees its own target."""

import numpy as np
import pytest
import torch

from recommenders.evaluation.offline import rank_metrics, ranks
from recommenders.neural.sequential import BERT4Rec, GRU4Rec, SASRec
from recommenders.testing import KEY, RecommenderSuite, small_log
from simenv.datasets.base import Interactions
from simenv.datasets.splits import leave_one_out
from simenv.errors import ConfigError, RunDirectoryError
from tests.recommenders.flat import flat

TINY = {"embedding_size": 8, "layers": 1, "history": 6, "epochs": 1}
MODELS = [SASRec, BERT4Rec, GRU4Rec]


class TestSASRecSuite(RecommenderSuite):
    def make(self):
        return flat(SASRec, **TINY)


class TestBERT4RecSuite(RecommenderSuite):
    def make(self):
        return flat(BERT4Rec, **TINY)


class TestGRU4RecSuite(RecommenderSuite):
    def make(self):
        return flat(GRU4Rec, **TINY)


def cycles(n_users: int = 150, n_items: int = 60, length: int = 12) -> Interactions:
    """Users who walk round the catalogue: after item i comes i + 1."""
    starts = np.random.default_rng(0).integers(0, n_items, n_users)
    items = (starts[:, None] + np.arange(length)) % n_items
    n = n_users * length
    return Interactions(
        users=np.repeat(np.arange(n_users), length).astype(np.int32),
        items=items.ravel().astype(np.int32),
        ratings=np.full(n, np.nan, np.float32),
        times=np.tile(np.arange(length), n_users),
        n_users=n_users,
        n_items=n_items,
    )


@pytest.mark.parametrize(("model", "epochs"), [(SASRec, 20), (GRU4Rec, 20), (BERT4Rec, 50)])
def test_it_learns_what_comes_next(model, epochs):
    split = leave_one_out(cycles())
    recommender = flat(
        model, embedding_size=32, layers=1, history=12, epochs=epochs, batch_size=16, learning_rate=1e-2, dropout=0.0
    )
    recommender.fit(split.train, key=KEY)
    assert rank_metrics(ranks(recommender, split))["hr@1"].mean() > 0.9


def test_a_sampled_softmax_leaves_out_a_target_drawn_again_and_still_teaches():
    sampled = flat(SASRec, **{**TINY, "epochs": 4}, negatives=5, learning_rate=0.02, dropout=0.0)
    sampled.fit(small_log(), key=KEY)
    assert sampled.progress.losses[-1] < sampled.progress.losses[0]
    network = sampled.network
    states, targets = torch.randn(40, 8), torch.arange(40) % network.n_items
    torch.manual_seed(3)
    drawn = torch.randint(network.n_items, (5,))
    assert torch.isin(drawn, targets).any(), "some target is drawn again"
    logits = network.logits(states)
    expected = []
    for row, target in enumerate(targets.tolist()):
        own = [target, *(item for item in drawn.tolist() if item != target)]
        expected.append(-logits[row, own].log_softmax(0)[0])
    torch.manual_seed(3)
    torch.testing.assert_close(network.sampled_loss(states, targets), torch.stack(expected).mean())


@pytest.mark.parametrize("model", [SASRec, GRU4Rec])
def test_no_position_sees_what_comes_after_it(model):
    recommender = flat(model, **TINY)
    recommender.fit(small_log(), key=KEY)
    rows = torch.tensor([[1, 2, 3, 4, 5]])
    changed = torch.tensor([[1, 2, 3, 9, 8]])
    with torch.no_grad():
        states, others = recommender.network.encode(rows), recommender.network.encode(changed)
    torch.testing.assert_close(states[:, :3], others[:, :3])
    assert (states[:, 3] - others[:, 3]).abs().max() > 1e-4


def test_bert4rec_does_not_see_the_masked_item():
    recommender = flat(BERT4Rec, **TINY, mask_share=0.5)
    recommender.fit(small_log(), key=KEY)
    network = recommender.network
    rows = torch.tensor([[1, 2, 3, -1]])
    asked = torch.tensor([[1, 2, 3, network.mask]])
    with torch.no_grad():
        torch.testing.assert_close(network.user_states(rows[:, :3]), network.encode(asked)[:, 3])
        torch.testing.assert_close(network.user_states(rows), network.user_states(rows[:, :3]))


def test_padding_does_not_matter():
    for model in MODELS:
        recommender = flat(model, **TINY)
        recommender.fit(small_log(), key=KEY)
        short, long = torch.tensor([[4, 7]]), torch.tensor([[4, 7, -1, -1]])
        with torch.no_grad():
            torch.testing.assert_close(recommender.network.user_states(short), recommender.network.user_states(long))


@pytest.mark.parametrize("model", MODELS)
def test_early_stop_keeps_the_best_epoch(model):
    recommender = flat(model, **{**TINY, "epochs": 4}, early_stop=True, evaluate_every=1, learning_rate=0.05)
    recommender.fit(cycles(), key=KEY)
    assert recommender.progress.best_score == max(score for _, _, score in recommender.progress.scores)


@pytest.mark.parametrize("model", MODELS)
def test_weights_of_another_shape_are_not_loaded(model, tmp_path):
    recommender = flat(model, **TINY)
    recommender.fit(small_log(), key=KEY)
    recommender.save(tmp_path)
    with pytest.raises(RunDirectoryError, match="no readable weights"):
        flat(model, **{**TINY, "embedding_size": 16}).load(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: flat(SASRec, heads=3), "heads=3"),
        (lambda: flat(BERT4Rec, mask_share=1.0), "mask_share=1.0"),
        (lambda: flat(GRU4Rec, dropout=1.0), "dropout=1.0"),
        (lambda: flat(SASRec, history=0), "history=0"),
        (lambda: flat(SASRec, negatives=-1), "negatives=-1"),
    ],
)
def test_wrong_options_are_an_error(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
