"""What users write about items: reviews, and in worlds with known tastes reviews made from what truly moved a rating.

The rating head of a synthetic world is a sum: quality of the item, taste for each of its genres, taste for each aspect
of its style, the user's own level. The largest terms of that sum are what a review of this world speaks of, with the
sign they have; they are kept beside the words, so that what a model says can be held against the truth
(`recommenders.evaluation.explanations`). The user's level and the noise of a rating move the stars but say nothing
about the item: they show in the verdict alone. Popularity, conformity and satiation are not in the warm start's
ratings and so in no review. Of real reviews (`written`) no truth is known: what they are about is read off their words.
The module does not know who reads the reviews.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets import wording
from simenv.datasets.base import BoolArray, Dataset, Head, Interactions, LongArray
from simenv.datasets.splits import contains, distinct, pair_keys
from simenv.errors import DataError
from simenv.randomness import Purpose, hash64

MAX_ASPECTS = 3
MATERIAL = 0.1  # stars: terms smaller than this are not worth a word, unless no other is larger
_CHUNK = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Aspects:
    """What moved each of n ratings: numbers of `wording.terms`, the largest first, and the direction."""

    terms: LongArray  # (n, MAX_ASPECTS), -1 = none
    signs: LongArray  # (n, MAX_ASPECTS), 1 = for the item, -1 = against it, 0 = none

    def __len__(self) -> int:
        return len(self.terms)

    def take(self, rows: NDArray[Any]) -> Aspects:
        return Aspects(terms=self.terms[rows], signs=self.signs[rows])

    def pairs(self) -> list[set[tuple[int, int]]]:
        """(term, sign) of every row."""
        return [
            {(term, sign) for term, sign in zip(*row, strict=True) if term >= 0}
            for row in zip(self.terms.tolist(), self.signs.tolist(), strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviews:
    """What users wrote: a text, its summary, the feature it is about, and why the user likes the item or not."""

    users: LongArray  # (n,)
    items: LongArray  # (n,)
    texts: tuple[str, ...]
    summaries: tuple[str, ...]
    features: tuple[str, ...]
    explanations: tuple[str, ...]
    aspects: Aspects | None = None  # the truth, where there is one
    is_copy: BoolArray | None = None  # (n,), a text that its user wrote before, about another item; None = no text is

    def __post_init__(self) -> None:
        for name in ("items", "texts", "summaries", "features", "explanations"):
            if len(getattr(self, name)) != len(self.users):
                raise DataError(f"reviews: {len(getattr(self, name))} {name} for {len(self.users)} users")
        if self.aspects is not None and len(self.aspects) != len(self.users):
            raise DataError(f"reviews: aspects of {len(self.aspects)} reviews for {len(self.users)} users")
        if self.is_copy is not None and len(self.is_copy) != len(self.users):
            raise DataError(f"reviews: is_copy of {len(self.is_copy)} reviews for {len(self.users)} users")

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: NDArray[Any]) -> Reviews:
        """These rows, indices or a mask."""
        rows = np.flatnonzero(rows) if np.asarray(rows).dtype == np.bool_ else np.asarray(rows, np.int64)
        words = ("texts", "summaries", "features", "explanations")
        return Reviews(
            users=self.users[rows],
            items=self.items[rows],
            **{name: tuple(getattr(self, name)[row] for row in rows.tolist()) for name in words},
            aspects=None if self.aspects is None else self.aspects.take(rows),
            is_copy=None if self.is_copy is None else self.is_copy[rows],
        )

    def about(self, log: Interactions) -> Reviews:
        """Those of pairs that are in the log."""
        keys = distinct(pair_keys(log.users, log.items, log.n_items))
        return self.take(contains(keys, pair_keys(self.users, self.items, log.n_items)))

    def renumbered(self, *, users: NDArray[Any] | None = None, items: NDArray[Any] | None = None) -> Reviews:
        """Under other numbers, (n_users,) or (n_items,), -1 = gone, with what was written by or of these."""
        own = self.users if users is None else users[self.users].astype(np.int64)
        about = self.items if items is None else items[self.items].astype(np.int64)
        kept = (own >= 0) & (about >= 0)
        return replace(self.take(kept), users=own[kept], items=about[kept])

    def groups(self, log: Interactions) -> LongArray:
        """A number for each interaction of the log, (n,), the same where its user wrote the same text."""
        texts: dict[tuple[int, int], Any] = {}
        for user, item, text in zip(self.users.tolist(), self.items.tolist(), self.texts, strict=True):
            texts[user, item] = user, text.lower()
        numbers: dict[Any, int] = {}
        pairs = zip(log.users.tolist(), log.items.tolist(), strict=True)
        return np.array([numbers.setdefault(texts.get(pair, pair), len(numbers)) for pair in pairs])

    def told(self) -> list[str]:
        """What there is, in a line or two."""
        first = np.ones(len(self), np.bool_) if self.is_copy is None else ~self.is_copy
        words = [len(text.split()) for text, kept in zip(self.texts, first, strict=True) if kept]
        about = sum(bool(text) for text, kept in zip(self.explanations, first, strict=True) if kept)
        pasted = "" if first.all() else f" ({(~first).sum():,} more are copies of one that the user wrote before)"
        lines = [f"reviews: {first.sum():,} texts of {len(np.unique(self.users)):,} users{pasted}"]
        if words:
            common = Counter(feature for feature, kept in zip(self.features, first, strict=True) if kept and feature)
            names = ", ".join(f"{name} {n:,}" for name, n in common.most_common(5)) or "none"
            lines.append(f"words a text: median {np.median(words):g}, most {max(words):,}")
            lines.append(f"features: {len(common):,}, of {about:,} texts, most often {names}")
        return lines

    def concat(self, other: Reviews) -> Reviews:
        """These reviews followed by the others; the truth is kept where both have it."""
        both, copies = None, None
        if self.is_copy is not None or other.is_copy is not None:
            copies = np.concatenate(
                [np.zeros(len(r), np.bool_) if r.is_copy is None else r.is_copy for r in (self, other)]
            )
        if self.aspects is not None and other.aspects is not None:
            both = Aspects(
                terms=np.concatenate([self.aspects.terms, other.aspects.terms]),
                signs=np.concatenate([self.aspects.signs, other.aspects.signs]),
            )
        return Reviews(
            users=np.concatenate([self.users, other.users]),
            items=np.concatenate([self.items, other.items]),
            texts=self.texts + other.texts,
            summaries=self.summaries + other.summaries,
            features=self.features + other.features,
            explanations=self.explanations + other.explanations,
            aspects=both,
            is_copy=copies,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewer:
    """Writes the reviews of a world with known tastes; the same user writes the same about the same item."""

    genres: BoolArray  # (n_items, n_genres)
    rating: Head
    seed: int = 0  # of the choice among wordings

    def contributions(self, users: NDArray[Any], items: NDArray[Any]) -> NDArray[np.float32]:
        """Stars that craft, each genre and each aspect of style add for aligned pairs, (n, 1 + genres + aspects)."""
        head = self.rating
        taste = head.user_vectors[users] * head.item_vectors[items]
        craft = head.item_bias[items] - head.item_bias.mean()
        return np.column_stack([craft, taste]).astype(np.float32)

    def aspects(self, users: NDArray[Any], items: NDArray[Any]) -> Aspects:
        """The terms that moved the ratings of aligned pairs most: at least one, others if they are material."""
        n, n_genres = len(users), self.genres.shape[1]
        terms, signs = np.empty((n, MAX_ASPECTS), np.int64), np.empty((n, MAX_ASPECTS), np.int64)
        for start in range(0, n, _CHUNK):
            rows = slice(start, start + _CHUNK)
            stars = self.contributions(users[rows], items[rows])
            largest = np.argsort(-np.abs(stars), axis=1, kind="stable")[:, :MAX_ASPECTS]
            size = np.take_along_axis(stars, largest, axis=1)
            kept = np.abs(size) >= MATERIAL
            kept[:, 0] = True
            style = largest - 1 - n_genres  # each aspect of style has two terms: its low and its high word
            high = self.rating.item_vectors[items[rows, None], np.maximum(largest - 1, 0)] > 0
            number = np.where(style < 0, largest, 1 + n_genres + 2 * style + high)
            terms[rows] = np.where(kept, number, -1)
            signs[rows] = np.where(kept, np.where(size < 0, -1, 1), 0)
        return Aspects(terms=terms, signs=signs)

    def write(self, log: Interactions) -> Reviews:
        """One review per rating of the log, in its order; interactions without a rating have none."""
        rated = np.flatnonzero(~np.isnan(log.ratings))
        users, items = log.users[rated].astype(np.int64), log.items[rated].astype(np.int64)
        stars = np.clip(np.rint(log.ratings[rated]), 1, 5).astype(np.int64).tolist()
        aspects = self.aspects(users, items)
        slots = np.arange(MAX_ASPECTS + 1)
        hashes = hash64(self.seed, int(Purpose.REVIEW), users[:, None], 0, slots, items[:, None])
        draws = (hashes >> np.uint64(40)).tolist()
        texts, summaries, features, explanations = [], [], [], []
        for star, terms, signs, draw in zip(stars, aspects.terms.tolist(), aspects.signs.tolist(), draws, strict=True):
            verdicts = wording.VERDICTS[star]
            verdict = verdicts[draw[-1] % len(verdicts)]
            clauses = [
                (wording.clause(term, sign, variant), sign)
                for term, sign, variant in zip(terms, signs, draw, strict=False)
                if term >= 0
            ]
            why = _joined(clauses)
            texts.append(f"{verdict} . {why} .")
            summaries.append(f"{verdict} , {clauses[0][0]}")
            features.append(wording.feature(terms[0]))
            explanations.append(f"because {why} .")
        return Reviews(
            users=users,
            items=items,
            texts=tuple(texts),
            summaries=tuple(summaries),
            features=tuple(features),
            explanations=tuple(explanations),
            aspects=aspects,
        )


def _joined(clauses: list[tuple[str, int]]) -> str:
    text, before = clauses[0]
    for words, sign in clauses[1:]:
        text += f" , {'and' if sign == before else 'but'} {words}"
        before = sign
    return text


def reviewer_of(dataset: Dataset, *, seed: int = 0) -> Reviewer | None:
    """Who writes the reviews of this data set; None where what moves its ratings is not known in words.

    Args:
        dataset: a synthetic world, or users of one.
        seed: of the choice among wordings.
    """
    tastes, catalog = dataset.tastes, dataset.catalog
    if tastes is None or tastes.kind != "true" or catalog.genre_names != tuple(wording.GENRES):
        return None
    if tastes.rating.item_vectors.shape[1] != len(wording.GENRES) + len(wording.ASPECTS):
        return None
    return Reviewer(genres=catalog.genres, rating=tastes.rating, seed=seed)


def pros_and_cons(
    items: Sequence[int], said: Sequence[set[tuple[str, int]]], *, most: int = MAX_ASPECTS
) -> dict[int, set[tuple[str, int]]]:
    """What speaks for and against each item that at least two speak of: item -> (term, 1 or -1).

    Args:
        items: (n,) what each of n reviews is about.
        said: the terms each mentions, with 1 where it likes them, -1 where not.
        most: terms kept of each side, those with the largest balance of likes and dislikes.
    """
    balance: dict[int, Counter[str]] = {}
    for item, mentioned in zip(items, said, strict=True):
        for term, sign in mentioned:
            balance.setdefault(item, Counter())[term] += sign
    several = {item for item, n in Counter(items).items() if n > 1}
    found = {}
    for item, counts in balance.items():
        ordered = sorted(counts.items(), key=lambda pair: (-abs(pair[1]), pair[0]))
        sides = [[(term, sign) for term, n in ordered if n * sign > 0][:most] for sign in (1, -1)]
        if item in several and any(sides):
            found[item] = {pair for side in sides for pair in side}
    return found


def opinion_text(opinion: set[tuple[str, int]]) -> str:
    """An item's opinion as it is written and learned: ``pros : ... . cons : ... .``"""
    sides = (" , ".join(sorted(term for term, sign in opinion if sign == which)) or "none" for which in (1, -1))
    return "pros : {} . cons : {} .".format(*sides)


