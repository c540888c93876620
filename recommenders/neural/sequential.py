"""SASRec, BERT4Rec, GRU4Rec: one token per item, the output tied to the item embeddings.

The loss is an option where every position predicts the next item; its default is a softmax over the whole catalogue.
The module does not know item codes or texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recommenders.base import check_options
from recommenders.neural.base import (
    NextItemNetwork,
    NextItemRecommender,
    SequenceNetwork,
    SequenceRecommender,
    divisor,
)
from simenv import checks


class LiGRLayer(nn.Module):
    """A pre-norm transformer layer whose branches are gated by their input, with a SwiGLU feed-forward.

    x + branch(norm(x)) * sigmoid(W x), for attention and feed-forward alike (Borisyuk et al. 2025, "From features to
    transformers: redefining ranking for scalable impact", the learned gates of LiGR; SwiGLU of Shazeer 2020).
    """

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(size, heads, dropout, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))
        self.gates = nn.ModuleList(nn.Linear(size, size) for _ in range(2))
        self.wide, self.switch, self.narrow = (
            nn.Linear(size, 4 * size),
            nn.Linear(size, 4 * size),
            nn.Linear(4 * size, size),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, d) to (B, T, d)."""
        y = self.norms[0](x)
        mixed = self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        x = x + self.dropout(mixed) * self.gates[0](x).sigmoid()
        y = self.norms[1](x)
        y = self.narrow(self.dropout(self.wide(y) * F.silu(self.switch(y))))
        return x + self.dropout(y) * self.gates[1](x).sigmoid()


class LiGREncoder(nn.Module):
    """`layers` LiGR layers and a norm; called as `nn.TransformerEncoder` is."""

    def __init__(self, size: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LiGRLayer(size, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, d) to (B, T, d); `mask` (T, T) is True where a position must not look."""
        for layer in self.layers:
            x = layer(x, mask)
        return cast(Tensor, self.norm(x))


def transformer(size: int, layers: int, heads: int, dropout: float) -> nn.TransformerEncoder:
    """A pre-norm transformer encoder with GELU."""
    layer = nn.TransformerEncoderLayer(
        size, heads, 4 * size, dropout, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(size), enable_nested_tensor=False)


BLOCKS: dict[str, Callable[[int, int, int, float], nn.Module]] = {"transformer": transformer, "ligr": LiGREncoder}


class SASRecNetwork(NextItemNetwork):
    """A causal encoder with learned positions (Kang and McAuley 2018)."""

    def __init__(
        self, n_items: int, size: int, layers: int, heads: int, dropout: float, history: int, block: str = "transformer"
    ) -> None:
        super().__init__(n_items, size)
        self.positions = nn.Parameter(torch.randn(history, size) * size**-0.5)
        self.encoder = BLOCKS[block](size, layers, heads, dropout)
        self.dropout = nn.Dropout(dropout)

    def encode(self, rows: Tensor, users: Tensor | None = None) -> Tensor:
        length = rows.shape[1]
        x = self.dropout(self.embed(rows) + self.positions[:length])
        return cast(Tensor, self.encoder(x, mask=future(length, rows.device)))


def future(length: int, device: torch.device) -> Tensor:
    """(T, T), True where a position would look ahead."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


class GRU4RecNetwork(NextItemNetwork):
    """A gated recurrent network (Hidasi et al. 2016), with cross-entropy over all items."""

    def __init__(self, n_items: int, size: int, layers: int, dropout: float) -> None:
        super().__init__(n_items, size)
        self.gru = nn.GRU(size, size, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.project = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)

    def encode(self, rows: Tensor, users: Tensor | None = None) -> Tensor:
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

    def loss(self, rows: Tensor, users: Tensor | None = None) -> Tensor:
        real = rows >= 0
        masked = (torch.rand(rows.shape, device=rows.device) < self.mask_share) & real
        last = torch.arange(rows.shape[1], device=rows.device) == real.sum(dim=1, keepdim=True) - 1
        only_last = torch.rand(len(rows), 1, device=rows.device) < self.mask_share  # as it will be asked
        masked = torch.where(only_last | ~masked.any(dim=1, keepdim=True), last, masked)
        states = self.encode(rows.masked_fill(masked, self.mask))[masked]
        return F.cross_entropy(self.logits(states).float(), rows[masked])

    def user_states(self, rows: Tensor, users: Tensor | None = None) -> Tensor:
        ends = (rows >= 0).sum(dim=1)
        asked = F.pad(rows, (0, 1), value=-1).scatter(1, ends[:, None], self.mask)
        return self.encode(asked)[torch.arange(len(rows), device=rows.device), ends]


class SASRec(NextItemRecommender):
    """Self-attentive sequential recommendation (Kang and McAuley 2018), with the loss and the block of one's choice.

    The paper's is `loss: bce`, a weak baseline; cross-entropy over the catalogue is the fair one (Klenitskiy and
    Vasilev 2023, "Turning dross into gold loss"). `block: ligr` with `loss: sampled_softmax` is eSASRec (Tikhonovich et
    al. 2025, "eSASRec: enhancing transformer-based recommendations in a modular fashion").

    Args:
        heads: attention heads.
        block: `transformer` or `ligr`.
        loss, negatives, options: see `NextItemRecommender`.
    """

    name = "sasrec"

    def __init__(self, *, heads: int = 2, block: str = "transformer", **options: Any) -> None:
        super().__init__(**options)
        checks.one_of(f"{self.name}: block", block, BLOCKS)
        self.heads, self.block = divisor(self.name, heads, self.embedding_size), block

    def _network(self) -> SASRecNetwork:
        return SASRecNetwork(
            self.n_items, self.embedding_size, self.layers, self.heads, self.dropout, self.history, self.block
        )


class GRU4Rec(NextItemRecommender):
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
        check_options(self.name, high=1, open_low=True, open_high=True, mask_share=mask_share)
        self.heads, self.mask_share = divisor(self.name, heads, self.embedding_size), mask_share

    def _network(self) -> BERT4RecNetwork:
        return BERT4RecNetwork(
            self.n_items, self.embedding_size, self.layers, self.heads, self.dropout, self.history, self.mask_share
        )
