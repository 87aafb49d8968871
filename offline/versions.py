"""From one version of the index to another: changes taken along, versions switched, old ones deleted."""

from collections.abc import Sequence
from dataclasses import dataclass

from offline.version_writer import Tell, VersionWriter, tell_nobody
from reranker.errors import ConfigurationError
from reranker.leases import REBUILDING, WRITING, leased
from reranker.milvus import batches
from reranker.personas_milvus import MilvusPersonaStore
from reranker.records import Manifest

# How long a switch waits for a publisher that writes to the version in use; hours of rebuilding hang on it, and a
# publisher of a few items takes seconds.
SWITCH_WAIT_SECONDS = 600.0
# Versions that stay beside the one in use, to go back to: each takes as much of Milvus's disk and memory as that one.
KEEP_VERSIONS = 1


@dataclass(frozen=True, slots=True)
class Carried:
    """What became of items of another version."""

    manifests: tuple[Manifest, ...]
    """Those that were taken along, as they were there."""
    left: tuple[str, ...]
    """Items whose vectors are of another embedding space: they are in this version as they were, or not at all."""


@dataclass(frozen=True, slots=True)
class RollbackReport:
    """What going back did."""

    version: str
    """In use now."""
    left_version: str
    replayed: int
    """Items that had changed since, deletions included, and were taken along."""
    left: tuple[str, ...]
    """Items that had changed since and could not be: they are as they were, or not there."""


def replay(store: MilvusPersonaStore, source: str, newer_than: int, writer: VersionWriter) -> Carried:
    """Write what changed in `source` after a generation: deletions, and items of the writer's space, as they are there.

    Done twice, it is as if done once.
    """
    store.ensure_loaded(source)
    return carry(store, source, store.item_ids(source, newer_than), writer)


def carry(store: MilvusPersonaStore, source: str, item_ids: Sequence[str], writer: VersionWriter) -> Carried:
    """Write items as they are in `source`, those that are deleted there and those of the writer's space."""
    taken: list[Manifest] = []
    left: list[str] = []
    for batch in batches(item_ids):
        writer.manifests |= {manifest.item_id: manifest for manifest in store.manifests_of(writer.version, batch)}
        found = list(store.fetch(source, batch))
        gone = [item.manifest for item, _ in found if item.manifest.deleted]
        alive = [(item, space) for item, space in found if not item.manifest.deleted]
        same = [item for item, space in alive if space == writer.space]
        writer.delete(gone)
        writer.write(same)
        taken += [*gone, *(item.manifest for item in same)]
        left += [item.manifest.item_id for item, space in alive if space != writer.space]
    return Carried(tuple(taken), tuple(left))


def roll_back(store: MilvusPersonaStore, tell: Tell = tell_nobody) -> RollbackReport:
    """Go back to the version before the one in use; what changed since that one was whole is taken along.

    The version that is left stays until the next rebuild. Raises ConfigurationError if there is none to go back to,
    IndexBusyError while another publisher writes.
    """
    with leased(store.milvus, REBUILDING), leased(store.milvus, WRITING, SWITCH_WAIT_SECONDS) as lease:
        versions = store.versions()
        used = next((version for version in versions if version.in_use), None)
        older = [v for v in versions if used and v.name < used.name and v.generation is not None]
        if used is None or not older:
            raise ConfigurationError(
                f"there is no version to go back to in Milvus at {store.uri}: a rebuild keeps the one before it"
            )
        target = older[-1].name
        store.ensure_loaded(target)
        newest = max(store.newest_generation(used.name) or 0, store.newest_generation(target) or 0)
        writer = VersionWriter(store, target, space_of(store, target), store.dimension(target), lease, newest)
        # Of a version that was never noted as whole it cannot be told what changed since it was.
        since = newest if used.generation is None else used.generation
        done = replay(store, used.name, since, writer)
        lease.check()
        store.use(target)
        tell(manifest for manifest, _ in store.manifests(target, vectors=False))
    return RollbackReport(target, used.name, len(done.manifests), done.left)


def space_of(store: MilvusPersonaStore, version: str) -> str:
    """Return the embedding space of a version; empty for an empty one."""
    return next((space for _, space in store.manifests(version, vectors=False)), "")


def drop_unfinished(store: MilvusPersonaStore) -> None:
    """Delete what is no version to go back to: rebuilds that were killed, and versions that were gone back from."""
    versions = store.versions()
    used = next((version.name for version in versions if version.in_use), "")
    for version in versions:
        if not version.in_use and (version.generation is None or version.name > used):
            store.drop(version.name)


def drop_old(store: MilvusPersonaStore, keep: int) -> None:
    """Delete all but the newest `keep` versions before the one in use."""
    versions = store.versions()
    used = next((version.name for version in versions if version.in_use), "")
    older = [version.name for version in versions if version.name < used]
    for name in older[: max(0, len(older) - keep)]:
        store.drop(name)
