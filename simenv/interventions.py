"""Interventions: what is done to one course of the loop, at one round, and not to the other it is compared with.

Written as ``unclick user=12 item=42``. The module does not know how a platform carries them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simenv.candidates import Candidates
from simenv.errors import ConfigError
from simenv.slates import Recommender, Responses

KINDS = {  # kind -> what it needs
    "click": ("user", "item"),
    "unclick": ("user", "item"),
    "boost": ("item",),
    "remove": ("item",),
    "swap": ("recommender",),
}


@dataclass(frozen=True, slots=True)
class Intervention:
    """One change of a course.

    Attributes:
        kind: ``click``, the user is shown the item on top of the round's first page and clicks it; ``unclick``, a click
            of the user on the item does not happen in that round; ``boost``, the item stands on top of the first page
            of everybody who may be shown it, in that round; ``remove``, it is shown to nobody from that round on;
            ``swap``, another recommender serves from that round on.
        round: in which it happens.
        user, item: rows; -1 = all, or none.
        recommender: name of the one swapped in.
    """

    kind: str
    round: int
    user: int = -1
    item: int = -1
    recommender: str = ""

    @classmethod
    def parse(cls, text: str, round: int) -> Intervention:
        """The intervention that a text such as ``unclick user=12 item=42`` describes.

        Raises:
            ConfigError: it describes none.
        """
        kind, *rest = text.split() or [""]
        if kind not in KINDS:
            raise ConfigError(f"do={text!r}: expected one of {'; '.join(_form(known) for known in KINDS)}")
        given = dict(part.partition("=")[::2] for part in rest)
        if sorted(given) != sorted(KINDS[kind]) or len(given) != len(rest):
            raise ConfigError(f"do={text!r}: expected {_form(kind)}")
        if kind == "swap":
            return cls(kind, round, recommender=given["recommender"])
        if not all(value.isascii() and value.isdigit() and len(value) < 10 for value in given.values()):
            raise ConfigError(f"do={text!r}: expected {_form(kind)}, the rows of users and items from 0")
        return cls(kind, round, user=int(given.get("user", -1)), item=int(given["item"]))

    def check(self, n_users: int, n_items: int, rounds: int) -> None:
        """Raise ConfigError unless round, user and item exist."""
        for name, value, n in (
            ("user", self.user, n_users),
            ("item", self.item, n_items),
            ("round", self.round, rounds),
        ):
            if value >= n:
                raise ConfigError(f"do={self}: there is no {name} {value}; expected 0 to {n - 1}")

    def __str__(self) -> str:
        return " ".join([self.kind, *(f"{name}={getattr(self, name)}" for name in KINDS[self.kind])])


def _form(kind: str) -> str:
    return " ".join([kind, *(f"{name}=NAME" if name == "recommender" else f"{name}=N" for name in KINDS[kind])])


class Course:
    """What is done to one course, round by round.

    Args:
        interventions: in any order.
        recommenders: those that are swapped in, unfitted, by name.
        luck_from: round from which a platform's luck seed counts; before it, draws are the world's own.
    """

    def __init__(
        self,
        interventions: Iterable[Intervention] = (),
        *,
        recommenders: Mapping[str, Recommender] | None = None,
        luck_from: int = 0,
    ) -> None:
        self.interventions, self.luck_from = tuple(interventions), luck_from
        self.recommenders = dict(recommenders or {})

    def __bool__(self) -> bool:
        return bool(self.interventions)

    def swapped_in(self, rounds: range) -> Recommender | None:
        """The recommender that the last swap within these rounds brought; None = there was none."""
        found = [each for each in self.interventions if each.kind == "swap" and each.round in rounds]
        return self.recommenders[max(found, key=lambda each: each.round).recommender] if found else None

    def of(self, kind: str, round: int) -> list[Intervention]:
        """Those of a kind that happen in this round."""
        return [each for each in self.interventions if each.kind == kind and each.round == round]

    def removed(self, round: int) -> list[int]:
        """Items that are gone by this round."""
        return [each.item for each in self.interventions if each.kind == "remove" and each.round <= round]

    def shown(
        self, users: NDArray[np.int64], items: NDArray[np.int32], candidates: Candidates, round: int
    ) -> NDArray[np.int32]:
        """The round's first pages with what is put on top of them, (B, K)."""
        for each in self.of("boost", round):
            allowed = np.broadcast_to(candidates.mask()[:, each.item], len(users))
            items = _on_top(items, np.flatnonzero(allowed), each.item)
        for each in self.of("click", round):
            items = _on_top(items, np.flatnonzero(users == each.user), each.item)
        return items

    def done(self, users: NDArray[np.int64], items: NDArray[np.int32], responses: Responses, round: int) -> Responses:
        """What users did, with the clicks that are made or unmade."""
        forced: Sequence[Intervention] = [*self.of("click", round), *self.of("unclick", round)]
        for each in forced:
            here = (users == each.user)[:, None] & (items == each.item)
            made = each.kind == "click"
            responses = replace(
                responses,
                examined=responses.examined | (here & made),
                clicked=np.where(here, made, responses.clicked),
                ratings=responses.ratings if made else np.where(here, np.float32(np.nan), responses.ratings),
            )
        return responses


def _on_top(items: NDArray[np.int32], rows: NDArray[np.int64], item: int) -> NDArray[np.int32]:
    """Pages with an item moved, or put, into the first slot; the others move down by one."""
    out = items.copy()
    for row in rows:
        page = items[row][items[row] != item]
        out[row, 0], out[row, 1:] = item, page[: items.shape[1] - 1]
    return out
