"""FDSA and S3-Rec: the suite, that they learn, and that what items are reaches them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recommenders.neural.attributes import FDSA, S3Rec, item_attributes, listed
from recommenders.testing import KEY, RecommenderSuite, small_dataset, small_log
from simenv.errors import ConfigError, RecommenderError
from tests.recommenders.flat import flat
from tests.recommenders.neural.planted import cycles, hits_at_1

TINY = {"embedding_size": 8, "layers": 1, "history": 6, "epochs": 1, "batch_size": 256}


@pytest.mark.slow
class TestS3RecSuite(RecommenderSuite):
    def make(self):
        return flat(S3Rec, **TINY, pretraining=1)


@pytest.mark.parametrize(("model", "options"), [(FDSA, {}), (S3Rec, {"pretraining": 2})])
def test_it_learns_what_comes_next(model, options):
    assert hits_at_1(model, layers=1, epochs=10, batch_size=16, dropout=0.0, loss="cross_entropy", **options) > 0.8


def test_attributes_are_genres_and_shared_values_of_texts():
    catalog = small_dataset(small_log()).catalog
    brand = np.array(["acme", "acme", "lone", ""] + ["", "zeta", "zeta"] * 18 + ["", ""])
    paths = np.array(["a > b"] * 60)
    catalog = replace(catalog, attributes={"brand": brand, "category_path": paths, "year": np.arange(60)})
    table = item_attributes(catalog)
    assert table.shape == (60, 6)
    np.testing.assert_array_equal(table[:, :4], catalog.genres)
    np.testing.assert_array_equal(table[:, 4], brand == "acme")
    np.testing.assert_array_equal(listed(np.array([[1, 0, 1], [0, 0, 0]], bool)), [[0, 2], [-1, -1]])


def test_fdsa_reads_what_items_are():
    recommender = flat(FDSA, **TINY)
    recommender.bind_dataset(small_dataset(small_log()))
    recommender.fit(small_log(), key=KEY)
    network, rows = recommender.network, torch.tensor([[1, 2, 3, -1]])
    with torch.no_grad():
        before = network.user_states(rows)
        torch.testing.assert_close(before, network.user_states(rows[:, :3]))
        network.listed[2] = network.listed[2].roll(1)  # the order of attributes says nothing
        torch.testing.assert_close(before, network.user_states(rows))
        network.listed[2] = -1
        assert (before - network.user_states(rows)).abs().max() > 1e-4
        assert network.encode(rows)[0, 0].isfinite().all()


def test_pretraining_teaches_attributes():
    log = cycles()
    recommender = flat(
        S3Rec, **{**TINY, "embedding_size": 32, "history": 10, "batch_size": 16}, pretraining=12, learning_rate=0.02
    )
    dataset = small_dataset(log)
    recommender.bind_dataset(dataset)
    recommender.fit(log, key=KEY)
    losses = recommender.pretraining_losses
    assert len(losses) == 12
    assert losses[-1] < 0.9 * losses[0]
    network = recommender.network
    with torch.no_grad():
        told = network.of_item(network.embed(torch.arange(20))) @ network.features.weight.T
    right = (told.numpy() > 0) == dataset.catalog.genres
    assert right.mean() > 0.85


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: flat(S3Rec, pretraining=-1), "pretraining=-1"), (lambda: flat(FDSA, heads=3), "fdsa: heads=3")],
)
def test_wrong_options_are_an_error(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_without_a_catalogue_there_is_one_clear_error():
    with pytest.raises(RecommenderError, match="s3rec: knows no attributes of 60 items; bind_dataset first"):
        flat(S3Rec, **TINY).fit(small_log(), key=KEY)
