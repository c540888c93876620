"""Generative recommenders: an index, a trie, a network that writes item codes, and the Recommender they make.

`GenerativeRecommender` holds what `p5-fast` and `p5` share: the frozen index, exact and beam decoding, fine-tuning with
replay, saving. It does not know what happens inside the network, nor what a round of the platform is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recommenders.base import Recommender
from recommenders.p5.concentration import code_concentration
from recommenders.p5.indexes.base import IndexSource, ItemIndex
from recommenders.p5.indexes.build import build_index
from recommenders.p5.networks.fast import FastModel, FastOptions
from recommenders.p5.trie import EXACT_LIMIT, PathScorer, Trie, beam_items, item_scores
from simenv.candidates import Candidates
from simenv.datasets.base import Catalog, Dataset, IntArray, Interactions, LongArray
from simenv.errors import ConfigError, RunDirectoryError
from simenv.events import Events
from simenv.randomness import Key, Purpose, generator
from simenv.records import record
from simenv.slates import Slates
from simenv.training.histories import Histories
from simenv.training.loop import Progress, Training, TrainingOptions, pick_device, validation_ndcg
from simenv.training.processes import Processes

FINE_TUNING_RATE = 0.2  # share of the learning rate at which `update` starts
FAST_TRAINING = TrainingOptions(epochs=12, batch_size=16, learning_rate=4e-3, patience=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """How items are spelt."""

    name: str = "collaborative+independent"  # see `recommenders.p5.indexes.build.build_index`
    spare: int = 8  # free leaves per node, for items that get their first interactions later
    options: Mapping[str, Any] = field(default_factory=dict)  # of the indexer


@dataclass(frozen=True, slots=True, kw_only=True)
class Updating:
    """What `update` does: passes over what is new, with old rows mixed in."""

    epochs: int = 1  # over the new interactions; 0 = weights stay
    replay: float = 1.0  # rows of old interactions per row of new ones

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.replay < 0:
            raise ConfigError(f"updating: epochs={self.epochs}, replay={self.replay}; expected at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How slates are found among the codes."""

    kind: str = "auto"  # exact | beam | auto: exact where the trie has at most 2,000 internal nodes
    beam_width: int = 50  # paths kept in beam mode; at least twice the slate size

    def __post_init__(self) -> None:
        if self.kind not in ("auto", "exact", "beam"):
            raise ConfigError(f"decoding.kind={self.kind}: expected auto, exact or beam")
        if self.beam_width < 1:
            raise ConfigError(f"decoding.beam_width={self.beam_width}: expected at least 1")


