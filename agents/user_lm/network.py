"""The network of a user language model: a small decoder, how it starts, and what it is trained on.

Small data are too few for a decoder to discover by itself how an answer about item B finds the line of item B: what is
known as an induction head (Olsson et al. 2022, "In-context learning and induction heads"), and appears late in
training. So one is put in place at the start. The module does not know the training loop.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from agents.llm.answers import INTEREST, RATING
from agents.user_lm.batches import N_DIGITS, Batch, Reader, leads, pieces
from agents.user_lm.corpus import Example
from simenv.errors import ConfigError, MissingExtraError
from simenv.language_models.quoting import opaque_ids

try:
    import torch
    import transformers
    from torch import Tensor, nn
    from torch.nn import functional

    from simenv.training.loop import fast_bfloat16
except ImportError as error:
    raise MissingExtraError("a user language model", "torch") from error

ROPE_THETA = 10_000.0
SPREAD = 0.02  # SD of fresh embeddings
NEAR, FAR = 0.7, 0.02  # frequencies, in radians a token, by which the first layer looks at the words just before
NEARNESS = 1.6
MATCHING = 0.1  # SD of the projections that let an answer find its line
COPYING = 0.5
SHARPNESS = (0.35, 4.0)  # SD of the numbers wanted in a written answer: of stars, and of interest


def new_network(tokenizer: Any, *, hidden_size: int, layers: int, heads: int, dropout: float, max_length: int) -> Any:
    """A small decoder with random weights, but for an induction head.

    Layer 1 gathers what stands just before each token, so that the token after a line, which names the next item, knows
    the line. From layer 2 on, the beginning of an answer about an item looks for the name of the next: its embedding is
    that name's, rotated, and the head undoes the rotation in its queries only, so that no token finds itself.

    Args:
        tokenizer: of `learn_vocabulary`.
        hidden_size: of the embeddings, divisible by 2 * `heads`.
        layers: two at least.
        heads: of attention.
        dropout: on attention.
        max_length: longest sequence, tokens.

    Returns:
        A `LlamaForCausalLM`.
    """
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max_length,
        attention_dropout=dropout,
        attention_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    network: Any = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        embeddings = network.get_input_embeddings().weight
        embeddings.normal_(0.0, SPREAD)
        rotation = nn.init.orthogonal_(torch.empty(hidden_size, hidden_size))
        _name_answers(embeddings, rotation, tokenizer)
        size = hidden_size // heads
        first, *others = (layer.self_attn for layer in network.model.layers)
        frequencies = ROPE_THETA ** (-torch.arange(0, size, 2) / size)
        near = NEARNESS * ((frequencies < NEAR) & (frequencies > FAR)).float().repeat(2)
        first.q_proj.bias[:size], first.k_proj.bias[:size] = near, near
        _copy(first, size)
        for attention in (first, *others[:1]):
            _liken(attention, size)
        for attention in others:
            projection = MATCHING * torch.randn(size, hidden_size)
            attention.k_proj.weight[:size] = projection
            attention.q_proj.weight[:size] = projection @ rotation.T
            _copy(attention, size)
    return network


def _name_answers(embeddings: Tensor, rotation: Tensor, tokenizer: Any) -> None:
    """The beginning of an answer about an item is embedded as the rotated name of the item after it."""
    names = opaque_ids(26)
    asked, written = leads(len(names)), pieces(len(names))

    def token(text: str) -> int | None:
        ids = tokenizer.encode(text, add_special_tokens=False)
        return ids[0] if len(ids) == 1 else None

    for place, name in enumerate(names[1:]):
        label, after_a_number = token(f'"\n{name}: "'), token(f'\n{name}: "')
        if label is None:
            continue
        if after_a_number is not None:
            embeddings[after_a_number] = embeddings[label]
        for text in (*asked[2 * place : 2 * place + 2], written[2 * place]):
            if (start := token(text)) is not None:
                embeddings[start] = 0.3 * embeddings[start] + rotation @ embeddings[label]


def _liken(attention: Any, size: int) -> None:
    """Let the second head, where there is one, look for tokens like its own: titles like a title."""
    if attention.q_proj.out_features > size:
        projection = MATCHING * torch.randn(size, attention.q_proj.in_features)
        attention.q_proj.weight[size : 2 * size] = projection
        attention.k_proj.weight[size : 2 * size] = projection


def _copy(attention: Any, size: int) -> None:
    """Let the first head hand on what it finds, in the directions of a random subspace."""
    directions = nn.init.orthogonal_(torch.empty(size, attention.v_proj.in_features))
    attention.v_proj.weight[:size] = COPYING * directions
    attention.o_proj.weight[:, :size] = COPYING * directions.T


def embed(network: Any, vectors: NDArray[np.float32]) -> None:
    """Start the embeddings at these vectors, (n_tokens, hidden_size); tokens whose row is zero keep theirs."""
    known = torch.from_numpy(np.abs(vectors).sum(axis=1) > 0)
    with torch.no_grad():
        embeddings = network.get_input_embeddings().weight
        embeddings[known] = SPREAD * torch.from_numpy(vectors)[known]


def describe(network: Any, features: NDArray[np.float32], known: NDArray[np.bool_]) -> Described:
    """Let the embeddings of titles begin from their items' vectors.

    Args:
        network: of `new_network`, its embeddings where they start; what is returned is trained as a part of it.
        features: (n_tokens, d), zero for tokens that are no titles.
        known: (n_tokens,), whose embeddings mean something already.
    """
    embeddings = network.get_input_embeddings().weight
    described = Described(features, embeddings.shape[1]).to(embeddings.device)
    described.start(embeddings, known)
    network.add_module(Described.NAME, described)
    return described


def settle(network: Any, described: Described) -> None:
    """Write into the embeddings of titles what their vectors make of them, and forget the vectors."""
    embeddings = network.get_input_embeddings().weight
    with torch.no_grad():
        embeddings.copy_(described.eval()(embeddings))
    delattr(network, Described.NAME)


def load_network(folder: str | Path, *, lora_rank: int = 0) -> tuple[Any, Any]:
    """Tokenizer and network of a local checkpoint; with `lora_rank` only low-rank adapters are trained.

    Raises:
        ConfigError: there is no usable model.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        network = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(f"user_lm.checkpoint={folder}: no usable model ({str(error).splitlines()[0]})") from error
    if lora_rank:
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft reads an attribute that transformers renames
            return tokenizer, get_peft_model(network, adapters)
    return tokenizer, network


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    dropout: float = 0.0,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention under a boolean mask in the precision of the query: on a CPU in bfloat16 twice as fast as SDPA's."""
    with torch.autocast(query.device.type, enabled=False):
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        query, key = (query * scaling).to(value.dtype), key.to(value.dtype)  # rotation leaves them in float32
        scores = torch.matmul(query, key.transpose(-1, -2)).masked_fill(~attention_mask, -1e4)
        share = functional.dropout(torch.softmax(scores, dim=-1), dropout, training=module.training)
        return torch.matmul(share, value).transpose(1, 2).contiguous(), None


