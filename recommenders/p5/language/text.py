"""Data to text: prompts filled in for a batch of interactions, as arrays of tokens.

A rendered row holds vocabulary tokens below `Vocabulary.size` and items as `size + item`, so that the network may
read an item as one pooled vector or as its code tokens. The module does not know networks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recommenders.p5.language.prompts import OTHER_REVIEWS, Piece, Prompt, PromptBook
from simenv.datasets import wording
from simenv.datasets.base import Catalog, LongArray
from simenv.datasets.reviews import Reviews, opinion_text, pros_and_cons
from simenv.errors import ConfigError
from simenv.training.histories import Histories

PAD, END, UNKNOWN = 0, 1, 2  # as in T5's own vocabularies
USER_BASE = 100  # user ids are written in this base
MAX_TEXT = 64  # tokens kept of a title, a text, a review
MAX_SAID = 3  # other reviews quoted in a prompt
OPINIONS_KEPT_BACK = 5  # of so many items the opinion of one is not learned: those are asked about
REVIEWED = {"explanation": "explanations", "review": "summaries"}  # family -> what of a review it answers with


class Words(Protocol):
    """Text to tokens and back."""

    @property
    def n_tokens(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Iterable[int]) -> str: ...


class OwnWords:
    """A small vocabulary: padding, end, unknown, and the given words."""

    def __init__(self, words: Iterable[str]) -> None:
        self.words = sorted(set(words))
        self._number = {word: row + 3 for row, word in enumerate(self.words)}

    @property
    def n_tokens(self) -> int:
        return len(self.words) + 3

    def encode(self, text: str) -> list[int]:
        return [self._number.get(word, UNKNOWN) for word in split_words(text)]

    def decode(self, tokens: Iterable[int]) -> str:
        return " ".join(self.words[token - 3] if token >= 3 else "?" for token in tokens)


class CheckpointWords:
    """The vocabulary of a pretrained tokenizer, by path."""

    def __init__(self, path: str) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"checkpoint={path}: no readable tokenizer ({str(error).splitlines()[0]})") from error
        if (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) != (PAD, END):
            raise ConfigError(f"checkpoint={path}: expected a T5 tokenizer with padding 0 and end 1")

    @property
    def n_tokens(self) -> int:
        return len(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def decode(self, tokens: Iterable[int]) -> str:
        return str(self.tokenizer.decode(list(tokens)))


def split_words(text: str) -> list[str]:
    """Lower-case words and single punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words first, then the digits of user ids or the users themselves, then the tokens of each code level."""

    words: Words
    level_sizes: tuple[int, ...]
    own_users: int | None = None  # how many users have a token of their own; None = ids are written in digits

    @property
    def user_offset(self) -> int:
        return self.words.n_tokens

    @property
    def code_offset(self) -> int:
        return self.user_offset + (USER_BASE if self.own_users is None else self.own_users)

    @property
    def code_offsets(self) -> tuple[int, ...]:
        return tuple(self.code_offset + int(n) for n in np.concatenate(([0], np.cumsum(self.level_sizes)[:-1])))

    @property
    def size(self) -> int:
        return self.code_offset + sum(self.level_sizes)


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch of interactions to write prompts about; every array is (B,)."""

    users: LongArray
    ends: LongArray  # where the history stops: rows of `Histories.items` from ptr[user] to here are read
    items: LongArray  # the item in question
    ratings: NDArray[np.float32]
    liked: NDArray[np.bool_]  # whether the user consumed the item, for yes and no
    reviews: LongArray  # row of the review, -1 = none
    candidates: LongArray | None = None  # (B, C) items to choose among, -1 = none; None = drawn, the item among them
    features: LongArray | None = None  # (B, W) tokens of the feature asked about, -1 = none; None = the review's

    def take(self, rows: NDArray[Any] | slice) -> Rows:
        """These rows (a mask, indices or a slice)."""
        parts: list[Any] = [getattr(self, part.name) for part in fields(self)]
        taken: list[Any] = [None if part is None else part[rows] for part in parts]
        return Rows(*taken)


