"""What every sequence model in torch shares: item embeddings, the losses of the next item, fitting and scoring.

Histories in, scores of all items out. The module does not know any architecture, nor item codes or texts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recommenders.base import Recommender, check_options
from simenv import checks
from simenv.datasets.base import IntArray, Interactions, LongArray
from simenv.errors import ConfigError
from simenv.randomness import Key, Purpose, generator
from simenv.records import record
from simenv.training.histories import Histories
from simenv.training.loop import Progress, Training, TrainingOptions, pick_device, validation_ndcg

TRAINING = TrainingOptions(learning_rate=2e-3, patience=3)
NEGATIVES = {"cross_entropy": 0, "sampled_softmax": 256, "bce": 1, "bpr": 1}  # loss -> items drawn by default


class SequenceNetwork(nn.Module):
    """Item embeddings around an encoder of histories; subclasses define the encoder and the loss.

    Embeddings start at a deviation of 1 / d, and are read times the root of d (Kang and McAuley's code; Vaswani et al.
    2017, section 3.4): scores of all items start about alike, and what is read has the size of learned positions.
    """

    scale: Tensor

    def __init__(self, n_items: int, size: int) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items + 2, size)  # two more: mask, padding
        self.bias = nn.Parameter(torch.zeros(n_items))
        self.n_items, self.mask, self.padding = n_items, n_items, n_items + 1
        self.register_buffer("scale", torch.tensor(size**0.5))
        nn.init.normal_(self.items.weight, std=1 / size)

    def embed(self, rows: Tensor) -> Tensor:
        """(B, T) items, -1 after the end, to (B, T, d)."""
        return self.items(rows.masked_fill(rows < 0, self.padding)) * self.scale

    @property
    def output(self) -> Tensor:
        """What states are multiplied with, (n_items or more, d): the item embeddings themselves."""
        return self.items.weight

    def logits(self, states: Tensor) -> Tensor:
        """(..., d) to (..., n_items)."""
        return states @ self.output[: self.n_items].T + self.bias

    @abstractmethod
    def loss(self, rows: Tensor, users: Tensor) -> Tensor:
        """Mean loss of the items to predict in (B, T + 1) rows of these users (B,), -1 after the end."""

    @abstractmethod
    def user_states(self, rows: Tensor, users: Tensor | None = None) -> Tensor:
        """(B, T) histories, -1 after the end, of these users to (B, d) states that score the next item."""


class NextItemNetwork(SequenceNetwork):
    """Every position predicts the item after it, by one of four losses.

    `cross_entropy` is a softmax over the catalogue; `sampled_softmax` one over the target and `negatives` uniformly
    drawn items, the same for a whole batch; `bce` the binary cross-entropy of the target and of `negatives` items drawn
    for it alone (Kang and McAuley 2018, eq. 7); `bpr` the same draws, ranked below the target (Rendle et al. 2009).
    """

    kind = "cross_entropy"
    negatives = 0

    @abstractmethod
    def encode(self, rows: Tensor, users: Tensor | None = None) -> Tensor:
        """(B, T) to (B, T, d); position t must not see what comes after it."""

    def loss(self, rows: Tensor, users: Tensor | None = None) -> Tensor:
        states, targets = self.encode(rows[:, :-1], users)[rows[:, 1:] >= 0], rows[:, 1:][rows[:, 1:] >= 0]
        if self.kind == "cross_entropy":
            return F.cross_entropy(self.logits(states).float(), targets)
        return self.sampled_loss(states, targets) if self.kind == "sampled_softmax" else self.pair_loss(states, targets)

    def sampled_loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy among each target and the same uniformly drawn items for all; a target drawn again is left out.

        Args:
            states: (N, d).
            targets: (N,).
        """
        drawn = torch.randint(self.n_items, (self.negatives,), device=states.device)
        own = (states * self.output[targets]).sum(dim=1) + self.bias[targets]
        others = states @ self.output[drawn].T + self.bias[drawn]
        others = others.masked_fill(drawn == targets[:, None], -torch.inf)
        logits = torch.cat([own[:, None], others], dim=1).float()
        return F.cross_entropy(logits, torch.zeros_like(targets))

    def pair_loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """`bce` or `bpr` against uniformly drawn items, those that hit the target left out; arguments as above."""
        drawn = torch.randint(self.n_items, (len(targets), self.negatives), device=states.device)
        own = (states * self.output[targets]).sum(dim=1).float() + self.bias[targets]
        others = torch.einsum("nd,nkd->nk", states, self.output[drawn]).float() + self.bias[drawn]
        counted = (drawn != targets[:, None]).float()
        if self.kind == "bpr":
            return -(counted * F.logsigmoid(own[:, None] - others)).sum() / counted.sum().clamp(min=1)
        return -(F.logsigmoid(own).sum() + (counted * F.logsigmoid(-others)).sum()) / len(targets)

    def user_states(self, rows: Tensor, users: Tensor | None = None) -> Tensor:
        ends = (rows >= 0).sum(dim=1).clamp(min=1) - 1
        return self.encode(rows, users)[torch.arange(len(rows), device=rows.device), ends]


