"""Option records: frozen dataclasses that a constructor takes as they are, or as a mapping of some of their fields.

So a yaml says ``training: {epochs: 3}``, and no constructor takes thirty options. The module does not know whose
options they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from simenv.errors import ConfigError

Record = TypeVar("Record")


def record(defaults: Record, given: Record | Mapping[str, Any] | None, what: str) -> Record:
    """The options given, over the defaults.

    Args:
        defaults: a record, which is what None means.
        given: a record, taken whole, or a mapping of the fields that differ from the defaults.
        what: the name of the option, for the message.

    Raises:
        ConfigError: a field that the record does not have, or something else altogether.
    """
    if given is None or isinstance(given, type(defaults)):
        return defaults if given is None else given
    known = [field.name for field in fields(defaults)]  # type: ignore[arg-type]
    if not isinstance(given, Mapping):
        raise ConfigError(f"{what}={given!r}: expected a mapping with some of {', '.join(known)}")
    for name in given:
        if name not in known:
            raise ConfigError(f"{what}.{name}: unknown option; expected some of {', '.join(known)}")
    return replace(defaults, **given)  # type: ignore[type-var]


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as mappings within mappings: ``{"training.epochs": 3}`` is ``{"training": {"epochs": 3}}``."""
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *path, last = name.split(".")
        below = tree
        for part in path:
            below = below.setdefault(part, {})
            if not isinstance(below, dict):
                raise ConfigError(f"{name}={value}: {part} is set to {below!r} already; expected one or the other")
        below[last] = value
    return tree
