"""What the worker's state holds as a dataset directory: from it a publish undoes nothing that the worker has published.

It is the state of one moment, read in one transaction while the worker goes on; memory holds one record at a time, and
the editor's decisions. What a dataset has no place for is counted (`ExportReport`).
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from offline.dataset import Dataset
from offline.decisions import DECISIONS, Decision, decide, decisions
from offline.errors import ConfigurationError, WorkerStateError
from offline.fingerprints import fingerprint
from offline.importers.staging import ITEMS, staged
from offline.lines import write_jsonl
from offline.records import Item, ItemPersonas, ItemSummary, Record, Review, ReviewAspects
from offline.rejects import reason_of
from offline.text import summary_of
from offline.worker_state import BUSY_SECONDS, FORMAT
from reranker.records import Persona

EXPORT = "export.json"
"""The report, beside the files. It tells an export, which the next one replaces, from a dataset that somebody made."""

# The reviews that are not gone, neither by themselves nor with their items.
_THERE = """
CREATE TEMP VIEW there AS SELECT * FROM reviews r
WHERE NOT r.deleted AND NOT EXISTS (SELECT 1 FROM items i WHERE i.item_id = r.item_id AND i.deleted)
"""
_ASPECTS = """
SELECT r.review_id, r.item_id, r.user_id, r.rating, r.event_time, r.content, a.slots
FROM aspects a JOIN there r USING (review_id) WHERE a.slots IS NOT NULL ORDER BY a.review_id
"""
_PERSONAS = """
SELECT p.item_id, p.content FROM personas p JOIN items i USING (item_id) WHERE NOT i.deleted ORDER BY p.item_id
"""
_WAITING = """
SELECT count(*) FROM aspects a JOIN there r USING (review_id) WHERE a.slots IS NOT NULL AND NOT a.considered
"""
_GONE = """
SELECT (SELECT count(*) FROM items WHERE deleted) + (SELECT count(*) FROM reviews WHERE deleted)
    + (SELECT count(*) FROM fences)
"""

_ITEM = TypeAdapter(Item)
_REVIEW = TypeAdapter(Review)
_OF_ITEM = TypeAdapter(tuple[Persona, ...])


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and what a dataset has no place for."""

    written: dict[str, int]
    """Lines by file."""
    evidence_left_out: int
    """Reviews that personas name and the state does not hold: these came with personas of a dataset that has no such
    review, or no aspects of it. A publish writes these personas' items anew."""
    due: int
    """Items that something is still to be done about."""
    waiting: int
    """Reviews that their item's personas were not written from yet; who takes the dataset over takes them for those
    that were."""
    gone: int
    """Erasures, and deletions of items and reviews, which keep a replay from bringing back what they concern."""


def export(state: Path, out: Path, decided: Path | None = None) -> ExportReport:
    """Write what the worker's `state` holds as the dataset `out`; an earlier export there is replaced in one step.

    decided: the dataset directory that the worker runs with, for the editor's decisions.
    Raises ConfigurationError if `out` is a dataset that is no export, DatasetError if it cannot be written or a
    decision cannot be read, WorkerStateError if the state cannot be read or has no item.
    """
    if out.is_dir() and Dataset.open(out).has("items") and not (out / EXPORT).exists():
        raise ConfigurationError(f"--out {out} is a dataset that is no export of a worker: name another directory")
    with snapshot_of(state) as snapshot, staged(out) as folder:
        written = {name: write_jsonl(folder / name, records) for name, records in snapshot.files().items()}
        taken = list(snapshot.decisions(Dataset.open(decided))) if decided else []
        for decision in taken:
            decide(folder, decision)
        written[DECISIONS] = len(taken)
        report = snapshot.report(written)
        (folder / EXPORT).write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
        _remove_empty([name for name, lines in written.items() if not lines], folder, out)
    return report


def _remove_empty(names: list[str], folder: Path, out: Path) -> None:
    """Remove files without a line, which would claim to know of their kind, and what an earlier export had instead."""
    older = [path for name in names if (path := out / name).exists()]
    if older:
        # As while files change places (`staged`): killed in between, it is no dataset.
        (out / ITEMS).unlink(missing_ok=True)
    for path in older + [folder / name for name in names]:
        path.unlink(missing_ok=True)