class SequenceRecommender(Recommender):
    """Windows of histories in, scores of all items out. `update` refits. New users get the most popular items.

    Args:
        embedding_size: width of item vectors and states.
        layers: depth of the encoder.
        dropout: share of features dropped.
        history: items read, the most recent ones.
        training: see `simenv.training.loop.TrainingOptions`; a mapping changes the defaults of `TRAINING`.
        device: `auto`, or as torch names it.
        show_progress: print a bar while fitting.
    """

    popularity_for_new_users: ClassVar[bool] = True
    keeps_shortlists: ClassVar[bool] = True
    score_batch: ClassVar[int] = 64

    def __init__(
        self,
        *,
        embedding_size: int = 64,
        layers: int = 2,
        dropout: float = 0.2,
        history: int = 50,
        training: TrainingOptions | Mapping[str, Any] | None = None,
        device: str | None = "auto",
        show_progress: bool = False,
    ) -> None:
        check_options(self.name, low=1, whole=True, embedding_size=embedding_size, layers=layers, history=history)
        check_options(self.name, high=1, open_high=True, dropout=dropout)
        self.embedding_size, self.layers, self.dropout, self.history = embedding_size, layers, dropout, history
        self.training = record(TRAINING, training, "training")
        self.device, self.show_progress = pick_device(device), show_progress
        self.progress = Progress()

    @abstractmethod
    def _network(self) -> SequenceNetwork:
        """A fresh network for `self.n_items`."""

    def _fit(self, log: Interactions, key: Key) -> None:
        rng = generator(key, Purpose.FIT)
        self.histories = Histories.from_log(log)
        seen, users, targets = self.histories, np.zeros(0, np.int64), log.items[:0]
        if self.training.early_stop:
            seen, users, targets = self.histories.without_last()
        self._build(int(rng.integers(2**31)))
        seed = int(rng.integers(2**31))
        self._prepare(seen, seed)
        run = Training(
            self.network,
            self._loss,
            self.training,
            seed=seed,
            score=(lambda: self.validate(seen, users, targets)) if len(users) else None,
            show=self.show_progress,
        )
        steps = -(-len(seen.windows(self.history, rng)[0]) // self.training.batch_size)
        self.progress = run.run(lambda epoch: self._batches(seen, np.random.default_rng([seed, epoch])), steps)

    def _prepare(self, histories: Histories, seed: int) -> None:
        """What comes before training on the next item: nothing."""

    def validate(self, histories: Histories, users: LongArray, targets: IntArray) -> float:
        """What early stopping maximises: NDCG@10 of held-out items, (m,) of these users (m,), after these histories."""
        return validation_ndcg(self.item_scores, histories, users, targets)

    def _build(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = self._network().to(self.device)
        self.network.eval()

    def _batches(self, histories: Histories, rng: np.random.Generator) -> Iterator[tuple[LongArray, LongArray]]:
        return histories.user_batches(self.history, self.training.batch_size, rng)

    def _loss(self, batch: tuple[Any, Any]) -> tuple[Tensor, int]:
        n_targets = int((batch[0] >= 0).sum())
        rows, users = (torch.as_tensor(part).to(self.device, non_blocking=True) for part in batch)
        return self.network.loss(rows, users), n_targets

    @torch.no_grad()
    def item_scores(self, histories: Histories, users: LongArray) -> Tensor:
        """Logits of every item as the next one, (B, n_items), after these histories, on the device."""
        return self.network.logits(self._states(histories, users)).float()

    @torch.no_grad()
    def user_states(self, users: NDArray[Any]) -> NDArray[np.float32]:
        """What the network makes of each user's history, (B, d)."""
        self._require_fit()
        return self._states(self.histories, np.asarray(users, np.int64)).float().cpu().numpy()

    def _states(self, histories: Histories, users: LongArray) -> Tensor:
        rows = torch.as_tensor(histories.last(users, self.history), device=self.device)
        return self.network.user_states(rows, torch.as_tensor(users, device=self.device))

    def score_histories(self, histories: Histories, users: LongArray) -> NDArray[np.float32]:
        """`item_scores` on the CPU."""
        return self.item_scores(histories, users).cpu().numpy()

    def _score(self, users: LongArray) -> NDArray[np.float32]:
        return self.score_histories(self.histories, users)

    def _remember(self) -> None:
        self.histories = Histories.from_log(self._log)

    def _state(self) -> Mapping[str, NDArray[Any]]:
        return {name: value.cpu().numpy() for name, value in self.network.state_dict().items()}

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        self.histories = Histories.from_log(self._log)
        self._build(0)
        before = {"scale": torch.ones(())}  # networks saved before they had one
        self.network.load_state_dict(before | {name: torch.as_tensor(value) for name, value in state.items()})

    def load(self, folder: Path) -> None:
        from simenv.errors import RunDirectoryError

        try:
            super().load(folder)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise RunDirectoryError(f"{folder}: no readable weights of {self.name} ({reason})") from error


class NextItemRecommender(SequenceRecommender):
    """A sequence model in which every position predicts the item after it.

    Args:
        loss: `cross_entropy`, `sampled_softmax`, `bce` or `bpr`, see `NextItemNetwork`.
        negatives: items drawn anew for the loss; 0 = the usual number (256 for `sampled_softmax`, else 1).
        options: see `SequenceRecommender`.
    """

    default_loss: ClassVar[str] = "cross_entropy"

    def __init__(self, *, loss: str | None = None, negatives: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.loss, self.negatives = self.default_loss if loss is None else loss, negatives
        checks.one_of(f"{self.name}: loss", self.loss, NEGATIVES)
        check_options(self.name, whole=True, negatives=negatives)
        if negatives and self.loss == "cross_entropy":
            raise ConfigError(
                f"{self.name}: negatives={negatives}: expected 0, cross_entropy takes the whole catalogue"
            )

    def _build(self, seed: int) -> None:
        super()._build(seed)
        assert isinstance(self.network, NextItemNetwork)
        self.network.kind, self.network.negatives = self.loss, self.negatives or NEGATIVES[self.loss]


def divisor(name: str, heads: int, size: int) -> int:
    """`heads`, if they divide the size."""
    check_options(name, low=1, whole=True, heads=heads)
    checks.require(size % heads == 0, f"{name}: heads", heads, f"a divisor of embedding_size={size}")
    return heads
