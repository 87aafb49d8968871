"""The demo catalogue, embedded once a session, and a Milvus Lite server that each test finds empty."""

from collections.abc import Iterator

import pytest
from pymilvus import MilvusClient

from offline.dataset import Dataset, Interaction
from offline.encoder import Embedder
from offline.evaluate import Materials, evaluation_index
from offline.histories import aspect_vectors
from offline.publish import Document
from persona4rec.milvus_lite import milvus_at
from reranker.personas_milvus import ALIAS, MilvusPersonaStore
from tests.conftest import free_port


@pytest.fixture(scope="session")
def interactions(catalogue: Dataset) -> tuple[Interaction, ...]:
    return tuple(catalogue.interactions())


@pytest.fixture(scope="session")
def materials(catalogue: Dataset, books: tuple[Document, ...], encoder: Embedder) -> Materials:
    return Materials(evaluation_index(books, encoder), aspect_vectors(catalogue, books, encoder))


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    uri = f"http://127.0.0.1:{free_port()}"
    with milvus_at(uri, tmp_path_factory.mktemp("milvus") / "data"):
        yield uri


@pytest.fixture
def empty_milvus(milvus: str) -> str:
    client = MilvusClient(milvus, timeout=60, dedicated=True)
    if client.has_collection(ALIAS):
        client.drop_alias(ALIAS)
    for name in client.list_collections():
        client.drop_collection(name)
    client.close()
    return milvus


@pytest.fixture
def store(empty_milvus: str) -> Iterator[MilvusPersonaStore]:
    opened = MilvusPersonaStore(empty_milvus)
    yield opened
    opened.close()
