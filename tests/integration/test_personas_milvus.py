"""The index in a real Milvus Lite: whole items for every reader, whatever is written, killed or named strangely."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pymilvus import MilvusClient

from reranker.errors import EmbeddingSpaceError, IndexUnavailableError
from reranker.index import Index
from reranker.indexer import MAX_DELTAS, Indexer
from reranker.milvus import BATCH_ROWS
from reranker.personas_milvus import MilvusPersonaStore
from reranker.records import IndexRow, Manifest, Persona
from reranker.segment import IndexedItem
from reranker.snapshot import open_snapshot, read_snapshot
from reranker.v1 import reranker_pb2 as pb
from tests.integration.conftest import refreshed
from tests.integration.processes import PATIENCE_SECONDS, MilvusProcess, milvus_process
from tests.reranker.making import SPACE, deleted, item, item_without_personas, told, told_of, vector

pytestmark = pytest.mark.integration

EAST, NORTH = vector(1, 0), vector(0, 1)


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusProcess]:
    with milvus_process(tmp_path_factory.mktemp("milvus") / "data") as running:
        yield running


@pytest.fixture
def store(milvus: MilvusProcess) -> Iterator[MilvusPersonaStore]:
    with closing(MilvusPersonaStore(milvus.uri)) as opened:
        yield opened


@pytest.fixture
def version(store: MilvusPersonaStore) -> str:
    """Give a version of its own to each test, still empty."""
    return store.create(dimension=2)


Load = Callable[..., Index]


@pytest.fixture
def load(store: MilvusPersonaStore, tmp_path: Path) -> Load:
    """Give a function that brings this test's index directory in line with a version."""

    def bring(version: str, space: str | None = None) -> Index:
        store.use(version)
        return refreshed(tmp_path / "index", store, space)

    return bring


def names(index: Index) -> dict[str, list[str]]:
    """Return the names of each item's personas."""
    return {
        item_id: [pb.Persona.FromString(told).name for told, _ in rows] for item_id, (_, rows, _) in told(index).items()
    }


STRANGE = ['"', "\\", "\n", "\t", "\r", "'", "é", "😀", "%", "_", "] or item_id != [", '\\"', "{x}", "--", "a" * 200]


def strange_item(number: int) -> IndexedItem:
    """Make an item whose id and texts hold what a query, a JSON text or a line could stumble over."""
    odd = STRANGE[number % len(STRANGE)]
    item_id = f"{odd}{number:04}{odd[:40]}"
    angle = np.float32(number)
    persona = Persona(f"{item_id}:0123456789ab", odd, f"{odd}\n{odd}", f'"{odd}"', (odd, f"{odd}/r1"))
    row = IndexRow(persona.persona_id, item_id, vector(np.cos(angle), np.sin(angle)), persona)
    return IndexedItem(Manifest(item_id, 1, (row.row_id,), odd, f"{odd} {odd}", EAST, "f" * 64), (row,))


def test_what_is_published_is_loaded_whatever_it_holds(store: MilvusPersonaStore, version: str, load: Load) -> None:
    # Several batches, cut at ids of every kind.
    items = [strange_item(number) for number in range(2 * BATCH_ROWS + len(STRANGE))]
    store.publish(version, SPACE, items)
    index = load(version)
    assert (index.version, index.space, index.generation) == (version, SPACE, 1)
    assert told(index) == told_of(items)


def test_an_item_without_personas_is_loaded_with_its_summary(
    store: MilvusPersonaStore, version: str, load: Load
) -> None:
    store.publish(version, SPACE, [item_without_personas("cold", NORTH), item("warm", [EAST, NORTH])])
    index = load(version)
    assert told(index)["cold"][1] == [(b"", NORTH.tolist())]
    assert (index.single.arrays.offsets.tolist(), index.persona_count) == ([0, 1, 3], 2)


def test_a_text_that_is_longer_than_milvus_takes_is_cut(store: MilvusPersonaStore, version: str, load: Load) -> None:
    long = item_without_personas("long", NORTH)
    book = replace(long.manifest, summary="é" * 40_000)
    store.publish(version, SPACE, [IndexedItem(book, long.rows), item("other", [EAST])])
    assert set(told(load(version))) == {"long", "other"}
    summaries = {manifest.item_id: manifest.summary for manifest, _ in store.manifests(version, vectors=False)}
    assert summaries["long"] == "é" * 32_767


