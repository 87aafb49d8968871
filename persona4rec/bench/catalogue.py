"""A synthetic index of any size, written straight into the index directory: random vectors, texts of usual length."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from reranker.item_ids import hash_ids
from reranker.records import Persona, Vector
from reranker.segment import SegmentFiles, persona_message
from reranker.snapshot import Snapshot, write_snapshot
from reranker.v1 import reranker_pb2 as pb

PERSONAS = 5
DIMENSION = 384
SPACE = "synthetic"
# Vectors are made and written in blocks of so many rows: 75 MB.
BLOCK = 50_000


def item_id(number: int) -> str:
    return f"item{number:07d}"


def write_catalogue(folder: Path, items: int, seed: int = 0) -> None:
    """Write an index of `items` items with five 384-d personas each, unless it is there already."""
    if (folder / "current.json").exists():
        return
    random = np.random.default_rng(seed)
    with SegmentFiles.create(folder) as files:
        _fill(files.array("vectors", (items * PERSONAS, DIMENSION)), random)
        _fill(files.array("interactions", (items, DIMENSION)), random)
        files.array("offsets", (items + 1,))[:] = np.arange(items + 1) * PERSONAS
        files.array("deleted", (items,))[:] = False
        files.array("hashes", (items,))[:] = hash_ids(map(item_id, range(items)), items)
        _blob(files, "personas", "persona_spans", chain.from_iterable(map(_personas, range(items))), items * PERSONAS)
        _blob(files, "items", "item_spans", map(_item, range(items)), items)
        path = files.finish(SPACE, generation=1)
    write_snapshot(folder, Snapshot("synthetic", (path.name,)))


def _fill(out: Vector, random: np.random.Generator) -> None:
    for start in range(0, len(out), BLOCK):
        block = random.standard_normal((min(BLOCK, len(out) - start), DIMENSION), dtype=np.float32)
        out[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)


def _blob(files: SegmentFiles, values: str, spans: str, messages: Iterator[bytes], count: int) -> None:
    """Write messages one after the other; all are of one length, so their places are known before."""
    first = next(messages)
    out, length = files.array(values, (len(first) * count,)), len(first)
    for number, message in enumerate(chain([first], messages)):
        out[number * length : (number + 1) * length] = np.frombuffer(message, np.uint8)
    files.array(spans, (count + 1,))[:] = np.arange(count + 1) * length


def _personas(number: int) -> Iterator[bytes]:
    for place in range(PERSONAS):
        yield persona_message(
            Persona(
                persona_id=f"{item_id(number)}:{place:012x}",
                name="Slow-Burn Atmosphere Seeker",
                description="This reader wants a mood that builds over many pages, and forgives a thin plot. " * 2,
                preference_rationale="This persona values the long nights on the moor and the unhurried telling. " * 2,
                evidence=(f"{item_id(number)}/r1", f"{item_id(number)}/r2"),
            )
        )


def _item(number: int) -> bytes:
    summary = "A novel of the moors, told slowly; it offers dread, weather and a family's long memory. " * 2
    message = pb.ItemPersonas(item_id=item_id(number), found=True, title="A Title", summary=summary, generation=1)
    return message.SerializeToString()
