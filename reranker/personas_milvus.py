"""The persona index's truth in Milvus: rows of vectors, and one manifest an item that says which of them count.

Two collections make a version: `personas_<version>` holds a row a vector, `items_<version>` a manifest an item. The
alias `items` names the version in use, so that one alias switch changes both. Writers store rows first and then
manifests, in one upsert a batch; readers follow manifests only, so nobody sees half an item. A version that was written
to its end and verified has a row in `versions`; any other is what a killed rebuild left.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
from pymilvus import DataType

from reranker.milvus import ID_BYTES, JSON_BYTES, NO_VECTOR, TEXT_BYTES, TIMEOUT_SECONDS, Milvus, batches, literals
from reranker.records import IndexRow, Manifest, Persona, Vector
from reranker.segment import IndexedItem

log = logging.getLogger(__name__)

ALIAS = "items"
VERSIONS = "versions"
_STAMP = "%Y%m%dt%H%M%S%f"

_MANIFEST_FIELDS = ["item_id", "generation", "space", "row_ids", "title", "summary", "vector", "fingerprint", "deleted"]
_ROW_FIELDS = ["row_id", "item_id", "vector", "text"]

_WORDS = ("name", "description", "preference_rationale")
# Of each of these: all three fit a JSON field even with every character escaped by another.
WORDS_BYTES = 10_000


@dataclass(frozen=True, slots=True)
class Version:
    """One version of the index in Milvus."""

    name: str
    in_use: bool
    generation: int | None
    """The newest when it was whole; None: it never was, or it is about to be deleted."""

    @property
    def created(self) -> datetime:
        """When it was begun, UTC."""
        return datetime.strptime(self.name, _STAMP).replace(tzinfo=UTC)


class MilvusPersonaStore:
    """Reads and writes the index of one Milvus. Raises IndexUnavailableError wherever Milvus does not do its part."""

    def __init__(self, uri: str, token: str = "", timeout: float = TIMEOUT_SECONDS) -> None:
        self.milvus = Milvus(uri, token, timeout)

    @property
    def uri(self) -> str:
        return self.milvus.uri

    def close(self) -> None:
        self.milvus.client.close()

    # ---- versions ----------------------------------------------------------------------------------------------------

    def version(self) -> str | None:
        """Return the version in use, e.g. "20260131t120000000000"; None if nothing was ever published."""
        if not self.milvus.has_collection(ALIAS):
            return None
        with self.milvus.doing("look up the index"):
            name = self.milvus.client.describe_collection(ALIAS, timeout=self.milvus.timeout)["collection_name"]
        return str(name).removeprefix("items_")

    def versions(self) -> list[Version]:
        """Return every version there is, the oldest first, those included that were never whole."""
        collections = self._collections()
        whole = {row["version"]: row["generation"] for row in self._finished(collections)}
        used = self.version()
        names = {name.partition("_")[2] for name in collections if name.startswith(("items_", "personas_"))}
        return [Version(name, name == used, whole.get(name)) for name in sorted(names)]

    def create(self, dimension: int) -> str:
        """Make an empty version for vectors of this length and return it; nobody sees it before `use`."""
        version = f"{datetime.now(UTC):{_STAMP}}"
        self.milvus.create_collection(f"personas_{version}", "row_id", dimension, _ROW)
        self.milvus.create_collection(f"items_{version}", "item_id", dimension, _MANIFEST)
        return version

    def finish(self, version: str, generation: int) -> None:
        """Note that a version is whole, and the newest generation in it."""
        self.milvus.ensure_collection(VERSIONS, "version", _VERSION)
        self.milvus.upsert(VERSIONS, [{"version": version, "generation": generation, "vector": list(NO_VECTOR)}])

    def use(self, version: str) -> None:
        """Make this the version that readers see."""
        client, there = self.milvus.client, self.milvus.has_collection(ALIAS)
        with self.milvus.doing("switch the index"):
            switch = client.alter_alias if there else client.create_alias
            switch(f"items_{version}", ALIAS, timeout=self.milvus.timeout)

    def drop(self, version: str) -> None:
        """Delete a version that is not in use. Cut short, it is one that was never whole."""
        collections = self._collections()
        if VERSIONS in collections:
            self.milvus.delete(VERSIONS, "version", [version])
        with self.milvus.doing(f"delete version {version}"):
            for name in {f"items_{version}", f"personas_{version}"} & collections:
                self.milvus.client.drop_collection(name, timeout=self.milvus.timeout)

    def ensure_loaded(self, version: str) -> None:
        """Make a version answer: a Milvus that was restarted has its collections on disk only."""
        self.milvus.load(f"personas_{version}", f"items_{version}")

    def dimension(self, version: str) -> int:
        """Return the length of the version's vectors."""
        with self.milvus.doing("describe the index"):
            fields = self.milvus.client.describe_collection(f"items_{version}", timeout=self.milvus.timeout)["fields"]
        return next(int(field["params"]["dim"]) for field in fields if field["name"] == "vector")

    def _collections(self) -> set[str]:
        with self.milvus.doing("list the versions"):
            return set(self.milvus.client.list_collections(timeout=self.milvus.timeout))

    def _finished(self, collections: set[str]) -> list[dict[str, Any]]:
        if VERSIONS not in collections:
            return []
        self.milvus.load(VERSIONS)
        return list(self.milvus.scan(VERSIONS, ["version", "generation"]))

    # ---- what a version holds ----------------------------------------------------------------------------------------

    def manifests(self, version: str, vectors: bool = True) -> Iterator[tuple[Manifest, str]]:
        """Yield every manifest, deleted ones included, with the embedding space it was published in."""
        for row in self.milvus.scan(f"items_{version}", _fields(vectors=vectors)):
            yield _manifest(row), row["space"]

    def manifests_of(self, version: str, item_ids: Sequence[str]) -> Iterator[Manifest]:
        """Yield the manifests of items, without their vectors, deleted ones included; none for an unknown item."""
        for batch in batches(item_ids):
            where = f"item_id in {literals(batch)}"
            yield from map(_manifest, self.milvus.query(f"items_{version}", where, _fields(vectors=False)))

    def item_ids(self, version: str, newer_than: int = -1) -> list[str]:
        """Return the items whose manifest is newer than a generation, deleted ones included, in order of their ids."""
        return sorted(self.generations(version, newer_than))

    def generations(self, version: str, newer_than: int = -1) -> dict[str, int]:
        """Return the generation of every manifest newer than one, by item, deleted ones included."""
        found = self.milvus.scan(f"items_{version}", ["item_id", "generation"], f"generation > {newer_than}")
        return {row["item_id"]: int(row["generation"]) for row in found}

    def newest_generation(self, version: str, newer_than: int = -1) -> int | None:
        """Return the greatest generation of any manifest; None if there is none newer than `newer_than`."""
        found = self.milvus.scan(f"items_{version}", ["generation"], f"generation > {newer_than}")
        return max((int(row["generation"]) for row in found), default=None)

    def count_items(self, version: str) -> int:
        """Return how many items a version holds, deleted ones not."""
        return self.milvus.count(f"items_{version}", "deleted == false")

    def count_rows(self, version: str) -> int:
        """Return how many rows a version holds, named by a manifest or not."""
        return self.milvus.count(f"personas_{version}")

    def row_ids(self, version: str) -> Iterator[str]:
        """Yield the id of every row, named by a manifest or not."""
        for row in self.milvus.scan(f"personas_{version}", ["row_id"]):
            yield row["row_id"]

    def row_ids_of(self, version: str, item_ids: Sequence[str]) -> Iterator[str]:
        """Yield the id of every row of some items, named by a manifest or not. Milvus looks at all rows for that."""
        for batch in batches(item_ids):
            for row in self.milvus.query(f"personas_{version}", f"item_id in {literals(batch)}", ["row_id"]):
                yield row["row_id"]

    def nearest(self, version: str, vectors: Sequence[Vector], limit: int) -> list[dict[str, float]]:
        """Search for the rows nearest to each vector; return their cosine by their id."""
        found: list[dict[str, float]] = []
        with self.milvus.doing("search the index"):
            for batch in batches(vectors):
                hits = self.milvus.client.search(
                    f"personas_{version}",
                    data=[vector.tolist() for vector in batch],
                    limit=limit,
                    consistency_level="Strong",
                    timeout=self.milvus.timeout,
                )
                found += [{hit["row_id"]: float(hit["distance"]) for hit in of_one} for of_one in hits]
        return found

    def fetch(self, version: str, item_ids: Sequence[str]) -> Iterator[tuple[IndexedItem, str]]:
        """Yield items as their manifests have them now, deleted ones with no rows, each with its embedding space.

        An item that is rewritten while it is read is read again; one whose rows stay missing is left out and logged.
        """
        torn: list[str] = []
        for item, space in self._fetch(version, item_ids):
            if len(item.rows) == len(item.manifest.row_ids):
                yield item, space
            else:
                torn.append(item.manifest.item_id)
        for item, space in self._fetch(version, torn):
            if len(item.rows) == len(item.manifest.row_ids):
                yield item, space
            else:
                log.warning("an item of %s is left out of the index: rows that its manifest names are gone", version)

    def publish(self, version: str, space: str, items: Sequence[IndexedItem]) -> None:
        """Write the rows of `items`, then their manifests; durable and visible to every reader when it returns."""
        self.milvus.upsert(f"personas_{version}", [_milvus_row(row) for item in items for row in item.rows])
        self.milvus.upsert(f"items_{version}", [_milvus_manifest(item.manifest, space) for item in items])

    def collect(self, version: str, row_ids: Iterable[str]) -> None:
        """Delete rows that no manifest names any more."""
        self.milvus.delete(f"personas_{version}", "row_id", list(row_ids))

    def _fetch(self, version: str, item_ids: Sequence[str]) -> Iterator[tuple[IndexedItem, str]]:
        for batch in batches(item_ids):
            found = self.milvus.query(f"items_{version}", f"item_id in {literals(batch)}", _MANIFEST_FIELDS)
            manifests = [(_manifest(row), row["space"]) for row in found]
            wanted = [row_id for manifest, _ in manifests for row_id in manifest.row_ids]
            rows = {row.row_id: row for row in self._rows(version, wanted)}
            for manifest, space in manifests:
                of_item = tuple(rows[row_id] for row_id in manifest.row_ids if row_id in rows)
                yield IndexedItem(manifest, of_item), space

    def _rows(self, version: str, row_ids: Sequence[str]) -> Iterator[IndexRow]:
        for batch in batches(row_ids):
            where = f"row_id in {literals(batch)}"
            yield from map(_index_row, self.milvus.query(f"personas_{version}", where, _ROW_FIELDS))


