"""Other people's implementations of recommenders, each fitted on a split that `benchmarks/rivals.py` wrote to a folder.

Run in the library's own environment, which needs neither simenv nor its requirements: `PYTHON rival_libraries.py
FOLDER` reads `split.npz` and `task.json` ({library, model, options}) and writes `answers.npy`: the place of each test
user's item among all items but those the user had (0 = first, `MISSED` = beyond what the library tells), or, of a
rating task, the stars of each test pair. It does not know what it is compared with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Split = dict[str, Any]  # users, items, times, stars: the log, a user's rows in time order; test_users, test_items; ...
MISSED = 10**6


def answers(folder: Path) -> Any:
    """What the task asks of its library."""
    task = json.loads((folder / "task.json").read_text())
    split = dict(np.load(folder / "split.npz"))
    libraries: dict[str, Callable[..., Any]] = {
        "cornac": cornac,
        "recbole": recbole,
        "rectools": rectools,
        "deepctr-torch": deepctr,
    }
    return libraries[task["library"]](task["model"], task["options"], split, folder)


def places(score: Callable[[int, Any], Any], split: Split) -> Any:
    """Place of each test item: how many items that the user did not have score above it.

    Args:
        score: a user and its items, oldest first, to scores of all items by our numbers, (n_items,).
        split: see `Split`.
    """
    ends = np.searchsorted(split["users"], split["test_users"], side="right")
    starts = np.searchsorted(split["users"], split["test_users"])
    out = np.full(len(ends), MISSED)
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        past, target = split["items"][start:end], split["test_items"][row]
        scores = np.array(score(int(split["test_users"][row]), past), np.float64)
        scores[past] = -np.inf
        if np.isfinite(scores[target]):
            out[row] = (scores > scores[target]).sum()
    return out


def renumbered(scores: Any, theirs: Any, n_items: int) -> Any:
    """Scores by their numbers to scores by ours; `theirs` (n_items,), -1 = an item never met, which comes last."""
    known = theirs >= 0
    out = np.full(n_items, -np.inf)
    out[known] = np.asarray(scores).ravel()[theirs[known]]
    return out


def cornac(model: str, options: dict[str, Any], split: Split, folder: Path) -> Any:
    """cornac 3.0.1."""
    import cornac

    users, items, n_items = split["users"].tolist(), split["items"].tolist(), len(split["attributes"])
    made = getattr(cornac.models, model)(**options)
    sequential = model in ("SASRec", "GRU4Rec", "TransformerRec")
    if sequential:
        rows = list(zip(users, users, items, split["times"].tolist(), strict=True))
        data = cornac.data.SequentialDataset.build(rows, fmt="USIT")
    else:
        data = cornac.data.Dataset.build([(user, item, 1.0) for user, item in dict.fromkeys(zip(users, items))])
    made.fit(data)
    theirs = np.array([data.iid_map.get(item, -1) for item in range(n_items)])

    def score(user: int, past: Any) -> Any:
        found = made.score(data.uid_map[user], theirs[past].tolist()) if sequential else made.score(data.uid_map[user])
        return renumbered(found, theirs, n_items)

    return places(score, split)


def recbole(model: str, options: dict[str, Any], split: Split, folder: Path) -> Any:
    """RecBole 1.2.1. S3Rec is pre-trained for `pretrain_epochs` first."""
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.data.interaction import Interaction
    from recbole.utils import get_model, get_trainer, init_seed

    write_atomic_files(split, folder / "split")
    base = {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "class"]},
        "eval_args": {"split": {"RS": [1, 0, 0]}, "group_by": "none", "order": "TO", "mode": "full"},
        "use_gpu": False,
        "state": "ERROR",
        "seed": 0,
    }

    def fitted(more: dict[str, Any]) -> tuple[Any, Any]:
        config = Config(model=model, dataset="split", config_dict=base | options | more)
        init_seed(config["seed"], config["reproducibility"])
        train = data_preparation(config, create_dataset(config))[0]
        network = get_model(model)(config, train.dataset)
        get_trainer(config["MODEL_TYPE"], model)(config, network).fit(train, saved=False, verbose=False)
        return network.eval(), train.dataset

    more: dict[str, Any] = {}
    if model == "S3Rec":
        more = {"train_stage": "finetune", "pre_model_path": str(folder / "pretrained.pth")}
        first = fitted({"train_stage": "pretrain", "train_neg_sample_args": None})[0]
        torch.save({"state_dict": first.state_dict()}, more["pre_model_path"])
    network, data = fitted(more)
    theirs = data.token2id("item_id", np.arange(len(split["attributes"])).astype(str))
    length = network.max_seq_length if hasattr(network, "max_seq_length") else 1

    @torch.no_grad()
    def score(user: int, past: Any) -> Any:
        recent = torch.as_tensor(theirs[past[-length:]])
        asked = {
            "user_id": torch.as_tensor([data.token2id("user_id", str(user))]),
            "item_id_list": torch.nn.functional.pad(recent, (0, length - len(recent)))[None],
            "item_length": torch.tensor([len(recent)]),
        }
        return renumbered(network.full_sort_predict(Interaction(asked)).numpy(), theirs, len(theirs))

    return places(score, split)


def write_atomic_files(split: Split, folder: Path) -> None:
    """The log, with a counter for time so that ties keep our order, and what the items are, as RecBole reads them."""
    folder.mkdir(exist_ok=True)
    rows = zip(split["users"].tolist(), split["items"].tolist(), strict=True)
    log = [f"{user}\t{item}\t{place}" for place, (user, item) in enumerate(rows)]
    (folder / "split.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *log]))
    of_item = [" ".join(f"a{column}" for column in np.flatnonzero(row)) or "none" for row in split["attributes"]]
    told = [f"{item}\t{words}" for item, words in enumerate(of_item)]
    (folder / "split.item").write_text("\n".join(["item_id:token\tclass:token_seq", *told]))


def rectools(model: str, options: dict[str, Any], split: Split, folder: Path) -> Any:
    """RecTools 0.19; of a transformer `layers: ligr` is eSASRec's."""
    import pandas as pd
    from rectools.dataset import Dataset

    log = pd.DataFrame({"user_id": split["users"], "item_id": split["items"], "weight": 1.0})
    log["datetime"] = pd.Timestamp("2000-01-01") + pd.to_timedelta(np.arange(len(log)), unit="s")
    if model == "SASRecModel":
        made = sasrec_of_rectools(**options)
    else:
        import rectools.models

        log = log.drop_duplicates(["user_id", "item_id"])
        made = getattr(rectools.models, model)(**options)
    data = Dataset.construct(log)
    made.fit(data)
    told = made.recommend(users=split["test_users"], dataset=data, k=10, filter_viewed=True)
    place = {(user, item): rank - 1 for user, item, rank in zip(told["user_id"], told["item_id"], told["rank"])}
    asked = zip(split["test_users"].tolist(), split["test_items"].tolist(), strict=True)
    return np.array([place.get(pair, MISSED) for pair in asked])


