"""Decoding with a T5: its encoder's own forward pass, and the lists of transformers' generate."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from recommenders.p5.networks.t5_decoding import encoded
from recommenders.p5.prompted import P5


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_prompts_are_encoded_as_by_the_encoder_itself(kind: str):
    config = T5Config(
        vocab_size=20, d_model=12, d_kv=5, d_ff=16, num_layers=3, num_heads=2, feed_forward_proj=kind, dropout_rate=0.1
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        t5 = T5ForConditionalGeneration(config).eval()
        prompts = torch.randn(4, 40, 12)  # longer than a relative position has buckets of its own
        mask = torch.arange(40)[None] < torch.tensor([40, 31, 7, 1])[:, None]
        before = prompts.clone()
        expected = t5.encoder(inputs_embeds=prompts, attention_mask=mask.long()).last_hidden_state
        states = encoded(t5, prompts, mask)
    assert torch.equal(prompts, before)
    assert expected[mask].abs().max() > 0.5
    np.testing.assert_allclose(states[mask], expected[mask], atol=1e-5)


@pytest.fixture(scope="module")
def p5_decoding() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[3] / "benchmarks")
        return importlib.import_module("p5_decoding")


@pytest.fixture(scope="module", params=["collaborative", "collaborative+independent"])
def untrained(request: pytest.FixtureRequest, p5_decoding: ModuleType) -> P5:
    log = p5_decoding.random_log(30, 150)
    return p5_decoding.untrained(
        log, device="cpu", index={"name": request.param, "options": {"clusters": 8, "leaf_size": 6}}
    )


@pytest.mark.parametrize("beams", [10, 40, 200])  # narrower than the last levels, than the last one only, than none
def test_a_beam_finds_the_lists_of_generate(beams: int, untrained: P5, p5_decoding: ModuleType):
    users = np.arange(12)
    lists = p5_decoding.by_beam(untrained, users, 5, beams)
    assert (lists >= 0).all()
    np.testing.assert_array_equal(lists, p5_decoding.by_generate(untrained, users, 5, beams))


def test_a_batch_of_users_gets_the_lists_of_each_alone(untrained: P5, p5_decoding: ModuleType):
    together = p5_decoding.by_beam(untrained, np.arange(6), 5, 10)
    alone = [p5_decoding.by_beam(untrained, np.array([user]), 5, 10)[0] for user in range(6)]
    np.testing.assert_array_equal(together, alone)
