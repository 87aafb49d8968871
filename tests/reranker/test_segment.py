"""Segments on disk: what was saved is opened, what is torn is named, and merging changes nothing."""

import json
import shutil
import zlib
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker import segment as segments
from reranker.errors import IndexUnavailableError
from reranker.index import open_index
from reranker.records import Vector
from reranker.segment import (
    META,
    Arrays,
    IndexedItem,
    Segment,
    SegmentFiles,
    build_segment,
    merge_segments,
    open_segment,
    save_segment,
    verify_segment,
)
from tests.reranker.making import SPACE, deleted, item, item_without_personas, told, told_of, vector

A, B, C = vector(1, 0), vector(0, 1), vector(0.6, 0.8)
ITEMS = [
    item("b", [A, B], itself=C, generation=3),
    item_without_personas("a", B),
    deleted("gone", generation=2),
    item("é\n", [C], itself=A, generation=2),
]


def saved(folder: Path, items: list[IndexedItem] = ITEMS) -> Path:
    return save_segment(build_segment(SPACE, 2, items), folder)


def assert_same(one: Segment, other: Segment) -> None:
    assert (one.space, one.generation) == (other.space, other.generation)
    for field in fields(Arrays):
        left, right = getattr(one.arrays, field.name), getattr(other.arrays, field.name)
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype == segments.DTYPES[field.name]
    for name in ("hashes", "rows", "starts"):
        np.testing.assert_array_equal(getattr(one.table, name), getattr(other.table, name))


@pytest.mark.parametrize("items", [ITEMS, ITEMS[:1], ITEMS[1:2], ITEMS[2:3], []], ids=["all", "1", "bare", "gone", "0"])
def test_what_was_saved_is_opened(tmp_path: Path, items: list[IndexedItem]) -> None:
    path = saved(tmp_path, items)
    assert_same(open_segment(path), build_segment(SPACE, 2, items))
    assert told(open_index("v", [open_segment(path)])) == told_of(items)
    verify_segment(path)
    assert [other.name for other in tmp_path.iterdir()] == [path.name]


def test_an_item_that_stands_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        build_segment(SPACE, 2, [ITEMS[0], ITEMS[0]])


FILES = sorted(
    [f"{field.name}.npy" for field in fields(Arrays)] + [f"table_{name}.npy" for name in ("hashes", "rows", "starts")]
)


def torn(path: Path) -> str:
    """Return what is said of a segment that is torn, by opening it or by verifying it."""

    def read() -> None:
        open_segment(path)
        verify_segment(path)

    with pytest.raises(IndexUnavailableError) as refused:
        read()
    assert str(path) in str(refused.value)
    assert "delete the index directory" in str(refused.value)
    return str(refused.value)


def test_all_files_are_torn_below(tmp_path: Path) -> None:
    assert sorted(path.name for path in saved(tmp_path).iterdir()) == sorted([*FILES, META])


@pytest.mark.parametrize("name", [*FILES, META])
def test_a_file_cut_short_is_named(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path)
    whole = (path / name).read_bytes()
    for length in {0, 1, len(whole) // 2, len(whole) - 1}:
        (path / name).write_bytes(whole[:length])
        with pytest.raises(IndexUnavailableError, match=name):
            open_segment(path)
    (path / name).unlink()
    assert name in torn(path)


@pytest.mark.parametrize("name", [*FILES, META])
def test_a_byte_that_is_flipped_is_named(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path)
    whole = (path / name).read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 25)):
        (path / name).write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        assert name in torn(path), f"byte {place}"
    (path / name).write_bytes(whole)
    verify_segment(path)


@pytest.mark.parametrize("name", ["offsets", "persona_spans", "item_spans", "table_starts"])
@pytest.mark.parametrize("spans", [[1, 3, 3, 3, 4], [0, 9, 9, 9, 9], [0, 2, 1, 3, 4], []])
def test_spans_that_lead_astray_are_refused_when_opened(tmp_path: Path, name: str, spans: list[int]) -> None:
    path = saved(tmp_path)
    # Of the size that is told of it: what a defect of the writer would leave.
    np.save(path / f"{name}.npy", np.array(spans, np.int32 if name == "table_starts" else np.int64))
    text = json.loads((path / META).read_text())["meta"]
    meta = json.loads(text)
    meta["files"][name]["shape"] = [len(spans)]
    meta["files"][name]["bytes"] = (path / f"{name}.npy").stat().st_size
    text = json.dumps(meta)
    (path / META).write_text(json.dumps({"crc32": zlib.crc32(text.encode()), "meta": text}))
    with pytest.raises(IndexUnavailableError, match=rf"{name}\.npy: its offsets do not lead"):
        open_segment(path)


