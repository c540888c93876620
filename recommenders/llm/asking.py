"""What every recommender that asks a language model shares: the teller, the ladder, the accounting.

It does not know what is asked or what becomes of the answers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender, check_options
from recommenders.llm.telling import Teller, Telling
from recommenders.rerank import Wrapper
from simenv.datasets.base import Dataset, Interactions
from simenv.errors import ConfigError, RecommenderError
from simenv.language_models import LanguageModel, Message, Request, run
from simenv.language_models.ladder import climb, count_fallbacks, side_by_side
from simenv.language_models.quoting import plain
from simenv.language_models.rehearsal import Rehearsal
from simenv.language_models.repair import ParseError, without_wrapping
from simenv.randomness import Key

T = TypeVar("T")
NOTE_TOKENS = 120
EXPLANATION_TOKENS = 48


class AskingRecommender(Wrapper):
    """A recommender around `base` that asks a language model about users and items.

    Counters of its accounting beside those of every language model: ``pages`` are questions.
    """

    def __init__(
        self,
        base: Recommender,
        language_model: LanguageModel | None,
        *,
        telling: Telling | Mapping[str, Any] | None,
        temperature: float,
        max_fallback_share: float,
    ) -> None:
        super().__init__(base)
        if not isinstance(language_model, LanguageModel):
            raise ConfigError(
                f"{self.name}: the language model is {type(language_model).__name__}; "
                "expected recommender_llm=..., or llm=..."
            )
        check_options(self.name, high=1, max_fallback_share=max_fallback_share)
        check_options(self.name, temperature=temperature)
        self.language_model = language_model
        self.temperature = temperature
        self.telling = Telling.of(telling)
        self.max_fallback_share = max_fallback_share
        self._teller: Teller | None = None

    def bind_dataset(self, dataset: Dataset) -> None:
        super().bind_dataset(dataset)
        self._teller = Teller(self.telling, dataset)

    def retold(self, *, dataset: Dataset | None = None, log: Interactions | None = None, **changes: Any) -> Self:
        """The same fitted recommender, telling something else; model and accounting are shared.

        Args:
            dataset: titles, genres and attributes to tell instead.
            log: histories to tell instead.
            **changes: options of `Telling`.
        """
        other = copy.copy(self)
        other.telling = replace(self.telling, **changes)
        other._teller = Teller(other.telling, dataset or self.teller.dataset)
        other._teller.learn(log or self.log)
        return other

    @property
    def teller(self) -> Teller:
        """What writes the prompts, at the log's present state.

        Raises:
            RecommenderError: before `bind_dataset`: prompts are made of titles.
        """
        if self._teller is None:
            raise RecommenderError(f"{self.name}: used before bind_dataset(dataset); a prompt needs the items' titles")
        return self._teller

    @property
    def accounting(self) -> dict[str, Any]:
        """What the language model was asked and what it cost, for the run card."""
        version = self.teller.templates.version if self._teller else ""
        return {"model": self.language_model.model, "prompt_version": version, **self.language_model.ledger.as_dict()}

    def explain(self, users: NDArray[Any], items: NDArray[Any], *, key: Key | None = None) -> list[str]:
        """Why each user would like each item, in a sentence of the model's; "" where it has no answer.

        Args:
            users, items: (n,).
            key: of what is told of the users, as when recommending.
        """
        key, said = key or Key(0), [""] * len(users)

        async def one(row: int) -> None:
            user, item = int(users[row]), int(items[row])
            text = self.teller.render("explain", person=self.teller.person(user, key), item=self.teller.item(item))
            request = self._request(text, None, f"explain, user {user}", key, max_tokens=EXPLANATION_TOKENS)
            said[row] = await self._ask(request, words) or ""

        self._each(one, range(len(users)), key)
        return said

    def rehearse(self) -> None:
        """From now on a stand-in answers, and counts; nothing is asked, nor tuned."""
        super().rehearse()
        self.language_model = Rehearsal(self.language_model)

    def dry_run(self, users: NDArray[Any], slates: NDArray[np.int32], key: Key, *, pages: int) -> object:
        """The first prompt in full, and the calls, tokens and dollars of so many pages like these.

        Forms whose number of questions depends on the answers are counted by a stand-in's. What was asked while
        learning since `rehearse` is told beside that.
        """
        if not isinstance(self.language_model, Rehearsal):
            self.rehearse()
        model = self.language_model
        assert isinstance(model, Rehearsal)
        learning = len(model.asked)
        model.begin()
        self.recommend(users, slates.shape[1], key=key)
        if not model.asked:
            return f"no calls for {pages:,} pages, {learning:,} while learning"
        scale, (_, counted) = pages / len(users), model.count_tokens(model.asked[0])
        tokens = scale * model.prompt_tokens, scale * model.completion_tokens
        prompt = "\n\n".join(message.content for message in model.asked[0].messages)
        return (
            f"{prompt}\n\n{scale * len(model.asked):,.0f} calls at most for {pages:,} pages, and {learning:,} while "
            f"learning: {tokens[0]:,.0f} prompt tokens ({counted}), about {tokens[1]:,.0f} completion tokens, "
            f"${model.cost(*tokens):,.2f} by price_prompt and price_completion, second attempts not included"
        )

    def _learnt(self, log: Interactions) -> None:
        super()._learnt(log)
        if self._teller is not None:
            self._teller.learn(log)

    def _state(self) -> Mapping[str, NDArray[Any]]:
        ledger = json.dumps(self.language_model.ledger.as_dict())
        return {"ledger": np.frombuffer(ledger.encode(), np.uint8).copy()}

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        stored = json.loads(state["ledger"].tobytes())
        if stored["total"]["calls"] >= self.language_model.ledger.total("calls"):
            self.language_model.ledger.load(stored)

    async def _ask(self, request: Request, read: Callable[[str], T]) -> T | None:
        """What an answer says, by two attempts at most; None = no usable answer, which is counted."""
        answer = await climb(self.language_model, request, read, self._again)
        self._asked += 1
        self._unanswered += answer is None
        return answer

    def _each(self, work: Callable[[int], Awaitable[None]], rows: Iterable[int], key: Key) -> None:
        """Run `work(row)` for every row side by side, and keep the answers.

        Raises:
            BudgetExhausted: the next call does not fit the budget.
            LanguageModelError: the model cannot be used, or too few of its answers can.
        """
        model = self.language_model
        model.ledger.round = key.round
        self._asked = self._unanswered = 0
        run(side_by_side(model, work, rows))
        option = f"recommenders.{self.name}.max_fallback_share"
        count_fallbacks(model, self._asked, self._unanswered, most=self.max_fallback_share, option=option)
        run(model.commit())

    def _again(self, request: Request, said: str, reason: str) -> Request:
        """The second attempt: the answer, and what is wrong with it."""
        messages = request.messages
        if said.strip():
            retry = self.teller.templates.render("retry", reason=reason.replace("_", " "))
            messages = (*messages, Message("assistant", said.strip()[:2000]), Message("user", retry))
        return replace(request, messages=messages, attempt=1)

    def _request(
        self,
        text: str,
        schema: Mapping[str, Any] | None,
        label: str,
        key: Key,
        *,
        form: str = "words",
        max_tokens: int = NOTE_TOKENS,
    ) -> Request:
        return Request(
            messages=(Message("system", self.teller.render("system", form=form)), Message("user", text)),
            schema=schema,
            max_tokens=max_tokens,
            temperature=self.temperature,
            prompt_version=self.teller.templates.version,
            label=f"{self.name}, round {key.round}, page {key.page}, {label}",
        )


def words(said: str) -> str:
    """An answer in free words, made safe to quote, on one line; raises ParseError where there is none."""
    text = plain(without_wrapping(said), 400)
    if not text:
        raise ParseError("empty", "no words")
    return text
