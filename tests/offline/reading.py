"""The index that was published, read as a serving host reads it."""

from pathlib import Path
from tempfile import TemporaryDirectory

from reranker.index import Index
from reranker.indexer import Indexer
from reranker.personas_milvus import MilvusPersonaStore
from reranker.snapshot import open_snapshot, read_snapshot


def refreshed(store: MilvusPersonaStore, folder: Path, space: str | None = None) -> Index:
    """Bring an index directory in line with Milvus and map it."""
    with Indexer(folder, space) as indexer:
        indexer.refresh(store)
    snapshot = read_snapshot(folder)
    assert snapshot
    return open_snapshot(folder, snapshot)


def loaded(store: MilvusPersonaStore, space: str | None = None) -> Index:
    """Read the index into a directory of its own, as a new host does. Mapped files outlive their names."""
    with TemporaryDirectory() as folder:
        return refreshed(store, Path(folder), space)
