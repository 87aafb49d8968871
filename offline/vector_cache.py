"""Vectors once computed, kept on disk by embedding space and text: evaluating twice embeds once."""

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from offline.encoder import BothSidesAlike, Encoder
from offline.errors import ConfigurationError
from reranker.records import Vector

# So many texts are embedded between two commits: an interrupted run loses half a minute at most.
CHUNK_TEXTS = 1024


def default_folder() -> Path:
    """Return the user's cache folder (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "persona4rec"


@dataclass(frozen=True, slots=True)
class CachedEncoder(BothSidesAlike):
    """An Encoder that embeds only what it has not embedded before.

    `encode` raises ConfigurationError, naming the file, if the cache cannot be read or written.
    """

    encoder: Encoder
    folder: Path

    @property
    def space(self) -> str:
        return self.encoder.space

    @property
    def dimension(self) -> int:
        return self.encoder.dimension

    def encode(self, texts: Sequence[str]) -> Vector:
        keys = [hashlib.sha256(text.encode()).digest() for text in texts]
        with self._opened() as cache:
            known = dict(_known(cache, keys))
            missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
            known |= self._embed(cache, missing)
        return np.stack([known[key] for key in keys]) if keys else np.empty((0, self.dimension), np.float32)

    def _embed(self, cache: sqlite3.Connection, missing: dict[bytes, str]) -> dict[bytes, Vector]:
        found: dict[bytes, Vector] = {}
        keys = list(missing)
        for start in range(0, len(keys), CHUNK_TEXTS):
            chunk = keys[start : start + CHUNK_TEXTS]
            vectors = self.encoder.encode([missing[key] for key in chunk])
            found.update(zip(chunk, vectors, strict=True))
            rows = [(key, vector.astype("<f4").tobytes()) for key, vector in zip(chunk, vectors, strict=True)]
            with cache:
                cache.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)
        return found

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        name = hashlib.sha256(self.space.encode()).hexdigest()[:12]
        path = self.folder / f"vectors-{name}.sqlite"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path)) as cache:
                cache.execute("CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
                yield cache
        except (sqlite3.Error, OSError) as error:
            raise ConfigurationError(
                f"the vector cache {path} cannot be used: {error}. Delete it, or set XDG_CACHE_HOME to another folder"
            ) from error


def _known(cache: sqlite3.Connection, keys: Sequence[bytes]) -> Iterator[tuple[bytes, Vector]]:
    for key in dict.fromkeys(keys):
        found = cache.execute("SELECT vector FROM vectors WHERE text = ?", (key,)).fetchone()
        if found:
            yield key, np.frombuffer(found[0], "<f4")