def test_a_deleted_item_is_gone_but_its_generation_counts(store: MilvusPersonaStore, version: str, load: Load) -> None:
    store.publish(version, SPACE, [item("stays", [EAST]), item("goes", [NORTH]), item("went", [NORTH])])
    store.publish(version, SPACE, [deleted("went", generation=3)])
    assert names(load(version)) == {"stays": ["p0"], "goes": ["p0"]}
    store.publish(version, SPACE, [deleted("goes", generation=7)])
    index = load(version)
    assert (names(index), index.generation, index.item_count) == ({"stays": ["p0"]}, 7, 1)
    assert {m.item_id: m.deleted for m, _ in store.manifests(version, vectors=False)} == {
        "stays": False,
        "goes": True,
        "went": True,
    }


def test_an_index_of_deleted_items_is_loaded_empty(store: MilvusPersonaStore, version: str, load: Load) -> None:
    store.publish(version, SPACE, [deleted("goes", generation=3)])
    index = load(version)
    assert (index.item_count, index.dimension, index.generation) == (0, 2, 3)
    assert told(index) == {}


def test_changes_are_seen_by_generation(store: MilvusPersonaStore, version: str) -> None:
    assert store.item_ids(version) == []
    assert store.newest_generation(version) is None
    store.publish(version, SPACE, [item("b", [EAST], generation=4), deleted("a", generation=3)])
    assert [store.item_ids(version, newer_than) for newer_than in (2, 3, 4)] == [["a", "b"], ["b"], []]
    assert [store.newest_generation(version, newer_than) for newer_than in (2, 3, 4)] == [4, 4, None]


class Interrupted(MilvusPersonaStore):
    """Lets somebody publish after the changes were looked for and before they are read."""

    meanwhile: Callable[[], None]

    def fetch(self, version: str, item_ids: Sequence[str]) -> Iterator[tuple[IndexedItem, str]]:
        self.meanwhile()
        return super().fetch(version, item_ids)


def test_what_is_published_while_an_index_is_read_is_in_the_next(
    milvus: MilvusProcess, store: MilvusPersonaStore, version: str, load: Load, tmp_path: Path
) -> None:
    store.publish(version, SPACE, [item("a", [EAST]), item("b", [EAST])])
    load(version)
    store.publish(version, SPACE, [item("a", [NORTH], generation=2)])
    after = [item("a", [NORTH], generation=3), item("b", [NORTH], generation=3), item("c", [NORTH], generation=3)]
    with closing(Interrupted(milvus.uri)) as interrupted:
        interrupted.meanwhile = lambda: store.publish(version, SPACE, after)
        refreshed(tmp_path / "index", interrupted)
    assert told(load(version)) == told_of(after)


def test_a_first_index_misses_nothing_that_is_published_meanwhile(
    milvus: MilvusProcess, store: MilvusPersonaStore, version: str, load: Load, tmp_path: Path
) -> None:
    store.publish(version, SPACE, [item("a", [EAST])])
    store.use(version)
    after = [item("a", [NORTH], generation=2), item("b", [NORTH], generation=2)]
    with closing(Interrupted(milvus.uri)) as interrupted:
        interrupted.meanwhile = lambda: store.publish(version, SPACE, after)
        refreshed(tmp_path / "index", interrupted)
    assert told(load(version)) == told_of(after)


def test_many_changes_are_merged_and_change_nothing(
    store: MilvusPersonaStore, version: str, load: Load, tmp_path: Path
) -> None:
    catalogue = {f"i{n}": item(f"i{n}", [EAST]) for n in range(5)}
    store.publish(version, SPACE, list(catalogue.values()))
    load(version)
    for generation in range(2, MAX_DELTAS + 2):
        changed = item(f"i{generation % 5}", [NORTH] * (1 + generation % 3), generation=generation)
        catalogue[changed.manifest.item_id] = changed
        store.publish(version, SPACE, [changed])
        index = load(version)
        assert told(index) == told_of(list(catalogue.values()))
    assert len(index.segments) == MAX_DELTAS + 1
    with Indexer(tmp_path / "index", SPACE) as indexer:
        assert indexer.compact()
        assert not indexer.compact()
        assert not indexer.refresh(store)
        indexer.verify()
    merged = load(version)
    assert len(merged.segments) == 1
    assert (told(merged), merged.generation) == (told(index), index.generation)


