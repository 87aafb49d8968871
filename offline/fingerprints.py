"""What a record was made from, as a digest, so that it can be told when that has changed."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from offline.appending import appending
from offline.errors import DatasetError
from offline.lines import json_line, read_lines, replacing
from offline.records import Record

DIGITS = 16
"""Hexadecimal, 64 bits: only what has the same id is ever compared, so a change goes unnoticed once in 10^19."""


@dataclass(frozen=True, slots=True)
class _Made:
    fingerprint: str | None = None


_MADE = TypeAdapter(_Made)


def fingerprint(record: Record) -> str:
    """Return a digest of all fields of a record, its id too. Fields that have their default do not count."""
    return digest(json_line(record))


def digest(*made_from: Any) -> str:
    """Return a digest of what a record was made from: text, numbers and lists of such."""
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:DIGITS]


def drop(path: Path, fingerprints: Collection[str]) -> None:
    """Take the records that carry one of the fingerprints out of a file of JSON lines, in one step.

    Every other line stays as it is, a bad one too. Raises DatasetError if the file cannot be written, or another
    process is writing it.
    """
    try:
        with appending(path), replacing(path) as kept:
            for line in read_lines(path):
                if _made_from(line.json) not in fingerprints:
                    kept.write(line.raw.decode(errors="replace") + "\n")
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error.strerror}") from error


def _made_from(line: bytes) -> str | None:
    try:
        return _MADE.validate_json(line).fingerprint
    except ValueError:
        return None  # a bad line, which is reported when the file is read
