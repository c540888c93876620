"""Slots: the integers and letters of an answer, as its JSON schema names them, and the text around and before them.

The module knows neither tokens nor models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from simenv.errors import ConfigError

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
HIGHEST = 99_999  # decoding lists every value of a range


@dataclass(frozen=True)
class Slot:
    """An integer of an answer: where it stands, and its inclusive range; or one of some letters."""

    path: tuple[str, ...]
    low: int
    high: int
    letters: tuple[str, ...] = ()

    @cached_property
    def numbers(self) -> frozenset[str]:
        """Every value as it is written."""
        return frozenset(self.letters or (str(value) for value in range(self.low, self.high + 1)))

    @cached_property
    def beginnings(self) -> frozenset[str]:
        """Every beginning of a value as it is written."""
        return frozenset(number[:end] for number in self.numbers for end in range(1, len(number) + 1))

    @property
    def one_digit(self) -> bool:
        """Whether every value is a single digit."""
        return self.high <= 9 or bool(self.letters)

    @property
    def asked(self) -> tuple[int, int]:
        """The digits a model is asked for: the range itself; 0-9 for one that a digit cannot express."""
        return (self.low, self.high) if self.one_digit else (0, 9)


def skeleton(schema: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Slot | None]]:
    """The fixed text of an answer and the integers in it: pairs (text before, slot), the last with slot None.

    Raises:
        ConfigError: a schema with anything but objects, bounded integers and one of some capital letters.
    """
    text = ""
    for piece in _pieces(schema, path):
        if isinstance(piece, Slot):
            yield text, piece
            text = ""
        else:
            text += piece
    yield text, None


def slots(schema: Mapping[str, Any]) -> list[Slot]:
    """The integers of an answer in its order.

    Raises:
        ConfigError: as for `skeleton`, and where there is none.
    """
    found = [slot for _, slot in skeleton(schema) if slot is not None]
    if not found:
        raise ConfigError("answer schema: no integer and no letter in it; a local model has nothing to decide")
    return found


def lead(slot: Slot, *, told: bool = False) -> str:
    """The shortest beginning of an answer that leads to a slot.

    Args:
        slot: that it leads to.
        told: the prompt itself asks for a digit, so that this need not.
    """
    *parents, name = slot.path
    name = name if slot.one_digit or told else f"{name} in tenths, 0-9"
    quote = '"' if slot.letters else ""
    return "".join("{" + json.dumps(parent) + ":" for parent in parents) + "{" + json.dumps(name) + ":" + quote


def _pieces(schema: Any, path: tuple[str, ...]) -> Iterator[str | Slot]:
    kind = schema.get("type") if isinstance(schema, Mapping) else schema
    if kind == "integer" and _bounded(low := schema.get("minimum"), high := schema.get("maximum")):
        yield Slot(path, int(low), int(high))
    elif kind == "string" and (letters := schema.get("enum")) and set(letters) <= set(LETTERS):
        yield '"'
        yield Slot(path, 0, len(letters), tuple(letters))
        yield '"'
    elif kind == "object" and isinstance(schema.get("properties"), Mapping):
        yield "{"
        for position, (name, inner) in enumerate(schema["properties"].items()):
            yield ("," if position else "") + json.dumps(name) + ":"
            yield from _pieces(inner, (*path, name))
        yield "}"
    else:
        raise ConfigError(
            f"answer schema at '{'.'.join(path)}': {str(kind)[:60]}; a local model takes objects, integers from "
            f"'minimum' to 'maximum', both within 0-{HIGHEST}, and an 'enum' of capital letters"
        )


def _bounded(low: Any, high: Any) -> bool:
    whole = all(isinstance(bound, int | float) and bound == bound // 1 for bound in (low, high))
    return whole and 0 <= low <= high <= HIGHEST
