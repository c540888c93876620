"""LLMToolUser: a language model narrows a pool of candidates with tools, then puts what is left in order.

The tools are plain functions of the catalogue and the log; the model chooses which to use, at most so many times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender, check_options, user_items
from recommenders.llm.forms import load_number
from recommenders.llm.ranker import LLMRanker
from recommenders.llm.telling import Telling
from simenv.datasets.base import Interactions, LongArray
from simenv.language_models import LanguageModel
from simenv.language_models.repair import integer_schema, object_schema
from simenv.randomness import Key

FINISH, KIND, LIKE, POPULAR, RARE = range(5)
TOOLS = (
    "finish",
    "keep one kind",
    "keep what is like one of the things had",
    "keep the best known",
    "keep the least known",
)
MOST_LISTED = 20  # kinds, and things had, that are numbered for the model


@dataclass(frozen=True, slots=True)
class _Call:
    tool: int
    argument: int


class LLMToolUser(LLMRanker):
    """Narrows a pool of the base's candidates with tools before it ranks.

    In each step the model is told how many candidates are left, which kinds are among them and what the person had, and
    calls one tool: keep one kind, keep the half most like an item of the history (cosine of who consumed both), keep
    the better or the less known half, or finish. A call that would leave fewer than `candidates` keeps that many, in
    the base's order. What was done is told in the next step (a memory, as in Huang et al. 2023, "InteRecAgent"); with
    `steps` such as plan and reconsider it also thinks first, each thought seeing all earlier ones (Wang et al. 2023,
    "RecMind": self-inspiring). What is left is ranked as by `LLMRanker`; what was dropped follows in the base's order.

    Args:
        base, language_model, form, candidates, orders, steps, telling, temperature: as for `LLMRanker`.
        pool: how many of the base's items there are to begin with.
        calls: most tools that are called for one slate.
    """

    name = "llm-tools"

    def __init__(
        self,
        base: Recommender,
        language_model: LanguageModel | None,
        *,
        form: str = "list",
        candidates: int = 20,
        pool: int = 100,
        calls: int = 3,
        steps: Sequence[str] = (),
        telling: Telling | Mapping[str, Any] | None = None,
        temperature: float = 0.0,
        max_fallback_share: float = 0.2,
    ) -> None:
        super().__init__(
            base,
            language_model,
            form=form,
            candidates=candidates,
            steps=steps,
            telling=telling,
            temperature=temperature,
            max_fallback_share=max_fallback_share,
        )
        check_options(self.name, low=candidates, whole=True, pool=pool)
        check_options(self.name, low=1, whole=True, calls=calls)
        self.pool, self.calls = pool, calls

    @property
    def _pool(self) -> int:
        return self.pool

    def _learnt(self, log: Interactions) -> None:
        super()._learnt(log)
        self._by_item = user_items(log, binary=True).tocsc()

    async def _narrowed(
        self, user: int, items: NDArray[np.int32], notes: list[tuple[str, str]], key: Key
    ) -> tuple[LongArray, list[tuple[str, str]]]:
        kept = np.arange(len(items))
        had = self._log.items[self.teller.history(user)][-MOST_LISTED:][::-1]
        catalog = self.teller.dataset.catalog
        for step in range(self.calls):
            present = catalog.genres[items[kept]].sum(axis=0)
            kinds = np.argsort(-present, kind="stable")[: min(MOST_LISTED, int((present > 0).sum()))]
            text = self.teller.render(
                "tools",
                person=self.teller.person(user, key, notes),
                left=len(kept),
                tools=list(enumerate(TOOLS)),
                kinds=[(i + 1, catalog.genre_names[g], int(present[g])) for i, g in enumerate(kinds)],
                had=[(i + 1, self.teller.item(int(item))) for i, item in enumerate(had)],
            )
            schema = object_schema(
                {"tool": integer_schema(0, len(TOOLS) - 1), "argument": integer_schema(0, MOST_LISTED)}
            )
            call = await self._ask(
                self._request(text, schema, f"tool {step}, user {user}", key, form="tool"),
                lambda said: _Call(
                    round(load_number(said, "tool", 0, len(TOOLS) - 1)),
                    round(load_number(said, "argument", 0, MOST_LISTED)),
                ),
            )
            if call is None or call.tool == FINISH:
                break
            wanted = self._use(call, items, kept, kinds, had)
            self.language_model.ledger.count("tool_calls")
            if wanted is None:
                self.language_model.ledger.count("useless_tool_calls")
                notes = [*notes, ("tool", f"{TOOLS[call.tool]} {call.argument}: there is no such number")]
                continue
            kept = _at_least(kept, wanted, self.candidates)
            notes = [*notes, ("tool", f"{TOOLS[call.tool]} {call.argument or ''}: {len(kept)} left")]
        return kept[: self.candidates], notes

    def _use(
        self, call: _Call, items: NDArray[np.int32], kept: LongArray, kinds: LongArray, had: NDArray[np.int32]
    ) -> NDArray[np.bool_] | None:
        """Which of the kept candidates the tool keeps; None = the argument names nothing."""
        of = items[kept]
        if call.tool == KIND:
            if not 1 <= call.argument <= len(kinds):
                return None
            return np.asarray(self.teller.dataset.catalog.genres[of, kinds[call.argument - 1]])
        if call.tool == LIKE:
            if not 1 <= call.argument <= len(had):
                return None
            value = self._cosine(int(had[call.argument - 1]), of)
        else:
            value = self._popularity[of].astype(np.float64) * (1 if call.tool == POPULAR else -1)
        better = np.zeros(len(of), np.bool_)
        better[np.argsort(-value, kind="stable")[: max(1, len(of) // 2)]] = True
        return better

    def _cosine(self, item: int, others: NDArray[np.int32]) -> NDArray[np.float64]:
        """Cosine of the users of an item and those of others, (n,)."""
        column = self._by_item[:, [item]]
        both = np.asarray((self._by_item[:, others].T @ column).todense()).ravel().astype(np.float64)
        return both / np.sqrt(np.maximum(1.0, column.nnz * self._popularity[others]))


def _at_least(kept: LongArray, wanted: NDArray[np.bool_], least: int) -> LongArray:
    """The wanted ones, with the first others where they are fewer than `least`; the order stays."""
    short = least - int(wanted.sum())
    if short > 0:
        wanted = wanted.copy()
        wanted[np.flatnonzero(~wanted)[:short]] = True
    return kept[wanted]
