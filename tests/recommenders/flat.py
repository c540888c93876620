"""Recommenders from options by their bare names, for tests: which record an option lies in is looked up."""

from typing import Any

from simenv.checks import parameters, place_of
from simenv.records import nested

NAMES = {"index": "index.name", "index_options": "index.options", "decoding": "decoding.kind"}


def flat(kind: Any, **options: Any) -> Any:
    """`flat(P5, layers=1, epochs=2)` is `P5(network={"layers": 1}, training={"epochs": 2})`."""
    known = parameters(kind) or {}
    places = {name: NAMES.get(name, name if name in known else place_of(name, kind) or name) for name in options}
    return kind(**nested({places[name]: value for name, value in options.items()}))
