"""The persona index's truth in Milvus: rows of vectors, and one manifest an item that says which of them count.

Two collections make a version: `personas_<version>` holds a row a vector, `items_<version>` a manifest an item. The
alias `items` names the version in use, so that one alias switch changes both. Writers store rows first and then
manifests, in one upsert a batch; readers follow manifests only, so nobody sees half an item.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypeVar

import grpc
import numpy as np
from pymilvus import DataType, MilvusClient, MilvusException

from reranker.errors import IndexUnavailableError
from reranker.records import IndexRow, Manifest, Persona
from reranker.segment import IndexedItem

log = logging.getLogger(__name__)
T = TypeVar("T")

ALIAS = "items"
# Long enough for a cold Milvus to load a collection of a million rows, short enough that a dead one is noticed by hand.
TIMEOUT_SECONDS = 60.0
# A batch of 1024-dimensional rows with their text stays below 4 MB, well within Milvus's 64 MB message limit.
BATCH_ROWS = 500
ID_BYTES = 300  # an item id (256) with the 13 bytes that a persona id adds, and room
TEXT_BYTES = 65_535  # Milvus's own limit for VARCHAR
# pymilvus pings an idle server every 10 s, which gRPC servers answer with GOAWAY "too_many_pings" unless they were told
# to expect it, as milvus-lite is not; its shared connections then refuse the next client. A call still pings.
CHANNEL = {"grpc.keepalive_permit_without_calls": False}

_MANIFEST_FIELDS = ["item_id", "generation", "space", "row_ids", "title", "summary", "vector", "fingerprint", "deleted"]
_ROW_FIELDS = ["persona_id", "item_id", "vector", "text"]


class MilvusPersonaStore:
    """Reads and writes the index of one Milvus. Raises IndexUnavailableError wherever Milvus does not do its part."""

    def __init__(self, uri: str, token: str = "", timeout: float = TIMEOUT_SECONDS) -> None:
        self.uri = uri
        self._timeout = timeout
        # pymilvus logs every failure with its stack; what it has to say is in the error raised here.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        with self._doing("connect"):
            self._client = MilvusClient(uri, token=token, timeout=timeout, dedicated=True, grpc_options=CHANNEL)

    def close(self) -> None:
        self._client.close()

    def version(self) -> str | None:
        """Return the version in use, e.g. "20260131t120000000000"; None if nothing was ever published."""
        with self._doing("look up the index"):
            if not self._client.has_collection(ALIAS, timeout=self._timeout):
                return None
            name = self._client.describe_collection(ALIAS, timeout=self._timeout)["collection_name"]
        return str(name).removeprefix("items_")

    def create(self, dimension: int) -> str:
        """Make an empty version for vectors of this length and return it; nobody sees it before `use`."""
        version = f"{datetime.now(UTC):%Y%m%dt%H%M%S%f}"
        with self._doing("create the index"):
            self._create_collection(f"personas_{version}", "persona_id", dimension, _add_row_fields)
            self._create_collection(f"items_{version}", "item_id", dimension, _add_manifest_fields)
        return version

    def use(self, version: str) -> None:
        """Make this the version that readers see."""
        with self._doing("switch the index"):
            switch = self._client.alter_alias if self._client.has_collection(ALIAS) else self._client.create_alias
            switch(f"items_{version}", ALIAS, timeout=self._timeout)

    def manifests(self, version: str, vectors: bool = True) -> Iterator[tuple[Manifest, str]]:
        """Yield every manifest, deleted ones included, with the embedding space it was published in."""
        fields = _MANIFEST_FIELDS if vectors else [field for field in _MANIFEST_FIELDS if field != "vector"]
        for row in self._scan(f"items_{version}", fields):
            yield _manifest(row), row["space"]

    def dimension(self, version: str) -> int:
        """Return the length of the version's vectors."""
        with self._doing("describe the index"):
            fields = self._client.describe_collection(f"items_{version}", timeout=self._timeout)["fields"]
        return next(int(field["params"]["dim"]) for field in fields if field["name"] == "vector")

    def item_ids(self, version: str, newer_than: int = -1) -> list[str]:
        """Return the items whose manifest is newer than a generation, deleted ones included, in order of their ids."""
        found = self._scan(f"items_{version}", ["item_id"], f"generation > {newer_than}")
        return sorted(row["item_id"] for row in found)

    def newest_generation(self, version: str, newer_than: int = -1) -> int | None:
        """Return the greatest generation of any manifest; None if there is none newer than `newer_than`."""
        found = self._scan(f"items_{version}", ["generation"], f"generation > {newer_than}")
        return max((int(row["generation"]) for row in found), default=None)

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
        with self._doing("store personas"):
            for batch in _batches([row for item in items for row in item.rows]):
                rows = [_milvus_row(row) for row in batch]
                self._client.upsert(f"personas_{version}", rows, timeout=self._timeout)
        with self._doing("store manifests"):
            for manifests in _batches([item.manifest for item in items]):
                rows = [_milvus_manifest(manifest, space) for manifest in manifests]
                self._client.upsert(f"items_{version}", rows, timeout=self._timeout)

    def collect(self, version: str, row_ids: Iterable[str]) -> None:
        """Delete rows that no manifest names any more."""
        with self._doing("delete rows no manifest names"):
            for batch in _batches(list(row_ids)):
                where = f"persona_id in {_literals(batch)}"
                self._client.delete(f"personas_{version}", filter=where, timeout=self._timeout)

    def _fetch(self, version: str, item_ids: Sequence[str]) -> Iterator[tuple[IndexedItem, str]]:
        for batch in _batches(item_ids):
            found = self._query(f"items_{version}", f"item_id in {_literals(batch)}", _MANIFEST_FIELDS)
            manifests = [(_manifest(row), row["space"]) for row in found]
            wanted = [row_id for manifest, _ in manifests for row_id in manifest.row_ids]
            rows = {row.row_id: row for row in self._rows(version, wanted)}
            for manifest, space in manifests:
                of_item = tuple(rows[row_id] for row_id in manifest.row_ids if row_id in rows)
                yield IndexedItem(manifest, of_item), space

    def _rows(self, version: str, row_ids: Sequence[str]) -> Iterator[IndexRow]:
        for batch in _batches(row_ids):
            where = f"persona_id in {_literals(batch)}"
            yield from map(_index_row, self._query(f"personas_{version}", where, _ROW_FIELDS))

    def _create_collection(self, name: str, key: str, dimension: int, add_fields: Any) -> None:
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(key, DataType.VARCHAR, is_primary=True, max_length=ID_BYTES)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
        add_fields(schema)
        index = self._client.prepare_index_params()
        # Exact search: the reranker fetches by id or in bulk and finds the maximum itself.
        index.add_index("vector", index_type="FLAT", metric_type="COSINE")
        self._client.create_collection(name, schema=schema, index_params=index, timeout=self._timeout)

    def ensure_loaded(self, version: str) -> None:
        # A Milvus that was restarted has its collections on disk, but answers for none until told to load it.
        with self._doing("load the index"):
            for name in (f"personas_{version}", f"items_{version}"):
                self._client.load_collection(name, timeout=self._timeout)

    def _scan(self, collection: str, fields: list[str], where: str = "") -> Iterator[dict[str, Any]]:
        with self._doing(f"read {collection}"):
            rows = self._client.query_iterator(
                collection,
                batch_size=BATCH_ROWS,
                filter=where,
                output_fields=fields,
                consistency_level="Strong",
                timeout=self._timeout,
            )
            while batch := rows.next():
                # pymilvus pastes the last id into its next query unescaped, like any other.
                rows._next_id = rows._next_id.translate(_ESCAPES)
                yield from batch
            rows.close()

    def _query(self, collection: str, where: str, fields: list[str]) -> list[dict[str, Any]]:
        with self._doing(f"read {collection}"):
            found = self._client.query(
                collection,
                filter=where,
                output_fields=fields,
                consistency_level="Strong",
                timeout=self._timeout,
            )
        return list(found)

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (MilvusException, grpc.RpcError) as error:
            raise IndexUnavailableError(
                f"Milvus at {self.uri} could not {what}: {_told(error)}. Is it running, and is the address right?"
            ) from error


