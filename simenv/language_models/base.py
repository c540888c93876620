"""LanguageModel: the small async interface to whatever answers prompts, its values and its errors.

It knows nothing of users, pages or recommenders: messages in, text out.
"""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simenv.errors import ConfigError, SimenvError
from simenv.language_models.accounting import Ledger


class LanguageModelError(SimenvError):
    """The language model cannot be used at all (wrong key, unknown model, server gone); the run has to stop."""


class CacheMiss(LanguageModelError):
    """A replay was asked for an answer that its cache does not hold."""


class UnansweredError(SimenvError):
    """This one request got no usable answer; others may.

    Attributes:
        reason: one word for the accounting.
        detail: what the server said, without keys.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class TransientError(UnansweredError):
    """Asking again, after `retry_after` seconds where the server said so, may help."""

    def __init__(self, reason: str, detail: str = "", retry_after: float | None = None) -> None:
        super().__init__(reason, detail)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and the form its answer must have.

    Attributes:
        messages: the conversation so far.
        schema: JSON schema of the answer; None = free text.
        max_tokens: longest answer, tokens.
        temperature: 0 = the most likely answer.
        prompt_version: of the templates the messages came from.
        attempt: 0 at first, 1 when asked again.
        label: where in a run it was asked, for error messages; no part of the cache key.
    """

    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 1024
    temperature: float = 0.0
    prompt_version: str = ""
    attempt: int = 0
    label: str = ""

    def __post_init__(self) -> None:
        if not self.messages:
            raise ConfigError("language model request: no messages; expected at least one")
        if self.max_tokens < 1 or self.temperature < 0:
            raise ConfigError(
                f"language model request: max_tokens={self.max_tokens}, temperature={self.temperature}; "
                "expected at least 1 and 0"
            )

    def key(self, model: str, parameters: Mapping[str, Any]) -> str:
        """What identifies the answer in a cache: a SHA-256 over all that decides it, not where it was computed."""
        content = {
            "model": model,
            "parameters": dict(parameters),
            "messages": [[message.role, message.content] for message in self.messages],
            "schema": self.schema,
            "max_tokens": self.max_tokens,
            "temperature": float(self.temperature),
            "prompt_version": self.prompt_version,
            "attempt": self.attempt,
        }
        written = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(written.encode()).hexdigest()

    def estimated_tokens(self) -> int:
        """Prompt tokens by the rule of thumb of four characters each, plus four a message for the chat format."""
        return sum(estimate_tokens(message.content) + 4 for message in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An answer and what it took."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish: str = "stop"  # "length" = cut off at max_tokens
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """A request and the integer that a good answer gives: the only one of its schema."""

    request: Request
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How a local model is tuned: low-rank adapters (Hu et al. 2021, "LoRA") on all its linear layers.

    Attributes:
        rank: of the adapters.
        epochs: passes over the examples.
        batch_size: examples a step.
        learning_rate: its peak.
        max_minutes: wall clock at which it ends before; None = no limit. The result then depends on the machine.
        seed: of the adapters' start and of the order.
        folder: where adapters are kept and looked for; None = `adapters` in the user's cache folder.
    """

    rank: int = 8
    epochs: int = 2
    batch_size: int = 8
    learning_rate: float = 1e-3
    max_minutes: float | None = None
    seed: int = 0
    folder: str | None = None

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"tuning.{name}={value}: expected a whole number of at least 1")
        if not self.learning_rate > 0:
            raise ConfigError(f"tuning.learning_rate={self.learning_rate}: expected a positive number")


def estimate_tokens(text: str) -> int:
    """Tokens of a text where no tokenizer is at hand: a quarter of its characters, rounded up."""
    return -(-len(text) // 4)


class LanguageModel(ABC):
    """Answers requests. Subclass it, or wrap another one in a decorator.

    Attributes:
        model: the name under which answers are cached.
        parameters: further settings that change answers (``top_p``, ``reasoning_effort``, ...), part of the cache key.
        ledger: what was spent; shared by all decorators around one backend.
        concurrency: requests that it can use side by side.
        compact: whether it is best told little, by short templates.
    """

    compact = False

    def __init__(self, model: str, parameters: Mapping[str, Any] | None = None) -> None:
        if not model:
            raise ConfigError("llm.model is empty; expected the name of a model")
        self.model = model
        self.parameters: Mapping[str, Any] = dict(parameters or {})
        self.ledger = Ledger()
        self.concurrency = 64

    def __deepcopy__(self, memo: dict[int, Any]) -> LanguageModel:
        """A copy of users shares their language model: connections, ledger and budget are one."""
        return self

    @abstractmethod
    async def complete(self, request: Request) -> Completion:
        """Answer one request. Many may be under way at once, all on one event loop.

        Raises:
            LanguageModelError: where no request can succeed.
            UnansweredError: where this one did not; `TransientError` where asking again may help.
        """

    def count_tokens(self, request: Request) -> tuple[int, str]:
        """Prompt tokens of a request and how they were counted."""
        return request.estimated_tokens(), "estimated at 4 characters a token"

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Dollars for these tokens, where prices are known; else 0."""
        return 0.0

    def tune(self, examples: Sequence[Example], options: Tuning) -> Path:
        """Teach the model by examples; returns a folder of adapters for `adapted`, which may be an earlier call's.

        Raises:
            ConfigError: the model's weights are not here.
        """
        raise ConfigError(
            f"{self.model} cannot be tuned here; expected a local model, smollm2 or transformers, or tuning=null"
        )

    def adapted(self, folder: Path) -> LanguageModel:
        """The same model with these adapters; accounting, budget and cache file are shared, answers are not.

        Raises:
            ConfigError: as for `tune`, or there are no adapters of this model.
        """
        raise ConfigError(f"{self.model} takes no adapters; expected a local model, smollm2 or transformers")

    async def commit(self) -> None:
        """All answers so far were used, failures included; decorators that remember them may now write them down."""
        return None

    async def aclose(self) -> None:
        """Give connections and files back."""
        return None


class Decorator(LanguageModel):
    """A language model around another one, under the same name and with the same ledger."""

    def __init__(self, inner: LanguageModel) -> None:
        super().__init__(inner.model, inner.parameters)
        self.inner = inner
        self.ledger = inner.ledger
        self.concurrency = inner.concurrency
        self.compact = inner.compact

    def tune(self, examples: Sequence[Example], options: Tuning) -> Path:
        return self.inner.tune(examples, options)

    def adapted(self, folder: Path) -> LanguageModel:
        other = copy.copy(self)
        other.inner = self.inner.adapted(folder)
        other.model = other.inner.model
        return other

    def count_tokens(self, request: Request) -> tuple[int, str]:
        return self.inner.count_tokens(request)

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        return self.inner.cost(prompt_tokens, completion_tokens)

    async def commit(self) -> None:
        await self.inner.commit()

    async def aclose(self) -> None:
        await self.inner.aclose()
