"""train_user_lm: a small language model of users, trained from scratch (or from a local checkpoint) on histories.

Users, items and everybody's last interactions are held out, and the rest is learned from. The run directory has
`model/` - a folder for `llm.path`, with `unseen.json`, which the realism experiment judges by - and the loss by
step. With `user_lm.log` it learns from the pages that another run showed, not from pages made of histories.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agents.llm.memory import Retrieval
from agents.user_lm import Corpus, Example, HeldOut, LoggedPages, PromptOptions, ShownLog
from agents.user_lm.train import ItemVectors, LearningOptions, train
from experiments.running import course
from experiments.running.course import Run
from experiments.running.design import Design
from experiments.running.directory import config_of
from experiments.users.logged_pages import MODEL, judge, read_logs
from simenv.datasets.base import Dataset
from simenv.errors import ConfigError
from simenv.language_models.item_vectors import item_vectors

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning(LearningOptions):
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


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """How users are told, what is held out, and how it is learned."""

    agent: Mapping[str, Any]
    holdout: float
    user_lm: Mapping[str, Any]

    @cached_property
    def learning(self) -> Learning:
        """The options under `user_lm`."""
        names = {each.name for each in fields(Learning)}
        if unknown := sorted(set(self.user_lm) - names):
            raise ConfigError(f"user_lm.{unknown[0]}: no such option")
        if missing := sorted(names - set(self.user_lm)):
            raise ConfigError(f"user_lm.{missing[0]}: missing")
        return Learning(**self.user_lm)

    @cached_property
    def options(self) -> PromptOptions:
        """How the configured users are told to a model."""
        return prompt_options(self.agent)

    @cached_property
    def dataset(self) -> Dataset:
        """The configured data, nothing held out."""
        return self.design.load_dataset(self.design.seed)

    @cached_property
    def held(self) -> HeldOut:
        """What is not learned from."""
        return HeldOut.draw(
            self.dataset,
            users=self.learning.held_out_users,
            items=self.learning.held_out_items,
            share=self.holdout,
            seed=self.design.seed,
        )

    @cached_property
    def item_vectors(self) -> ItemVectors | None:
        """What a language model makes of the catalogue's texts, items held out among them."""
        source, catalog = self.learning.item_vectors, self.dataset.catalog
        if source is None:
            return None
        return ItemVectors(
            titles=catalog.titles, vectors=item_vectors(catalog, source, self.learning.hidden_size).astype(np.float32)
        )

    @cached_property
    def logs(self) -> dict[str, list[ShownLog]]:
        """The logs to learn from and to judge by, by option, where there are any."""
        learning = self.learning
        named = {"log": learning.log, "judged_log": learning.judged_log or learning.log}
        return {
            name: read_logs(Path(path), self.dataset, f"user_lm.{name}")
            for name, path in named.items()
            if path is not None
        }

    @cached_property
    def corpus(self) -> Corpus | LoggedPages:
        """What is learned from: pages that were shown, as many in a pass as there would be made ones; or made ones."""
        learning, seed = self.learning, self.design.seed
        training_part = self.held.training_part(self.dataset)
        if "log" in self.logs:
            pages = learning.moments * training_part.n_users
            logs = [log.training_part(self.held) for log in self.logs["log"]]
            return LoggedPages(logs, self.options, pages=pages, seed=seed)
        return Corpus(
            training_part,
            self.options,
            moments=learning.moments,
            window=learning.window,
            candidates=learning.candidates,
            ratios=learning.ratios,
            negatives=learning.negatives,
            lived=learning.lived,
            seed=seed,
        )

    def designs(self) -> dict[str, Design]:
        """Nothing is played."""
        return {}

    def check(self) -> None:
        """Read the options, the data, the logs and the items' vectors."""
        _ = self.learning, self.options, self.corpus, self.item_vectors


def play(settings: Settings, run: Run) -> None:
    """Train the model and judge it; ``resume`` goes on after the last whole pass."""
    trained = train(
        settings.corpus,
        settings.learning,
        run.path / "model",
        checkpoint=run.directory.checkpoint / "training" / "training.pt",
        judged=partial(_judge, settings, run),
        seed=settings.design.seed,
        show=run.progress,
        items=settings.item_vectors,
    )
    run.table("training", [{"pass": number + 1, "loss": loss} for number, loss in enumerate(trained.losses)])
    _write_unseen(settings, run.path / "model" / "unseen.json")
    run.card(dataset=settings.dataset.name, **_size(settings.corpus), **_losses(trained.losses), **trained.figures)


def score(settings: Settings, run: Run) -> None:
    """No claims: how real the users are is for `experiments.realism` to say."""


def _losses(losses: Sequence[float]) -> dict[str, float]:
    """Mean loss of the first and of the last pass, nats."""
    return {"first_loss": round(losses[0], 4), "last_loss": round(losses[-1], 4)}


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
    settings: Settings, run: Run, interests: Callable[[Sequence[Example]], list[NDArray[Any]]]
) -> dict[str, Any]:
    """Write ``tables/logged_pages.csv``, where there is a log to judge by; returns figures for the run card."""
    logs = settings.logs.get("judged_log")
    if logs is None:
        return {}
    pages, seed = settings.learning.judged_pages, settings.design.seed
    rows = judge(logs, settings.held, settings.options, interests, pages=pages, seed=seed)
    if rows:
        run.table("logged_pages", rows)
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


def _write_unseen(settings: Settings, path: Path) -> None:
    """What the model was not trained on, by the data set's own ids.

    The users of a log remember all interactions that its run did not hold out.
    """
    dataset, held, log = settings.dataset, settings.held, settings.learning.log
    unseen = {
        "dataset": dataset.name,
        "holdout": held.share if log is None else float(config_of(Path(log)).get("holdout", 0.0)),
        "users": [dataset.user_ids[row] for row in np.flatnonzero(held.users)],
        "items": [dataset.catalog.item_ids[row] for row in np.flatnonzero(held.items)],
    }
    path.write_text(json.dumps(unseen) + "\n")


def plot(settings: Settings, run: Run) -> None:
    """The loss by pass."""
    table = run.read_table("training")
    run.figure(
        "training",
        plot_loss(table["pass"].to_list(), table["loss"].to_list()),
        title="Training loss",
        caption="Mean loss of each pass over the training part: answers, and beside them titles and memories.",
    )


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
