"""`python -m recommenders.p5 train|evaluate|recommend|diagnose`: P5 from the command line, without an experiment.

It knows data sets by folder and recommenders by class; whatever a class takes can be set with `--set name=value`,
with dots as in `--set training.epochs=3`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from simenv.checks import check_known
from simenv.errors import ConfigError, RunDirectoryError, SimenvError
from simenv.records import nested

DESCRIPTION = "Train, evaluate, ask and diagnose P5 and p5-fast."
WITH_WORDS = {  # where users write reviews: words take many rows to learn
    "asking.user_input": "own",
    "asking.other_share": 4.0,
    "network.layers": 1,
    "network.dropout": 0.0,
    "training.batch_size": 32,
    "training.epochs": 3,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except SimenvError as error:
        if os.environ.get("SIMENV_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recommenders.p5", description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="train|evaluate|recommend|diagnose")

    train = commands.add_parser("train", help="fit on all but each user's last interaction, and save")
    train.add_argument("--model", choices=("p5", "p5-fast"), default="p5-fast")
    train.add_argument("--dataset", required=True, help="ml-100k, ml-1m, ml-latest-small, amazon or synthetic")
    train.add_argument("--data", type=Path, help="folder of the data set's files")
    train.add_argument("--out", type=Path, required=True, help="folder to save to")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--full", action="store_true", help="learn from every interaction: no test split")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    train.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="full-ranking metrics of a saved model on each user's last item")
    evaluate.add_argument("folder", type=Path)
    evaluate.add_argument("--ask", choices=("seen", "unseen", "none"), help="which prompt to ask p5 with")
    evaluate.set_defaults(run=_evaluate)

    recommend = commands.add_parser("recommend", help="titles for some users")
    recommend.add_argument("folder", type=Path)
    recommend.add_argument("--users", nargs="+", required=True, help="the publisher's user ids")
    recommend.add_argument("-k", type=int, default=10)
    recommend.set_defaults(run=_recommend)

    diagnose = commands.add_parser("diagnose", help="popularity of the lists by rank and by history, as two figures")
    diagnose.add_argument("folders", nargs="+", type=Path, help="models saved by `train`, of one data set")
    diagnose.add_argument("--baselines", nargs="*", metavar="NAME", default=["popularity", "seqknn", "ease"])
    diagnose.add_argument("--out", type=Path, required=True, help="folder for figures and table")
    diagnose.add_argument("-k", type=int, default=10)
    diagnose.set_defaults(run=_diagnose)
    return parser


def load_dataset(name: str, root: Path | None) -> Any:
    """A data set by the contract's name, from its files or made by code."""
    from simenv import datasets

    return datasets.load(name) if root is None else datasets.load(name, root=str(root))


