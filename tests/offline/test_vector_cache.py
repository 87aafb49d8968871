import hashlib
import multiprocessing
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import offline.vector_cache
from offline.encoder import SentenceEncoder
from offline.errors import ConfigurationError
from offline.vector_cache import CachedEncoder, default_folder
from reranker.records import Vector
from tests.offline.encoders import Counting


@pytest.fixture
def counting(encoder: CachedEncoder) -> Counting:
    return Counting(encoder.encoder)


TEXTS = ["a whale", "a wedding", "a murder", "a voyage", "a duel"]


def test_vectors_are_the_encoders_own_in_the_order_asked_for(counting: Counting, tmp_path: Path) -> None:
    cached = CachedEncoder(counting, tmp_path)
    expected = counting.encoder.encode(TEXTS)
    assert cached.encode(TEXTS) == pytest.approx(expected, abs=1e-6)
    backwards = cached.encode(TEXTS[::-1])
    assert backwards == pytest.approx(expected[::-1], abs=1e-6)
    assert backwards.dtype == np.float32
    assert (cached.space, cached.dimension) == (counting.space, counting.dimension)


def test_nothing_to_embed_gives_no_vectors(counting: Counting, tmp_path: Path) -> None:
    vectors = CachedEncoder(counting, tmp_path).encode([])
    assert vectors.shape == (0, 384)
    assert vectors.dtype == np.float32
    assert counting.asked == []


def test_only_what_is_missing_is_embedded_and_once(counting: Counting, tmp_path: Path) -> None:
    CachedEncoder(counting, tmp_path).encode(["a whale", "a wedding", "a whale"])
    assert counting.asked == ["a whale", "a wedding"]
    again = CachedEncoder(counting, tmp_path).encode(["a wedding", "a duel", "a whale"])
    assert counting.asked == ["a whale", "a wedding", "a duel"]
    assert again == pytest.approx(counting.encoder.encode(["a wedding", "a duel", "a whale"]), abs=1e-6)


def test_another_space_shares_nothing(encoder: CachedEncoder, tmp_path: Path) -> None:
    assert isinstance(encoder.encoder, SentenceEncoder)
    other = Counting(replace(encoder.encoder, space="another"))
    CachedEncoder(encoder.encoder, tmp_path).encode(TEXTS)
    CachedEncoder(other, tmp_path).encode(TEXTS)
    assert other.asked == TEXTS


def test_an_interrupted_run_goes_on_where_it_stopped(
    counting: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline.vector_cache, "CHUNK_TEXTS", 2)
    counting.interrupt_after = 4
    with pytest.raises(KeyboardInterrupt):
        CachedEncoder(counting, tmp_path).encode(TEXTS)
    rest = Counting(counting.encoder)
    vectors = CachedEncoder(rest, tmp_path).encode(TEXTS)
    assert rest.asked == TEXTS[4:]
    assert vectors == pytest.approx(counting.encoder.encode(TEXTS), abs=1e-6)


class Hashes:
    """A stand-in that costs nothing, so that two processes do little but write at the same time."""

    space = "hashes"
    dimension = 8

    def encode(self, texts: Sequence[str]) -> Vector:
        digests = [hashlib.sha256(text.encode()).digest() for text in texts]
        return np.stack([np.frombuffer(digest, "<u4").astype(np.float32) for digest in digests])


def encode_in_chunks(folder: Path, first: int) -> bool:
    offline.vector_cache.CHUNK_TEXTS = 3
    texts = [str(number) for number in range(first, first + 400)]
    return bool((CachedEncoder(Hashes(), folder).encode(texts) == Hashes().encode(texts)).all())


def test_two_processes_may_fill_one_cache(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.starmap(encode_in_chunks, [(tmp_path, 0), (tmp_path, 200)]) == [True, True]
    counting = Counting(Hashes())
    CachedEncoder(counting, tmp_path).encode([str(number) for number in range(601)])
    assert counting.asked == ["600"]


def test_a_broken_cache_is_named(counting: Counting, tmp_path: Path) -> None:
    cached = CachedEncoder(counting, tmp_path)
    cached.encode(TEXTS[:1])
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigurationError, match=f"vector cache {file} cannot be used: .*Delete it"):
        cached.encode(TEXTS[:1])


def test_a_folder_that_cannot_be_made_is_named(counting: Counting, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"file/vectors-.*XDG_CACHE_HOME"):
        CachedEncoder(counting, tmp_path / "file").encode(TEXTS[:1])


def test_the_cache_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "persona4rec"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_folder() == Path.home() / ".cache" / "persona4rec"


def test_what_is_cached_is_no_text(counting: Counting, tmp_path: Path) -> None:
    """Reviews are personal: the cache holds their digests only."""
    CachedEncoder(counting, tmp_path).encode(TEXTS)
    (file,) = tmp_path.iterdir()
    assert b"whale" not in file.read_bytes()
    assert sqlite3.connect(file).execute("SELECT count(*) FROM vectors").fetchone() == (len(TEXTS),)