transformers.AttentionInterface.register("simenv_tree", tree_attention)
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # a run has its own


@runtime_checkable
class Adapted(Protocol):
    """What peft puts around a network: low-rank adapters, which its `merge_and_unload` adds to the weights."""

    def get_base_model(self) -> Any: ...


def save(network: Any, tokenizer: Any, folder: Path) -> None:
    """Write what `llm.path` takes: safetensors, adapters merged into them, and the tokenizer with its chat template."""
    merged: Any = network
    if isinstance(network, Adapted):
        merged = merged.merge_and_unload()
    merged.set_attn_implementation("sdpa")
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Described(nn.Module):
    """Embeddings of titles as what their items' vectors say, plus what is learned of the title alone.

    What is learned of a title alone is left out for `ALONE` of the titles of a batch, so that the vectors come to serve
    without it (Volkovs et al. 2017, "DropoutNet"): of items that nobody has met there is nothing else. Vectors become
    embeddings by a matrix, which starts as the ridge regression of where the embeddings start.

    Args:
        features: (n_tokens, d), zero for tokens that are no titles.
    """

    NAME = "described"
    features: Tensor
    titles: Tensor
    never_met: Tensor
    ALONE = 0.25
    RIDGE = 3.0

    def __init__(self, features: NDArray[np.float32], hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.from_numpy(features), persistent=False)
        self.register_buffer("titles", self.features.abs().sum(dim=1, keepdim=True) > 0, persistent=False)
        self.register_buffer("never_met", self.titles, persistent=False)
        self.matrix = nn.Parameter(torch.zeros(features.shape[1], hidden_size))

    @torch.no_grad()
    def start(self, embeddings: Tensor, known: NDArray[np.bool_]) -> None:
        """Fit the matrix to the embeddings of `known` tokens, (n_tokens,), and leave the rest of them in place."""
        told = self.titles[:, 0]
        met = told & torch.from_numpy(known).to(told.device)
        x = self.features[met]
        gram = x.T @ x + self.RIDGE * torch.eye(x.shape[1], device=x.device)
        self.matrix.copy_(torch.linalg.solve(gram, x.T @ embeddings[met]))
        embeddings[met] -= x @ self.matrix
        self.never_met = (told & ~met)[:, None]

    def forward(self, embeddings: Tensor) -> Tensor:
        """(n_tokens, hidden_size), of the titles' own to those the network reads."""
        alone = self.never_met
        if self.training:
            alone = alone | (self.titles & (torch.rand_like(embeddings[:, :1]) < self.ALONE))
        return embeddings.masked_fill(alone, 0.0) + self.features @ self.matrix


