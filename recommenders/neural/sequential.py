"""Sequential baselines in torch: SASRec, BERT4Rec, GRU4Rec.

One token per item, the output tied to the item embeddings, a softmax over the whole catalogue: the fair setting, where
SASRec with sampled binary cross-entropy is a weak one (Klenitskiy and Vasilev 2023, "Turning dross into gold loss").
The module does not know item codes or texts.
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

from recommenders.base import Recommender
from simenv.datasets.base import IntArray, Interactions, LongArray
from simenv.errors import ConfigError
from simenv.randomness import Key, Purpose, generator
from simenv.records import record
from simenv.training.histories import Histories
from simenv.training.loop import Progress, Training, TrainingOptions, pick_device, validation_ndcg

TRAINING = TrainingOptions(learning_rate=2e-3, patience=3)


class SequenceNetwork(nn.Module):
    """Item embeddings around an encoder of histories; subclasses define the encoder and the loss."""

    def __init__(self, n_items: int, size: int) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items + 2, size)  # two more: mask, padding
        self.bias = nn.Parameter(torch.zeros(n_items))
        self.n_items, self.mask, self.padding = n_items, n_items, n_items + 1
        nn.init.normal_(self.items.weight, std=size**-0.5)

    def embed(self, rows: Tensor) -> Tensor:
        """(B, T) items, -1 after the end, to (B, T, d)."""
        return self.items(rows.masked_fill(rows < 0, self.padding))

    def logits(self, states: Tensor) -> Tensor:
        """(..., d) to (..., n_items)."""
        return states @ self.items.weight[: self.n_items].T + self.bias

    @abstractmethod
    def loss(self, rows: Tensor) -> Tensor:
        """Mean cross-entropy of the items to predict in (B, T + 1) rows, -1 after the end."""

    @abstractmethod
    def user_states(self, rows: Tensor) -> Tensor:
        """(B, T) histories, -1 after the end, to (B, d) states that score the next item."""


class NextItemNetwork(SequenceNetwork):
    """Every position predicts the item after it."""

    @abstractmethod
    def encode(self, rows: Tensor) -> Tensor:
        """(B, T) to (B, T, d); position t must not see what comes after it."""

    negatives = 0  # items drawn for a step's softmax; 0 = all of them

    def loss(self, rows: Tensor) -> Tensor:
        states, targets = self.encode(rows[:, :-1])[rows[:, 1:] >= 0], rows[:, 1:][rows[:, 1:] >= 0]
        if self.negatives:
            return self.sampled_loss(states, targets)
        return F.cross_entropy(self.logits(states).float(), targets)

    def sampled_loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy among each target and the same uniformly drawn items for all; a target drawn again is left out.

        Args:
            states: (N, d).
            targets: (N,).
        """
        drawn = torch.randint(self.n_items, (self.negatives,), device=states.device)
        own = (states * self.items(targets)).sum(dim=1) + self.bias[targets]
        others = states @ self.items(drawn).T + self.bias[drawn]
        others = others.masked_fill(drawn == targets[:, None], -torch.inf)
        logits = torch.cat([own[:, None], others], dim=1).float()
        return F.cross_entropy(logits, torch.zeros_like(targets))

    def user_states(self, rows: Tensor) -> Tensor:
        ends = (rows >= 0).sum(dim=1).clamp(min=1) - 1
        return self.encode(rows)[torch.arange(len(rows), device=rows.device), ends]


def transformer(size: int, layers: int, heads: int, dropout: float) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        size, heads, 4 * size, dropout, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(size), enable_nested_tensor=False)


class SASRecNetwork(NextItemNetwork):
    """A causal transformer with learned positions (Kang and McAuley 2018)."""

    def __init__(self, n_items: int, size: int, layers: int, heads: int, dropout: float, history: int) -> None:
        super().__init__(n_items, size)
        self.positions = nn.Parameter(torch.randn(history, size) * size**-0.5)
        self.encoder = transformer(size, layers, heads, dropout)
        self.dropout = nn.Dropout(dropout)

    def encode(self, rows: Tensor) -> Tensor:
        length = rows.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=rows.device).triu(1)
        return self.encoder(self.dropout(self.embed(rows) + self.positions[:length]), mask=future)


class GRU4RecNetwork(NextItemNetwork):
    """A gated recurrent network (Hidasi et al. 2016), with cross-entropy over all items."""

    def __init__(self, n_items: int, size: int, layers: int, dropout: float) -> None:
        super().__init__(n_items, size)
        self.gru = nn.GRU(size, size, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.project = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)

    def encode(self, rows: Tensor) -> Tensor:
        return self.project(self.dropout(self.gru(self.dropout(self.embed(rows)))[0]))


