"""Ledger, Budget and Spending: what the language model has cost so far, per round, and what it may cost.

Nothing here calls a model or knows a price list: prices are options, in dollars per million tokens.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simenv.errors import BudgetExhausted, ConfigError
from simenv.language_models.background_loop import when_dropped

COUNTERS = (
    "calls",
    "cached",
    "prompt_tokens",
    "completion_tokens",
    "dollars",
    "retries",
    "pages",
    "repairs",
    "second_attempts",
    "fallbacks",
)


_job = ""


@contextmanager
def paid_by(folder: Path, name: str) -> Iterator[None]:
    """While it lasts, calls of this process are those of one job of the run in this folder."""
    global _job
    before, _job = _job, hashlib.sha256(f"{folder.resolve()}/{name}".encode()).hexdigest()[:16]
    try:
        yield
    finally:
        _job = before


def job() -> str:
    """Whose calls they are now; "" = nobody's in particular."""
    return _job


class Ledger:
    """Counters of one run, in total and per round.

    Counters: ``calls`` that reached the backend, answers ``cached``, ``prompt_tokens`` and ``completion_tokens`` paid
    for, ``dollars``, wire-level ``retries``, ``pages`` scored, and the rungs of the parse ladder: local ``repairs``,
    ``second_attempts``, ``fallbacks`` to the embedded model, with ``why:<reason>`` for every answer that failed;
    ``probes``, the small questions by which a dialect was found, and requests refused for theirs.

    Attributes:
        endpoint: the dialect of the server that was asked; "" = none was.
        words: what a server last said when it gave no answer.
    """

    def __init__(self) -> None:
        self.round = 0
        self.endpoint = ""
        self.words = ""
        self._rounds: dict[int, dict[str, float]] = {}

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a counter of the current round."""
        counters = self._rounds.setdefault(self.round, {})
        counters[name] = counters.get(name, 0) + amount

    def total(self, name: str) -> float:
        """A counter over all rounds."""
        return sum(counters.get(name, 0) for counters in self._rounds.values())

    def as_dict(self) -> dict[str, Any]:
        """For the run card: ``{"total": {...}, "rounds": [{"round": 0, ...}, ...]}``; whole counters as integers."""
        names = [*COUNTERS, *sorted({name for c in self._rounds.values() for name in c} - set(COUNTERS))]
        return {
            **({"endpoint": self.endpoint} if self.endpoint else {}),
            "total": {name: _plain(self.total(name)) for name in names},
            "rounds": [
                {"round": number, **{name: _plain(counters[name]) for name in names if counters.get(name)}}
                for number, counters in sorted(self._rounds.items())
            ],
        }

    def load(self, stored: Mapping[str, Any]) -> None:
        """Restore what `as_dict` gave."""
        self._rounds = {
            int(row["round"]): {name: value for name, value in row.items() if name != "round"}
            for row in stored["rounds"]
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a run may spend; None = no limit.

    Attributes:
        calls: calls that reach the backend, retries included.
        tokens: prompt and completion tokens together.
        dollars: money.
        price_prompt, price_completion: dollars per million tokens.
    """

    calls: int | None = None
    tokens: int | None = None
    dollars: float | None = None
    price_prompt: float = 0.0
    price_completion: float = 0.0

    def __post_init__(self) -> None:
        for name in ("calls", "tokens", "dollars"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"llm.budget_{name}={value}: expected a number of at least 0, or null for no limit")
        if self.price_prompt < 0 or self.price_completion < 0:
            raise ConfigError(
                f"llm.price_prompt={self.price_prompt}, llm.price_completion={self.price_completion}: "
                "expected dollars per million tokens, at least 0"
            )
        if self.dollars is not None and self.price_prompt == self.price_completion == 0:
            raise ConfigError(
                "llm.budget_dollars needs llm.price_prompt and llm.price_completion (dollars per million tokens)"
            )

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Dollars for these tokens."""
        return (prompt_tokens * self.price_prompt + completion_tokens * self.price_completion) / 1e6

    @property
    def limits(self) -> tuple[float, float, float]:
        """Calls, tokens and dollars; infinite where there is no limit."""
        calls, tokens, dollars = (
            math.inf if limit is None else float(limit) for limit in (self.calls, self.tokens, self.dollars)
        )
        return calls, tokens, dollars

    def exhausted(self, spent: tuple[float, float, float]) -> BudgetExhausted:
        """The error that says which limits there are and what has been spent."""
        parts = [
            f"llm.budget_{name}={limit:.10g} (spent {amount:.10g})"
            for name, limit, amount in zip(("calls", "tokens", "dollars"), self.limits, spent, strict=True)
            if limit < math.inf
        ]
        return BudgetExhausted(
            f"the next call does not fit the language-model budget: {', '.join(parts)}; "
            "answers so far are in the cache if there is one, raise the limit and resume"
        )


class SharedFile:
    """A small SQLite file that processes share, opened on first use; subclasses say what is in it.

    Attributes:
        name: the option that names the file.
        what: what it holds, for the message of an unusable one.
        setup: statements that make it.
    """

    name: str
    what: str
    setup: tuple[str, ...]

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        """Give the file back."""
        if self._connection is not None:
            self._dropped.detach()
            self._connection.close()
            self._connection = None

    def _file(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                if self.path is not None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                where = ":memory:" if self.path is None else self.path
                connection = sqlite3.connect(where, timeout=60.0, check_same_thread=False)
                with connection:
                    for statement in self.setup:
                        connection.execute(statement)
            except (sqlite3.Error, OSError) as error:
                raise ConfigError(f"{self.name}={self.path}: not a usable file of {self.what} ({error})") from error
            self._connection = connection
            self._dropped = when_dropped(self, connection.close)
        return self._connection


class Spending(SharedFile):
    """Calls, tokens and dollars spent so far: in memory, or in a file that jobs, processes and resumed runs share.

    What is reserved counts as spent until it is settled, also when the process dies in between: the server may have
    billed it.

    Args:
        path: SQLite file; made, with its folder, if absent. None = memory.
    """

    name = "llm.budget_file"
    what = "spending"
    setup = (
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = NORMAL",
        "CREATE TABLE IF NOT EXISTS spending "
        "(id INTEGER PRIMARY KEY, calls REAL NOT NULL, tokens REAL NOT NULL, dollars REAL NOT NULL)",
        "INSERT OR IGNORE INTO spending VALUES (1, 0, 0, 0)",
    )

    def reserve(self, need: tuple[float, float, float], limits: tuple[float, float, float]) -> bool:
        """Spend `need` if that stays within `limits`; returns whether it does. Atomic across processes."""
        rule = "calls + ? <= ? AND tokens + ? <= ? AND dollars + ? <= ? + 1e-12"
        bounds = [value for pair in zip(need, limits, strict=True) for value in pair]
        with self._file() as connection:
            done = connection.execute(f"UPDATE spending SET {_ADD} WHERE {rule}", (*need, *bounds))
            return done.rowcount == 1

    def settle(self, difference: tuple[float, float, float]) -> None:
        """Add what a reservation turned out to cost beyond itself; mostly negative."""
        with self._file() as connection:
            connection.execute(f"UPDATE spending SET {_ADD}", difference)

    def total(self) -> tuple[float, float, float]:
        """Calls, tokens, dollars."""
        calls, tokens, dollars = self._file().execute("SELECT calls, tokens, dollars FROM spending").fetchone()
        return calls, tokens, dollars


_ADD = "calls = calls + ?, tokens = tokens + ?, dollars = dollars + ?"


def _plain(value: float) -> float | int:
    return int(value) if float(value).is_integer() else round(float(value), 9)
