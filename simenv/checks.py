"""Checks of values before work starts: one line that names the option, its value and what was expected.

The annotations of a constructor are its schema: `conform` holds options against them (with pydantic, strictly, so that
neither text, true nor NaN passes for a number). Ranges are the constructors' own, in the words of `whole`, `number`,
`share` and `one_of`, but for the sizes of `MOST`. The module does not know what an option means.
"""

from __future__ import annotations

import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from simenv.errors import ConfigError, SimenvError, did_you_mean

LARGEST = 2**63 - 1  # of whole numbers: what an int64 holds
MOST = {  # of sizes that arrays are made of: more is a slip of the pen, and would be met as a failed allocation
    "history": 100_000,
    "embedding_size": 65_536,
    "layers": 1_000,
    "depth_layers": 1_000,
    "heads": 1_024,
    "batch_size": 10_000_000,
    "history_size": 100_000,
}


def require(condition: bool, name: str, value: object, expected: str, error: type[SimenvError] = ConfigError) -> None:
    """Raise an error that says ``name=value: expected ...`` unless `condition` holds."""
    if not condition:
        raise error(f"{name}={_said(value)}: expected {expected}")


def is_number(value: Any) -> bool:
    """A finite real number; true and false are none."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and bool(np.isfinite(value))


def whole(
    name: str,
    value: Any,
    low: int = 0,
    high: int = LARGEST,
    *,
    none: bool = False,
    error: type[SimenvError] = ConfigError,
) -> None:
    """Raise `error` unless `value` is a whole number in [low, high], or None where `none` allows it."""
    if none and value is None:
        return
    fits = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and low <= int(value) <= high
    bound = f"at least {low}" if high == LARGEST and fits is False and not _too_large(value) else f"{low} to {high}"
    require(fits, name, value, f"{'null or ' if none else ''}a whole number, {bound}", error)


def number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    none: bool = False,
    error: type[SimenvError] = ConfigError,
) -> None:
    """Raise `error` unless `value` is a finite number from `low` to `high`, or None where `none` allows it.

    With `open_low` or `open_high` the bound itself is out.
    """
    if none and value is None:
        return
    fits = (
        is_number(value)
        and (low < value if open_low else low <= value)
        and (value < high if open_high else value <= high)
    )
    if math.isfinite(low) and math.isfinite(high):
        bound = f" in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
    elif math.isfinite(low):
        bound = f" above {low:g}" if open_low else f", at least {low:g}"
    else:
        bound = "" if high == math.inf else f", at most {high:g}"
    require(fits, name, value, f"{'null or ' if none else ''}a number{bound}", error)


def share(name: str, value: Any, *, open_low: bool = False, open_high: bool = False, none: bool = False) -> None:
    """Raise ConfigError unless `value` is a number from 0 to 1."""
    fits = (none and value is None) or (
        is_number(value) and (value > 0 if open_low else value >= 0) and (value < 1 if open_high else value <= 1)
    )
    bounds = f"{'(' if open_low else '['}0, 1{')' if open_high else ']'}"
    require(fits, name, value, f"{'null or ' if none else ''}a share in {bounds}")


def one_of(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise ConfigError unless `value` is among `known`."""
    known = tuple(known)
    require(isinstance(value, str) and value in known, name, value, f"one of {', '.join(known)}")


# -- annotations as the schema ----------------------------------------------------------------------------------


def conform(target: Callable[..., Any], options: Mapping[str, Any], what: str = "") -> None:
    """Hold options against the annotations of the constructor or function that will take them.

    Values that are specs themselves (mappings with ``_target_``, or lists with one) are left to whoever makes them; so
    are annotations that say nothing pydantic can check.

    Args:
        target: class or function.
        options: by name.
        what: what error messages put before the name, such as ``agent.``.

    Raises:
        ConfigError: the first option that is unknown or of another type, or a number that is not finite.
    """
    known, _ = _parameters(target)
    for name, value in options.items():
        if name in known:
            _check(f"{what}{name}", value, known[name])
    check_known([name for name in options if not name.startswith("_")], target, what)


def parameters(target: Any) -> dict[str, Any] | None:
    """Type of every option that a class or function takes, base classes' included; None = it takes any."""
    found, complete = _parameters(target)
    return found if complete else None


@runtime_checkable
class PassesOn(Protocol):
    """A function or class whose ``**options`` go on to another, whose annotations hold for them."""

    passes_on_to: Callable[..., Any]


