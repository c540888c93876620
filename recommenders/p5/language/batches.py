"""Prompts to train on: which interactions, which wording, in batches of sources and targets.

The module does not know networks; what a field of a prompt says is `recommenders.p5.language.text`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recommenders.p5.language.prompts import Prompt, PromptBook
from recommenders.p5.language.text import REVIEWED, Rows, TextData
from simenv.datasets.base import LongArray
from simenv.errors import ConfigError

Batch = tuple[LongArray, LongArray]  # sources (B, S) and targets (B, D), -1 after the end


@dataclass
class PromptBatches:
    """Draws batches of prompts about the interactions of some histories.

    Args:
        data: the histories and everything fields are filled from.
        book: the prompts.
        batch_size: rows of a batch.
        other_share: rows of the other families per row of the sequential one.
    """

    data: TextData
    book: PromptBook
    batch_size: int
    other_share: float

    def __post_init__(self) -> None:
        self.families, self.skipped = self.data.available_families(self.book)
        self.others = [family for family in self.families if family != "sequential"]

    @cached_property
    def user(self) -> LongArray:
        """The user of every interaction."""
        return np.repeat(np.arange(self.data.histories.n_users), self.data.histories.lengths)

    @cached_property
    def reviewed(self) -> dict[str, tuple[LongArray, LongArray]]:
        """Rows of reviews, and the places of their interactions, of each family that learns from them."""
        return {family: self.data.reviewed(REVIEWED[family]) for family in self.families if family in REVIEWED}

    @property
    def steps(self) -> int:
        """Batches of one epoch, about."""
        n_targets = int(np.maximum(self.data.histories.lengths - 1, 0).sum())
        return max(1, int(np.ceil(n_targets * (1 + self.other_share * bool(self.others)) / self.batch_size)))

    def epoch(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Each interaction but a user's first is the target of one random seen prompt; other families in between.

        Batches hold histories of about equal length, so that little is padding.
        """
        place = np.arange(len(self.user)) - self.data.histories.ptr[self.user]
        targets = rng.permutation(np.flatnonzero(place > 0))
        bucket = np.minimum(place[targets], self.data.history_length) // 4
        targets = targets[np.argsort(bucket, kind="stable")]
        chunks = [targets[start : start + self.batch_size] for start in range(0, len(targets), self.batch_size)]
        owed = 0.0
        for chunk in rng.permutation(len(chunks)):
            yield self.render(self.seen("sequential"), chunks[chunk], rng)
            owed += self.other_share if self.others else 0.0
            while owed >= 1:
                owed -= 1
                family = self.others[rng.integers(len(self.others))]
                yield self.render(self.seen(family), rng.integers(0, len(self.user), self.batch_size), rng)

    def told(
        self, attribute: NDArray[np.int64], size: int, rng: np.random.Generator
    ) -> Iterator[tuple[LongArray, LongArray, LongArray]]:
        """Without end: sequential prompts of random users whose attribute is not negative, targets, and the attribute.

        Half of the prompts hold the whole history but its last item, the others stop anywhere.
        """
        histories = self.data.histories
        known = np.flatnonzero((attribute >= 0) & (histories.lengths > 1))
        if not len(known):
            raise ConfigError("fair: nobody with a history told the attribute; expected some users")
        prompts = self.seen("sequential")
        while True:
            users = known[rng.integers(0, len(known), size)]
            whole = rng.random(size) < 0.5
            place = np.where(whole, histories.lengths[users] - 1, rng.integers(1, histories.lengths[users]))
            prompt = prompts[rng.integers(len(prompts))]  # one for all, which keeps the rows in order
            yield *self.render([prompt], histories.ptr[users] + place, rng), attribute[users]

    def seen(self, family: str) -> list[Prompt]:
        """The prompts of a family that are trained on and whose fields are known."""
        return self.data.usable(self.book.seen(family))

    def render(self, prompts: list[Prompt], places: LongArray, rng: np.random.Generator) -> Batch:
        """One random prompt of one family per interaction, as a batch; rows are grouped by prompt."""
        histories, choice = self.data.histories, rng.integers(0, len(prompts), len(places))
        rows = self._rows(places, prompts[0].family, rng)
        parts = []
        for number, prompt in enumerate(prompts):
            some = rows.take(choice == number)
            if "answer" in prompt.fields:
                strange = rng.integers(0, histories.n_items, len(some.items))
                some = replace(some, items=np.where(some.liked, some.items, strange))
            if len(some.users):
                parts.append(self.data.render(prompt, some, rng))
        return _stack([source for source, _ in parts]), _stack([target for _, target in parts])

    def _rows(self, places: LongArray, family: str, rng: np.random.Generator) -> Rows:
        """The interactions at these places of the histories; some families draw others, that they can ask about."""
        histories = self.data.histories
        liked, reviews = np.ones(len(places), np.bool_), np.full(len(places), -1)
        if family == "rating":
            rated = np.flatnonzero(~np.isnan(histories.ratings))
            places = rated[rng.integers(0, len(rated), len(places))]
        elif family == "direct":
            liked = rng.random(len(places)) < 0.5
        elif family == "opinions":
            drawn = rng.integers(0, len(self.data.opinionated[1]), len(places))
            places = self.data.opinionated[1][drawn]
        elif family in REVIEWED:
            known, where = self.reviewed[family]
            drawn = rng.integers(0, len(known), len(places))
            reviews, places = known[drawn], where[drawn]
        items = histories.items[places].astype(np.int64)
        return Rows(self.user[places], places, items, histories.ratings[places], liked, reviews)


def _stack(parts: list[LongArray]) -> LongArray:
    """Blocks of unequal width one below the other, -1 after the end."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-1) for part in parts])
