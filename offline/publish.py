"""A dataset's personas into the index: embedded, rows first, then manifests; what has not changed is left alone."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TypeVar

import numpy as np

from offline.dataset import Dataset, Item
from offline.encoder import Embedder
from offline.text import interaction_text, persona_text, summary_of
from reranker.errors import EmbeddingSpaceError
from reranker.personas_milvus import MilvusPersonaStore
from reranker.records import IndexRow, Manifest, Persona, Vector
from reranker.segment import IndexedItem

# So many items are embedded and written at a time: one upsert of manifests each, and a few seconds between two reports.
BATCH_ITEMS = 64

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Document:
    """What an item is published from."""

    item: Item
    summary: str
    personas: tuple[Persona, ...]

    @property
    def itself(self) -> str:
        """The item as part of a history."""
        return interaction_text(self.item, self.summary)

    @property
    def rows(self) -> list[str]:
        """What the item is found by: its personas, or without any the item itself."""
        return [persona_text(self.item, self.summary, persona) for persona in self.personas] or [self.itself]

    @property
    def texts(self) -> list[str]:
        """All that gets embedded."""
        return [self.itself, *self.rows]

    def fingerprint(self, space: str) -> str:
        """Return a digest of all that a manifest and its rows are made from."""
        facts = [space, self.item.title, self.summary, self.texts, [asdict(persona) for persona in self.personas]]
        return hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What a publish did, in items unless said otherwise."""

    version: str
    written: int
    unchanged: int
    deleted: int
    kept: int
    """In the index but not in the dataset, and left there."""
    personas: int
    """Personas of the written items."""
    without_personas: int
    """Of the written items, those served by their summary."""


def documents(dataset: Dataset) -> list[Document]:
    """Join a dataset's items with their summaries and personas, in the order of the items."""
    summaries = {record.item_id: record.summary for record in dataset.summaries()}
    personas = {record.item_id: record.personas for record in dataset.personas()}
    return [
        Document(item, summary_of(item, summaries.get(item.item_id)), personas.get(item.item_id, ()))
        for item in dataset.items()
    ]


def publish(
    found: Sequence[Document],
    store: MilvusPersonaStore,
    encoder: Embedder,
    *,
    rebuild: bool = False,
    prune: bool = False,
    report: Callable[[int], None] = lambda _: None,
) -> PublishReport:
    """Bring the index in line with `found`, touching only items that changed.

    rebuild: write a new version and switch to it when it is whole; needed for another encoder.
    prune: delete items of the index that are not in `found`.
    report: told the number of items done, batch by batch.
    Raises EmbeddingSpaceError if the index is of another space and `rebuild` is not set.
    """
    version = None if rebuild else store.version()
    published = _published(store, version, encoder.space) if version else {}
    target = version or store.create(encoder.dimension)
    changed = [d for d in found if _changed(d, published.get(d.item.item_id), encoder.space)]
    named = {document.item.item_id for document in found}
    missing = [m for item_id, m in published.items() if not m.deleted and item_id not in named]
    generation = max((manifest.generation for manifest in published.values()), default=0)
    for batch in _batches(changed):
        generation += 1
        _write(store, target, encoder, batch, published, generation)
        report(len(batch))
    if prune:
        _delete(store, target, encoder, missing, generation + 1)
    if target != version:
        store.use(target)
    return PublishReport(
        version=target,
        written=len(changed),
        unchanged=len(found) - len(changed),
        deleted=len(missing) if prune else 0,
        kept=0 if prune else len(missing),
        personas=sum(len(document.personas) for document in changed),
        without_personas=sum(not document.personas for document in changed),
    )


def embed(found: Sequence[Document], encoder: Embedder, generation: int) -> list[IndexedItem]:
    """Turn documents into what the index holds of them."""
    themselves = encoder.interactions([document.itself for document in found])
    vectors = iter(encoder.personas([text for document in found for text in document.rows]))
    return [
        _indexed(document, itself, vectors, encoder.space, generation)
        for document, itself in zip(found, themselves, strict=True)
    ]


def _indexed(document: Document, itself: Vector, vectors: Iterator[Vector], space: str, generation: int) -> IndexedItem:
    item_id = document.item.item_id
    owners: list[Persona | None] = [*document.personas] or [None]
    rows = tuple(
        IndexRow(persona.persona_id if persona else f"{item_id}:summary", item_id, vector, persona)
        for persona, vector in zip(owners, islice(vectors, len(owners)), strict=True)
    )
    manifest = Manifest(
        item_id=item_id,
        generation=generation,
        row_ids=tuple(row.row_id for row in rows),
        title=document.item.title or "",
        summary=document.summary,
        interaction_vector=itself,
        fingerprint=document.fingerprint(space),
    )
    return IndexedItem(manifest, rows)


def _published(store: MilvusPersonaStore, version: str, space: str) -> dict[str, Manifest]:
    store.ensure_loaded(version)
    found = list(store.manifests(version, vectors=False))
    others = {of for _, of in found} - {space}
    if others:
        raise EmbeddingSpaceError(
            f"the index in Milvus at {store.uri} is of embedding space {' and '.join(sorted(others))}, the encoder of "
            f"{space}: publish with the same encoder, or with --rebuild into a new version"
        )
    return {manifest.item_id: manifest for manifest, _ in found}


def _changed(document: Document, published: Manifest | None, space: str) -> bool:
    return published is None or published.deleted or published.fingerprint != document.fingerprint(space)


def _write(
    store: MilvusPersonaStore,
    version: str,
    encoder: Embedder,
    batch: Sequence[Document],
    published: dict[str, Manifest],
    generation: int,
) -> None:
    items = embed(batch, encoder, generation)
    store.publish(version, encoder.space, items)
    named = {row_id for item in items for row_id in item.manifest.row_ids}
    before = [published[item.manifest.item_id] for item in items if item.manifest.item_id in published]
    store.collect(version, _row_ids(before) - named)


def _delete(
    store: MilvusPersonaStore, version: str, encoder: Embedder, missing: Sequence[Manifest], generation: int
) -> None:
    # Milvus wants a vector in every row; that of a deleted item is never read.
    anything = np.full(encoder.dimension, encoder.dimension**-0.5, np.float32)
    tombstones = [replace(manifest, deleted=True, row_ids=(), interaction_vector=anything) for manifest in missing]
    # A generation a batch, as when writing: a reader that sees one manifest of a generation must see all of them.
    for number, batch in enumerate(_batches(tombstones)):
        gone = [IndexedItem(replace(manifest, generation=generation + number), ()) for manifest in batch]
        store.publish(version, encoder.space, gone)
    store.collect(version, _row_ids(missing))


def _row_ids(manifests: Iterable[Manifest]) -> set[str]:
    return {row_id for manifest in manifests for row_id in manifest.row_ids}


def _batches(found: Sequence[T]) -> Iterator[Sequence[T]]:
    return (found[start : start + BATCH_ITEMS] for start in range(0, len(found), BATCH_ITEMS))