@dataclass
class TextData:
    """Everything fields are filled from."""

    histories: Histories
    vocabulary: Vocabulary
    catalog: Catalog | None
    history_length: int
    reviews: Reviews | None = None
    n_candidates: int = 20
    people: Sequence[str] = ()  # what is told of each user; none = users are not described
    _cache: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def available_families(self, book: PromptBook) -> tuple[tuple[str, ...], dict[str, str]]:
        """Families that can be written from these data, and why the others cannot."""
        skipped: dict[str, str] = {}
        for family in book.families:
            if family in REVIEWED and not len(self.reviewed(REVIEWED[family])[0]):
                skipped[family] = "no reviews"
            elif family == "opinions" and not len(self.opinionated[0]):
                skipped[family] = "no item of several reviews"
            elif family == "rating" and np.isnan(self.histories.ratings).all():
                skipped[family] = "no ratings"
        return tuple(family for family in book.families if family not in skipped), skipped

    def reviewed(self, what: str = "explanations") -> tuple[LongArray, LongArray]:
        """Rows of the reviews that belong to an interaction of these histories, and where in `histories.items` it is.

        A review of anything else (what is held out, above all) is not to be learned from, nor one without stars where
        others have some, nor a copy, nor one without `what` is asked for; where a pair comes twice, the first one
        counts.
        """
        if self.reviews is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        histories = self.histories
        user = np.repeat(np.arange(histories.n_users), histories.lengths)
        keys, first = np.unique(user * histories.n_items + histories.items, return_index=True)
        wanted = self.reviews.users * histories.n_items + self.reviews.items
        place = np.searchsorted(keys, wanted).clip(max=max(len(keys) - 1, 0))
        rows = np.flatnonzero(keys[place] == wanted) if len(keys) else np.zeros(0, np.int64)
        said = np.fromiter(map(bool, getattr(self.reviews, what)), np.bool_, len(self.reviews))
        rows = rows[said[rows] if self.reviews.is_copy is None else said[rows] & ~self.reviews.is_copy[rows]]
        rated = ~np.isnan(histories.ratings[first[place[rows]]])
        rows = rows[rated | ~np.any(~np.isnan(histories.ratings))]
        return rows, first[place[rows]]

    def usable(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts whose fields are known: titles, genres, texts, stars and other reviews, where there are some."""
        unknown = set() if self.catalog is not None else {"title", "genres"}
        if self.catalog is None or not self.catalog.texts:
            unknown.add("text")
        if np.isnan(self.histories.ratings).all():
            unknown.add("rating")
        if self.reviews is None:
            unknown |= OTHER_REVIEWS
        if not self.people:
            unknown.add("user_desc")
        return [prompt for prompt in prompts if not prompt.fields & unknown]

    def render(self, prompt: Prompt, rows: Rows, rng: np.random.Generator) -> tuple[LongArray, LongArray]:
        """Inputs (B, S) and targets (B, D) of one prompt, -1 after the end; text targets close with `END`."""
        source = self.source(prompt, rows, rng)
        target = _compact(self._blocks(prompt.target, rows, rng))
        if prompt.target[-1].text != "item" or not prompt.target[-1].is_field:
            target = _compact([target, np.full((len(target), 1), END)])
        return source, target

    def source(self, prompt: Prompt, rows: Rows, rng: np.random.Generator, *, crop: bool = True) -> LongArray:
        """Inputs alone, (B, S); without `crop` the width is the prompt's own, whoever is in the batch."""
        return _compact(self._blocks(prompt.source, rows, rng), crop)

    def _blocks(self, pieces: tuple[Piece, ...], rows: Rows, rng: np.random.Generator) -> list[LongArray]:
        n = len(rows.users)
        blocks = []
        for piece in pieces:
            if piece.is_field:
                blocks.append(self._fields()[piece.text](rows, rng))
            else:
                tokens = self.vocabulary.words.encode(piece.text)
                blocks.append(np.tile(np.asarray(tokens, np.int64), (n, 1)))
        return blocks

    def _fields(self) -> dict[str, Callable[[Rows, np.random.Generator], LongArray]]:
        return {
            "user": lambda rows, rng: self._user(rows.users),
            "user_desc": lambda rows, rng: self._descriptions[rows.users],
            "history": lambda rows, rng: self.history(rows),
            "item": lambda rows, rng: (rows.items + self.vocabulary.size)[:, None],
            "title": lambda rows, rng: self._texts("title")[rows.items],
            "genres": lambda rows, rng: self._texts("genres")[rows.items],
            "text": lambda rows, rng: self._texts("text")[rows.items],
            "rating": lambda rows, rng: self.numbers(rows.ratings),
            "candidates": self._candidates,
            "answer": lambda rows, rng: self.answers(rows.liked),
            "review": lambda rows, rng: self._texts("review")[rows.reviews],
            "summary": lambda rows, rng: self._texts("summary")[rows.reviews],
            "feature": lambda rows, rng: (
                self._texts("feature")[rows.reviews] if rows.features is None else rows.features
            ),
            "opinion": lambda rows, rng: self._opinions[rows.items],
            "explanation": lambda rows, rng: self._texts("explanation")[rows.reviews],
            "said_of_item": lambda rows, rng: self._said(self._by_item, rows.items, rows, rng),
            "said_by_user": lambda rows, rng: self._said(self._by_user, rows.users, rows, rng),
        }

    @cached_property
    def _by_item(self) -> tuple[LongArray, LongArray]:
        return self._grouped("items", self.histories.n_items)

    @cached_property
    def _by_user(self) -> tuple[LongArray, LongArray]:
        return self._grouped("users", self.histories.n_users)

    def _grouped(self, by: str, n: int) -> tuple[LongArray, LongArray]:
        """The reviews of these histories in random order by item or by user: group g is rows[ptr[g] : ptr[g + 1]]."""
        rows = np.random.default_rng(0).permutation(self.reviewed()[0])
        keys = getattr(self.reviews, by)[rows]
        return np.searchsorted(np.sort(keys), np.arange(n + 1)), rows[np.argsort(keys, kind="stable")]

    def _said(
        self, grouped: tuple[LongArray, LongArray], groups: LongArray, rows: Rows, rng: np.random.Generator
    ) -> LongArray:
        """Some explanations of each row's group one after the other, without that of the row's own interaction."""
        ptr, reviews = grouped
        if not len(reviews):
            return np.full((len(groups), 1), -1, np.int64)
        size, step = np.diff(ptr)[groups][:, None], np.arange(MAX_SAID)
        start = rng.integers(0, np.maximum(size, 1))
        place = ptr[groups][:, None] + (start + step) % np.maximum(size, 1)
        found = reviews[place.clip(max=len(reviews) - 1)]
        assert self.reviews is not None
        own = (self.reviews.users[found] == rows.users[:, None]) & (self.reviews.items[found] == rows.items[:, None])
        tokens = self._texts("explanation")[found]
        tokens[own | (step >= size)] = -1
        return tokens.reshape(len(groups), -1)

    def _user(self, users: LongArray) -> LongArray:
        if self.vocabulary.own_users is not None:
            return users[:, None] + self.vocabulary.user_offset
        digits = np.stack([users // USER_BASE**2, users // USER_BASE % USER_BASE, users % USER_BASE], axis=1)
        return digits % USER_BASE + self.vocabulary.user_offset

    @cached_property
    def _descriptions(self) -> LongArray:
        encoded = {text: self.vocabulary.words.encode(text) for text in set(self.people)}
        return _table([encoded[text] for text in self.people], MAX_TEXT)

    def history(self, rows: Rows) -> LongArray:
        """Tokens of the items each row's user had before `ends`, oldest first, (n, history_length); -1 = none."""
        starts = np.maximum(self.histories.ptr[rows.users], rows.ends - self.history_length)
        items = self.histories.gather(starts, rows.ends, self.history_length)
        return np.where(items >= 0, items + self.vocabulary.size, -1)

    @cached_property
    def opinions(self) -> dict[int, set[tuple[str, int]]]:
        """What the reviews of these histories say for and against each item with some, see `pros_and_cons`."""
        rows, places = self.reviewed()
        if self.reviews is None or not len(rows):
            return {}
        said: list[set[tuple[str, int]]]
        if self.reviews.aspects is not None:
            names = wording.terms()
            said = [{(names[term], sign) for term, sign in row} for row in self.reviews.aspects.take(rows).pairs()]
        else:
            stars = np.nan_to_num(self.histories.ratings[places], nan=3.0)
            signs = np.sign(np.rint(stars) - 3).astype(np.int64).tolist()
            said = [{(self.reviews.features[row], sign)} for row, sign in zip(rows.tolist(), signs, strict=True)]
        return pros_and_cons(self.reviews.items[rows].tolist(), said)

    @cached_property
    def opinionated(self) -> tuple[LongArray, LongArray]:
        """`reviewed`, of items whose opinion is learned."""
        rows, places = self.reviewed()
        items = self.histories.items[places]
        kept = np.isin(items, list(self.opinions)) & (items % OPINIONS_KEPT_BACK != OPINIONS_KEPT_BACK - 1)
        return rows[kept], places[kept]

    @cached_property
    def _opinions(self) -> LongArray:
        return self.words([opinion_text(self.opinions.get(item, set())) for item in range(self.histories.n_items)])

    def _candidates(self, rows: Rows, rng: np.random.Generator) -> LongArray:
        if rows.candidates is not None:
            return np.where(rows.candidates >= 0, rows.candidates + self.vocabulary.size, -1)
        drawn = rng.integers(0, self.histories.n_items, (len(rows.users), self.n_candidates))
        drawn[np.arange(len(drawn)), rng.integers(0, self.n_candidates, len(drawn))] = rows.items
        return drawn + self.vocabulary.size

    def numbers(self, ratings: NDArray[np.float32]) -> LongArray:
        """Tokens of ratings in words, to the half star, (n, up to 4); -1 = none."""
        table = self._cache.get("rating")
        if table is None:
            table = _table([self.vocabulary.words.encode(f"{half / 2:g}") for half in range(21)], 4)
            self._cache["rating"] = table
        return table[np.rint(np.nan_to_num(ratings) * 2).astype(np.int64).clip(0, 20)]

    def words(self, texts: Sequence[str]) -> LongArray:
        """Tokens of texts, (n, up to `MAX_TEXT`); -1 after the end."""
        return _table([self.vocabulary.words.encode(text) for text in texts], MAX_TEXT)

    def answers(self, liked: NDArray[np.bool_]) -> LongArray:
        table = _table([self.vocabulary.words.encode("no"), self.vocabulary.words.encode("yes")], 4)
        return table[liked.astype(np.int64)]

    def _texts(self, name: str) -> LongArray:
        if name not in self._cache:
            encode = self.vocabulary.words.encode
            self._cache[name] = _table([encode(text) for text in texts_of(name, self.catalog, self.reviews)], MAX_TEXT)
        return self._cache[name]


def texts_of(name: str, catalog: Catalog | None, reviews: Reviews | None) -> Sequence[str]:
    """All values of a text field, per item or per review."""
    if name == "title" and catalog is not None:
        return catalog.titles
    if name == "text" and catalog is not None and catalog.texts:
        return catalog.texts
    if name == "genres" and catalog is not None:
        return [" ".join(np.asarray(catalog.genre_names)[row]) for row in catalog.genres]
    if reviews is not None and name in ("review", "summary", "feature", "explanation"):
        tables = {
            "review": reviews.texts,
            "summary": reviews.summaries,
            "feature": reviews.features,
            "explanation": reviews.explanations,
        }
        return tables[name]
    raise ConfigError(f"prompts: the field {{{name}}} needs data that are not there; expected titles or reviews")


def own_words(
    book: PromptBook, catalog: Catalog | None, reviews: Reviews | None, people: Iterable[str] = ()
) -> OwnWords:
    """The vocabulary of the prompts, the catalogue, the reviews and what is told of users, with numbers and answers."""
    words = {*book.words(), "yes", "no", ".", *(str(n) for n in range(11))}
    for text in set(people):
        words.update(split_words(text))
    names = ["title", "genres"] if catalog is not None else []
    if reviews is not None:
        names += ["review", "summary", "feature", "explanation"]
    if "opinions" in book.families:
        for text in ("pros : none . cons : none .", *(wording.terms() if reviews and reviews.aspects else ())):
            words.update(split_words(text))
    if catalog is not None and catalog.texts and any("text" in prompt.fields for prompt in book.prompts):
        names.append("text")
    for name in names:
        for text in texts_of(name, catalog, reviews):
            words.update(split_words(text))
    return OwnWords(words)


def _table(rows: Sequence[Sequence[int]], width: int) -> LongArray:
    """Token lists as (n, <= width), -1 after the end; longer ones are cut."""
    width = max(1, min(width, max((len(row) for row in rows), default=1)))
    table = np.full((len(rows), width), -1, np.int64)
    for row, tokens in enumerate(rows):
        table[row, : min(len(tokens), width)] = tokens[:width]
    return table


def _compact(blocks: list[Any], crop: bool = True) -> LongArray:
    """Blocks (B, w) side by side, with the gaps (-1) moved to the end and, to `crop`, columns of gaps cut off."""
    joined = np.concatenate(blocks, axis=1)
    order = np.argsort(joined < 0, axis=1, kind="stable")
    joined = np.take_along_axis(joined, order, axis=1)
    if not crop:
        return joined
    return joined[:, : max(1, int((joined >= 0).sum(axis=1).max(initial=1)))]
