"""Single items into the version of the index that is in use: by id, at a cost that does not grow with the index."""

from collections.abc import Sequence

from offline.encoder import Embedder
from offline.publish import Document, embed, has_changed, publish
from offline.version_writer import Tell, VersionWriter
from offline.versions import space_of
from reranker.errors import EmbeddingSpaceError
from reranker.leases import WRITING, leased
from reranker.personas_milvus import MilvusPersonaStore

# Another worker's batch takes a second or two; a whole publish longer, and then we are back by ourselves.
LEASE_WAIT_SECONDS = 5.0


class ItemPublisher:
    """Brings items of the index in line with documents. Remembers the newest generation, so it looks for newer only."""

    def __init__(self, store: MilvusPersonaStore, encoder: Embedder, tell: Tell) -> None:
        self._store = store
        self._encoder = encoder
        self._tell = tell
        self._version: str | None = None
        self._newest = 0

    def publish(self, found: Sequence[Document], gone: Sequence[str]) -> int:
        """Write documents that changed, delete items that are gone; return how many of both there were.

        Where nothing was ever published, this is the first version. Raises IndexUnavailableError, IndexBusyError while
        another publisher writes, EmbeddingSpaceError if the index is of another space than the encoder.
        """
        if not (found or gone):
            return 0
        first = self._store.version() is None
        written = publish(found, self._store, self._encoder, tell=self._tell).written if first else 0
        return written + self._update(found, gone)

    def _update(self, found: Sequence[Document], gone: Sequence[str]) -> int:
        with leased(self._store.milvus, WRITING, LEASE_WAIT_SECONDS) as lease:
            # Asked with the lease held: nobody switches to another version now.
            version = self._current()
            ids = [*(document.item.item_id for document in found), *gone]
            before = {manifest.item_id: manifest for manifest in self._store.manifests_of(version, ids)}
            space, dimension = self._encoder.space, self._encoder.dimension
            writer = VersionWriter(self._store, version, space, dimension, lease, self._newest, before, self._tell)
            changed = [d for d in found if has_changed(d, before.get(d.item.item_id), space)]
            writer.write(embed(changed, self._encoder, writer.generation))
            dropped = [before[item_id] for item_id in gone if item_id in before and not before[item_id].deleted]
            writer.delete(dropped)
            self._newest = writer.generation
            # A killed process may have left rows of theirs, made of words that somebody has had erased since.
            writer.collect_orphans_of(ids)
        return len(changed) + len(dropped)

    def _current(self) -> str:
        """Return the version in use, with its newest generation in mind."""
        version = str(self._store.version())
        # A Milvus that was restarted meanwhile has its collections on disk only.
        self._store.ensure_loaded(version)
        if version != self._version:
            self._refuse_another_space(version)
            self._version, self._newest = version, 0
        newer = self._store.newest_generation(version, self._newest)
        self._newest = self._newest if newer is None else newer
        return version

    def _refuse_another_space(self, version: str) -> None:
        space = space_of(self._store, version)
        if space and space != self._encoder.space:
            raise EmbeddingSpaceError(
                f"the index in Milvus at {self._store.uri} is of embedding space {space}, the encoder of "
                f"{self._encoder.space}: run the worker with the encoder and adapter that the index was published with"
            )
