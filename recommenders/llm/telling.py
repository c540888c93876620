"""What a language model is told about a person and about items: history, demonstrations, attributes, in templates.

It reads a log and a catalogue, draws demonstrations by key, and asks nothing. Every foreign text is quoted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.checks import whole
from simenv.datasets.base import Dataset, Interactions, LongArray
from simenv.errors import ConfigError
from simenv.language_models.quoting import Templates, plain, quote
from simenv.randomness import Key, Purpose, uniforms

PACKAGED = Path(__file__).with_name("prompts")
REWORDED = PACKAGED / "reworded"  # the same questions in other words, for `Telling.prompts`


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """How much is told, and from which templates.

    Attributes:
        history: items of the person's past that are told, the last ones; 0 = none.
        stars: tell the ratings given, where there are any.
        shots: demonstrations, each another person's history and what they took next.
        shot_history: items of a demonstration's history.
        attributes: names of user attributes to tell, where the data set has them.
        swap: value of an attribute to tell instead of the true one, by name; also where the data set has none.
        synopsis: characters of an item's description to tell; 0 = title and genres only.
        kind: what the items are called.
        emphasis: a sentence added before the question, e.g. that recent items count most.
        prompts: folder of edited templates; one that is absent there is the packaged one.
    """

    history: int = 20
    stars: bool = True
    shots: int = 0
    shot_history: int = 5
    attributes: Sequence[str] = ()
    swap: Mapping[str, str] = field(default_factory=dict)
    synopsis: int = 0
    kind: str = "items"
    emphasis: str = ""
    prompts: str | None = None

    def __post_init__(self) -> None:
        for name in ("history", "shots", "synopsis"):
            whole(f"telling.{name}", getattr(self, name))
        whole("telling.shot_history", self.shot_history, 1)

    @classmethod
    def of(cls, options: Telling | Mapping[str, Any] | None) -> Telling:
        """From a configuration's mapping.

        Raises:
            ConfigError: an option there is not.
        """
        if isinstance(options, Telling):
            return options
        given = dict(options or {})
        unknown = sorted(set(given) - set(cls.__slots__))
        if unknown:
            raise ConfigError(f"telling.{unknown[0]}: unknown option; expected one of {', '.join(cls.__slots__)}")
        return cls(**given)


class Teller:
    """Writes prompts about the users of one data set and the log so far.

    Args:
        telling: how much is told.
        dataset: titles, genres, descriptions, attributes.
    """

    def __init__(self, telling: Telling, dataset: Dataset) -> None:
        self.telling = telling
        self.dataset = dataset
        self.templates = Templates(PACKAGED, _names(telling.prompts), telling.prompts, option="telling.prompts")
        self._texts: dict[int, str] = {}

    def learn(self, log: Interactions) -> None:
        """Take the log that histories and demonstrations come from."""
        self._log = log
        self._order = np.lexsort((np.arange(len(log)), log.times, log.users))
        self._ptr = np.concatenate(([0], np.cumsum(log.user_counts())))

    def item(self, item: int) -> str:
        """An item as a prompt shows it: quoted title, genres, description."""
        if item not in self._texts:
            catalog = self.dataset.catalog
            parts = [quote(catalog.titles[item], 100)]
            names = [catalog.genre_names[g] for g in np.flatnonzero(catalog.genres[item])]
            if names:
                parts.append(quote("/".join(names), 60))
            if self.telling.synopsis and catalog.texts and catalog.texts[item].strip():
                parts.append(quote(catalog.texts[item], self.telling.synopsis))
            self._texts[item] = " ".join(parts)
        return self._texts[item]

    def history(self, user: int) -> LongArray:
        """Rows of the log of one user, oldest first."""
        return self._order[self._ptr[user] : self._ptr[user + 1]]

    def person(self, user: int, key: Key, notes: Sequence[tuple[str, str]] = (), *, before: int | None = None) -> str:
        """The text about one person.

        Args:
            user: row of the population.
            key: of the run; its seed draws the demonstrations.
            notes: (name, text) of what was found out before, in order.
            before: only so many of the person's interactions are known, the first ones; None = all.
        """
        telling, log = self.telling, self._log
        rows = self.history(user)[:before]
        rows = rows[max(0, len(rows) - telling.history) :]
        ratings = log.ratings[rows]
        told = [
            {"text": self.item(int(item)), "stars": float(r) if telling.stars and not np.isnan(r) else None}
            for item, r in zip(log.items[rows], ratings, strict=True)
        ]
        return self.templates.render(
            "person",
            shots=self._shots(user, key),
            attributes=self._attributes(user),
            history=told,
            rated=any(each["stars"] is not None for each in told),
            notes=list(notes),
        )

    def render(self, name: str, **values: Any) -> str:
        """A template with what every template may use."""
        return self.templates.render(name, kind=plain(self.telling.kind, 40), emphasis=self.telling.emphasis, **values)

    def _attributes(self, user: int) -> list[tuple[str, str]]:
        telling, known = self.telling, self.dataset.user_attributes
        told = {name: str(known[name][user]) for name in telling.attributes if name in known}
        return list((told | {str(name): str(value) for name, value in telling.swap.items()}).items())

    def _shots(self, user: int, key: Key) -> list[dict[str, Any]]:
        """Histories of other people and what each took next; drawn per user and seed, the same in every round."""
        if not self.telling.shots:
            return []
        lengths = np.diff(self._ptr)
        others = np.flatnonzero(lengths > 1)
        others = others[others != user]
        luck = uniforms(Key(key.seed), Purpose.SHOTS, np.int64(user), others)
        shots = []
        for other in others[np.argsort(luck, kind="stable")[: self.telling.shots]].tolist():
            items = self._log.items[self.history(other)][-1 - self.telling.shot_history :]
            shots.append({"had": [self.item(int(i)) for i in items[:-1]], "took": self.item(int(items[-1]))})
        return shots


def _names(folder: str | None) -> list[str]:
    """File names of the packaged templates and of those in a folder."""
    folders = [PACKAGED] if folder is None else [PACKAGED, Path(folder)]
    if not folders[-1].is_dir():
        raise ConfigError(f"telling.prompts={folder}: no such folder")
    return sorted({path.name for each in folders for path in each.iterdir() if path.suffix == ".j2"})


def shuffled(items: NDArray[np.int32], user: int, key: Key, n_items: int, order: int) -> NDArray[np.int64]:
    """A permutation of the candidates, drawn anew for each user, page and `order`; does not depend on their order."""
    luck = uniforms(key, Purpose.CANDIDATE_ORDER, np.int64(user), items.astype(np.int64) + order * n_items)
    return np.argsort(luck, kind="stable")
