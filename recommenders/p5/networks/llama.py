"""The decoder-only backbone of p5: a LLaMA-style network, from scratch, over prompt and answer in one sequence.

As in OpenP5 (Xu et al. 2024). Paths through the trie are scored as one sequence with a tree mask: each node sees the
prompt and its ancestors. The module does not know prompts or users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from recommenders.p5.language.text import PAD, Vocabulary
from recommenders.p5.networks.prompt import MAX_WORDS, PromptNetwork
from recommenders.p5.networks.t5 import T5Options
from recommenders.p5.trie import Level, child_logits
from simenv.errors import ConfigError


class LlamaNetwork(PromptNetwork):
    """A causal transformer with rotary positions, RMS norms and gated feed-forward layers."""

    llama: Any

    def __init__(self, codes: Tensor, vocabulary: Vocabulary, options: T5Options) -> None:
        super().__init__(codes, vocabulary, options.item_input)
        self.llama = make_llama(options, vocabulary.size)
        self.size = int(self.llama.config.hidden_size)
        self.whole_words = nn.Embedding(MAX_WORDS, self.size)
        nn.init.zeros_(self.whole_words.weight)

    def embedding(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.llama.embed_tokens(tokens))

    def output(self, offset: int, size: int) -> Tensor:
        weight: Tensor = self.llama.embed_tokens.weight
        return weight[offset : offset + size]

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed(rows)

    def decode(self, states: Tensor, mask: Tensor, inputs: Tensor) -> Tensor:
        n = inputs.shape[1]
        order = torch.ones(n, n, dtype=torch.bool, device=inputs.device).tril()
        return self.tree(states, mask, self.embedding(inputs), order[None], torch.arange(n, device=inputs.device))

    def tree(self, prompt: Tensor, mask: Tensor, nodes: Tensor, sees: Tensor, depths: Tensor) -> Tensor:
        """States (B, N, d) of nodes that follow the prompt on many branches at once.

        Args:
            prompt: (B, S, d) embeddings.
            mask: (B, S) which of them are real.
            nodes: (B, N, d) embeddings of the nodes.
            sees: (1 or B, N, N) which nodes are on whose path, itself included.
            depths: (N,) tokens between the prompt and the node.
        """
        n_users, length = mask.shape
        n = nodes.shape[1]
        allowed = torch.zeros(n_users, 1, length + n, length + n, dtype=torch.bool, device=mask.device)
        causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        allowed[:, 0, :length, :length] = causal & mask[:, None, :] | torch.eye(
            length, dtype=torch.bool, device=mask.device
        )
        allowed[:, 0, length:, :length] = mask[:, None, :]
        allowed[:, 0, length:, length:] = sees
        places = mask.long().cumsum(dim=1)
        positions = torch.cat([(places - 1).clamp(min=0), places[:, -1:] + depths], dim=1)
        bias = torch.zeros(allowed.shape, dtype=prompt.dtype, device=mask.device)
        bias.masked_fill_(~allowed, torch.finfo(prompt.dtype).min)
        out = self.llama(
            inputs_embeds=torch.cat([prompt, nodes], dim=1),
            attention_mask=bias,
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        return cast(Tensor, out[:, length:])

    def scorer(self, sources: Tensor) -> TreeScorer:
        return TreeScorer(self, *self.encode(sources))


def make_llama(options: T5Options, n_tokens: int) -> nn.Module:
    """A LlamaModel with `n_tokens` embeddings, from scratch."""
    from transformers import LlamaConfig, LlamaModel

    if options.lora is not None or options.checkpoint_path is not None:
        raise ConfigError("lora, checkpoint_path: only with backbone=t5; expected null with backbone=llama")
    size = options.embedding_size
    shape: dict[str, Any] = {
        "vocab_size": n_tokens,
        "hidden_size": size,
        "intermediate_size": 3 * size,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.heads,
        "attention_dropout": options.dropout,
        "pad_token_id": PAD,
    }
    return cast(nn.Module, LlamaModel(LlamaConfig(**shape)))


@dataclass(frozen=True, slots=True)
class Tree:
    """The nodes scored so far; the newest level comes last."""

    tokens: Tensor  # (1 or B, N) vocabulary tokens
    sees: Tensor  # (1 or B, N, N) ancestors of each node and itself
    depths: Tensor  # (N,)
    newest: int  # where the newest level starts
    hidden: Tensor  # (B, N - newest, d)


class TreeScorer:
    """A `PathScorer` that reads prompt and tree anew at each level: simple, and as many passes as levels."""

    def __init__(self, network: LlamaNetwork, prompt: Tensor, mask: Tensor) -> None:
        self.network, self.prompt, self.mask = network, prompt, mask

    def begin(self) -> Tree:
        device = self.mask.device
        start = torch.full((1, 1), PAD, dtype=torch.long, device=device)
        sees = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
        return self._run(start, sees, torch.zeros(1, dtype=torch.long, device=device), 0)

    def extend(self, state: Tree, level: Level, parents: Tensor, nodes: Tensor) -> Tree:
        tokens = level.token[nodes]
        n_old, n_new = state.tokens.shape[1], tokens.shape[1]
        rows = max(len(parents), len(state.tokens))
        old = state.sees.expand(rows, -1, -1)
        above = old.gather(1, (parents + state.newest).expand(rows, -1)[..., None].expand(-1, -1, n_old))
        own = torch.eye(n_new, dtype=torch.bool, device=tokens.device).expand(rows, -1, -1)
        below = torch.zeros(rows, n_old, n_new, dtype=torch.bool, device=tokens.device)
        sees = torch.cat([torch.cat([old, below], dim=2), torch.cat([above, own], dim=2)], dim=1)
        added = (tokens + self.network.offsets[level.depth - 1]).expand(rows, -1)
        tokens = torch.cat([state.tokens.expand(rows, -1), added], dim=1)
        depths = torch.cat([state.depths, torch.full((n_new,), level.depth, device=tokens.device)])
        return self._run(tokens, sees, depths, n_old)

    def logits(self, state: Tree, level: Level, tokens: Tensor) -> Tensor:
        network, depth = self.network, level.depth
        return child_logits(state.hidden, network.output(network.offsets[depth], network.level_sizes[depth]), tokens)

    def _run(self, tokens: Tensor, sees: Tensor, depths: Tensor, newest: int) -> Tree:
        nodes = self.network.embedding(tokens).expand(len(self.mask), -1, -1)
        hidden = self.network.tree(self.prompt, self.mask, nodes, sees, depths)
        return Tree(tokens, sees, depths, newest, hidden[:, newest:])
