"""Rivals of P5 against a maintained implementation of the same model, on the same split, at the same settings.

    python -m venv cornac && cornac/bin/pip install torch transformers powerlaw cornac==3.0.1
    SIMENV_DATA=FOLDER OMP_NUM_THREADS=1 python benchmarks/rivals.py --python cornac=cornac/bin/python --out rivals.json

Each library runs in an environment of its own, in a process of its own, on files (`rival_libraries.py`):

    recbole            pip install torch "numpy<2" "pandas<2.3" "scipy<1.15" "setuptools<81" pyyaml tqdm colorama
                       colorlog scikit-learn tabulate texttable psutil tensorboard thop plotly
                       pip install --no-deps recbole==1.2.1    # its own pins of ray and colour packages are old
    rectools           pip install "rectools[torch]==0.19.0"
    deepctr-torch      pip install torch "numpy<2" "pandas<2.3" requests scikit-learn tqdm deepctr-torch==0.3.0

MovieLens-100K, leave-one-out by time, the validation item in the input and learned from, whole catalogue, seen items
filtered, one seed. Same widths, depths, histories, passes, targets a step and losses; optimisers, their rates and how
weights begin are each library's own. Ours *agrees* where its HR@10 is at most `TOLERANCE` below theirs, some two
standard errors of a difference over 943 users, or its squared error of stars at most twice that above, some .02 of
RMSE. Rows that `--out` has already are not made again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender
from recommenders.evaluation.offline import bootstrap_interval, rank_metrics, ranks
from recommenders.factors import BPR, PureSVD
from recommenders.linear import EASE
from recommenders.neural.attributes import FDSA, S3Rec, item_attributes
from recommenders.neural.pairs import NeuMF, SimpleX, WideDeep
from recommenders.neural.sequential import BERT4Rec, GRU4Rec, SASRec
from recommenders.neural.windows import HGN, Caser
from simenv.datasets import Dataset, load
from simenv.datasets.splits import Split, leave_one_out
from simenv.randomness import Key

TOLERANCE = 0.02
HISTORY, LONG, WINDOW, TARGETS = 10, 200, 5, 512  # items read (by RecTools', by Caser and HGN), targets a step
HIDDEN = (64, 32, 16)
MANY = 50  # items that SimpleX draws for each pair; ten times as many here, for a whole batch


class Rival(NamedTuple):
    """A model here, and the same one elsewhere."""

    ours: Callable[[], Recommender]
    library: str
    model: str
    options: dict[str, Any]


def rivals(epochs: int) -> dict[str, Rival]:
    """Every comparison, by name."""
    return {**of_cornac(epochs), **of_recbole(epochs), **of_rectools(epochs), **of_deepctr(epochs)}


def sequence(epochs: int, history: int = HISTORY, **more: Any) -> Any:
    """Options of a sequence model here."""
    training = {"epochs": epochs, "batch_size": max(1, round(TARGETS / history))}
    return {"embedding_size": 64, "layers": 1, "history": history, "dropout": 0.2, "training": training} | more


def window(epochs: int, loss: str, **more: Any) -> Any:
    """Options of Caser and HGN, which have one layer; HGN has no dropout either."""
    options = sequence(epochs, loss=loss, window=WINDOW) | more
    return {name: value for name, value in options.items() if name != "layers" and value is not None}


def pairs(epochs: int, **more: Any) -> Any:
    """Options of a model of pairs."""
    return {"embedding_size": 32, "training": {"epochs": epochs, "batch_size": 256}} | more


def of_cornac(epochs: int) -> dict[str, Rival]:
    """cornac 3.0.1. BERT4Rec learns from a part of the targets in a pass, so it gets twice as many, there as here."""
    shape = {"embedding_dim": 64, "num_blocks": 1, "num_heads": 2, "max_len": HISTORY}
    steps = {"n_epochs": epochs, "batch_size": TARGETS, "seed": 0}
    masked = {"backbone": "bert", "objective": "mlm", "mask_prob": 0.3, "n_epochs": 2 * epochs}
    network = {"num_epochs": epochs, "batch_size": 256, "backend": "pytorch", "seed": 0, "verbose": False}
    factors = {"k": 16, "max_iter": 20, "learning_rate": 0.05, "lambda_reg": 0.002, "seed": 0}
    # NeuMF wants `num_factors` and the last of `layers` alike.
    made: dict[str, tuple[Callable[[], Recommender], str, dict[str, Any]]] = {
        "neumf": (
            lambda: NeuMF(**pairs(epochs, hidden=HIDDEN)),
            "NeuMF",
            {"num_factors": HIDDEN[-1], "layers": HIDDEN, **network},
        ),
        "mlp": (lambda: NeuMF(**pairs(epochs, hidden=HIDDEN, product=False)), "MLP", {"layers": HIDDEN, **network}),
        "sasrec": (lambda: SASRec(**sequence(epochs)), "SASRec", shape | steps),
        "gru4rec": (lambda: GRU4Rec(**sequence(epochs)), "GRU4Rec", {"layers": [64]} | steps),
        "bert4rec": (
            lambda: BERT4Rec(**sequence(2 * epochs, mask_share=0.3)),
            "TransformerRec",
            shape | steps | masked,
        ),
        "bpr": (lambda: BPR(embedding_size=16, epochs=20), "BPR", factors),
    }
    return {name: Rival(ours, "cornac", model, options) for name, (ours, model, options) in made.items()}


def of_recbole(epochs: int) -> dict[str, Rival]:
    """RecBole 1.2.1, where a pass takes every target with its own history; in its BERT4Rec and in pre-training each
    interaction is so read some ten times, for which ours gets more passes. It has no binary cross-entropy.
    """
    steps = {"epochs": epochs, "train_batch_size": TARGETS, "MAX_ITEM_LIST_LENGTH": HISTORY}
    recent = steps | {"MAX_ITEM_LIST_LENGTH": WINDOW, "embedding_size": 64}
    shape = steps | {"n_layers": 1, "hidden_size": 64, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2}
    gru = steps | {"embedding_size": 64, "hidden_size": 64, "num_layers": 1, "dropout_prob": 0.2}
    caser = recent | {"nh": 16, "nv": 4, "dropout_prob": 0.2}
    before = shape | {"pretrain_epochs": 1, "save_step": 1000}
    whole, drawn = {"loss_type": "CE", "train_neg_sample_args": None}, {"loss_type": "BPR"}
    models: dict[str, tuple[Callable[[str], Recommender], str, dict[str, Any]]] = {
        "sasrec": (lambda loss: SASRec(**sequence(epochs, loss=loss)), "SASRec", shape),
        "gru4rec": (lambda loss: GRU4Rec(**sequence(epochs, loss=loss)), "GRU4Rec", gru),
        "caser": (lambda loss: Caser(**window(epochs, loss)), "Caser", caser),
        "hgn": (lambda loss: HGN(**window(epochs, loss, dropout=None)), "HGN", recent),
        "fdsa": (lambda loss: FDSA(**sequence(epochs, loss=loss)), "FDSA", shape),
        "s3rec": (lambda loss: S3Rec(**sequence(epochs, loss=loss), pretraining=HISTORY), "S3Rec", before),
    }
    found = {
        f"{name}-{short}": Rival(partial(ours, loss), "recbole", model, options | told)
        for name, (ours, model, options) in models.items()
        for short, loss, told in (("ce", "cross_entropy", whole), ("bpr", "bpr", drawn))
    }
    many = {"distribution": "uniform", "sample_num": MANY}
    cosine = {"embedding_size": 64, "margin": 0.5, "negative_weight": 10, "history_len": 50, "dropout_prob": 0.0}
    own = {"embedding_size": 64, "margin": 0.5, "weight": 10.0, "history": 50, "negatives": 10 * MANY}
    return found | {
        "bert4rec-ce": Rival(lambda: BERT4Rec(**sequence(4 * epochs)), "recbole", "BERT4Rec", shape | whole),
        "simplex": Rival(
            lambda: SimpleX(**pairs(epochs, **own)),
            "recbole",
            "SimpleX",
            cosine | {"epochs": epochs, "train_batch_size": 256 * MANY, "train_neg_sample_args": many},
        ),
    }


def of_rectools(epochs: int) -> dict[str, Rival]:
    """RecTools 0.19.0, which reads the last `LONG` items of every user and no more; its SASRec asks all positions."""
    steps = {"epochs": epochs, "batch_size": max(1, round(TARGETS / LONG)), "session_max_len": LONG}
    shape = steps | {"n_factors": 64, "n_blocks": 1, "n_heads": 2, "dropout_rate": 0.2}
    made: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "sasrec-bce": ({"loss": "bce"}, {"loss": "BCE", "n_negatives": 1}),
        "sasrec-softmax": ({}, {"loss": "softmax"}),
        "esasrec": (
            {"loss": "sampled_softmax", "block": "ligr"},
            {"loss": "sampled_softmax", "n_negatives": 256, "layers": "ligr"},
        ),
    }
    found = {
        name: Rival(partial(_sasrec, sequence(epochs, LONG, **own)), "rectools", "SASRecModel", shape | told)
        for name, (own, told) in made.items()
    }
    return found | {
        "puresvd": Rival(lambda: PureSVD(embedding_size=50), "rectools", "PureSVDModel", {"factors": 50}),
        "ease": Rival(lambda: EASE(reg=300.0), "rectools", "EASEModel", {"regularization": 300}),
    }


def _sasrec(options: Mapping[str, Any]) -> Recommender:
    return SASRec(**options)


def of_deepctr(epochs: int) -> dict[str, Rival]:
    """deepctr-torch 0.3.0: stars."""
    told = {"epochs": epochs, "batch_size": 256, "size": 32, "hidden": [64, 32]}
    return {"wide-deep": Rival(lambda: WideDeep(**pairs(epochs, hidden=(64, 32))), "deepctr-torch", "WDL", told)}


def theirs(rival: Rival, split: Split, dataset: Dataset, python: str) -> NDArray[Any]:
    """What their model answers, see `rival_libraries`."""
    log, traits = split.train, [np.asarray(column).astype(str) for column in dataset.user_attributes.values()]
    order = np.lexsort((log.times, log.users))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(
            folder / "split.npz",
            users=log.users[order],
            items=log.items[order],
            times=log.times[order],
            stars=log.ratings[order],
            attributes=item_attributes(dataset.catalog),
            traits=np.stack(traits, axis=1) if traits else np.zeros((log.n_users, 0), str),
            test_users=split.users,
            test_items=split.targets,
        )
        task = {"library": rival.library, "model": rival.model, "options": rival.options}
        (folder / "task.json").write_text(json.dumps(task))
        script = Path(__file__).with_name("rival_libraries.py")
        subprocess.run([python, "-W", "ignore", str(script), name], check=True, cwd=name)
        return np.asarray(np.load(folder / "answers.npy"))


def compared(name: str, epochs: int, split: Split, dataset: Dataset, pythons: Mapping[str, str]) -> dict[str, Any]:
    """A row: ours, theirs, and the paired differences over users."""
    rival = rivals(epochs)[name]
    started = time.process_time()
    recommender = rival.ours()
    if hasattr(recommender, "bind_dataset"):
        recommender.bind_dataset(dataset)
    recommender.fit(split.train, key=Key(0))
    stars = isinstance(recommender, WideDeep)
    own: Any = recommender.predict_ratings(split.users, split.targets) if stars else ranks(recommender, split)
    seconds = [time.process_time() - started]
    started = children()
    other = theirs(rival, split, dataset, pythons[rival.library])
    seconds.append(children() - started)
    metrics = (lambda answer: {"squared error": (answer - split.ratings) ** 2}) if stars else rank_metrics
    shown = ("squared error",) if stars else ("hr@10", "ndcg@10")
    values = [{metric: metrics(answer)[metric] for metric in shown} for answer in (own, other)]
    row: dict[str, Any] = {"model": name, "library": rival.library, "epochs": epochs}
    for who, found, cost in zip(("ours", "theirs"), values, seconds, strict=True):
        row[who] = {metric: round(float(value.mean()), 4) for metric, value in found.items()} | {"cpu_s": round(cost)}
    gaps = {metric: np.asarray(values[0][metric], float) - values[1][metric] for metric in values[0]}
    row["ours minus theirs"] = {
        metric: [round(float(value), 4) for value in (gap.mean(), *bootstrap_interval(gap))]
        for metric, gap in gaps.items()
    }
    first = next(iter(gaps.values())).mean()
    return row | {"agrees": bool(first <= 2 * TOLERANCE if stars else first >= -TOLERANCE)}


def children() -> float:
    """CPU seconds of processes that this one has started and waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="*", help="of comparisons; all of the libraries that --python names")
    options.add_argument("--python", action="append", default=[], metavar="LIBRARY=PATH", required=True)
    options.add_argument("--dataset", default="ml-100k")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    pythons = dict(pair.split("=", 1) for pair in given.python)
    known = rivals(given.epochs)
    names = given.names or [name for name, rival in known.items() if rival.library in pythons]
    dataset = load(given.dataset)
    split = leave_one_out(dataset.interactions)
    found = json.loads(given.out.read_text()) if given.out is not None and given.out.exists() else []
    for name in names:
        if any(row["model"] == name for row in found):
            continue
        found.append(compared(name, given.epochs, split, dataset, pythons))
        print(json.dumps(found[-1]), flush=True)
        if given.out is not None:
            given.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