def make(model: str, settings: dict[str, Any]) -> Any:
    """A fresh recommender of this name, with options by their dotted names.

    Raises:
        ConfigError: on an option its constructor does not take.
    """
    from recommenders.p5.generative import P5Fast
    from recommenders.p5.prompted import P5

    kind: type = {"p5": P5, "p5-fast": P5Fast}[model]
    options = nested(settings)
    check_known(options, kind, f"{model}.")
    try:
        return kind(**options)
    except TypeError as error:
        raise ConfigError(f"{model}: {error}") from error


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`name=value` pairs; values are JSON where they can be read as such, else text."""
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {pair}: expected name=value")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


def _train(options: argparse.Namespace) -> None:
    from recommenders.p5.language.prompts import FAMILIES
    from simenv.datasets.reviews import reviewer_of
    from simenv.datasets.splits import leave_one_out
    from simenv.randomness import Key
    from simenv.training.processes import Processes

    settings = parse_settings(options.settings)
    card: dict[str, Any] = {
        "model": options.model,
        "dataset": options.dataset,
        "data": None if options.data is None else str(options.data.resolve()),
        "seed": options.seed,
        "full": options.full,
        "settings": settings,
    }
    checkpoint = options.out / "checkpoint.pt"
    if checkpoint.exists() and not options.resume:
        raise RunDirectoryError(f"{checkpoint}: exists; expected --resume, or another --out")
    dataset = load_dataset(options.dataset, options.data)
    if options.model == "p5" and "asking.families" not in settings and reviewer_of(dataset) is not None:
        card["settings"] = settings = {"asking.families": list(FAMILIES), **WITH_WORDS, **settings}
    recommender = make(options.model, {"show_progress": True, "checkpoint": checkpoint, **settings})
    recommender.bind_dataset(dataset)
    log = dataset.interactions if options.full else leave_one_out(dataset.interactions).train
    recommender.fit(log, key=Key(options.seed))
    processes = Processes(recommender.device)
    if processes.is_main:
        _keep(recommender, card, options.out)
    processes.close()


def _keep(recommender: Any, card: dict[str, Any], folder: Path) -> None:
    """Save what was trained, and say so."""
    recommender.save(folder)
    (folder / "card.json").write_text(json.dumps(card, indent=2))
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    from recommenders.p5.prompted import P5

    progress = recommender.progress
    for family, reason in recommender.skipped.items() if isinstance(recommender, P5) else ():
        print(f"left out: {family} ({reason})")
    print(f"{progress.epoch} epochs, {progress.seconds:.0f} s, loss {progress.losses[-1]:.3f}; saved to {folder}")


def _load(folder: Path) -> tuple[dict[str, Any], Any, Any]:
    """The card, data set and recommender of a saved model."""
    try:
        card = json.loads((folder / "card.json").read_text())
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{folder}: no model saved by `train` ({error})") from error
    dataset = load_dataset(card["dataset"], None if card["data"] is None else Path(card["data"]))
    recommender = make(card["model"], card["settings"])
    recommender.bind_dataset(dataset)
    recommender.load(folder)
    return card, dataset, recommender


def _evaluate(options: argparse.Namespace) -> None:
    from recommenders.evaluation.offline import bootstrap_interval, rank_metrics, ranks
    from simenv.datasets.splits import leave_one_out

    card, dataset, recommender = _load(options.folder)
    if card["full"]:
        raise ConfigError(f"{options.folder}: trained with --full, its test items included; expected a held-out split")
    if options.ask is not None:
        if card["model"] != "p5":
            raise ConfigError(f"--ask {options.ask}: {card['model']} reads no prompts; expected a p5 model")
        recommender.ask = options.ask
    split = leave_one_out(dataset.interactions)
    print(f"{card['model']} on {dataset.name}, leave-one-out, whole catalogue, {len(split.users):,} users")
    for filter_seen in (True, False):
        print("seen items left out" if filter_seen else "seen items kept")
        for metric, values in rank_metrics(ranks(recommender, split, filter_seen=filter_seen)).items():
            low, high = bootstrap_interval(values)
            print(f"  {metric:8} {values.mean():.4f}  [{low:.4f}, {high:.4f}]")
    if card["model"] == "p5":
        _evaluate_words(recommender, dataset, split, unseen=options.ask == "unseen")


def _evaluate_words(recommender: Any, dataset: Any, split: Any, *, unseen: bool) -> None:
    """Stars, explanations and summaries of the test interactions, for the families that were trained."""
    from recommenders.evaluation.explanations import baselines, faithfulness, read
    from recommenders.evaluation.offline import rating_errors, text_overlap
    from simenv.datasets.reviews import reviewer_of

    log = dataset.interactions
    by_user = np.lexsort((log.times, log.users))
    held = log.take(by_user[np.cumsum(log.user_counts())[split.users] - 1])
    trained = set(recommender.book.families) - set(recommender.skipped)
    if "rating" in trained:
        rated = recommender.predict_ratings(held.users, held.items, unseen=unseen)
        print(
            "stars: " + ", ".join(f"{name} {value:.3f}" for name, value in rating_errors(rated, held.ratings).items())
        )
    reviewer = reviewer_of(dataset)
    if reviewer is None or not {"explanation", "review"} & trained:
        return
    seen, reviews = recommender.reviews, reviewer.write(held)
    written = {}
    if "explanation" in trained:
        texts = recommender.explain(reviews.users, reviews.items, unseen=unseen)
        written["explanation"] = (texts, reviews.explanations)
    if "review" in trained:
        recommender.bind_reviews(reviews)
        written["summary"] = (recommender.summarise(np.arange(len(reviews)), unseen=unseen), reviews.summaries)
    for kind, (texts, references) in written.items():
        overlap = ", ".join(f"{name} {value:.1f}" for name, value in text_overlap(texts, references).items())
        print(f"{kind} of {len(texts):,} held-out reviews: {overlap}")
    if "explanation" in written:
        said = read(written["explanation"][0])
        print("faithfulness of explanations")
        rows = {"p5": said, **baselines(said, reviews.items, seen, np.random.default_rng(0))}
        for name, mentions in rows.items():
            assert reviews.aspects is not None
            scores = faithfulness(mentions, reviews.aspects)
            print(f"  {name:14}" + ", ".join(f"{metric} {value:.3f}" for metric, value in scores.items()))


def _recommend(options: argparse.Namespace) -> None:
    from recommenders.evaluation.offline import seen_mask
    from simenv.candidates import Candidates

    _, dataset, recommender = _load(options.folder)
    rows = {user: row for row, user in enumerate(dataset.user_ids)}
    unknown = [user for user in options.users if user not in rows]
    if unknown:
        raise ConfigError(
            f"--users {unknown[0]}: unknown in {dataset.name}; expected one of its {len(rows):,} user ids"
        )
    users = np.array([rows[user] for user in options.users])
    candidates = Candidates.of(dataset.n_items, out=seen_mask(dataset.interactions, users))
    slates = recommender.recommend(users, options.k, candidates)
    for user, items in zip(options.users, slates.item_ids, strict=True):
        print(f"user {user}")
        for place, item in enumerate(items[items >= 0], 1):
            print(f"  {place:2}. {dataset.catalog.titles[item]}")


def _diagnose(options: argparse.Namespace) -> None:
    import polars as pl

    from recommenders.evaluation.lists import list_events, popularity_row
    from recommenders.evaluation.offline import rank_metrics, ranks, seen_mask
    from simenv.candidates import Candidates
    from simenv.datasets.splits import leave_one_out
    from simenv.figures import plot_lift_against_history, plot_popularity_by_rank
    from simenv.metrics.reference import midrank_percentile
    from simenv.randomness import Key
    from simenv.registration import make as make_recommender

    baselines = {name: make_recommender(name, "recommender") for name in options.baselines}
    loaded = [_load(folder) for folder in options.folders]
    sources = {(card["dataset"], card["data"], card["full"]) for card, _, _ in loaded}
    if len(sources) > 1 or any(full for _, _, full in sources):
        raise ConfigError("diagnose: the models differ in data set or were trained with --full; expected one split")
    split = leave_one_out(loaded[0][1].interactions)
    fitted = {_arm(card["model"], place, loaded): model for place, (card, _, model) in enumerate(loaded)}
    for name in options.baselines:
        fitted[name] = baselines[name]
        fitted[name].fit(split.train, key=Key(loaded[0][0]["seed"]))
    percentile = midrank_percentile(split.train.item_counts())
    candidates = Candidates.of(split.train.n_items, out=seen_mask(split.train, split.users))
    lengths = split.train.user_counts()
    sums = np.bincount(split.train.users, percentile[split.train.items], minlength=len(lengths))
    own = (sums / np.maximum(lengths, 1)).astype(np.float32)
    frames, rows = [], {}
    for arm, recommender in fitted.items():
        slates = recommender.recommend(split.users, options.k, candidates).item_ids
        frames.append(list_events(slates, split.users, percentile, arm))
        hits = float(rank_metrics(ranks(recommender, split))["hr@10"].mean())
        row = popularity_row(slates, percentile, lengths[split.users], own[split.users])
        rows[arm] = {**row, "hr@10": hits}
    events = pl.concat(frames)
    table = pl.DataFrame([{"recommender": arm, **row} for arm, row in rows.items()])
    users = pl.DataFrame({"user": split.users, "interactions": lengths[split.users], "own": own[split.users]})
    by_history = plot_lift_against_history(events, users, "interactions", "own")
    by_history.axes[0].set_xlabel("interactions of the user (median of each tenth of the users)")
    what = f"{loaded[0][1].name}: top-{options.k} lists of {len(split.users):,} users, seen items left out"
    by_history.axes[0].set_title(what, loc="left", fontsize=13, fontweight="bold")
    options.out.mkdir(parents=True, exist_ok=True)
    table.write_csv(options.out / "popularity.csv")
    levels = {
        "their histories": float(own[split.users].mean()),
        "their next items": float(percentile[split.targets].mean()),
    }
    by_rank = plot_popularity_by_rank(events, levels=levels, title=what)
    by_rank.savefig(options.out / "popularity_by_rank.png", dpi=110)
    by_history.savefig(options.out / "popularity_by_history.png", dpi=110)
    print(f"popularity percentile of top-{options.k} lists, seen items left out, {len(split.users):,} users")
    print(", ".join(f"{name} {level:.3f}" for name, level in levels.items()))
    for arm, row in rows.items():
        print(f"  {arm:12}" + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    print(f"figures and table in {options.out}")


def _arm(model: str, place: int, loaded: list[Any]) -> str:
    """The model's name, with a number where several models share it."""
    same = [number for number, (card, _, _) in enumerate(loaded) if card["model"] == model]
    return model if len(same) == 1 else f"{model} {same.index(place) + 1}"


if __name__ == "__main__":
    sys.exit(main())
