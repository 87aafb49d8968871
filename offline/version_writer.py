"""One version of the index as its publisher writes it: rows, manifests, the feed, then the rows that are over go."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from reranker.leases import Lease
from reranker.personas_milvus import MilvusPersonaStore
from reranker.records import Manifest
from reranker.segment import IndexedItem

Tell = Callable[[Iterable[Manifest]], None]
"""Told of manifests once they are stored, as `reranker.feed.FeedWriter.tell` is."""


_NONE = np.empty(0, np.float32)


def tell_nobody(manifests: Iterable[Manifest]) -> None:
    """Take the place of a change feed where there is none."""


@dataclass(slots=True)
class VersionWriter:
    """Writes batches, each of one generation, under a lease that is looked at before every write."""

    store: MilvusPersonaStore
    version: str
    space: str
    dimension: int
    lease: Lease
    generation: int
    """The newest so far; the next batch has the next one."""
    manifests: dict[str, Manifest] = field(default_factory=dict)
    """What the version holds of each item, without vectors: of all items, or of those that are about to be written."""
    tell: Tell = tell_nobody

    def write(self, items: Sequence[IndexedItem]) -> None:
        """Store items as one generation, then delete the rows of theirs that are over.

        Raises IndexBusyError if the lease was lost.
        """
        if not items:
            return
        self.generation += 1
        dated = [replace(item, manifest=replace(item.manifest, generation=self.generation)) for item in items]
        self.lease.check()
        self.store.publish(self.version, self.space, dated)
        new = {item.manifest.item_id: item.manifest for item in dated}
        self.tell(new.values())
        before = row_ids(self.manifests[item_id] for item_id in new if item_id in self.manifests)
        self._collect(before - row_ids(new.values()))
        self.manifests |= {item_id: replace(manifest, interaction_vector=_NONE) for item_id, manifest in new.items()}

    def delete(self, gone: Sequence[Manifest]) -> None:
        """Take items out of the index as one generation."""
        # Milvus wants a vector in every row; that of a deleted item is never read.
        anything = np.full(self.dimension, self.dimension**-0.5, np.float32)
        tombstones = [replace(manifest, deleted=True, row_ids=(), interaction_vector=anything) for manifest in gone]
        self.write([IndexedItem(tombstone, ()) for tombstone in tombstones])

    def collect_orphans(self) -> int:
        """Delete rows that no manifest names, which a killed publisher left; returns how many. Needs all `manifests`.

        Rows are counted first, so that the usual case costs no reading of their ids.
        """
        named = row_ids(self.manifests.values())
        if self.store.count_rows(self.version) <= len(named):
            return 0
        orphans = set(self.store.row_ids(self.version)) - named
        self._collect(orphans)
        return len(orphans)

    def collect_orphans_of(self, item_ids: Sequence[str]) -> None:
        """Delete such rows of some items, whose manifests are the only ones needed."""
        named = row_ids(self.manifests[item_id] for item_id in item_ids if item_id in self.manifests)
        self._collect(set(self.store.row_ids_of(self.version, item_ids)) - named)

    def _collect(self, over: set[str]) -> None:
        self.lease.check()
        self.store.collect(self.version, sorted(over))


def row_ids(manifests: Iterable[Manifest]) -> set[str]:
    """Return the rows that manifests name."""
    return {row_id for manifest in manifests for row_id in manifest.row_ids}
