"""Small indexes and events, made where a test needs them."""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from reranker.index import Index, build_index
from reranker.records import Event, IndexRow, Manifest, Persona, Vector
from reranker.segment import IndexedItem, Segment
from reranker.v1 import reranker_pb2 as pb

SPACE = "space"


def vector(*components: float) -> Vector:
    return np.array(components, np.float32)


def persona(item_id: str, name: str) -> Persona:
    return Persona(f"{item_id}:{name}", name, f"likes {name}", f"{item_id} has {name}", (f"{item_id}/r1",))


def item(
    item_id: str, vectors: Sequence[Vector], itself: Vector | None = None, generation: int = 1, name: str = "p"
) -> IndexedItem:
    """Make an item with a persona for each vector, itself standing for it in a history (default: the first vector)."""
    personas = [persona(item_id, f"{name}{place}") for place in range(len(vectors))]
    rows = tuple(IndexRow(p.persona_id, item_id, v, p) for p, v in zip(personas, vectors, strict=True))
    ids = tuple(row.row_id for row in rows)
    own = vectors[0] if itself is None else itself
    return IndexedItem(Manifest(item_id, generation, ids, f"Title of {item_id}", "A summary.", own, ""), rows)


def item_without_personas(item_id: str, own: Vector) -> IndexedItem:
    row = IndexRow(f"{item_id}:summary", item_id, own, None)
    return IndexedItem(Manifest(item_id, 1, (row.row_id,), "", "", own, ""), (row,))


def deleted(item_id: str, generation: int = 1, dimension: int = 2) -> IndexedItem:
    nothing = np.zeros(dimension, np.float32)
    return IndexedItem(Manifest(item_id, generation, (), "", "", nothing, "", deleted=True), ())


def index(*items: IndexedItem, dimension: int = 2) -> Index:
    return build_index("items_1", SPACE, dimension, items)


Told = dict[str, tuple[bytes, list[tuple[bytes, list[float]]], list[float]]]
"""Of each item: its message without personas, its persona messages with their vectors, its own vector."""


def told(index: Index) -> Told:
    """Return all that an index holds, as values that compare; each item is found as a request finds it."""
    item_ids = {_item_id(segment, row) for segment in index.segments for row in range(len(segment.arrays.deleted))}
    found = {}
    for item_id in sorted(item_ids):
        places = index.locate([item_id])
        if not places.held[0]:
            continue
        segment, row = index.segments[int(places.segments[0])], int(places.rows[0])
        vectors = range(*segment.arrays.offsets[row : row + 2].tolist())
        found[item_id] = (
            _item_bytes(segment, row),
            [(segment.persona(place), segment.arrays.vectors[place].tolist()) for place in vectors],
            segment.arrays.interactions[row].tolist(),
        )
    return found


def told_of(items: Sequence[IndexedItem]) -> Told:
    """Return what an index of these items, the last of each id counting, must hold."""
    latest = {made.manifest.item_id: made for made in items}
    return {
        item_id: (
            pb.ItemPersonas(
                item_id=item_id,
                found=True,
                title=made.manifest.title,
                summary=made.manifest.summary,
                generation=made.manifest.generation,
            ).SerializeToString(),
            [(_persona_bytes(row), row.vector.tolist()) for row in made.rows],
            made.manifest.interaction_vector.tolist(),
        )
        for item_id, made in latest.items()
        if not made.manifest.deleted
    }


def _persona_bytes(row: IndexRow) -> bytes:
    return pb.Persona(**asdict(row.persona)).SerializeToString() if row.persona else b""


def _item_bytes(segment: Segment, row: int) -> bytes:
    spans = segment.arrays.item_spans
    return segment.arrays.items[spans[row] : spans[row + 1]].tobytes()


def _item_id(segment: Segment, row: int) -> str:
    return pb.ItemPersonas.FromString(_item_bytes(segment, row)).item_id


def event(item_id: str, time: int = 0, aspects: Vector | None = None, space: str | None = SPACE) -> Event:
    return Event(
        f"{item_id}@{time}", item_id, time, aspects_vector=aspects, aspects_space=space if aspects is not None else None
    )
