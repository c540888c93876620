"""Gymnasium ids, and the one place where simenv finds users and recommenders by name or dotted path.

Registration is text only: environments, agents and data load when `gymnasium.make` builds one. The module does not know
what an agent or an environment does.

A specification is code: it names what is called, and with which arguments. Those that `gymnasium.make` is given travel
as JSON, so only what stands in simenv's own packages is called, and what `allow_targets` names.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from typing import Any

import gymnasium

from simenv import checks
from simenv.errors import ConfigError
from simenv.names import extra_modules, find

PACKAGES = ("simenv", "agents", "recommenders")
TARGETS = "SIMENV_TARGETS"  # environment variable: further packages, separated by commas; processes inherit it
TASKS = ("SatiationTrap", "ChurnTrap", "PopularityTrap", "ColdStart", "Drift")


def register_envs() -> None:
    """Make ``simenv/...`` known to `gymnasium.make` and `gymnasium.make_vec`; calling it again changes nothing."""
    slate = ("simenv.envs.slate:SlateEnv", "simenv.envs.vector:SlateVectorEnv")
    entries: dict[str, tuple[str, str | None]] = {"Slate": slate}
    for form in ("flat", "proto", "masked"):
        makers = (f"simenv.envs.wrappers:make_{form}", f"simenv.envs.vector_wrappers:make_{form}_vec")
        entries[f"Slate{form.capitalize()}"] = makers
    entries["Retention"] = ("simenv.envs.retention:RetentionEnv", "simenv.envs.retention:RetentionVectorEnv")
    entries["Platform"] = ("simenv.envs.platform_env:PlatformEnv", None)
    entries |= dict.fromkeys(TASKS, ("simenv.envs.tasks:make_task", "simenv.envs.tasks:make_task_vec"))
    for name, (entry_point, vector_entry_point) in entries.items():
        if f"simenv/{name}-v0" not in gymnasium.registry:
            gymnasium.register(
                id=f"simenv/{name}-v0",
                entry_point=entry_point,
                vector_entry_point=vector_entry_point,
                kwargs={"name": name} if name in TASKS else {},
            )


def allow_targets(*packages: str) -> None:
    """Let specifications call what stands in these packages or modules too, here and in processes started from here."""
    known = [name for name in os.environ.get(TARGETS, "").split(",") if name]
    os.environ[TARGETS] = ",".join(dict.fromkeys([*known, *packages]))


def resolve(path: str) -> Any:
    """The object at a dotted path, e.g. ``agents.choice.ChoiceModel``.

    Raises:
        ConfigError: there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"'{path}': {error}; expected the dotted path of a class or function") from error


def specification(group: str, name: Any) -> dict[str, Any]:
    """What the yaml of a name says (`simenv.names`), with the defaults it builds on.

    Raises:
        ConfigError: there is no such name; the message lists those there are.
    """
    import yaml

    own = yaml.safe_load(find(group, name).read_text(encoding="utf-8"))
    own = _without_interpolations(own[name] if group == "recommender" else own)
    found: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        if isinstance(base, str):
            found = found if base == "_self_" else _merged(found, specification(group, base))
        else:  # {/agent@sample: llm}
            ((where, which),) = base.items()
            other, _, at = where.lstrip("/").partition("@")
            found = _merged(found, {at: specification(other, which)})
    return _merged(found, own)


def make(spec: Any, group: str) -> Any:
    """An object from a name, from a mapping with ``name`` or ``_target_`` and options, or the object itself.

    Args:
        spec: any of these; of ``name``, the options are those of its yaml, changed by what the mapping says.
        group: of the names, and what error messages call it.

    Raises:
        ConfigError: an unknown name, options the target does not take, or a target outside the packages allowed.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        return spec
    options = dict(spec)
    if "_target_" not in options:
        options = _merged(specification(group, options.pop("name", None)), options)
    return _built(options, group)


def _built(value: Any, what: str) -> Any:
    if isinstance(value, (list, tuple)):
        return [_built(one, what) for one in value]
    if what == "language_model" and isinstance(value, (str, Mapping)) and "_target_" not in value:
        return make(value, "llm")
    if not isinstance(value, Mapping):
        return value
    options = {name: _built(one, name) for name, one in value.items() if name != "_target_"}
    if "_target_" not in value:
        return options
    missing = [name for name, one in options.items() if one == "???"]
    if missing:
        raise ConfigError(f"{what}: expected a value for {', '.join(missing)}")
    target = _allowed(str(value["_target_"]), what)
    checks.conform(target, options, f"{what}.")
    try:
        return target(**options)
    except TypeError as error:
        raise ConfigError(f"{what}: {error}") from error


def _allowed(path: str, what: str) -> Any:
    allowed = [name for name in os.environ.get(TARGETS, "").split(",") if name]
    packages = (*PACKAGES, *allowed, *sorted(extra_modules()))

    def inside(module: str) -> bool:
        return any(module == package or module.startswith(f"{package}.") for package in packages)

    target = resolve(path) if inside(path) else None
    if target is None or not inside(getattr(target, "__module__", None) or ""):
        raise ConfigError(
            f"{what}: _target_={path!r} is outside {', '.join(packages)}; a specification is code: to let it call "
            "more, say so with simenv.registration.allow_targets(package)"
        )
    return target


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The one with the other's entries over it, mappings entry by entry; another ``_target_`` replaces the whole."""
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        deep = isinstance(old, Mapping) and isinstance(value, Mapping) and "_target_" not in value
        merged[name] = _merged(old, value) if deep and old is not None else value
    return merged


def _without_interpolations(value: Any) -> Any:
    """A yaml's values with what it would take from elsewhere, ``${oc.select:llm,null}``, at its default."""
    import yaml

    if isinstance(value, Mapping):
        return {name: _without_interpolations(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_interpolations(one) for one in value]
    default = re.fullmatch(r"\$\{oc\.select:[^,}]+,(.*)\}", value) if isinstance(value, str) else None
    return yaml.safe_load(default[1]) if default else value
