"""What becomes of bad lines: they are set aside in `rejects.jsonl`, with where they stood and why."""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import TypeAdapter, ValidationError

from offline.errors import TooManyRejectsError
from offline.lines import replacing

REJECTS = "rejects.jsonl"

RAW_LIMIT = 2000
"""Characters of a bad line that are kept: enough to recognise it."""

ENOUGH_LINES = 20
"""In a file of fewer lines a share means little: only a file that is bad throughout counts as bad."""

IN_MEMORY = 1 << 20
"""Bytes of rejects held in memory before they go to a temporary file, so that memory does not grow with a bad file."""

ANYONE_MAY_WRITE = 0o222
"""Mode bits of a directory. Without any it was meant to stay as it is, also by a superuser, whom they do not stop."""


@dataclass(frozen=True, slots=True)
class _Entry:
    file: str
    line: int
    reason: str
    raw: str


_ENTRY = TypeAdapter(_Entry)

logger = logging.getLogger(__name__)


def reason_of(error: ValueError) -> str:
    """Return why a line was refused, with the field, without its value: reasons are logged and reviews are personal."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    return ": ".join(part for part in (".".join(map(str, first["loc"])), message) if part)


class Rejects:
    """The bad lines of one file, gathered while it is read; use as a context manager, `finish` at the end of the file.

    `directory` is where `rejects.jsonl` lies, `file` the name the lines are listed under.
    """

    def __init__(self, directory: Path, file: str) -> None:
        self.path = directory / REJECTS
        self.file = file
        self.count = 0
        """Entries set aside: lines, and parts of lines of which the rest was kept."""
        self.first_reason = ""
        self._entries = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY, mode="w+", encoding="utf-8")  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._entries.close()

    def add(self, line: int, reason: str, raw: bytes) -> None:
        """Set a line, or a part of it, aside."""
        text = raw.decode(errors="replace")[:RAW_LIMIT]
        entry = _Entry(file=self.file, line=line, reason=reason, raw=text)
        self._entries.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
        self.count += 1
        self.first_reason = self.first_reason or reason

    def finish(self, lines: int, bad_lines: int, max_bad_share: float) -> None:
        """Write the entries in place of the file's earlier ones, log their number, and judge the file.

        A bad line is one of which nothing could be kept.

        Raises:
            TooManyRejectsError: the share of bad lines is above `max_bad_share` (0 to 1), or, below 20 lines, all are.

        """
        self._save()
        if self.count:
            logger.warning("%s: %d entries set aside; the first: %s", self.file, self.count, self.first_reason)
        share_that_ends = max_bad_share if lines >= ENOUGH_LINES else 1 - 1 / ENOUGH_LINES
        if lines and bad_lines / lines > share_that_ends:
            raise TooManyRejectsError(
                f"{self.file}: {bad_lines} of {lines} lines are bad (max_bad_share = {max_bad_share}); "
                f"the first: {self.first_reason}. They are listed in {self.path}: "
                "mend the file, or raise max_bad_share if what is left is enough."
            )

    def _save(self) -> None:
        try:
            if self.count or any(_entries(self.path, self.file, of_file=True)):
                self._replace()
        except OSError as error:
            logger.warning(
                "rejects of %s would have gone to %s, which cannot be written: %s", self.file, self.path, error
            )

    def _replace(self) -> None:
        if not self.path.parent.stat().st_mode & ANYONE_MAY_WRITE:
            raise PermissionError(f"{self.path.parent} is read-only")
        with replacing(self.path) as file:
            file.writelines(_entries(self.path, self.file, of_file=False))
            self._entries.seek(0)
            shutil.copyfileobj(self._entries, file)
        if not self.path.stat().st_size:
            self.path.unlink()


def _entries(path: Path, file: str, *, of_file: bool) -> Iterator[str]:
    """Yield the entries of earlier runs that are (or are not) of this file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        yield from (line for line in lines if (_file_of(line) == file) is of_file)


def _file_of(entry: str) -> str | None:
    try:
        return _ENTRY.validate_json(entry).file
    except ValueError:
        return None  # not written here, so it is nobody's to replace
