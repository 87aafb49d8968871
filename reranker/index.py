"""The persona index in memory: every vector an item can be found by, contiguous by item."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from reranker.records import IndexRow, Manifest, Persona, Vector


@dataclass(frozen=True, slots=True)
class Index:
    """Immutable; a change makes another one, so a request sees one state from its first read to its last."""

    version: str
    """The collections it was read from."""
    space: str
    """The embedding space of all its vectors."""
    generation: int
    """Of the newest manifest in it."""
    loaded_at: int
    """Milliseconds since the epoch."""
    manifests: tuple[Manifest, ...]
    """One an item, deleted items left out."""
    item_rows: dict[str, int]
    """Item id to its place in `manifests`."""
    offsets: NDArray[np.int64]
    """Item i owns the vectors offsets[i] to offsets[i + 1], shape (items + 1,)."""
    vectors: Vector
    """Shape (vectors, dimension), unit length."""
    personas: tuple[Persona | None, ...]
    """The persona of each vector; None where it is the item's summary."""
    interaction_vectors: Vector
    """Shape (items, dimension): the item as part of a history (eq. 4 without aspects)."""

    @property
    def dimension(self) -> int:
        return int(self.vectors.shape[1])

    @property
    def persona_count(self) -> int:
        return sum(persona is not None for persona in self.personas)

    def rows(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the places of items, shape (n,); -1 where the index does not hold the item."""
        rows = self.item_rows
        return np.fromiter((rows.get(item_id, -1) for item_id in item_ids), np.int64, len(item_ids))

    def personas_of(self, row: int) -> tuple[Persona, ...]:
        """Return the personas of the item at `row`, in the order of its manifest."""
        owned = self.personas[self.offsets[row] : self.offsets[row + 1]]
        return tuple(persona for persona in owned if persona is not None)


@dataclass(frozen=True, slots=True)
class IndexedItem:
    """One item as the index holds it."""

    manifest: Manifest
    rows: tuple[IndexRow, ...]
    """In the order of manifest.row_ids."""


def build_index(version: str, space: str, dimension: int, items: Sequence[IndexedItem], generation: int) -> Index:
    """Lay out items in memory; `items` are not deleted and their order is kept."""
    rows = [row for item in items for row in item.rows]
    manifests = tuple(item.manifest for item in items)
    return Index(
        version=version,
        space=space,
        generation=generation,
        loaded_at=int(time.time() * 1000),
        manifests=manifests,
        item_rows={manifest.item_id: place for place, manifest in enumerate(manifests)},
        offsets=np.fromiter(accumulate((len(item.rows) for item in items), initial=0), np.int64, len(items) + 1),
        vectors=_stack([row.vector for row in rows], dimension),
        personas=tuple(row.persona for row in rows),
        interaction_vectors=_stack([manifest.interaction_vector for manifest in manifests], dimension),
    )


def _stack(vectors: Sequence[Vector], dimension: int) -> Vector:
    return np.stack(vectors).astype(np.float32) if vectors else np.empty((0, dimension), np.float32)
