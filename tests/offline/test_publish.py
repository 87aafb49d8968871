"""Publishing to a real Milvus: what is written, what is left alone, and what readers see meanwhile."""

import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from itertools import count
from pathlib import Path
from threading import Timer
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import orjson
import pytest
from pymilvus import MilvusClient

import offline.publish
from offline.dataset import Dataset
from offline.item_publisher import ItemPublisher
from offline.publish import Document, PublishReport, documents, embed, publish
from offline.records import Item
from offline.text import interaction_text
from offline.version_writer import tell_nobody
from reranker.errors import EmbeddingSpaceError, IndexUnavailableError
from reranker.index import Index, build_index
from reranker.personas_milvus import MilvusPersonaStore
from reranker.records import Manifest, Persona, persona_id
from reranker.segment import Arrays
from tests.offline.encoders import Counting, Hashed
from tests.offline.reading import loaded, refreshed

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def encoder() -> Hashed:
    """Take the place of the model: here it only matters whose text a vector is of."""
    return Hashed()


@pytest.fixture(scope="module")
def few(books: tuple[Document, ...]) -> tuple[Document, ...]:
    return books[:6]


def renamed(document: Document, place: int = 0) -> Document:
    """Return the document with another name for one of its personas."""
    old = document.personas[place]
    item_id, name = document.item.item_id, f"{old.name} Anew"
    new_id = persona_id(item_id, name, old.description, old.preference_rationale)
    personas = [*document.personas]
    personas[place] = replace(old, persona_id=new_id, name=name)
    return replace(document, personas=tuple(personas))


def manifests(store: MilvusPersonaStore) -> dict[str, Manifest]:
    """Return the manifests of the items that are there, by item."""
    found = store.manifests(store.version() or "")
    return {manifest.item_id: manifest for manifest, _ in found if not manifest.deleted}


def generations(index: Index, found: Sequence[Document]) -> dict[str, int]:
    return {document.item.item_id: index.item(document.item.item_id).generation for document in found}


def personas_of(index: Index, item_id: str) -> tuple[Persona, ...]:
    return tuple(
        Persona(p.persona_id, p.name, p.description, p.preference_rationale, tuple(p.evidence))
        for p in index.item(item_id).personas
    )


def row_ids(store: MilvusPersonaStore) -> set[str]:
    """Return the ids of all rows there are, named by a manifest or not."""
    client = MilvusClient(store.uri, timeout=60, dedicated=True)
    found = client.query(f"personas_{store.version()}", filter="", output_fields=["row_id"], limit=10_000)
    client.close()
    return {row["row_id"] for row in found}


# An item's message has its generation in it, which is what publishing counted.
SAME_WHATEVER_THE_GENERATION = {field.name for field in fields(Arrays)} - {"items", "item_spans"}


def assert_holds(store: MilvusPersonaStore, found: Sequence[Document], encoder: Hashed) -> None:
    """Check that the index is exactly what these documents make, row for row and number for number."""
    index, stored = loaded(store), manifests(store)
    items = embed(sorted(found, key=lambda document: document.item.item_id), encoder, 0)
    expected = build_index("expected", encoder.space, encoder.dimension, items)
    assert (index.space, index.dimension) == (encoder.space, encoder.dimension)
    assert (index.item_count, index.persona_count) == (expected.item_count, expected.persona_count)
    for name in SAME_WHATEVER_THE_GENERATION:
        assert np.array_equal(getattr(index.single.arrays, name), getattr(expected.single.arrays, name)), name
    for item in items:
        item_id = item.manifest.item_id
        wanted = expected.item(item_id)
        wanted.generation = stored[item_id].generation
        assert index.item(item_id) == wanted
        assert stored[item_id].row_ids == item.manifest.row_ids
    assert row_ids(store) == {row_id for manifest in stored.values() for row_id in manifest.row_ids}


def test_a_dataset_joins_items_with_their_summaries_and_personas(catalogue: Dataset) -> None:
    found = documents(catalogue)
    assert [document.item for document in found] == list(catalogue.items())
    assert {d.item.item_id: d.personas for d in found} == {p.item_id: p.personas for p in catalogue.personas()}
    assert {d.item.item_id: d.summary for d in found} == {s.item_id: s.summary for s in catalogue.summaries()}


