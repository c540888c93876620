"""Errors keep their words on the way out of a worker process."""

import pickle

import pytest

from simenv.errors import BudgetExhausted, ConfigError, GateError, MissingExtraError, SimenvError


@pytest.mark.parametrize(
    "error", [ConfigError("a"), GateError("b"), BudgetExhausted("c"), MissingExtraError("recommender p5", "torch")]
)
def test_pickled_errors_say_the_same(error: SimenvError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.exit_code == error.exit_code


def test_a_missing_extra_says_how_to_get_it() -> None:
    assert str(MissingExtraError("recommender p5", "torch")) == (
        "recommender p5 needs the extra 'torch': run `make setup`, or `pip install -e '.[torch]'`"
    )
