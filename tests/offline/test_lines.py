import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from offline.errors import DatasetError
from offline.lines import read_lines, write_interactions, write_jsonl
from offline.records import Interaction, ItemSummary


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "summaries.jsonl"
    write_jsonl(path, [ItemSummary("a", "old")])

    def torn() -> Iterator[ItemSummary]:
        yield ItemSummary("a", "new")
        raise RuntimeError("the stage died")

    with pytest.raises(RuntimeError):
        write_jsonl(path, torn())
    assert path.read_text() == '{"item_id": "a", "summary": "old"}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_stray_quote_costs_one_csv_line(tmp_path: Path) -> None:
    path = tmp_path / "interactions.csv"
    path.write_bytes(b'user_id,item_id\r\nu1,"a\r\nu2,b\r\n\r\nu3\r\nu4,\xff\r\nu5,"c,d"\r\n')
    lines = list(read_lines(path))
    assert [(line.number, bool(line.problem)) for line in lines] == [
        (2, True),
        (3, False),
        (5, True),
        (6, True),
        (7, False),
    ]
    assert lines[-1].json == b'{"user_id": "u5", "item_id": "c,d"}'


def test_a_torn_gzip_file_gives_its_good_lines_and_then_says_so(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl.gz"
    whole = gzip.compress(b'{"item_id": "a"}\n' * 50_000, compresslevel=0)
    path.write_bytes(whole[: len(whole) // 2])
    lines = read_lines(path)
    assert next(lines).json == b'{"item_id": "a"}'
    with pytest.raises(DatasetError, match=r"items\.jsonl\.gz cannot be read"):
        list(lines)


def test_what_is_no_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    path.write_text("not parquet")
    with pytest.raises(DatasetError, match=r"items\.parquet is not a Parquet file"):
        list(read_lines(path))


def test_a_cell_that_cannot_be_read_costs_its_row_of_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    texts = pyarrow.array([b"a", b"\xe4", b"c"], pyarrow.binary()).view(pyarrow.string())
    far = pyarrow.array([0, 1, 1 << 59], pyarrow.timestamp("ms"))
    parquet.write_table(pyarrow.table({"item_id": texts, "at": far}), path)
    first, second, third = read_lines(path)
    assert json.loads(first.json)["item_id"] == "a"
    assert ("utf-8" in second.problem, second.json) == (True, b"")
    assert ("cannot be read" in third.problem, third.number) == (True, 3)


def test_a_line_break_in_an_id_is_refused_where_a_line_is_a_record(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="line break"):
        write_interactions(tmp_path / "interactions.csv", [Interaction("u\n1", "a")])


def test_a_file_that_is_one_line_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offline.lines.LONGEST_LINE", 1000)
    path = tmp_path / "items.json"
    path.write_bytes(b"[" + b'{"item_id": "a"}, ' * 500 + b"]")
    assert max(len(line.raw) for line in read_lines(path)) == 1000


def test_a_review_of_several_lines_is_one_csv_line(tmp_path: Path) -> None:
    path = tmp_path / "reviews.tsv"
    path.write_text('id\ttext\n1\t"one, two\n\nthree"\n2\tfour\n')
    assert [(line.number, line.json) for line in read_lines(path)] == [
        (2, b'{"id": "1", "text": "one, two\\n\\nthree"}'),
        (5, b'{"id": "2", "text": "four"}'),
    ]
