"""What SQLite leaves to those who share a file."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from reranker.sqlite_files import cut_log, turn_log_on


def test_the_log_is_turned_on_as_soon_as_others_let_go(tmp_path: Path) -> None:
    path = tmp_path / "file.sqlite"
    with (
        closing(sqlite3.connect(path, timeout=0)) as ours,
        closing(sqlite3.connect(path, check_same_thread=False)) as other,
    ):
        other.execute("CREATE TABLE entries (content)")
        other.execute("BEGIN")
        other.execute("SELECT * FROM entries").fetchall()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            ours.execute("PRAGMA journal_mode = WAL")
        threading.Timer(0.05, other.rollback).start()
        turn_log_on(ours)
        assert ours.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_cannot_be_written_is_no_reason_to_wait(tmp_path: Path) -> None:
    path = tmp_path / "file.sqlite"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE entries (content)")
    with (
        closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as ours,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        turn_log_on(ours)


def test_a_log_that_is_still_read_is_not_said_to_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "file.sqlite"
    with closing(sqlite3.connect(path, timeout=0)) as ours, closing(sqlite3.connect(path)) as other:
        turn_log_on(ours)
        ours.execute("CREATE TABLE entries (content)")
        other.execute("BEGIN")
        other.execute("SELECT * FROM entries").fetchall()
        with pytest.raises(sqlite3.OperationalError, match="a backup perhaps"):
            cut_log(ours)
        other.rollback()
        cut_log(ours)
        assert path.with_name("file.sqlite-wal").stat().st_size == 0
