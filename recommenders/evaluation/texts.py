"""Texts that recommenders write about held-out interactions - explanations, summaries - against what users wrote.

BLEU and ROUGE say whether a text sounds like the user's; whether it is true is asked in
`recommenders.evaluation.explanations`. The module does not know who writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from recommenders.evaluation.offline import text_scorers
from simenv.datasets.reviews import Reviews
from simenv.errors import DataError, RecommenderError

TEXT_TARGETS = ("explanation", "feature_explanation", "summary")
CORPUS = ("bleu2", "bleu4")  # of all texts together, and so without an interval over users


@runtime_checkable
class Explains(Protocol):
    """A recommender that says in words why a user would like an item."""

    def explain(self, users: NDArray[Any], items: NDArray[Any], *, features: Sequence[str] | None = None) -> list[str]:
        """A text for each of n aligned pairs; `features`: (n,) what each should speak of."""


@runtime_checkable
class Summarises(Protocol):
    """A recommender that shortens reviews it is given."""

    def bind_reviews(self, reviews: Reviews) -> None:
        """Read these from now on."""

    def summarise(self, reviews: NDArray[Any]) -> list[str]:
        """The reviews of these rows in a few words."""


def measured_texts(recommender: Any, reviews: Reviews, target: str) -> dict[str, NDArray[np.float64]]:
    """BLEU-2, BLEU-4 and ROUGE of a fitted recommender's texts, 0 to 100: of each text, BLEU once for all.

    Args:
        recommender: what writes.
        reviews: what was held out; copies of a text, and reviews without what is asked for, are left out.
        target: ``explanation``, ``feature_explanation`` (the feature is told) or ``summary``.

    Raises:
        RecommenderError: it does not write such texts. DataError: there is nothing to compare with.
    """
    wanted = reviews.summaries if target == "summary" else reviews.explanations
    kept = np.fromiter(map(bool, wanted), np.bool_, len(wanted))
    if reviews.is_copy is not None:
        kept &= ~reviews.is_copy
    asked = reviews.take(kept)
    if not len(asked):
        raise DataError(f"{target}: no held-out review has one; expected some")
    if target == "summary":
        if not isinstance(recommender, Summarises):
            raise RecommenderError(f"{recommender.name}: summarises nothing; expected one that does, such as p5")
        recommender.bind_reviews(asked)
        return text_scorers(recommender.summarise(np.arange(len(asked))), asked.summaries)
    if not isinstance(recommender, Explains):
        raise RecommenderError(f"{recommender.name}: explains nothing; expected one that does, such as p5")
    features = asked.features if target == "feature_explanation" else None
    return text_scorers(recommender.explain(asked.users, asked.items, features=features), asked.explanations)
