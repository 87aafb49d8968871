"""A file that lines are appended to, and that is whole again after any death of the writer and any full disk."""

import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from offline.errors import DatasetError

BLOCK = 64 * 1024
"""Bytes read at a time on the way back to the last line break: most lines are shorter."""

logger = logging.getLogger(__name__)


class Appender:
    """Appends whole lines, or nothing. Made by `appending`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def append(self, line: bytes) -> None:
        """Write a line, line break included, in one system call: it outlives this process. Raises OSError."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.truncate(end)
            raise


@contextmanager
def appending(path: Path) -> Iterator[Appender]:
    """Open a file of JSON lines for appending, new or old, its torn last line taken away; none stays that has no line.

    Raises DatasetError if it cannot be opened, or another process has it open so.
    """
    try:
        file = path.open("ab+", buffering=0)
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(file.fileno()).st_nlink:
                raise BlockingIOError  # the other process has just taken its empty file away
            repair(file, path)
        except BlockingIOError:
            raise DatasetError(f"{path} is being written by another process: wait for it, or stop it") from None
        except OSError as error:
            raise DatasetError(f"{path} cannot be written: {error.strerror}") from error
        try:
            yield Appender(file)
        finally:
            # A dataset with an empty file would claim to have what it has nothing of. Without a link it has been
            # replaced by another, which is not ours to remove.
            left = os.fstat(file.fileno())
            if left.st_nlink and not left.st_size:
                path.unlink(missing_ok=True)


def repair(file: IO[bytes], path: Path) -> None:
    """Cut a torn last line off. One that is whole but for its line break, as by other programs, gets that.

    file: open for reading and appending, without a buffer. Raises OSError.
    """
    start = _start_of_last_line(file)
    file.seek(start)
    last = file.read()
    if not last:
        return
    try:
        json.loads(last)
    except ValueError:
        file.truncate(start)
        logger.warning("%s: its last line was torn, and is taken away", path.name)
    else:
        file.write(b"\n")


def _start_of_last_line(file: IO[bytes]) -> int:
    """Return the place behind the last line break."""
    place = file.seek(0, os.SEEK_END)
    while place > 0:
        begin = max(0, place - BLOCK)
        file.seek(begin)
        found = file.read(place - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        place = begin
    return 0
