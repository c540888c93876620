"""Rivals of P5 against a maintained implementation of the same model, on the same split, at the same settings.

    pip install cornac     # into an environment of its own is enough, with this checkout on its path
    SIMENV_DATA=FOLDER OMP_NUM_THREADS=1 python benchmarks/rivals.py [MODEL ...] [--out FILE]

MovieLens-100K, leave-one-out by time, the validation item in the input and learned from, whole catalogue, seen items
filtered, one seed. Same widths, depths, histories, epochs and targets a step; optimisers and their rates are each
library's own. Ours *agrees* where its HR@10 is at most `TOLERANCE` below theirs, some two standard errors of a
difference over 943 users. cornac has NeuMF, its MLP part (BPR-MLP is the same network under another loss), SASRec,
GRU4Rec, BERT4Rec and BPR; what it lacks is held against the authors' figures by `+experiment=paper_tables`. Models that
`--out` has already are not fitted again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender
from recommenders.evaluation.offline import bootstrap_interval, rank_metrics, ranks
from recommenders.factors import BPR
from recommenders.neural.pairs import NeuMF
from recommenders.neural.sequential import BERT4Rec, GRU4Rec, SASRec
from simenv.datasets import load
from simenv.datasets.splits import Split, leave_one_out
from simenv.randomness import Key
from simenv.training.histories import Histories

MODELS = ("neumf", "mlp", "sasrec", "gru4rec", "bert4rec", "bpr")
TOLERANCE = 0.03
EPOCHS = 10
MASKED_EPOCHS = 20  # of BERT4Rec, which learns from a part of the targets in each
HIDDEN = (64, 32, 16)
HISTORY, TARGETS = 20, 512  # items read, targets a step
Scores = Callable[[int], NDArray[Any]]


def ours(name: str) -> Recommender:
    """The model here."""
    pairs: Any = {"embedding_size": 32, "hidden": HIDDEN, "training": {"epochs": EPOCHS, "batch_size": 256}}
    training = {"epochs": MASKED_EPOCHS if name == "bert4rec" else EPOCHS, "batch_size": round(TARGETS / HISTORY)}
    sequence: Any = {"embedding_size": 64, "layers": 1, "history": HISTORY, "training": training}
    made: dict[str, Callable[[], Recommender]] = {
        "neumf": lambda: NeuMF(**pairs),
        "mlp": lambda: NeuMF(**pairs, product=False),
        "sasrec": lambda: SASRec(**sequence),
        "gru4rec": lambda: GRU4Rec(**sequence),
        "bert4rec": lambda: BERT4Rec(**sequence, mask_share=0.3),
        "bpr": lambda: BPR(embedding_size=16, epochs=20),
    }
    return made[name]()


def theirs(name: str, split: Split) -> Scores:
    """The model of cornac, fitted: a user's scores of all items."""
    import cornac

    log = split.train
    rows = list(zip(log.users.tolist(), log.items.tolist(), np.ones(len(log)).tolist(), strict=True))
    models = cornac.models
    if name in ("sasrec", "gru4rec", "bert4rec"):
        times = log.times.tolist()
        told = [(user, user, item, when) for (user, item, _), when in zip(rows, times, strict=True)]
        data = cornac.data.SequentialDataset.build(told, fmt="USIT")
        histories = Histories.from_log(log)
        shape = {"embedding_dim": 64, "num_blocks": 1, "num_heads": 2, "max_len": HISTORY}
        training = {"n_epochs": EPOCHS, "batch_size": TARGETS, "seed": 0}
        if name == "sasrec":
            model = models.SASRec(**shape, **training)
        elif name == "gru4rec":
            model = models.GRU4Rec(layers=[64], **training)
        else:
            masked = {"backbone": "bert", "objective": "mlm", "mask_prob": 0.3}
            model = models.TransformerRec(**masked, **shape, **{**training, "n_epochs": MASKED_EPOCHS})
        model.fit(data)
        known = data.iid_map

        def of_sequence(user: int) -> NDArray[Any]:
            past = [known[item] for item in histories.of(user).tolist()]
            return placed(np.asarray(model.score(data.uid_map.get(user, 0), past)), known, log.n_items)

        return of_sequence
    once = list({(user, item): (user, item, one) for user, item, one in rows}.values())
    data = cornac.data.Dataset.build(once)
    network = {"num_epochs": EPOCHS, "batch_size": 256, "backend": "pytorch", "seed": 0, "verbose": False}
    if name == "neumf":
        model = models.NeuMF(num_factors=HIDDEN[-1], layers=HIDDEN, **network)  # it wants these two alike
    elif name == "mlp":
        model = models.MLP(layers=HIDDEN, **network)
    else:
        model = models.BPR(k=16, max_iter=20, learning_rate=0.05, lambda_reg=0.002, seed=0)
    model.fit(data)
    return lambda user: placed(np.asarray(model.score(data.uid_map[user])), data.iid_map, log.n_items)


def placed(scores: NDArray[Any], known: dict[int, int], n_items: int) -> NDArray[Any]:
    """Scores by their numbering to scores by ours; items never met come last."""
    out = np.full(n_items, -np.inf)
    out[list(known)] = scores.ravel()[list(known.values())]
    return out


def accuracy(places: NDArray[Any], started: float) -> dict[str, float]:
    """HR@10 and NDCG@10, to four digits, and CPU seconds since."""
    found = rank_metrics(places)
    scores = {name: round(float(found[name].mean()), 4) for name in ("hr@10", "ndcg@10")}
    return scores | {"cpu_s": round(time.process_time() - started)}


def compared(name: str, split: Split) -> dict[str, Any]:
    """A row: ours, theirs, and the paired difference over users."""
    histories, started = Histories.from_log(split.train), time.process_time()
    recommender = ours(name)
    recommender.fit(split.train, key=Key(0))
    own = ranks(recommender, split)
    row: dict[str, Any] = {"model": name, "ours": accuracy(own, started)}
    started = time.process_time()
    score = theirs(name, split)
    other = []
    for user, target in zip(split.users.tolist(), split.targets.tolist(), strict=True):
        scores = score(user)
        scores[histories.of(user)] = -np.inf
        other.append(int((scores > scores[target]).sum()) if np.isfinite(scores[target]) else 10**6)
    row["cornac"] = accuracy(np.array(other), started)
    gap = rank_metrics(own)["hr@10"] - rank_metrics(np.array(other))["hr@10"]
    row["ours minus cornac"] = [round(float(value), 4) for value in (gap.mean(), *bootstrap_interval(gap))]
    return row | {"agrees": bool(gap.mean() >= -TOLERANCE)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", nargs="*", default=MODELS)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    split = leave_one_out(load("ml-100k").interactions)
    found = json.loads(given.out.read_text()) if given.out is not None and given.out.exists() else []
    for name in given.models:
        if any(row["model"] == name for row in found):
            continue
        found.append(compared(name, split))
        print(json.dumps(found[-1]), flush=True)
        if given.out is not None:
            given.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
