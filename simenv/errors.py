"""Every error simenv raises on purpose, as one tree.

The command line turns a `SimenvError` into one line, ``error: ...``, and its `exit_code`. This module does
not know who raises what.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches


class SimenvError(Exception):
    """Something the user can put right; the message names the thing and what was expected."""

    exit_code = 2


class ConfigError(SimenvError):
    """An option is unknown, missing or out of range."""


class DataError(SimenvError):
    """A data set is absent, damaged or not in its documented format."""


class RunDirectoryError(SimenvError):
    """A run directory or checkpoint is missing, damaged or belongs to another run."""


class MissingExtraError(SimenvError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        self.feature, self.extra = feature, extra
        super().__init__(f"{feature} needs the extra '{extra}': run `make setup`, or `pip install -e '.[{extra}]'`")

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Workers hand errors back by pickling, which would otherwise call `__init__` with the message alone."""
        return type(self), (self.feature, self.extra)


class RecommenderError(SimenvError):
    """A recommender broke its contract: wrong shape, unknown item, NaN scores."""


class WorkerError(SimenvError):
    """A worker process died."""


class GateError(SimenvError):
    """A sanity gate failed: the run's own arithmetic contradicts itself."""


class BudgetExhausted(SimenvError):
    """A language-model budget ran out; a checkpoint was saved."""

    exit_code = 3


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Words for an error about an unknown name: `` (did you mean 'als'?)``; nothing where no known one is like it."""
    close = get_close_matches(str(name).lower(), list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def require_memory(what: str, size: int) -> None:
    """Refuse what cannot fit into this machine's memory, before it is tried.

    Args:
        what: needs the memory, in words.
        size: bytes.

    Raises:
        ConfigError: saying how much is needed and how much there is.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > there:
        raise ConfigError(
            f"{what} needs {size / 1e9:,.0f} GB of memory, and this machine has {there / 1e9:,.0f} GB; expected less"
        )
