"""LLMRanker: a language model puts the candidates of another recommender in order.

It knows the base's candidates and the log, asks, and falls back to the base's order where no answer came; every step is
counted. What users then do is not known here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender, check_options
from recommenders.llm.asking import AskingRecommender, words
from recommenders.llm.forms import FORMS, Asked, one_number
from recommenders.llm.telling import Telling, shuffled
from recommenders.llm.tuning import TASKS, RankerTuning, told_examples
from simenv.candidates import Candidates
from simenv.datasets.base import Interactions, LongArray
from simenv.errors import ConfigError
from simenv.language_models import Example, LanguageModel
from simenv.randomness import Key
from simenv.slates import Slates

MOST_CANDIDATES = 676  # two letters
ALONE_TOKENS = 68  # longest answer about one item
SEEDS = 1 << 63  # of torch


class LLMRanker(AskingRecommender):
    """Orders the base's candidates by asking a language model.

    The base serves its best `candidates` items with the same exclusions; the model is shown them in an order drawn anew
    for each question under ids that say nothing, and answers in one of the forms (`recommenders.llm.forms`). With
    `orders` above 1 it is asked in several drawn orders and the places are averaged (Hou et al. 2023, "Large language
    models are zero-shot rankers": bootstrapping). Before that, `steps` are asked in free words, each seeing the answers
    of those before it (Wang and Lim 2023, "NIR"; Wang et al. 2023, "RecMind"). A user without a usable answer gets the
    base's order. Ties keep the base's order. Propensities are 1: the draw of the order is by key.

    Learning: the base's; the history that is told grows with the log.

    Args:
        base: whose candidates are put in order.
        language_model: what is asked; see `simenv.language_models.connect`.
        form: ``list``, ``score``, ``point``, ``yes-no``, ``pair`` or ``pick``; or ``shown``, which asks nothing and
            keeps the drawn order: what a model does that only repeats its prompt.
        candidates: how many of the base's items are shown; at least the slate is.
        orders: questions in different orders, averaged.
        steps: names of templates asked in free words before.
        telling: how much is told.
        tuning: how a local model is tuned on the log of the first `fit`, see `recommenders.llm.tuning`; None = not.
            Only for forms that ask about one item, ``point`` and ``yes-no``.
        temperature: of the answers.
        max_fallback_share: the run stops when more than this share of questions had no usable answer.
    """

    name = "llm-ranker"

    def __init__(
        self,
        base: Recommender,
        language_model: LanguageModel | None,
        *,
        form: str = "list",
        candidates: int = 20,
        orders: int = 1,
        steps: Sequence[str] = (),
        telling: Telling | Mapping[str, Any] | None = None,
        tuning: Mapping[str, Any] | None = None,
        temperature: float = 0.0,
        max_fallback_share: float = 0.2,
    ) -> None:
        super().__init__(
            base, language_model, telling=telling, temperature=temperature, max_fallback_share=max_fallback_share
        )
        if form not in FORMS:
            raise ConfigError(f"{self.name}: form={form}; expected one of {', '.join(FORMS)}")
        check_options(self.name, low=1, high=MOST_CANDIDATES, whole=True, candidates=candidates)
        check_options(self.name, low=1, whole=True, orders=orders)
        self.form, self.candidates, self.orders = form, candidates, orders
        self.steps = tuple(steps)
        self.tuning = None if tuning is None else RankerTuning.of(tuning)
        if self.tuning is not None and form not in TASKS:
            raise ConfigError(f"{self.name}: tuning with form={form}; expected one of {', '.join(TASKS)}")
        self.adapter: Path | None = None
        self._as_it_was: LanguageModel | None = None

    def untuned(self) -> Self | None:
        """The same, asking the model as it was before it was tuned here; None where it was not."""
        if self._as_it_was is None:
            return None
        other = copy.copy(self)
        other.language_model, other._as_it_was = self._as_it_was, None
        return other

    def rank(self, users: LongArray, items: NDArray[np.int32], key: Key) -> NDArray[np.int32]:
        """The candidates of each row, best first, empties last; a row without a usable answer stays as it is.

        Args:
            users: (B,) rows.
            items: (B, C) candidates in the base's order, -1 = empty.
            key: seed, round and page.
        """
        scores = self.judge(users, items, key)
        lowest = np.nanmin(np.where(np.isnan(scores).all(axis=1, keepdims=True), 0.0, scores), axis=1, keepdims=True)
        scores = np.where(np.isnan(scores), lowest - 1.0, scores)  # what was not asked about comes after what was
        scores[items < 0] = -np.inf
        return np.take_along_axis(items, np.argsort(-scores, axis=1, kind="stable"), axis=1)

    def judge(self, users: LongArray, items: NDArray[np.int32], key: Key) -> NDArray[np.float64]:
        """The model's scores of these candidates, (B, C), higher is better; NaN where no usable answer came.

        With one order they are what the form gives; with several, mean places.
        """
        out = np.full(items.shape, np.nan)

        async def one(row: int) -> None:
            slots = np.flatnonzero(items[row] >= 0)
            if not len(slots):
                return
            user = int(users[row])
            notes = await self._notes(user, key)
            kept, notes = await self._narrowed(user, items[row, slots], notes, key)
            slots, shown = slots[kept], items[row, slots[kept]]
            person = self.teller.person(user, key, notes)
            found = []
            for order in range(self.orders):
                places = shuffled(shown, user, key, self.n_items, order)
                asked = Asked(
                    ask=self._ask,
                    count=self.language_model.ledger.count,
                    request=lambda text, schema, what: self._request(
                        text, schema, f"{what}, user {user}", key, form=self.form, max_tokens=60 + 8 * len(shown)
                    ),
                    render=lambda name, **values: self.teller.render(name, person=person, **values),
                    items=[self.teller.item(int(item)) for item in shown[places]],
                )
                scores = await FORMS[self.form](asked)
                if scores is not None:
                    back = np.empty(len(places))
                    back[places] = scores
                    found.append(back if self.orders == 1 else -_places(back))
            if found:
                out[row, slots] = np.mean(found, axis=0)

        self._each(one, range(len(users)), key)
        return out

    def _fit(self, log: Interactions, key: Key) -> None:
        super()._fit(log, key)
        if self.tuning is None or self.adapter is not None:
            return
        low, high = (0, 1) if self.form == "yes-no" else (1, 5)
        examples = []
        for each in told_examples(log, self.teller, self.tuning, key):
            person = self.teller.person(each.user, key, before=each.before)
            text = self.teller.render("point", person=person, item=self.teller.item(each.item))
            schema = one_number("yes" if self.form == "yes-no" else "stars", low, high)
            request = self._request(text, schema, "tuning", key, form=self.form, max_tokens=ALONE_TOKENS)
            examples.append(Example(request, high if each.taken else low))
        self._adapt(self.language_model.tune(examples, replace(self.tuning.how, seed=key.seed % SEEDS)))

    def _adapt(self, folder: Path) -> None:
        self._as_it_was = self.language_model
        self.adapter, self.language_model = folder, self.language_model.adapted(folder)

    def _state(self) -> Mapping[str, NDArray[Any]]:
        adapter = str(self.adapter or "").encode()
        return {**super()._state(), "adapter": np.frombuffer(adapter, np.uint8).copy()}

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        adapter = state["adapter"].tobytes().decode()
        if adapter and self.adapter is None:
            self._adapt(Path(adapter))
        super()._restore(state)

    def _recommend(self, users: LongArray, k: int, candidates: Candidates, key: Key) -> Slates:
        n = min(max(self._pool, k), self.n_items)
        items = self.base.recommend(users, n, candidates, key=key).item_ids
        return Slates(item_ids=self.rank(users, items, key)[:, :k])

    @property
    def _pool(self) -> int:
        """How many of the base's items are taken."""
        return self.candidates

    async def _narrowed(
        self, user: int, items: NDArray[np.int32], notes: list[tuple[str, str]], key: Key
    ) -> tuple[LongArray, list[tuple[str, str]]]:
        """Which of these candidates are asked about, as places among them, and the notes by then; here all of them."""
        return np.arange(len(items)), notes

    async def _notes(self, user: int, key: Key) -> list[tuple[str, str]]:
        """What the steps found out, in order; a step without an answer is left out and counted."""
        notes: list[tuple[str, str]] = []
        for step in self.steps:
            text = self.teller.render(step, person=self.teller.person(user, key, notes))
            said = await self._ask(self._request(text, None, f"{step}, user {user}", key), words)
            if said is not None:
                notes.append((step, said))
        return notes


def _places(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean rank of each score, best = 1, ties share."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(-scores, method="average"))