def _parameters(target: Any) -> tuple[dict[str, Any], bool]:
    """Types by option, and whether these are all; `passes_on_to` of a function or class takes the further ones."""
    makers = [target]
    while isinstance(makers[-1], PassesOn):
        makers.append(makers[-1].passes_on_to)
    if isinstance(target, type):
        makers = [holder.__dict__["__init__"] for holder in target.__mro__ if "__init__" in holder.__dict__]
        makers[1:1] = [target.passes_on_to] if isinstance(target, PassesOn) else []
    found: dict[str, Any] = {}
    for maker in makers:
        signature = inspect.signature(maker).parameters.values()
        named = [p for p in signature if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self"]
        for each in named:
            found.setdefault(each.name, annotation_of(maker, each.annotation))
        if not any(p.kind is p.VAR_KEYWORD for p in signature) or maker is object.__init__:
            return found, True
    return found, False


def place_of(option: str, target: Callable[..., Any]) -> str | None:
    """Where an option that `target` does not take by itself lies in its records, as in ``training.epochs``."""
    for name, annotation in (parameters(target) or {}).items():
        kind = _record_of(annotation)
        if kind is not None and option in {field.name for field in fields(kind)}:
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
            raise ConfigError(f"{what}{name}: unknown option; it is {what}{place}")
        listed = ", ".join(known) or "none"
        raise ConfigError(f"{what}{name}: unknown option{did_you_mean(name, known)}; {target.__name__} takes {listed}")


def _record_of(annotation: Any) -> Any:
    """The option record that an annotation allows, or None."""
    kinds = (annotation, *typing.get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)), None)


def check_fields(instance: Any, what: str = "") -> None:
    """Hold the values of a dataclass against its annotations; for its `__post_init__`.

    Raises:
        ConfigError: as `conform`.
    """
    for field in fields(instance):
        _check(f"{what}{field.name}", getattr(instance, field.name), annotation_of(type(instance), field.type))


def annotation_of(owner: Any, annotation: Any) -> Any:
    """An annotation as a type; `Any` where it names what is imported for type checkers only."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    for holder in owner.__mro__ if isinstance(owner, type) else (owner,):
        names = vars(sys.modules[holder.__module__]) if holder.__module__ in sys.modules else {}
        try:
            return eval(annotation, dict(names))  # source of ours or of an extender, as in `typing.get_type_hints`
        except Exception:  # whatever an expression of names can raise
            continue
    return Any


def _check(name: str, value: Any, annotation: Any) -> None:
    if any(
        isinstance(each, Mapping) and "_target_" in each for each in (value if isinstance(value, list) else [value])
    ):
        return
    adapter = _adapter(annotation) if _hashable(annotation) else None
    if isinstance(value, np.generic):
        value = value.item()
    if _too_large(value):
        raise ConfigError(f"{name}={_said(value)}: expected {_in_words(annotation)}, at most {LARGEST} in size")
    most = MOST.get(name.rpartition(".")[2])
    if most is not None and is_number(value) and value > most:
        raise ConfigError(f"{name}={_said(value)}: expected at most {most:,}")
    kind = _record_of(annotation)
    if kind is not None and isinstance(value, Mapping):
        conform(kind, value, f"{name}.")
        return
    if adapter is None:
        return
    from pydantic import ValidationError

    for given in (value, _frozen(value)):
        try:
            adapter.validate_python(given)
        except ValidationError as error:
            where = error.errors(include_url=False, include_context=False)[0]["loc"]
        except Exception:
            return
        else:
            return
    index = "".join(f"[{part}]" for part in where if isinstance(part, int) and isinstance(value, Sequence))[:12]
    raise ConfigError(f"{name}={_said(value)}: expected {_in_words(annotation)}" + (f" (at {index})" if index else ""))


def _hashable(annotation: Any) -> bool:
    try:
        hash(annotation)
    except TypeError:
        return False
    return True


@cache
def _adapter(annotation: Any) -> Any:
    """pydantic's check of an annotation; None where it knows none."""
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.errors import PydanticUserError

    if annotation is Any:
        return None
    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        return TypeAdapter(annotation, config=config)
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            return None
    try:
        return TypeAdapter(annotation)
    except PydanticUserError:
        return None


def _too_large(value: object) -> bool:
    return isinstance(value, int) and not -LARGEST - 1 <= value <= LARGEST


def _frozen(value: Any) -> Any:
    """The same with tuples for lists and paths as they are: a configuration has no tuples."""
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return value


def _said(value: object) -> str:
    text = " ".join(("null" if value is None else value if isinstance(value, str) else repr(value)).split())
    text = {"True": "true", "False": "false"}.get(text, text)
    if isinstance(value, str) and (not text or text[0].isdigit()):
        text = repr(text)  # not to be taken for a number
    return text if len(text) <= 80 else f"{text[:77]}..."


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    None: "null",
    Path: "a path",
}


def _in_words(annotation: Any) -> str:
    """An annotation as a user would say it."""
    if _hashable(annotation) and annotation in _WORDS:
        return _WORDS[annotation]
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inside))}"
    if origin is typing.Annotated:
        return _in_words(inside[0])
    if origin in (typing.Union, types.UnionType):
        words = dict.fromkeys(_in_words(each) for each in sorted(inside, key=lambda each: each is not type(None)))
        return " or ".join(words)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping of {_in_words(inside[0])} to {_in_words(inside[1])}"
    if isinstance(origin, type) and issubclass(origin, (Sequence, set, frozenset)):
        if origin is tuple and (len(inside) != 2 or inside[1] is not Ellipsis):
            return f"a list of {len(inside)}: {', '.join(map(_in_words, inside))}"
        return f"a list, each {_in_words(inside[0])}"
    return f"a {getattr(annotation, '__name__', str(annotation))}"
