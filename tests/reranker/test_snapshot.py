"""The index directory: whatever is killed and whenever, it is the index as it was or as it was to be."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import rmtree

import pytest

from reranker.errors import ConfigurationError, IndexUnavailableError
from reranker.indexer import MAX_DELTAS, Indexer
from reranker.segment import IndexedItem, age, build_segment, made_at, save_segment, verify_segment
from reranker.snapshot import (
    CURRENT,
    KEEP_SECONDS,
    Snapshot,
    open_snapshot,
    read_snapshot,
    stamp,
    sweep,
    write_snapshot,
)
from tests.reranker.making import SPACE, item, told, told_of, vector


def saved(folder: Path, generation: int = 1) -> str:
    return save_segment(build_segment(SPACE, 2, [item("a", [vector(1, 0)], generation=generation)]), folder).name


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_snapshot(tmp_path) is None
    assert stamp(tmp_path) == 0
    new, old = saved(tmp_path, 2), saved(tmp_path, 1)
    write_snapshot(tmp_path, Snapshot("v", (new, old)))
    assert read_snapshot(tmp_path) == Snapshot("v", (new, old))
    assert told(open_snapshot(tmp_path, Snapshot("v", (new, old)))) == told_of([item("a", [vector(1, 0)], None, 2)])
    before = stamp(tmp_path)
    write_snapshot(tmp_path, Snapshot("v", (new,)))
    assert stamp(tmp_path) != before


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": "v"}', '{"version": "v", "segments": 5}', "\xff"])
def test_a_torn_list_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / CURRENT).write_bytes(text.encode("latin-1"))
    with pytest.raises(IndexUnavailableError, match=r"current\.json cannot be read .*delete the directory"):
        read_snapshot(tmp_path)


@pytest.mark.parametrize("format_", [None, 1, 3])
def test_an_index_of_another_format_is_none(tmp_path: Path, format_: int | None) -> None:
    write_snapshot(tmp_path, Snapshot("v", (saved(tmp_path),)))
    told = json.loads((tmp_path / CURRENT).read_text())
    del told["format"]
    (tmp_path / CURRENT).write_text(json.dumps(told if format_ is None else told | {"format": format_}))
    assert read_snapshot(tmp_path) is None


def test_a_segment_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(IndexUnavailableError, match="segment-000000000001-gone"):
        open_snapshot(tmp_path, Snapshot("v", ("segment-000000000001-gone",)))


def test_sweeping_spares_what_is_named_and_what_is_fresh(tmp_path: Path) -> None:
    named, fresh, old = (saved(tmp_path, generation) for generation in (1, 2, 3))
    long_ago = time.time() - KEEP_SECONDS - 5
    for name in (named, old):
        os.utime(tmp_path / name, (long_ago, long_ago))
    sweep(tmp_path, Snapshot("v", (named,)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [named, fresh]


def test_a_segment_that_was_in_use_until_now_is_fresh(tmp_path: Path) -> None:
    """A reader may have read the list a moment ago, however old the segment itself is."""
    old, new = saved(tmp_path, 1), saved(tmp_path, 2)
    long_ago = time.time() - KEEP_SECONDS - 5
    os.utime(tmp_path / old, (long_ago, long_ago))
    write_snapshot(tmp_path, Snapshot("v", (old,)))
    with Indexer(tmp_path, SPACE) as indexer:
        indexer._use(Snapshot("v", (new,)))
    assert (tmp_path / old).is_dir()


def test_a_second_indexer_is_refused_by_name(tmp_path: Path) -> None:
    with Indexer(tmp_path, SPACE):
        with pytest.raises(ConfigurationError, match=f"{tmp_path} is written by another server"):
            Indexer(tmp_path, SPACE)
        script = (
            f"from pathlib import Path; from reranker.indexer import Indexer; Indexer(Path({str(tmp_path)!r}), None)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert f"ConfigurationError: index directory {tmp_path} is written by another server" in done.stderr
    with Indexer(tmp_path, SPACE):
        pass


def test_a_directory_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"file/index cannot be written"):
        Indexer(tmp_path / "file" / "index", None)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_torn_segment_is_named_and_never_merged(tmp_path: Path) -> None:
    names = tuple(saved(tmp_path, generation) for generation in range(MAX_DELTAS + 1, 0, -1))
    write_snapshot(tmp_path, Snapshot("v", names))
    flip_a_byte(tmp_path / names[1] / "vectors.npy")
    with Indexer(tmp_path, SPACE) as indexer:
        for look in (indexer.verify, indexer.compact):
            with pytest.raises(IndexUnavailableError, match=rf"{names[1]} is torn: vectors\.npy: its checksum"):
                look()
    assert read_snapshot(tmp_path) == Snapshot("v", names)


def test_what_was_replaced_is_gone_after_a_while(tmp_path: Path) -> None:
    rewritten = build_segment(SPACE, 2, [item("a", [vector(0, 1)], generation=2, name="q")])
    base, delta = saved(tmp_path), save_segment(rewritten, tmp_path).name
    write_snapshot(tmp_path, Snapshot("v", (delta, base)))
    with Indexer(tmp_path, SPACE, merge_seconds=3600) as indexer:
        age(tmp_path / base, 0)
        assert not indexer.compact(), "the oldest replaces nothing"
        age(tmp_path / delta, 0)
        assert indexer.compact()
        assert not indexer.compact()
    found = read_snapshot(tmp_path)
    assert found
    assert told(open_snapshot(tmp_path, found)) == told_of([item("a", [vector(0, 1)], None, 2, "q")])
    assert b"a:p0" in (tmp_path / base / "personas.npy").read_bytes()
    assert b"a:p0" not in (tmp_path / found.segments[0] / "personas.npy").read_bytes()


def test_merging_makes_nothing_younger(tmp_path: Path) -> None:
    large = save_segment(build_segment(SPACE, 2, [item(f"i{n}", [vector(1, 0)]) for n in range(100)]), tmp_path).name
    deltas = tuple(saved(tmp_path, generation) for generation in range(MAX_DELTAS + 1, 1, -1))
    write_snapshot(tmp_path, Snapshot("v", (*deltas, large)))
    age(tmp_path / deltas[3], time.time() - 1000)
    with Indexer(tmp_path, SPACE, merge_seconds=3600) as indexer:
        assert indexer.compact()
        found = read_snapshot(tmp_path)
        assert found
        assert (len(found.segments), found.segments[-1]) == (2, large)
        assert made_at(tmp_path / found.segments[0]) == pytest.approx(time.time() - 1000, abs=60)


def test_a_merge_that_finds_no_room_is_not_tried_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(saved(tmp_path, generation) for generation in range(MAX_DELTAS + 1, 0, -1))
    write_snapshot(tmp_path, Snapshot("v", names))

    def full(*_: object, **__: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Indexer(tmp_path, SPACE) as indexer:
        with monkeypatch.context() as disk:
            disk.setattr("reranker.indexer.merge_segments", full)
            with pytest.raises(IndexUnavailableError, match=r"cannot be written to .*No space left.*10 minutes"):
                indexer.compact()
        assert not indexer.compact()
    assert read_snapshot(tmp_path) == Snapshot("v", names)


class Store:
    """Stands in for a Milvus that breaks in the midst of a bulk read, or that does not: a part is one item."""

    uri = "stand-in"

    def __init__(self, parts: int, breaks: bool) -> None:
        self._ids = [f"i{number}" for number in range(parts)]
        self._breaks = breaks

    def version(self) -> str:
        return "v"

    def ensure_loaded(self, version: str) -> None:
        pass

    def newest_generation(self, version: str, after: int = -1) -> int | None:
        return 1 if after < 1 else None

    def generations(self, version: str, after: int) -> dict[str, int]:
        return dict.fromkeys(self._ids, 1)

    def item_ids(self, version: str) -> list[str]:
        return self._ids

    def dimension(self, version: str) -> int:
        return 2

    def fetch(self, version: str, item_ids: Sequence[str]) -> Iterator[tuple[IndexedItem, str]]:
        for item_id in item_ids:
            if self._breaks and item_id == self._ids[-1]:
                raise IndexUnavailableError("it is gone")
            yield item(item_id, [vector(1, 0)], generation=1), SPACE


def segments_in(folder: Path) -> int:
    return len(list(folder.glob("segment-*")))


@pytest.mark.parametrize("rebuild", [True, False])
def test_a_refresh_that_breaks_off_leaves_nothing_however_often_it_is_tried(
    tmp_path: Path, rebuild: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reranker.indexer.PART_ITEMS", 1)
    if not rebuild:
        write_snapshot(tmp_path, Snapshot("v", (saved(tmp_path, 0),), 0))
    before = segments_in(tmp_path)
    with Indexer(tmp_path, SPACE) as indexer:
        for _ in range(3):
            with pytest.raises(IndexUnavailableError, match="it is gone"):
                indexer.refresh(Store(3, breaks=True))  # type: ignore[arg-type]
            assert segments_in(tmp_path) == before
        assert indexer.refresh(Store(3, breaks=False))  # type: ignore[arg-type]
    found = read_snapshot(tmp_path)
    assert found
    assert segments_in(tmp_path) == len(found.segments) == (1 if rebuild else 4)


def test_a_rebuild_that_found_no_room_is_not_tried_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Indexer(tmp_path, SPACE) as indexer:
        with monkeypatch.context() as disk:
            disk.setattr("reranker.indexer.merge_segments", full)
            with pytest.raises(IndexUnavailableError, match="No space left"):
                indexer.refresh(Store(2, breaks=False))  # type: ignore[arg-type]
        assert segments_in(tmp_path) == 0
        with pytest.raises(IndexUnavailableError, match="there was no room a while ago"):
            indexer.refresh(Store(2, breaks=False))  # type: ignore[arg-type]


def test_an_item_that_cannot_be_read_has_its_segment_built_anew(tmp_path: Path) -> None:
    name = saved(tmp_path, 0)
    write_snapshot(tmp_path, Snapshot("v", (name,), 0))
    items = tmp_path / name / "items.npy"
    # The first byte of the first message: a tag of protobuf's.
    whole = items.read_bytes()
    items.write_bytes(whole[:128] + b"\xff" + whole[129:])
    with Indexer(tmp_path, SPACE) as indexer:
        store = Store(1, breaks=False)
        with pytest.raises(IndexUnavailableError, match=rf"{name} is torn: items\.npy"):
            indexer.refresh(store, {"a": 5})  # type: ignore[arg-type]
        assert indexer.refresh(store)  # type: ignore[arg-type]
    found = read_snapshot(tmp_path)
    assert found
    assert name not in found.segments


def test_a_segment_that_goes_while_it_is_verified_is_not_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, merged = saved(tmp_path, 1), saved(tmp_path, 2)
    write_snapshot(tmp_path, Snapshot("v", (merged, left)))

    def swept(path: Path) -> None:
        if path.name == merged:
            rmtree(path)
            write_snapshot(tmp_path, Snapshot("v", (left,)))
        verify_segment(path)

    monkeypatch.setattr("reranker.indexer.verify_segment", swept)
    with Indexer(tmp_path, SPACE) as indexer:
        indexer.verify()


# Writes generation after generation, as an indexer does: a delta, and now and then all merged into one.
_WRITE = """
import sys
from pathlib import Path
from reranker import snapshot
from reranker.indexer import MAX_DELTAS, Indexer
from reranker.segment import build_segment, merge_segments, open_segment, save_segment
from reranker.snapshot import Snapshot, read_snapshot
from tests.reranker.making import SPACE, item, vector

