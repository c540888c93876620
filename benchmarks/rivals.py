"""Rivals of P5 against a maintained implementation of the same model, on the same split, at the same settings.

    python -m venv cornac && cornac/bin/pip install torch cornac==3.0.1 transformers
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
standard errors of a difference over 943 users, and the RMSE of stars at most `TOLERANCE` above. Rows that `--out` has
already are not made again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
HIDDEN, MARGIN, MANY = (64, 32, 16), 0.5, 50  # of SimpleX, items drawn for each pair; ten times as many here, for a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A model here, the same one elsewhere."""

    ours: Callable[[], Recommender]
    library: str
    model: str
    options: Mapping[str, Any]


def rivals(epochs: int) -> dict[str, Rival]:
    """Every comparison, by name. BERT4Rec, which learns from some targets a pass, takes more of them here."""

    def sequence(passes: int = epochs, history: int = HISTORY, **more: Any) -> Any:
        training = {"epochs": passes, "batch_size": max(1, round(TARGETS / history))}
        return {"embedding_size": 64, "layers": 1, "history": history, "dropout": 0.2, "training": training} | more

    def window(loss: str) -> Any:
        options = sequence(loss=loss, window=WINDOW)
        del options["layers"]
        return options

    def pairs(**more: Any) -> Any:
        return {"embedding_size": 32, "hidden": HIDDEN, "training": {"epochs": epochs, "batch_size": 256}} | more

    # cornac: a pass over user sessions, as here
    shape = {"embedding_dim": 64, "num_blocks": 1, "num_heads": 2, "max_len": HISTORY}
    steps = {"n_epochs": epochs, "batch_size": TARGETS, "seed": 0}
    masked = {"backbone": "bert", "objective": "mlm", "mask_prob": 0.3}
    network = {"num_epochs": epochs, "batch_size": 256, "backend": "pytorch", "seed": 0, "verbose": False}
    factors = {"k": 16, "max_iter": 20, "learning_rate": 0.05, "lambda_reg": 0.002, "seed": 0}
    found = {
        "neumf": Rival(
            ours=lambda: NeuMF(**pairs()),
            library="cornac",
            model="NeuMF",
            options={"num_factors": HIDDEN[-1], "layers": HIDDEN, **network},  # it wants these two alike
        ),
        "mlp": Rival(
            ours=lambda: NeuMF(**pairs(product=False)),
            library="cornac",
            model="MLP",
            options={"layers": HIDDEN, **network},
        ),
        "sasrec": Rival(
            ours=lambda: SASRec(**sequence()), library="cornac", model="SASRec", options={**shape, **steps}
        ),
        "gru4rec": Rival(
            ours=lambda: GRU4Rec(**sequence()), library="cornac", model="GRU4Rec", options={"layers": [64], **steps}
        ),
        "bert4rec": Rival(
            ours=lambda: BERT4Rec(**sequence(2 * epochs, mask_share=0.3)),
            library="cornac",
            model="TransformerRec",
            options={**masked, **shape, **steps, "n_epochs": 2 * epochs},
        ),
        "bpr": Rival(ours=lambda: BPR(embedding_size=16, epochs=20), library="cornac", model="BPR", options=factors),
    }

    # RecBole: a pass over all targets, each with its own history
    steps = {"epochs": epochs, "train_batch_size": TARGETS, "MAX_ITEM_LIST_LENGTH": HISTORY}
    short = {**steps, "MAX_ITEM_LIST_LENGTH": WINDOW, "embedding_size": 64}
    shape = {"n_layers": 1, "hidden_size": 64, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2}
    whole, drawn = {"loss_type": "CE", "train_neg_sample_args": None}, {"loss_type": "BPR"}
    for name, loss, told in (("ce", "cross_entropy", whole), ("bpr", "bpr", drawn)):

        def add(what: str, ours: Callable[[], Recommender], model: str, options: Mapping[str, Any]) -> None:
            found[f"{what}-{name}"] = Rival(ours=ours, library="recbole", model=model, options={**options, **told})  # noqa: B023

        add("sasrec", lambda loss=loss: SASRec(**sequence(loss=loss)), "SASRec", steps | shape)
        add(
            "gru4rec",
            lambda loss=loss: GRU4Rec(**sequence(loss=loss)),
            "GRU4Rec",
            steps | {"embedding_size": 64, "hidden_size": 64, "num_layers": 1, "dropout_prob": 0.2},
        )
        caser = {"nh": 16, "nv": 4, "dropout_prob": 0.2}
        add("caser", lambda loss=loss: Caser(**window(loss)), "Caser", short | caser)
        add("hgn", lambda loss=loss: HGN(**without(window(loss), "dropout")), "HGN", short)
        add("fdsa", lambda loss=loss: FDSA(**sequence(loss=loss)), "FDSA", steps | shape)
        pre = {"pretrain_epochs": 1, "save_step": 1000}
        add("s3rec", lambda loss=loss: S3Rec(**sequence(loss=loss), pretraining=20), "S3Rec", steps | shape | pre)
    found["bert4rec-ce"] = Rival(
        ours=lambda: BERT4Rec(**sequence(4 * epochs, mask_share=0.2)),
        library="recbole",
        model="BERT4Rec",
        options={**steps, **shape, **whole},
    )
    many = {"distribution": "uniform", "sample_num": MANY}
    cosine = {"embedding_size": 64, "margin": MARGIN, "negative_weight": 10, "history_len": 50, "dropout_prob": 0.0}
    found["simplex"] = Rival(
        ours=lambda: SimpleX(
            embedding_size=64, margin=MARGIN, weight=10.0, negatives=10 * MANY, training={"epochs": epochs, "batch_size": 256}
        ),
        library="recbole",
        model="SimpleX",
        options={**cosine, "epochs": epochs, "train_batch_size": 256 * MANY, "train_neg_sample_args": many},
    )

    # RecTools: a pass over the last `LONG` items of every user
    steps = {"epochs": epochs, "batch_size": max(1, round(TARGETS / LONG)), "session_max_len": LONG}
    shape = {"n_factors": 64, "n_blocks": 1, "n_heads": 2, "dropout_rate": 0.2}
    for name, loss, more, told in (
        ("sasrec-bce", "bce", {}, {"loss": "BCE", "n_negatives": 1}),
        ("sasrec-softmax", "cross_entropy", {}, {"loss": "softmax"}),
        ("esasrec", "sampled_softmax", {"block": "ligr"}, {"loss": "sampled_softmax", "n_negatives": 256, "layers": "ligr"}),
    ):
        found[name] = Rival(
            ours=lambda loss=loss, more=more: SASRec(**sequence(history=LONG, loss=loss, **more)),
            library="rectools",
            model="SASRecModel",
            options={**steps, **shape, **told},
        )
    found["puresvd"] = Rival(
        ours=lambda: PureSVD(embedding_size=50), library="rectools", model="PureSVDModel", options={"factors": 50}
    )
    found["ease"] = Rival(
        ours=lambda: EASE(reg=300.0), library="rectools", model="EASEModel", options={"regularization": 300}
    )
    found["wide-deep"] = Rival(
        ours=lambda: WideDeep(**pairs(hidden=(64, 32))),
        library="deepctr-torch",
        model="WDL",
        options={"epochs": epochs, "batch_size": 256, "size": 32, "hidden": [64, 32]},
    )
    return found


