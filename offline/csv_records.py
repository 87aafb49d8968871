"""CSV records out of physical lines, of which one may take several, and a stray quote costs one."""

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

NumberedLine = tuple[int, bytes]
"""A line's number and its bytes, line break included."""

RECORD_LINES = 1000
"""Lines that one record may run over: more than any review has, and little to read again after a quote that is never
closed."""


@dataclass(frozen=True, slots=True)
class CsvRecord:
    """One record, or a line that is none."""

    number: int
    """Of its first line."""
    raw: bytes
    cells: tuple[str, ...] = ()
    problem: str = ""
    """Why there are no cells."""


def csv_records(lines: Iterator[NumberedLine], delimiter: str = ",") -> Iterator[CsvRecord]:
    """Yield the records, the header first, without blank lines between them.

    Of what does not make a record only the first line is given up, and reading goes on with the second: a quote that
    is not closed would else take what follows with it. A record of several lines must have as many cells as the first
    record, which is how it is told from two stray quotes.
    """
    waiting: deque[NumberedLine] = deque()
    width = 0
    while taken := _next(waiting, lines):
        if not taken[0][1].strip():
            continue
        record = _record(taken, waiting, lines, delimiter)
        if len(taken) > 1 and (record.problem or len(record.cells) != width):
            waiting.extendleft(reversed(taken[1:]))
            record = CsvRecord(*taken[0], problem=record.problem or "a quote that is not closed")
        width = width or len(record.cells)
        yield record


def _next(waiting: deque[NumberedLine], lines: Iterator[NumberedLine]) -> list[NumberedLine]:
    """Return a list of the next line, or an empty one at the end."""
    line = waiting.popleft() if waiting else next(lines, None)
    return [] if line is None else [line]


def _record(
    taken: list[NumberedLine], waiting: deque[NumberedLine], lines: Iterator[NumberedLine], delimiter: str
) -> CsvRecord:
    """Read one record; the lines that it needs beyond the first are appended to `taken`."""

    def texts() -> Iterator[str]:
        yield taken[0][1].decode()
        while len(taken) < RECORD_LINES and (line := _next(waiting, lines)):
            taken.extend(line)
            yield line[0][1].decode()

    try:
        cells = next(csv.reader(texts(), delimiter=delimiter, strict=True))
    except UnicodeDecodeError:
        return CsvRecord(*taken[0], problem="not UTF-8")
    except csv.Error as error:
        return CsvRecord(*taken[0], problem=f"not CSV: {error}")
    return CsvRecord(taken[0][0], b"".join(raw for _, raw in taken), tuple(cells))
