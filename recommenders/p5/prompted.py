"""P5: recommendation as language. Prompts of several families in, item codes, stars, yes or no, or words out.

What it recommends with is the sequential family, the history in words of its own and the next item's code as the
answer, or (`Asking.task`) the direct one.
The module does not know how text becomes tokens, nor how T5 works inside.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recommenders.base import top_k
from recommenders.p5.generative import GenerativeRecommender
from recommenders.p5.language.batches import Batch, PromptBatches
from recommenders.p5.language.fair import FairOptions, FairPrefix, train_prefix
from recommenders.p5.language.prompts import Prompt, load_prompts
from recommenders.p5.language.text import (
    END,
    PAD,
    CheckpointWords,
    OwnWords,
    Rows,
    TextData,
    Vocabulary,
    Words,
    own_words,
)
from recommenders.p5.networks.llama import LlamaNetwork
from recommenders.p5.networks.prompt import PromptNetwork
from recommenders.p5.networks.t5 import P5Network, T5Options
from recommenders.p5.trie import PathScorer, item_scores
from simenv.candidates import Candidates
from simenv.datasets.base import Dataset, Interactions, LongArray
from simenv.datasets.reviews import Reviewer, Reviews, reviewer_of
from simenv.errors import ConfigError, RecommenderError, RunDirectoryError
from simenv.randomness import Key, Purpose, generator
from simenv.records import record
from simenv.slates import Slates
from simenv.training.histories import Histories
from simenv.training.loop import TrainingOptions, seeded

TASKS = ("next", "choose", "likes")
MOST_CANDIDATES = 512  # that a prompt can tell, or that are asked about one by one
TRAINING = TrainingOptions(epochs=5, batch_size=64, evaluate_every=1, patience=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What P5 is trained on and asked with."""

    families: Sequence[str] = ("sequential",)  # task families; those whose data are missing are left out: `P5.skipped`
    prompts: Path | str | None = None  # folder of prompt files; None = those shipped here
    ask: str = "seen"
    """Prompt to ask with: `seen`: one that was trained on; `unseen`: one that never was; `none`: no words, the bare
    history, where the next item is asked for."""
    other_share: float = 0.25  # rows of the other families per row of the sequential one
    history: int = 20  # items told
    task: str = "next"
    """What recommending asks: `next`: the next item; `choose`: which of the items allowed; `likes`: yes or no of each
    of them. The latter two need the family `direct`, and few candidates."""
    candidates: int = 20  # items told to choose among while training
    user_input: str = "digits"
    """`digits`: an id is three tokens of base 100, which users share; `own`: each user has a token, and so a memory, as
    explanations need (Li et al. 2021, "PETER"; 2023, "PEPLER")."""
    describe: Sequence[str] = ()  # user attributes that `{user_desc}` tells; none = prompts with it are left out

    def __post_init__(self) -> None:
        if "sequential" not in self.families:
            raise ConfigError(f"families={list(self.families)}: expected 'sequential' among them, to recommend with")
        if self.ask not in ("seen", "unseen", "none"):
            raise ConfigError(f"ask={self.ask}: expected seen, unseen or none")
        if self.task not in TASKS:
            raise ConfigError(f"task={self.task}: expected {', '.join(TASKS[:-1])} or {TASKS[-1]}")
        if self.task != "next" and "direct" not in self.families:
            raise ConfigError(f"task={self.task}, families={list(self.families)}: expected 'direct' among them")
        if self.candidates < 2:
            raise ConfigError(f"candidates={self.candidates}: expected at least 2")
        if self.user_input not in ("digits", "own"):
            raise ConfigError(f"user_input={self.user_input}: expected digits or own")
        if self.history < 1 or self.other_share < 0:
            raise ConfigError(f"history={self.history}, other_share={self.other_share}: expected at least 1 and 0")


