"""Faithfulness of explanations: is what a text says about an item what truly moved this user's rating of it?

BLEU and ROUGE ask whether a text sounds like the user's; here it is read for the aspects it mentions and whether it
likes them (`simenv.datasets.wording.mentions`), and these are held against the terms of the rating that the synthetic
world kept (`simenv.datasets.reviews`). Baselines say how far one comes without knowing the pair: the same texts dealt
out to other pairs, the most frequent aspect, and what most users say about the item. The module does not know who wrote
the texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets import wording
from simenv.datasets.reviews import Aspects, Reviewer, Reviews, pros_and_cons
from simenv.errors import DataError

Mentions = Sequence[set[tuple[int, int]]]  # (term, sign) per text


def read(texts: Sequence[str]) -> list[set[tuple[int, int]]]:
    """The (term, sign) each text mentions."""
    return [set(wording.mentions(text)) for text in texts]


def read_opinions(texts: Sequence[str]) -> list[set[tuple[int, int]]]:
    """The (term, sign) each text of pros and cons lists (`simenv.datasets.reviews.opinion_text`)."""
    found = []
    for text in texts:
        pros, _, cons = text.lower().partition("cons")
        sides = ((pros, 1), (cons, -1))
        found.append({(term, sign) for side, sign in sides for term, _ in wording.mentions(side)})
    return found


def true_opinions(reviewer: Reviewer, n_users: int, items: NDArray[Any]) -> list[set[tuple[int, int]]]:
    """What all users of a synthetic world would say for and against each item, as (term, sign)."""
    everybody = np.arange(n_users)
    numbers = {name: term for term, name in enumerate(wording.terms())}
    found = []
    for item in np.asarray(items).tolist():
        mentioned = reviewer.aspects(everybody, np.full(n_users, item)).pairs()
        named = [{(wording.terms()[term], sign) for term, sign in row} for row in mentioned]
        opinion = pros_and_cons([item] * n_users, named).get(item, set())
        found.append({(numbers[name], sign) for name, sign in opinion})
    return found


def faithfulness(said: Mentions, truth: Aspects | Mentions) -> dict[str, float]:
    """How true the mentions are, each in [0, 1].

    Args:
        said: what each of n texts mentions, see `read`.
        truth: (n,) what moved the rating.

    Returns:
        `precision`: share of mentions that are true, sign included; `recall`: share of true aspects that are mentioned
        with their sign; `f1`: of both; `polarity`: of the mentions that name a true aspect, share with the right sign
        (NaN where there is none); `faithful`: share of texts that mention something and nothing untrue.
    """
    if len(said) != len(truth) or not len(truth):
        raise DataError(f"faithfulness: {len(said)} texts for {len(truth)} truths; expected as many, at least one")
    n_said = n_true = n_right = n_named = n_faithful = 0
    for mentioned, true in zip(said, truth.pairs() if isinstance(truth, Aspects) else truth, strict=True):
        right = mentioned & true
        named = {term for term, _ in true}
        n_said, n_true, n_right = n_said + len(mentioned), n_true + len(true), n_right + len(right)
        n_named += sum(term in named for term, _ in mentioned)
        n_faithful += bool(mentioned) and mentioned <= true
    precision, recall = n_right / n_said if n_said else 0.0, n_right / n_true
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if n_right else 0.0,
        "polarity": n_right / n_named if n_named else float("nan"),
        "faithful": n_faithful / len(truth),
    }


def baselines(
    said: Mentions, items: NDArray[Any], train: Reviews, rng: np.random.Generator
) -> dict[str, list[set[tuple[int, int]]]]:
    """What one could say without knowing the pair: name -> mentions of n texts.

    Args:
        said: mentions of the texts under test.
        items: (n,) what they are about.
        train: reviews with their truth that may be learned from.
        rng: deals out the shuffled texts.

    Returns:
        `shuffled`: `said`, each given to another pair; `most frequent`: the one aspect training reviews speak of most;
        `item`: the aspects that at least half of an item's training reviews speak of, else the most frequent one.
    """
    if train.aspects is None or not len(train):
        raise DataError("faithfulness: the training reviews hold no true aspects; expected those of a synthetic world")
    known = train.aspects.pairs()
    usual = {Counter(pair for row in known for pair in row).most_common(1)[0][0]}
    order = rng.permutation(len(said))
    dealt: list[set[tuple[int, int]]] = [set()] * len(said)
    for place, other in zip(order, np.roll(order, 1), strict=True):
        dealt[place] = said[other]
    return {"shuffled": dealt, "most frequent": [usual] * len(said), "item": _by_item(items, train, known, usual)}


def _by_item(
    items: NDArray[Any], train: Reviews, known: Mentions, usual: set[tuple[int, int]]
) -> list[set[tuple[int, int]]]:
    counts: dict[int, Counter[tuple[int, int]]] = {}
    sizes = Counter(train.items.tolist())
    for item, row in zip(train.items.tolist(), known, strict=True):
        counts.setdefault(item, Counter()).update(row)
    typical = {item: {pair for pair, n in count.items() if 2 * n >= sizes[item]} for item, count in counts.items()}
    return [typical.get(item) or usual for item in np.asarray(items).tolist()]
