"""Milvus into the index directory: one process of the host reads, all its workers map what it wrote."""

import fcntl
import logging
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import IO, Self

from reranker.errors import ConfigurationError, EmbeddingSpaceError, IndexUnavailableError
from reranker.personas_milvus import MilvusPersonaStore
from reranker.segment import (
    IndexedItem,
    Segment,
    build_segment,
    merge_segments,
    open_segment,
    save_segment,
    verify_segment,
)
from reranker.snapshot import Snapshot, open_snapshot, read_snapshot, sweep, sweep_unfinished, touch, write_snapshot

log = logging.getLogger(__name__)

# A bulk load is read and written in parts of so many items: 100 MB of vectors with five 384-d personas an item.
PART_ITEMS = 10_000
# A lookup asks segment after segment, 20 us each: with eight deltas a request is about a tenth slower.
MAX_DELTAS = 8


class Indexer:
    """Keeps an index directory up to date with one Milvus. The only writer of the directory."""

    def __init__(self, folder: Path, space: str | None) -> None:
        """Take the embedding space that the index must be of; None takes what Milvus has.

        Raises ConfigurationError if another process writes this directory, or if it cannot be written.
        """
        self._folder = folder
        self._space = space
        self._lock = _locked(folder)
        sweep_unfinished(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def refresh(self, store: MilvusPersonaStore) -> bool:
        """Bring the directory in line with Milvus; returns whether anything changed.

        Raises IndexUnavailableError and EmbeddingSpaceError; the snapshot that was there stays then.
        """
        version = store.version()
        if version is None:
            raise IndexUnavailableError(f"Milvus at {store.uri} holds no index: run `persona4rec publish` first")
        store.ensure_loaded(version)
        snapshot = read_snapshot(self._folder)
        if snapshot is None or snapshot.version != version:
            self._rebuild(store, version)
            return True
        return self._update(store, snapshot)

    def _rebuild(self, store: MilvusPersonaStore, version: str) -> None:
        parts = self._newer(store, version, -1)
        if not parts:
            raise IndexUnavailableError(f"the index in Milvus at {store.uri} is empty: publish a dataset to it")
        # Always merged, also when it is one: deleted items go, and readers meet one segment.
        base = merge_segments([open_segment(part) for part in parts], self._folder)
        self._use(Snapshot(version, (base.name,)))

    def _update(self, store: MilvusPersonaStore, snapshot: Snapshot) -> bool:
        index = open_snapshot(self._folder, snapshot)
        self._agreed(store, {index.space})
        deltas = self._newer(store, snapshot.version, index.generation)
        if not deltas:
            return False
        self._use(Snapshot(snapshot.version, (*(part.name for part in reversed(deltas)), *snapshot.segments)))
        return True

    def compact(self) -> bool:
        """Merge all segments into one if there are too many; returns whether it did."""
        snapshot = read_snapshot(self._folder)
        if snapshot is None or len(snapshot.segments) <= MAX_DELTAS:
            return False
        merged = merge_segments([open_segment(self._folder / name) for name in snapshot.segments], self._folder)
        self._use(Snapshot(snapshot.version, (merged.name,)))
        return True

    def verify(self) -> None:
        """Read every byte of the snapshot against its checksum. Raises IndexUnavailableError naming what is torn."""
        snapshot = read_snapshot(self._folder)
        for name in snapshot.segments if snapshot else ():
            verify_segment(self._folder / name)

    def _newer(self, store: MilvusPersonaStore, version: str, newer_than: int) -> list[Path]:
        """Write what is newer than a generation as segments; none if nothing is."""
        # Asked before the items are: what is published while they are read may be in part of them only, and has to be
        # asked for again. A batch of manifests is one upsert, so all of this generation are there already.
        generation = store.newest_generation(version, newer_than)
        if generation is None:
            return []
        return list(self._parts(store, version, store.item_ids(version, newer_than), generation))

    def _parts(
        self, store: MilvusPersonaStore, version: str, item_ids: Sequence[str], generation: int
    ) -> Iterator[Path]:
        for start in range(0, len(item_ids), PART_ITEMS):
            found = list(store.fetch(version, item_ids[start : start + PART_ITEMS]))
            if found:
                segment = self._segment(store, version, found)
                yield save_segment(replace(segment, generation=generation), self._folder)

    def _segment(self, store: MilvusPersonaStore, version: str, found: Sequence[tuple[IndexedItem, str]]) -> Segment:
        space = self._agreed(store, {space for _, space in found})
        return build_segment(space, store.dimension(version), [item for item, _ in found])

    def _agreed(self, store: MilvusPersonaStore, found: Set[str]) -> str:
        """Return the one embedding space of what was found and of all before it."""
        spaces = found | ({self._space} if self._space else set())
        if len(spaces) > 1:
            raise EmbeddingSpaceError(
                f"the index in Milvus at {store.uri} does not fit: embedding spaces "
                f"{' and '.join(sorted(spaces))} were about to be mixed. Publish the whole dataset with one encoder, "
                "or serve with the space it was published in"
            )
        (self._space,) = spaces
        return self._space

    def _use(self, snapshot: Snapshot) -> None:
        before = read_snapshot(self._folder)
        # Before they are dropped: from then on their age counts, and a reader may have read the old list just now.
        touch(self._folder, before.segments if before else ())
        write_snapshot(self._folder, snapshot)
        sweep(self._folder, snapshot)


def _locked(folder: Path) -> IO[bytes]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("wb")
    except OSError as error:
        raise ConfigurationError(f"index directory {folder} cannot be written: {error}") from error
    try:
        # Released by the kernel however this process ends.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigurationError(
            f"index directory {folder} is written by another server: stop that one, or set another index"
        ) from error
    return lock
