"""A dataset's personas into the index: embedded and written in batches; what has not changed is left alone."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TypeVar

from offline.dataset import Dataset, Item
from offline.decisions import decided_personas
from offline.encoder import Embedder
from offline.text import interaction_text, persona_text, summary_of
from offline.verify import verify
from offline.version_writer import Tell, VersionWriter, tell_nobody
from offline.versions import KEEP_VERSIONS, SWITCH_WAIT_SECONDS, Carried, carry, drop_old, drop_unfinished, replay
from reranker.errors import EmbeddingSpaceError
from reranker.leases import REBUILDING, WRITING, Lease, leased
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
        return _digest(json.dumps(facts, ensure_ascii=False))


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What a publish did, in items unless said otherwise."""

    version: str
    written: int
    unchanged: int
    deleted: int
    kept: int
    """In the index but not in the dataset, and left there; by a rebuild taken along."""
    personas: int
    """Personas of the written items."""
    without_personas: int
    """Of the written items, those served by their summary."""
    orphans: int = 0
    """Rows that a killed publisher left, deleted now."""
    left: tuple[str, ...] = ()
    """Items of another embedding space that are not in the dataset, or that somebody changed while this was rebuilt:
    they, or their change, are not in the new version."""


def documents(dataset: Dataset) -> list[Document]:
    """Join a dataset's items with their summaries and personas, as an editor wants them, in the order of the items."""
    summaries = {record.item_id: record.summary for record in dataset.summaries()}
    personas = {record.item_id: record.personas for record in decided_personas(dataset)}
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
    keep_versions: int = KEEP_VERSIONS,
    tell: Tell = tell_nobody,
    report: Callable[[int], None] = lambda _: None,
) -> PublishReport:
    """Bring the index in line with `found`, touching only items that changed.

    rebuild: write a new version, verify it, and switch to it; needed for another encoder. Items that are not in `found`
    are taken along from the old one, if they are of the encoder's space.
    prune: delete items of the index that are not in `found`.
    keep_versions: how many versions a rebuild leaves beside the new one.
    tell: told of the manifests that are stored, as `reranker.feed.FeedWriter.tell` is.
    report: told the number of items done, batch by batch.
    Raises EmbeddingSpaceError if the index is of another space and `rebuild` is not set, IndexBusyError while another
    publisher writes, VerificationError if a new version is not what was to be written.
    """
    if not rebuild and store.version() is not None:
        return _update(found, store, encoder, prune, tell, report)
    with leased(store.milvus, REBUILDING) as lease:
        # Asked with the lease held: whoever had it before may have published for the first time.
        if rebuild or store.version() is None:
            return _rebuild(found, store, encoder, lease, prune, keep_versions, tell, report)
    return _update(found, store, encoder, prune, tell, report)


def _update(
    found: Sequence[Document],
    store: MilvusPersonaStore,
    encoder: Embedder,
    prune: bool,
    tell: Tell,
    report: Callable[[int], None],
) -> PublishReport:
    with leased(store.milvus, WRITING) as lease:
        # Asked with the lease held: nobody switches to another version now.
        version = str(store.version())
        published = _published(store, version, encoder.space)
        newest = max((manifest.generation for manifest in published.values()), default=0)
        changed = [d for d in found if has_changed(d, published.get(d.item.item_id), encoder.space)]
        named = {document.item.item_id for document in found}
        missing = [m for item_id, m in published.items() if not m.deleted and item_id not in named]
        writer = VersionWriter(store, version, encoder.space, encoder.dimension, lease, newest, published, tell)
        _write(writer, encoder, changed, report)
        for batch in _batches(missing if prune else []):
            writer.delete(batch)
        orphans = writer.collect_orphans()
    return replace(
        _reported(version, changed),
        unchanged=len(found) - len(changed),
        deleted=len(missing) if prune else 0,
        kept=0 if prune else len(missing),
        orphans=orphans,
    )


