"""Other ways to the same answer, timed beside ours: from a profile and candidates to each one's best persona.

All but the cross-encoder find what we find, which is checked. What has no part in the comparison (histories, gRPC,
fusion, the reply) is left out of every way alike.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pymilvus import DataType, MilvusClient

from persona4rec.arguments import CANDIDATES
from persona4rec.bench.catalogue import item_id
from persona4rec.bench.processes import free_port, redis_server
from persona4rec.milvus_lite import milvus_at
from reranker.errors import IndexUnavailableError, Persona4RecError
from reranker.index import Index
from reranker.kernels import best_personas
from reranker.records import Vector
from reranker.scoring import Scores, best_of_index
from reranker.segment import Spans
from reranker.snapshot import open_snapshot, read_snapshot
from reranker.v1 import reranker_pb2 as pb

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

# Enough for a p95; the slowest ways take seconds each, so they get fewer within the time.
REQUESTS = 200
SECONDS_EACH = 20.0
QUANTILES = (50.0, 95.0)
# Rows a message: 1,000 of 384 float32 are 1.5 MB.
BATCH = 1000
COLLECTION = "alternatives"

Way = Callable[[Vector, NDArray[np.int64]], Scores | None]
"""From a profile and item numbers to each item's best similarity; None where it computes something else."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way, in milliseconds a request."""

    name: str
    quantiles: dict[float, float]
    requests: int


def compare(folder: Path, items: int) -> list[Alternative]:
    """Time every way over the benchmark's index of so many items in `folder`; ours comes first.

    Ways whose server or package is missing are left out. Raises Persona4RecError if a way finds other scores than ours.
    """
    snapshot = read_snapshot(folder / str(items))
    if snapshot is None:
        raise IndexUnavailableError(f"the benchmark's index is not in {folder / str(items)}")
    index = open_snapshot(folder / str(items), snapshot)
    with ExitStack() as stack:
        ways = {"Persona4Rec: mapped vectors": _ours(index), "one vector an item, mapped": _one_vector(index)}
        client = stack.enter_context(_milvus(folder / f"milvus-{items}", index))
        ways |= {"vectors fetched from Milvus": _fetched(client, index), "Milvus grouped search": _grouped(client)}
        if redis := stack.enter_context(redis_server()):
            ways["vectors fetched from Redis"] = _from_redis(redis, index)
        ways["cross-encoder over persona texts"] = _cross_encoder(index)
        draws = _draws(index, items)
        expected = [ways["Persona4Rec: mapped vectors"](profile, rows) for profile, rows in draws[:5]]
        return [_timed(name, way, draws, expected) for name, way in ways.items()]


def _draws(index: Index, items: int) -> list[tuple[Vector, NDArray[np.int64]]]:
    random = np.random.default_rng(4)
    found = []
    for _ in range(REQUESTS):
        profile = random.standard_normal(index.dimension).astype(np.float32)
        found.append((profile / np.linalg.norm(profile), random.choice(items, CANDIDATES, replace=False)))
    return found


def _timed(
    name: str, way: Way, draws: list[tuple[Vector, NDArray[np.int64]]], expected: list[Scores | None]
) -> Alternative:
    taken: list[float] = []
    for number, (profile, rows) in enumerate(draws):
        started = perf_counter()
        scores = way(profile, rows)
        taken.append((perf_counter() - started) * 1000)
        if scores is not None and number < len(expected):
            _check(name, scores, expected[number])
        if sum(taken) > SECONDS_EACH * 1000:
            break
    quantiles = np.percentile(taken, QUANTILES).tolist()
    return Alternative(name, dict(zip(QUANTILES, quantiles, strict=True)), len(taken))


def _check(name: str, scores: Scores, expected: Scores | None) -> None:
    if expected is None or not np.allclose(scores, expected, atol=1e-5):
        raise Persona4RecError(f"{name} finds other scores than the mapped vectors: the comparison would be of nothing")


def _ours(index: Index) -> Way:
    def way(profile: Vector, rows: NDArray[np.int64]) -> Scores:
        places = index.locate([item_id(row) for row in rows.tolist()])
        return best_of_index(index, profile, places)[0]

    return way


def _one_vector(index: Index) -> Way:
    arrays = index.single.arrays
    offsets = np.arange(len(arrays.interactions) + 1)

    def way(profile: Vector, rows: NDArray[np.int64]) -> None:
        _best(profile, arrays.interactions, offsets, index.locate([item_id(row) for row in rows.tolist()]).rows)

    return way


