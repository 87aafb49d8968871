"""What becomes of bad lines, and of what a stage could make no record of: it is told in `rejects.jsonl`, with why."""

import json
import logging
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from offline.appending import Appender, repair
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

NO_LINE = 0
"""What `rejects.jsonl` has for the line of a stage's subject: subjects are known by their keys."""

SETTLED = "seen again: what stands above of this subject holds no more"
"""Stands in `rejects.jsonl` only while a stage runs, and after one that was killed."""

Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of `rejects.jsonl`."""

    file: str
    """The file it was met in, or the stage."""
    line: int
    """From 1; `NO_LINE` of a stage."""
    reason: str
    raw: str
    """What was refused, cut to `RAW_LIMIT`; of a stage the subject's key."""


_ENTRY = TypeAdapter(Entry)

_OF_ONE_LINE = re.compile(
    r" at line \d+ column \d+$|; the line has .*$|(?<=^persona) \d+(?=: )| of line \d+$", re.DOTALL
)

logger = logging.getLogger(__name__)


def reason_of(error: ValueError) -> str:
    """Return why a line was refused, with the field, without its value: reasons are logged and reviews are personal."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    return ": ".join(part for part in (".".join(map(str, first["loc"])), message) if part)


def alike(reason: str) -> str:
    """Return why a line was refused without what differs from line to line in reasons that are otherwise the same."""
    return _OF_ONE_LINE.sub("", reason)


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
        self._entries.write(_line(Entry(self.file, line, reason, text)))
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
            if self.count or any(entry.file == self.file for entry in entries(self.path)):
                with _rewriting(self.path) as file:
                    file.writelines(_others(self.path, self.file))
                    self._entries.seek(0)
                    shutil.copyfileobj(self._entries, file)
        except OSError as error:
            _warn_unwritten(self.path, self.file, error)


class SubjectRejects:
    """What a stage tells of subjects without a record, and of what it left out of records; use as a context manager.

    It is written to `rejects.jsonl` as it comes, so that a run that was killed leaves it. What earlier runs told of a
    subject stands until that is visited again, or is there no more. Memory holds the keys of subjects with lines.

    `directory` is where `rejects.jsonl` lies, `stage` the name the lines are listed under.
    """

    def __init__(self, directory: Path, stage: str) -> None:
        self.path = directory / REJECTS
        self.stage = stage
        self._count = 0
        self._first_reason = ""
        self._told: set[str] = set()
        """The keys with lines in the file."""
        self._missed: set[str] = set()
        """Those that were there before this run and that it has not met."""
        self._all_met = self._some_settled = self._warned = False

    def __enter__(self) -> Self:
        try:
            if self.path.exists():
                with self.path.open("ab+", buffering=0) as file:
                    repair(file, self.path)
        except OSError as error:
            self._warn(error)
        self._told = {entry.raw for entry in entries(self.path) if entry.file == self.stage}
        self._missed = set(self._told)
        self._some_settled = any(entry and entry.reason == SETTLED for _, entry in _lines(self.path))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Take away what holds no more, and log how much this run told."""
        gone = self._missed if self._all_met else ()
        if self._some_settled or gone:
            self._take_away(gone)
        if self._count:
            logger.warning("%s: %d entries set aside; the first: %s", self.stage, self._count, self._first_reason)

    def meeting(self, subjects: Iterable[Subject], key: Callable[[Subject], str]) -> Iterator[Subject]:
        """Yield all subjects there are, and note which: once they are through, what is told of others goes."""
        for subject in subjects:
            self._missed.discard(key(subject))
            yield subject
        self._all_met = True

    def visited(self, key: str, reasons: Sequence[str]) -> None:
        """Tell what became of a subject, in place of whatever was told of it; without reasons it is fine."""
        settled = [SETTLED] if key in self._told else []
        self._some_settled |= bool(settled)
        self._told.discard(key)
        self._told.update([key] if reasons else [])
        self._count += len(reasons)
        self._first_reason = self._first_reason or next(iter(reasons), "")
        if lines := [_line(Entry(self.stage, NO_LINE, reason, key)) for reason in (*settled, *reasons)]:
            self._append("".join(lines).encode())

    def _append(self, lines: bytes) -> None:
        try:
            # Opened each time: whoever reads a file of the dataset may put another `rejects.jsonl` in its place.
            with self.path.open("ab", buffering=0) as file:
                Appender(file).append(lines)
        except OSError as error:
            self._warn(error)

    def _take_away(self, gone: Collection[str]) -> None:
        try:
            if self.path.exists():
                with _rewriting(self.path) as file:
                    file.writelines(line for line, entry in _standing(self.path) if not self._is_of(entry, gone))
        except OSError as error:
            self._warn(error)

    def _is_of(self, entry: Entry | None, subjects: Collection[str]) -> bool:
        return entry is not None and entry.file == self.stage and entry.raw in subjects

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            _warn_unwritten(self.path, self.stage, error)
        self._warned = True


def entries(path: Path) -> Iterator[Entry]:
    """Yield what a `rejects.jsonl` tells, but for what was seen again since it was told; nothing if it is absent."""
    return (entry for _, entry in _standing(path) if entry)


def _others(path: Path, file: str) -> Iterator[str]:
    """Yield the lines that are not of a file."""
    return (line for line, entry in _standing(path) if entry is None or entry.file != file)


def _standing(path: Path) -> Iterator[tuple[str, Entry | None]]:
    """Yield the lines that hold, each with its entry; None: it was not written here, so it is nobody's to replace."""
    settled = Counter((entry.file, entry.raw) for _, entry in _lines(path) if entry and entry.reason == SETTLED)
    for line, entry in _lines(path):
        if entry and entry.reason == SETTLED:
            settled[entry.file, entry.raw] -= 1
        elif not entry or not settled[entry.file, entry.raw]:
            yield line, entry


def _lines(path: Path) -> Iterator[tuple[str, Entry | None]]:
    """Yield the lines with their entries, without a last one that is torn."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            entry = _entry(line)
            if entry or line.endswith("\n"):
                yield line.removesuffix("\n") + "\n", entry


def _entry(line: str) -> Entry | None:
    try:
        return _ENTRY.validate_json(line)
    except ValueError:
        return None


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry), ensure_ascii=False) + "\n"


@contextmanager
def _rewriting(path: Path) -> Iterator[IO[str]]:
    """Open a `rejects.jsonl` that takes the place of that one; an empty one goes. Raises OSError."""
    if not path.parent.stat().st_mode & ANYONE_MAY_WRITE:
        raise PermissionError(f"{path.parent} is read-only")
    with replacing(path) as file:
        yield file
    if not path.stat().st_size:
        path.unlink()


def _warn_unwritten(path: Path, file: str, error: OSError) -> None:
    logger.warning("rejects of %s would have gone to %s, which cannot be written: %s", file, path, error)
