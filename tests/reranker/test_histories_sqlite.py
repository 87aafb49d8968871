"""What the SQLite store does beside being a history store (test_histories.py)."""

import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from reranker.errors import HistoryStoreError
from reranker.histories_sqlite import SqliteHistoryStore
from reranker.histories_sqlite_formats import FORMAT, found_format
from reranker.records import Event
from tests.reranker.making import vector

# As the first version wrote its files: the statements are that version's own.
FORMAT_1 = """
CREATE TABLE events (
    user_id TEXT NOT NULL, event_id TEXT NOT NULL, item_id TEXT NOT NULL, event_time INTEGER NOT NULL,
    kind TEXT NOT NULL, rating REAL, aspects_vector BLOB, aspects_space TEXT,
    PRIMARY KEY (user_id, event_id)
) WITHOUT ROWID;
CREATE INDEX events_by_recency ON events (user_id, event_time DESC, event_id DESC);
PRAGMA user_version = 1;
"""


@pytest.fixture
def file_of_format_1(tmp_path: Path) -> Path:
    path = tmp_path / "histories.sqlite"
    rows = [
        ("ann", "e1", "x", 5, "view", None, None, None),
        ("ann", "e2", "é", 7, "", 4.5, vector(0.5, -0.25).tobytes(), "space"),
        ("bob", "e1", "y", 0, "", None, None, None),
    ]
    with closing(sqlite3.connect(path)) as file:
        file.executescript(FORMAT_1)
        file.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        file.commit()
    return path


def test_a_file_of_format_1_keeps_every_event(file_of_format_1: Path) -> None:
    with closing(SqliteHistoryStore(file_of_format_1)) as store:
        newest, oldest = store.read("ann", 10) or ()
        assert oldest == Event("e1", "x", 5, "view", None)
        assert (newest.event_id, newest.item_id, newest.event_time, newest.rating) == ("e2", "é", 7, 4.5)
        assert newest.aspects_vector is not None
        assert (newest.aspects_vector.tolist(), newest.aspects_space) == ([0.5, -0.25], "space")
        assert store.read("bob", 10) == (Event("e1", "y", 0),)
    with closing(sqlite3.connect(file_of_format_1)) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (2,)
        assert file.execute("SELECT count(*) FROM sqlite_master WHERE name = 'events'").fetchone() == (0,)


def test_looking_at_the_format_of_a_file_changes_nothing(file_of_format_1: Path, tmp_path: Path) -> None:
    before = file_of_format_1.read_bytes()
    assert found_format(file_of_format_1) == 1
    assert file_of_format_1.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file_of_format_1]
    with closing(SqliteHistoryStore(file_of_format_1)):
        assert found_format(file_of_format_1) == FORMAT
    assert found_format(file_of_format_1) == FORMAT
    with pytest.raises(HistoryStoreError, match="missing cannot be read"):
        found_format(tmp_path / "missing")


def test_two_that_open_a_file_of_format_1_at_once_both_find_it_whole(file_of_format_1: Path) -> None:
    found: list[int] = []

    def open_and_count() -> None:
        with closing(SqliteHistoryStore(file_of_format_1)) as store:
            found.append(store.count("ann"))

    threads = [threading.Thread(target=open_and_count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [2] * 4


def test_an_erasure_that_a_long_reader_keeps_from_the_files_is_no_erasure_yet(tmp_path: Path) -> None:
    path = tmp_path / "histories.sqlite"
    with closing(SqliteHistoryStore(path)) as store, closing(sqlite3.connect(path)) as backup:
        store.merge({"erased-user": [Event("event-of-theirs", "i", 5)]})
        backup.execute("BEGIN")
        backup.execute("SELECT * FROM sqlite_master").fetchone()
        with pytest.raises(HistoryStoreError, match="another process, a backup perhaps"):
            store.erase({"erased-user": 5})
        assert store.read("erased-user", 9) is None, "nobody is shown it meanwhile"
        backup.rollback()
        store.erase({"erased-user": 5})
        assert not any(b"event-of-theirs" in file.read_bytes() for file in tmp_path.iterdir())


def test_nothing_of_an_erased_user_is_left_in_the_files(tmp_path: Path) -> None:
    path = tmp_path / "histories.sqlite"
    with closing(SqliteHistoryStore(path)) as store:
        store.merge({"erased-user": [Event("event-of-theirs", "item-of-theirs", 5)], "other": [Event("e", "i", 5)]})
        store.erase({"erased-user": 5})
        files = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        for trace in (b"erased-user", b"event-of-theirs", b"item-of-theirs"):
            assert trace not in files
        assert b"other" in files


def test_a_writer_that_is_kept_out_says_so_and_works_again_after(tmp_path: Path) -> None:
    path = tmp_path / "histories.sqlite"
    with closing(SqliteHistoryStore(path)) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(HistoryStoreError, match="database is locked"):
            store.merge({"ann": [Event("e", "x", 1)]})
        assert store.read("ann", 1) is None
        other.execute("ROLLBACK")
        store.merge({"ann": [Event("e", "x", 1)]})
        assert store.count("ann") == 1


_WRITE_FOREVER = """
import sys
from itertools import count
from pathlib import Path
from reranker.histories_sqlite import SqliteHistoryStore
from reranker.records import Event

store = SqliteHistoryStore(Path(sys.argv[1]))
for number in count():
    store.merge({f"user{number}": [Event(f"e{place}", "x", place) for place in range(5)]})
    print(number, flush=True)
"""


def test_killing_the_writer_loses_nothing_that_was_merged(tmp_path: Path) -> None:
    path = tmp_path / "histories.sqlite"
    with subprocess.Popen([sys.executable, "-c", _WRITE_FOREVER, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        said = [writer.stdout.readline() for _ in range(50)]
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.readlines()
    merged = max(int(line) for line in said if line.endswith(b"\n"))
    with closing(SqliteHistoryStore(path)) as store:
        assert [store.count(f"user{number}") for number in range(merged + 1)] == [5] * (merged + 1)
        # Of the merge that was cut off, all or nothing.
        assert store.count(f"user{merged + 1}") in {0, 5}
        store.merge({"after": [Event("e", "x", 1)]})
        assert store.count("after") == 1


def test_a_file_of_a_later_format_is_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "histories.sqlite"
    SqliteHistoryStore(path).close()
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA user_version = 999")
    with pytest.raises(HistoryStoreError, match=r"histories\.sqlite holds histories of format 999") as refused:
        SqliteHistoryStore(path)
    assert "use the version that wrote it" in str(refused.value)
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (999,)


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "histories.sqlite", tmp_path):
        with pytest.raises(HistoryStoreError) as refused:
            SqliteHistoryStore(path)
        assert str(path) in str(refused.value)


def test_a_file_that_is_no_history_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes\n" * 500)
    with pytest.raises(HistoryStoreError, match=r"notes\.txt"):
        SqliteHistoryStore(path)
    assert path.read_text() == "these are my notes\n" * 500


def test_the_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "histories.sqlite"
    SqliteHistoryStore(path).close()
    assert path.is_file()
