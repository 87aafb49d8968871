"""Replies once paid for, kept in one SQLite file: asking again costs nothing, and a killed run goes on where it was."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from offline.errors import ResponseCacheError
from offline.replies import Reply, Usage
from reranker.sqlite_files import cut_log, turn_log_on

CACHE_FILE = "llm-cache.sqlite"
"""Its usual name, in the dataset directory whose stages it serves."""

BUSY_SECONDS = 30.0
"""How long one process waits for another's commit, which takes milliseconds: by then the other one hangs."""

FORMAT = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    text TEXT NOT NULL,
    finish TEXT NOT NULL,
    refusal TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS tags (
    tag TEXT NOT NULL,
    reply INTEGER NOT NULL REFERENCES replies ON DELETE CASCADE,
    PRIMARY KEY (tag, reply)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tags_by_reply ON tags (reply);
CREATE TABLE IF NOT EXISTS spending (
    stage TEXT NOT NULL,
    model TEXT NOT NULL,
    asks INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost REAL NOT NULL,
    PRIMARY KEY (stage, model)
) WITHOUT ROWID;
"""
_SAVE = """
INSERT INTO replies (key, text, finish, refusal) VALUES (?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET text = excluded.text, finish = excluded.finish, refusal = excluded.refusal
RETURNING id
"""
_FIND = "SELECT id, text, finish, refusal FROM replies WHERE key = ?"
# The reply may have been forgotten since it was found.
_TAG = "INSERT OR IGNORE INTO tags SELECT ?, id FROM replies WHERE id = ?"
_BOOK = """
INSERT INTO spending VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (stage, model) DO UPDATE SET
    asks = asks + excluded.asks, input_tokens = input_tokens + excluded.input_tokens,
    output_tokens = output_tokens + excluded.output_tokens, cost = cost + excluded.cost
"""


@dataclass(frozen=True, slots=True)
class Spending:
    """What one stage has used of one model, over all runs with this cache."""

    stage: str
    model: str
    usage: Usage
    cost: float
    """In the currency of the prices that were set at the time."""


class ResponseCache:
    """The replies of an LLM by the key of the call, with whose words they were made of; a context manager.

    Any number of processes may share the file. Write-ahead log, synchronous=NORMAL: what was saved survives the death
    of the process at any moment; the last seconds may be lost with the power of the machine, and are then asked again.
    Every method raises ResponseCacheError if the file cannot be read or written. One object serves one thread.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._doing("open"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            self._prepare()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def find(self, key: bytes, tags: Iterable[str] = ()) -> Reply | None:
        """Return the reply kept under a key, if any; as `find_all`."""
        return self.find_all([(key, tags)])[0]

    def find_all(self, calls: Iterable[tuple[bytes, Iterable[str]]]) -> list[Reply | None]:
        """Return the replies kept under the keys, each given with the tags of its call.

        Tags that a reply does not carry yet are added to it: the same text written by two is forgotten with either.
        """
        found: list[Reply | None] = []
        new_tags: list[tuple[str, int]] = []
        with self._doing("read"), self._transaction("DEFERRED"):
            for key, tags in calls:
                row = self._connection.execute(_FIND, (key,)).fetchone()
                found.append(Reply(*row[1:]) if row else None)
                new_tags += self._missing_tags(row[0], tags) if row else []
        if new_tags:
            with self._doing("write"), self._transaction():
                self._connection.executemany(_TAG, new_tags)
        return found

    def save(self, key: bytes, reply: Reply, tags: Iterable[str] = ()) -> None:
        """Keep a reply, in place of an earlier one. It is safe once this returns."""
        with self._doing("write"), self._transaction():
            row = (key, reply.text, reply.finish, reply.refusal)
            found = self._connection.execute(_SAVE, row).fetchone()
            self._connection.executemany(_TAG, self._missing_tags(found[0], tags))

    def forget(self, tag: str) -> int:
        """Delete every reply that carries a tag, from the file's pages too, and return how many there were.

        A run that is under way may save such a reply afterwards: take the words out of the dataset first, and forget
        when no run has them in flight.
        """
        with self._doing("write"):
            with self._transaction():
                chosen = "DELETE FROM replies WHERE id IN (SELECT reply FROM tags WHERE tag = ?)"
                count = self._connection.execute(chosen, (tag,)).rowcount
            # The log still holds the pages as they were before.
            cut_log(self._connection)
        return count

    def book(self, stage: str, model: str, usage: Usage, cost: float) -> None:
        """Add what was used to the stage's account."""
        row = (stage, model, usage.asks, usage.input_tokens, usage.output_tokens, cost)
        with self._doing("write"):
            self._connection.execute(_BOOK, row)

    def spending(self) -> list[Spending]:
        """Return the accounts, by stage and model."""
        with self._doing("read"):
            rows = self._connection.execute("SELECT * FROM spending ORDER BY stage, model").fetchall()
        return [Spending(stage, model, Usage(*usage), cost) for stage, model, *usage, cost in rows]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make one transaction of the saves within: many times as fast, and all of them or none."""
        with self._doing("write"), self._transaction():
            yield

    def _missing_tags(self, reply: int, tags: Iterable[str]) -> list[tuple[str, int]]:
        wanted = set(tags)
        if wanted:
            wanted -= {tag for (tag,) in self._connection.execute("SELECT tag FROM tags WHERE reply = ?", (reply,))}
        return [(tag, reply) for tag in wanted]

    @contextmanager
    def _transaction(self, kind: Literal["DEFERRED", "IMMEDIATE"] = "IMMEDIATE") -> Iterator[None]:
        if self._connection.in_transaction:
            yield
            return
        self._connection.execute(f"BEGIN {kind}")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # A full disk has rolled back already.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _prepare(self) -> None:
        found = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, FORMAT):
            raise ResponseCacheError(
                f"{self.path} holds replies of format {found}, this version reads format {FORMAT}: "
                "use the version that wrote it, or another file"
            )
        turn_log_on(self._connection)
        for setting in ("synchronous = NORMAL", "foreign_keys = ON", "secure_delete = ON"):
            self._connection.execute(f"PRAGMA {setting}")
        with self._transaction():
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {FORMAT}")

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ResponseCacheError(
                f"cannot {what} the LLM's replies in {self.path}: {error}. Is there space, may this user write there, "
                "and is it a cache of this program?"
            ) from error
