"""Every entry of a file that is imported is accounted for: it was written, or it is known why not."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from offline.lines import Line
from offline.rejects import Rejects, alike, reason_of

WRONG_FILE_LINES = 1000
"""If none of so many lines at the start of a file is good, the file is not what it was taken for: reading on would fill
`rejects.jsonl` with a copy of it. A file that starts with a thousand bad lines and then turns good was never met."""

REPORT_LINES = 10_000
"""Lines between two reports of progress: about one a second at the measured 9,000 reviews a second of CPU time."""


class Outcome(Enum):
    """What became of an entry that is good."""

    WRITTEN = auto()
    DUPLICATE = auto()
    LEFT_OUT = auto()


@dataclass(frozen=True, slots=True)
class Refused:
    """An entry that is bad, and why."""

    reason: str
    raw: bytes


Take = Callable[[bytes], Iterable[Outcome | Refused]]
"""Takes what one line holds, entry by entry. Raises ValueError before the first if the line itself is bad."""


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What became of one file's entries: read = written + duplicates + left_out + rejected.

    An entry is a review, a summary, a persona, a history event, a selection, a candidate or a pair, whatever the file
    lists; a line that cannot be taken apart counts as one.
    """

    file: str
    read: int
    written: int
    duplicates: int
    left_out: int
    """Good entries that are not written: what is to be predicted, and what the selection does not want."""
    reasons: Mapping[str, int]
    """Why entries were rejected, with how many."""

    @property
    def rejected(self) -> int:
        """How many entries were set aside in `rejects.jsonl`."""
        return sum(self.reasons.values())


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did."""

    sources: tuple[SourceReport, ...]
    written: Mapping[str, int]
    """Records by output file; of `personas.jsonl`, items."""
    notes: tuple[str, ...]
    """What the person who imports should know of the result."""

    @property
    def rejected(self) -> int:
        """How many entries of all files were set aside in `rejects.jsonl`."""
        return sum(source.rejected for source in self.sources)


def account_for(
    file: str,
    lines: Iterable[Line],
    take: Take,
    rejects: Rejects,
    max_bad_share: float,
    report: Callable[[int], object] = lambda _: None,
) -> SourceReport:
    """Take every line of a file and return what became of its entries; the bad ones go to `rejects`.

    `report` is called with the lines done, every `REPORT_LINES`.

    Raises:
        TooManyRejectsError: of more than `max_bad_share` (0 to 1) of the lines nothing could be kept, or of none of the
            first `WRONG_FILE_LINES`.

    """
    outcomes: Counter[Outcome] = Counter()
    reasons: Counter[str] = Counter()
    read = bad_lines = 0
    for read, line in enumerate(lines, start=1):
        of_line = _taken(line, take)
        outcomes.update(outcome for outcome in of_line if isinstance(outcome, Outcome))
        if refused := [outcome for outcome in of_line if isinstance(outcome, Refused)]:
            _reject(line, refused, rejects, reasons)
            bad_lines += len(refused) == len(of_line)
        if read == WRONG_FILE_LINES == bad_lines and max_bad_share < 1:
            break
        if read % REPORT_LINES == 0:
            report(read)
    rejects.finish(read, bad_lines, max_bad_share)
    return SourceReport(
        file=file,
        read=outcomes.total() + reasons.total(),
        written=outcomes[Outcome.WRITTEN],
        duplicates=outcomes[Outcome.DUPLICATE],
        left_out=outcomes[Outcome.LEFT_OUT],
        reasons=dict(reasons.most_common()),
    )


def _taken(line: Line, take: Take) -> list[Outcome | Refused]:
    if line.problem:
        return [Refused(line.problem, line.raw)]
    try:
        return list(take(line.json))
    except ValueError as error:
        return [Refused(reason_of(error), line.raw)]


def _reject(line: Line, refused: Iterable[Refused], rejects: Rejects, reasons: Counter[str]) -> None:
    for entry in refused:
        rejects.add(line.number, entry.reason, entry.raw)
        reasons[alike(entry.reason)] += 1