def sasrec_of_rectools(**options: Any) -> Any:
    from rectools.models import SASRecModel

    if options.pop("layers", None) == "ligr":
        from rectools.models.nn.transformers.ligr import LiGRLayers

        options["transformer_layers_type"] = LiGRLayers
    return SASRecModel(**options, verbose=0, deterministic=True)


def deepctr(model: str, options: dict[str, Any], split: Split, folder: Path) -> Any:
    """deepctr-torch 0.3.0: stars from user, item, the user's traits, the item's attributes and their crosses."""
    import deepctr_torch.models
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat

    size, traits, attributes = options["size"], split["traits"], split["attributes"]
    values = [np.unique(column, return_inverse=True) for column in traits.T]
    begin = np.cumsum([0, *(len(names) for names, _ in values)])
    of_user = np.stack([first + place.ravel() for first, (_, place) in zip(begin, values)], axis=1)  # (users, traits)
    longest = int(attributes.sum(axis=1).max())
    of_item = np.zeros((len(attributes), longest), np.int64)  # attributes from 1, 0 after the end
    for row, known in zip(of_item, attributes, strict=True):
        row[: known.sum()] = np.flatnonzero(known) + 1

    def columns(users: Any, items: Any) -> dict[str, Any]:
        told, asked = of_item[items], of_user[users]
        crosses = np.where(told[:, None] > 0, asked[:, :, None] * attributes.shape[1] + told[:, None], 0)
        named = {f"trait{place}": asked[:, place] for place in range(asked.shape[1])}
        return {"user": users, "item": items, "told": told, "cross": crosses.reshape(len(users), -1), **named}

    def sparse(name: str, vocabulary: int) -> Any:
        return SparseFeat(name, vocabulary_size=vocabulary, embedding_dim=size)

    def several(name: str, vocabulary: int, length: int) -> Any:
        return VarLenSparseFeat(sparse(name, vocabulary), maxlen=length, combiner="mean")

    deep = [sparse("user", len(of_user)), sparse("item", len(of_item)), several("told", 1 + of_item.max(), longest)]
    deep += [sparse(f"trait{place}", int(begin[-1])) for place in range(of_user.shape[1])]
    wide = [*deep, several("cross", 1 + int(begin[-1]) * attributes.shape[1], longest * of_user.shape[1])]
    made = getattr(deepctr_torch.models, model)(
        wide, [*deep, wide[-1]], dnn_hidden_units=options["hidden"], task="regression", seed=0, device="cpu"
    )
    made.compile("adam", "mse")
    rated = ~np.isnan(split["stars"])
    stars = split["stars"][rated].astype(np.float64)
    read = columns(split["users"][rated], split["items"][rated])
    made.fit(read, stars - stars.mean(), batch_size=options["batch_size"], epochs=options["epochs"], verbose=0)
    return made.predict(columns(split["test_users"], split["test_items"]), 4096).ravel() + stars.mean()


if __name__ == "__main__":
    np.save(Path(sys.argv[1]) / "answers.npy", answers(Path(sys.argv[1])))
