import csv
import io
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline import csv_records as module
from offline.csv_records import csv_records


def numbered(*lines: bytes) -> Iterator[tuple[int, bytes]]:
    return iter(enumerate(lines, start=1))


def cells(lines: Iterable[bytes]) -> list[tuple[int, tuple[str, ...] | str]]:
    return [(record.number, record.problem or record.cells) for record in csv_records(numbered(*lines))]


def test_a_cell_may_hold_line_breaks_and_blank_lines() -> None:
    lines = [b"id,text\n", b'1,"one\n', b"\n", b'two"\n', b"2,three\n"]
    assert cells(lines) == [(1, ("id", "text")), (2, ("1", "one\n\ntwo")), (5, ("2", "three"))]


@pytest.mark.parametrize(
    "stray",
    [
        b'1,"never closed\n',  # the end of the file comes first
        b'1,"closed by the next\n',  # which is then no CSV
        b'1,"a","b\n',  # a record of too many cells
    ],
)
def test_a_stray_quote_costs_its_line(stray: bytes) -> None:
    lines = [b"id,text\n", stray, b"2,two\n", b'3,"three"\n', b"4,four\n"]
    found = cells(lines)
    assert isinstance(found[1][1], str)
    assert found[2:] == [(3, ("2", "two")), (4, ("3", "three")), (5, ("4", "four"))]


def test_a_stray_quote_is_given_up_after_some_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECORD_LINES", 10)
    taken = 0

    def lines() -> Iterator[tuple[int, bytes]]:
        nonlocal taken
        for taken in range(1, 101):
            yield taken, b'1,"\n' if taken == 2 else b"1,a\n"

    records = csv_records(lines())
    next(records)
    assert next(records).problem
    assert taken == 11


def test_what_is_not_utf_8_costs_its_line() -> None:
    assert cells([b"id\n", b"\xff\n", b"2\n"]) == [(1, ("id",)), (2, "not UTF-8"), (3, ("2",))]


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


@settings(deadline=None)
@given(st.integers(2, 4).flatmap(lambda width: st.lists(st.lists(texts, min_size=width, max_size=width), min_size=1)))
def test_what_python_writes_is_read_back(rows: list[list[str]]) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow([f"column {place}" for place in range(len(rows[0]))])
    writer.writerows(rows)
    written = io.BytesIO(file.getvalue().encode())
    records = list(csv_records(enumerate(written, start=1)))
    assert [list(record.cells) for record in records[1:]] == rows
    assert b"".join(record.raw for record in records) == written.getvalue()
