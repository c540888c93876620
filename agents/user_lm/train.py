"""Training a user language model: tokenizer, network and the loop of `simenv.training` on pages that were answered.

The module does not know where pages come from, what a run directory is, nor how real the users become. torch loads when
`train` is called.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agents.llm.templates import COMPACT
from agents.user_lm.corpus import Corpus, Example
from agents.user_lm.exposure import LoggedPages
from simenv.errors import ConfigError
from simenv.language_models.local.gguf_file import model_folder
from simenv.language_models.quoting import quote

if TYPE_CHECKING:
    from agents.user_lm.batches import Batch

MAX_LENGTH = 2048  # tokens a model of ours takes

TITLE = 120  # characters of a title on a page

Opinions = Callable[[Sequence[Example]], list[NDArray[Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningOptions:
    """The network and how it learns: conf/experiment/train_user_lm.yaml says what each option means."""

    passes: int
    max_minutes: float | None
    vocabulary: int
    hidden_size: int
    layers: int
    heads: int
    dropout: float
    learning_rate: float
    weight_decay: float
    language: float
    batch_tokens: int
    checkpoint: str | None
    item_vectors: str | None
    lora_rank: int
    compile: bool
    device: str

    def __post_init__(self) -> None:
        for name in ("passes", "vocabulary", "hidden_size", "layers", "heads", "batch_tokens", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"user_lm.{name}={getattr(self, name)}: expected a positive number")
        if self.hidden_size % (2 * self.heads):
            raise ConfigError(
                f"user_lm.hidden_size={self.hidden_size}: expected an even number for each of {self.heads} heads"
            )
        for name in ("language", "lora_rank", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"user_lm.{name}={getattr(self, name)}: expected a number >= 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"user_lm.dropout={self.dropout}: expected a share in [0, 1)")
        if self.compile and not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")):
            raise ConfigError("user_lm.compile=true: needs a C++ compiler; found neither $CXX nor g++ nor c++")
        if self.lora_rank and self.checkpoint is None:
            raise ConfigError(f"user_lm.lora_rank={self.lora_rank}: adapters need a user_lm.checkpoint to adapt")
        if self.item_vectors is not None and self.checkpoint is not None:
            raise ConfigError(
                f"user_lm.item_vectors={self.item_vectors}: they are where a new model starts; expected no "
                f"user_lm.checkpoint beside them, not {self.checkpoint}"
            )
        if self.checkpoint is not None and not (model_folder(self.checkpoint) / "config.json").is_file():
            raise ConfigError(
                f"user_lm.checkpoint={self.checkpoint}: no config.json; expected a save_pretrained folder, a GGUF file "
                "or smollm2"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemVectors:
    """What is known of a catalogue's items beside who picked them, also of those nobody is known to have picked."""

    titles: tuple[str, ...]
    vectors: NDArray[np.float32]  # (n_items, d)

    @property
    def quoted(self) -> list[str]:
        """The titles as they stand between quotation marks on a page."""
        return [quote(title, TITLE)[1:-1] for title in self.titles]

    def by_token(self, tokenizer: Any) -> NDArray[np.float32]:
        """(n_tokens, d): of tokens that are titles, the mean of the vectors of the items of that name; else zero."""
        from agents.user_lm.vocabulary import title_tokens

        found = np.zeros((len(tokenizer), self.vectors.shape[1]), np.float32)
        times = np.zeros((len(tokenizer), 1), np.float32)
        for token, vector in zip(title_tokens(tokenizer, self.quoted), self.vectors, strict=True):
            if token is not None:
                found[token] += vector
                times[token] += 1.0
        return (found / np.maximum(times, 1.0)).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What training leaves beside the folder of the model."""

    losses: list[float]  # mean of each pass, nats
    figures: dict[str, Any]  # for a run card


def train(
    corpus: Corpus | LoggedPages,
    options: LearningOptions,
    folder: Path,
    *,
    checkpoint: Path,
    judged: Callable[[Opinions], dict[str, Any]],
    seed: int,
    show: bool,
    items: ItemVectors | None = None,
) -> Trained:
    """Train, and write the model into `folder`.

    Args:
        corpus: what is learned from.
        options: the network, and how.
        folder: for the weights and the tokenizer, in `save_pretrained`'s form.
        checkpoint: a file to resume from and to write to after each pass.
        judged: given the model's opinions, as a function of examples, returns further figures.
        seed: of all draws.
        show: a progress bar.
        items: where titles' embeddings begin, and all there is of titles never met; a new network only.
    """
    from agents.user_lm.batches import Reader  # torch loads here
    from agents.user_lm.embeddings import co_occurrence_vectors
    from agents.user_lm.network import Objective, describe, embed, interests, save, settle
    from simenv.training.loop import Training, TrainingOptions, pick_device, seeded

    device = pick_device(options.device)
    first = list(corpus.examples(0))
    with seeded(seed, device):
        tokenizer, network = _network(corpus, first, options, items)
    network.to(device)
    told = options.checkpoint is not None and corpus.options.prompts == COMPACT
    reader = Reader(tokenizer, corpus.prompts.render("system"), told=told)
    encoded = reader.encode(first)
    described = None
    if options.checkpoint is None:
        memories = [one.ids[reader.n_prefix : one.page] for one in encoded]
        vectors = co_occurrence_vectors(memories, len(tokenizer), options.hidden_size, seed)
        embed(network, vectors)
        if items is not None:
            described = describe(network, items.by_token(tokenizer), np.abs(vectors).sum(axis=1) > 0)
    objective = Objective(network, reader, language=options.language, compiled=options.compile, described=described)

    def batches(number: int) -> Iterator[Batch]:
        examples = first if number == 0 else list(corpus.examples(number))
        return reader.batches(examples, options.batch_tokens, np.random.default_rng([seed, number, 0xBA7C]))

    how = TrainingOptions(
        epochs=options.passes,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        max_minutes=options.max_minutes,
    )
    steps = len(reader.groups(first, encoded, options.batch_tokens, np.random.default_rng(0)))
    progress = Training(network, objective, how, seed=seed, checkpoint=checkpoint, show=show).run(batches, steps)
    judgement = judged(partial(interests, objective, reader, tokens=options.batch_tokens))
    if described is not None:
        settle(network, described)
    save(network, tokenizer, folder)
    return Trained(
        losses=progress.losses,
        figures=judgement
        | {
            "passes": progress.epoch,
            "steps": progress.step,
            "examples_a_pass": len(first),
            "answers": progress.samples,
            "training_seconds": round(progress.seconds, 1),
            "answers_a_second": round(progress.samples / max(progress.seconds, 1e-9)),
            "parameters": sum(each.numel() for each in network.parameters()),
            "vocabulary": len(tokenizer),
            "prompt_tokens": round(float(np.mean([len(one.ids) for one in encoded])), 1),
        },
    )


def _network(
    corpus: Corpus | LoggedPages, examples: Sequence[Example], options: LearningOptions, items: ItemVectors | None
) -> tuple[Any, Any]:
    """Tokenizer and network: new ones for these examples, or a checkpoint's."""
    from agents.user_lm.batches import answer_texts
    from agents.user_lm.network import load_network, new_network
    from agents.user_lm.vocabulary import learn_vocabulary

    if options.checkpoint is not None:
        return load_network(model_folder(options.checkpoint), lora_rank=options.lora_rank)
    tokenizer = learn_vocabulary(
        (each.person + each.page for each in examples),
        size=options.vocabulary,
        system=corpus.prompts.render("system"),
        answers=list(dict.fromkeys([*answer_texts(26), *answer_texts(max(26, corpus.candidates))])),
        max_length=MAX_LENGTH,
        titles=[] if items is None else items.quoted,
    )
    network = new_network(
        tokenizer,
        hidden_size=options.hidden_size,
        layers=options.layers,
        heads=options.heads,
        dropout=options.dropout,
        max_length=MAX_LENGTH,
    )
    return tokenizer, network
