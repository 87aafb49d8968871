"""The index directory: saved segments, and one small file that says which of them are the index now.

One process of the host writes it, any number map it. `current.json` is replaced by rename, so a reader finds either the
old list of segments or the new one; a segment is deleted only once no list has named it for a while.
"""

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from types import MappingProxyType

from reranker.errors import IndexUnavailableError
from reranker.index import Index, open_index
from reranker.segment import FORMAT, Segment, open_segment

log = logging.getLogger(__name__)

CURRENT = "current.json"
UNTOLD = 1
"""The format of an index that does not tell its own."""
# Between reading the list and mapping its segments a reader takes milliseconds; a suspended one, perhaps a minute.
KEEP_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What `current.json` says."""

    version: str
    """The collection in Milvus that the segments were read from."""
    segments: tuple[str, ...]
    """Names of their directories, newest first."""
    complete_to: int = -1
    """Every manifest up to this generation is in the segments, and newer ones may be."""


def read_snapshot(folder: Path) -> Snapshot | None:
    """Return the list of segments; None if there is no index here, or one of another format, to be built anew.

    Raises IndexUnavailableError if it is torn.
    """
    try:
        told = json.loads((folder / CURRENT).read_text())
        snapshot = Snapshot(told["version"], tuple(told["segments"]), int(told["complete_to"]))
        found = told.get("format", UNTOLD)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexUnavailableError(
            f"index {folder / CURRENT} cannot be read ({error}): delete the directory, it is built anew from Milvus"
        ) from error
    if found != FORMAT:
        log.info("the index in %s is of format %s, not %d: it will be built anew", folder, found, FORMAT)
        return None
    return snapshot


def open_snapshot(folder: Path, snapshot: Snapshot, mapped: Mapping[str, Segment] = MappingProxyType({})) -> Index:
    """Map the segments of a snapshot. Raises IndexUnavailableError and EmbeddingSpaceError by name.

    mapped: segments that are mapped already, by name: they never change.
    """
    return open_index(snapshot.version, [mapped.get(name) or open_segment(folder / name) for name in snapshot.segments])


def write_snapshot(folder: Path, snapshot: Snapshot) -> None:
    """Make this the index; durable when it returns."""
    beside = folder / f".{CURRENT}"
    with beside.open("w") as file:
        json.dump(asdict(snapshot) | {"format": FORMAT}, file)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(folder / CURRENT)


def stamp(folder: Path) -> int:
    """Return a number that changes when the snapshot does; 0 without one."""
    try:
        return (folder / CURRENT).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def touch(folder: Path, segments: Sequence[str]) -> None:
    """Note that these are in use now."""
    for name in segments:
        # It may be gone, by somebody's hand: the index is being built anew because of that.
        with suppress(FileNotFoundError):
            os.utime(folder / name)


def sweep(folder: Path, snapshot: Snapshot) -> None:
    """Delete segments that the snapshot does not name and that are old enough for no reader to be opening them."""
    delete(
        path
        for path in folder.glob("segment-*")
        if path.name not in snapshot.segments and time.time() - path.stat().st_mtime > KEEP_SECONDS
    )


def sweep_unfinished(folder: Path) -> None:
    """Delete what a writer that was killed left half written. Only for the one writer, before it writes."""
    delete(path for path in folder.glob(".*") if path.is_dir())


def delete(paths: Iterable[Path]) -> None:
    """Delete segments. Whoever has one mapped keeps it: the kernel frees its blocks with the last map."""
    for path in paths:
        rmtree(path, ignore_errors=True)
