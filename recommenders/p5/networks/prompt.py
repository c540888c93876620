"""What every p5 backbone shares: reading rendered rows, and the likelihood of item codes and words.

Inputs are rendered rows (`recommenders.p5.language.text`): tokens below the vocabulary's size, items above it. An item
is read as one vector pooled from its code tokens, or as those tokens with whole-word embeddings (Geng et al. 2022,
"P5", section 3.3). The module does not know what lies between embeddings and states.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recommenders.p5.language.fair import FairPrefix
from recommenders.p5.language.text import PAD, Vocabulary
from recommenders.p5.trie import PathScorer, Trie, step_losses

MAX_WORDS = 512  # whole words with an embedding of their own


class PromptNetwork(nn.Module):
    """What reads rendered rows and writes item codes or words; a subclass brings the backbone.

    The first word of an answer follows a start token (`PAD`), in either backbone.
    """

    codes: Tensor  # (n_items, depth)
    size: int  # width of the embeddings
    prefix: FairPrefix | None  # in front of every prompt, while `prefixed`

    whole_words: nn.Embedding

    def __init__(self, codes: Tensor, vocabulary: Vocabulary, item_input: str) -> None:
        super().__init__()
        self.item_input, self.n_words = item_input, vocabulary.size
        self.offsets, self.level_sizes = vocabulary.code_offsets, vocabulary.level_sizes
        self.register_buffer("codes", codes.long())
        self.prefix, self.prefixed = None, False

    # -- for subclasses -----------------------------------------------------------------------------------------

    @abstractmethod
    def embedding(self, tokens: Tensor) -> Tensor:
        """Input embeddings (..., d) of vocabulary tokens."""

    @abstractmethod
    def output(self, offset: int, size: int) -> Tensor:
        """Output embeddings of a stretch of the vocabulary, (size, d)."""

    @abstractmethod
    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rendered rows (B, S) to whatever `decode` reads, (B, S', d), and its mask (B, S')."""

    @abstractmethod
    def decode(self, states: Tensor, mask: Tensor, inputs: Tensor) -> Tensor:
        """States (B, D, d), ready for the output embeddings, after each token of the answer so far (B, D)."""

    @abstractmethod
    def scorer(self, sources: Tensor) -> PathScorer:
        """A `PathScorer` for users with these rendered prompts (B, S)."""

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Inside this block prompts are read without the prefix."""
        before, self.prefixed = self.prefixed, False
        try:
            yield
        finally:
            self.prefixed = before

    # -- reading ------------------------------------------------------------------------------------------------

    def item_tokens(self, items: Tensor) -> Tensor:
        """Vocabulary tokens (..., depth) of items."""
        return self.codes[items] + torch.tensor(self.offsets, device=items.device)

    def embed(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rendered rows (B, S), -1 after the end, to embeddings (B, S', d) and a mask (B, S'), behind the prefix."""
        embedded, mask = self._embed(rows)
        return self.prefix(embedded, mask) if self.prefixed and self.prefix is not None else (embedded, mask)

    def _embed(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.item_input == "tokens":
            tokens, words, mask = self.expand(rows)
            return self.embedding(tokens) + self.whole_words(words.clamp(max=MAX_WORDS - 1)), mask
        is_item = rows >= self.n_words
        embedded = self.embedding(rows.clamp(min=0).masked_fill(is_item, PAD))
        pooled = self.embedding(self.item_tokens(rows[is_item] - self.n_words)).sum(dim=-2)
        return embedded.masked_scatter(is_item[..., None], pooled.to(embedded.dtype)), rows >= 0

    def expand(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Items spelled out: tokens, the number of the whole word each belongs to, and the mask, all (B, S')."""
        depth = len(self.offsets)
        is_item = rows >= self.n_words
        wide = rows.new_full((*rows.shape, depth), -1)
        wide[..., 0] = rows
        wide[is_item] = self.item_tokens(rows[is_item] - self.n_words)
        words = torch.arange(rows.shape[1], device=rows.device)[None, :, None].expand_as(wide)
        wide, words = wide.flatten(1), words.flatten(1)
        order = (wide < 0).to(torch.int8).argsort(dim=1, stable=True)
        width = int((wide >= 0).sum(dim=1).max()) if self.training else wide.shape[1]
        wide, words = wide.gather(1, order)[:, :width], words.gather(1, order)[:, :width]
        return wide.clamp(min=PAD), words, wide >= 0

    # -- writing ------------------------------------------------------------------------------------------------

    def loss(self, sources: Tensor, targets: Tensor, trie: Trie) -> tuple[Tensor, int]:
        """Mean negative log-likelihood per row of rendered targets (B, D), and the number of rows.

        An item is a path of the trie: each of its tokens is normalised over the children that exist.
        """
        return self.answer_loss(*self.encode(sources), targets, trie)

    def answer_loss(self, states: Tensor, mask: Tensor, targets: Tensor, trie: Trie) -> tuple[Tensor, int]:
        """`loss` after `encode`."""
        is_item = targets[:, 0] >= self.n_words
        total = states.new_zeros((), dtype=torch.float32)
        if bool(is_item.any()):
            rows = is_item.nonzero()[:, 0]
            total = total + self._item_loss(states[rows], mask[rows], targets[rows, 0] - self.n_words, trie)
        if bool((~is_item).any()):
            rows = (~is_item).nonzero()[:, 0]
            total = total + self._text_loss(states[rows], mask[rows], targets[rows])
        return total / len(targets), len(targets)

    def _item_loss(self, states: Tensor, mask: Tensor, items: Tensor, trie: Trie) -> Tensor:
        inputs = F.pad(self.item_tokens(items)[:, :-1], (1, 0), value=PAD)
        hidden = self.decode(states, mask, inputs)
        loss = hidden.new_zeros((), dtype=torch.float32)
        for level, (offset, size) in enumerate(zip(self.offsets, self.level_sizes, strict=True)):
            losses = step_losses(trie, level, items, hidden[:, level], self.output(offset, size))
            if losses is not None:
                loss = loss + losses.sum()
        return loss

    def _text_loss(self, states: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        inputs = F.pad(targets[:, :-1].clamp(min=PAD), (1, 0), value=PAD)
        logits = self.decode(states, mask, inputs) @ self.output(0, self.offsets[0]).T  # words, not codes
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")

    def first_state(self, states: Tensor, mask: Tensor) -> Tensor:
        """What the first token of the answer is chosen from, (B, d)."""
        start = torch.full((len(mask), 1), PAD, device=mask.device)
        return self.decode(states, mask, start)[:, 0]

    def token_scores(self, sources: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities (B, n) of these first words of the target among themselves."""
        hidden = self.first_state(*self.encode(sources))
        return (hidden @ self.output(0, self.n_words)[tokens].T).float().log_softmax(-1)