_ROW: dict[str, dict[str, Any]] = {
    "item_id": {"datatype": DataType.VARCHAR, "max_length": ID_BYTES},
    "kind": {"datatype": DataType.VARCHAR, "max_length": 16},
    "text": {"datatype": DataType.JSON},
}
_MANIFEST: dict[str, dict[str, Any]] = {
    "generation": {"datatype": DataType.INT64},
    "space": {"datatype": DataType.VARCHAR, "max_length": 512},
    "row_ids": {"datatype": DataType.JSON},
    "title": {"datatype": DataType.VARCHAR, "max_length": TEXT_BYTES},
    "summary": {"datatype": DataType.VARCHAR, "max_length": TEXT_BYTES},
    "fingerprint": {"datatype": DataType.VARCHAR, "max_length": 64},
    "deleted": {"datatype": DataType.BOOL},
}
_VERSION: dict[str, dict[str, Any]] = {"generation": {"datatype": DataType.INT64}}


def _fields(*, vectors: bool) -> list[str]:
    return _MANIFEST_FIELDS if vectors else [field for field in _MANIFEST_FIELDS if field != "vector"]


def _milvus_row(row: IndexRow) -> dict[str, Any]:
    kind = "persona" if row.persona else "summary"
    text = _persona_fitting(row.persona) if row.persona else {}
    return {"row_id": row.row_id, "item_id": row.item_id, "kind": kind, "text": text, "vector": row.vector}