def test_a_segment_that_can_no_longer_be_mapped_is_built_anew(
    store: MilvusPersonaStore, version: str, load: Load, tmp_path: Path
) -> None:
    store.publish(version, SPACE, [item("a", [EAST])])
    before = told(load(version))
    for torn in (tmp_path / "index").glob("segment-*/vectors.npy"):
        torn.write_bytes(b"")
    with Indexer(tmp_path / "index", SPACE) as indexer:
        with pytest.raises(IndexUnavailableError, match=r"is torn: vectors\.npy"):
            indexer.refresh(store)
        assert indexer.refresh(store)
    assert told(load(version)) == before


def rows_in(milvus: MilvusProcess, version: str) -> list[str]:
    client = MilvusClient(milvus.uri, timeout=60, dedicated=True)
    found = client.query(f"personas_{version}", filter='row_id != ""', output_fields=["row_id"], limit=100)
    client.close()
    return sorted(row["row_id"] for row in found)


@pytest.mark.parametrize("odd", STRANGE[:12])
def test_collecting_takes_the_named_rows_and_no_others(
    milvus: MilvusProcess, store: MilvusPersonaStore, version: str, load: Load, odd: str
) -> None:
    store.publish(version, SPACE, [item(f"kept{odd}", [EAST]), item(f"shrunk{odd}", [EAST, NORTH])])
    store.publish(version, SPACE, [item(f"shrunk{odd}", [NORTH], generation=2)])
    assert len(rows_in(milvus, version)) == 3
    store.collect(version, [f"shrunk{odd}:p1"])
    assert rows_in(milvus, version) == sorted([f"kept{odd}:p0", f"shrunk{odd}:p0"])
    assert names(load(version)) == {f"kept{odd}": ["p0"], f"shrunk{odd}": ["p0"]}


def test_two_embedding_spaces_are_refused_by_name(
    store: MilvusPersonaStore, version: str, load: Load, tmp_path: Path
) -> None:
    store.publish(version, "space:one", [item("a", [EAST])])
    # Before there is a directory, and with one.
    for _ in range(2):
        with pytest.raises(EmbeddingSpaceError, match="space:one and space:two"):
            load(version, "space:two")
        assert load(version, "space:one").space == "space:one"
    store.publish(version, "space:two", [item("b", [EAST], generation=2)])
    for asked in (None, "space:one"):
        with pytest.raises(EmbeddingSpaceError, match="space:one and space:two"):
            load(version, asked)
        with pytest.raises(EmbeddingSpaceError, match="space:one and space:two"):
            refreshed(tmp_path / f"new-{asked}", store, asked)
    snapshot = read_snapshot(tmp_path / "index")
    assert snapshot
    assert names(open_snapshot(tmp_path / "index", snapshot)) == {"a": ["p0"]}, "the index that was there stays"


def test_an_empty_version_is_refused(version: str, load: Load, milvus: MilvusProcess) -> None:
    with pytest.raises(IndexUnavailableError, match=f"{milvus.uri} is empty: publish a dataset"):
        load(version)


def test_a_rebuild_is_seen_when_it_is_switched_to_and_can_be_taken_back(
    store: MilvusPersonaStore, tmp_path: Path
) -> None:
    old, new = store.create(2), store.create(2)
    store.publish(old, SPACE, [item("a", [EAST])])
    store.use(old)
    store.publish(new, SPACE, [item("b", [EAST])])
    assert store.version() == old
    store.use(new)
    assert store.version() == new
    assert names(refreshed(tmp_path, store)) == {"b": ["p0"]}
    store.use(old)
    assert store.version() == old
    assert names(refreshed(tmp_path, store)) == {"a": ["p0"]}


