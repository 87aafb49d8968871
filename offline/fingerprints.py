"""What a record was made from, as a digest, so that it can be told when that has changed."""

import hashlib
import json
from collections.abc import Mapping
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


def fingerprints_in(path: Path) -> set[str]:
    """Return the fingerprints that the records of a file of JSON lines carry; none if it is not there."""
    return {_made_from(line.json) for line in read_lines(path)} - {""} if path.exists() else set()


def take_over(path: Path, anew: Path, made_anew: Mapping[str, str]) -> None:
    """Put records that were made anew in the place of those they replace, in one step, and remove the file of them.

    made_anew: the fingerprint in `path` of what is replaced, to that of its record in `anew`; "" where there is none
    any more. Every other line stays as it is, a bad one too. After a death in between it may be done again.
    Raises DatasetError if a file cannot be written, or another process is writing it.
    """
    try:
        with appending(path), replacing(path) as kept:
            wanted = set(made_anew.values()) - {""}
            for line in read_lines(path):
                if (made_from := _made_from(line.json)) not in made_anew:
                    wanted.discard(made_from)
                    kept.write(line.raw.decode(errors="replace") + "\n")
            for line in read_lines(anew) if wanted else ():
                if (made_from := _made_from(line.json)) in wanted:
                    wanted.remove(made_from)
                    kept.write(line.raw.decode(errors="replace") + "\n")
        anew.unlink(missing_ok=True)
        if path.exists() and not path.stat().st_size:
            # As `appending` leaves none.
            path.unlink()
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error.strerror}") from error


def _made_from(line: bytes) -> str:
    try:
        return _MADE.validate_json(line).fingerprint or ""
    except ValueError:
        return ""  # a bad line, which is reported when the file is read