class BERT4RecNetwork(SequenceNetwork):
    """A bidirectional transformer that fills in masked items (Sun et al. 2019).

    Positions count from the end, so that the place where the next item is asked for is one it was trained on.
    """

    def __init__(
        self, n_items: int, size: int, layers: int, heads: int, dropout: float, history: int, mask_share: float
    ) -> None:
        super().__init__(n_items, size)
        self.positions = nn.Parameter(torch.randn(history + 1, size) * size**-0.5)
        self.encoder = transformer(size, layers, heads, dropout)
        self.dropout = nn.Dropout(dropout)
        self.mask_share = mask_share

    def encode(self, rows: Tensor) -> Tensor:
        real = rows >= 0
        from_end = real.sum(dim=1, keepdim=True) - 1 - torch.arange(rows.shape[1], device=rows.device)
        x = self.dropout(self.embed(rows) + self.positions[from_end.clamp(min=0)])
        return self.encoder(x, src_key_padding_mask=~real)

    def loss(self, rows: Tensor) -> Tensor:
        real = rows >= 0
        masked = (torch.rand(rows.shape, device=rows.device) < self.mask_share) & real
        last = torch.arange(rows.shape[1], device=rows.device) == real.sum(dim=1, keepdim=True) - 1
        only_last = torch.rand(len(rows), 1, device=rows.device) < self.mask_share  # as it will be asked
        masked = torch.where(only_last | ~masked.any(dim=1, keepdim=True), last, masked)
        states = self.encode(rows.masked_fill(masked, self.mask))[masked]
        return F.cross_entropy(self.logits(states).float(), rows[masked])

    def user_states(self, rows: Tensor) -> Tensor:
        ends = (rows >= 0).sum(dim=1)
        asked = F.pad(rows, (0, 1), value=-1).scatter(1, ends[:, None], self.mask)
        return self.encode(asked)[torch.arange(len(rows), device=rows.device), ends]


class SequenceRecommender(Recommender):
    """What the three share: windows of histories in, scores of all items out. `update` refits.

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
        if min(embedding_size, layers, history) < 1 or not 0 <= dropout < 1:
            raise ConfigError(
                f"{self.name}: embedding_size={embedding_size}, layers={layers}, history={history}, "
                f"dropout={dropout}; expected at least 1 each and a share in [0, 1)"
            )
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

    def validate(self, histories: Histories, users: LongArray, targets: IntArray) -> float:
        """What early stopping maximises: NDCG@10 of held-out items, (m,) of these users (m,), after these histories."""
        return validation_ndcg(self.item_scores, histories, users, targets)

    def _build(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = self._network().to(self.device)
        self.network.eval()

    def _batches(self, histories: Histories, rng: np.random.Generator) -> Iterator[LongArray]:
        return histories.batches(self.history, self.training.batch_size, rng)

    def _loss(self, rows: Any) -> tuple[Tensor, int]:
        n_targets = int((rows >= 0).sum())
        rows = torch.as_tensor(rows).to(self.device, non_blocking=True)
        return self.network.loss(rows), n_targets

    @torch.no_grad()
    def item_scores(self, histories: Histories, users: LongArray) -> Tensor:
        """Logits of every item as the next one, (B, n_items), after these histories, on the device."""
        rows = torch.as_tensor(histories.last(users, self.history), device=self.device)
        return self.network.logits(self.network.user_states(rows)).float()

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
        self.network.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})

    def load(self, folder: Path) -> None:
        from simenv.errors import RunDirectoryError

        try:
            super().load(folder)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise RunDirectoryError(f"{folder}: no readable weights of {self.name} ({reason})") from error


class SASRec(SequenceRecommender):
    """Self-attentive sequential recommendation with cross-entropy over the catalogue, or over a sample of it.

    Args:
        heads: attention heads.
        negatives: items drawn anew for each step's softmax, the same for all its targets; 0 = the whole catalogue.
        options: see `SequenceRecommender`.
    """

    name = "sasrec"

    def __init__(self, *, heads: int = 2, negatives: int = 0, **options: Any) -> None:
        super().__init__(**options)
        if negatives < 0:
            raise ConfigError(f"sasrec: negatives={negatives}; expected at least 0 (0 = the whole catalogue)")
        self.heads, self.negatives = _heads(self.name, heads, self.embedding_size), negatives

    def _network(self) -> SASRecNetwork:
        network = SASRecNetwork(
            self.n_items, self.embedding_size, self.layers, self.heads, self.dropout, max(self.history, 1)
        )
        network.negatives = self.negatives
        return network


class GRU4Rec(SequenceRecommender):
    """A recurrent network over the history, with full cross-entropy. Options: see `SequenceRecommender`."""

    name = "gru4rec"

    def __init__(self, *, layers: int = 1, **options: Any) -> None:
        super().__init__(layers=layers, **options)

    def _network(self) -> GRU4RecNetwork:
        return GRU4RecNetwork(self.n_items, self.embedding_size, self.layers, self.dropout)


class BERT4Rec(SequenceRecommender):
    """Bidirectional encoder trained to fill in masked items.

    Args:
        heads: attention heads.
        mask_share: items masked while training, and the share of rows in which only the last one is.
        options: see `SequenceRecommender`.
    """

    name = "bert4rec"

    def __init__(self, *, heads: int = 2, mask_share: float = 0.2, **options: Any) -> None:
        super().__init__(**options)
        if not 0 < mask_share < 1:
            raise ConfigError(f"bert4rec: mask_share={mask_share}; expected a share in (0, 1)")
        self.heads, self.mask_share = _heads(self.name, heads, self.embedding_size), mask_share

    def _network(self) -> BERT4RecNetwork:
        return BERT4RecNetwork(
            self.n_items, self.embedding_size, self.layers, self.heads, self.dropout, self.history, self.mask_share
        )


def _heads(name: str, heads: int, size: int) -> int:
    if heads < 1 or size % heads:
        raise ConfigError(f"{name}: heads={heads}; expected a divisor of embedding_size={size}")
    return heads
