"""Logged pages: what a recommender really showed, told as a running simulation tells it, with what was clicked.

An event log is lived through once more by users who do on each page what the log says and are LLM users in everything
else, so that memory, summaries and others' ratings are those that a user of the run had at that moment. Which items
were looked at was drawn by the environment: of the others nothing is known, and nothing is learned. The module does not
know where a log comes from, and corrects for nothing: the pages are those that the logging recommender chose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from agents.base import require
from agents.choice.model import ChoiceModel
from agents.llm.templates import Prompts
from agents.llm.user import LLMUser
from agents.user_lm.corpus import Example, HeldOut, PromptOptions, blank_tastes, in_two
from simenv.datasets.base import Dataset, LongArray
from simenv.datasets.splits import is_late
from simenv.errors import DataError
from simenv.events import Events
from simenv.language_models import Completion, LanguageModel, LanguageModelError, Request
from simenv.language_models.quoting import opaque_ids
from simenv.randomness import Key
from simenv.slates import Responses


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownLog:
    """Everything that one job showed, and what its users did.

    Raises:
        DataError: the events are not in order, or of other users or items.
    """

    name: str  # of the job
    dataset: Dataset  # its interactions are what happened before the first page
    users: LongArray  # (n_users,), rows of the same users in the data set that `HeldOut` is about
    events: Events  # ordered by round, page, user and rank; users and items are rows of `dataset`

    def __post_init__(self) -> None:
        events = self.events
        order = np.lexsort((events.rank, events.user, events.page, events.round))
        if (np.diff(order) != 1).any():
            raise DataError(f"{self.name}: events are out of order; expected round by round, page by page, by user")
        for name, n in (("user", self.dataset.n_users), ("item", self.dataset.n_items)):
            rows = getattr(events, name)
            if len(rows) and (rows.min() < 0 or rows.max() >= n):
                raise DataError(f"{self.name}: {name}s {rows.min()} to {rows.max()}; expected 0 to {n - 1}")

    @property
    def starts(self) -> LongArray:
        """(p,) the first event of each page."""
        events = self.events
        changes = [np.diff(each, prepend=-1) != 0 for each in (events.round, events.page, events.user)]
        return np.flatnonzero(np.logical_or.reduce(changes))

    def late(self, share: float) -> NDArray[np.bool_]:
        """(p,) which pages are among the last `share` of their user's: one at least, of fewer than three none."""
        return is_late(self.events.user[self.starts], share)

    def training_part(self, held: HeldOut) -> ShownLog:
        """As if there were neither the users and items held out nor the last pages of everybody.

        Items held out are dropped from pages and pasts alike; what is left of a page keeps its order.
        """
        dataset = replace(self.dataset, tastes=None, holdout=None).take_items(np.flatnonzero(~held.items))
        kept = np.flatnonzero(~held.users[self.users] & (dataset.interactions.user_counts() > 0))
        to_user, to_item = np.full(self.dataset.n_users, -1, np.int32), np.full(self.dataset.n_items, -1, np.int32)
        to_user[kept], to_item[~held.items] = np.arange(len(kept)), np.arange(dataset.n_items)
        events, starts = self.events, self.starts
        late = np.repeat(self.late(held.share), np.diff(starts, append=len(events)))
        events = events.take(~late & (to_user[events.user] >= 0) & (to_item[events.item] >= 0))
        events = replace(events, user=to_user[events.user], item=to_item[events.item])
        return ShownLog(name=self.name, dataset=dataset.take_users(kept), users=self.users[kept], events=events)


