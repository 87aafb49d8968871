"""What SQLite leaves to processes that share a file with a write-ahead log (https://sqlite.org/wal.html)."""

import sqlite3
import time

# Of two that turn the log on at once SQLite refuses one without a wait, whatever its busy time-out, since each would
# wait for the other. The other one is done in milliseconds; on a disk that is busy, in a second.
TURN_SECONDS = 5.0
PAUSE_SECONDS = 0.01


def turn_log_on(connection: sqlite3.Connection) -> None:
    """Have changes of the file go through a write-ahead log. Raises sqlite3.Error."""
    until = time.monotonic() + TURN_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(PAUSE_SECONDS)
        else:
            return


def cut_log(connection: sqlite3.Connection) -> None:
    """Write the log back into the file and cut it, so that what was deleted is nowhere as it was.

    Raises sqlite3.Error, also if another connection reads the file as it was before and does not end in the time that
    this one waits. Safe to repeat.
    """
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise sqlite3.OperationalError(
            "what was deleted is still in the file's log, for another process, a backup perhaps, reads the file as it "
            "was before: once it is done, try again"
        )
