"""User histories in one SQLite file: the newest events of every user, merged by event id."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from reranker.errors import HistoryStoreError
from reranker.records import Event

# A reader waits this long for a writer's commit before it gives up; a merge of 1,000 events commits in about 20 ms.
BUSY_SECONDS = 1.0
# Enough for every history length that was of use in evaluation, with room for late events; bounds what a user can fill.
KEEP_EVENTS = 200
FORMAT = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    user_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    item_id TEXT NOT NULL,
    event_time INTEGER NOT NULL,
    kind TEXT NOT NULL,
    rating REAL,
    aspects_vector BLOB,
    aspects_space TEXT,
    PRIMARY KEY (user_id, event_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS events_by_recency ON events (user_id, event_time DESC, event_id DESC);
"""
_READ = """
SELECT event_id, item_id, event_time, kind, rating, aspects_vector, aspects_space FROM events
WHERE user_id = ? ORDER BY event_time DESC, event_id DESC LIMIT ?
"""
_MERGE = """
INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (user_id, event_id) DO UPDATE SET
    item_id = excluded.item_id, event_time = excluded.event_time, kind = excluded.kind, rating = excluded.rating,
    aspects_vector = coalesce(excluded.aspects_vector, aspects_vector),
    aspects_space = coalesce(excluded.aspects_space, aspects_space)
"""
_TRIM = """
DELETE FROM events WHERE user_id = ?1 AND event_id IN (
    SELECT event_id FROM events WHERE user_id = ?1 ORDER BY event_time DESC, event_id DESC LIMIT -1 OFFSET ?2
)
"""


class SqliteHistoryStore:
    """A HistoryStore in one file, shared by any number of reading processes and one writer at a time.

    Write-ahead log, synchronous=FULL: a merge survives the loss of power once it has returned. Only the newest
    `keep` events of a user stay.
    """

    def __init__(self, path: Path, keep: int = KEEP_EVENTS) -> None:
        self.path = path
        self._keep = keep
        # One connection, used by one thread at a time: reads of 80 us are not worth a pool.
        self._lock = threading.Lock()
        with self._doing("open"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
            self._prepare()

    def close(self) -> None:
        self._connection.close()

    def read(self, user_id: str, limit: int) -> tuple[Event, ...] | None:
        with self._doing("read"), self._lock:
            rows = self._connection.execute(_READ, (user_id, limit)).fetchall()
        return tuple(map(_event, rows)) if rows else None

    def count(self, user_id: str) -> int:
        with self._doing("read"), self._lock:
            found = self._connection.execute("SELECT count(*) FROM events WHERE user_id = ?", (user_id,)).fetchone()
        return int(found[0])

    def merge(self, events: dict[str, list[Event]]) -> None:
        rows = [_row(user_id, event) for user_id, of_user in events.items() for event in of_user]
        with self._doing("write"), self._lock, self._connection:
            self._connection.executemany(_MERGE, rows)
            self._connection.executemany(_TRIM, [(user_id, self._keep) for user_id in events])

    def _prepare(self) -> None:
        found = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, FORMAT):
            raise HistoryStoreError(
                f"{self.path} holds histories of format {found}, this version reads format {FORMAT}: "
                "use the version that wrote it, or another file"
            )
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript(_SCHEMA)
        self._connection.execute(f"PRAGMA user_version = {FORMAT}")

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise HistoryStoreError(f"cannot {what} the histories in {self.path}: {error}") from error


def _row(user_id: str, event: Event) -> tuple[object, ...]:
    vector = None if event.aspects_vector is None else event.aspects_vector.astype("<f4").tobytes()
    space = event.aspects_space if vector is not None else None
    return user_id, event.event_id, event.item_id, event.event_time, event.kind, event.rating, vector, space


def _event(row: tuple[str, str, int, str, float | None, bytes | None, str | None]) -> Event:
    event_id, item_id, event_time, kind, rating, blob, space = row
    vector = None if blob is None else np.frombuffer(blob, "<f4")
    return Event(event_id, item_id, event_time, kind, rating, vector, space)
