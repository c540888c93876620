"""The counterfactually fair prompt of UP5: a prefix that hides a user attribute from what the network makes of a user.

Hua et al. 2024, "UP5: unbiased foundation model for fairness-aware recommendation". The backbone is frozen. In front of
each prompt stand a few vectors, some learned and shared, some computed from the prompt itself (the personalised
prefix). They are trained for L_rec - weight * L_dis, where L_dis is the loss of a discriminator that reads the
user's attribute from the state the first token of an item is chosen from, and is trained in turn. L_dis counts up to
chance only: beyond it, being wrong on purpose would give the attribute away as well. The module does not know prompts,
users or recommenders.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simenv.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class FairOptions:
    """Which attribute to hide, and how hard to try."""

    attribute: str  # a column of `Dataset.user_attributes`; users with an empty value teach nothing
    length: int = 4  # vectors in front of the prompt
    weight: float = 5.0  # of the discriminator's loss beside that of recommending
    steps: int = 600
    batch_size: int = 128
    learning_rate: float = 3e-3
    rounds: int = 4  # discriminator steps per step of the prefix

    def __post_init__(self) -> None:
        for name in ("length", "steps", "batch_size", "learning_rate", "rounds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"fair: {name}={getattr(self, name)}; expected a positive number")
        if self.weight < 0:
            raise ConfigError(f"fair: weight={self.weight}; expected at least 0")


class FairPrefix(nn.Module):
    """Vectors to put in front of an embedded prompt: shared ones, moved by a function of the prompt's mean."""

    def __init__(self, size: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.shared = nn.Parameter(torch.randn(length, size))
        last = nn.Linear(2 * size, length * size)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.personal = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), last)

    def forward(self, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, S, d) and mask (B, S) to both with the prefix in front, (B, length + S, d)."""
        inside = mask[..., None].to(embedded.dtype)
        mean = (embedded * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)
        moved = self.personal(F.layer_norm(mean, mean.shape[-1:])).view(len(mask), self.length, -1)
        front = mask.new_ones(len(mask), self.length)
        return torch.cat([self.shared + moved, embedded], dim=1), torch.cat([front, mask], dim=1)


class Discriminator(nn.Module):
    """Tells an attribute from user states; classes count alike, however many users each has."""

    class_weight: Tensor  # (n_values,)

    def __init__(self, size: int, labels: Tensor) -> None:
        super().__init__()
        counts = torch.bincount(labels).clamp(min=1).float()
        self.register_buffer("class_weight", 1 / counts)
        self.body = nn.Sequential(
            nn.BatchNorm1d(size, affine=False), nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, len(counts))
        )

    def forward(self, states: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of telling these labels (B,) from these states (B, d); ln(number of classes) is chance."""
        return F.cross_entropy(self.body(states), labels, weight=self.class_weight)


def train_prefix(
    network: Any, batches: Iterator[Sequence[Tensor]], labels: Tensor, trie: Any, options: FairOptions
) -> list[tuple[float, float]]:
    """Train `network.prefix` and nothing else.

    Args:
        network: a `PromptNetwork` with its prefix switched on.
        batches: rendered prompts (B, S), targets (B, D) and attribute (B,) for each step, without end.
        labels: (n_users,) attributes of all users who may come, from 0.
        trie: of the item codes.
        options: how to train.

    Returns:
        (loss of recommending, loss of the discriminator) of every step.
    """
    trained = [parameter.requires_grad for parameter in network.parameters()]
    for parameter in network.parameters():
        parameter.requires_grad = False
    for parameter in network.prefix.parameters():
        parameter.requires_grad = True
    network.eval()  # the attacker will see states without dropout
    discriminator = Discriminator(network.size, labels).to(labels.device)
    attack = torch.optim.AdamW(discriminator.parameters(), lr=options.learning_rate)
    defend = torch.optim.AdamW(network.prefix.parameters(), lr=options.learning_rate)
    chance, losses = math.log(len(discriminator.class_weight)), []
    for step in range(options.steps):
        sources, targets, known = next(batches)
        states, mask = network.encode(sources)
        user = network.first_state(states, mask)
        for _ in range(options.rounds):
            attack.zero_grad(set_to_none=True)
            torch.autograd.backward(discriminator(user.detach(), known))
            attack.step()
        told = discriminator(user, known)
        answered, _ = network.answer_loss(states, mask, targets, trie)
        for group in defend.param_groups:
            group["lr"] = options.learning_rate * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        defend.zero_grad(set_to_none=True)
        torch.autograd.backward(answered - options.weight * told.clamp(max=chance))
        nn.utils.clip_grad_norm_(network.prefix.parameters(), 1.0)
        defend.step()
        losses.append((float(answered.detach()), float(told.detach())))
    for parameter, before in zip(network.parameters(), trained, strict=True):
        parameter.requires_grad = before
    return losses
