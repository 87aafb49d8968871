"""A part of the persona index as arrays: built in memory, saved as a directory, mapped from there by many processes.

Immutable. A saved segment is written beside its place and renamed into it, so that it is whole or not there at all;
`open_segment` still refuses one that is torn (a lost disk block, a copy cut short), naming what does not fit.
"""

import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from reranker.errors import IndexUnavailableError
from reranker.item_ids import Hashes, hash_ids
from reranker.item_table import ItemTable, build_table
from reranker.records import IndexRow, Manifest, Persona, Vector
from reranker.v1 import reranker_pb2 as pb

FORMAT = 2
META = "segment.json"
# Read at once where checksums are made and verified: long reads for the disk, little memory.
BLOCK_BYTES = 1 << 24

Blob = NDArray[np.uint8]
Spans = NDArray[np.int64]
"""Where each entry of a blob or list starts, and the last one's end: shape (entries + 1,), from 0, never falling."""


@dataclass(frozen=True, slots=True)
class IndexedItem:
    """One item as the index holds it."""

    manifest: Manifest
    rows: tuple[IndexRow, ...]
    """In the order of manifest.row_ids; none for a deleted item."""


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """What a segment is made of: each field is a file of a saved one."""

    vectors: Vector
    """Every vector an item can be found by, contiguous by item, unit length, shape (vectors, dimension)."""
    offsets: Spans
    """Item i owns the vectors offsets[i] to offsets[i + 1]; a deleted item owns none, any other at least one."""
    interactions: Vector
    """The item as part of a history (eq. 4 without aspects), shape (items, dimension)."""
    deleted: NDArray[np.bool_]
    """Whether this segment takes the item out of the index, shape (items,)."""
    hashes: Hashes
    """Of the item ids, shape (items,)."""
    personas: Blob
    """A serialised Persona message a vector; empty where the vector is the item summary's."""
    persona_spans: Spans
    items: Blob
    """A serialised ItemPersonas message an item, without its personas."""
    item_spans: Spans


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Arrays, and what they mean."""

    space: str
    """The embedding space of all its vectors."""
    generation: int
    """Of its newest manifest."""
    arrays: Arrays
    table: ItemTable

    @property
    def dimension(self) -> int:
        return int(self.arrays.vectors.shape[1])

    @property
    def size(self) -> int:
        """What copying it costs: its vectors and items."""
        return len(self.arrays.vectors) + len(self.arrays.deleted)

    def persona(self, vector: int) -> bytes:
        """Return the serialised Persona of a vector; empty where the vector is the item summary's."""
        spans = self.arrays.persona_spans
        return self.arrays.personas[spans[vector] : spans[vector + 1]].tobytes()

    def persona_rows(self) -> dict[str, int]:
        """Return the vector of each persona by its id."""
        told = ((self.persona(vector), vector) for vector in range(len(self.arrays.vectors)))
        return {pb.Persona.FromString(persona).persona_id: vector for persona, vector in told if persona}

    def message(self, row: int) -> pb.ItemPersonas:
        """Return the item at `row` without its personas."""
        spans = self.arrays.item_spans
        return pb.ItemPersonas.FromString(self.arrays.items[spans[row] : spans[row + 1]].tobytes())

    def item(self, row: int) -> pb.ItemPersonas:
        """Return the item at `row` with its personas."""
        message = self.message(row)
        for vector in range(self.arrays.offsets[row], self.arrays.offsets[row + 1]):
            if told := self.persona(vector):
                message.personas.add().MergeFromString(told)
        return message


def build_segment(space: str, dimension: int, items: Sequence[IndexedItem]) -> Segment:
    """Lay items out in memory, in their order. Raises ValueError if an item stands there twice."""
    rows = [row for item in items for row in item.rows]
    personas, persona_spans = _blob([persona_message(row.persona) if row.persona else b"" for row in rows])
    told, item_spans = _blob([_item_message(item.manifest) for item in items])
    hashes = hash_ids((item.manifest.item_id for item in items), len(items))
    arrays = Arrays(
        vectors=_stack([row.vector for row in rows], dimension),
        offsets=_spans(len(item.rows) for item in items),
        interactions=_stack([item.manifest.interaction_vector for item in items], dimension),
        deleted=np.array([item.manifest.deleted for item in items], np.bool_),
        hashes=hashes,
        personas=personas,
        persona_spans=persona_spans,
        items=told,
        item_spans=item_spans,
    )
    generation = max((item.manifest.generation for item in items), default=0)
    return Segment(space, generation, arrays, build_table(hashes))