def test_what_was_published_is_loaded(store: MilvusPersonaStore, books: tuple[Document, ...], encoder: Hashed) -> None:
    done: list[int] = []
    report = publish(books, store, encoder, report=done.append)
    assert_holds(store, books, encoder)
    personas = sum(len(document.personas) for document in books)
    assert report == PublishReport(
        version=store.version() or "",
        written=len(books),
        unchanged=0,
        deleted=0,
        kept=0,
        personas=personas,
        without_personas=0,
    )
    assert sum(done) == len(books)
    assert loaded(store).persona_count == personas


def test_publishing_again_writes_nothing_and_embeds_nothing(
    store: MilvusPersonaStore, few: tuple[Document, ...], encoder: Hashed, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish(few, store, encoder)
    before = loaded(store)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("an unchanged dataset was written")

    for method in ("publish", "collect", "create", "use", "drop"):
        monkeypatch.setattr(store, method, forbidden)
    counting = Counting(encoder)
    again = publish(few, store, counting)
    assert (again.version, again.written, again.unchanged) == (first.version, 0, len(few))
    assert counting.asked == []
    assert generations(loaded(store), few) == generations(before, few)


def test_a_changed_persona_rewrites_its_item_alone_and_its_old_row_goes(
    store: MilvusPersonaStore, few: tuple[Document, ...], encoder: Hashed
) -> None:
    publish(few, store, encoder)
    before = loaded(store)
    changed = (*few[:2], renamed(few[2]), *few[3:])
    counting = Counting(encoder)
    report = publish(changed, store, counting)
    assert (report.written, report.unchanged, report.personas) == (1, 5, len(few[2].personas))
    assert counting.asked == changed[2].texts
    item_id = few[2].item.item_id
    assert generations(loaded(store), few) == {**generations(before, few), item_id: before.generation + 1}
    assert not [row_id for row_id in row_ids(store) if row_id.startswith(few[2].personas[0].persona_id)]
    assert_holds(store, changed, encoder)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: replace(d, summary="Another summary."),
        lambda d: replace(d, item=replace(d.item, title="Another Title")),
        lambda d: replace(d, item=replace(d.item, categories=("Another",))),
        lambda d: replace(d, personas=(replace(d.personas[0], evidence=("r9",)), *d.personas[1:])),
        lambda d: replace(d, personas=d.personas[::-1]),
        lambda d: replace(d, personas=d.personas[:1]),
        lambda d: replace(d, personas=()),
    ],
    ids=["summary", "title", "categories", "evidence", "order", "fewer personas", "no persona"],
)
def test_whatever_readers_see_of_an_item_is_a_change_of_it(
    change: Callable[[Document], Document], store: MilvusPersonaStore, few: tuple[Document, ...], encoder: Hashed
) -> None:
    several = next(document for document in few if len(document.personas) > 1)
    publish(few, store, encoder)
    changed = [change(document) if document is several else document for document in few]
    assert publish(changed, store, encoder).written == 1
    assert_holds(store, changed, encoder)


def test_what_readers_do_not_see_is_no_change(
    store: MilvusPersonaStore, few: tuple[Document, ...], encoder: Hashed
) -> None:
    publish(few, store, encoder)
    reordered = [replace(d, item=replace(d.item, attributes={"shelf": "3"})) for d in reversed(few)]
    assert publish(reordered, store, encoder).written == 0


def test_an_item_without_personas_is_found_by_its_summary(
    store: MilvusPersonaStore, few: tuple[Document, ...], encoder: Hashed
) -> None:
    cold = replace(few[0], personas=())
    report = publish([cold, few[1]], store, encoder)
    assert (report.without_personas, report.personas) == (1, len(few[1].personas))
    index = loaded(store)
    (row_id,) = manifests(store)[cold.item.item_id].row_ids
    assert row_id.startswith(f"{cold.item.item_id}:summary:")
    assert personas_of(index, cold.item.item_id) == ()
    row, arrays = index.locate([cold.item.item_id]).rows[0], index.single.arrays
    (vector,) = arrays.vectors[arrays.offsets[row] : arrays.offsets[row + 1]]
    assert np.array_equal(
        vector, encoder.interactions([interaction_text(cold.item, cold.summary)])[0].astype(vector.dtype)
    )
    publish(few[:2], store, encoder)
    assert_holds(store, few[:2], encoder)


