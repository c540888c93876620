"""Cached and Replay: answers remembered in an SQLite file, and a model that has nothing but them.

The cache knows requests only by their key (see `Request.key`); it stores neither prompts nor endpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simenv.errors import ConfigError
from simenv.language_models import accounting
from simenv.language_models.background_loop import when_dropped
from simenv.language_models.base import CacheMiss, Completion, Decorator, LanguageModel, Request, UnansweredError
from simenv.language_models.wire.secrets import public

_CREATE = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    failure TEXT,
    text TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    finish TEXT NOT NULL,
    digest TEXT,
    asker TEXT
) WITHOUT ROWID
"""
_COLUMNS = "failure, text, prompt_tokens, completion_tokens, finish"
_INSERT = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


class Cached(Decorator):
    """Answers from a file where it can, from the model around which it is where it must.

    Several processes may share the file (WAL): the first answer to be stored is the answer of all, so that what a run
    saw is what its replay sees. Equal requests in flight are asked once. Failures are stored too, but only at
    `commit`, when the run has gone on without the answer: a run that stops because its server is down leaves none.

    An answer that a job paid for in a round which a kill then took back is no gift to the job when it plays that round
    again: it is counted as the call it was, so that a resumed run's accounts are those of one that was never stopped.

    Args:
        inner: the model to ask on a miss.
        path: the SQLite file; made, with its folder, if absent.
    """

    def __init__(self, inner: LanguageModel, path: str | Path) -> None:
        super().__init__(inner)
        self.path = Path(path)
        if isinstance(inner, Replay) and not self.path.is_file():
            raise ConfigError(f"llm.cache={self.path}: no such file; a replay needs the cache of an earlier run")
        self._connection: sqlite3.Connection | None = None
        self._pending: dict[str, asyncio.Future[Completion]] = {}
        self._failures: dict[str, str] = {}
        self._life = uuid.uuid4().hex[:16]

    async def complete(self, request: Request) -> Completion:
        key = request.key(self.model, self.parameters)
        while (pending := self._pending.get(key)) is not None:
            await asyncio.wait([pending])
        stored = self._stored(key)
        if stored is not None:
            self._account(key, stored)
            return stored
        mine = self._pending[key] = asyncio.get_running_loop().create_future()
        try:
            return self._store(key, await self.inner.complete(request))
        except UnansweredError as error:
            stored = self._stored(key)
            if stored is not None:  # another process was luckier; its answer is everybody's
                return stored
            self._failures[key] = error.reason
            raise
        finally:
            del self._pending[key]
            mine.cancel()

    async def commit(self) -> None:
        rows = [(key, self.model, reason, "", 0, 0, "") for key, reason in self._failures.items()]
        if rows:
            with self._writing() as connection:
                connection.executemany(_INSERT, [(*row, _digest(row[0], row[2:]), None) for row in rows])
        self._failures.clear()
        await super().commit()

    async def aclose(self) -> None:
        if self._connection is not None:
            self._dropped.detach()
            self._connection.close()
            self._connection = None
        await super().aclose()

    def _stored(self, key: str) -> Completion | None:
        if key in self._failures:
            raise UnansweredError(self._failures[key])  # given up before
        try:
            row = self._file().execute(f"SELECT {_COLUMNS}, digest FROM answers WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:  # a damaged page of the file
            raise self._damaged(key, str(error)) from error
        if row is None:
            return None
        failure, text, prompt_tokens, completion_tokens, finish = row[:-1]
        if row[-1] is not None and row[-1] != _digest(key, row[:-1]):
            raise self._damaged(key, "it is not what was stored")
        if failure is not None:
            self.ledger.count("cached")
            raise UnansweredError(failure)  # given up before
        return Completion(
            text=text, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, finish=finish, cached=True
        )

    def _store(self, key: str, answer: Completion) -> Completion:
        row = (key, self.model, None, answer.text, answer.prompt_tokens, answer.completion_tokens, answer.finish)
        with self._writing() as connection:
            written = connection.execute(_INSERT, (*row, _digest(key, row[2:]), self._asker())).rowcount
        return answer if written else self._stored(key) or answer

    def _asker(self) -> str | None:
        job = accounting.job()
        return f"{job}/{self.ledger.round}/{self._life}" if job else None

    def _account(self, key: str, answer: Completion) -> None:
        """Count an answer from the file: as a call where this very job asked for it in this very round, in a life that
        a kill has ended.
        """
        now = self._asker()
        if now is not None:
            with self._writing() as connection:
                (asker,) = connection.execute("SELECT asker FROM answers WHERE key = ?", (key,)).fetchone()
                before, _, life = (asker or "").rpartition("/")
                again = before == now.rpartition("/")[0] and life != self._life
                if again:
                    connection.execute("UPDATE answers SET asker = ? WHERE key = ?", (now, key))
            if again:
                self.ledger.count("calls")
                self.ledger.count("prompt_tokens", answer.prompt_tokens)
                self.ledger.count("completion_tokens", answer.completion_tokens)
                self.ledger.count("dollars", self.cost(answer.prompt_tokens, answer.completion_tokens))
                return
        self.ledger.count("cached")

    def _damaged(self, key: str, why: str) -> ConfigError:
        return ConfigError(
            f"llm.cache={self.path}: the answer with key {key[:16]} is damaged ({why}); expected the file as it was "
            "written: restore it, or delete that row to have it asked anew"
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction; a full disk or a damaged page ends the run with the file's name."""
        try:
            with self._file() as connection:
                yield connection
        except sqlite3.Error as error:
            raise ConfigError(f"llm.cache={self.path}: {error}; expected a whole file that can be written") from error

    def _file(self) -> sqlite3.Connection:
        """The connection, opened on first use; all of it on the event loop's thread."""
        if self._connection is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                connection = sqlite3.connect(self.path, timeout=60.0)
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(_CREATE)
                columns = {row[1] for row in connection.execute("PRAGMA table_info(answers)")}
                for later in ("digest", "asker"):  # a cache from before answers had these
                    if later not in columns:
                        with contextlib.suppress(sqlite3.OperationalError):  # another process was first
                            connection.execute(f"ALTER TABLE answers ADD COLUMN {later} TEXT")
                connection.execute(f"SELECT {_COLUMNS}, digest, asker FROM answers LIMIT 1")
            except (sqlite3.Error, OSError) as error:
                raise ConfigError(f"llm.cache={self.path}: not a usable answer cache ({error})") from error
            self._connection = connection
            self._dropped = when_dropped(self, connection.close)
        return self._connection


def _digest(key: str, values: Sequence[Any]) -> str:
    """Of an answer under its key: what a damaged file, or another hand, would change."""
    return hashlib.sha256(json.dumps([key, *values]).encode()).hexdigest()[:16]


class Replay(LanguageModel):
    """A model that is not there: whatever its cache does not hold is an error that names the request."""

    def __init__(self, model: str, parameters: Mapping[str, Any] | None = None) -> None:
        super().__init__(model, public(parameters or {}))

    async def complete(self, request: Request) -> Completion:
        key = request.key(self.model, self.parameters)
        where = f"{request.label}, " if request.label else ""
        raise CacheMiss(
            f"replay: the cache has no answer of '{self.model}' for {where}attempt {request.attempt}, prompts "
            f"{request.prompt_version or 'without version'} (key {key[:16]}); expected the cache of an equal run"
        )
