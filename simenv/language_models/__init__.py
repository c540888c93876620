"""Language models behind one small async interface, and the decorators around them.

`connect` builds what a run uses: a backend, held to limits and a budget, in front of it a cache.
"""

from simenv.language_models.accounting import Budget, Ledger
from simenv.language_models.background_loop import run
from simenv.language_models.base import (
    CacheMiss,
    Completion,
    Decorator,
    Example,
    LanguageModel,
    LanguageModelError,
    Message,
    Request,
    TransientError,
    Tuning,
    UnansweredError,
)
from simenv.language_models.factories import carrying, connect, openai, replay, smollm2, transformers

__all__ = [
    "Budget",
    "CacheMiss",
    "Completion",
    "Decorator",
    "Example",
    "LanguageModel",
    "LanguageModelError",
    "Ledger",
    "Message",
    "Request",
    "TransientError",
    "Tuning",
    "UnansweredError",
    "carrying",
    "connect",
    "openai",
    "replay",
    "run",
    "smollm2",
    "transformers",
]