def test_what_is_not_in_the_dataset_stays_and_is_told_of(
    store: MilvusPersonaStore, few: tuple[Document, ...], encoder: Hashed
) -> None:
    publish(few, store, encoder)
    report = publish(few[:4], store, encoder)
    assert (report.kept, report.deleted, report.unchanged) == (2, 0, 4)
    assert_holds(store, few, encoder)


def test_what_is_pruned_is_gone_and_may_come_back(
    store: MilvusPersonaStore, few: tuple[Document, ...], encoder: Hashed, tmp_path: Path
) -> None:
    publish(few, store, encoder)
    before = refreshed(store, tmp_path).generation
    report = publish(few[:4], store, encoder, prune=True)
    assert (report.kept, report.deleted, report.written) == (0, 2, 0)
    assert_holds(store, few[:4], encoder)
    # Readers that look for newer manifests must learn of a deletion.
    after = refreshed(store, tmp_path)
    assert (after.generation, after.item_count) == (before + 1, 4)
    assert after.locate([document.item.item_id for document in few]).held.tolist() == [True] * 4 + [False] * 2
    again = publish(few[:4], store, encoder, prune=True)
    assert (again.kept, again.deleted) == (0, 0)
    assert publish(few, store, encoder).written == 2
    assert refreshed(store, tmp_path).item_count == 6
    assert_holds(store, few, encoder)


def test_ids_that_look_like_a_query_touch_nothing_else(
    store: MilvusPersonaStore, few: tuple[Document, ...], encoder: Hashed
) -> None:
    item_id = 'a"b\\c"] or persona_id like "%" // \' 東京\t'
    persona = Persona(persona_id(item_id, "n", "d", "r"), "n", "d", "r", ("r1",))
    hostile = Document(Item(item_id, "t"), "s", (persona,))
    publish([*few, hostile], store, encoder)
    changed = [*few, renamed(hostile)]
    publish(changed, store, encoder)
    assert_holds(store, changed, encoder)
    publish(few, store, encoder, prune=True)
    assert_holds(store, few, encoder)


# ---- another embedding space -----------------------------------------------------------------------------------------


OTHER = Hashed("another-encoder:123456789abc:t1")


def test_another_space_is_refused_naming_both_and_nothing_is_touched(
    store: MilvusPersonaStore, few: tuple[Document, ...], encoder: Hashed
) -> None:
    publish(few, store, encoder)
    with pytest.raises(EmbeddingSpaceError, match="--rebuild") as raised:
        publish([renamed(few[0]), *few[1:]], store, OTHER)
    assert encoder.space in str(raised.value)
    assert OTHER.space in str(raised.value)
    assert_holds(store, few, encoder)


