"""SASRec, BERT4Rec and GRU4Rec: the suite, that they learn, and that no position sees its own target."""

import numpy as np
import pytest
import torch

from recommenders.neural.sequential import BERT4Rec, GRU4Rec, SASRec
from recommenders.testing import KEY, RecommenderSuite, small_log
from simenv.errors import ConfigError, RunDirectoryError
from tests.recommenders.flat import flat
from tests.recommenders.neural.planted import cycles, hits_at_1

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


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (SASRec, {"epochs": 12, "layers": 1}),
        (SASRec, {"epochs": 12, "layers": 1, "block": "ligr", "loss": "sampled_softmax", "negatives": 20}),
        (SASRec, {"epochs": 15, "layers": 1, "loss": "bce", "negatives": 8}),
        (GRU4Rec, {"epochs": 12, "layers": 1}),
        (GRU4Rec, {"epochs": 15, "layers": 1, "loss": "bpr", "negatives": 8}),
        (BERT4Rec, {"epochs": 60, "layers": 1}),
    ],
)
def test_it_learns_what_comes_next(model, options):
    assert hits_at_1(model, batch_size=16, dropout=0.0, **options) > 0.9


def test_losses_of_pairs_are_what_the_papers_say():
    recommender = flat(SASRec, **TINY, loss="bce", negatives=3)
    recommender.fit(small_log(), key=KEY)
    network = recommender.network
    states, targets = torch.randn(50, 8), torch.arange(50) % network.n_items
    logits = network.logits(states)
    own = logits[torch.arange(50), targets]
    torch.manual_seed(3)
    drawn = torch.randint(network.n_items, (50, 3))
    assert (drawn == targets[:, None]).any(), "some target is drawn as a negative"
    others, counted = logits.gather(1, drawn), (drawn != targets[:, None]).float()
    bce = -(own.sigmoid().log().sum() + (counted * (1 - others.sigmoid()).log()).sum()) / 50
    bpr = -(counted * (own[:, None] - others).sigmoid().log()).sum() / counted.sum()
    for kind, expected in (("bce", bce), ("bpr", bpr)):
        network.kind = kind
        torch.manual_seed(3)
        torch.testing.assert_close(network.pair_loss(states, targets), expected)


def test_a_sampled_softmax_leaves_out_a_target_drawn_again_and_still_teaches():
    sampled = flat(
        SASRec, **{**TINY, "epochs": 4}, loss="sampled_softmax", negatives=5, learning_rate=0.02, dropout=0.0
    )
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
def test_a_network_starts_without_an_opinion_and_reads_items_as_loud_as_places(model):
    recommender = flat(model, **{**TINY, "embedding_size": 64})
    recommender.n_items = 200
    recommender._build(0)
    recommender.network.requires_grad_(False)
    network, rows = recommender.network, torch.arange(200).view(40, 5)
    assert network.logits(network.user_states(rows)).std() < 0.2  # at a deviation of d^-.5 it is about 1
    assert float(network.embed(rows).std()) == pytest.approx(64**-0.5, rel=0.1)


def test_networks_saved_before_embeddings_were_scaled_are_read_as_they_were(tmp_path):
    recommender = flat(SASRec, **TINY)
    recommender.fit(small_log(), key=KEY)
    recommender.save(tmp_path)
    with np.load(tmp_path / "arrays.npz") as stored:
        np.savez(tmp_path / "arrays.npz", **{name: stored[name] for name in stored.files if name != "state.scale"})
    recommender.load(tmp_path)
    assert recommender.network.scale == 1


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
        (lambda: flat(SASRec, negatives=9), "negatives=9: expected 0, cross_entropy takes"),
        (lambda: flat(GRU4Rec, loss="hinge"), "loss=hinge: expected one of cross_entropy"),
        (lambda: flat(SASRec, block="dense"), "block=dense: expected one of transformer, ligr"),
    ],
)
def test_wrong_options_are_an_error(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
