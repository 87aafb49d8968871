"""User histories in one SQLite file: any number of reading processes, one writer at a time."""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from reranker.errors import HistoryStoreError
from reranker.halves import Half, aspects_half, interaction_half, joined, user_hash
from reranker.histories_sqlite_formats import prepare
from reranker.records import Event, Update
from reranker.sqlite_files import cut_log

# A reader waits this long for a writer's commit before it gives up; a merge of 1,000 events commits in about 20 ms.
BUSY_SECONDS = 1.0
# Opening may find another process migrating the file: about 10 s for a million events.
OPEN_SECONDS = 60.0
# Enough for every history length that was of use in evaluation, with room for late events; bounds what a user can fill.
KEEP_EVENTS = 200

_READ = """
SELECT event_id, interaction_time, interaction, aspects_time, aspects FROM history
WHERE user_id = ? ORDER BY event_time DESC, event_id DESC LIMIT ?
"""
# The row-value comparison is Half's: by time, then by bytes. A missing half is smaller than any.
_MERGE = {
    half: f"""
INSERT INTO history (user_id, event_id, {half}_time, {half}) VALUES (?, ?, ?, ?)
ON CONFLICT (user_id, event_id) DO UPDATE SET {half}_time = excluded.{half}_time, {half} = excluded.{half}
WHERE {half}_time IS NULL OR (excluded.{half}_time, excluded.{half}) > ({half}_time, {half})
"""  # noqa: S608 - the two names below, nobody's input
    for half in ("interaction", "aspects")
}
_TRIM = {
    half: f"""
UPDATE history SET {half}_time = NULL, {half} = NULL WHERE user_id = ?1 AND event_id IN (
    SELECT event_id FROM history WHERE user_id = ?1 AND {half}_time IS NOT NULL
    ORDER BY {half}_time DESC, event_id DESC LIMIT -1 OFFSET ?2
)
"""  # noqa: S608
    for half in ("interaction", "aspects")
}
_ERASE = {
    half: f"UPDATE history SET {half}_time = NULL, {half} = NULL WHERE user_id = ? AND {half}_time <= ?"  # noqa: S608
    for half in ("interaction", "aspects")
}
_DROP_EMPTY = "DELETE FROM history WHERE user_id = ? AND interaction_time IS NULL AND aspects_time IS NULL"
_COUNT = "SELECT count(*) FROM history WHERE user_id = ?"
_FENCE = """
INSERT INTO fences VALUES (?, ?) ON CONFLICT (user_hash) DO UPDATE SET erased_until = excluded.erased_until
WHERE excluded.erased_until > erased_until
"""
# Before any event: even an undated one is at 0.
_NO_FENCE = -1
_FENCED = "SELECT erased_until FROM fences WHERE user_hash = ?"


class SqliteHistoryStore:
    """A HistoryStore in one file.

    Write-ahead log, synchronous=FULL: a merge survives the loss of power once it has returned. `keep` is the newest
    events of a user that stay. What is deleted is overwritten with zeros in the file, erased users and all.
    """

    def __init__(self, path: Path, keep: int = KEEP_EVENTS) -> None:
        self.path = path
        self._keep = keep
        # One connection, used by one thread at a time: reads of 80 us are not worth a pool.
        self._lock = threading.Lock()
        with self._doing("open"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=OPEN_SECONDS, check_same_thread=False, isolation_level=None
            )
            prepare(self._connection, path)
            self._connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")

    def close(self) -> None:
        self._connection.close()

    def read(self, user_id: str, limit: int) -> tuple[Event, ...] | None:
        # Not by _doing, which takes a tenth of the time of a read.
        try:
            with self._lock:
                rows = self._connection.execute(_READ, (user_id, min(limit, self._keep))).fetchall()
        except sqlite3.Error as error:
            raise self._failed("read", error) from error
        return tuple([joined(*row) for row in rows]) if rows else None

    def count(self, user_id: str) -> int:
        with self._doing("read"), self._lock:
            return min(self._count(user_id), self._keep)

    def merge(self, updates: Mapping[str, Sequence[Update]]) -> None:
        with self._writing() as connection:
            fences = self._fences(updates)
            connection.executemany(_MERGE["interaction"], _rows(updates, interaction_half, fences))
            connection.executemany(_MERGE["aspects"], _rows(updates, aspects_half, fences))
            for user_id in updates:
                self._trim(user_id)

    def erase(self, fences: Mapping[str, int]) -> None:
        with self._writing() as connection:
            for user_id, until in fences.items():
                connection.execute(_FENCE, (user_hash(user_id), until))
                for statement in _ERASE.values():
                    connection.execute(statement, (user_id, until))
                connection.execute(_DROP_EMPTY, (user_id,))
        # The write-ahead log still holds the pages as they were, until it is written back and cut.
        with self._doing("write"), self._lock:
            cut_log(self._connection)

    def erased_until(self, user_id: str) -> int | None:
        with self._doing("read"), self._lock:
            return self._fence(user_id)

    def _fences(self, user_ids: Iterable[str]) -> dict[str, int]:
        # Until the first erasure nobody's id need be hashed.
        if not self._connection.execute("SELECT 1 FROM fences LIMIT 1").fetchone():
            return {}
        return {user_id: fence for user_id in user_ids if (fence := self._fence(user_id)) is not None}

    def _fence(self, user_id: str) -> int | None:
        found = self._connection.execute(_FENCED, (user_hash(user_id),)).fetchone()
        return found[0] if found else None

    def _count(self, user_id: str) -> int:
        return int(self._connection.execute(_COUNT, (user_id,)).fetchone()[0])

    def _trim(self, user_id: str) -> None:
        if self._count(user_id) <= self._keep:
            return
        for statement in _TRIM.values():
            self._connection.execute(statement, (user_id, self._keep))
        self._connection.execute(_DROP_EMPTY, (user_id,))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._doing("write"), self._lock:
            # IMMEDIATE: a transaction that reads first and writes later fails at once if another wrote in between.
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:
                yield self._connection

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._failed(what, error) from error

    def _failed(self, what: str, error: Exception) -> HistoryStoreError:
        return HistoryStoreError(f"cannot {what} the histories in {self.path}: {error}")


def _rows(
    updates: Mapping[str, Sequence[Update]], to_half: Callable[[Update], Half | None], fences: Mapping[str, int]
) -> Iterator[tuple[str, str, int, bytes]]:
    for user_id, of_user in updates.items():
        fence = fences.get(user_id, _NO_FENCE)
        for update in of_user:
            if (half := to_half(update)) and half.event_time > fence:
                yield user_id, update.event_id, half.event_time, half.content
