"""The formats that a SQLite history file has had, and how an older one becomes the newest."""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from reranker.errors import HistoryStoreError
from reranker.halves import aspects_half, interaction_half
from reranker.records import Event
from reranker.sqlite_files import turn_log_on

log = logging.getLogger(__name__)

FORMAT = 2

_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS history (
    user_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    interaction_time INTEGER,
    interaction BLOB,
    aspects_time INTEGER,
    aspects BLOB,
    event_time INTEGER GENERATED ALWAYS AS (coalesce(interaction_time, aspects_time)) VIRTUAL,
    PRIMARY KEY (user_id, event_id)
) WITHOUT ROWID
""",
    "CREATE INDEX IF NOT EXISTS history_by_recency ON history (user_id, event_time DESC, event_id DESC)",
    "CREATE TABLE IF NOT EXISTS fences (user_hash TEXT PRIMARY KEY, erased_until INTEGER NOT NULL) WITHOUT ROWID",
)
# Format 1 held one row an event, its aspects beside it.
_READ_1 = "SELECT user_id, event_id, item_id, event_time, kind, rating, aspects_vector, aspects_space FROM events"
_INSERT = """
INSERT INTO history (user_id, event_id, interaction_time, interaction, aspects_time, aspects) VALUES (?, ?, ?, ?, ?, ?)
"""


def found_format(path: Path) -> int:
    """Return the format that a file is in, changing nothing; 0 for an empty one.

    Raises HistoryStoreError if it cannot be read, or is of a later version.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            found = _format(connection)
    except sqlite3.Error as error:
        raise HistoryStoreError(f"{path} cannot be read: {error}") from error
    _require_known(found, path)
    return found


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the file one of the newest format, in one transaction, or leave it as it is.

    Raises HistoryStoreError for a format of a later version.
    """
    turn_log_on(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")
    if _format(connection) == FORMAT:
        return
    # The format is read again once nobody else can write: two processes may open an old file at the same time.
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        _upgrade(connection, _format(connection), path)
        connection.execute(f"PRAGMA user_version = {FORMAT}")


def _upgrade(connection: sqlite3.Connection, found: int, path: Path) -> None:
    _require_known(found, path)
    for statement in _SCHEMA:
        connection.execute(statement)
    if found == 1:
        log.info("bringing %s from history format 1 to %d", path, FORMAT)
        connection.executemany(_INSERT, _rows_of_format_1(connection))
        connection.execute("DROP TABLE events")


def _require_known(found: int, path: Path) -> None:
    if found not in (0, 1, FORMAT):
        raise HistoryStoreError(
            f"{path} holds histories of format {found}, this version reads formats 1 to {FORMAT}: "
            "use the version that wrote it, or another file"
        )


def _format(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _rows_of_format_1(connection: sqlite3.Connection) -> Iterator[tuple[object, ...]]:
    for user_id, event_id, item_id, event_time, kind, rating, blob, space in connection.execute(_READ_1):
        vector = None if blob is None else np.frombuffer(blob, "<f4")
        event = Event(event_id, item_id, event_time, kind, rating, vector, space)
        halves = interaction_half(event), aspects_half(event)
        yield user_id, event_id, *(part for half in halves for part in (half or (None, None)))
