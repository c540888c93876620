"""Option records: frozen dataclasses that a constructor takes as they are, or as a mapping of some of their fields.

So a yaml says ``training: {epochs: 3}``, and no constructor takes thirty options. The module does not know whose
options they are.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from simenv.errors import ConfigError, did_you_mean

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


def parameters(target: Callable[..., Any]) -> dict[str, Any] | None:
    """Annotation of every option that a class or function takes, base classes' included; None = it takes any."""
    classes = target.__mro__ if isinstance(target, type) else (target,)
    found: dict[str, Any] = {}
    for each in classes:
        function = vars(each).get("__init__") if isinstance(each, type) else each
        if function is None:
            continue
        signature = inspect.signature(function)
        hints = _hints(function)
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        for parameter in signature.parameters.values():
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) and parameter.name != "self":
                found.setdefault(parameter.name, hints.get(parameter.name))
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return found
    return None


def place_of(option: str, target: Callable[..., Any]) -> str | None:
    """Where an option that `target` does not take by itself lies in its records, as in ``training.epochs``."""
    for name, annotation in (parameters(target) or {}).items():
        for kind in (annotation, *typing.get_args(annotation)):
            if isinstance(kind, type) and is_dataclass(kind) and option in {field.name for field in fields(kind)}:
                return f"{name}.{option}"
    return None


def check_known(options: Iterable[str], target: Callable[..., Any], what: str) -> None:
    """Refuse options that a constructor does not take, and say where those of its records lie.

    Raises:
        ConfigError: naming the first one.
    """
    known = parameters(target)
    for name in options:
        if known is None or name in known:
            continue
        place = place_of(name, target)
        if place:
            raise ConfigError(f"{what}.{name}: unknown option; it is {what}.{place}")
        listed = ", ".join(known) or "none"
        raise ConfigError(f"{what}.{name}: unknown option{did_you_mean(name, known)}; {target.__name__} takes {listed}")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError:  # annotations of a type checker's own imports
        return {}
