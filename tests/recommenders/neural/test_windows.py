"""Caser and HGN: the suite, that they learn, and what a state depends on."""

import pytest
import torch

from recommenders.neural.windows import HGN, Caser
from recommenders.testing import KEY, RecommenderSuite, small_log
from simenv.errors import ConfigError
from tests.recommenders.flat import flat
from tests.recommenders.neural.planted import hits_at_1

TINY = {"embedding_size": 8, "history": 6, "epochs": 1, "batch_size": 256}


class TestCaserSuite(RecommenderSuite):
    def make(self):
        return flat(Caser, **TINY)


@pytest.mark.parametrize(
    ("model", "options"),
    [(Caser, {"negatives": 8, "dropout": 0.0}), (HGN, {"negatives": 8})],
)
def test_it_learns_what_comes_next(model, options):
    assert hits_at_1(model, epochs=10, batch_size=16, **options) > 0.8


@pytest.mark.parametrize("model", [Caser, HGN])
def test_a_state_depends_on_its_window_and_its_user_alone(model):
    recommender = flat(model, **TINY, window=3)
    recommender.fit(small_log(), key=KEY)
    network, users = recommender.network, torch.tensor([4])
    rows = torch.tensor([[1, 2, 3, 4, 5, 6]])
    with torch.no_grad():
        states = network.encode(rows, users)
        later = network.encode(torch.tensor([[1, 2, 3, 4, 9, 8]]), users)
        earlier = network.encode(torch.tensor([[9, 8, 3, 4, 5, 6]]), users)
        other = network.encode(rows, users + 1)
        short = network.user_states(torch.tensor([[4, 7]]), users)
        padded = network.user_states(torch.tensor([[4, 7, -1, -1]]), users)
    torch.testing.assert_close(states[:, :4], later[:, :4])
    assert (states[:, 4] - later[:, 4]).abs().max() > 1e-4
    torch.testing.assert_close(states[:, 4:], earlier[:, 4:])
    assert (states - other).abs().amax(dim=2).min() > 1e-4
    torch.testing.assert_close(short, padded)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: flat(HGN, window=0), "hgn: window=0: expected a whole number, 1 to 50"),
        (lambda: flat(Caser, window=7, history=6), "caser: window=7: expected a whole number, 1 to 6"),
        (lambda: flat(Caser, vertical=0), "vertical=0"),
    ],
)
def test_wrong_options_are_an_error(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
