import os
import signal
import sqlite3
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from offline.errors import ResponseCacheError
from offline.llm_cache import ResponseCache, Spending
from offline.replies import Reply, Usage

SECRET = "the words of a reply made of somebody's review"


def key(text: str) -> bytes:
    return sha256(text.encode()).digest()


@pytest.fixture
def cache(tmp_path: Path) -> ResponseCache:
    return ResponseCache(tmp_path / "folder" / "cache.sqlite")


def test_what_was_saved_is_found(cache: ResponseCache) -> None:
    assert cache.find(key("a")) is None
    cache.save(key("a"), Reply("text", "stop", "refusal", Usage(1, 2, 3)))
    assert cache.find(key("a")) == Reply("text", "stop", "refusal")
    cache.save(key("a"), Reply("newer", "stop"))
    assert cache.find(key("a")) == Reply("newer", "stop")
    with ResponseCache(cache.path) as other:
        assert other.find_all([(key("b"), ()), (key("a"), ())]) == [None, Reply("newer", "stop")]


def test_forgetting_takes_every_reply_with_the_tag_and_no_other(cache: ResponseCache) -> None:
    cache.save(key("a"), Reply("a", "stop"), ["user:u", "user:v"])
    cache.save(key("b"), Reply("b", "stop"), ["user:v", "review:u"])
    cache.save(key("c"), Reply("c", "stop"))
    assert cache.forget("user:u") == 1
    assert [reply is None for reply in cache.find_all((key(name), ()) for name in "abc")] == [True, False, False]
    assert (cache.forget("user:u"), cache.forget("user:v")) == (0, 1)


def test_a_reply_found_by_another_of_the_same_words_is_forgotten_with_either(cache: ResponseCache) -> None:
    cache.save(key("a"), Reply("a", "stop"), ["user:u"])
    assert cache.find(key("a"), ["user:v"])
    assert cache.forget("user:v") == 1


def test_nothing_of_a_forgotten_reply_stays_on_the_disk(cache: ResponseCache) -> None:
    cache.save(key("a"), Reply(SECRET * 500, "stop"), ["user:secret-user"])
    cache.save(key("b"), Reply("b", "stop"), ["user:secret-user", "user:other"])
    files = list(cache.path.parent.iterdir())
    assert any(SECRET.encode() in file.read_bytes() for file in files)
    cache.forget("user:secret-user")
    for file in cache.path.parent.iterdir():
        content = file.read_bytes()
        assert SECRET.encode() not in content
        assert b"secret-user" not in content


def test_accounts_add_up(cache: ResponseCache) -> None:
    cache.book("aspects", "m", Usage(1, 100, 10), 0.5)
    cache.book("aspects", "m", Usage(2, 200, 20), 0.25)
    cache.book("aspects", "n", Usage(1, 1, 1), 0.0)
    assert cache.spending() == [
        Spending("aspects", "m", Usage(3, 300, 30), 0.75),
        Spending("aspects", "n", Usage(1, 1, 1), 0.0),
    ]


def test_a_transaction_that_fails_leaves_nothing(cache: ResponseCache) -> None:
    def fail() -> None:
        with cache.transaction():
            cache.save(key("a"), Reply("a", "stop"), ["user:u"])
            cache.book("aspects", "m", Usage(1, 1, 1), 1.0)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (cache.find(key("a")), cache.spending()) == (None, [])


def test_a_full_disk_is_named_and_loses_nothing_saved(cache: ResponseCache) -> None:
    cache.save(key("a"), Reply("a", "stop"))
    # SQLite's own limit: it fails as on a full disk, with the same error from the same place.
    pages = cache._connection.execute("PRAGMA page_count").fetchone()[0]
    cache._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(ResponseCacheError, match=r"cannot write the LLM's replies in .*cache\.sqlite: .*full"):
        cache.save(key("b"), Reply("b" * 100_000, "stop"))
    assert cache.find_all([(key("a"), ()), (key("b"), ())]) == [Reply("a", "stop"), None]
    cache._connection.execute("PRAGMA max_page_count = 1000000")
    cache.save(key("b"), Reply("b" * 100_000, "stop"))
    assert cache.find(key("b"))


@pytest.mark.parametrize("content", [b"no database" * 1000, b"SQLite format 3\0" + b"x" * 8000])
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_bytes(content)
    with pytest.raises(ResponseCacheError, match=r"cannot open the LLM's replies in .*cache\.sqlite"):
        ResponseCache(path)
    assert path.read_bytes() == content


def test_a_cache_of_a_later_format_is_named(cache: ResponseCache) -> None:
    cache.close()
    with sqlite3.connect(cache.path) as file:
        file.execute("PRAGMA user_version = 9")
    with pytest.raises(ResponseCacheError, match="format 9, this version reads format 1"):
        ResponseCache(cache.path)


WRITER = """
import sys
from hashlib import sha256
from pathlib import Path
from offline.llm_cache import ResponseCache
from offline.replies import Reply, Usage
cache = ResponseCache(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    name = f"{sys.argv[2]}-{number}"
    cache.save(sha256(name.encode()).digest(), Reply(name, "stop"), [f"user:{number}"])
    cache.book("stage", "model", Usage(1, 1, 1), 1.0)
    print(name, flush=True)
"""


def writer(path: Path, name: str, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.integration
def test_processes_share_one_cache(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    writers = [writer(path, name, 50) for name in "abcd"]
    for process in writers:
        process.communicate(timeout=60)
    assert [process.returncode for process in writers] == [0, 0, 0, 0]
    with ResponseCache(path) as cache:
        found = cache.find_all((key(f"{name}-{number}"), ()) for name in "abcd" for number in range(50))
        assert None not in found
        assert cache.spending()[0].usage == Usage(200, 200, 200)
        assert cache.forget("user:7") == 4


@pytest.mark.integration
def test_a_killed_process_loses_nothing_that_it_saved(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    process = writer(path, "a", 1_000_000)
    assert process.stdout
    saved = [process.stdout.readline().strip() for _ in range(40)]
    os.kill(process.pid, signal.SIGKILL)
    saved += process.communicate()[0].split()
    with ResponseCache(path) as cache:
        assert [reply and reply.text for reply in cache.find_all((key(name), ()) for name in saved)] == saved