def save_segment(segment: Segment, folder: Path) -> Path:
    """Write a segment into `folder` and return its directory; durable when this returns."""
    with SegmentFiles.create(folder) as files:
        for field in fields(Arrays):
            np.save(files.path(field.name), getattr(segment.arrays, field.name), allow_pickle=False)
        return files.finish(segment.space, segment.generation)


def open_segment(path: Path) -> Segment:
    """Map a saved segment. What tells where things are is checked here, all other bytes by `verify_segment`.

    Raises IndexUnavailableError, naming the file and what does not fit.
    """
    meta = _read_meta(path)
    arrays = _map_arrays(path, meta)
    for spans, entries in (("offsets", "vectors"), ("persona_spans", "personas"), ("item_spans", "items")):
        _check_spans(path, spans, getattr(arrays, spans), len(getattr(arrays, entries)))
    table = ItemTable(**{field.name: _map(path, f"table_{field.name}", meta["files"]) for field in fields(ItemTable)})
    _check_spans(path, "table_starts", table.starts, len(table.hashes))
    _check_rows(path, table, len(arrays.deleted))
    return Segment(meta["space"], meta["generation"], arrays, table)


def made_at(path: Path) -> float:
    """Return when a saved segment was written, or what is oldest in it, in seconds since the epoch.

    Now, for one that is torn: it is found to be so when it is opened.
    """
    try:
        return (path / META).stat().st_mtime
    except OSError:
        return time.time()


def age(path: Path, made: float) -> None:
    """Let a segment count as made at this time."""
    os.utime(path / META, (made, made))


def verify_segment(path: Path) -> None:
    """Read every byte against its checksum. Raises IndexUnavailableError, naming the first file that differs."""
    for name, told in _read_meta(path)["files"].items():
        _verify_file(path, name, told)


def merge_segments(segments: Sequence[Segment], folder: Path, deletions: bool = False) -> Path:
    """Write one segment that says what these say together, newest first; returns the new directory.

    deletions: keep the items that they delete, for an older segment that is not among these.
    Memory stays small: runs of surviving items are copied from map to map.
    """
    runs = [(segment, start, end) for segment, kept in survivors(segments, deletions) for start, end in _runs(kept)]
    with SegmentFiles.create(folder) as files:
        _copy(files, runs, segments[0].dimension)
        return files.finish(segments[0].space, max(segment.generation for segment in segments))


