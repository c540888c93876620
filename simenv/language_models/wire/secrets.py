"""Keys: cut from every text that may be shown or stored, in every form in which a text may hold them.

What came from the environment as a key is a secret, and so is a parameter whose name says so.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus

SHORTEST = 8  # characters; servers without keys are given words such as EMPTY or none
_VARIABLE = re.compile(r"(API_?KEY|_TOKEN|_SECRET|PASSWORD)$", re.I)
_PARAMETER = re.compile(r"(api[-_]?key|authorization|credential|headers|password|secret|(^|[-_])token)$", re.I)
_TELLTALE = re.compile(
    r"\b(sk|key)-[\w-]{6,}"
    r"|(?<=Bearer )[\w.~+/=-]{8,}"
    r"|(?<=(?:api_key|api-key)[=:])[^\s,}'\"]+"
    r"|(?<=password[=:])[^\s,}'\"]+"
    r"|(?<=authorization[=:])[^,}'\"]+",
    re.I,
)


def api_key() -> str | None:
    """``OPENAI_API_KEY`` without what copying leaves around a key: white space, a carriage return, quotes."""
    return _bare(os.environ.get("OPENAI_API_KEY", "")) or None


def redacted(text: str) -> str:
    """A text without keys: those of the environment, as they are and as repr, JSON, URLs and percent-encoding write
    them, and whatever looks like one.
    """
    forms = {form for value in _of_environment() for form in _forms(value)}
    for form in sorted(forms, key=len, reverse=True):
        text = re.sub(re.escape(form), "[key]", text, flags=re.I)
    return _TELLTALE.sub("[key]", text)


def without_keys(text: str) -> str:
    """An answer without the environment's keys; text that only looks like a key stays."""
    for form in sorted({form for value in _of_environment() for form in _forms(value)}, key=len, reverse=True):
        text = text.replace(form, "[key]")
    return text


def public(parameters: Any) -> Any:
    """Parameters of a request without those that hold secrets, which change no answer; keys inside others are cut."""
    if isinstance(parameters, Mapping):
        return {name: public(value) for name, value in parameters.items() if not _PARAMETER.search(str(name))}
    if isinstance(parameters, list | tuple):
        return [public(value) for value in parameters]
    return redacted(parameters) if isinstance(parameters, str) else parameters


def _of_environment() -> list[str]:
    values = [value for name, value in os.environ.items() if _names_a_key(name)]
    return [value for value in values if len(_bare(value)) >= SHORTEST]


@lru_cache(maxsize=1 << 12)
def _names_a_key(variable: str) -> bool:
    return _VARIABLE.search(variable) is not None


def _bare(value: str) -> str:
    return value.strip().strip("\"'").strip()


def _forms(value: str) -> set[str]:
    found = set()
    for text in (value, _bare(value)):
        found |= {text, repr(text)[1:-1], json.dumps(text)[1:-1], quote(text), quote(text, safe=""), quote_plus(text)}
    return found
