"""Gymnasium ids, and the one place where simenv finds users and recommenders by dotted name.

Registration is text only: environments, agents and data load when `gymnasium.make` builds one. The module does not know
what an agent or an environment does.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import gymnasium

from simenv.errors import ConfigError

AGENTS = {
    "choice": "agents.choice.ChoiceModel",
    "rank": "agents.choice.RankAcceptance",
    "llm": "agents.llm.LLMUser",
}
RECOMMENDERS = {  # those with scores of every item, which a platform's knobs can re-rank
    "popularity": "recommenders.popularity.Popularity",
    "itemknn": "recommenders.neighbours.ItemKNN",
    "content": "recommenders.content.Content",
    "ease": "recommenders.linear.EASE",
    "als": "recommenders.factors.ALS",
    "mf": "recommenders.factors.MF",
    "oracle": "recommenders.oracle.Oracle",
}
TASKS = ("SatiationTrap", "ChurnTrap", "PopularityTrap", "ColdStart", "Drift")


def register_envs() -> None:
    """Make ``simenv/...`` known to `gymnasium.make` and `gymnasium.make_vec`; calling it again changes nothing."""
    slate = ("simenv.envs.slate:SlateEnv", "simenv.envs.vector:SlateVectorEnv")
    entries: dict[str, tuple[str, str | None]] = {"Slate": slate}
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


def make(spec: Any, names: Mapping[str, str], what: str) -> Any:
    """An object from a name, from a mapping with ``name`` or ``_target_`` and options, or the object itself.

    Args:
        spec: any of these.
        names: dotted path by short name.
        what: what error messages call it.

    Raises:
        ConfigError: an unknown name, or options the target does not take.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        return spec
    options = dict(spec)
    name, path = options.pop("name", None), options.pop("_target_", None)
    if path is None:
        if name not in names:
            raise ConfigError(f"{what}={name!r}: unknown; expected one of {', '.join(names)}, or _target_ with a path")
        path = names[name]
    try:
        return resolve(path)(**options)
    except TypeError as error:
        raise ConfigError(f"{what}: {error}") from error