def without(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


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


def compared(
    name: str, epochs: int, split: Split, dataset: Dataset, pythons: Mapping[str, str]
) -> dict[str, Any]:
    """A row: ours, theirs, and the paired differences over users."""
    rival = rivals(epochs)[name]
    started = time.process_time()
    recommender = rival.ours()
    if hasattr(recommender, "bind_dataset"):
        recommender.bind_dataset(dataset)
    recommender.fit(split.train, key=Key(0))
    own: Any = ranks(recommender, split) if name != "wide-deep" else recommender.predict_ratings(split.users, split.targets)  # type: ignore[attr-defined]
    seconds = [time.process_time() - started]
    started = children()
    other = theirs(rival, split, dataset, pythons[rival.library])
    seconds.append(children() - started)
    if name == "wide-deep":
        values = [{"squared error": (answer - split.ratings) ** 2} for answer in (own, other)]
    else:
        values = [{metric: rank_metrics(answer)[metric] for metric in ("hr@10", "ndcg@10")} for answer in (own, other)]
    row: dict[str, Any] = {"model": name, "library": rival.library, "epochs": epochs}
    for who, found, cost in zip(("ours", "theirs"), values, seconds, strict=True):
        row[who] = {metric: round(float(value.mean()), 4) for metric, value in found.items()} | {"cpu_s": round(cost)}
    gaps = {metric: np.asarray(values[0][metric], float) - values[1][metric] for metric in values[0]}
    row["ours minus theirs"] = {
        metric: [round(float(value), 4) for value in (gap.mean(), *bootstrap_interval(gap))]
        for metric, gap in gaps.items()
    }
    first = next(iter(gaps.values())).mean()
    return row | {"agrees": bool(first <= TOLERANCE if name == "wide-deep" else first >= -TOLERANCE)}


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