# -- real reviews -------------------------------------------------------------------------------------------------

FEWEST_USERS = 3  # who speak of a feature
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"[a-z]{3,}")
# Words that say nothing about what an item has: of grammar, of the shop, of opinion alone.
_EMPTY = frozenset(
    re.findall(
        r"\w+",
        """
about above actually after again all almost already also although always and another any are around ask away
back because been before being best better big bit both bought but buy came can cannot come could day days did
didn does doesn doing don done down each either else enough even ever every everyone everything exactly
excellent expected far few find first for found four from gave get getting give glad goes going good got gotten
great had happy has hasn have haven having her here him his how however instead into isn its item items just
keep know last least less let like liked likes little long look looking looks lot lots love loved loves made
make makes many may maybe might more most much must need needed needs never new nice not nothing now off often
old once one ones only order ordered other our out over own perfect perfectly person pretty probably product
products purchase purchased put quite rather real really received recommend recommended right said same say says
second see seem seems seen several she should simply since some someone something soon still such super sure
take than thank thanks that the their them then there these they thing things think this those though thought
three through time times too took tried try trying two under until upon use used using usually very want wanted
was way ways week weeks well went were what when where which while who whole why will wish with without won work
worked works worth would wouldn year years yes yet you your five stars star wear wearing wore worn amazing
awesome bad beautiful beautifully comfortable cute definitely disappointed absolutely especially extremely fine
""",
    )
)


