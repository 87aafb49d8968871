"""The persona index as a request sees it: segments, the newest first, the first that knows an item deciding."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reranker import kernels
from reranker.errors import EmbeddingSpaceError
from reranker.item_ids import Hashes, hash_ids
from reranker.records import Vector
from reranker.segment import IndexedItem, Segment, build_segment, survivors
from reranker.v1 import reranker_pb2 as pb


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where items are in an index."""

    segments: NDArray[np.int64]
    """Number of the segment, shape (n,); -1: the index does not hold the item."""
    rows: NDArray[np.int64]
    """Row within the segment, shape (n,)."""

    def __getitem__(self, which: slice) -> "Places":
        return Places(self.segments[which], self.rows[which])

    @property
    def held(self) -> NDArray[np.bool_]:
        """Whether the index holds the item, shape (n,)."""
        return self.segments >= 0


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """Immutable; a change makes another one, so a request sees one state from its first read to its last."""

    version: str
    """The collection it was read from."""
    segments: tuple[Segment, ...]
    """Newest first, one at least, all of one embedding space."""
    generation: int
    """Of the newest manifest in it."""
    loaded_at: int
    """Milliseconds since the epoch."""
    item_count: int
    persona_count: int

    @property
    def space(self) -> str:
        return self.segments[0].space

    @property
    def dimension(self) -> int:
        return self.segments[0].dimension

    @property
    def single(self) -> Segment:
        """The one segment of an index that was built in memory. Raises ValueError if there are more."""
        (segment,) = self.segments
        return segment

    def locate(self, item_ids: Sequence[str]) -> Places:
        """Find items; the newest segment that knows one says where it is, or that it is deleted."""
        return self.find(hash_ids(item_ids, len(item_ids)))

    def find(self, hashes: Hashes) -> Places:
        """Find items by the hashes of their ids."""
        nowhere = np.full((2, len(hashes)), -1, np.int64)
        places = Places(nowhere[0], nowhere[1])
        for number, segment in enumerate(self.segments):
            table, deleted = segment.table, segment.arrays.deleted
            known = (table.hashes, table.rows, table.starts, table.shift, deleted)
            if not kernels.settle(hashes, *known, number, places.segments, places.rows):
                break
        return places

    def weighted(self, places: Places, weights: NDArray[np.float32]) -> Vector:
        """Return the sum of the items as parts of a history, each times its weight, shape (dimension,)."""
        total = np.zeros(self.dimension, np.float32)
        for number, segment in enumerate(self.segments):
            kernels.add_weighted(weights, places.segments, places.rows, number, segment.arrays.interactions, total)
        return total

    def vectors(self, places: Places, numbers: NDArray[np.int64]) -> Vector:
        """Return one vector an item, by its number in the item's segment, shape (n, dimension); zeros for -1."""
        vectors = np.zeros((len(numbers), self.dimension), np.float32)
        for number, segment in enumerate(self.segments):
            here = np.flatnonzero((places.segments == number) & (numbers >= 0))
            vectors[here] = segment.arrays.vectors[numbers[here]]
        return vectors

    def item(self, item_id: str) -> pb.ItemPersonas:
        """Return what the index holds of an item; `found` says whether it holds it."""
        places = self.locate([item_id])
        number = int(places.segments[0])
        if number < 0:
            return pb.ItemPersonas(item_id=item_id, found=False)
        return self.segments[number].item(int(places.rows[0]))


def open_index(version: str, segments: Sequence[Segment]) -> Index:
    """Make an index of segments, newest first. Raises EmbeddingSpaceError if they are of different spaces."""
    spaces = {segment.space for segment in segments}
    if len(spaces) > 1:
        raise EmbeddingSpaceError(
            f"index {version} does not fit together: its segments are of spaces {' and '.join(sorted(spaces))}"
        )
    items = personas = 0
    for segment, kept in survivors(segments):
        items += int(kept.sum())
        with_persona = np.diff(segment.arrays.persona_spans) > 0
        personas += int(with_persona[np.repeat(kept, np.diff(segment.arrays.offsets))].sum())
    return Index(
        version=version,
        segments=tuple(segments),
        generation=max(segment.generation for segment in segments),
        loaded_at=int(time.time() * 1000),
        item_count=items,
        persona_count=personas,
    )


def build_index(version: str, space: str, dimension: int, items: Sequence[IndexedItem]) -> Index:
    """Lay items out in memory as an index of one segment."""
    return open_index(version, [build_segment(space, dimension, items)])
