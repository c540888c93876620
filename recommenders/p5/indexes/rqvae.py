"""RQ-VAE codes (Rajput et al. 2023, "Recommender systems with generative retrieval", TIGER), and residual k-means.

An autoencoder whose bottleneck is quantised level by level: each level's codebook encodes what the levels before left
over, so that the first token is the coarse meaning and the next ones refine it. The module does not know what the
vectors mean: they are an item's words and genres, or its co-occurrence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recommenders.p5.indexes.base import IndexSource, Paths, with_collision_token
from recommenders.p5.indexes.clustering import singular_vectors
from simenv.errors import ConfigError
from simenv.language_models.item_vectors import item_vectors as read_vectors
from simenv.language_models.local.gguf_file import PACKAGED
from simenv.training.loop import seeded

COMMITMENT = 0.25  # weight of the encoder's pull towards the codebook, as in the paper
REVIVE_EVERY = 25  # steps between two searches for codewords that nothing uses


class ResidualQuantiser(nn.Module):
    """Codebooks (levels, codewords, size) applied one after the other to what is left of a vector."""

    def __init__(self, levels: int, codewords: int, size: int) -> None:
        super().__init__()
        self.codebooks = nn.Parameter(torch.randn(levels, codewords, size) * 0.1)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(n, size) to the sum of the chosen codewords (n, size) and their numbers (n, levels)."""
        left, total, codes = latent, torch.zeros_like(latent), []
        for codebook in self.codebooks:
            code = torch.cdist(left.detach(), codebook.detach()).argmin(dim=1)
            chosen = codebook[code]
            left, total = left - chosen.detach(), total + chosen
            codes.append(code)
        return total, torch.stack(codes, dim=1)

    @torch.no_grad()
    def revive(self, latent: Tensor) -> None:
        """Move codewords that encode nothing onto random residuals; on a fresh quantiser this spreads all of them."""
        left = latent
        for codebook in self.codebooks:
            code = torch.cdist(left, codebook).argmin(dim=1)
            unused = torch.bincount(code, minlength=len(codebook)) == 0
            if unused.any():
                codebook[unused] = left[torch.randint(len(left), (int(unused.sum()),), device=left.device)]
                code = torch.cdist(left, codebook).argmin(dim=1)
            left = left - codebook[code]


class RQVAE(nn.Module):
    """Encoder, residual quantiser, decoder."""

    def __init__(self, size: int, latent: int, levels: int, codewords: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, latent))
        self.quantiser = ResidualQuantiser(levels, codewords, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, 2 * size), nn.GELU(), nn.Linear(2 * size, size))

    def loss(self, vectors: Tensor) -> Tensor:
        """Reconstruction, codebook and commitment terms; gradients pass the quantiser straight through."""
        latent = self.encoder(vectors)
        quantised, _ = self.quantiser(latent)
        rebuilt = self.decoder(latent + (quantised - latent).detach())
        pull = F.mse_loss(quantised, latent.detach()) + COMMITMENT * F.mse_loss(latent, quantised.detach())
        return F.mse_loss(rebuilt, vectors) + pull


def item_vectors(source: IndexSource, kind: str, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """What the codes are made of, (n_items, <= size).

    `text`: words and genres; `collaborative`: co-occurrence; else what a language model makes of texts: ``smollm2``,
    a model or an ``.npy`` file, see `simenv.language_models.item_vectors`.
    """
    if kind == "collaborative":
        vectors = singular_vectors(source, size, rng)
    elif kind == "text":
        if source.catalog is None:
            raise ConfigError("index=rqvae, vectors=text: needs the items' titles; bind a data set before fit")
        from scipy.sparse.linalg import svds

        from recommenders.content import Content

        words = Content().item_vectors(source.catalog).astype(np.float64)
        left, values, _ = svds(words, k=min(size, min(words.shape) - 1), v0=rng.random(min(words.shape)))
        vectors = left * values
    elif source.catalog is None:
        raise ConfigError(f"index=rqvae, vectors={kind}: needs the items' titles; bind a data set before fit")
    elif kind in PACKAGED or Path(kind).exists():
        vectors = read_vectors(source.catalog, kind, size).astype(np.float64)
    else:
        raise ConfigError(
            f"index=rqvae, vectors={kind}: expected text, collaborative, {', '.join(PACKAGED)}, or the path of a model"
        )
    return np.asarray(vectors / max(float(vectors.std()), 1e-12))


def rqvae_codes(
    source: IndexSource,
    rng: np.random.Generator,
    *,
    vectors: str = "collaborative",
    levels: int = 3,
    codewords: int = 64,
    size: int = 64,
    latent: int = 32,
    steps: int = 400,
    device: Any = "cpu",
) -> Paths:
    """Train an RQ-VAE on all items and return their codes, with a last token for items of the same code.

    Args:
        source: training prefixes and, for `vectors="text"`, the catalogue.
        rng: seeds the training.
        vectors: what to encode, see `item_vectors`.
        levels: tokens before the collision token.
        codewords: tokens per level (256 in the paper; fewer suit catalogues of some thousand items).
        size: width of the vectors.
        latent: width of the bottleneck.
        steps: full-batch steps of AdamW at 1e-2.
        device: where to train.
    """
    if levels < 1 or codewords < 2 or steps < 1:
        raise ConfigError(
            f"index=rqvae: levels={levels}, codewords={codewords}, steps={steps}; expected 1, 2, 1 or more"
        )
    table = item_vectors(source, vectors, size, rng)
    device = torch.device(device)
    with seeded(int(rng.integers(2**31)), device):
        inputs = torch.as_tensor(table, dtype=torch.float32, device=device)
        network = RQVAE(inputs.shape[1], latent, levels, min(codewords, len(inputs))).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            if step % REVIVE_EVERY == 0 and step < 0.8 * steps:
                network.quantiser.revive(network.encoder(inputs).detach())
            loss = network.loss(inputs)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            codes = network.quantiser(network.encoder(inputs))[1].cpu().numpy()
    return with_collision_token(codes.astype(np.int64))


def rkmeans_codes(
    source: IndexSource,
    rng: np.random.Generator,
    *,
    vectors: str = "collaborative",
    levels: int = 3,
    codewords: int = 64,
    size: int = 64,
) -> Paths:
    """Residual k-means: each level clusters what the centres of the levels before left over, nothing is trained.

    Said to match RQ-VAE (Luo et al. 2024, "QARM"; Deng et al. 2025, "OneRec"). Arguments: see `rqvae_codes`.
    """
    if levels < 1 or codewords < 2:
        raise ConfigError(f"index=rkmeans: levels={levels}, codewords={codewords}; expected 1, 2 or more")
    from scipy.cluster.vq import kmeans2

    left = item_vectors(source, vectors, size, rng)
    codes = np.empty((source.n_items, levels), np.int64)
    for level in range(levels):
        distinct = len(np.unique(left, axis=0))
        centres, codes[:, level] = kmeans2(left, min(codewords, distinct), iter=20, minit="++", missing="warn", rng=rng)
        left = left - centres[codes[:, level]]
    return with_collision_token(codes)
