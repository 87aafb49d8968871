"""Files that may change while a server runs."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from reranker.errors import Persona4RecError

log = logging.getLogger(__name__)

T = TypeVar("T")
Stamp = tuple[int, int, int]


class Watched(Generic[T]):
    """What some files say, as of the last look. Content that cannot be used is logged, and what was there stays."""

    def __init__(self, read: Callable[[], T], *paths: Path) -> None:
        """Read for the first time. Raises what `read` raises."""
        self._read = read
        self._paths = paths
        # Before reading: what is written meanwhile shows as another change.
        self._stamps = self._seen()
        self.current = read()

    def look(self) -> None:
        """Read anew if a file is another one than at the last look."""
        stamps = self._seen()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        told = " and ".join(map(str, self._paths))
        try:
            self.current = self._read()
        except Persona4RecError as error:
            log.warning("%s changed, and what was there stays in use: %s", told, error)
        else:
            log.info("%s changed and is in use", told)

    def _seen(self) -> list[Stamp | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> Stamp | None:
    """Return what differs once a file is written, replaced or made readable; links are followed (mounted secrets)."""
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_ino, seen.st_ctime_ns, seen.st_size
