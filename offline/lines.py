"""Files as numbered lines: read as a stream whatever their format, written whole or not at all."""

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from offline.csv_records import csv_records
from offline.errors import DatasetError
from offline.records import Interaction, Record

PARQUET_BATCH_ROWS = 1024
"""Rows decoded at a time: enough to amortise a batch, little enough to hold beside anything else."""

LONGEST_LINE = 64 * 1024 * 1024
"""Bytes read as one line at most: far above any record, far below memory. A file that is one line, like a JSON array,
is met in pieces, each of them a bad line."""

INTERACTION_COLUMNS = ("user_id", "item_id", "rating", "timestamp")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file, or one row."""

    number: int
    """From 1; rows of a Parquet file likewise."""
    raw: bytes
    """As it stands in the file; of a Parquet row, its JSON."""
    json: bytes
    """The same as a JSON object."""
    problem: str = ""
    """Why it could not be taken apart; `json` is then empty."""


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a .jsonl, .csv, .tsv (each may be .gz) or .parquet file that are not blank, one by one.

    A record of CSV may run over several lines, within quotes; it is numbered by its first.

    Raises:
        DatasetError: the file as a whole cannot be read, e.g. a torn .gz.

    """
    kind = Path(path.name.removesuffix(".gz")).suffix
    reader = {".parquet": _parquet_lines, ".csv": _csv_lines, ".tsv": _csv_lines}.get(kind, _json_lines)
    try:
        yield from reader(path)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read: {error}. Is it complete, and readable for this user?") from error


def _json_lines(path: Path) -> Iterator[Line]:
    for number, raw in _physical_lines(path):
        line = raw.rstrip(b"\r\n")
        if line.strip():
            yield Line(number, line, line)


def _csv_lines(path: Path) -> Iterator[Line]:
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    header: list[str] | None = None
    for record in csv_records(_physical_lines(path), delimiter):
        raw = record.raw.rstrip(b"\r\n")
        if record.problem:
            yield Line(record.number, raw, b"", record.problem)
        elif header is None:
            header = [cell.strip() for cell in record.cells]
        elif len(record.cells) != len(header):
            yield Line(record.number, raw, b"", f"{len(record.cells)} cells under a header of {len(header)}")
        else:
            row = dict(zip(header, record.cells, strict=True))
            yield Line(record.number, raw, json.dumps(row, ensure_ascii=False).encode())


def _parquet_lines(path: Path) -> Iterator[Line]:
    # Here, because it is slow to import and few datasets need it.
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                for row, problem in _parquet_rows(batch):
                    number += 1
                    text = b"" if problem else json.dumps(row, ensure_ascii=False, default=_plain).encode()
                    yield Line(number, text, text, problem)
    except pyarrow.ArrowInvalid as error:
        raise DatasetError(f"{path} is not a Parquet file that can be read: {error}") from error


def _parquet_rows(batch: Any) -> list[tuple[dict[str, Any], str]]:
    """Return the rows of a batch, and why one cannot be read: text that is no UTF-8, a date that Python has not."""
    try:
        return [(row, "") for row in batch.to_pylist(maps_as_pydicts="lossy")]
    except (ValueError, OverflowError) as error:
        if len(batch) == 1:
            return [({}, f"a cell cannot be read: {error}")]
        return [row for place in range(len(batch)) for row in _parquet_rows(batch.slice(place, 1))]


def _plain(value: object) -> str:
    """Return text for what Parquet has and JSON has not: dates, decimals, and text that was stored as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _physical_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines with their numbers, line breaks included."""
    with _open(path) as file:
        for number, raw in enumerate(iter(partial(file.readline, LONGEST_LINE), b""), start=1):
            # The byte order mark that some editors write.
            yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw


def _open(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb"))


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """Open a new file that takes the place of `path` when the block ends well, and leaves no trace when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_jsonl(path: Path, records: Iterable[Record]) -> int:
    """Write one record a line and return how many. `path` is replaced at the end, in one step.

    Keys come in the order of the record's fields; fields that have their default are left out.
    """
    with replacing(path) as file:
        return sum(1 for record in records if file.write(json_line(record)))


def write_interactions(path: Path, records: Iterable[Interaction]) -> int:
    """Write interactions as CSV with header and return how many. `path` is replaced at the end, in one step.

    Raises:
        DatasetError: an id holds a line break, which one line of CSV cannot carry.

    """
    with replacing(path) as file:
        file.write(csv_line(INTERACTION_COLUMNS))
        return sum(1 for record in records if file.write(interaction_line(record)))


def json_line(record: Record) -> str:
    """Return the record as one line of JSON, without the fields that have their default."""
    values = {
        field.name: value for field in fields(record) if (value := getattr(record, field.name)) != _default(field)
    }
    return json.dumps(values, ensure_ascii=False, allow_nan=False, default=asdict) + "\n"


def interaction_line(record: Interaction) -> str:
    """Return the interaction as one line of CSV. Raises DatasetError as `csv_line` does."""
    return csv_line((record.user_id, record.item_id, record.rating, record.timestamp))


def csv_line(cells: Iterable[str | float | None]) -> str:
    """Return one line of CSV; None is an empty cell. Raises DatasetError if a cell holds a line break."""
    values = tuple(cells)
    for value in values:
        if isinstance(value, str) and ("\n" in value or "\r" in value):
            raise DatasetError(f"{value!r} holds a line break and cannot stand in a CSV file; use .jsonl or .parquet")
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def _default(field: Field[Any]) -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()
