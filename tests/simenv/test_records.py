"""Options as records: given whole, in part, or by dotted names; unknown ones are refused and their place is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from simenv.checks import check_known, parameters, place_of
from simenv.errors import ConfigError
from simenv.records import nested, record


@dataclass(frozen=True, slots=True, kw_only=True)
class Oven:
    degrees: int = 180
    fan: bool = False


class Base:
    def __init__(self, *, oven: Oven | Mapping[str, Any] | None = None, minutes: int = 30) -> None: ...


class Cake(Base):
    def __init__(self, sugar: float, **options: Any) -> None: ...


def test_a_mapping_changes_the_defaults_and_a_record_replaces_them() -> None:
    assert record(Oven(degrees=200), None, "oven") == Oven(degrees=200)
    assert record(Oven(degrees=200), {"fan": True}, "oven") == Oven(degrees=200, fan=True)
    assert record(Oven(degrees=200), Oven(), "oven") == Oven()


@pytest.mark.parametrize(
    ("given", "words"),
    [({"grill": 1}, r"oven\.grill: unknown option; expected some of degrees, fan"), (7, "oven=7: expected a mapping")],
)
def test_what_is_no_option_of_the_record_is_refused(given: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        record(Oven(), given, "oven")


def test_dotted_names_are_mappings_within_mappings() -> None:
    assert nested({"oven.fan": True, "minutes": 5, "oven.degrees": 90}) == {
        "oven": {"fan": True, "degrees": 90},
        "minutes": 5,
    }
    with pytest.raises(ConfigError, match=r"oven\.fan=True: oven is set to 'hot' already"):
        nested({"oven": "hot", "oven.fan": True})


def test_options_are_those_of_the_base_classes_too() -> None:
    assert list(parameters(Cake) or {}) == ["sugar", "oven", "minutes"]
    assert parameters(lambda **anything: anything) is None


def test_an_option_that_lies_in_a_record_is_pointed_to() -> None:
    assert place_of("fan", Cake) == "oven.fan"
    assert place_of("grill", Cake) is None
    check_known(["sugar", "oven"], Cake, "cake.")
    with pytest.raises(ConfigError, match=r"^cake\.fan: unknown option; it is cake\.oven\.fan$"):
        check_known(["sugar", "fan"], Cake, "cake.")
    with pytest.raises(ConfigError, match=r"^cake\.grill: unknown option; Cake takes sugar, oven, minutes$"):
        check_known(["grill"], Cake, "cake.")
