"""Sets of ids that live on disk, so that memory does not grow with what is imported.

A private SQLite file holds them: its pages are cached up to `CACHE_KIB`, the rest is the operating system's to keep or
to drop. Nothing in it has to outlive the process, so there is no journal, and the file has no name once it is open.
"""

import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Self

CACHE_KIB = 8 * 1024
"""Memory for pages. Measured with a million reviews (45 MB of ids): with 32 MiB instead, filling the set takes 5.6
and not 8.6 seconds, of an import of minutes; with 4 MiB the same. The operating system's own cache does the rest."""


class DiskSet:
    """A set of texts."""

    def __init__(self, database: sqlite3.Connection, name: str) -> None:
        database.execute(f"CREATE TABLE {name} (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self._cursor = database.cursor()
        self._insert = f"INSERT OR IGNORE INTO {name} VALUES (?)"  # noqa: S608 - the name is ours
        self._select = f"SELECT 1 FROM {name} WHERE id = ?"  # noqa: S608

    def add(self, text: str) -> bool:
        """Add the text, and return whether it is new."""
        return self._cursor.execute(self._insert, (text,)).rowcount == 1

    def __contains__(self, text: str) -> bool:
        return self._cursor.execute(self._select, (text,)).fetchone() is not None


class DiskCore:
    """The (m, n)-core of the interactions: every item left has m of them with users left, every user n with items left.

    It is what remains when those with fewer are taken away until there are none, in whatever order; so it does not
    depend on the order of the file.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        database.execute("CREATE TABLE interaction (user_id TEXT NOT NULL, item_id TEXT NOT NULL)")
        self._cursor = database.cursor()

    def add(self, user_id: str, item_id: str) -> None:
        """Add an interaction."""
        self._cursor.execute("INSERT INTO interaction VALUES (?, ?)", (user_id, item_id))

    def prune(self, min_per_item: int, min_per_user: int) -> int:
        """Take away what is not in the core and return how many interactions are; call once, after the last `add`."""
        # Not before: filling an index in random order costs several times what sorting once does.
        self._cursor.execute("CREATE INDEX of_item ON interaction (item_id)")
        self._cursor.execute("CREATE INDEX of_user ON interaction (user_id)")
        for column in ("item_id", "user_id"):
            self._cursor.execute(f"CREATE TABLE due_{column} (id TEXT PRIMARY KEY) WITHOUT ROWID")
            self._cursor.execute(f"INSERT INTO due_{column} SELECT DISTINCT {column} FROM interaction")  # noqa: S608
        while self._without("item_id", "user_id", min_per_item) + self._without("user_id", "item_id", min_per_user):
            pass
        [(left,)] = self._cursor.execute("SELECT count(*) FROM interaction")
        return int(left)

    def has_item(self, item_id: str) -> bool:
        """Return whether the item is in the core."""
        return self._has("item_id", item_id)

    def has_user(self, user_id: str) -> bool:
        """Return whether the user is in the core."""
        return self._has("user_id", user_id)

    def _without(self, column: str, other: str, least: int) -> int:
        """Take away the rare ones among those that are due, make due whom they leave, and return how many went.

        Only who lost something may have become rare: to count all again each time would take the square of the length
        of a chain, of which every round takes the ends.
        """
        rare = f"{column} IN (SELECT id FROM due_{column})"  # noqa: S608
        enough = f"SELECT 1 FROM interaction WHERE {column} = id LIMIT 1 OFFSET ?"  # noqa: S608
        self._cursor.execute(f"DELETE FROM due_{column} WHERE EXISTS ({enough})", (least - 1,))  # noqa: S608
        self._cursor.execute(f"INSERT OR IGNORE INTO due_{other} SELECT {other} FROM interaction WHERE {rare}")  # noqa: S608
        gone = self._cursor.execute(f"DELETE FROM interaction WHERE {rare}").rowcount  # noqa: S608
        self._cursor.execute(f"DELETE FROM due_{column}")  # noqa: S608
        return gone

    def _has(self, column: str, text: str) -> bool:
        query = f"SELECT 1 FROM interaction WHERE {column} = ? LIMIT 1"  # noqa: S608
        return self._cursor.execute(query, (text,)).fetchone() is not None


class DiskIds:
    """The file that sets and core live in; use as a context manager.

    Raises sqlite3.OperationalError when its disk is full, here and in what it makes.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / "ids.sqlite"
        self._database = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KIB}"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("BEGIN EXCLUSIVE")
        path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._database.close()

    def new_set(self, name: str) -> DiskSet:
        """Return a new set; `name` is an SQL name that no other has."""
        return DiskSet(self._database, name)

    def new_core(self) -> DiskCore:
        """Return the one core."""
        return DiskCore(self._database)
