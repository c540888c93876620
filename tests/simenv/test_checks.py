"""Checks: annotations as the schema, and the words in which a wrong value is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from simenv import checks
from simenv.errors import ConfigError, DataError
from simenv.language_models import openai


class Base:
    def __init__(self, *, depth: int = 1, names: Sequence[str] = ()) -> None: ...


class Model(Base):
    def __init__(
        self,
        size: int,
        rate: float = 0.1,
        kind: Literal["a", "b"] = "a",
        weights: Mapping[str, float] | None = None,
        ratios: tuple[int, ...] = (1,),
        path: str | Path | None = None,
        on: bool = False,
        other: Base | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": True}, "m.size=true: expected a whole number"),
        ({"size": 2.0}, "m.size=2.0: expected a whole number"),
        ({"size": "abc"}, "m.size=abc: expected a whole number"),
        ({"size": 10**20}, f"m.size={10**20}: expected a whole number, at most {2**63 - 1} in size"),
        ({"rate": float("nan")}, "m.rate=nan: expected a number"),
        ({"rate": float("-inf")}, "m.rate=-inf: expected a number"),
        ({"rate": None}, "m.rate=null: expected a number"),
        ({"rate": {}}, "m.rate={}: expected a number"),
        ({"rate": [[[]]]}, "m.rate=[[[]]]: expected a number"),
        ({"kind": "c"}, "m.kind=c: expected one of a, b"),
        ({"weights": {"x": float("nan")}}, "m.weights={'x': nan}: expected null or a mapping of text to a number"),
        ({"ratios": [1, "x"]}, r"m.ratios=[1, 'x']: expected a list, each a whole number (at [1])"),
        ({"on": 1}, "m.on=1: expected true or false"),
        ({"other": 3}, "m.other=3: expected null or a Base"),
        ({"depth": "x"}, "m.depth=x: expected a whole number"),
        ({"names": "ab"}, "m.names=ab: expected a list, each text"),
        ({"deep": 1}, "m.deep: unknown option (did you mean 'depth'?); Model takes size, rate"),
    ],
)
def test_the_annotations_of_a_constructor_are_the_schema(options, said):
    with pytest.raises(ConfigError) as caught:
        checks.conform(Model, options, "m.")
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "options",
    [
        {"size": np.int64(3), "rate": np.float32(1), "kind": "b", "weights": {"x": 1}, "ratios": [1, 2], "path": "a"},
        {"size": -3, "rate": 1, "weights": None, "ratios": (), "path": Path("a"), "on": True, "names": ["a"]},
        {"size": 1, "other": {"_target_": "somewhere.else"}, "_convert_": "all"},
        {"size": 1, "other": Model(1)},
    ],
)
def test_what_a_constructor_takes_passes(options):
    checks.conform(Model, options, "m.")


def test_fields_of_a_dataclass():
    @dataclass(frozen=True)
    class Settings:
        alpha: float
        margins: Mapping[str, float]

        def __post_init__(self) -> None:
            checks.check_fields(self)

    Settings(0.05, {})
    with pytest.raises(ConfigError, match="margins=null: expected a mapping of text to a number"):
        Settings(0.05, None)  # type: ignore[arg-type]


def test_ranges_in_words():
    checks.whole("n", 3, 1, 5)
    checks.whole("n", None, none=True)
    checks.share("s", 1)
    checks.number("x", -2.5)
    for call, said in (
        (lambda: checks.whole("n", 0, 1), "n=0: expected a whole number, at least 1"),
        (lambda: checks.whole("n", 2**63), f"n={2**63}: expected a whole number, 0 to {2**63 - 1}"),
        (lambda: checks.whole("n", 2.0, 1, 5, none=True), "n=2.0: expected null or a whole number, 1 to 5"),
        (lambda: checks.share("s", float("nan")), "s=nan: expected a share in [0, 1]"),
        (lambda: checks.share("s", 0, open_low=True), "s=0: expected a share in (0, 1]"),
        (lambda: checks.number("x", 0, 0, open_low=True), "x=0: expected a number above 0"),
        (lambda: checks.number("x", float("inf"), 0), "x=inf: expected a number, at least 0"),
        (lambda: checks.number("x", 3, 0, 2), "x=3: expected a number in [0, 2]"),
        (lambda: checks.one_of("k", "c", ("a", "b")), "k=c: expected one of a, b"),
        (lambda: checks.one_of("k", None, ("a", "b")), "k=null: expected one of a, b"),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value) == said
    with pytest.raises(DataError):
        checks.whole("n", -1, error=DataError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", float("nan")),
        ("timeout", None),
        ("backoff", float("nan")),
        ("concurrency", True),
        ("max_retries", 1.5),
        ("budget_dollars", float("nan")),
        ("budget_calls", "many"),
        ("price_prompt", None),
    ],
)
def test_options_of_language_models_are_checked_too(name, value):
    with pytest.raises(ConfigError, match=f"^llm.{name}=.*: expected (null or )?a (whole )?number"):
        checks.conform(openai, {"model": "m", name: value}, "llm.")


def test_sizes_that_no_memory_holds_are_refused():
    def sequence_model(history: int) -> None:
        """Something with an array as long as the history."""

    checks.conform(sequence_model, {"history": 100_000}, "m.")
    with pytest.raises(ConfigError, match=r"m\.history=4611686018427387904: expected at most 100,000"):
        checks.conform(sequence_model, {"history": 2**62}, "m.")