def written(
    users: NDArray[Any],
    items: NDArray[Any],
    texts: Sequence[str],
    summaries: Sequence[str],
    features: Sequence[str] | None = None,
    explanations: Sequence[str] | None = None,
) -> Reviews:
    """Reviews that people wrote, in the order given; rows without a text are left out.

    A text that a user wrote before is marked as a copy, since many paste one text under several variants of an item; so
    is a second text about one item. Where
    others have not said what each review is about, a feature is a word that several users speak of and that is not
    empty (grammar, opinion), the most widespread in the first sentence with one, and that sentence is the explanation.
    This is cruder than the extraction by Sentires behind the published explanation tables.

    Args:
        users, items: (n,) rows.
        texts, summaries: of each.
        features, explanations: of each, where known; "" = none.
    """
    clean = [" ".join(text.split()) for text in texts]
    kept = [row for row, text in enumerate(clean) if text]
    seen: set[tuple[int, str | int]] = set()
    is_copy = np.zeros(len(kept), np.bool_)
    for place, row in enumerate(kept):
        keys: set[tuple[int, str | int]] = {(int(users[row]), clean[row].lower()), (int(users[row]), int(items[row]))}
        is_copy[place] = bool(keys & seen)
        seen |= keys
    found = _features([clean[row] for row in kept], is_copy, np.asarray(users)[kept])
    given = [(features[row], explanations[row]) if features and explanations else ("", "") for row in kept]
    about = [told if all(told) else read for told, read in zip(given, found, strict=True)]
    return Reviews(
        users=np.asarray(users, np.int64)[kept],
        items=np.asarray(items, np.int64)[kept],
        texts=tuple(clean[row] for row in kept),
        summaries=tuple(" ".join(summaries[row].split()) for row in kept),
        features=tuple(feature for feature, _ in about),
        explanations=tuple(explanation for _, explanation in about),
        is_copy=is_copy,
    )


def _features(texts: Sequence[str], is_copy: BoolArray, users: NDArray[Any]) -> list[tuple[str, str]]:
    """A feature and the sentence that speaks of it, for each text; ("", "") where it speaks of none."""
    speakers: dict[str, set[int]] = {}
    for text, copied, user in zip(texts, is_copy.tolist(), users.tolist(), strict=True):
        for word in () if copied else set(_WORD.findall(text.lower())) - _EMPTY:
            speakers.setdefault(word, set()).add(user)
    spread = Counter({word: len(who) for word, who in speakers.items() if len(who) >= FEWEST_USERS})
    found = []
    for text in texts:
        for sentence in _SENTENCE.split(text):
            words = sorted(set(_WORD.findall(sentence.lower())) & spread.keys(), key=lambda word: (-spread[word], word))
            if words:
                found.append((words[0], sentence.strip()))
                break
        else:
            found.append(("", ""))
    return found