def _best(profile: Vector, vectors: Vector, offsets: Spans, rows: NDArray[np.int64]) -> Scores:
    scores, winners = np.empty(len(rows), np.float32), np.empty(len(rows), np.int64)
    best_personas(profile, vectors, offsets, np.zeros(len(rows), np.int64), rows, 0, scores, winners)
    return scores


@contextmanager
def _milvus(data: Path, index: Index) -> Iterator[MilvusClient]:
    uri = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    with milvus_at(uri, data), closing(MilvusClient(uri, timeout=60, dedicated=True)) as client:
        if not client.has_collection(COLLECTION):
            _fill(client, index)
        client.load_collection(COLLECTION)
        yield client


def _fill(client: MilvusClient, index: Index) -> None:
    schema = client.create_schema()
    schema.add_field("row", DataType.INT64, is_primary=True)
    schema.add_field("item", DataType.INT64)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=index.dimension)
    search = client.prepare_index_params()
    search.add_index("vector", index_type="FLAT", metric_type="COSINE")
    client.create_collection(COLLECTION, schema=schema, index_params=search)
    arrays = index.single.arrays
    items = np.repeat(np.arange(len(arrays.deleted)), np.diff(arrays.offsets)).tolist()
    for start in range(0, len(items), BATCH):
        vectors = arrays.vectors[start : start + BATCH]
        rows = enumerate(zip(items[start : start + BATCH], vectors, strict=True), start=start)
        client.insert(COLLECTION, [{"row": row, "item": item, "vector": vector} for row, (item, vector) in rows])


def _fetched(client: MilvusClient, index: Index) -> Way:
    offsets = index.single.arrays.offsets

    def way(profile: Vector, rows: NDArray[np.int64]) -> Scores:
        # By primary key, as a service with manifests at hand would: many times faster than by a filter on the item.
        keys = [key for row in rows.tolist() for key in range(offsets[row], offsets[row + 1])]
        found = client.get(COLLECTION, ids=keys, output_fields=["item", "vector"])
        similarities = np.array([row["vector"] for row in found], np.float32) @ profile
        best: dict[int, float] = {}
        for row, similarity in zip(found, similarities.tolist(), strict=True):
            best[row["item"]] = max(similarity, best.get(row["item"], -1.0))
        return np.array([best[row] for row in rows.tolist()], np.float32)

    return way


def _grouped(client: MilvusClient) -> Way:
    def way(profile: Vector, rows: NDArray[np.int64]) -> Scores:
        (hits,) = client.search(
            COLLECTION,
            data=[profile.tolist()],
            filter=f"item in {rows.tolist()}",
            limit=len(rows),
            group_by_field="item",
            output_fields=["item"],
        )
        best = {hit["entity"]["item"]: hit["distance"] for hit in hits}
        return np.array([best[row] for row in rows.tolist()], np.float32)

    return way


def _from_redis(client: Any, index: Index) -> Way:
    arrays = index.single.arrays
    with client.pipeline(transaction=False) as pipe:
        for row in range(len(arrays.deleted)):
            pipe.set(row, arrays.vectors[arrays.offsets[row] : arrays.offsets[row + 1]].tobytes())
        pipe.execute()

    def way(profile: Vector, rows: NDArray[np.int64]) -> Scores:
        blobs = client.mget(rows.tolist())
        counts = np.array([len(blob) for blob in blobs]) // (4 * index.dimension)
        vectors = np.frombuffer(b"".join(blobs), np.float32).reshape(-1, index.dimension)
        starts = np.concatenate([[0], np.cumsum(counts)])
        return _best(profile, vectors, starts, np.arange(len(rows)))

    return way


def _cross_encoder(index: Index) -> Way:
    model, texts = _untrained_cross_encoder(), index.single
    profile_text = "Likes novels of the moors, told slowly, with dread, weather and a family's long memory."

    def way(profile: Vector, rows: NDArray[np.int64]) -> None:  # noqa: ARG001 - it reads texts instead
        offsets = texts.arrays.offsets
        personas = [texts.persona(vector) for row in rows for vector in range(offsets[row], offsets[row + 1])]
        model.predict([(profile_text, _text(persona)) for persona in personas], batch_size=32)

    return way


def _text(persona: bytes) -> str:
    told = pb.Persona.FromString(persona)
    return f"{told.name}. {told.description} {told.preference_rationale}"


def _untrained_cross_encoder() -> "CrossEncoder":
    """Return a cross-encoder of the out-of-the-box encoder's six layers: its cost does not depend on its training."""
    from sentence_transformers import CrossEncoder

    from offline.encoder import BUNDLED, model_folder

    model: CrossEncoder = CrossEncoder(str(model_folder(BUNDLED)), num_labels=1)
    return model
