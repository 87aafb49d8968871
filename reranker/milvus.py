"""Milvus as the project uses it: one connection, strong reads, schemas without dynamic fields, errors by name."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from pymilvus import DataType, MilvusClient, MilvusException

from reranker.errors import IndexUnavailableError

T = TypeVar("T")

# Long enough for a cold Milvus to load a collection of a million rows, short enough that a dead one is noticed by hand.
TIMEOUT_SECONDS = 60.0
# A batch of 1024-dimensional rows with their text stays below 4 MB, well within Milvus's 64 MB message limit.
BATCH_ROWS = 500
ID_BYTES = 300  # an item id (256) with the 26 bytes that a row id adds, and room
TEXT_BYTES = 65_535  # Milvus's own limit for VARCHAR
JSON_BYTES = 65_536  # and for JSON
# pymilvus pings an idle server every 10 s, which gRPC servers answer with GOAWAY "too_many_pings" unless they were told
# to expect it, as milvus-lite is not; its shared connections then refuse the next client. A call still pings.
CHANNEL = {"grpc.keepalive_permit_without_calls": False}
# Milvus wants a vector in every row, also where nothing is ever searched.
NO_VECTOR = (1.0, 0.0)


class Milvus:
    """A connection to one Milvus. Raises IndexUnavailableError wherever Milvus does not do its part."""

    def __init__(self, uri: str, token: str, timeout: float) -> None:
        """`timeout`: seconds that any one call may take."""
        self.uri = uri
        self.timeout = timeout
        # pymilvus logs every failure with its stack; what it has to say is in the error raised here.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        with self.doing("connect"):
            self.client = MilvusClient(uri, token=token, timeout=timeout, dedicated=True, grpc_options=CHANNEL)

    def close(self) -> None:
        self.client.close()

    def create_collection(self, name: str, key: str, dimension: int, fields: dict[str, dict[str, Any]]) -> None:
        """Make a collection and load it; `fields` are those beside its key and its one vector."""
        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(key, DataType.VARCHAR, is_primary=True, max_length=ID_BYTES)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
        for field, settings in fields.items():
            schema.add_field(field, **settings)
        index = self.client.prepare_index_params()
        # Exact search: the reranker fetches by id or in bulk and finds the maximum itself.
        index.add_index("vector", index_type="FLAT", metric_type="COSINE")
        with self.doing(f"make {name}"):
            self.client.create_collection(name, schema=schema, timeout=self.timeout)
            # pymilvus would sleep half a second, to look whether what is empty has been indexed.
            self.client.create_index(name, index, timeout=self.timeout, sync=False)
        self.load(name)

    def ensure_collection(self, name: str, key: str, fields: dict[str, dict[str, Any]]) -> None:
        """Make a small collection that is never searched, unless it is there, and load it."""
        if not self.has_collection(name):
            try:
                self.create_collection(name, key, len(NO_VECTOR), fields)
            except IndexUnavailableError:
                # Somebody else may have made it just now.
                if not self.has_collection(name):
                    raise
        self.load(name)

    def has_collection(self, name: str) -> bool:
        """Return whether a collection, or an alias of one, is there."""
        with self.doing(f"look up {name}"):
            return bool(self.client.has_collection(name, timeout=self.timeout))

    def load(self, *collections: str) -> None:
        """Make collections answer: a Milvus that was restarted has them on disk only."""
        with self.doing(f"load {' and '.join(collections)}"):
            for name in collections:
                self.client.load_collection(name, timeout=self.timeout)

    def scan(self, collection: str, fields: list[str], where: str = "") -> Iterator[dict[str, Any]]:
        """Yield all rows that fit, batch by batch."""
        with self.doing(f"read {collection}"):
            rows = self.client.query_iterator(
                collection,
                batch_size=BATCH_ROWS,
                filter=where,
                output_fields=fields,
                consistency_level="Strong",
                timeout=self.timeout,
            )
            while batch := rows.next():
                # pymilvus pastes the last id into its next query unescaped, like any other.
                rows._next_id = rows._next_id.translate(_ESCAPES)
                yield from batch
            rows.close()

    def query(self, collection: str, where: str, fields: list[str]) -> list[dict[str, Any]]:
        """Return the rows that fit, which must be few."""
        with self.doing(f"read {collection}"):
            found = self.client.query(
                collection,
                filter=where,
                output_fields=fields,
                consistency_level="Strong",
                timeout=self.timeout,
            )
        return list(found)

    def count(self, collection: str, where: str = "") -> int:
        (found,) = self.query(collection, where, ["count(*)"])
        return int(found["count(*)"])

    def upsert(self, collection: str, rows: Sequence[dict[str, Any]]) -> None:
        with self.doing(f"write {collection}"):
            for batch in batches(rows):
                self.client.upsert(collection, list(batch), timeout=self.timeout)

    def delete(self, collection: str, key: str, ids: Sequence[str]) -> None:
        with self.doing(f"empty {collection} of what is over"):
            for batch in batches(ids):
                self.client.delete(collection, filter=f"{key} in {literals(batch)}", timeout=self.timeout)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Turn what Milvus and gRPC raise in the block into the one error, naming what was being done."""
        try:
            yield
        except (MilvusException, grpc.RpcError) as error:
            raise IndexUnavailableError(
                f"Milvus at {self.uri} could not {what}: {_told(error)}. Is it running, and is the address right?"
            ) from error


def literals(values: Sequence[str]) -> str:
    """Write ids as a list of Milvus's filter language; pymilvus pastes them unescaped: an id could be a query."""
    return "[" + ",".join(f'"{value.translate(_ESCAPES)}"' for value in values) + "]"


def batches(values: Sequence[T]) -> Iterator[Sequence[T]]:
    return (values[start : start + BATCH_ROWS] for start in range(0, len(values), BATCH_ROWS))


_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def _told(error: MilvusException | grpc.RpcError) -> str:
    # pymilvus lets some of gRPC's own errors through: a deadline that has passed, a permission denied.
    return f"{error.code().name}: {error.details()}" if isinstance(error, grpc.RpcError) else str(error.message)
