"""Milvus into the index directory: one process of the host reads, all its workers map what it wrote."""

import fcntl
import logging
import math
import random
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import IO, Self

from google.protobuf.message import DecodeError

from reranker.errors import ConfigurationError, EmbeddingSpaceError, IndexUnavailableError
from reranker.personas_milvus import MilvusPersonaStore
from reranker.segment import (
    IndexedItem,
    Segment,
    age,
    build_segment,
    generations,
    made_at,
    merge_segments,
    open_segment,
    save_segment,
    verify_segment,
)
from reranker.snapshot import Snapshot, delete, read_snapshot, sweep, sweep_unfinished, touch, write_snapshot

log = logging.getLogger(__name__)

# A bulk load is read and written in parts of so many items: 100 MB of vectors with five 384-d personas an item.
PART_ITEMS = 10_000
# A lookup asks segment after segment, 20 us each: with eight deltas a request is about a tenth slower.
MAX_DELTAS = 8
# After a merge that failed: a full disk is not to be filled anew every few seconds, and somebody has to come and see.
ROOM_PAUSE_SECONDS = 600.0


class Indexer:
    """Keeps an index directory up to date with one Milvus. The only writer of the directory."""

    def __init__(self, folder: Path, space: str | None, merge_seconds: float = math.inf) -> None:
        """Take the embedding space that the index must be of; None takes what Milvus has.

        merge_seconds: how old a delta may become; each indexer draws its own from the last quarter of that, so that not
        all hosts that were told of one change merge at one time.
        Raises ConfigurationError if another process writes this directory, or if it cannot be written.
        """
        self._folder = folder
        self._asked = space
        self._space = space
        self._lock = _locked(folder)
        self._complete_to: dict[str, int] = {}
        self._torn: set[str] = set()
        self._merge_seconds = merge_seconds * random.uniform(0.75, 1.0)  # noqa: S311 - no secret
        self._room_after = 0.0
        sweep_unfinished(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def refresh(self, store: MilvusPersonaStore, told: Mapping[str, int] | None = None) -> bool:
        """Bring the directory in line with Milvus; returns whether anything changed.

        told: the generations that items have by now, as the change feed names them: only these items are looked at.
        None: every manifest that may be newer than the directory is.
        Raises IndexUnavailableError and EmbeddingSpaceError; the snapshot that was there stays then.
        """
        version = store.version()
        if version is None:
            raise IndexUnavailableError(f"Milvus at {store.uri} holds no index: run `persona4rec publish` first")
        if told is None:
            store.ensure_loaded(version)
        snapshot = read_snapshot(self._folder)
        # Before a rebuild, too: one that was killed leaves the most.
        sweep(self._folder, snapshot or Snapshot(version, ()))
        if snapshot is None or snapshot.version != version or self._torn.intersection(snapshot.segments):
            self._rebuild(store, version)
            return True
        return self._update(store, snapshot, told)

    def _rebuild(self, store: MilvusPersonaStore, version: str) -> None:
        self._require_room()
        store.ensure_loaded(version)
        # Another version may be of another space, unless one was asked for.
        self._space = self._asked
        # Asked before the items are: what is published while they are read may be in part of them only, and has to be
        # asked for again. A batch of manifests is one upsert, so all of this generation are there already.
        complete_to = store.newest_generation(version)
        if complete_to is None:
            raise IndexUnavailableError(f"the index in Milvus at {store.uri} is empty: publish a dataset to it")
        parts = self._parts(store, version, store.item_ids(version))
        try:
            # Always merged, also when it is one: deleted items go, and readers meet one segment.
            base = self._merged([open_segment(part) for part in parts], deletions=False)
        finally:
            # No list has ever named them.
            delete(parts)
        self._use(Snapshot(version, (base.name,), complete_to))

    def _update(self, store: MilvusPersonaStore, snapshot: Snapshot, told: Mapping[str, int] | None) -> bool:
        if told is None:
            told, complete_to = self._newer(store, snapshot)
        else:
            complete_to = self._complete(snapshot)
        deltas = self._parts(store, snapshot.version, self._behind(snapshot, told)) if told else []
        # Kept in memory: that nothing was missing is no reason for all workers to map the index anew.
        self._complete_to = {snapshot.version: complete_to}
        if not deltas:
            return False
        names = (*(part.name for part in reversed(deltas)), *snapshot.segments)
        self._use(Snapshot(snapshot.version, names, complete_to))
        return True

    def _newer(self, store: MilvusPersonaStore, snapshot: Snapshot) -> tuple[Mapping[str, int], int]:
        """Return the generations of items that may be newer than the directory, and up to where that is all of them."""
        known = self._complete(snapshot)
        self._agreed(store, {self._open(name).space for name in snapshot.segments})
        newest = store.newest_generation(snapshot.version, known)
        return ({}, known) if newest is None else (store.generations(snapshot.version, known), newest)

    def _behind(self, snapshot: Snapshot, told: Mapping[str, int]) -> list[str]:
        """Return the items that the directory does not have in the generation they are told to have."""
        segments = [self._open(name) for name in snapshot.segments]
        try:
            held = generations(segments, list(told))
        except DecodeError:
            # An item's bytes are no message: the checksums tell which segment's, and it is built anew.
            self._verify(snapshot.segments)
            raise
        return sorted(item_id for item_id, generation in told.items() if held.get(item_id, -1) < generation)

    def _complete(self, snapshot: Snapshot) -> int:
        return max(snapshot.complete_to, self._complete_to.get(snapshot.version, -1))

    def compact(self) -> bool:
        """Merge segments if there are too many, or all if a delta is too old; returns whether it did.

        What a newer segment replaces stays in the older one until they are merged: an erased user's words, too.
        Raises IndexUnavailableError if one of them is torn (merged, its bytes would pass for good ones), or if there is
        no room.
        """
        snapshot = read_snapshot(self._folder)
        if snapshot is None:
            return False
        since = [made_at(self._folder / name) for name in snapshot.segments]
        old = any(time.time() - made > self._merge_seconds for made in since[:-1])
        if time.monotonic() < self._room_after or not (old or len(since) > MAX_DELTAS):
            return False
        segments = [self._open(name) for name in snapshot.segments]
        count = len(segments) if old else _worth_merging([segment.size for segment in segments])
        self._verify(snapshot.segments[:count])
        merged = self._merged(segments[:count], deletions=count < len(segments))
        if count < len(segments):
            # As old as what is in it: what that replaces in older segments has waited as long.
            age(merged, min(since[:count]))
        self._use(replace(snapshot, segments=(merged.name, *snapshot.segments[count:])))
        return True

    def _merged(self, segments: Sequence[Segment], *, deletions: bool) -> Path:
        try:
            return merge_segments(segments, self._folder, deletions)
        except OSError as error:
            self._room_after = time.monotonic() + ROOM_PAUSE_SECONDS
            raise self._no_room(error) from error

    def _require_room(self) -> None:
        if time.monotonic() < self._room_after:
            raise self._no_room("there was no room a while ago")

    def _no_room(self, why: object) -> IndexUnavailableError:
        return IndexUnavailableError(
            f"segments cannot be written to {self._folder}: {why}. Merging them needs the size of the index once more, "
            f"reading a new version of it twice more; it is tried {ROOM_PAUSE_SECONDS / 60:.0f} minutes after it failed"
        )

    def verify(self) -> bool:
        """Read every byte of the snapshot against its checksum; may run beside refreshes, in another thread.

        Returns whether there is one. Raises IndexUnavailableError naming what is torn; the next refresh then builds the
        index anew.
        """
        verified: set[str] = set()
        # Again for what a refresh has written meanwhile, until there is nothing.
        while snapshot := read_snapshot(self._folder):
            left = [name for name in snapshot.segments if name not in verified]
            if not left:
                return True
            self._verify(left)
            verified.update(left)
        return False

    def _verify(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                verify_segment(self._folder / name)
            except IndexUnavailableError:
                snapshot = read_snapshot(self._folder)
                # Merged into another meanwhile, it may have been deleted while it was read.
                if snapshot and name in snapshot.segments:
                    self._torn.add(name)
                    raise

    def _parts(self, store: MilvusPersonaStore, version: str, item_ids: Sequence[str]) -> list[Path]:
        """Write items as they are now, in segments; none if there are none, or if anything fails on the way."""
        parts: list[Path] = []
        try:
            for start in range(0, len(item_ids), PART_ITEMS):
                found = list(store.fetch(version, item_ids[start : start + PART_ITEMS]))
                if found:
                    parts.append(self._saved(self._segment(store, version, found)))
        except BaseException:
            # Each further try would leave its own.
            delete(parts)
            raise
        return parts

    def _saved(self, segment: Segment) -> Path:
        try:
            return save_segment(segment, self._folder)
        except OSError as error:
            raise self._no_room(error) from error

    def _open(self, name: str) -> Segment:
        try:
            return open_segment(self._folder / name)
        except IndexUnavailableError:
            # The next refresh builds the index anew.
            self._torn.add(name)
            raise

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


def _worth_merging(sizes: Sequence[int]) -> int:
    """Return how many of the newest segments to merge: on from two, each that is not far larger than those before it.

    So what is small is merged often and what is large rarely; each item is copied about log(items) times in all.
    """
    count = 2
    while count < len(sizes) and sizes[count] <= 2 * sum(sizes[:count]):
        count += 1
    return count


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