@pytest.mark.parametrize("row", [-1, len(ITEMS), 1 << 30])
def test_a_table_that_leads_to_no_row_is_refused_when_opened(tmp_path: Path, row: int) -> None:
    """A compiled lookup would read there whatever the process has in memory, or end it."""
    path = saved(tmp_path)
    rows = np.load(path / "table_rows.npy")
    rows[1] = row
    np.save(path / "table_rows.npy", rows)
    with pytest.raises(
        IndexUnavailableError, match=rf"table_rows\.npy: it leads to other rows than those of {len(ITEMS)}"
    ):
        open_segment(path)


def test_a_file_has_all_its_room_before_it_is_filled(tmp_path: Path) -> None:
    """Filling a mapped file beyond what the disk holds ends the process, with no error to be caught."""
    with SegmentFiles.create(tmp_path) as files:
        files.array("vectors", (1000, 100))
        taken = files.path("vectors").stat()
        assert taken.st_blocks * 512 >= taken.st_size > 400_000


def test_a_segment_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    monkeypatch.setattr(segments, "FORMAT", segments.FORMAT + 1)
    told = f"format {segments.FORMAT - 1}, this version reads {segments.FORMAT}"
    with pytest.raises(IndexUnavailableError, match=told):
        open_segment(path)


@pytest.mark.parametrize("during", ["build_table", "_describe", "_sync"])
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        built = build_segment(SPACE, 2, ITEMS)
        patched.setattr(segments, during, full)
        with pytest.raises(OSError, match="No space left"):
            save_segment(built, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_being_written_looks_like_no_segment(tmp_path: Path) -> None:
    with SegmentFiles.create(tmp_path) as files:
        np.save(files.path("hashes"), np.zeros(3))
        assert list(tmp_path.glob("segment-*")) == []
        (hidden,) = tmp_path.iterdir()
        assert hidden.name.startswith(".")
    assert list(tmp_path.iterdir()) == []


NAMES = ["a", "b", "c", "d", "é"]
SPARSE = st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=2).map(lambda v: vector(*v))
CHANGES = st.tuples(st.sampled_from(NAMES), st.one_of(st.none(), st.just([]), st.lists(SPARSE, min_size=1, max_size=3)))
"""An item and its new vectors: none at all for a deletion, an empty list for an item without personas."""
BATCHES = st.lists(st.lists(CHANGES, max_size=6, unique_by=lambda change: change[0]), min_size=1, max_size=6)


def changed(item_id: str, vectors: list[Vector] | None, generation: int) -> IndexedItem:
    if vectors is None:
        return deleted(item_id, generation)
    return item(item_id, vectors, C, generation) if vectors else item_without_personas(item_id, B)


@settings(deadline=None, max_examples=50)
@given(BATCHES, st.integers(0, 6), st.booleans())
def test_segments_are_a_dictionary_before_and_after_merging(
    batches: list[list[tuple[str, list[Vector] | None]]], first: int, again: bool
) -> None:
    dealt = [
        [changed(item_id, vectors, generation) for item_id, vectors in batch]
        for generation, batch in enumerate(batches, start=1)
    ]
    expected = told_of([made for batch in dealt for made in batch])
    # Nothing is lost here: no need to wait for the disk a thousand times.
    with TemporaryDirectory() as name, patch.object(segments, "_sync"):
        folder = Path(name)
        newest_first = [open_segment(saved(folder, batch)) for batch in reversed(dealt)]
        before = open_index("v", newest_first)
        assert told(before) == expected
        # The oldest ones are merged and then lie below newer ones; only the oldest may lose its deletions.
        oldest = newest_first[max(0, len(newest_first) - 1 - first) :]
        path = merge_segments(oldest, folder)
        verify_segment(path)
        merged = open_segment(path)
        after = open_index("v", [*newest_first[: len(newest_first) - len(oldest)], merged])
        assert told(after) == expected
        assert (after.item_count, after.persona_count) == (before.item_count, before.persona_count)
        assert after.generation == before.generation
        assert not merged.arrays.deleted.any()
        if again:
            twice = open_segment(merge_segments(after.segments, folder))
            assert told(open_index("v", [twice])) == expected


def test_what_was_mapped_outlives_its_files(tmp_path: Path) -> None:
    path = saved(tmp_path)
    mapped = open_index("v", [open_segment(path)])
    shutil.rmtree(path)
    assert told(mapped) == told_of(ITEMS)