@dataclass(frozen=True, slots=True)
class SegmentFiles:
    """A segment being written: arrays under a temporary name, until `finish` renames it into place."""

    scratch: Path

    @classmethod
    def create(cls, folder: Path) -> Self:
        scratch = folder / f".{uuid4().hex}"
        scratch.mkdir(parents=True)
        return cls(scratch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for left in self.scratch.glob("*") if self.scratch.exists() else ():
            left.unlink()
        if self.scratch.exists():
            self.scratch.rmdir()

    def path(self, name: str) -> Path:
        return self.scratch / f"{name}.npy"

    def array(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a writable array of the file, to be filled. Raises OSError if there is no room for it."""
        array = open_memmap(self.path(name), mode="w+", dtype=DTYPES[name], shape=shape)
        with self.path(name).open("rb+") as file:
            # Mapped, a file takes room only when it is filled, and where there is none left that kills the process.
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        return array

    def finish(self, space: str, generation: int) -> Path:
        """Add the table and the checksums, make all durable, rename; returns the segment's directory."""
        table = build_table(np.load(self.path("hashes")))
        for field in fields(ItemTable):
            np.save(self.path(f"table_{field.name}"), getattr(table, field.name), allow_pickle=False)
        told = {path.stem: _describe(path) for path in sorted(self.scratch.glob("*.npy"))}
        meta = {"format": FORMAT, "space": space, "generation": generation, "files": told}
        text = json.dumps(meta, indent=1)
        (self.scratch / META).write_text(json.dumps({"crc32": zlib.crc32(text.encode()), "meta": text}))
        for path in (*self.scratch.iterdir(), self.scratch):
            _sync(path)
        path = self.scratch.with_name(f"segment-{generation:012d}-{self.scratch.name[1:9]}")
        self.scratch.rename(path)
        _sync(path.parent)
        return path


DTYPES: Mapping[str, Any] = {
    "vectors": np.float32,
    "offsets": np.int64,
    "interactions": np.float32,
    "deleted": np.bool_,
    "hashes": np.uint64,
    "personas": np.uint8,
    "persona_spans": np.int64,
    "items": np.uint8,
    "item_spans": np.int64,
}


def persona_message(persona: Persona) -> bytes:
    """Serialise a persona as answers carry it."""
    return pb.Persona(
        persona_id=persona.persona_id,
        name=persona.name,
        description=persona.description,
        preference_rationale=persona.preference_rationale,
        evidence=persona.evidence,
    ).SerializeToString()


def _item_message(manifest: Manifest) -> bytes:
    return pb.ItemPersonas(
        item_id=manifest.item_id,
        found=True,
        title=manifest.title,
        summary=manifest.summary,
        generation=manifest.generation,
    ).SerializeToString()


def _blob(entries: Sequence[bytes]) -> tuple[Blob, Spans]:
    return np.frombuffer(b"".join(entries), np.uint8), _spans(map(len, entries))


def _spans(lengths: Iterable[int]) -> Spans:
    return np.fromiter(accumulate(lengths, initial=0), np.int64)


def _stack(vectors: Sequence[Vector], dimension: int) -> Vector:
    return np.stack(vectors).astype(np.float32) if vectors else np.empty((0, dimension), np.float32)


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        outer = json.loads((path / META).read_text())
        if zlib.crc32(outer["meta"].encode()) != outer["crc32"]:
            raise ValueError("its checksum does not fit")
        meta: dict[str, Any] = json.loads(outer["meta"])
        if meta["format"] != FORMAT:
            raise ValueError(f"it is of format {meta['format']}, this version reads {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _torn(path, META, str(error)) from error
    return meta


def _map_arrays(path: Path, meta: dict[str, Any]) -> Arrays:
    return Arrays(**{field.name: _map(path, field.name, meta["files"]) for field in fields(Arrays)})


def _map(path: Path, name: str, told: dict[str, Any]) -> NDArray[Any]:
    file = path / f"{name}.npy"
    try:
        if file.stat().st_size != told[name]["bytes"]:
            raise ValueError(f"it has {file.stat().st_size} bytes, not {told[name]['bytes']}")
        # An empty file cannot be mapped.
        empty = 0 in told[name]["shape"]
        array: NDArray[Any] = np.load(file, mmap_mode=None if empty else "r", allow_pickle=False)
        if list(array.shape) != told[name]["shape"]:
            raise ValueError(f"it is of shape {array.shape}, not {tuple(told[name]['shape'])}")
    except Exception as error:
        # A torn header makes numpy raise whatever Python's own tokenizer and parser raise.
        raise _torn(path, file.name, str(error)) from error
    # A plain view: a memmap's own __array_finalize__ costs a microsecond a slice.
    return array.view(np.ndarray)


def _check_spans(path: Path, name: str, spans: NDArray[np.integer[Any]], entries: int) -> None:
    fits = len(spans) and spans[0] == 0 and spans[-1] == entries and (np.diff(spans) >= 0).all()
    if not fits:
        raise _torn(path, f"{name}.npy", f"its offsets do not lead through {entries} entries")


def _check_rows(path: Path, table: ItemTable, items: int) -> None:
    # What is looked up by is trusted by compiled loops.
    if len(table.rows) and not 0 <= table.rows.min() <= table.rows.max() < items:
        raise _torn(path, "table_rows.npy", f"it leads to other rows than those of {items} items")


def _verify_file(path: Path, name: str, told: dict[str, Any]) -> None:
    try:
        found = _checksum(path / f"{name}.npy")
    except OSError as error:
        raise _torn(path, f"{name}.npy", str(error)) from error
    if found != told["crc32"]:
        raise _torn(path, f"{name}.npy", "its checksum does not fit")


def _torn(path: Path, file: str, why: str) -> IndexUnavailableError:
    return IndexUnavailableError(
        f"index segment {path} is torn: {file}: {why}. A running server builds the index anew from Milvus; before one "
        "is started, delete the index directory"
    )


def _describe(path: Path) -> dict[str, Any]:
    shape = np.load(path, mmap_mode=None if path.stat().st_size < BLOCK_BYTES else "r", allow_pickle=False).shape
    return {"bytes": path.stat().st_size, "shape": list(shape), "crc32": _checksum(path)}


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def survivors(segments: Sequence[Segment], deletions: bool = False) -> Iterator[tuple[Segment, NDArray[np.bool_]]]:
    """Yield which items of each segment no newer one has; deleted ones are left out, or not."""
    newer: list[Hashes] = []
    for segment in segments:
        kept = np.ones(len(segment.arrays.deleted), np.bool_) if deletions else ~segment.arrays.deleted
        # By lookup: what is newer is small, and the oldest segment holds most of a catalogue.
        for hashes in newer:
            rows = segment.table.find(hashes)
            kept[rows[rows >= 0]] = False
        newer.append(np.asarray(segment.arrays.hashes))
        yield segment, kept


def generations(segments: Sequence[Segment], item_ids: Sequence[str]) -> dict[str, int]:
    """Return the generation of each item's manifest, deleted ones included; nothing of an item no segment knows."""
    found: dict[str, int] = {}
    hashes = hash_ids(item_ids, len(item_ids))
    for segment in segments:
        rows = segment.table.find(hashes)
        for place in np.flatnonzero(rows >= 0).tolist():
            if item_ids[place] not in found:
                found[item_ids[place]] = int(segment.message(int(rows[place])).generation)
    return found


def _runs(kept: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], kept, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


Run = tuple[Segment, int, int]
"""Items start to end of a segment."""


def _copy(files: SegmentFiles, runs: Sequence[Run], dimension: int) -> None:
    def items(arrays: Arrays, start: int, end: int) -> tuple[int, int]:  # noqa: ARG001 - one of three alike
        return start, end

    def vectors(arrays: Arrays, start: int, end: int) -> tuple[int, int]:
        return int(arrays.offsets[start]), int(arrays.offsets[end])

    _copy_lists(files, "vectors", "offsets", runs, items, (dimension,))
    _copy_lists(files, "personas", "persona_spans", runs, vectors, ())
    _copy_lists(files, "items", "item_spans", runs, items, ())
    for name, tail in (("interactions", (dimension,)), ("deleted", ()), ("hashes", ())):
        _fill(files, name, [getattr(segment.arrays, name)[start:end] for segment, start, end in runs], tail)


def _copy_lists(
    files: SegmentFiles,
    values: str,
    spans: str,
    runs: Sequence[Run],
    entries: Callable[[Arrays, int, int], tuple[int, int]],
    tail: tuple[int, ...],
) -> None:
    """Copy the values of entries and say anew where each starts."""
    parts, starts, position = [], [np.zeros(1, np.int64)], 0
    for segment, first, last in runs:
        start, end = entries(segment.arrays, first, last)
        edges = getattr(segment.arrays, spans)[start : end + 1]
        parts.append(getattr(segment.arrays, values)[edges[0] : edges[-1]])
        starts.append(edges[1:] - edges[0] + position)
        position += int(edges[-1] - edges[0])
    _fill(files, values, parts, tail)
    _fill(files, spans, starts, ())


def _fill(files: SegmentFiles, name: str, parts: Sequence[NDArray[Any]], tail: tuple[int, ...]) -> None:
    length = sum(map(len, parts))
    if not length:
        np.save(files.path(name), np.empty((0, *tail), DTYPES[name]), allow_pickle=False)
        return
    out, position = files.array(name, (length, *tail)), 0
    for part in parts:
        out[position : position + len(part)] = part
        position += len(part)
    out.flush()  # type: ignore[attr-defined]  # a memmap
