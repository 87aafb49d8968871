"""The promises of reranker/INVARIANTS.md, held to an in-memory model.

Any order of publishing, deleting, rebuilding, going back, following and merging, on a real Milvus Lite and real files,
with a crash between any two steps of a publisher or of the indexer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from offline.publish import Document, embed, publish
from offline.records import Item
from offline.versions import roll_back
from reranker import indexer as indexer_module
from reranker.errors import ConfigurationError
from reranker.indexer import Indexer
from reranker.leases import Process, this_process
from reranker.personas_milvus import ALIAS, MilvusPersonaStore
from reranker.records import Persona, persona_id
from reranker.snapshot import open_snapshot, read_snapshot
from reranker.v1 import reranker_pb2 as pb
from tests.offline.encoders import Hashed
from tests.reranker.making import told, told_of

pytestmark = pytest.mark.integration

ITEMS = ["a", "b", "c", "d", "e"]
SPACES = [Hashed("one"), Hashed("two", 4)]
# Beyond what Linux gives: a crashed publisher of this test is dead to the next one, though its process lives.
DEAD = 2**22 + 1
WRITES = {"upsert", "delete", "create_collection", "create_index", "create_alias", "alter_alias", "drop_collection"}
STEPS = ["save_segment", "merge_segments", "write_snapshot", "touch", "sweep", "delete"]

Revision = int | None
"""What an item says; None: it is not there."""
Catalogue = dict[str, set[Revision]]
"""What each item may be; one thing only, unless a publisher crashed."""

revisions = st.dictionaries(st.sampled_from(ITEMS), st.integers(0, 5), min_size=1)


def document(item_id: str, revision: int) -> Document:
    """Make an item whose title and personas change by turns: a title changes vectors, but no persona's id."""
    names = [f"{revision // 2}-{number}" for number in range(revision // 2)]
    personas = tuple(Persona(persona_id(item_id, n, "", ""), n, "", "", (f"r{revision}",)) for n in names)
    return Document(Item(item_id, f"title {revision % 2}"), "summary", personas)


def said(index: Any) -> dict[str, object]:
    """Return what an index says of each item, whatever its generation."""
    found: dict[str, object] = {}
    for item_id, (message, rows, own) in told(index).items():
        item = pb.ItemPersonas.FromString(message)
        item.ClearField("generation")
        found[item_id] = (item.SerializeToString(), rows, own)
    return found


class CrashError(BaseException):
    """No code of ours handles it."""


class Mortal:
    """A Milvus client whose process dies before its n-th write; the dead do nothing any more."""

    def __init__(self, client: Any, writes: int) -> None:
        self._client = client
        self._left = writes

    def __getattr__(self, name: str) -> Any:
        does = getattr(self._client, name)
        return does if name not in WRITES else lambda *given, **named: self._written(does, given, named)

    def _written(self, does: Callable[..., Any], given: Any, named: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise CrashError
        return does(*given, **named)


class IndexMachine(RuleBasedStateMachine):
    """The model: what each version holds, which of its items changed since it was whole, and what is served."""

    uri: str

    def __init__(self) -> None:
        super().__init__()
        self.store = MilvusPersonaStore(self.uri)
        self._empty_milvus()
        self.folder = TemporaryDirectory()
        self.indexer = Indexer(Path(self.folder.name), None)
        self.versions: dict[str, Catalogue] = {}
        self.changed: dict[str, set[str]] = {}
        self.encoders: dict[str, Hashed] = {}
        self.heard: dict[str, int] = {}
        self.served: dict[str, object] = {}
        self.seen: tuple[str, int] = ("", 0)
        self.rendered: dict[tuple[str, int, str], object] = {}

    def teardown(self) -> None:
        self.indexer.__exit__()
        self.folder.cleanup()
        self.store.close()

    # ---- what publishers do ------------------------------------------------------------------------------------------

    @rule(found=revisions, prune=st.booleans(), writes=st.none() | st.integers(0, 14))
    def publish(self, found: dict[str, int], prune: bool, writes: int | None) -> None:
        version = self.store.version()
        if version is None:
            self._rebuild(found, SPACES[0], prune, writes)
            return
        now = self.versions[version]
        wanted: dict[str, Revision] = {i: found.get(i) for i in ITEMS if prune or i in found}
        crashed = self._crashes(writes, lambda: self._publish(found, self.encoders[version], prune=prune))
        for item_id, revision in wanted.items():
            self.changed[version] |= {item_id} if now[item_id] != {revision} else set()
            now[item_id] = now[item_id] | {revision} if crashed else {revision}

    @rule(found=revisions, encoder=st.sampled_from(SPACES), prune=st.booleans(), writes=st.none() | st.integers(0, 40))
    def rebuild(self, found: dict[str, int], encoder: Hashed, prune: bool, writes: int | None) -> None:
        self._rebuild(found, encoder, prune, writes)

    def _rebuild(self, found: dict[str, int], encoder: Hashed, prune: bool, writes: int | None) -> None:
        before = str(self.store.version())
        self._crashes(writes, lambda: self._publish(found, encoder, prune=prune, rebuild=True))
        version = str(self.store.version())
        if version != before:
            others = {} if prune or self.encoders.get(before) != encoder else self.versions[before]
            self.versions[version] = {i: {found[i]} if i in found else set(others.get(i, {None})) for i in ITEMS}
            self.changed[version] = set()
            self.encoders[version] = encoder

    @precondition(lambda self: self.versions)
    @rule(writes=st.none() | st.integers(0, 12))
    def roll_back(self, writes: int | None) -> None:
        version = self.store.version()
        older = [v.name for v in self.store.versions() if v.generation is not None and v.name < str(version)]
        if not older:
            with pytest.raises(ConfigurationError, match="no version to go back to"):
                roll_back(self.store)
            return
        self._crashes(writes, lambda: roll_back(self.store, self._hear))
        self._take_along(str(version), older[-1], done=self.store.version() == older[-1])

    def _take_along(self, source: str, target: str, *, done: bool) -> None:
        """Bring the model's target in line with what changed in its source."""
        before = self.versions[target]
        for item_id in self.changed[source]:
            same = self.encoders[source] == self.encoders[target]
            # Of another space only a deletion can be taken along; then nothing, or that, has come over.
            new = self.versions[source][item_id] if same else self.versions[source][item_id] & {None}
            certain = done and (same or new == self.versions[source][item_id])
            before[item_id] = set(new) if certain else before[item_id] | new
            self.changed[target].add(item_id)

    # ---- what a host does --------------------------------------------------------------------------------------------

    @precondition(lambda self: self.versions)
    @rule(crash_at=st.none() | st.sampled_from(STEPS))
    def look(self, crash_at: str | None) -> None:
        """Look for newer manifests: what is served is then what is published, and stays so."""
        crashed = self._indexer_crashes(crash_at, lambda: self.indexer.refresh(self.store))
        self._check(set(ITEMS), complete=not crashed)

    @precondition(lambda self: self.served)
    @rule()
    def listen(self) -> None:
        """Look at what the feed named: of these items what is served is then what is published."""
        heard, self.heard = self.heard, {}
        self.indexer.refresh(self.store, heard)
        self._check(set(heard), complete=True)

    @rule(crash_at=st.none() | st.sampled_from(STEPS), whole=st.integers(0, 1))
    def merge(self, crash_at: str | None, whole: int) -> None:
        # As where the oldest segment is a large catalogue's: it stays, and what it must not show stays hidden.
        with (
            patch.object(indexer_module, "MAX_DELTAS", 2),
            patch.object(indexer_module, "_worth_merging", lambda sizes: max(2, len(sizes) - whole)),
        ):
            self._indexer_crashes(crash_at, self.indexer.compact)
        assert self._read() == self.served

    @rule()
    def restart(self) -> None:
        self.indexer.__exit__()
        self.indexer = Indexer(Path(self.folder.name), None)
        self.indexer.verify()
        assert self._read() == self.served

    # ---- the model against the real thing ----------------------------------------------------------------------------

    def _check(self, looked_at: set[str], *, complete: bool) -> None:
        """Hold each item to what it may be: what is published, or where nobody looked what was served before."""
        before, self.served = self.served, self._read()
        snapshot = read_snapshot(Path(self.folder.name))
        if snapshot is None:
            assert not complete
            return
        index = open_snapshot(Path(self.folder.name), snapshot)
        version = snapshot.version
        assert version == self.store.version() or not complete
        if version == self.seen[0]:
            assert index.generation >= self.seen[1]
        elif complete:
            looked_at = set(ITEMS)
        self.seen = (version, index.generation)
        for item_id in ITEMS:
            known = self._known(version, item_id)
            now = self.served.get(item_id)
            stays = now == before.get(item_id) and not (complete and item_id in looked_at)
            assert now in known.values() or stays, f"{item_id} is none of {sorted(map(str, known))}"
            if complete and item_id in looked_at:
                # Nobody writes now: what it is, it stays.
                self.versions[version][item_id] = {r for r, shown in known.items() if shown == now}

    def _known(self, version: str, item_id: str) -> dict[Revision, object]:
        return {r: self._shown(version, item_id, r) for r in self.versions.get(version, {}).get(item_id, set())}

    def _shown(self, version: str, item_id: str, revision: Revision) -> object:
        if revision is None:
            return None
        encoder = self.encoders[version]
        key = (item_id, revision, encoder.space)
        if key not in self.rendered:
            (item,) = embed([document(item_id, revision)], encoder, 0)
            (self.rendered[key],) = told_of([item]).values()
        return self.rendered[key]

    def _read(self) -> dict[str, object]:
        folder = Path(self.folder.name)
        snapshot = read_snapshot(folder)
        return said(open_snapshot(folder, snapshot)) if snapshot else {}

    def _publish(self, found: dict[str, int], encoder: Hashed, *, prune: bool = False, rebuild: bool = False) -> None:
        documents = [document(item_id, revision) for item_id, revision in found.items()]
        publish(documents, self.store, encoder, tell=self._hear, prune=prune, rebuild=rebuild)

    def _hear(self, manifests: Any) -> None:
        self.heard |= {manifest.item_id: manifest.generation for manifest in manifests}

    def _crashes(self, writes: int | None, do: Callable[[], object]) -> bool:
        client = self.store.milvus.client
        self.store.milvus.client = client if writes is None else Mortal(client, writes)
        dead = replace(this_process(), pid=DEAD)
        try:
            with patch("reranker.leases.this_process", lambda: Process(dead.place, dead.pid)):
                do()
        except CrashError:
            return True
        finally:
            self.store.milvus.client = client
        return False

    def _indexer_crashes(self, at: str | None, do: Callable[[], object]) -> bool:
        if at is None:
            do()
            return False
        try:
            with _dying_after(at):
                do()
        except CrashError:
            self.indexer.__exit__()
            self.indexer = Indexer(Path(self.folder.name), None)
            return True
        return False

    def _empty_milvus(self) -> None:
        client = self.store.milvus.client
        if client.has_collection(ALIAS):
            client.drop_alias(ALIAS)
        for name in client.list_collections():
            client.drop_collection(name)


@contextmanager
def _dying_after(step: str) -> Iterator[None]:
    real = getattr(indexer_module, step)

    def die(*given: Any, **named: Any) -> None:
        real(*given, **named)
        raise CrashError

    with patch.object(indexer_module, step, die):
        yield


def hold(uri: str, examples: int) -> None:
    class Machine(IndexMachine):
        pass

    Machine.uri = uri
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    with patch("offline.publish.BATCH_ITEMS", 2):
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=examples, stateful_step_count=12, deadline=None, suppress_health_check=checks
            ),
        )


def test_what_is_served_was_published(milvus: str) -> None:
    hold(milvus, examples=12)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_what_is_served_was_published_over_and_over(milvus: str) -> None:
    hold(milvus, examples=1000)
