"""LLMUser: users whose opinion of a page comes from a language model; what they do about it, from the environment.

The model is asked once a page for interest, rating and satisfaction. Examination, clicks, the user's own scale of
ratings and leaving are drawn with the same keyed luck as the embedded model's. An answer that cannot be used is
mended, asked for once more, and at last replaced by the embedded model - every step counted, and too many of the
last one stop the run. It does not know which kind of language model it has.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.base import UserModel, require
from agents.choice.model import ChoiceModel, first_copies
from agents.llm.calibration import Calibration, OwnRatings
from agents.llm.memory import Retrieval
from agents.llm.prompt import OthersRatings, PagePrompt
from agents.llm.scorer import Estimate, PageScorer
from agents.llm.talk import Talk
from agents.llm.templates import COMPACT, Prompts
from agents.population.rows import Dynamics
from simenv.datasets.base import Dataset, LongArray, Tastes
from simenv.errors import ConfigError
from simenv.heard import Heard
from simenv.language_models import LanguageModel
from simenv.language_models.quoting import plain
from simenv.randomness import Key, Purpose, uniforms
from simenv.records import record
from simenv.slates import Responses

TITLES = ("real", "masked")
NOTES_KEPT = 3
RECORDED_USERS = 3  # whose prompts and answers a run keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMOptions:
    """What LLM users are told and how they are asked; `LLMUser` says what each option means."""

    conformity: bool = True
    titles: str = "real"
    attributes: Sequence[str] = ("gender", "age", "occupation")
    synopsis_length: int = 80
    friends_told: int = 0
    posts: float = 0.0
    chats: float = 0.0
    base_rate: float = 0.1
    temperature: float = 0.0
    max_tokens: int | None = None
    retrieval: Retrieval | None = None
    digest_every: int = 5
    reflection_every: int = 0
    exit_interview: bool = False
    max_fallback_share: float = 0.05

    def __post_init__(self) -> None:
        require(self.titles in TITLES, "titles", self.titles, f"one of {', '.join(TITLES)}")
        require(self.synopsis_length >= 0, "synopsis_length", self.synopsis_length, "a number of characters >= 0")
        require(self.friends_told >= 0, "friends_told", self.friends_told, "a number of picks >= 0")
        for option in ("posts", "chats"):
            value = getattr(self, option)
            require(0 <= value <= 1, option, value, "a share in [0, 1]")
            heard = value == 0 or self.friends_told > 0
            require(heard, option, value, "0, or agent.friends_told above 0: nobody would hear of it")
        require(0 < self.base_rate < 1, "base_rate", self.base_rate, "a share in (0, 1)")
        require(self.temperature >= 0, "temperature", self.temperature, "a number >= 0")
        enough = self.max_tokens is None or self.max_tokens > 0
        require(enough, "max_tokens", self.max_tokens, "a number of tokens > 0, or null")
        require(self.digest_every >= 0, "digest_every", self.digest_every, "a number of pages >= 0")
        require(self.reflection_every >= 0, "reflection_every", self.reflection_every, "a number of pages >= 0")
        require(0 <= self.max_fallback_share <= 1, "max_fallback_share", self.max_fallback_share, "a share in [0, 1]")


class LLMUser(UserModel):
    """Users driven by a language model.

    P(click | examined) is the calibration's value at the model's interest. A rating is the quantile of the model's
    rating among its own ratings, mapped to the user's own quantiles. After page p the user leaves with the embedded
    model's hazard, on a moving average of the satisfaction the model states. `utility` stays the embedded one, so that
    regret means the same for every user model.

    Args:
        language_model: what is asked; see `simenv.language_models.connect`.
        embedded: the model that stands in, and whose examination, exit rule and dynamics these users have.
        calibration: file of a fitted `Calibration`; None = the documented prior.
        prompts: folder with edited templates, or ``compact``; None = the packaged ones, compact where the language
            model says so.
        conformity: show others' mean rating to conformist users.
        titles: ``real``, or ``masked`` to test what a model knows by heart.
        attributes: names of user attributes to tell, where the data set has them.
        synopsis_length: characters of an item's description in the prompt.
        friends_told: picks and ratings of friends in the round before that a user is told at most, friends in turn, as
            acquaintances of RecAgent's users tell them (Wang et al. 2023); 0 = none. Needs a data set with friends.
        posts: chance that a user who picked something on a page writes a post about it, a call, which all friends are
            told in the next round; counts towards `friends_told`. Needs a model that writes.
        chats: likewise, that it is talked about with one friend, a call for both sides.
        base_rate: share of shown items a user picks, as told to the model.
        temperature: of the answers.
        max_tokens: longest answer; None = enough for the page. Raise it for models that think aloud.
        retrieval: how memories are weighed.
        digest_every: pages between renewals of the rule-based summary; 0 = never.
        reflection_every: pages between reflections by the model, a call each; 0 = never.
        exit_interview: ask users who leave why, a call each.
        max_fallback_share: the run stops when more than this share of pages came from the embedded model.

    Attributes:
        interviews: what leaving users said.
    """

    name: ClassVar[str] = "llm"
    passes_on_to: ClassVar = LLMOptions

    def __init__(
        self,
        language_model: LanguageModel | None,
        *,
        embedded: ChoiceModel | None = None,
        calibration: str | Path | None = None,
        prompts: str | Path | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(language_model, LanguageModel):
            found = type(language_model).__name__
            raise ConfigError(
                f"agent={self.name}: the language model is {found}; expected llm=smollm2, openai, transformers or "
                "replay, in Python the option language_model of agent (of agent.sample under mixed)"
            )
        given = record(LLMOptions(), options, self.name)
        self.language_model = language_model
        self.embedded = embedded or ChoiceModel()
        self.calibration = Calibration() if calibration is None else Calibration.load(calibration)
        self.prompts = Prompts(COMPACT if prompts is None and language_model.compact else prompts)
        self.conformity = given.conformity
        self.titles = given.titles
        self.attributes = tuple(given.attributes)
        self.synopsis_length = given.synopsis_length
        self.friends_told = given.friends_told
        self.posts, self.chats = given.posts, given.chats
        self._edited = prompts
        self.base_rate = given.base_rate
        self.temperature = given.temperature
        self.max_tokens = given.max_tokens
        self.retrieval = given.retrieval or Retrieval()
        self.digest_every = given.digest_every
        self.reflection_every = given.reflection_every
        self.exit_interview = given.exit_interview
        self.max_fallback_share = given.max_fallback_share
        self.interviews: list[dict[str, Any]] = []

    # -- life ---------------------------------------------------------------------------------------------------

    @property
    def dynamics(self) -> Dynamics:
        return self.embedded.dynamics

    @property
    def hears_friends(self) -> bool:
        return self.friends_told > 0 or self.embedded.hears_friends

    @property
    def memory_size(self) -> int:
        return self.embedded.memory_size

    @property
    def accounting(self) -> dict[str, Any]:
        """What the language model was asked and what it cost, for the run card."""
        return {
            "model": self.language_model.model,
            "prompt_version": self.prompts.version,
            "calibration": self.calibration.source or "not calibrated",
            **self.language_model.ledger.as_dict(),
        }

    @property
    def transcript(self) -> list[dict[str, Any]]:
        """What the model was told and answered for a few users spread over the population, in order of time."""
        return sorted(self._scorer.transcript, key=lambda page: (page["round"], page["page"], page["user"]))

    def _bind(self, dataset: Dataset, tastes: Tastes) -> None:
        self.embedded.bind_beside(self, dataset, tastes)
        self._dataset = dataset
        self._scorer = self._new_scorer()
        self._scorer.recorded = frozenset(np.linspace(0, dataset.n_users - 1, RECORDED_USERS).astype(int).tolist())
        self._own_ratings = OwnRatings(dataset, self.population.traits.rating_mean, self.population.traits.rating_sd)
        self._others = OthersRatings(dataset)
        self._scorer.page_prompt.others = self._others.means()
        self._pages = np.zeros(dataset.n_users, np.int32)
        self.interviews = []
        self._talk = self._new_talk()

    def _new_talk(self) -> Talk | None:
        """Posts and chats, in words; None = there are none."""
        if self.posts + self.chats == 0 or self._dataset.friends is None:
            return None
        edited = None if self._edited == COMPACT else self._edited
        return Talk(self._scorer, self._dataset.friends, posts=self.posts, chats=self.chats, prompts=edited)

    def _new_scorer(self) -> PageScorer:
        page_prompt = PagePrompt(
            self.prompts,
            self._dataset,
            self.population,
            retrieval=self.retrieval,
            conformity=self.conformity,
            masked=self.titles == "masked",
            attributes=self.attributes,
            synopsis_length=self.synopsis_length,
            base_rate=self.base_rate,
        )
        page_prompt.friends_told = self.friends_told
        return PageScorer(
            self.language_model,
            page_prompt,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            max_fallback_share=self.max_fallback_share,
        )

    def respond(self, users: NDArray[Any], slates: NDArray[np.int32], key: Key) -> Responses:
        users = np.asarray(users, dtype=np.int64)
        responses = super().respond(users, slates, key)
        self._remember(users, slates, responses, key)
        return responses

    def _hear(self, users: LongArray, slates: NDArray[np.int32], key: Key) -> Heard:
        prompt = self._scorer.page_prompt
        rows = [(user, *message) for user in users.tolist() for message in prompt.told(user, key.round)]
        return Heard.of(rows, key.round, key.page)

    def end_round(self, round: int) -> None:
        self.embedded.end_round(round)
        if self._talk is not None:
            self._talk.end_round()
        self._scorer.page_prompt.others = self._others.means()

    def forget(self, users: NDArray[Any], start: dict[str, NDArray[Any]]) -> None:
        super().forget(users, start)
        self._pages[users] = start["llm_pages"][users]
        then, prompt = json.loads(start["llm_texts"].tobytes()), self._scorer.page_prompt
        digests, notes = dict(then["digests"]), dict(then["notes"])
        for user in np.asarray(users).tolist():
            for now, before in ((prompt.digests, digests), (prompt.notes, notes)):
                now.pop(user, None)
                if user in before:
                    now[user] = before[user]

    def __deepcopy__(self, memo: dict[int, Any]) -> LLMUser:
        """Users of their own who ask the same language model, out of the same budget."""
        other = copy.copy(self)
        memo |= {id(self): other, id(self.language_model): self.language_model, id(self.prompts): self.prompts}
        other.__dict__ = copy.deepcopy(self.__dict__, memo)
        return other

    def twin(self) -> LLMUser:
        other = super().twin()
        assert isinstance(other, LLMUser)
        other.embedded = copy.copy(self.embedded)
        other.embedded.population = other.population
        other._scorer = other._new_scorer()
        other._talk = other._new_talk()
        other._others = copy.copy(self._others)
        other._set_own_state(self._own_state())
        return other

    def state_dict(self) -> dict[str, NDArray[Any]]:
        return self.embedded.state_dict() | self._own_state()

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        own = self._own_state()
        self.embedded.load_state_dict({name: values for name, values in state.items() if name not in own})
        self._set_own_state({name: state[name] for name in own})

    def _own_state(self) -> dict[str, NDArray[Any]]:
        prompt = self._scorer.page_prompt
        written = {
            "digests": list(prompt.digests.items()),
            "notes": list(prompt.notes.items()),
            "interviews": self.interviews,
            "transcript": self.transcript,
            "ledger": self.language_model.ledger.as_dict(),
        }
        if self._talk is not None:
            written["talk"] = self._talk.state()
        return {
            "llm_pages": self._pages.copy(),
            "llm_rating_sums": self._others.sums.copy(),
            "llm_rating_counts": self._others.counts.copy(),
            "llm_others": prompt.others.copy(),
            "llm_texts": np.frombuffer(json.dumps(written).encode(), np.uint8).copy(),
        }

    def _set_own_state(self, state: dict[str, NDArray[Any]]) -> None:
        self._pages = state["llm_pages"].copy()
        self._others.sums = state["llm_rating_sums"].copy()
        self._others.counts = state["llm_rating_counts"].copy()
        prompt, texts = self._scorer.page_prompt, json.loads(state["llm_texts"].tobytes())
        prompt.others = state["llm_others"].copy()
        prompt.digests, prompt.notes = dict(texts["digests"]), dict(texts["notes"])
        self.interviews = texts["interviews"]
        if self._talk is not None:
            self._talk.restore(texts["talk"])
        self._scorer.transcript = texts.get("transcript", [])  # checkpoints of before have none
        ledger, spent = self.language_model.ledger, texts["ledger"]["total"]
        # money stays spent: a snapshot of this process's past does not refund it, a resumed run takes it over
        if spent["calls"] >= ledger.total("calls"):
            ledger.load(texts["ledger"])

    # -- one page of a batch ------------------------------------------------------------------------------------

    def _respond(self, users: LongArray, slates: NDArray[np.int32], key: Key) -> Responses:
        stand_in = self.embedded.answer(users, slates, key)
        interest, rating, satisfaction = self.score(users, slates, key)
        stated = (satisfaction - 1.0) / 4.0
        scored = ~np.isnan(stated)
        examined, clicked = self._act(users, slates, key, interest)
        u = uniforms(key, Purpose.RATING, users[:, None], slates)
        v = uniforms(key, Purpose.RATING_SECOND, users[:, None], slates)
        quantile = self.calibration.rating_quantile(np.nan_to_num(rating, nan=3.0), u, v)
        own = self._own_ratings.at(np.broadcast_to(users[:, None], slates.shape), quantile)
        gives = uniforms(key, Purpose.RATING_SECOND, users[:, None], -1 - slates) < self.embedded.rating_rate
        ratings = np.where(clicked & gives, own, np.float32(np.nan))
        rows = scored[:, None]
        return Responses(
            examined=np.where(rows, examined, stand_in.examined),
            clicked=np.where(rows, clicked, stand_in.clicked),
            ratings=np.where(rows, ratings, stand_in.ratings),
            utility=stand_in.utility,
            exited=np.where(scored, self._leaves(users, stated, key), stand_in.exited),
            satisfaction=stated,
        )

    def score(
        self, users: NDArray[Any], slates: NDArray[np.int32], key: Key
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """What the model says of these pages, before calibration and luck; see `PageScorer.score`.

        Args:
            users: (B,) rows.
            slates: (B, K) items, -1 = empty. Of duplicates the first copy is asked about.
            key: seed, round and page.
        """
        return self._scorer.score(np.asarray(users, np.int64), slates, first_copies(slates), key)

    def dry_run(self, users: NDArray[Any], slates: NDArray[np.int32], key: Key, *, pages: int) -> Estimate:
        """One full prompt, and what `pages` pages like these would cost; nothing is asked.

        Args:
            users: (B,) rows, a sample.
            slates: (B, K) items.
            key: seed, round and page.
            pages: of the whole run.
        """
        estimate = self._scorer.estimate(users, slates, key, pages=pages)
        return estimate if self._talk is None else self._talk.estimated(estimate, users, slates, pages=pages)

    def _act(
        self,
        users: LongArray,
        slates: NDArray[np.int32],
        key: Key,
        interest: NDArray[np.float32],
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which items are examined, as the embedded model's users would who want the same, and clicked."""
        chance = self.calibration.click_probability(np.nan_to_num(interest))
        wanted = (uniforms(key, Purpose.CLICK, users[:, None], slates) < chance) & ~np.isnan(interest)
        examined = self.embedded.examination.examined(users, slates, wanted, key)
        return examined, examined & wanted

    def _leaves(self, users: LongArray, stated: NDArray[np.float32], key: Key) -> NDArray[np.bool_]:
        """By the embedded model's rule, on the moving average of the stated satisfaction."""
        weight = self.dynamics.satisfaction_memory
        mood = weight * self.population.satisfaction[users] + (1.0 - weight) * np.nan_to_num(stated)
        return self.embedded.exit_rule.leaves(users, key, self.population.traits.activity_pct[users], mood)

    # -- after the page -----------------------------------------------------------------------------------------

    def _remember(self, users: LongArray, slates: NDArray[np.int32], responses: Responses, key: Key) -> None:
        """Count pages and ratings; renew summaries; reflect and interview where asked to."""
        self._pages[users] += 1
        rated = ~np.isnan(responses.ratings)
        self._others.add(slates[rated], responses.ratings[rated])
        prompt, pages = self._scorer.page_prompt, self._pages[users]
        if self.digest_every:
            for user in users[pages % self.digest_every == 0].tolist():
                prompt.digests[user] = prompt.digest(user)
        if self.reflection_every:
            due = pages % self.reflection_every == 0
            for user, text in self._scorer.tell("reflection", users[due].tolist(), slates[due], key):
                prompt.notes[user] = [*prompt.notes.get(user, []), plain(text, 240)][-NOTES_KEPT:]
        if self._talk is not None:
            self._talk.after(users, slates, responses, key)
        if self.exit_interview:
            left = responses.exited
            for user, text in self._scorer.tell("interview", users[left].tolist(), slates[left], key):
                said = {"user": user, "round": key.round, "page": key.page, "text": plain(text, 500)}
                self.interviews.append(said)