# Rewrites every item again and again, as a publish does: rows, manifests, then the rows that no manifest names. Each
# time an item has other personas, as many as before plus or minus one, all named by the generation.
ITEMS = 20
_REWRITE = """
import sys
from reranker.personas_milvus import MilvusPersonaStore
from reranker.records import IndexRow, Manifest, Persona
from reranker.segment import IndexedItem
import numpy as np

def made(item_id, generation):
    count = 1 + generation % 3
    owners = [Persona(f"{item_id}:{generation}-{n}", str(generation), "", "", ()) for n in range(count)]
    vector = np.array([generation, count], np.float32)
    rows = tuple(IndexRow(p.persona_id, item_id, vector, p) for p in owners)
    ids = tuple(row.row_id for row in rows)
    return IndexedItem(Manifest(item_id, generation, ids, str(generation), "", vector, ""), rows)

store, version = MilvusPersonaStore(sys.argv[1]), sys.argv[2]
before = []
for generation in range(1, int(sys.argv[3]) + 1):
    items = [made(f"i{n:02}", generation) for n in range(int(sys.argv[4]))]
    store.publish(version, "space", items)
    store.collect(version, before)
    before = [row.row_id for item in items for row in item.rows]
    print(generation, flush=True)
"""


def rewriting(milvus: MilvusProcess, version: str, rounds: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", _REWRITE, milvus.uri, version, str(rounds), str(ITEMS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def assert_whole(index: Index) -> None:
    """Check that each item is of one generation, with all personas of that generation and its vectors."""
    for message, rows, own in told(index).values():
        found = pb.ItemPersonas.FromString(message)
        generation, count = found.generation, 1 + found.generation % 3
        assert found.title == str(generation)
        assert [pb.Persona.FromString(persona).name for persona, _ in rows] == [str(generation)] * count
        assert [vector for _, vector in rows] == [[generation, count]] * count
        assert own == [generation, count]


def generations(index: Index) -> dict[str, int]:
    return {item_id: pb.ItemPersonas.FromString(message).generation for item_id, (message, _, _) in told(index).items()}


def test_no_reader_sees_half_an_item_and_every_reader_catches_up(
    milvus: MilvusProcess, store: MilvusPersonaStore, version: str, load: Load
) -> None:
    with rewriting(milvus, version, rounds=60) as writer:
        assert writer.stdout
        writer.stdout.readline()
        index, loads = load(version), 0
        while writer.poll() is None:
            # As a server follows: only what is newer than the newest it has.
            before, index = index, load(version)
            loads += index.generation > before.generation
            assert_whole(index)
            # An item that changed too often to be read whole is left out, for the next look to find.
            assert index.item_count == ITEMS or store.item_ids(version, index.generation)
        assert writer.wait(PATIENCE_SECONDS) == 0
    assert loads > 1, "nothing was read while the items were rewritten"
    index = load(version)
    assert generations(index) == {f"i{number:02}": 60 for number in range(ITEMS)}
    assert_whole(index)


def test_a_killed_writer_leaves_whole_items(milvus: MilvusProcess, version: str, load: Load) -> None:
    with rewriting(milvus, version, rounds=100_000) as writer:
        assert writer.stdout
        said = [int(writer.stdout.readline()) for _ in range(5)]
        writer.send_signal(signal.SIGKILL)
        said += [int(line) for line in writer.stdout.readlines() if line.endswith(b"\n")]
    index = load(version)
    assert_whole(index)
    assert index.item_count == ITEMS
    assert min(generations(index).values()) >= max(said), "a publish that had returned is lost"


def test_killing_milvus_loses_nothing_that_was_published(tmp_path: Path) -> None:
    items = [item(f"i{number}", [EAST, NORTH], generation=1 + number // 10) for number in range(70)]
    with milvus_process(tmp_path / "data") as milvus, closing(MilvusPersonaStore(milvus.uri)) as store:
        version = store.create(dimension=2)
        for start in range(0, len(items), 10):
            store.publish(version, SPACE, items[start : start + 10])
        store.use(version)
        milvus.signal(signal.SIGKILL)
        with pytest.raises(IndexUnavailableError, match=milvus.uri):
            store.version()
        milvus.start()
        assert store.version() == version
        assert told(refreshed(tmp_path / "index", store)) == told_of(items)


def test_a_milvus_that_hangs_is_told_from_one_that_answers(milvus: MilvusProcess, version: str) -> None:
    with closing(MilvusPersonaStore(milvus.uri, timeout=1)) as impatient:
        milvus.signal(signal.SIGSTOP)
        try:
            for ask in (impatient.version, lambda: impatient.item_ids(version)):
                with pytest.raises(IndexUnavailableError, match=f"{milvus.uri} could not .*DEADLINE_EXCEEDED"):
                    ask()
        finally:
            milvus.signal(signal.SIGCONT)
        assert impatient.item_ids(version) == []
