"""A dataset is written beside its place and takes it whole: an import that dies leaves no half of one."""

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from offline.errors import DatasetError

STAGING = ".import"
"""Within the dataset directory, hence on its disk: what is full is found out before anything is replaced. What a killed
import leaves here is never read, and the next import removes it."""

ITEMS = "items.jsonl"
"""Without it a directory is no dataset, so it goes first and comes last while files change places: killed in between,
the directory is refused by name instead of being read half new and half old."""


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yield an empty directory whose files take their places in `out` when the block ends well, and else are gone.

    Other files of `out` are left alone. Files must be closed when the block ends.

    Raises:
        DatasetError: `out` cannot be written, e.g. the disk is full, or another import is writing it.

    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            staging = out / STAGING
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            try:
                yield staging
                _commit(staging, out)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except (OSError, sqlite3.OperationalError) as error:
        raise DatasetError(
            f"{out} cannot be written: {error}. It must be a directory of yours on a disk with room: see to that, "
            "or name another, and try again"
        ) from error


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    directory = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise DatasetError(f"another import is writing to {out}: wait for it, or name another --out") from error
    finally:
        os.close(directory)  # and with it the lock, which also ends with the process


def _commit(staging: Path, out: Path) -> None:
    files = sorted(staging.iterdir(), key=lambda path: path.name == ITEMS)
    for path in files:
        _to_disk(path)
    if files and files[-1].name == ITEMS:
        (out / ITEMS).unlink(missing_ok=True)
    for path in files:
        path.replace(out / path.name)
    _to_disk(out)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
