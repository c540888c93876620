"""PageScorer: asks a language model about pages, and climbs down the parse ladder where an answer cannot be used.

Rungs: strict schema, local repair, one more attempt, no answer at all. Each is counted in the model's ledger; too many
pages on the last rung stop the run. What users then do with the scores is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.llm.answers import PageScores, page_schema, parse_page
from agents.llm.prompt import PagePrompt
from simenv.language_models import LanguageModel, Message, Request, UnansweredError, run
from simenv.language_models.ladder import climb, count_fallbacks, side_by_side
from simenv.language_models.quoting import Templates, opaque_ids
from simenv.language_models.repair import without_wrapping
from simenv.randomness import Key, Purpose, uniforms

LONGEST = 200  # tokens of what a user says in its own words
TOKENS_PER_ANSWER, TOKENS_PER_ITEM = 12, 11  # {"items":{...},"satisfaction":3} and "A":{"interest":35,"rating":3},


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a run would take, as known before it."""

    prompt: str  # one of the prompts in full
    pages: int  # of the run, one call each
    prompt_tokens: float  # a page
    completion_tokens: float  # a page, reasoning aloud not included
    common_prefix: float  # share of the prompt that is the same for everyone
    dollars: float  # of the run, by the prices given
    counted: str  # how prompt tokens were counted
    further: Mapping[str, tuple[int, float, float]] = field(default_factory=dict)  # what else is asked: calls at most,
    # prompt and completion tokens a call; their price is in `dollars`

    def __str__(self) -> str:
        total = self.pages * (self.prompt_tokens + self.completion_tokens)
        total += sum(calls * (prompt + completion) for calls, prompt, completion in self.further.values())
        beside = "".join(
            f"; at most {calls:,} {what}, one call each: {prompt:,.0f} prompt tokens and {completion:,.0f} of answer"
            for what, (calls, prompt, completion) in self.further.items()
        )
        return (
            f"{self.prompt}\n\n{self.pages:,} pages, one call each: {self.prompt_tokens:,.0f} prompt tokens a page "
            f"({self.counted}; {self.common_prefix:.0%} the same for everyone), about {self.completion_tokens:,.0f} "
            f"completion tokens without reasoning{beside}; {total:,.0f} tokens, ${self.dollars:,.2f} by "
            "llm.price_prompt and llm.price_completion, second attempts not included"
        )