def _persona_fitting(persona: Persona) -> dict[str, Any]:
    """Return as much of a persona as a JSON field takes: of thousands of reviews only the first are named."""
    text = asdict(persona) | {name: _fitting(getattr(persona, name), WORDS_BYTES) for name in _WORDS}
    while len(orjson.dumps(text)) > JSON_BYTES and text["evidence"]:
        text["evidence"] = text["evidence"][: len(text["evidence"]) // 2]
    return text


def _index_row(row: dict[str, Any]) -> IndexRow:
    text = row["text"]
    persona = Persona(**{**text, "evidence": tuple(text["evidence"])}) if text else None
    return IndexRow(row["row_id"], row["item_id"], np.asarray(row["vector"], np.float32), persona)


def _milvus_manifest(manifest: Manifest, space: str) -> dict[str, Any]:
    return {
        "item_id": manifest.item_id,
        "generation": manifest.generation,
        "space": space,
        "row_ids": list(manifest.row_ids),
        "title": _fitting(manifest.title),
        "summary": _fitting(manifest.summary),
        "vector": manifest.interaction_vector,
        "fingerprint": manifest.fingerprint,
        "deleted": manifest.deleted,
    }


def _fitting(text: str, most: int = TEXT_BYTES) -> str:
    """Return as much of a text as Milvus takes: one description of a book's length must not stop a publish."""
    return text.encode()[:most].decode(errors="ignore")


def _manifest(row: dict[str, Any]) -> Manifest:
    return Manifest(
        item_id=row["item_id"],
        generation=row["generation"],
        row_ids=tuple(row["row_ids"]),
        title=row["title"],
        summary=row["summary"],
        interaction_vector=np.asarray(row.get("vector", ()), np.float32),
        fingerprint=row["fingerprint"],
        deleted=row["deleted"],
    )
