"""Indexers that number, split or look words up: by chance, order, popularity, time, title, category, or a file.

The module does not know co-occurrence, nor anything that is trained.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from recommenders.p5.indexes.base import IndexSource, Paths, digits, with_collision_token
from simenv.datasets.base import Catalog, FloatArray, LongArray
from simenv.errors import ConfigError
from simenv.language_models.item_vectors import item_vectors
from simenv.numeric import places

VECTOR_SIZE = 64


def random_codes(source: IndexSource, rng: np.random.Generator, *, branching: int = 32) -> Paths:
    """RID: the digits, in base `branching`, of a random number per item."""
    return digits(rng.permutation(source.n_items), source.n_items, branching)


def sequential_codes(source: IndexSource, rng: np.random.Generator, *, branching: int = 32) -> Paths:
    """SID: items numbered as they first appear, user by user, in the training prefixes; users in random order.

    Neighbours in a history share leading digits. P5's own numbering walks whole histories, so that a target's number
    is the largest seen plus one; here targets are not in the source.
    """
    histories = source.histories
    users = rng.permutation(histories.n_users)
    lengths = histories.lengths[users]
    within = places(lengths)
    met = histories.items[np.repeat(histories.ptr[users], lengths) + within]
    seen, first = np.unique(met, return_index=True)
    return _numbered(
        np.concatenate([seen[np.argsort(first)], np.setdiff1d(np.arange(source.n_items), seen)]), branching
    )


def popularity_codes(source: IndexSource, rng: np.random.Generator, *, branching: int = 32) -> Paths:
    """Items numbered by training interactions, most first, ties at random: items of like popularity share digits."""
    return _numbered(np.lexsort((rng.random(source.n_items), -source.item_counts())), branching)


def time_codes(source: IndexSource, rng: np.random.Generator, *, branching: int = 32) -> Paths:
    """Items numbered by the time of their first training interaction, ties and unseen items at random.

    Where times are places in a history, as of `amazon`, items are numbered by how early anybody takes them.
    """
    histories = source.histories
    if histories.times is None:
        raise ConfigError("index=time: the histories have no times; expected those of a log")
    first = np.full(source.n_items, np.iinfo(np.int64).max)
    np.minimum.at(first, histories.items, histories.times.astype(np.int64))
    return _numbered(np.lexsort((rng.random(source.n_items), first)), branching)


def _numbered(order: LongArray, branching: int) -> Paths:
    """The digits of each item's place in `order`."""
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.arange(len(order))
    return digits(numbers, len(order), branching)


def file_codes(source: IndexSource, rng: np.random.Generator, *, path: str = "") -> Paths:
    """Codes from a JSON file, item id -> list of tokens, numbers or words; then a token that tells namesakes apart.

    What others publish as semantic ids, and what `ItemIndex.export` writes. Shorter codes end in token 0.
    """
    catalog = _catalog(source, "file")
    try:
        stored = json.loads(Path(path).read_text())
        codes = [[str(token) for token in stored[item]] for item in catalog.item_ids]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"index=file, path={path}: no readable codes ({error})") from error
    except KeyError as error:
        raise ConfigError(f"index=file, path={path}: no code of item {error}; expected one for every item") from error
    paths = np.zeros((len(codes), max(1, max(map(len, codes)))), np.int64)
    for level in range(paths.shape[1]):
        rows = [row for row, code in enumerate(codes) if level < len(code)]
        tokens = sorted({codes[row][level] for row in rows}, key=lambda token: (len(token), token))
        number = {token: place for place, token in enumerate(tokens, start=int(len(rows) < len(codes)))}
        paths[rows, level] = [number[codes[row][level]] for row in rows]
    return with_collision_token(paths)


def independent_codes(source: IndexSource, rng: np.random.Generator) -> Paths:
    """IID: one token of its own per item."""
    return np.arange(source.n_items, dtype=np.int64)[:, None]


def title_codes(source: IndexSource, rng: np.random.Generator, *, max_words: int = 6) -> Paths:
    """TID: the first `max_words` words of the title, token 0 after its end, then a token that tells namesakes apart."""
    words = [re.findall(r"\w+", title.lower())[:max_words] for title in _catalog(source, "title").titles]
    numbers: dict[str, int] = {}
    paths = np.zeros((source.n_items, max(1, max(map(len, words)))), np.int64)
    for row, title in enumerate(words):
        for column, word in enumerate(title):
            paths[row, column] = numbers.setdefault(word, len(numbers) + 1)
    return with_collision_token(paths)


def semantic_codes(
    source: IndexSource, rng: np.random.Generator, *, depth: int = 3, vectors: str | None = None, branching: int = 16
) -> Paths:
    """SemID: the item's categories, broadest first, then a token that tells its siblings apart.

    With `vectors` - ``smollm2``, a model or an ``.npy`` file, see `simenv.language_models.item_vectors` - the
    categories are clusters of what a language model makes of the items' texts, `branching` at each level (Tay et al.
    2022, "Transformer memory as a differentiable search index"). Else with `attributes["category_path"]` (strings
    with ' > ' between levels) that is the path, less a first level that all items share; else the item's genres, the
    most frequent of the catalogue first.
    """
    catalog = _catalog(source, "semantic")
    if vectors is not None:
        return with_collision_token(_clusters(item_vectors(catalog, vectors, VECTOR_SIZE), depth, branching, rng))
    stored = catalog.attributes.get("category_path")
    if stored is not None:
        names = [[part for part in str(path).split(" > ") if part] for path in stored]
        if len({path[0] for path in names if path}) == 1:
            names = [path[1:] for path in names]
    else:
        order = np.argsort(-catalog.genres.sum(axis=0), kind="stable")
        names = [[catalog.genre_names[g] for g in order if row[g]] for row in catalog.genres]
    paths = np.zeros((source.n_items, depth), np.int64)
    numbers: dict[tuple[str, ...], int] = {}
    children: dict[tuple[str, ...], int] = {}
    for row, path in enumerate(names):
        for column in range(min(depth, len(path))):
            prefix = tuple(path[: column + 1])
            if prefix not in numbers:
                children[prefix[:-1]] = numbers[prefix] = children.get(prefix[:-1], 0) + 1
            paths[row, column] = numbers[prefix]
    return with_collision_token(paths)


def _clusters(vectors: FloatArray, depth: int, branching: int, rng: np.random.Generator) -> Paths:
    """Paths through `depth` levels of k-means, (n_items, depth); a cluster no larger than `branching` is not split."""
    from scipy.cluster.vq import kmeans2

    paths = np.zeros((len(vectors), depth), np.int64)
    parts = [np.arange(len(vectors))]
    for level in range(depth):
        split = []
        for part in parts:
            if len(part) > branching:
                labels = kmeans2(vectors[part].astype(np.float64), branching, minit="++", iter=20, rng=rng)[1]
                paths[part, level] = np.unique(labels, return_inverse=True)[1]
                split += [part[labels == label] for label in np.unique(labels)]
        parts = split
    return paths


def _catalog(source: IndexSource, name: str) -> Catalog:
    if source.catalog is None:
        raise ConfigError(f"index={name}: needs the items' titles and categories; bind a data set before fit")
    return source.catalog
