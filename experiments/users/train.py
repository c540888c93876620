"""train_user_lm: a small language model of users, trained from scratch (or from a local checkpoint) on histories.

`run(config)` holds users, items and everybody's last interactions out, trains on the rest, and writes a run directory
with `model/` - a folder for `llm.path`, with `unseen.json`, which the realism experiment judges by - the loss by
step, and a page. With `user_lm.log` it learns from the pages that another run showed, not from pages made of histories.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agents.llm.memory import Retrieval
from agents.user_lm import Corpus, Example, HeldOut, LoggedPages, PromptOptions, ShownLog
from agents.user_lm.train import LearningOptions, train
from experiments.bias_loop import NOT_RESULTS, design_from
from experiments.replications.targets import config_of, save_figure, write_table
from experiments.running.directory import RunDirectory, card_of_machine
from experiments.users.logged_pages import MODEL, judge, read_logs
from simenv.datasets.base import Dataset
from simenv.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(LearningOptions):
    """What is learned, and how: conf/experiment/train_user_lm.yaml says what each option means."""

    held_out_users: float
    held_out_items: float
    moments: int
    window: float
    candidates: int
    ratios: Sequence[int]
    negatives: str
    lived: float
    log: str | None
    judged_log: str | None
    judged_pages: int

    def __post_init__(self) -> None:
        LearningOptions.__post_init__(self)  # slots leave zero-argument super() without its class
        for name in ("moments", "judged_pages"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"user_lm.{name}={getattr(self, name)}: expected a positive number")


def run(config: Mapping[str, Any]) -> Path:
    """Train the model of a resolved configuration and write the run directory; returns the directory.

    Raises:
        SimenvError: bad configuration, data or run directory.
        KeyboardInterrupt: stopped from outside; ``resume`` goes on after the last whole pass.
    """
    given = dict(config["user_lm"])
    unknown = sorted(set(given) - {each.name for each in fields(Settings)})
    if unknown:
        raise ConfigError(f"user_lm.{unknown[0]}: no such option")
    settings = Settings(**given)
    options = prompt_options(config["agent"])
    dataset = design_from(config).load_dataset(config["seed"])
    held = HeldOut.draw(
        dataset,
        users=settings.held_out_users,
        items=settings.held_out_items,
        share=config["holdout"],
        seed=config["seed"],
    )
    logs = {
        name: read_logs(Path(path), dataset, f"user_lm.{name}")
        for name, path in (("log", settings.log), ("judged_log", settings.judged_log or settings.log))
        if path is not None
    }
    corpus = _corpus(held.training_part(dataset), held, logs.get("log"), options, settings, seed=config["seed"])
    kept = {name: value for name, value in config.items() if name not in NOT_RESULTS} | {"recommenders": {}}
    folder = RunDirectory(Path(config["run_dir"]), kept, resume=bool(config["resume"]))
    if folder.complete:
        return folder.path
    with folder.locked():
        started = time.time()
        judged = partial(_judge, logs.get("judged_log"), held, options, settings, folder, seed=config["seed"])
        trained = train(
            corpus,
            settings,
            folder.path / "model",
            checkpoint=folder.checkpoint / "training" / "training.pt",
            judged=judged,
            seed=config["seed"],
            show=bool(config["progress"]),
        )
        losses = [{"pass": number + 1, "loss": loss} for number, loss in enumerate(trained.losses)]
        write_table(folder.path / "tables" / "training.csv", losses)
        _write_unseen(dataset, held, folder.path / "model" / "unseen.json", log=settings.log)
        card = {
            "question": config["question"],
            "command": config["command"],
            "dataset": dataset.name,
            **_size(corpus),
            **score(trained.losses),
            **trained.figures,
            **card_of_machine(started),
        }
        (folder.path / "run_card.json").write_text(json.dumps(card, indent=1) + "\n")
        plot(folder.path)
        folder.finish()
    return folder.path


def _corpus(
    training_part: Dataset,
    held: HeldOut,
    logs: Sequence[ShownLog] | None,
    options: PromptOptions,
    settings: Settings,
    *,
    seed: int,
) -> Corpus | LoggedPages:
    """What is learned from: pages that were shown, as many in a pass as there would be made ones; or made ones."""
    if logs is not None:
        pages = settings.moments * training_part.n_users
        return LoggedPages([log.training_part(held) for log in logs], options, pages=pages, seed=seed)
    return Corpus(
        training_part,
        options,
        moments=settings.moments,
        window=settings.window,
        candidates=settings.candidates,
        ratios=settings.ratios,
        negatives=settings.negatives,
        lived=settings.lived,
        seed=seed,
    )


def _size(corpus: Corpus | LoggedPages) -> dict[str, int]:
    """Of what was learned from, for the run card."""
    if isinstance(corpus, Corpus):
        dataset = corpus.dataset
        return {"n_users": dataset.n_users, "n_items": dataset.n_items, "n_interactions": len(dataset.interactions)}
    return {
        "n_users": len(np.unique(np.concatenate([log.users for log in corpus.logs]))),
        "n_items": corpus.logs[0].dataset.n_items,
        "n_logs": len(corpus.logs),
        "n_pages": corpus.n_pages,
    }


def _judge(
    logs: Sequence[ShownLog] | None,
    held: HeldOut,
    options: PromptOptions,
    settings: Settings,
    folder: RunDirectory,
    interests: Callable[[Sequence[Example]], list[NDArray[Any]]],
    *,
    seed: int,
) -> dict[str, Any]:
    """Write ``tables/logged_pages.csv``, where there is a log to judge by; returns figures for the run card."""
    if logs is None:
        return {}
    rows = judge(logs, held, options, interests, pages=settings.judged_pages, seed=seed)
    if rows:
        write_table(folder.path / "tables" / "logged_pages.csv", rows)
    aucs = {row["setting"]: round(row["value"], 4) for row in rows if (row["model"], row["metric"]) == (MODEL, "auc")}
    return {"auc_on_logged_pages": aucs}


def prompt_options(agent: Mapping[str, Any]) -> PromptOptions:
    """How the configured users are told to a model; nothing is asked yet, so no language model is needed.

    Raises:
        ConfigError: the agent is not one that a language model drives, or its prompts need tastes.
    """
    if "retrieval" not in agent:
        raise ConfigError("agent: expected agent=user-lm, or one with the options of agents.llm.LLMUser")
    retrieval = Retrieval(**{name: value for name, value in agent["retrieval"].items() if not name.startswith("_")})
    if retrieval.similarity:
        raise ConfigError(
            f"agent.retrieval.similarity={retrieval.similarity:g}: expected 0; what is similar is learned from "
            "everybody's whole history, and would tell the model what comes next"
        )
    if agent["titles"] != "real":
        raise ConfigError(f"agent.titles={agent['titles']}: expected real; the model learns what titles mean")
    embedded = agent.get("embedded") or {}
    return PromptOptions(
        retrieval=retrieval,
        memory_size=int(embedded.get("memory_size", PromptOptions().memory_size)),
        attributes=tuple(agent["attributes"]),
        synopsis_length=agent["synopsis_length"],
        conformity=agent["conformity"],
        base_rate=agent["base_rate"],
        digest_every=agent["digest_every"],
        prompts=agent["prompts"],
    )


def score(losses: Sequence[float]) -> dict[str, float]:
    """Mean loss of the first and of the last pass, nats; how real the users are is for `experiments.realism` to say."""
    return {"first_loss": round(losses[0], 4), "last_loss": round(losses[-1], 4)}


def _write_unseen(dataset: Dataset, held: HeldOut, path: Path, *, log: str | None) -> None:
    """What the model was not trained on, by the data set's own ids.

    The users of a log remember all interactions that its run did not hold out.
    """
    unseen = {
        "dataset": dataset.name,
        "holdout": held.share if log is None else float(config_of(Path(log)).get("holdout", 0.0)),
        "users": [dataset.user_ids[row] for row in np.flatnonzero(held.users)],
        "items": [dataset.catalog.item_ids[row] for row in np.flatnonzero(held.items)],
    }
    path.write_text(json.dumps(unseen) + "\n")


def plot(folder: Path) -> Path:
    """The figure of the loss and the page, from the directory's files alone."""
    import polars as pl

    from simenv.report import build

    table = pl.read_csv(folder / "tables" / "training.csv")
    save_figure(
        folder,
        "training",
        plot_loss(table["pass"].to_list(), table["loss"].to_list()),
        title="Training loss",
        caption="Mean loss of each pass over the training part: answers, and beside them titles and memories.",
    )
    return build(folder)


def plot_loss(passes: list[int], losses: list[float]) -> Figure:
    """Loss by pass."""
    from matplotlib.ticker import MaxNLocator

    from simenv.figures.style import arm_styles, small_multiples

    style = arm_styles(["user language model"])["user language model"]
    figure, (panel,) = small_multiples(1)
    panel.plot(passes, losses, color=style.color, marker=style.marker)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("pass")
    panel.set_ylabel("loss, nats")
    return figure
