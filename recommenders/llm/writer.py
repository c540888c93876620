"""LLMWriter and LLMTexts: a language model writes - what comes next, or what an item is - and words become scores.

They know the catalogue's texts; which items a text means is `recommenders.llm.grounding`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender, check_options, top_k
from recommenders.llm.asking import AskingRecommender, words
from recommenders.llm.grounding import GROUNDINGS
from recommenders.llm.telling import Telling
from simenv.candidates import Candidates
from simenv.datasets.base import Dataset, Interactions, LongArray
from simenv.errors import ConfigError
from simenv.language_models import LanguageModel
from simenv.randomness import Key
from simenv.slates import SeesDataset, Slates

EXACT = 0.9  # similarity from which a written title counts as one of the catalogue's


class LLMWriter(AskingRecommender):
    """Writes what a user would take next, and serves the items that the words mean.

    The model writes lines in free words - titles (Ji et al. 2023, "GenRec"; Bao et al. 2023, "BIGRec") or search
    queries (Li et al. 2023, "GPT4Rec") -, and an item's score is

        s(i) = similarity(i) * (n_i + 1)^popularity / max_j (n_j + 1)^popularity,

    with n_i the interactions of item i so far: `popularity` is the exponent by which BIGRec mixes grounding with
    popularity, a knob of bias. Titles that no item of the catalogue is like (similarity below .9) are counted as
    ``invented_titles`` beside ``written``. A user without a usable answer gets the base's slate.

    Args:
        base: serves users without an answer.
        language_model: what is asked.
        template: what is asked for, a prompt that answers in lines.
        grounding: ``title`` (string similarity) or ``words`` (BM25).
        popularity: exponent of popularity; 0 = none.
        lines: most lines of an answer that are read.
        telling: how much is told.
        temperature: of the answers.
        max_fallback_share: the run stops when more than this share of questions had no usable answer.
    """

    name = "llm-writer"

    def __init__(
        self,
        base: Recommender,
        language_model: LanguageModel | None,
        *,
        template: str = "titles",
        grounding: str = "title",
        popularity: float = 0.0,
        lines: int = 5,
        telling: Telling | Mapping[str, Any] | None = None,
        temperature: float = 0.0,
        max_fallback_share: float = 0.2,
    ) -> None:
        super().__init__(
            base, language_model, telling=telling, temperature=temperature, max_fallback_share=max_fallback_share
        )
        if grounding not in GROUNDINGS:
            raise ConfigError(f"{self.name}: grounding={grounding}; expected one of {', '.join(GROUNDINGS)}")
        check_options(self.name, popularity=popularity)
        check_options(self.name, low=1, whole=True, lines=lines)
        self.template, self.grounding, self.popularity, self.lines = template, grounding, popularity, lines

    def bind_dataset(self, dataset: Dataset) -> None:
        super().bind_dataset(dataset)
        self._ground = GROUNDINGS[self.grounding](dataset.catalog)

    def write(self, users: LongArray, key: Key) -> NDArray[np.float64]:
        """Scores of every item by what was written for each user, (B, n_items); a row of NaN where nothing was."""
        out = np.full((len(users), self.n_items), np.nan)
        ledger = self.language_model.ledger
        weight = (self._popularity.astype(np.float64) + 1.0) ** self.popularity

        async def one(row: int) -> None:
            user = int(users[row])
            text = self.teller.render(self.template, person=self.teller.person(user, key), lines=self.lines)
            request = self._request(text, None, f"{self.template}, user {user}", key, max_tokens=30 * self.lines)
            said = await self._ask(request, self._lines)
            if said is None:
                return
            similar = self._ground(said)
            ledger.count("written", len(said))
            if self.grounding == "title":
                ledger.count("invented_titles", sum(self._ground([line]).max() < EXACT for line in said))
            out[row] = similar * weight / weight.max()

        self._each(one, range(len(users)), key)
        return out

    def _lines(self, said: str) -> list[str]:
        """The lines of an answer without numbering and quotes."""
        lines = [line.strip().lstrip("0123456789.-*) ").strip("\"' ") for line in said.splitlines()]
        return [words(line) for line in lines if line][: self.lines] or [words(said)]

    def _recommend(self, users: LongArray, k: int, candidates: Candidates, key: Key) -> Slates:
        scores = self.write(users, key)
        silent: NDArray[np.bool_] = np.asarray(np.isnan(scores).all(axis=1))
        items = top_k(np.nan_to_num(scores), k, candidates)
        if silent.any():
            items[silent] = self.base.recommend(
                users[silent], k, candidates.rows(np.flatnonzero(silent)), key=key
            ).item_ids
        return Slates(item_ids=items)


class LLMTexts(AskingRecommender):
    """Texts that a language model writes once for each item, read by a recommender of texts.

    Every item is asked about once, at the first fit; the base is then shown a catalogue whose descriptions are what
    was written (Lyu et al. 2024, "LLM-Rec": augmented descriptions; Xi et al. 2023, "KAR": factual knowledge on
    items). With `reasoning` each user is asked about too, whenever slates are made, and the score is

        (1 - w) * base + w * BM25(what was written about the user; item texts), both scaled to [0, 1] within a user.

    Args:
        base: reads the texts, e.g. `recommenders.content.Content`.
        language_model: what is asked.
        template: what is asked about an item.
        reasoning: weight w of what is written about a user; 0 = users are not asked about.
        telling: how much is told.
        temperature: of the answers.
        max_fallback_share: the run stops when more than this share of questions had no usable answer.
    """

    name = "llm-texts"

    def __init__(
        self,
        base: Recommender,
        language_model: LanguageModel | None,
        *,
        template: str = "describe",
        reasoning: float = 0.0,
        telling: Telling | Mapping[str, Any] | None = None,
        temperature: float = 0.0,
        max_fallback_share: float = 0.2,
    ) -> None:
        super().__init__(
            base, language_model, telling=telling, temperature=temperature, max_fallback_share=max_fallback_share
        )
        check_options(self.name, high=1, reasoning=reasoning)
        self.template, self.reasoning = template, reasoning
        self._written: Dataset | None = None

    def bind_dataset(self, dataset: Dataset) -> None:
        super().bind_dataset(dataset)
        self._written = None

    def _fit(self, log: Interactions, key: Key) -> None:
        if self._written is None:
            self._written = self._with_texts(key)
        self._ground = GROUNDINGS["words"](self._written.catalog)
        if isinstance(self.base, SeesDataset):
            self.base.bind_dataset(self._written)
        super()._fit(log, key)

    def _with_texts(self, key: Key) -> Dataset:
        """The data set with what the model writes about each item; the text there was where it writes nothing."""
        dataset = self.teller.dataset
        catalog = dataset.catalog
        texts = list(catalog.texts or ("",) * catalog.n_items)

        async def one(item: int) -> None:
            text = self.teller.render(self.template, item=self.teller.item(item))
            said = await self._ask(self._request(text, None, f"{self.template}, item {item}", key), words)
            if said is not None:
                texts[item] = said

        self._each(one, range(catalog.n_items), key)
        return replace(dataset, catalog=replace(catalog, texts=tuple(texts)))

    def _score(self, users: LongArray) -> NDArray[Any]:
        return self.base.scores(users)

    def _recommend(self, users: LongArray, k: int, candidates: Candidates, key: Key) -> Slates:
        if not self.reasoning:
            return super()._recommend(users, k, candidates, key)
        scores = _unit_range(self.base.scores(users).astype(np.float64))

        async def one(row: int) -> None:
            user = int(users[row])
            text = self.teller.render("preferences", person=self.teller.person(user, key))
            said = await self._ask(self._request(text, None, f"preferences, user {user}", key), words)
            if said is not None:
                scores[row] = (1 - self.reasoning) * scores[row] + self.reasoning * self._ground([said])

        self._each(one, range(len(users)), key)
        return Slates(item_ids=top_k(scores, k, candidates))


def _unit_range(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    return np.asarray((scores - low) / np.where(high > low, high - low, 1.0))