class GenerativeRecommender(Recommender):
    """Recommends items by writing their codes, constrained to codes that exist.

    Args:
        index: how items are spelt: an `Index`, a mapping of its fields, or the name of an indexer.
        training: how to train; with `early_stop` the held-out items are read as history when recommending.
        updating: what `update` does, see `Updating`.
        decoding: how slates are found, see `Decoding`.
        device: `auto`, or as torch names it.
        checkpoint: a file to write to after each epoch of `fit`, and to resume from.
        show_progress: print a bar while fitting.
    """

    score_batch: ClassVar[int] = 64

    def __init__(
        self,
        *,
        index: Index | Mapping[str, Any] | str | None = None,
        training: TrainingOptions,
        updating: Updating | Mapping[str, Any] | None = None,
        decoding: Decoding | Mapping[str, Any] | None = None,
        device: str | None = "auto",
        checkpoint: Path | str | None = None,
        show_progress: bool = False,
    ) -> None:
        self.spelling = record(Index(), {"name": index} if isinstance(index, str) else index, "index")
        self.training = training
        self.updating = record(Updating(), updating, "updating")
        self.decoding = record(Decoding(), decoding, "decoding")
        self.device = pick_device(device)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.show_progress = show_progress
        self.catalog: Catalog | None = None
        self.progress = Progress()

    def bind_dataset(self, dataset: Dataset) -> None:
        """Let the indexer and the prompts see titles, genres and texts."""
        self.catalog = dataset.catalog

    # -- for subclasses ---------------------------------------------------------------------------------------

    history: int  # items the network reads

    @abstractmethod
    def _network(self) -> nn.Module:
        """A fresh network for `self.index`, on the CPU."""

    @abstractmethod
    def _reindexed(self) -> None:
        """Let the network know that `self.index` has new codes."""

    @abstractmethod
    def _loss(self, rows: Any) -> tuple[Tensor, int]:
        """Mean loss of a batch, and its number of targets."""

    @abstractmethod
    def _epoch_batches(self, histories: Histories, rng: np.random.Generator) -> Iterator[Any]:
        """One pass over all targets of these histories, in batches."""

    @abstractmethod
    def _steps(self, histories: Histories) -> int:
        """Batches of one pass, about."""

    @abstractmethod
    def _scorer(self, histories: Histories, users: LongArray) -> PathScorer:
        """The network, holding these users."""

    @abstractmethod
    def _widest(self) -> int:
        """Numbers the network holds per user and node while scoring, to bound memory."""

    # -- learning ---------------------------------------------------------------------------------------------

    def _fit(self, log: Interactions, key: Key) -> None:
        rng = generator(key, Purpose.FIT)
        full = Histories.from_log(log)
        seen, users, targets = (
            full.without_last() if self.training.early_stop else (full, np.zeros(0, np.int64), log.items[:0])
        )
        source = IndexSource(histories=seen, catalog=self.catalog)
        index = build_index(self.spelling.name, source, rng, spare=self.spelling.spare, **self.spelling.options)
        self.index, rng = Processes(self.device).as_main((index, rng))  # a GPU's sums differ from run to run
        self.histories = full
        self._build(int(rng.integers(2**62)))
        seed = int(rng.integers(2**62))
        run = Training(
            self.network,
            self._loss,
            self.training,
            seed=seed % 2**31,
            score=(lambda: self.validate(seen, users, targets)) if len(users) else None,
            checkpoint=self.checkpoint,
            show=self.show_progress,
        )
        self.progress = run.run(
            lambda epoch: self._epoch_batches(seen, np.random.default_rng([seed, epoch])), self._steps(seen)
        )

    def validate(self, histories: Histories, users: LongArray, targets: IntArray) -> float:
        """What early stopping maximises: NDCG@10 of held-out items, (m,) of these users (m,), after these histories."""
        return validation_ndcg(self.item_scores, histories, users, targets)

    def _build(self, seed: int) -> None:
        """Trie and fresh network of the current index."""
        self.trie = Trie.build(self.index.codes, self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**31)
            self.network = self._network().to(self.device)
        self.network.eval()

    def _update(self, new: Interactions, key: Key) -> None:
        """Fine-tune from the last weights on the new interactions and a replay of old ones; the index stays as it is.

        Items with their first interactions move to a spare leaf beside the item they co-occur with most.
        """
        if len(new) == 0 or self.updating.epochs == 0:
            self.histories = Histories.from_log(self._log)
            return
        rng = generator(key, Purpose.FIT)
        cold = np.bincount(self.histories.items, minlength=self.n_items) == 0
        self.histories = Histories.from_log(self._log)
        self._place(np.unique(new.items[cold[new.items]]))
        recent, old = self._recent(new), self.histories
        seed = int(rng.integers(2**31))

        def batches(epoch: int) -> Iterator[Any]:
            draw = np.random.default_rng([seed, epoch])
            yield from self._mixed(recent, old, draw)

        options = replace(
            self.training,
            epochs=self.updating.epochs,
            learning_rate=FINE_TUNING_RATE * self.training.learning_rate,
            max_minutes=None,
        )
        steps = sum(1 for _ in batches(0))
        Training(self.network, self._loss, options, seed=seed).run(batches, steps)

    def _recent(self, new: Interactions) -> Histories:
        """Of every user with new interactions, the end of the history that holds them and what went before."""
        users = np.flatnonzero(new.user_counts() > 0)
        length = np.minimum(self.histories.lengths[users], np.maximum(new.user_counts()[users] + 1, self.history))
        ends = self.histories.ptr[users + 1]
        rows = np.concatenate([np.arange(end - n, end) for end, n in zip(ends, length)])
        return replace(
            self.histories,
            ptr=np.concatenate(([0], np.cumsum(length))),
            items=self.histories.items[rows],
            ratings=self.histories.ratings[rows],
            times=None,
        )

    def _mixed(self, recent: Histories, old: Histories, rng: np.random.Generator) -> Iterator[Any]:
        """Batches of new rows, each followed by `replay` batches of old ones on average."""
        replayed = self._epoch_batches(old, rng)
        owed = 0.0
        for batch in self._epoch_batches(recent, rng):
            yield batch
            owed += self.updating.replay
            while owed >= 1:
                owed -= 1
                again = next(replayed, None)
                if again is not None:
                    yield again

    def _place(self, items: IntArray) -> None:
        """Move items to spare leaves beside their neighbours, as long as there is room; a new version of the index."""
        if len(items) == 0 or self.index.spare == 0:
            return
        from recommenders.p5.indexes.clustering import nearest_by_cooccurrence

        neighbours = nearest_by_cooccurrence(IndexSource(histories=self.histories), items)
        self.index = self.index.place(items, neighbours)
        self.trie = Trie.build(self.index.codes, self.device)
        self._reindexed()

    def _remember(self) -> None:
        self.histories = Histories.from_log(self._log)

    # -- recommending -----------------------------------------------------------------------------------------

    @property
    def is_exact(self) -> bool:
        """Whether slates come from the exact ranking of the whole catalogue."""
        return self.decoding.kind == "exact" or (self.decoding.kind == "auto" and self.trie.n_nodes <= EXACT_LIMIT)

    @torch.no_grad()
    def item_scores(self, histories: Histories, users: LongArray) -> Tensor:
        """Log-probability of every item as the next one, (B, n_items), after these histories, on the device."""
        size = self._scored_at_once(len(users))
        parts = [
            item_scores(self.trie, self._scorer(histories, users[start : start + size]))
            for start in range(0, len(users), size)
        ]
        return torch.cat(parts)

    def _scored_at_once(self, n: int) -> int:
        """How many of n users the whole catalogue is scored for at once, to bound memory."""
        widest = max(level.child_nodes.numel() + level.n_nodes * self._widest() for level in self.trie.levels)
        at_once = 2**23 if self.device.type == "cpu" else 2**27  # a CPU is quicker while all of it fits its cache
        return max(1, min(n, at_once // widest))

    def score_histories(self, histories: Histories, users: LongArray) -> NDArray[np.float32]:
        """`item_scores` on the CPU."""
        return self.item_scores(histories, users).cpu().numpy()

    def _score(self, users: LongArray) -> NDArray[np.float32]:
        return self.score_histories(self.histories, users)

    def _recommend(self, users: LongArray, k: int, candidates: Candidates, key: Key) -> Slates:
        if self.is_exact:
            return super()._recommend(users, k, candidates, key)
        items = np.empty((len(users), k), np.int32)
        start = 0
        while start < len(users):
            large = len(users) - start >= 4 * self.score_batch
            size = 4 * self.score_batch if large else self.score_batch  # two shapes, not any
            rows = slice(start, min(start + size, len(users)))
            start += size
            allowed = candidates.rows(rows).mask()
            asked = np.resize(users[rows], size)
            items[rows] = self.beam(asked, k, np.resize(allowed, (size, self.n_items)))[: len(users[rows])]
        return Slates(item_ids=items)

    @torch.no_grad()
    def beam(self, users: LongArray, k: int, allowed: NDArray[np.bool_] | None = None) -> IntArray:
        """The `k` best items by beam search, (B, k); -1 where the beam holds no further allowed one."""
        mask = None if allowed is None else torch.as_tensor(allowed, device=self.device)
        found, _ = beam_items(self.trie, self._scorer(self.histories, users), k, mask, self.decoding.beam_width)
        return found.cpu().numpy().astype(np.int32)

    def measures(self, events: Events) -> dict[str, float]:
        """Of the impressions of a round: how concentrated what was shown is in the space of codes."""
        return code_concentration(self.index.codes, events.item)

    # -- saving -----------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_model

        super().save(folder)
        self.index.save(Path(folder) / "index.json")
        save_model(self.network, str(Path(folder) / "model.safetensors"))

    def load(self, folder: Path) -> None:
        self._folder = Path(folder)
        super().load(folder)

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_model

        self.index = ItemIndex.load(self._folder / "index.json")
        self.histories = Histories.from_log(self._log)
        self._build(0)
        try:
            load_model(self.network, str(self._folder / "model.safetensors"), device=str(self.device))
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise RunDirectoryError(f"{self._folder}: no readable weights of {self.name} ({reason})") from error

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_folder", None)
        return state


class P5Fast(GenerativeRecommender):
    """p5-fast: pooled item codes, a causal encoder, a depth decoder; every position of a history is a target.

    Args:
        network: its shape, and how much it reads; see `recommenders.p5.networks.fast.FastOptions`.
        training: a mapping changes the defaults of `FAST_TRAINING`.
        index, updating, decoding, device, checkpoint, show_progress: see `GenerativeRecommender`.
    """

    name = "p5-fast"
    network: FastModel

    def __init__(
        self,
        *,
        network: FastOptions | Mapping[str, Any] | None = None,
        training: TrainingOptions | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(training=record(FAST_TRAINING, training, "training"), **options)
        self.options = record(FastOptions(), network, "network")
        self.history = self.options.history

    def _network(self) -> FastModel:
        return FastModel(torch.as_tensor(self.index.codes), self.index.sizes, self.options)

    def _reindexed(self) -> None:
        self.network.codes.copy_(torch.as_tensor(self.index.codes))

    def _loss(self, rows: Any) -> tuple[Tensor, int]:
        n_targets = int((rows >= 0).sum())
        rows = torch.as_tensor(rows).to(self.device, non_blocking=True)
        return self.network.loss(rows, self.trie), n_targets

    def _epoch_batches(self, histories: Histories, rng: np.random.Generator) -> Iterator[LongArray]:
        return histories.batches(self.history, self.training.batch_size, rng)

    def _steps(self, histories: Histories) -> int:
        return -(-len(histories.windows(self.history, np.random.default_rng(0))[0]) // self.training.batch_size)

    def _scorer(self, histories: Histories, users: LongArray) -> PathScorer:
        items = torch.as_tensor(histories.last(users, self.history), device=self.device)
        return self.network.scorer(items)

    def _widest(self) -> int:
        return 4 * self.options.embedding_size

    @torch.no_grad()
    def user_states(self, users: NDArray[Any]) -> NDArray[np.float32]:
        """What the network knows of each user, (B, d): the encoder's state after the whole history."""
        self._require_fit()
        items = torch.as_tensor(self.histories.last(users, self.history), device=self.device)
        return self.network.scorer(items).users.float().cpu().numpy()