def _rebuild(
    found: Sequence[Document],
    store: MilvusPersonaStore,
    encoder: Embedder,
    lease: Lease,
    prune: bool,
    keep_versions: int,
    tell: Tell,
    report: Callable[[int], None],
) -> PublishReport:
    drop_unfinished(store)
    base = store.version()
    began = _newest(store, base)
    others = _others(store, base, found)
    writer = VersionWriter(store, store.create(encoder.dimension), encoder.space, encoder.dimension, lease, began)
    _write(writer, encoder, found, report)
    carried = carry(store, base, others, writer) if base and not prune else Carried((), ())
    # From here on nobody writes to the version in use, so that none of its changes is left behind.
    with leased(store.milvus, WRITING, SWITCH_WAIT_SECONDS) as writing:
        writer.lease, writer.generation = writing, max(writer.generation, _newest(store, base))
        since = replay(store, base, began, writer) if base else Carried((), ())
        _finish(store, writer, found, [*carried.manifests, *since.manifests])
    tell(manifest for manifest, _ in store.manifests(writer.version, vectors=False))
    drop_old(store, keep_versions)
    return replace(
        _reported(writer.version, found),
        deleted=len(others) if prune else 0,
        kept=len(carried.manifests),
        left=tuple(dict.fromkeys([*carried.left, *since.left])),
    )


def _others(store: MilvusPersonaStore, version: str | None, found: Sequence[Document]) -> list[str]:
    """Return the items of a version that are not among the documents."""
    if version is None:
        return []
    named = {document.item.item_id for document in found}
    manifests = (manifest for manifest, _ in store.manifests(version, vectors=False))
    return sorted(m.item_id for m in manifests if not m.deleted and m.item_id not in named)


def _finish(
    store: MilvusPersonaStore, writer: VersionWriter, found: Sequence[Document], taken: Sequence[Manifest]
) -> None:
    """Verify that the new version holds the documents, but of what was taken over from the old one that; switch."""
    expected = {document.item.item_id: document.fingerprint(writer.space) for document in found}
    for manifest in taken:
        expected.pop(manifest.item_id, None)
        if not manifest.deleted:
            expected[manifest.item_id] = manifest.fingerprint
    verify(store, writer.version, writer.space, expected)
    writer.lease.check()
    store.finish(writer.version, writer.generation)
    store.use(writer.version)


def _newest(store: MilvusPersonaStore, version: str | None) -> int:
    if version is None:
        return 0
    store.ensure_loaded(version)
    return store.newest_generation(version) or 0


def _reported(version: str, written: Sequence[Document]) -> PublishReport:
    return PublishReport(
        version=version,
        written=len(written),
        unchanged=0,
        deleted=0,
        kept=0,
        personas=sum(len(document.personas) for document in written),
        without_personas=sum(not document.personas for document in written),
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
        IndexRow(_row_id(item_id, persona, text, space), item_id, vector, persona)
        for persona, text, vector in zip(owners, document.rows, islice(vectors, len(owners)), strict=True)
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


def _row_id(item_id: str, persona: Persona | None, text: str, space: str) -> str:
    """Return an id that changes with all that the row holds, so that a row never does.

    An item's title, say, is in the text that is embedded but not in persona_id; were that the row's id, readers would
    meet the new vector under the manifest from before.
    """
    facts = json.dumps([space, text, asdict(persona) if persona else None], ensure_ascii=False)
    return f"{persona.persona_id if persona else f'{item_id}:summary'}:{_digest(facts)[:12]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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


def has_changed(document: Document, published: Manifest | None, space: str) -> bool:
    """Return whether a document is not what its manifest was made from."""
    return published is None or published.deleted or published.fingerprint != document.fingerprint(space)


def _write(
    writer: VersionWriter, encoder: Embedder, changed: Sequence[Document], report: Callable[[int], None]
) -> None:
    for batch in _batches(changed):
        writer.write(embed(batch, encoder, writer.generation))
        report(len(batch))


def _batches(found: Sequence[T]) -> Iterator[Sequence[T]]:
    return (found[start : start + BATCH_ITEMS] for start in range(0, len(found), BATCH_ITEMS))