def _told(error: MilvusException | grpc.RpcError) -> str:
    # pymilvus lets some of gRPC's own errors through: a deadline that has passed, a permission denied.
    return f"{error.code().name}: {error.details()}" if isinstance(error, grpc.RpcError) else str(error.message)


def _add_row_fields(schema: Any) -> None:
    schema.add_field("item_id", DataType.VARCHAR, max_length=ID_BYTES)
    schema.add_field("kind", DataType.VARCHAR, max_length=16)
    schema.add_field("text", DataType.JSON)


def _add_manifest_fields(schema: Any) -> None:
    schema.add_field("generation", DataType.INT64)
    schema.add_field("space", DataType.VARCHAR, max_length=512)
    schema.add_field("row_ids", DataType.JSON)
    schema.add_field("title", DataType.VARCHAR, max_length=TEXT_BYTES)
    schema.add_field("summary", DataType.VARCHAR, max_length=TEXT_BYTES)
    schema.add_field("fingerprint", DataType.VARCHAR, max_length=64)
    schema.add_field("deleted", DataType.BOOL)


def _milvus_row(row: IndexRow) -> dict[str, Any]:
    kind = "persona" if row.persona else "summary"
    text = asdict(row.persona) if row.persona else {}
    return {"persona_id": row.row_id, "item_id": row.item_id, "kind": kind, "text": text, "vector": row.vector}


def _index_row(row: dict[str, Any]) -> IndexRow:
    text = row["text"]
    persona = Persona(**{**text, "evidence": tuple(text["evidence"])}) if text else None
    return IndexRow(row["persona_id"], row["item_id"], np.asarray(row["vector"], np.float32), persona)


def _milvus_manifest(manifest: Manifest, space: str) -> dict[str, Any]:
    return {
        "item_id": manifest.item_id,
        "generation": manifest.generation,
        "space": space,
        "row_ids": list(manifest.row_ids),
        "title": manifest.title,
        "summary": manifest.summary,
        "vector": manifest.interaction_vector,
        "fingerprint": manifest.fingerprint,
        "deleted": manifest.deleted,
    }


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


def _literals(values: Sequence[str]) -> str:
    """Write ids as a list of Milvus's filter language; pymilvus pastes them unescaped: an id could be a query."""
    return "[" + ",".join(f'"{value.translate(_ESCAPES)}"' for value in values) + "]"


_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def _batches(values: Sequence[T]) -> Iterator[Sequence[T]]:
    return (values[start : start + BATCH_ROWS] for start in range(0, len(values), BATCH_ROWS))
