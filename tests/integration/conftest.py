"""One Milvus with the demo catalogue published to it, and one server on it, for all tests that change neither."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import grpc
import pytest

from candidate_gen.implicit_models import DEFAULTS, train
from candidate_gen.interactions import Interactions
from offline.dataset import Dataset
from offline.histories import aspect_vectors, events_by_user
from offline.publish import Document, publish
from offline.vector_cache import CachedEncoder
from persona4rec.milvus_lite import milvus_at
from reranker.histories_sqlite import SqliteHistoryStore
from reranker.index import Index
from reranker.indexer import Indexer
from reranker.personas_milvus import MilvusPersonaStore
from reranker.records import Event
from reranker.snapshot import open_snapshot, read_snapshot
from reranker.v1 import reranker_pb2 as pb
from reranker.v1 import reranker_pb2_grpc as pb_grpc
from tests.conftest import free_port
from tests.integration.processes import Server, serving

NEWCOMERS = {
    "newcomer": [
        Event("n1", "dracula", 1_700_000_000_000, kind="read", rating=5),
        Event("n2", "carmilla", 1_700_000_001_000),
        Event("n3", "frankenstein", 0),
    ],
    "stranger": [Event("s1", "a-book-nobody-has", 1_700_000_000_000)],
}


@dataclass(frozen=True)
class Published:
    """The demo catalogue as it stands in Milvus: its last book has lost its personas."""

    uri: str
    documents: tuple[Document, ...]
    index: Index

    @property
    def without_personas(self) -> str:
        return self.documents[-1].item.item_id

    def persona(self, persona_id: str) -> pb.Persona:
        """Return a persona as its dataset has it, as the message of an answer."""
        (found,) = (p for document in self.documents for p in document.personas if p.persona_id == persona_id)
        return pb.Persona(**asdict(found))

    @property
    def item_ids(self) -> list[str]:
        return [document.item.item_id for document in self.documents]


def refreshed(folder: Path, store: MilvusPersonaStore, space: str | None = None) -> Index:
    """Bring an index directory in line with the version in use, and map it."""
    with Indexer(folder, space) as indexer:
        indexer.refresh(store)
    snapshot = read_snapshot(folder)
    assert snapshot
    return open_snapshot(folder, snapshot)


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of a Milvus Lite server."""
    uri = f"http://127.0.0.1:{free_port()}"
    with milvus_at(uri, tmp_path_factory.mktemp("milvus") / "data"):
        yield uri


@pytest.fixture(scope="session")
def published(
    tmp_path_factory: pytest.TempPathFactory, milvus: str, books: tuple[Document, ...], encoder: CachedEncoder
) -> Published:
    found = (*books[:-1], replace(books[-1], personas=()))
    with closing(MilvusPersonaStore(milvus)) as store:
        publish(found, store, encoder)
        return Published(milvus, found, refreshed(tmp_path_factory.mktemp("index"), store, encoder.space))


@pytest.fixture(scope="session")
def histories(
    tmp_path_factory: pytest.TempPathFactory, catalogue: Dataset, books: tuple[Document, ...], encoder: CachedEncoder
) -> Path:
    """Give the histories of the demo's readers, and of some that the generator does not know.

    What the reviews said is embedded for some of the books only: it takes time.
    """
    path = tmp_path_factory.mktemp("histories") / "histories.sqlite"
    vectors = aspect_vectors(catalogue, books[:12], encoder)
    store = SqliteHistoryStore(path)
    store.merge(events_by_user(catalogue.interactions(), vectors, encoder.space) | NEWCOMERS)
    store.close()
    return path


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory, catalogue: Dataset) -> Path:
    """Give the directory of an ALS model of the demo's interactions."""
    path = tmp_path_factory.mktemp("generator") / "als"
    interactions = Interactions.from_pairs((i.user_id, i.item_id) for i in catalogue.interactions())
    train(interactions, DEFAULTS["als"]).save(path)
    return path


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, published: Published, histories: Path, generator: Path
) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), published.uri, histories, f"--generator={generator}") as running:
        yield running


@pytest.fixture(scope="session")
def stub(server: Server) -> Iterator[pb_grpc.RerankerStub]:
    """Give the bare stub of the server, for requests that the client would not make."""
    with grpc.insecure_channel(server.address) as channel:
        yield pb_grpc.RerankerStub(channel)