class Objective:
    """What a network is trained on, as a loss of a batch.

    The cross-entropy of the digits wanted at the branches; and, so that there is something to learn from at every
    token: whether an item was picked, told already by the token after its line (`LINES`); the item's title, told by the
    branch that asks about it (`RECALL`); the numbers of a written answer, which are to be what the branches say
    (`SPOKEN`); and the next word of profile and memory (`language`).

    Args:
        network: a causal language model of transformers, from now on with `tree_attention`.
        reader: of the tokenizer.
        language: weight of the next words.
        compiled: by torch, which takes half a minute and a C++ compiler, and makes a step on a CPU a third shorter.
        described: of `describe`, where titles begin from vectors.
    """

    LINES = 1.0
    RECALL = 0.3
    SPOKEN = 0.3
    SAMPLED = 3  # one of so many words of profile and memory is foretold in a step: the vocabulary is what costs

    def __init__(
        self,
        network: Any,
        reader: Reader,
        *,
        language: float,
        compiled: bool = False,
        described: Described | None = None,
    ) -> None:
        self.network, self.language, self.described = network, language, described
        base: Any = network.get_base_model() if isinstance(network, Adapted) else network
        self.body = torch.compile(base.model, dynamic=True) if compiled else base.model
        self.device = next(network.parameters()).device
        self.digits = torch.tensor(reader.digits, device=self.device)
        self.numbers = torch.tensor(reader.numbers, device=self.device)
        self.values = torch.arange(N_DIGITS, dtype=torch.float32, device=self.device)
        base.set_attn_implementation("simenv_tree")

    def __call__(self, batch: Batch) -> tuple[Tensor, int]:
        """The loss, a scalar, and how many answers it is about."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=fast_bfloat16(self.device)):
            return self._loss(batch.to(self.device))

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        table, head = self.embeddings()
        hidden = self.hidden(batch, table)
        logs = self.answers(hidden, batch, head)
        total = -(batch.wanted * logs).sum() / batch.wanted.sum()
        after = functional.linear(hidden[batch.lines[:, 0], batch.lines[:, 1]], head[self.digits[[0, N_DIGITS - 1]]])
        total = total + self.LINES * functional.cross_entropy(after.float(), batch.picked.long())
        names, which = torch.unique(batch.titles, return_inverse=True)
        asked = functional.linear(_at_branches(hidden, batch, batch.ends[batch.interests]), head[names])
        total = total + self.RECALL * functional.cross_entropy(asked.float(), which)
        if len(batch.spoken):
            total = total + self.SPOKEN * self._spoken(hidden, head, logs.detach(), batch)
        if self.language:
            rows, places = batch.memory.nonzero(as_tuple=True)
            sampled = torch.randperm(len(rows), device=rows.device)[: -(-len(rows) // self.SAMPLED)]
            rows, places = rows[sampled], places[sampled]
            words = functional.linear(hidden[rows, places - 1], head)
            total = total + self.language * functional.cross_entropy(words.float(), batch.tokens[rows, places])
        return total, int((batch.wanted.sum(dim=1) > 0).sum())

    def chances(self, batch: Batch) -> Tensor:
        """Probabilities of the digits that may follow each branch, (m, 10)."""
        table, head = self.embeddings()
        return self.answers(self.hidden(batch, table), batch, head).exp()

    def embeddings(self) -> tuple[Tensor | None, Tensor]:
        """Of the tokens read, where they are made from vectors, and of the tokens foretold, (n_tokens, d)."""
        head = self.network.get_output_embeddings().weight
        if self.described is None:
            return None, head
        table = self.described(head)  # a network of ours: the same for both
        return table, table

    def hidden(self, batch: Batch, table: Tensor | None) -> Tensor:
        """Last hidden states, (n, P + B, d)."""
        read = {"input_ids": batch.tokens} if table is None else {"inputs_embeds": table[batch.tokens]}
        states: Tensor = self.body(
            **read, attention_mask=tree_mask(batch), position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        return states

    def answers(self, hidden: Tensor, batch: Batch, head: Tensor) -> Tensor:
        """Log-probabilities of the digits that may follow each branch, (m, 10)."""
        scores = functional.linear(_at_branches(hidden, batch, batch.ends), head[self.digits]).float()
        beyond = (self.values < RATING[0]) | (self.values > RATING[1])
        return torch.log_softmax(scores.masked_fill(batch.stars[:, None] & beyond, -1e9), dim=1)

    def _spoken(self, hidden: Tensor, head: Tensor, logs: Tensor, batch: Batch) -> Tensor:
        """How far the numbers of a written answer are from what the branches say: the model is its own teacher."""
        means = logs.exp() @ self.values
        said = torch.where(batch.stars, means, means * INTEREST[1] / (N_DIGITS - 1))
        width = torch.where(batch.stars, *SHARPNESS)
        number = torch.arange(len(self.numbers), device=self.device)
        wanted = torch.softmax(-0.5 * ((number - said[:, None]) / width[:, None]) ** 2, dim=1)
        scores = functional.linear(_at_branches(hidden, batch, batch.spoken), head[self.numbers]).float()
        beyond = (number < RATING[0]) | (number > RATING[1])
        scores = scores.masked_fill(batch.stars[:, None] & beyond, -1e9)
        wanted = wanted.masked_fill(batch.stars[:, None] & beyond, 0.0)
        return functional.cross_entropy(scores, wanted / wanted.sum(dim=1, keepdim=True))


def interests(objective: Objective, reader: Reader, examples: Sequence[Example], *, tokens: int) -> list[NDArray[Any]]:
    """A network's interest in the items of each example, in tenths, as `llm.readout=logits` reads it.

    Args:
        objective, reader: of the network.
        examples: m pages; their answers are not looked at.
        tokens: in a batch, padding included, at most.

    Returns:
        m arrays, (k,) each.
    """
    found: list[NDArray[Any]] = [np.empty(0)] * len(examples)
    encoded = reader.encode(examples)
    training = objective.network.training
    objective.network.eval()
    with torch.no_grad():
        for rows in reader.groups(examples, encoded, tokens, np.random.default_rng(0)):
            batch = reader.batch([examples[row] for row in rows], [encoded[row] for row in rows])
            batch = batch.to(objective.device)
            chances = objective.chances(batch)
            with torch.autocast(objective.device.type, enabled=False):
                means = (chances @ objective.values)[batch.interests].cpu().numpy()
            ends = np.cumsum([len(examples[row].items) for row in rows])
            for row, own in zip(rows.tolist(), np.split(means, ends[:-1]), strict=True):
                found[row] = own
    objective.network.train(training)
    return found


def _at_branches(hidden: Tensor, batch: Batch, ends: Tensor) -> Tensor:
    return hidden[ends[:, 0], batch.n_prompt + ends[:, 1]]


def tree_mask(batch: Batch) -> Tensor:
    """Who sees whom, (n, 1, T, T), True = sees: prompts causally; branches their prompt and, causally, themselves."""
    total, p = batch.tokens.shape[1], batch.n_prompt
    place = torch.arange(total, device=batch.tokens.device)
    causal = place[:, None] >= place[None, :]
    visible = (causal & (place < p)[None, :])[None] & (place[None, :] < batch.lengths[:, None])[:, None, :]
    same = batch.branch[:, :, None] == batch.branch[:, None, :]
    visible[:, p:, p:] = same & causal[p:, p:]
    visible |= torch.eye(total, dtype=torch.bool, device=visible.device)  # padding sees itself: no empty softmax
    return visible[:, None]