class PageScorer:
    """Scores of pages by a language model, one call a page.

    Args:
        language_model: what is asked.
        page_prompt: what it is told.
        temperature: of the answers.
        max_tokens: longest answer; None = enough for the page.
        max_fallback_share: share of pages without a usable answer above which the run stops.

    Attributes:
        recorded: rows of the users whose prompts and answers are kept.
        transcript: these, as they came: user, round, page, messages (role and text), answer.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        page_prompt: PagePrompt,
        *,
        temperature: float,
        max_tokens: int | None,
        max_fallback_share: float,
    ) -> None:
        self.language_model = language_model
        self.page_prompt = page_prompt
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.max_fallback_share = max_fallback_share
        self.recorded: frozenset[int] = frozenset()
        self.transcript: list[dict[str, Any]] = []

    def score(
        self, users: NDArray[Any], slates: NDArray[np.int32], asked: NDArray[np.bool_], key: Key
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """What the model says of these pages.

        Args:
            users: (B,) rows.
            slates: (B, K) items.
            asked: (B, K), the slots to ask about; an item at most once in a row.
            key: seed, round and page; with user and item it decides the order in which the model sees the items.

        Returns:
            interest (B, K) on 0-100 and rating (B, K) on 1-5, NaN where nothing was asked or no usable answer came;
            satisfaction (B,) on 1-5, NaN likewise.

        Raises:
            BudgetExhausted: the next call does not fit the budget.
            LanguageModelError: the model cannot be used, or too few of its answers can.
        """
        interest, rating = np.full(slates.shape, np.nan, np.float32), np.full(slates.shape, np.nan, np.float32)
        satisfaction = np.full(len(users), np.nan, np.float32)
        luck = uniforms(key, Purpose.PROMPT_ORDER, users[:, None], slates)
        rows = np.flatnonzero(asked.any(axis=1))

        async def one(row: int) -> None:
            ranks = np.flatnonzero(asked[row])
            ranks = ranks[np.argsort(luck[row, ranks], kind="stable")]
            scores = await self._score_page(int(users[row]), slates[row, ranks], key)
            if scores is not None:
                interest[row, ranks], rating[row, ranks] = scores.interest, scores.rating
                satisfaction[row] = scores.satisfaction

        self.language_model.ledger.round = self.page_prompt.round = key.round
        run(side_by_side(self.language_model, one, rows.tolist()))
        missing = int(np.isnan(satisfaction[rows]).sum())
        count_fallbacks(
            self.language_model,
            len(rows),
            missing,
            most=self.max_fallback_share,
            option="agent.max_fallback_share",
        )
        run(self.language_model.commit())
        return interest, rating, satisfaction

    def request(self, user: int, items: NDArray[np.int32], key: Key) -> Request:
        """What is asked about one page, its items in the order the model sees them."""
        ids = opaque_ids(len(items))
        return Request(
            messages=self.page_prompt.page(user, items, ids),
            schema=page_schema(ids),
            max_tokens=self.max_tokens or 100 + 20 * len(items),
            temperature=self.temperature,
            prompt_version=self.page_prompt.prompts.version,
            label=f"round {key.round}, page {key.page}, user {user}",
        )

    def estimate(self, users: NDArray[Any], slates: NDArray[np.int32], key: Key, *, pages: int) -> Estimate:
        """What `pages` pages like these would take, without asking anything.

        Args:
            users: (B,) rows, a sample.
            slates: (B, K) items of at least one page with items.
            key: seed, round and page.
            pages: of the whole run.
        """
        rows = [(int(user), slate[slate >= 0]) for user, slate in zip(users, slates, strict=True)]
        requests = [self.request(user, items, key) for user, items in rows if len(items)]
        counted = [self.language_model.count_tokens(request) for request in requests]
        prompt_tokens = float(np.mean([n for n, _ in counted]))
        k = float(np.mean([len(items) for _, items in rows if len(items)]))
        completion_tokens = float(TOKENS_PER_ANSWER + TOKENS_PER_ITEM * k)
        first = requests[0]
        length = sum(len(message.content) for message in first.messages)
        return Estimate(
            prompt="\n\n".join(f"[{message.role}]\n{message.content}" for message in first.messages),
            pages=pages,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            common_prefix=len(first.messages[0].content) / length,
            dollars=pages * self.language_model.cost(prompt_tokens, completion_tokens),
            counted=counted[0][1],
        )

    def tell(
        self,
        template: str,
        users: Sequence[int],
        slates: NDArray[np.int32],
        key: Key,
        *,
        prompts: Templates | None = None,
        values: Sequence[Mapping[str, Any]] | None = None,
        longest: int = LONGEST,
    ) -> list[tuple[int, str]]:
        """What users say in their own words, as (user, text) in the order given; without those who gave no answer.

        Args:
            template: such as ``reflection`` or ``interview``.
            users: rows of the population, n of them.
            slates: (n, K), the page they have just seen.
            key: seed, round and page.
            prompts: where the template is; None = among those of pages.
            values: what each of the n needs beside the person.
            longest: tokens of an answer, unless `max_tokens` says more or less.
        """
        said: dict[int, str] = {}

        async def one(row: int) -> None:
            if not (slates[row] >= 0).any():
                return
            given = {} if values is None else values[row]
            request = self.request_of(
                template, users[row], slates[row], key, prompts=prompts, values=given, longest=longest
            )
            try:
                said[row] = without_wrapping((await self.language_model.complete(request)).text)
            except UnansweredError as error:
                self.language_model.ledger.count(f"why:{template}_{error.reason}")

        self.language_model.ledger.round = self.page_prompt.round = key.round
        run(side_by_side(self.language_model, one, range(len(users))))
        run(self.language_model.commit())
        return [(users[row], text) for row, text in sorted(said.items())]

    def request_of(
        self,
        template: str,
        user: int,
        slate: NDArray[np.int32],
        key: Key,
        *,
        prompts: Templates | None,
        values: Mapping[str, Any],
        longest: int = LONGEST,
    ) -> Request:
        """What is asked of one user in `tell`."""
        prompts = self.page_prompt.prompts if prompts is None else prompts
        person = self.page_prompt.person(user, slate[slate >= 0])
        return Request(
            messages=(Message("user", prompts.render(template, person=person, **values)),),
            max_tokens=self.max_tokens or longest,
            temperature=self.temperature,
            prompt_version=prompts.version,
            label=f"round {key.round}, page {key.page}, user {user}, {template}",
        )

    async def _score_page(self, user: int, items: NDArray[np.int32], key: Key) -> PageScores | None:
        """The ladder for one page; None = no usable answer."""
        ids = opaque_ids(len(items))
        asked, answer = self.request(user, items, key), ""

        def read(text: str) -> PageScores:
            nonlocal answer
            answer = text
            return parse_page(text, ids)

        def again(first: Request, text: str, reason: str) -> Request:
            nonlocal asked
            asked = self._again(first, user, items, text, reason)
            return asked

        scores = await climb(self.language_model, asked, read, again)
        if user in self.recorded:
            messages = [[message.role, message.content] for message in asked.messages]
            page = {"user": user, "round": key.round, "page": key.page}
            self.transcript.append({**page, "messages": messages, "answer": answer})
        if scores is not None and scores.repaired:
            self.language_model.ledger.count("repairs")
        return scores

    def _again(self, first: Request, user: int, items: NDArray[np.int32], text: str, reason: str) -> Request:
        """The second attempt: a shorter prompt where the first did not fit, else the answer and what is wrong."""
        ids = opaque_ids(len(items))
        messages = first.messages
        if reason == "context_overflow":
            messages = self.page_prompt.page(user, items, ids, brief=True)
        elif text.strip() and reason != "cut_off":
            retry = self.page_prompt.prompts.render("retry", reason=reason.replace("_", " "), ids=ids)
            messages = (*messages, Message("assistant", text.strip()[:2000]), Message("user", retry))
        return replace(first, messages=messages, attempt=1)
