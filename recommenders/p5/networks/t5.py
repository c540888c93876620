"""The T5 backbone of p5: an encoder-decoder that reads prompts and writes item codes or words.

The module does not know prompts or users, nor how the trie is walked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from recommenders.p5.language.text import PAD, Vocabulary
from recommenders.p5.networks.prompt import MAX_WORDS, PromptNetwork
from recommenders.p5.networks.t5_decoding import T5Scorer, encoded
from simenv import checks
from simenv.errors import ConfigError, MissingExtraError


@dataclass(frozen=True, slots=True, kw_only=True)
class T5Options:
    """Shape of a network from scratch, or the checkpoint to start from."""

    backbone: str = "t5"  # encoder-decoder; or "llama", decoder-only, as in OpenP5
    embedding_size: int = 64
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1
    checkpoint_path: str | None = None
    item_input: str = "pooled"  # or "tokens"
    lora: Mapping[str, Any] | None = None  # options of peft.LoraConfig

    def __post_init__(self) -> None:
        checks.one_of("backbone", self.backbone, ("t5", "llama"))
        checks.one_of("item_input", self.item_input, ("pooled", "tokens"))
        for name in ("embedding_size", "layers", "heads"):
            checks.whole(name, getattr(self, name), 1)
        fits = self.embedding_size % self.heads == 0
        checks.require(fits, "embedding_size", self.embedding_size, f"a multiple of heads={self.heads}")
        checks.share("dropout", self.dropout, open_high=True)


def make_t5(options: T5Options, n_tokens: int) -> nn.Module:
    """A T5ForConditionalGeneration with `n_tokens` embeddings, from scratch or from a checkpoint."""
    from transformers import T5Config, T5ForConditionalGeneration

    if options.checkpoint_path is not None:
        try:
            network = T5ForConditionalGeneration.from_pretrained(options.checkpoint_path)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"checkpoint_path={options.checkpoint_path}: no readable T5 ({reason})") from error
        network.resize_token_embeddings(n_tokens, mean_resizing=False)
    else:
        size = options.embedding_size
        shape: dict[str, Any] = {
            "vocab_size": n_tokens,
            "d_model": size,
            "d_kv": size // options.heads,
            "d_ff": 4 * size,
            "num_layers": options.layers,
            "num_decoder_layers": options.layers,
            "num_heads": options.heads,
            "dropout_rate": options.dropout,
            "decoder_start_token_id": PAD,
            "tie_word_embeddings": True,
        }
        network = T5ForConditionalGeneration(T5Config(**shape))
    if options.lora is not None:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise MissingExtraError("lora", "torch") from error
        get_peft_model(network, LoraConfig(**{"target_modules": ["q", "v"], **options.lora}))  # adapts it in place
        network.shared.weight.requires_grad = True  # the tokens of the codes are new
    return network


class P5Network(PromptNetwork):
    """T5 over words, user digits and item codes."""

    t5: Any

    def __init__(self, codes: Tensor, vocabulary: Vocabulary, options: T5Options) -> None:
        super().__init__(codes, vocabulary, options.item_input)
        self.t5 = make_t5(options, vocabulary.size)
        self.size = int(self.t5.config.d_model)
        self.whole_words = nn.Embedding(MAX_WORDS, self.size)
        nn.init.zeros_(self.whole_words.weight)

    def embedding(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.t5.shared(tokens))

    def output(self, offset: int, size: int) -> Tensor:
        weight: Tensor = self.t5.get_output_embeddings().weight
        return weight[offset : offset + size]

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        embedded, mask = self.embed(rows)
        return self.t5.encoder(inputs_embeds=embedded, attention_mask=mask.long()).last_hidden_state, mask

    def decode(self, states: Tensor, mask: Tensor, inputs: Tensor) -> Tensor:
        out = self.t5.decoder(
            input_ids=inputs, encoder_hidden_states=states, encoder_attention_mask=mask.long(), use_cache=False
        ).last_hidden_state
        return self.scaled(out)

    def scaled(self, hidden: Tensor) -> Tensor:
        """Decoder outputs as the output embeddings expect them."""
        return hidden * self.size**-0.5 if self.t5.config.tie_word_embeddings else hidden

    def scorer(self, sources: Tensor) -> T5Scorer:
        embedded, mask = self.embed(sources)
        return T5Scorer(self, encoded(self.t5, embedded, mask), mask)