class Snapshot:
    """A state at one moment, as records, in the order of their ids. Raises WorkerStateError where it cannot be read."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._evidence_left_out = 0

    def files(self) -> dict[str, Iterator[Record]]:
        """Return what goes into each file; each may be gone through once."""
        return {
            ITEMS: self._items(),
            "reviews.jsonl": self._reviews(),
            "summaries.jsonl": self._summaries(),
            "aspects.jsonl": self._aspects(),
            "personas.jsonl": self._personas(),
        }

    def decisions(self, dataset: Dataset) -> Iterator[Decision]:
        """Yield an editor's decisions but for items and reviews that are gone. Raises DatasetError as `decisions`."""
        for decision in decisions(dataset.path):
            if not self._count("SELECT count(*) FROM items WHERE item_id = ? AND deleted", decision.item_id):
                replacement = decision.replacement and self._supported(decision.replacement)
                yield replace(decision, persona=self._supported(decision.persona), replacement=replacement)

    def report(self, written: dict[str, int]) -> ExportReport:
        """Return the report, once all of `files` are written."""
        return ExportReport(
            {name: lines for name, lines in written.items() if lines},
            self._evidence_left_out,
            due=self._count("SELECT count(*) FROM due"),
            waiting=self._count(_WAITING),
            gone=self._count(_GONE),
        )

    def require_items(self) -> None:
        if not self._count("SELECT EXISTS (SELECT 1 FROM items WHERE NOT deleted)"):
            raise WorkerStateError(f"{self._path} has no item yet: there is nothing to export")

    def _items(self) -> Iterator[Item]:
        for (content,) in self._rows("SELECT content FROM items WHERE NOT deleted ORDER BY item_id"):
            yield _ITEM.validate_json(content)

    def _reviews(self) -> Iterator[Review]:
        for (content,) in self._rows("SELECT content FROM there WHERE content <> '' ORDER BY review_id"):
            yield _REVIEW.validate_json(content)

    def _summaries(self) -> Iterator[ItemSummary]:
        for content, summary in self._rows("SELECT content, summary FROM items WHERE NOT deleted ORDER BY item_id"):
            item = _ITEM.validate_json(content)
            # An item's own words stand in for a summary that nobody wrote, and need not be written down for that.
            if summary_of(item, summary) != summary_of(item, None):
                yield ItemSummary(item.item_id, summary, fingerprint(item))

    def _aspects(self) -> Iterator[ReviewAspects]:
        for review_id, item_id, user_id, rating, at, content, slots in self._rows(_ASPECTS):
            made_from = fingerprint(_REVIEW.validate_json(content)) if content else ""
            about = (user_id or None, rating, at or None)
            yield ReviewAspects(review_id, item_id, json.loads(slots), *about, made_from)

    def _personas(self) -> Iterator[ItemPersonas]:
        for item_id, content in self._rows(_PERSONAS):
            before = _OF_ITEM.validate_json(content)
            found = tuple(map(self._supported, before))
            self._evidence_left_out += sum(len(persona.evidence) for persona in before)
            self._evidence_left_out -= sum(len(persona.evidence) for persona in found)
            if found:
                yield ItemPersonas(item_id, found, evidence_known=all(persona.evidence for persona in found))

    def _supported(self, persona: Persona) -> Persona:
        """Return a persona without evidence that is not in the export, which no dataset may have."""
        there = "SELECT count(*) FROM there WHERE review_id = ?"
        return replace(persona, evidence=tuple(one for one in persona.evidence if self._count(there, one)))

    def _count(self, query: str, *values: str) -> int:
        return int(next(self._rows(query, *values))[0])

    def _rows(self, query: str, *values: str) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._connection.execute(query, values)
        except sqlite3.Error as error:
            raise _unreadable(self._path, str(error)) from error


@contextmanager
def snapshot_of(path: Path) -> Iterator[Snapshot]:
    """Give a state as it is now, whatever the worker does meanwhile."""
    try:
        # Not made if it is not there.
        opened = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", BUSY_SECONDS, isolation_level=None, uri=True)
        with closing(opened) as connection:
            connection.execute("BEGIN")
            _require_format(path, connection.execute("PRAGMA user_version").fetchone()[0])
            connection.execute(_THERE)
            snapshot = Snapshot(path, connection)
            snapshot.require_items()
            yield snapshot
            connection.execute("COMMIT")
            # The log could not be cut while we read it, and may still hold what an erasure took away meanwhile.
            with suppress(sqlite3.OperationalError):
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise _unreadable(path, str(error)) from error
    except ValidationError as error:
        raise _unreadable(path, reason_of(error)) from error


def _require_format(path: Path, found: int) -> None:
    if found != FORMAT:
        raise _unreadable(path, f"it is of format {found}, this version reads format {FORMAT}")


def _unreadable(path: Path, why: str) -> WorkerStateError:
    return WorkerStateError(f"cannot read the worker's state in {path}: {why}")
