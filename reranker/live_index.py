"""The index in use by a worker: maps the snapshot, and the next one when there is one."""

import asyncio
import logging
import time
from pathlib import Path

from reranker.errors import IndexUnavailableError, Persona4RecError
from reranker.index import Index
from reranker.metrics import Metrics
from reranker.segment import Segment
from reranker.snapshot import open_snapshot, read_snapshot, stamp

log = logging.getLogger(__name__)

# How often a worker looks for another snapshot: a stat call of microseconds, next to changes that arrive in seconds.
LOOK_SECONDS = 0.25
# Touched by the indexer whenever Milvus answered: its age is how far behind the index may be.
CHECKED = "checked"


class LiveIndex:
    """Holds one immutable index at a time. A request takes `current` once, so a swap never shows in its midst."""

    def __init__(self, folder: Path, metrics: Metrics, stale_seconds: float) -> None:
        """Map the snapshot in `folder`. Raises IndexUnavailableError if there is none or it is torn."""
        self._folder = folder
        self._metrics = metrics
        self._stale_seconds = stale_seconds
        self._stamp = stamp(folder)
        self._stale = False
        self._mapped: dict[str, Segment] = {}
        self.current = self._open()
        self._told()

    @property
    def stale(self) -> bool:
        """Whether Milvus has not answered the indexer for too long."""
        return self._stale

    async def follow(self) -> None:
        """Swap in every new snapshot, for ever. One that cannot be mapped is logged and the last one stays."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._stale = time.time() - checked_at(self._folder) > self._stale_seconds
            seen = stamp(self._folder)
            if seen == self._stamp:
                continue
            try:
                # In a thread: mapping a large segment and counting its items takes a tenth of a second.
                self.current = await asyncio.to_thread(self._open)
            except Persona4RecError as error:
                log.warning("generation %d stays in use: %s", self.current.generation, error)
                continue
            self._stamp = seen
            self._told()

    def _open(self) -> Index:
        snapshot = read_snapshot(self._folder)
        if snapshot is None:
            raise IndexUnavailableError(
                f"there is no index in {self._folder}: it is built from Milvus when that answers"
            )
        index = open_snapshot(self._folder, snapshot, self._mapped)
        self._mapped = dict(zip(snapshot.segments, index.segments, strict=True))
        return index

    def _told(self) -> None:
        self._metrics.index_generation.set(self.current.generation)
        self._metrics.index_items.set(self.current.item_count)
        self._metrics.index_personas.set(self.current.persona_count)
        log.debug("index %s: generation %d", self.current.version, self.current.generation)


def mark_checked(folder: Path) -> None:
    """Note that Milvus answered just now."""
    (folder / CHECKED).touch()


def checked_at(folder: Path) -> float:
    """Return when Milvus last answered, in seconds since the epoch; 0 if it never did."""
    try:
        return (folder / CHECKED).stat().st_mtime
    except FileNotFoundError:
        return 0.0
