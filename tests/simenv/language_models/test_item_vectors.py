"""Item vectors: what a model's layers say of the texts, kept, and felt by tastes, content and RQ-VAE codes."""

from __future__ import annotations

import numpy as np
import pytest

from agents.tastes import ContentTastes
from recommenders.content import Content
from simenv.datasets import synthetic
from simenv.errors import ConfigError
from simenv.language_models import item_vectors as module
from simenv.language_models.item_vectors import encode, item_vectors, texts_of
from tests.simenv.language_models.local.test_model import save_tiny_model

torch = pytest.importorskip("torch")
WORLD = synthetic(n_users=60, n_items=40, seed=0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "simenv" / "item-vectors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny")


def test_a_text_is_encoded_as_if_it_were_alone(folder):
    from transformers import AutoModel, AutoTokenizer

    texts = texts_of(WORLD.catalog)[:5]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    found = encode(texts, folder)
    for text, row in zip(texts, found, strict=True):
        with torch.no_grad():
            states = network(torch.tensor([tokenizer.encode(text)]), output_hidden_states=True).hidden_states
        alone = torch.cat([states[layer][0, 1:].mean(dim=0) for layer in (1, 1)])  # of two layers
        np.testing.assert_allclose(row, alone.numpy(), rtol=1e-4, atol=1e-5)


def test_vectors_are_kept_and_made_anew_for_other_texts(folder, cache, monkeypatch):
    found = item_vectors(WORLD.catalog, str(folder), 8)
    assert found.shape == (40, 8)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-5)
    monkeypatch.setattr(module, "encode", lambda *_: pytest.fail("encoded again"))
    np.testing.assert_array_equal(item_vectors(WORLD.catalog, str(folder), 8), found)
    with pytest.raises(pytest.fail.Exception, match="encoded again"):
        item_vectors(WORLD.catalog.take(np.arange(39)), str(folder), 8)
    assert len(list(cache.iterdir())) == 1


def test_they_are_features_of_tastes_content_and_codes(tmp_path):
    """With vectors that say who likes what, each of the three finds it."""
    rng = np.random.default_rng(0)
    kind = np.arange(40) % 2
    known = tmp_path / "known.npy"
    np.save(known, kind[:, None] * 3.0 + rng.normal(size=(40, 4)) * [[0.1]])

    def apart(vectors):
        same = vectors @ vectors.T
        return same[kind == 0][:, kind == 0].mean() - same[kind == 0][:, kind == 1].mean()

    items = [
        ContentTastes(dims=16, min_items=1, item_vectors=given, vector_weight=1.0).vectors(
            WORLD.catalog, WORLD.interactions, rng
        )[1]
        for given in (None, str(known))
    ]
    assert apart(items[1]) > apart(items[0]) + 0.1
    assert items[1].shape[1] == 16
    rows = [Content(item_vectors=given).item_vectors(WORLD.catalog).toarray() for given in (None, str(known))]
    assert apart(rows[1]) > apart(rows[0]) + 0.1

    from recommenders.p5.indexes.base import IndexSource
    from recommenders.p5.indexes.rqvae import item_vectors as coded
    from simenv.training.histories import Histories

    histories = Histories.from_log(WORLD.interactions)
    source = IndexSource(histories=histories, catalog=WORLD.catalog)
    assert apart(coded(source, str(known), 8, rng)) > apart(coded(source, "text", 8, rng)) + 0.1


@pytest.mark.parametrize("given", ["absent", "few"])
def test_what_are_no_vectors_of_these_items_is_named(tmp_path, given):
    np.save(tmp_path / "few.npy", np.zeros((3, 4)))
    path = tmp_path / "few.npy" if given == "few" else "nowhere/model"
    with pytest.raises(ConfigError, match=r"item_vectors=.*expected"):
        item_vectors(WORLD.catalog, path, 8)
