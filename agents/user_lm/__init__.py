"""User language models: small decoders trained on behaviour, read through the LLM users' own prompts.

`corpus` turns histories into pages as `PagePrompt` writes them, with what really was picked as the answer; `exposure`
takes the pages that a run showed; `vocabulary` makes the tokenizer; `batches` and `network` need torch, and are
imported only where a model is trained.
"""

from agents.user_lm.corpus import Corpus, Example, HeldOut, PromptOptions
from agents.user_lm.exposure import LoggedPages, ShownLog

__all__ = ["Corpus", "Example", "HeldOut", "LoggedPages", "PromptOptions", "ShownLog"]