class P5(GenerativeRecommender):
    """A T5 on personalised prompts (Geng et al. 2022), with any item index and constrained decoding.

    Args:
        network: the backbone and its shape, or a checkpoint; see `recommenders.p5.networks.t5.T5Options`.
        asking: prompts and what they tell, see `Asking`.
        training: a mapping changes the defaults of `TRAINING`.
        fair: hide a user attribute behind a counterfactually fair prompt (UP5, Hua et al. 2024), trained after the rest
            with everything else frozen: `{attribute: gender}`, further options in `fair.FairOptions`. It stands
            in front of the prompts that recommend; stars and words are asked for without it.
        index, updating, decoding, device, checkpoint, show_progress: see `GenerativeRecommender`.

    Attributes:
        wording: which of the prompts that were trained on and fit a question asks it, from 0. May be set at any time.
        skipped: family -> why it was not trained.
    """

    name = "p5"
    network: PromptNetwork

    def __init__(
        self,
        *,
        network: T5Options | Mapping[str, Any] | None = None,
        asking: Asking | Mapping[str, Any] | None = None,
        training: TrainingOptions | Mapping[str, Any] | None = None,
        fair: FairOptions | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(training=record(TRAINING, training, "training"), **options)
        self.options = record(T5Options(), network, "network")
        self.asking = record(Asking(), asking, "asking")
        self.ask, self.task, self.history = self.asking.ask, self.asking.task, self.asking.history
        self.wording = 0
        self.book = load_prompts(self.asking.prompts, self.asking.families)
        if not self.asking.describe:
            self.book = self.book.without("user_desc")
        self._people: Sequence[str] | None = None if self.asking.describe else ()
        self._known: dict[str, NDArray[np.str_]] = {}
        self.fair = _fair_options(fair)
        self.fair_losses: list[tuple[float, float]] = []
        self._attribute: NDArray[np.int64] | None = None
        self.reviews: Reviews | None = None
        self.skipped: dict[str, str] = {}
        self._reviewer: Reviewer | None = None
        self._words: OwnWords | None = None  # of a saved model

    def bind_dataset(self, dataset: Dataset) -> None:
        """Let indexer and prompts see titles, genres and texts; users of a synthetic world also write reviews."""
        super().bind_dataset(dataset)
        if {"explanation", "review", "opinions"} & set(self.book.families):
            self._reviewer = reviewer_of(dataset)
            if self._reviewer is None and dataset.reviews is not None:
                self.reviews = dataset.reviews
        if self.fair is not None:
            self._attribute = _attribute(dataset, self.fair.attribute)
        self._known = {name: _known(dataset, name, "asking.describe") for name in self.asking.describe}
        self._people = _descriptions(self._known)

    @property
    def told_values(self) -> dict[str, tuple[str, ...]]:
        """The values of each attribute that `{user_desc}` tells, sorted; the empty one, of users who told none, not."""
        return {name: tuple(sorted(set(values.tolist()) - {""})) for name, values in self._known.items()}

    def described_as(self, **swap: str | None) -> Self:
        """The same fitted network, asked as though every user were of these attribute values.

        Args:
            **swap: a value told in place of each user's own, by attribute; None = the attribute is not told. With
                nothing told, the prompts without `{user_desc}` ask.

        Raises:
            ConfigError: an attribute that `asking.describe` does not have, or a value that no user has.
        """
        told = dict(self._known)
        for name, value in swap.items():
            if name not in told:
                expected = ", ".join(self._known) or "none: asking.describe is empty"
                raise ConfigError(f"{self.name}: no attribute '{name}' is told; expected one of: {expected}")
            values = told.pop(name)
            if value is not None:
                if value not in values:
                    raise ConfigError(f"{self.name}: no user is of {name} '{value}'; expected one of {_few(values)}")
                told[name] = np.full(len(values), value)
        other = copy.copy(self)
        other._people = _descriptions({name: told[name] for name in self._known if name in told})
        return other

    def bind_reviews(self, reviews: Reviews) -> None:
        """Give the explanation and review families something to learn from, in place of what the data set has.

        Before `fit`. Of them, those of interactions in the log are learned from; `summarise` reads any.
        """
        self.reviews, self._reviewer = reviews, None

    def _fit(self, log: Interactions, key: Key) -> None:
        self._words = None
        if self._reviewer is not None:
            self.reviews = self._reviewer.write(log)
        super()._fit(log, key)
        self.skipped = self._batches(self.histories).skipped
        self._train_prefix(key)

    def _update(self, new: Interactions, key: Key) -> None:
        if self._reviewer is not None:
            written = self._reviewer.write(new)
            self.reviews = written if self.reviews is None else self.reviews.concat(written)
        self.network.prefixed = False
        super()._update(new, key)
        self._train_prefix(key)

    # -- network ------------------------------------------------------------------------------------------------

    def _network(self) -> PromptNetwork:
        path = self.options.checkpoint_path
        if path is not None:
            words: Words = CheckpointWords(path)
        else:
            words = self._words or own_words(self.book, self.catalog, self.reviews, self._people or ())
        own = self.histories.n_users if self.asking.user_input == "own" else None
        self.vocabulary = Vocabulary(words, self.index.sizes, own)
        kind = P5Network if self.options.backbone == "t5" else LlamaNetwork
        network = kind(torch.as_tensor(self.index.codes), self.vocabulary, self.options)
        if self.fair is not None:
            network.prefix = FairPrefix(network.size, self.fair.length)
        return network

    def _reindexed(self) -> None:
        self.network.codes.copy_(torch.as_tensor(self.index.codes))

    def _widest(self) -> int:
        return 8 * self.network.size

    def _data(self, histories: Histories) -> TextData:
        if self._people is None:
            raise ConfigError(f"{self.name}: asking.describe without user attributes; expected bind_dataset before")
        return TextData(
            histories, self.vocabulary, self.catalog, self.history, self.reviews, self.asking.candidates, self._people
        )

    # -- training -----------------------------------------------------------------------------------------------

    def _loss(self, batch: Any) -> tuple[Tensor, int]:
        sources, targets = (torch.as_tensor(part).to(self.device, non_blocking=True) for part in batch)
        return self.network.loss(sources, targets, self.trie)

    def _batches(self, histories: Histories) -> PromptBatches:
        return PromptBatches(self._data(histories), self.book, self.training.batch_size, self.asking.other_share)

    def _steps(self, histories: Histories) -> int:
        return self._batches(histories).steps

    def _epoch_batches(self, histories: Histories, rng: np.random.Generator) -> Iterator[Batch]:
        return self._batches(histories).epoch(rng)

    def hide(self, dataset: Dataset, fair: FairOptions | Mapping[str, Any], *, key: Key | None = None) -> None:
        """Train a fair prompt in front of a network that is fitted already, as the option `fair` does after `fit`."""
        self._require_fit()
        options = _fair_options(fair)
        assert options is not None
        self.fair, self._attribute = options, _attribute(dataset, options.attribute)
        self._train_prefix(key or Key(0))

    def _train_prefix(self, key: Key) -> None:
        """The fair prompt, where one is wanted, on prompts of users whose attribute is known."""
        if self.fair is None:
            return
        if self._attribute is None:
            raise ConfigError(f"fair: no user attributes are known; expected bind_dataset with {self.fair.attribute}")
        rng = generator(key, Purpose.FAIR_PROMPT)
        self.network.prefixed = True
        labels = torch.as_tensor(self._attribute[self._attribute >= 0], device=self.device)
        drawn = self._batches(self.histories).told(self._attribute, self.fair.batch_size, rng)
        batches = ([torch.as_tensor(part, device=self.device) for part in batch] for batch in drawn)
        with seeded(int(rng.integers(2**31)), self.device):
            self.network.prefix = FairPrefix(self.network.size, self.fair.length).to(self.device)
            self.fair_losses = train_prefix(self.network, batches, labels, self.trie, self.fair)

    # -- asking -------------------------------------------------------------------------------------------------

    def _scorer(self, histories: Histories, users: LongArray) -> PathScorer:
        return self.network.scorer(self._asked(histories, users))

    def _asked(self, histories: Histories, users: LongArray) -> Tensor:
        """The rendered prompts that recommending asks with, (B, S); users without history have an empty one."""
        data = self._data(histories)
        n = len(users)
        rows = Rows(
            users=np.asarray(users, np.int64),
            ends=histories.ptr[np.asarray(users, np.int64) + 1],
            items=np.zeros(n, np.int64),
            ratings=np.zeros(n, np.float32),
            liked=np.ones(n, np.bool_),
            reviews=np.full(n, -1),
        )
        rng = np.random.default_rng(0)
        if self.ask == "none":
            sources = data.history(rows)
            sources[:, 0] = np.where(sources[:, 0] < 0, 0, sources[:, 0])
        else:
            prompt = self._prompt("sequential", "item")
            sources = data.source(prompt, rows, rng, crop=False)
        return torch.as_tensor(sources, device=self.device)

    @torch.no_grad()
    def user_states(self, users: NDArray[Any]) -> NDArray[np.float32]:
        """What the network makes of each user's prompt, (B, d): the state the first token of an item is chosen from."""
        self._require_fit()
        parts = []
        for start in range(0, len(users), 4 * self.score_batch):
            asked = self._asked(self.histories, users[start : start + 4 * self.score_batch])
            parts.append(self.network.first_state(*self.network.encode(asked)).float().cpu().numpy())
        return np.concatenate(parts)

    def predict_ratings(self, users: NDArray[Any], items: NDArray[Any], *, unseen: bool = False) -> NDArray[np.float32]:
        """Expected stars of aligned (user, item) pairs, from the distribution over the first word of the answer.

        Args:
            users, items: (n,).
            unseen: ask with the rating prompt that was never trained on, as with `ask` unseen.

        Raises:
            RecommenderError: if the rating family was not trained.
        """
        self._require_family("rating")
        who, what = np.asarray(users, np.int64), np.asarray(items, np.int64)
        return self._stars(self._prompt("rating", "rating", unseen), self._question(who, what))

    def likes(self, users: NDArray[Any], items: NDArray[Any]) -> NDArray[np.float32]:
        """How probable *yes* is against *no* when asked whether each item suits each user, (n,), pairs aligned."""
        self._require_family("direct")
        who, what = np.asarray(users, np.int64), np.asarray(items, np.int64)
        answers = self._data(self.histories).answers(np.array([False, True]))[:, 0]
        scores = self._first_words(self._prompt("direct", "answer"), self._question(who, what), answers, bare=False)
        return scores[:, 1]

    def choose(
        self, users: NDArray[Any], candidates: NDArray[Any], k: int = 1, *, unseen: bool = False
    ) -> NDArray[np.int32]:
        """The best of the items each user may choose from, told in the prompt and scored at their leaves.

        Args:
            users: (B,).
            candidates: (B, C) items, -1 = none.
            k: how many of them.
            unseen: ask with the prompt that was never trained on.

        Returns:
            (B, k), best first, ties to the smaller item; -1 where there are no more.
        """
        self._require_family("direct")
        who, among = np.asarray(users, np.int64), np.asarray(candidates, np.int64)
        if among.ndim != 2 or len(among) != len(who) or among.shape[1] > MOST_CANDIDATES:
            raise RecommenderError(
                f"{self.name}: candidates have shape {among.shape}; expected ({len(who)}, at most {MOST_CANDIDATES})"
            )
        prompt, found = self._prompt("direct", "candidates", unseen), np.full((len(who), k), -1, np.int32)
        size = self._scored_at_once(len(who))
        for start in range(0, len(who), size):
            rows = slice(start, start + size)
            asked = self._question(who[rows], np.zeros(len(who[rows]), np.int64))
            sources = self._rendered(prompt, replace(asked, candidates=among[rows]))
            with torch.no_grad():
                scores = item_scores(self.trie, self.network.scorer(sources)).cpu().numpy()
            allowed = np.zeros(scores.shape, np.bool_)
            place, column = np.nonzero(among[rows] >= 0)
            allowed[place, among[rows][place, column]] = True
            found[rows] = top_k(np.where(allowed, scores, -np.inf), k)
        return found

    def _recommend(self, users: LongArray, k: int, candidates: Candidates, key: Key) -> Slates:
        if self.task == "next":
            return super()._recommend(users, k, candidates, key)
        allowed = np.broadcast_to(candidates.mask(), (len(users), self.n_items))
        most = int(allowed.sum(axis=1).max(initial=0))
        if most > MOST_CANDIDATES:
            raise RecommenderError(
                f"{self.name}: task={self.task} among {most} candidates; expected at most {MOST_CANDIDATES}, as in "
                "target=candidates99"
            )
        rows, items = np.nonzero(allowed)
        if self.task == "likes":
            scores = np.full(allowed.shape, -np.inf, np.float32)
            scores[rows, items] = self.likes(users[rows], items)
            return Slates(item_ids=top_k(scores, k))
        among = np.full((len(users), most), -1, np.int64)
        among[rows, np.concatenate([np.arange(n) for n in allowed.sum(axis=1)])] = items
        return Slates(item_ids=self.choose(users, among, k))

    def explain(
        self,
        users: NDArray[Any],
        items: NDArray[Any],
        *,
        features: Sequence[str] | None = None,
        unseen: bool = False,
    ) -> list[str]:
        """Why each user would like each item, in words; needs reviews bound before `fit`.

        Args:
            users, items: (n,).
            features: (n,) what each explanation should speak of; None = the model's choice.
            unseen: ask with the explanation prompt that was never trained on.
        """
        self._require_family("explanation")
        rows = self._question(np.asarray(users, np.int64), np.asarray(items, np.int64))
        if features is None:
            return self._write(self._prompt("explanation", "explanation", unseen), rows)
        if len(features) != len(rows.users):
            raise RecommenderError(
                f"{self.name}: {len(features)} features for {len(rows.users)} pairs; expected one each"
            )
        told = self._data(self.histories).words(features)
        return self._write(self._prompt("explanation", "feature", unseen), replace(rows, features=told))

    def summarise(self, reviews: NDArray[Any], *, unseen: bool = False) -> list[str]:
        """The reviews of these rows in a few words; needs reviews bound before `fit`."""
        return self._write(self._prompt("review", "summary", unseen), self._about_reviews(reviews))

    def stars_of(self, reviews: NDArray[Any]) -> NDArray[np.float32]:
        """Expected stars behind the reviews of these rows, (n,), read off their texts."""
        rows = self._about_reviews(reviews)
        return self._stars(self._prompt("review", "rating"), rows)

    def pros_and_cons(self, items: NDArray[Any], *, unseen: bool = False) -> list[str]:
        """What speaks for and against each item, in the words of `simenv.datasets.reviews.opinion_text`, from up to
        three reviews of it. Of each fifth item (rows 4, 9, ...) the answer was never trained on.

        Args:
            items: (n,).
            unseen: ask with the prompt that was never trained on.
        """
        self._require_family("opinions")
        what = np.asarray(items, np.int64)
        rows = self._question(np.zeros(len(what), np.int64), what)
        return self._write(self._prompt("opinions", "opinion", unseen), rows)

    # -- prompts to ask with ------------------------------------------------------------------------------------

    def _about_reviews(self, reviews: NDArray[Any]) -> Rows:
        self._require_family("review")
        if self.reviews is None:
            raise RecommenderError(f"{self.name}: no reviews to summarise or rate; expected bind_reviews first")
        rows = np.asarray(reviews, np.int64)
        return self._question(self.reviews.users[rows], self.reviews.items[rows], rows)

    def _prompt(self, family: str, field: str, unseen: bool = False) -> Prompt:
        """The prompt that asks for a field: one that was never trained on, if `unseen` or `ask` is, else, of those that
        were and whose fields are all known, the one `wording` counts to; of those that describe users where some are
        described.
        """
        if unseen or self.ask == "unseen":
            return self.book.unseen(family, field)
        data = self._data(self.histories)
        fits = [prompt for prompt in data.usable(self.book.seen(family)) if field in prompt.fields]
        fits = [prompt for prompt in fits if "user_desc" in prompt.fields] or fits
        if not 0 <= self.wording < len(fits):
            raise ConfigError(
                f"{self.name}: wording={self.wording}: {len(fits)} trained {family} prompts with {{{field}}}, nothing "
                f"unknown; expected another wording, or more of them in {family}.txt"
            )
        return fits[self.wording]

    def _rendered(self, prompt: Prompt, rows: Rows) -> Tensor:
        sources = self._data(self.histories).source(prompt, rows, np.random.default_rng(0))
        return torch.as_tensor(sources, device=self.device)

    @torch.no_grad()
    def _first_words(self, prompt: Prompt, rows: Rows, words: LongArray, *, bare: bool = True) -> NDArray[np.float32]:
        """Probabilities of these first words of the answer among themselves, (n, len(words))."""
        data, out = self._data(self.histories), np.empty((len(rows.users), len(words)), np.float32)
        tokens = torch.as_tensor(words, device=self.device)
        for start in range(0, len(out), 256):
            some = slice(start, start + 256)
            asked = torch.as_tensor(data.source(prompt, rows.take(some), np.random.default_rng(0)), device=self.device)
            with self.network.bare() if bare else nullcontext():
                out[some] = self.network.token_scores(asked, tokens).exp().cpu().numpy()
        return out

    def _stars(self, prompt: Prompt, rows: Rows) -> NDArray[np.float32]:
        """Expected stars, (n,), as the answer to a prompt."""
        seen = np.unique(self.histories.ratings[~np.isnan(self.histories.ratings)])
        tokens = self._data(self.histories).numbers(seen.astype(np.float32))[:, 0]
        values, first = np.unique(tokens, return_index=True)
        return self._first_words(prompt, rows, values) @ seen[first].astype(np.float32)

    # -- saving -------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        super().save(folder)
        words = self.vocabulary.words.words if isinstance(self.vocabulary.words, OwnWords) else None
        (Path(folder) / "language.json").write_text(json.dumps({"words": words, "skipped": self.skipped}))

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        path = self._folder / "language.json"
        try:
            language = json.loads(path.read_text())
            words, self.skipped = language["words"], dict(language["skipped"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunDirectoryError(f"{path}: no readable words of {self.name} ({error})") from error
        self._words = None if words is None else OwnWords(words)
        if self._reviewer is not None:
            self.reviews = self._reviewer.write(self._log)
        super()._restore(state)
        self.network.prefixed = self.fair is not None

    # -- writing ------------------------------------------------------------------------------------------------

    def _require_family(self, family: str) -> None:
        self._require_fit()
        if family not in self.book.families or family in self.skipped:
            reason = self.skipped.get(family, "not among the families")
            raise RecommenderError(f"{self.name}: the {family} family was not trained ({reason})")

    def _question(self, users: LongArray, items: LongArray, reviews: LongArray | None = None) -> Rows:
        n = len(users)
        reviews = np.full(n, -1) if reviews is None else reviews
        ends = self.histories.ptr[users + 1]
        return Rows(users, ends, items, np.zeros(n, np.float32), np.ones(n, np.bool_), reviews)

    def _write(self, prompt: Prompt, rows: Rows) -> list[str]:
        """The words of the answer to one prompt about each row."""
        sources = self._data(self.histories).source(prompt, rows, np.random.default_rng(0))
        size = 4 * self.score_batch
        return [text for start in range(0, len(sources), size) for text in self._decoded(sources[start : start + size])]

    @torch.no_grad()
    def _decoded(self, sources: LongArray, max_tokens: int = 48) -> list[str]:
        """Greedy decoding of words, item codes and users left out."""
        with self.network.bare():
            states, mask = self.network.encode(torch.as_tensor(sources, device=self.device))
        written = torch.full((len(sources), 1), PAD, device=self.device)
        words = self.network.output(0, self.vocabulary.words.n_tokens)
        for _ in range(max_tokens):
            logits = self.network.decode(states, mask, written)[:, -1] @ words.T
            logits[:, PAD] = -torch.inf
            done = (written == END).any(dim=1)
            token = logits.argmax(dim=1).masked_fill(done, END)
            written = torch.cat([written, token[:, None]], dim=1)
            if bool((written == END).any(dim=1).all()):
                break
        texts = []
        for row in written[:, 1:].tolist():
            texts.append(self.vocabulary.words.decode(row[: row.index(END)] if END in row else row))
        return texts


def _fair_options(fair: FairOptions | Mapping[str, Any] | None) -> FairOptions | None:
    if fair is None or isinstance(fair, FairOptions):
        return fair
    try:
        return FairOptions(**fair)
    except TypeError as error:
        raise ConfigError(f"fair={dict(fair)}: {error}") from error


def _attribute(dataset: Dataset, name: str) -> NDArray[np.int64]:
    """The attribute as a number per user, (n_users,); -1 where it is empty."""
    values = _known(dataset, name, "fair")
    told = values != ""
    numbers = np.full(len(values), -1, np.int64)
    distinct, numbers[told] = np.unique(values[told], return_inverse=True)
    if len(distinct) < 2:
        raise ConfigError(f"fair: all users of {dataset.name} have the same {name}; expected two values or more")
    return numbers


def _known(dataset: Dataset, name: str, option: str) -> NDArray[np.str_]:
    """A user attribute in words, (n_users,)."""
    if name not in dataset.user_attributes:
        known = ", ".join(sorted(dataset.user_attributes)) or "none"
        raise ConfigError(f"{option}: {dataset.name} has no user attribute '{name}'; expected one of: {known}")
    return np.asarray(dataset.user_attributes[name]).astype(str)


def _descriptions(told: Mapping[str, NDArray[np.str_]]) -> tuple[str, ...]:
    """What is told of each user: names and values of the attributes that are known; nothing is () for all."""
    columns = [[f"{name} {value}" if value else "" for value in values.tolist()] for name, values in told.items()]
    return tuple(" , ".join(filter(None, row)) for row in zip(*columns, strict=True))


def _few(values: NDArray[np.str_]) -> str:
    distinct = sorted(set(values.tolist()))
    return ", ".join(distinct[:12]) + (", ..." if len(distinct) > 12 else "")
