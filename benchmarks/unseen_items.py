"""What vectors say of items that nobody is known to have picked: python benchmarks/unseen_items.py [--synopses CSV]

A tenth of the items of ml-100k is held out, as for the user language model. Users and the other items are vectors of a
truncated SVD; a ridge regression maps what a language model makes of the texts, genres, or both, to an item's vector
(Gantner et al. 2010, "Learning attribute-to-feature mappings for cold-start recommendations"). AUC is that of each
user's last choices among the unseen items, popularity-matched, with 95 % intervals over users; three splits.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

from agents.user_lm import HeldOut
from experiments.realism.pages import KINDS, Pages, draw_pages, of_items, time_split
from experiments.realism.tests import UserBootstrap, mean, page_auc
from simenv.datasets import ml_100k
from simenv.language_models.item_vectors import item_vectors
from simenv.numeric import DoubleArray

SEEDS = (0, 2, 3)
DIMS = 64
RIDGE = 10.0
FEWEST = 5  # picks of an item to learn from


def mapped(x: DoubleArray, y: DoubleArray, known: np.ndarray) -> DoubleArray:
    """Rows of `y` as foretold from `x`, by the ridge regression over the `known` rows."""
    gram = x[known].T @ x[known] + RIDGE * np.eye(x.shape[1])
    return np.asarray(x @ np.linalg.solve(gram, x[known].T @ y[known]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", default="smollm2")
    parser.add_argument("--synopses", help="a CSV file with title and summary")
    options = parser.parse_args()
    dataset = ml_100k(synopses=options.synopses)
    read = item_vectors(dataset.catalog, options.vectors, 128).astype(np.float64)
    genres = dataset.catalog.genres / np.sqrt(np.maximum(dataset.catalog.genres.sum(axis=1, keepdims=True), 1))
    told = {"genres": genres, options.vectors: read, "both": np.concatenate([read, genres], axis=1)}
    split = time_split(dataset, 0.1)
    log = split.train.interactions
    for seed in SEEDS:
        unseen = HeldOut.draw(dataset, users=0.2, items=0.1, share=0.1, seed=seed).items
        part, rows = of_items(split, unseen), np.flatnonzero(unseen)
        drawn = draw_pages(part, np.unique(part.held.users).astype(np.int64), KINDS[0], 1, 20, seed)
        pages: Pages = replace(drawn, items=np.where(drawn.filled, rows[drawn.items], -1).astype(np.int32))
        kept = ~unseen[log.items]
        picks = csr_array((np.ones(kept.sum()), (log.users[kept], log.items[kept])), shape=(log.n_users, log.n_items))
        counts = np.asarray(picks.sum(axis=0)).ravel()
        scaled = csr_array(picks.multiply(1 / np.sqrt(np.maximum(counts, 1))[None, :]))
        users, values, items = svds(scaled, k=DIMS, v0=np.ones(min(scaled.shape)))
        boot = UserBootstrap(len(pages.users), seed)
        for name, features in told.items():
            found = mapped(features, items.T, counts >= FEWEST)
            scores = np.einsum("ud,ukd->uk", (users * values)[pages.users], found[np.maximum(pages.items, 0)])
            auc = page_auc(pages, np.where(pages.filled, scores, np.nan))
            row = boot.row("discrimination", "unseen items", name, "auc", mean(auc))
            interval = f"{row.value:.3f} ({row.ci_low:.3f} to {row.ci_high:.3f})"
            print(f"seed {seed}, {len(pages.users)} users, {name}: {interval}")


if __name__ == "__main__":
    main()
