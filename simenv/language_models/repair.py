"""JSON of language models: schemas that ask for it, and the reading of answers - strictly, then with local repairs.

Repairs mend syntax (prose around the object, trailing commas, single quotes, bare keys, missing closing brackets) and
numbers written as strings; what an answer does not say is not filled in. The module does not know what was asked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_NUMBER = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*(?:%|/\s*\d+)?\s*")


class ParseError(ValueError):
    """An answer does not say what was asked; `reason` is one word for the accounting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of an object with exactly these properties."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def integer_schema(low: int, high: int) -> dict[str, Any]:
    """The JSON schema of an integer from `low` to `high`."""
    return {"type": "integer", "minimum": low, "maximum": high}


def without_wrapping(text: str) -> str:
    """An answer without reasoning (``<think>``, ``[THINK]``, the channels of harmony) and without code fences."""
    text = re.sub(r"\[(/?)THINK\]", r"<\1think>", text)
    text = re.sub(r"<think(?:ing)?>.*?</think(?:ing)?>", "", text, flags=re.S | re.I)
    text = re.sub(r"^.*</think(?:ing)?>", "", text, flags=re.S | re.I)  # templates may open the tag in the prompt
    text = re.sub(r"<think(?:ing)?>.*$", "", text, flags=re.S | re.I)
    if "<|channel|>" in text:
        _, _, text = text.rpartition("<|channel|>final")
        text = re.sub(r"^.*?<\|message\|>", "", text, flags=re.S)
    text = re.sub(r"<\|(?:end|return|eot_id|im_end)\|>.*$", "", text, flags=re.S)
    fenced = re.search(r"```[\w-]*\s*(.*?)(?:```|$)", text, flags=re.S)
    return (fenced.group(1) if fenced else text).strip()


def load_strict(text: str) -> Any:
    """The JSON of a text that is nothing else.

    Raises:
        ParseError: a key is given twice.
        ValueError: the text is no JSON.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise ParseError("duplicate", f"a key is given twice among {keys[:8]}")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def load_repaired(text: str) -> Any:
    """The first JSON object in a text, after mending its syntax.

    Raises:
        ParseError: there is none, or none that can be mended.
    """
    start = text.find("{")
    if start < 0:
        raise ParseError("no_json", f"no object in {text[:60]!r}")
    mended = _closed(text[start:].replace("“", '"').replace("”", '"'))
    for pattern, replacement in (
        (r"'([\w ]*)'", r'"\1"'),
        (r"([{,]\s*)([A-Za-z_]\w*)(\s*:)", r'\1"\2"\3'),
        (r",(\s*[}\]])", r"\1"),
    ):
        mended = re.sub(pattern, replacement, mended)
    try:
        return load_strict(mended)
    except json.JSONDecodeError as error:
        raise ParseError("bad_json", f"{error.msg} at character {error.pos}") from error


def read_number(value: Any, bounds: tuple[float, float], name: str, *, repaired: bool) -> float:
    """A number within bounds.

    Args:
        value: as it stands in the answer.
        bounds: smallest and largest.
        name: of the value, for the error.
        repaired: take numbers in strings too ("72", "80 %", "4/5").

    Raises:
        ParseError: it is no number, or out of bounds.
    """
    if repaired and isinstance(value, str) and (match := _NUMBER.fullmatch(value)):
        value = float(match.group(1))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ParseError("no_number", f"{name} is {value!r}; expected a number")
    if not bounds[0] <= value <= bounds[1]:
        raise ParseError("out_of_range", f"{name} is {value!r}; expected {bounds[0]} to {bounds[1]}")
    return float(value)


def _closed(text: str) -> str:
    """A text that begins with ``{``, up to the bracket that closes it; brackets that never close are added."""
    stack: list[str] = []
    quoted = False
    for position, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif character in "{[":
            stack.append("}" if character == "{" else "]")
        elif character in "}]":
            if not stack or stack.pop() != character:
                raise ParseError("bad_json", f"unexpected '{character}' at character {position}")
            if not stack:
                return text[: position + 1]
    return text.rstrip().rstrip(",") + "".join(reversed(stack))
