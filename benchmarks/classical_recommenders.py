"""Time to fit and to serve, and accuracy by leave-one-out, of every classical recommender, side by side.

    python benchmarks/classical_recommenders.py
    python benchmarks/classical_recommenders.py --accuracy ml-100k --accuracy amazon --out table.json

Speed: a synthetic world; `round` is one `recommend` for all users with the warm start excluded, the best of several
runs. Accuracy: the last interaction of each user by time (ties in file order) is the target, all before are the input,
the validation item among them; full ranking with seen items filtered. Real data are found as everywhere (SIMENV_DATA).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from recommenders.base import Recommender
from simenv.candidates import Candidates
from simenv.datasets import Dataset, Interactions, load
from simenv.datasets.splits import leave_one_out
from simenv.randomness import Key
from simenv.slates import SeesDataset, SeesTruth

CONF = Path(__file__).parents[1] / "conf" / "recommender"
NAMES = "random popularity content itemknn seqknn ease als bpr mf oracle popularity-penalty epsilon-greedy"
BLOCK = 2048


def recommenders(dataset: Dataset, log: Interactions) -> Iterator[Recommender]:
    """Every classical recommender as configured, bound to the data set, unless it needs what the data lack."""
    for name in NAMES.split():
        recommender = instantiate(OmegaConf.load(CONF / f"{name}.yaml")[name])
        if name == "mf" and np.isnan(log.ratings).all():
            continue
        if isinstance(recommender, SeesTruth):
            if dataset.tastes is not None:
                recommender.bind_truth(dataset.tastes.choice.scores)
            elif name == "oracle":
                continue
        if isinstance(recommender, SeesDataset):
            recommender.bind_dataset(dataset)
        yield recommender


def seconds(call, repeats: int) -> float:
    """The best of `repeats` runs after one that compiles."""
    best = np.inf
    for run in range(repeats + 1):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start) if run else best
    return best


def speed(dataset: Dataset, repeats: int) -> list[dict[str, object]]:
    log, users = dataset.interactions, np.arange(dataset.n_users)
    seen = np.zeros((dataset.n_users, dataset.n_items), np.bool_)
    seen[log.users, log.items] = True
    candidates = Candidates.of(seen.shape[1], out=seen)
    rows = []
    for recommender in recommenders(dataset, log):
        fit = seconds(lambda r=recommender: r.fit(log, key=Key(0)), repeats)
        serve = seconds(lambda r=recommender: r.recommend(users, 10, candidates, key=Key(0)), repeats)
        rows.append({"recommender": recommender.name, "fit_ms": 1e3 * fit, "round_ms": 1e3 * serve})
    return rows


def accuracy(dataset: Dataset, k: int = 10) -> list[dict[str, object]]:
    split = leave_one_out(dataset.interactions, minimum=2)
    train, users = split.train, split.users
    target = np.full(train.n_users, -1)
    target[users] = split.targets
    rows = []
    for recommender in recommenders(dataset, train):
        recommender.fit(train, key=Key(0))
        hits = np.concatenate(
            [_hits(recommender, train, target, users[s : s + BLOCK], k) for s in range(0, len(users), BLOCK)]
        )
        gains = hits / np.log2(np.arange(k) + 2)
        rows.append(
            {
                "recommender": recommender.name,
                f"hr@{k}": float(hits.sum(axis=1).mean()),
                f"ndcg@{k}": float(gains.sum(axis=1).mean()),
                "n_users": len(users),
            }
        )
    return rows


def _hits(recommender: Recommender, train: Interactions, target: np.ndarray, users: np.ndarray, k: int) -> np.ndarray:
    row = np.full(train.n_users, -1)
    row[users] = np.arange(len(users))
    mine = row[train.users] >= 0
    seen = np.zeros((len(users), train.n_items), np.bool_)
    seen[row[train.users[mine]], train.items[mine]] = True
    slates = recommender.recommend(users, k, Candidates.of(seen.shape[1], out=seen), key=Key(0)).item_ids
    return slates == target[users][:, None]


def show(title: str, rows: list[dict[str, object]]) -> None:
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "recommender" else "right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1000, help="users of the synthetic world")
    parser.add_argument("--items", type=int, default=1000, help="items of the synthetic world")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the best counts")
    parser.add_argument("--accuracy", action="append", default=[], metavar="DATASET", help="also leave-one-out on this")
    parser.add_argument("--out", type=Path, help="write the tables to this JSON file")
    args = parser.parse_args()
    world = load("synthetic", n_users=args.users, n_items=args.items)
    results = {"speed": speed(world, args.repeats)}
    show(f"{args.users} users x {args.items} items, {len(world.interactions)} interactions", results["speed"])
    for name in args.accuracy:
        results[name] = accuracy(load(name))
        show(f"{name}: leave-one-out, full ranking, seen filtered", results[name])
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
