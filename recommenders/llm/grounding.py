"""From words to items: which items of a catalogue a written title or query means.

It knows the catalogue's texts and no user; a library does the search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from simenv.datasets.base import Catalog
from simenv.errors import MissingExtraError
from simenv.numeric import DoubleArray

Grounding = Callable[[Sequence[str]], DoubleArray]  # texts -> (n_items,) in [0, 1], 1 = certainly meant


def by_title(catalog: Catalog) -> Grounding:
    """How alike the best of the texts and an item's title are as strings, in any order of words (RapidFuzz)."""
    try:
        from rapidfuzz import fuzz, process, utils
    except ImportError as error:
        raise MissingExtraError("grounding=title", "llm") from error

    titles = [utils.default_process(title) for title in catalog.titles]

    def ground(texts: Sequence[str]) -> DoubleArray:
        written = [utils.default_process(text) for text in texts]
        return np.asarray(process.cdist(written, titles, scorer=fuzz.token_sort_ratio), np.float64).max(axis=0) / 100

    return ground


def by_words(catalog: Catalog) -> Grounding:
    """BM25 of the texts over titles, genres and descriptions (Robertson and Zaragoza 2009; bm25s), best = 1."""
    try:
        import bm25s
    except ImportError as error:
        raise MissingExtraError("grounding=words", "llm") from error

    index = bm25s.BM25()
    index.index(bm25s.tokenize(documents(catalog), show_progress=False), show_progress=False)

    def ground(texts: Sequence[str]) -> DoubleArray:
        total = np.zeros(catalog.n_items)
        for text in texts:
            known = [
                word
                for word in bm25s.tokenize(text, show_progress=False, return_ids=False)[0]
                if word in index.vocab_dict
            ]
            if known:
                total += index.get_scores(known)
        return total / total.max() if total.max() > 0 else total

    return ground


def documents(catalog: Catalog) -> list[str]:
    """Title, genres and description of each item as one text."""
    texts = catalog.texts or ("",) * catalog.n_items
    genres = [" ".join(np.array(catalog.genre_names)[row]) for row in catalog.genres]
    return [" ".join(parts) for parts in zip(catalog.titles, genres, texts, strict=True)]


GROUNDINGS: dict[str, Callable[[Catalog], Grounding]] = {"title": by_title, "words": by_words}
