"""Whether a version that was rebuilt is what was published, before readers are switched to it."""

import random
from collections.abc import Mapping, Sequence
from itertools import islice

from offline.errors import VerificationError
from offline.version_writer import row_ids
from reranker.personas_milvus import MilvusPersonaStore
from reranker.records import IndexRow

# Items whose vectors are searched for. If one in a hundred vectors could not be found, all of 200 items with five each
# would be found with probability 4e-5; a search through 5 million vectors takes Milvus some 10 ms.
SAMPLED_ITEMS = 200
# A vector of length one, searched for with itself, is this similar to itself at least, in single precision.
ITSELF = 1 - 1e-4
# So many rows may be as near as the one searched for: items that say the same.
TIED_ROWS = 10


def verify(store: MilvusPersonaStore, version: str, space: str, expected: Mapping[str, str]) -> None:
    """Hold a version to what was published: `expected` is the fingerprint of every item that is to be in it.

    Every manifest is compared, rows are counted, and a sample of vectors is searched for, each of which must find
    itself (the recall of exact search is 1). Raises VerificationError, naming what differs.
    """
    stored = list(store.manifests(version, vectors=False))
    if others := {of for _, of in stored} - {space}:
        raise _differs(version, f"manifests of {' and '.join(sorted(others))} in an index of {space}")
    alive = {manifest.item_id: manifest for manifest, _ in stored if not manifest.deleted}
    _same(version, {item_id: manifest.fingerprint for item_id, manifest in alive.items()}, expected)
    named, rows = len(row_ids(alive.values())), store.count_rows(version)
    if named != rows:
        raise _differs(version, f"its manifests name {named} rows, and it holds {rows}")
    sample = random.Random(0).sample(sorted(alive), min(SAMPLED_ITEMS, len(alive)))  # noqa: S311 - a sample
    _found(store, version, sample)


def _same(version: str, stored: Mapping[str, str], expected: Mapping[str, str]) -> None:
    differing = sorted(
        item_id for item_id in stored.keys() | expected.keys() if stored.get(item_id) != expected.get(item_id)
    )
    if differing:
        told = ", ".join(islice(differing, 3))
        raise _differs(
            version,
            f"{len(stored)} items are in it, {len(expected)} were published, {len(differing)} are not the same: {told}",
        )


def _found(store: MilvusPersonaStore, version: str, item_ids: Sequence[str]) -> None:
    items = [item for item, _ in store.fetch(version, item_ids)]
    if len(items) != len(item_ids):
        raise _differs(version, f"of {len(item_ids)} items only {len(items)} can be read whole")
    rows = [row for item in items for row in item.rows]
    hits = store.nearest(version, [row.vector for row in rows], TIED_ROWS)
    lost = [row.row_id for row, near in zip(rows, hits, strict=True) if not _finds_itself(row, near)]
    if lost:
        raise _differs(version, f"{len(lost)} of {len(rows)} vectors do not find themselves: {', '.join(lost[:3])}")


def _finds_itself(row: IndexRow, near: Mapping[str, float]) -> bool:
    best = min(near.values(), default=0.0)
    return near.get(row.row_id, 0.0) >= ITSELF or (len(near) == TIED_ROWS and best >= ITSELF)


def _differs(version: str, what: str) -> VerificationError:
    return VerificationError(
        f"version {version} was not put in use, since it is not what was published: {what}. "
        "The index is as it was; publish with --rebuild again"
    )