snapshot.KEEP_SECONDS = 0.0
folder = Path(sys.argv[1])
with Indexer(folder, SPACE) as indexer:
    found = read_snapshot(folder)
    names = found.segments if found else ()
    generation = max((open_segment(folder / name).generation for name in names), default=0)
    while True:
        generation += 1
        items = [item(f"i{n}", [vector(generation, n)] * (1 + generation % 3), generation=generation) for n in range(9)]
        names = (save_segment(build_segment(SPACE, 2, items), folder).name, *names)
        if len(names) > 3:
            names = (merge_segments([open_segment(folder / name) for name in names], folder).name,)
        print("next", generation, flush=True)
        indexer._use(Snapshot("v", names))
        print("done", generation, flush=True)
"""


@pytest.mark.integration
def test_a_writer_killed_at_any_moment_leaves_the_old_index_or_the_new_one(tmp_path: Path) -> None:
    chance, seen = random.Random(0), set()
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITE, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout
            said = [writer.stdout.readline() for _ in range(2)]
            time.sleep(chance.uniform(0, 0.1))
            writer.send_signal(signal.SIGKILL)
            said += writer.stdout.readlines()
        done = [int(line.split()[1]) for line in said if line.startswith("done") and line.endswith("\n")]
        begun = [int(line.split()[1]) for line in said if line.startswith("next") and line.endswith("\n")]
        found = read_snapshot(tmp_path)
        assert found
        index = open_snapshot(tmp_path, found)
        assert max(done) <= index.generation <= max(begun)
        assert told(index) == told_of(
            [
                item(f"i{n}", [vector(index.generation, n)] * (1 + index.generation % 3), None, index.generation)
                for n in range(9)
            ]
        )
        seen.add(index.generation)
        # The next writer clears away what was half written.
        with Indexer(tmp_path, SPACE) as indexer:
            indexer.verify()
            assert [path for path in tmp_path.glob(".*") if path.is_dir()] == []
    assert len(seen) == 6, "each writer went on where the killed one had stopped"