def test_a_rebuild_takes_the_place_of_the_old_index_when_it_is_whole(
    store: MilvusPersonaStore, few: tuple[Document, ...], encoder: Hashed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offline.publish.BATCH_ITEMS", 2)
    old = publish(few, store, encoder).version
    seen: list[tuple[str | None, str]] = []
    report = publish(
        few[:5], store, OTHER, rebuild=True, report=lambda _: seen.append((store.version(), loaded(store).space))
    )
    assert seen == [(old, encoder.space)] * 3
    assert report.version == store.version() != old
    assert (report.written, report.unchanged, report.kept) == (5, 0, 0)
    assert loaded(store).space == OTHER.space
    assert loaded(store).item_count == 5
    # The old version can still be read, to go back to it.
    assert [space for _, space in store.fetch(old, store.item_ids(old))] == [encoder.space] * len(few)


def test_a_rebuild_may_have_vectors_of_another_length(
    store: MilvusPersonaStore, few: tuple[Document, ...], encoder: Hashed
) -> None:
    publish(few, store, encoder)
    publish(few, store, Hashed("longer", 100), rebuild=True)
    assert loaded(store).dimension == 100


def test_a_reader_of_a_fixed_space_refuses_another(
    store: MilvusPersonaStore, few: tuple[Document, ...], encoder: Hashed
) -> None:
    publish(few, store, encoder)
    with pytest.raises(EmbeddingSpaceError, match=f"another and {encoder.space}"):
        loaded(store, "another")


def test_where_nothing_was_published_there_is_no_version(store: MilvusPersonaStore) -> None:
    assert store.version() is None


def test_publishing_no_items_leaves_an_empty_index(store: MilvusPersonaStore, encoder: Hashed) -> None:
    publish([], store, encoder)
    with pytest.raises(IndexUnavailableError, match="is empty: publish a dataset"):
        loaded(store)


# ---- a publisher that is killed --------------------------------------------------------------------------------------

ITEMS, BATCH = 24, 8
When = Literal["between batches", "rows, no manifests", "old rows stay"]
PROCESSES = multiprocessing.get_context("forkserver")
"""Processes of their own, forked from one that has imported all this once."""
PROCESSES.set_forkserver_preload([__name__])


def publish_until(when: When, uri: str, found: Sequence[Document], rebuild: bool) -> None:
    """Publish, and die on the way as by kill -9. To be run in a process of its own."""
    store = MilvusPersonaStore(uri)
    upsert, collect, manifests = store.milvus.client.upsert, store.collect, count(1)

    def dying_upsert(collection: str, *given: Any, **named: Any) -> None:
        if collection.startswith("items_") and next(manifests) == 2 and when == "rows, no manifests":
            die()
        upsert(collection, *given, **named)

    def dying_collect(*given: Any) -> None:
        if when == "old rows stay":
            die()
        collect(*given)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    offline.publish.BATCH_ITEMS = BATCH
    with patch.object(store.milvus.client, "upsert", dying_upsert), patch.object(store, "collect", dying_collect):
        at_report = die if when == "between batches" else lambda: None
        publish(found, store, Hashed(), rebuild=rebuild, report=lambda _: at_report())


def publish_and_die(when: When, uri: str, found: Sequence[Document], *, rebuild: bool = False) -> None:
    process = PROCESSES.Process(target=publish_until, args=(when, uri, found, rebuild))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture
def to_publish(books: tuple[Document, ...]) -> list[Document]:
    return [renamed(document) for document in books[:ITEMS]]


@pytest.mark.parametrize("when", ["between batches", "rows, no manifests", "old rows stay"])
def test_a_killed_publish_leaves_whole_items_and_the_next_one_completes_it(
    when: When,
    store: MilvusPersonaStore,
    books: tuple[Document, ...],
    to_publish: list[Document],
    encoder: Hashed,
) -> None:
    publish(books[:ITEMS], store, encoder)
    publish_and_die(when, store.uri, to_publish)

    index = loaded(store)
    of_item = {d.item.item_id: personas_of(index, d.item.item_id) for d in to_publish}
    old = {document.item.item_id for document in books[:ITEMS] if of_item[document.item.item_id] == document.personas}
    new = {document.item.item_id for document in to_publish if of_item[document.item.item_id] == document.personas}
    assert new == {document.item.item_id for document in to_publish[:BATCH]}
    assert old == set(of_item) - new

    report = publish(to_publish, store, encoder)
    assert (report.written, report.unchanged) == (ITEMS - BATCH, BATCH)
    index = loaded(store)
    for document in to_publish:
        assert personas_of(index, document.item.item_id) == document.personas
    assert (report.orphans > 0) == (when == "old rows stay")
    assert_holds(store, to_publish, encoder)


def test_an_item_is_published_alone_and_rows_that_a_killed_publish_left_of_it_go(
    store: MilvusPersonaStore, books: tuple[Document, ...], to_publish: list[Document], encoder: Hashed
) -> None:
    publish(books[:ITEMS], store, encoder)
    publish_and_die("rows, no manifests", store.uri, to_publish)
    assert len(row_ids(store)) > sum(len(one.personas) for one in books[:ITEMS])
    publisher = ItemPublisher(store, encoder, tell_nobody)
    # Nothing to write: the index has these words. What is left of the other ones goes all the same.
    assert publisher.publish(books[:ITEMS], []) == BATCH
    assert_holds(store, books[:ITEMS], encoder)
    assert set(store.row_ids(store.version() or "")) == {
        row for one in manifests(store).values() for row in one.row_ids
    }


@pytest.mark.parametrize("words", ["of a few words", '"' * 70_000, "\N{OWL}" * 70_000], ids=["few", "quotes", "owls"])
def test_a_persona_of_thousands_of_reviews_fits_what_milvus_takes(
    words: str, store: MilvusPersonaStore, books: tuple[Document, ...], encoder: Hashed
) -> None:
    """Milvus refuses a JSON field of more than 65,536 bytes; milvus-lite, which the tests run, takes any."""
    reviews = tuple(f"{number:024}" for number in range(5000))
    persona = replace(books[0].personas[0], description=words, evidence=reviews)
    publish([replace(books[0], personas=(persona,))], store, encoder)
    ((item, _),) = store.fetch(store.version() or "", [books[0].item.item_id])
    stored = item.rows[0].persona
    assert stored is not None
    assert len(orjson.dumps(asdict(stored))) <= 65_536
    assert words.startswith(stored.description)
    assert len(stored.description) >= min(len(words), 2500)
    assert len(stored.evidence) > 300
    assert stored.evidence == reviews[: len(stored.evidence)]


@pytest.mark.parametrize("when", ["between batches", "rows, no manifests"])
def test_a_killed_rebuild_was_never_seen(
    when: When,
    store: MilvusPersonaStore,
    books: tuple[Document, ...],
    to_publish: list[Document],
    encoder: Hashed,
) -> None:
    publish(books[:ITEMS], store, encoder)
    publish_and_die(when, store.uri, to_publish, rebuild=True)
    assert_holds(store, books[:ITEMS], encoder)
    publish(to_publish, store, encoder, rebuild=True)
    assert_holds(store, to_publish, encoder)
    assert [version.generation is None for version in store.versions()] == [False, False]


def test_a_first_publish_that_was_killed_was_never_seen(
    store: MilvusPersonaStore, to_publish: list[Document], encoder: Hashed
) -> None:
    publish_and_die("between batches", store.uri, to_publish, rebuild=True)
    assert store.version() is None
    publish(to_publish, store, encoder)
    assert_holds(store, to_publish, encoder)
    assert [version.in_use for version in store.versions()] == [True], "what was killed is collected"


def revised(document: Document, revision: int) -> Document:
    """Return the document with other names, of that revision, for all of its personas."""
    item_id, named = document.item.item_id, [replace(p, name=f"{p.name} {revision}") for p in document.personas]
    new_ids = [persona_id(item_id, p.name, p.description, p.preference_rationale) for p in named]
    personas = (replace(p, persona_id=new_id) for p, new_id in zip(named, new_ids, strict=True))
    return replace(document, personas=tuple(personas))


def publish_for_ever(uri: str, found: Sequence[Document], first: int) -> None:
    store = MilvusPersonaStore(uri)
    for revision in count(first):
        publish([revised(document, revision) for document in found], store, Hashed())


def assert_whole(index: Index, found: Sequence[Document]) -> None:
    """Check that every item is served as one of its revisions has it, no matter which."""
    for document in found:
        served = personas_of(index, document.item.item_id)
        revision = int(served[0].name.rsplit(" ", 1)[1])
        assert served == revised(document, revision).personas


def test_kills_at_any_moment_leave_whole_items_to_whoever_follows(
    store: MilvusPersonaStore, books: tuple[Document, ...], encoder: Hashed, tmp_path: Path
) -> None:
    found, drawn = books[:ITEMS], random.Random(5)
    publish([revised(document, 0) for document in found], store, encoder)
    index = refreshed(store, tmp_path)
    for first in (1000, 2000, 3000, 4000):
        process = PROCESSES.Process(target=publish_for_ever, args=(store.uri, found, first))
        process.start()
        begun = index.generation
        while index.generation == begun:
            assert process.is_alive()
            index = refreshed(store, tmp_path)
        killer = Timer(drawn.uniform(0.0, 0.5), process.kill)
        killer.start()
        while process.is_alive():
            index = refreshed(store, tmp_path)
            assert_whole(index, found)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        index = refreshed(store, tmp_path)
        assert_whole(index, found)
    publish(found, store, encoder)
    assert_holds(store, found, encoder)