class LoggedPages:
    """Examples from what was really shown: every page of a pass at its moment in its user's life.

    Picked is what was clicked. An item that the log does not call examined was not passed over: whether a user looks
    at a slot is drawn by the environment and not by what is asked of a language model, which sees the items in random
    order. So such items are on the page, but `Example.examined` is False, and nothing is learned of them. Of an item
    shown twice on a page only the first copy is told.

    Args:
        logs: training parts; nothing else is ever looked at.
        options: of the prompts.
        pages: in a pass, at most. The next pass takes others, until all have been had.
        seed: of all draws.

    Raises:
        DataError: nothing was examined on any page.
    """

    def __init__(
        self, logs: Sequence[ShownLog], options: PromptOptions | None = None, *, pages: int = 5000, seed: int = 0
    ) -> None:
        require(pages >= 1, "pages", pages, "at least 1")
        self.logs, self.options, self.seed = tuple(logs), options or PromptOptions(), seed
        self.prompts = Prompts(self.options.prompts)
        self._usable = [np.flatnonzero(any_of(log, log.events.examined)) for log in self.logs]
        self.n_pages = sum(map(len, self._usable))
        if not self.n_pages:
            raise DataError("no page with an examined item to learn from; expected an event log of examined items")
        self._parts = -(-self.n_pages // pages)  # passes until all pages have been had

    @property
    def candidates(self) -> int:
        """Items on a page at most."""
        return max(int(log.events.rank.max(initial=0)) + 1 for log in self.logs)

    def examples(self, number: int) -> Iterator[Example]:
        """The examples of one pass; the same number gives the same ones."""
        cycle, part = divmod(number, self._parts)
        order = np.random.default_rng([self.seed, cycle, 0x5E1E]).permutation(self.n_pages)
        chosen = np.zeros(self.n_pages, np.bool_)
        chosen[order[part :: self._parts]] = True
        rng = np.random.default_rng([self.seed, number, 0x5409])
        first = 0
        for log, usable in zip(self.logs, self._usable, strict=True):
            own = usable[chosen[first : first + len(usable)]]
            first += len(usable)
            yield from (example for example, _ in live_through_again(log, own, self.options, rng))


def any_of(log: ShownLog, values: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(p,) which pages have an event of which this, (n,), is true."""
    starts = log.starts
    return np.logical_or.reduceat(values, starts) if len(starts) else np.zeros(0, np.bool_)


def live_through_again(
    log: ShownLog, pages: LongArray, options: PromptOptions, rng: np.random.Generator
) -> Iterator[tuple[Example, Events]]:
    """Some pages of a log as their users were told them, each with its events in the order of the example's items.

    Args:
        log: replayed from its beginning.
        pages: numbers of pages, in the order of `ShownLog.starts`.
        options: of the prompts.
        rng: of the order in which items are told.
    """
    if not len(pages):
        return
    users = _Reenactment(options)
    users.bind(log.dataset, blank_tastes(log.dataset), seed=0)
    events, starts = log.events, log.starts
    wanted = np.zeros(len(starts), np.bool_)
    wanted[pages] = True
    bounds = np.append(starts, len(events))
    moments = np.column_stack([events.round, events.page])[starts].astype(np.int64)
    changes = np.flatnonzero((np.diff(moments, axis=0, prepend=-1) != 0).any(axis=1))
    now = int(moments[0, 0])
    for first, last in pairwise([*changes.tolist(), len(starts)]):
        key = Key(0, *moments[first].tolist())
        if key.round != now:
            users.end_round(now)
            now = key.round
        for page in first + np.flatnonzero(wanted[first:last]):
            yield _told(users, events, np.arange(bounds[page], bounds[page + 1]), rng)
        users.happen(events.take(slice(bounds[first], bounds[last])), key)
        wanted[first:last] = False
        if not wanted.any():
            return


def _told(users: _Reenactment, events: Events, rows: LongArray, rng: np.random.Generator) -> tuple[Example, Events]:
    """One page as an example, and its events."""
    _, firsts = np.unique(events.item[rows], return_index=True)
    shown = events.take(rng.permutation(rows[np.sort(firsts)]))
    user = int(shown.user[0])
    person, page = users.told(user, shown.item)
    scale = users.rating_scale
    stars = (1.0 + 4.0 * (shown.rating - scale.low) / (scale.high - scale.low)).astype(np.float32)
    example = Example(
        user=user,
        person=person,
        page=page,
        items=shown.item,
        picked=shown.clicked,
        examined=shown.examined,
        stars=stars,
    )
    return example, shown


class _Reenactment(LLMUser):
    """LLM users to whom happens what a log says; nobody is asked."""

    def __init__(self, options: PromptOptions) -> None:
        super().__init__(
            _Unasked("a log"),
            embedded=ChoiceModel(memory_size=options.memory_size),
            prompts=options.prompts,
            conformity=options.conformity,
            attributes=options.attributes,
            synopsis_length=options.synopsis_length,
            base_rate=options.base_rate,
            retrieval=options.retrieval,
            digest_every=options.digest_every,
        )

    def told(self, user: int, items: NDArray[np.int32]) -> tuple[str, str]:
        """The prompt about these items as two texts: profile and memory, and the page."""
        return in_two(self._scorer.page_prompt.page(user, items, opaque_ids(len(items))))

    def happen(self, page: Events, key: Key) -> None:
        """Let the pages of one moment, a page for each user, happen to the users."""
        pages = page.pages()
        self._happened = pages.responses()
        self.respond(pages.users, pages.slates, key)

    def _respond(self, users: LongArray, slates: NDArray[np.int32], key: Key) -> Responses:
        return self._happened


class _Unasked(LanguageModel):
    """Has no answers: the log has them."""

    async def complete(self, request: Request) -> Completion:
        raise LanguageModelError("a log is replayed; nobody is asked")
