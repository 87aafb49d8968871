"""Makes a dataset of files that list items, reviews and interactions, whatever their format.

The files are read as streams and the ids are kept on disk, so that memory does not grow with them. With a selection
that depends on all of a file (a category, a least number of interactions) files are read twice: first to learn which
items and users stay, then to write.

A review is an interaction too, unless a file of interactions is given. Every item that a review or an interaction names
is in `items.jsonl`, with no more than its id where nothing else is known of it. Reviews without any text are
interactions only: there is nothing in them to learn a reason from.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from offline.dataset import KINDS, Kind
from offline.errors import DatasetError
from offline.importers.accounting import (
    REPORT_LINES,
    WRONG_FILE_LINES,
    ImportReport,
    Outcome,
    SourceReport,
    account_for,
)
from offline.importers.disk_ids import DiskCore, DiskIds, DiskSet
from offline.importers.selection import Selection
from offline.importers.staging import staged
from offline.lines import INTERACTION_COLUMNS, Line, csv_line, interaction_line, json_line, read_lines
from offline.records import Interaction, Item, Record, Review
from offline.rejects import Rejects

FREQUENT_CATEGORIES = 10
"""How many categories are named when a wanted one does not exist: a line or two of them."""

_HEADER = csv_line(INTERACTION_COLUMNS)

R = TypeVar("R", bound=Record)

Report = Callable[[str], object]
"""Is told from time to time what is being read, and how far."""


@dataclass(frozen=True, slots=True)
class SourceFile(Generic[R]):
    """A file with one record a line or row."""

    path: Path
    parse: Callable[[bytes], R]
    """Makes a record of a line's JSON; raises ValueError if it cannot."""
    read: Callable[[Path], Iterable[Line]] = read_lines


@dataclass(frozen=True, slots=True)
class Sources:
    """The files that a dataset is made of."""

    items: SourceFile[Item] | None = None
    reviews: SourceFile[Review] | None = None
    interactions: SourceFile[Interaction] | None = None


def review_id_of(user_id: str, item_id: str, timestamp: int | None, title: str, text: str) -> str:
    """Return the id of a review that was published without one: 24 hex digits of SHA-256 over all that tells it apart.

    It is the same in every import, whatever stands around the review. With 96 bits, two of a billion reviews share one
    with a probability of about 10^-11.
    """
    told_apart = "\n".join((user_id, item_id, str(timestamp), title, text))
    return hashlib.sha256(told_apart.encode()).hexdigest()[:24]


def import_sources(
    sources: Sources,
    out: Path,
    selection: Selection | None = None,
    max_bad_share: float = 0.05,
    report: Report = lambda _: None,
) -> ImportReport:
    """Make a dataset in `out` of the selected part of `sources`.

    `items.jsonl`, `reviews.jsonl` and `interactions.csv` take the place of earlier ones, all at the end or none; other
    files in `out` are left alone. Bad lines go to `out/rejects.jsonl`.

    Raises:
        DatasetError: a file cannot be read, `out` cannot be written, has one of the files in another format or one that
            these sources have no records for, or nothing fits the selection.
        TooManyRejectsError: more than `max_bad_share` (0 to 1) of a file's lines are bad.

    """
    selection = selection or Selection()
    _refuse_second_formats(out)
    _refuse_leftovers(out, _expected(sources))
    with staged(out) as staging, DiskIds(staging) as ids, ExitStack() as files:
        wanted = _survey(sources, selection, ids, report)
        draft = _Draft(staging, files, ids, wanted, reviews_are_interactions=sources.interactions is None)
        reports = [
            _import(source, take, out, max_bad_share, report) for source, take in _in_order(sources, draft) if source
        ]
        if not draft.written:
            raise DatasetError(f"nothing to write: {_what_was_read(reports)}. {out} is left as it was")
        _refuse_leftovers(out, {path.name for path in staging.iterdir()})
        notes = tuple(draft.notes())
    return ImportReport(tuple(reports), draft.written, notes)


def _refuse_second_formats(out: Path) -> None:
    kinds: tuple[Kind, ...] = ("items", "reviews", "interactions")
    for kind in kinds:
        ours, *others = KINDS[kind]
        for ending in others:
            if (out / f"{kind}{ending}").exists():
                raise DatasetError(
                    f"{out} already holds {kind}{ending}, and the import would write {kind}{ours} beside it: "
                    "remove it, or name another --out"
                )


def _expected(sources: Sources) -> set[str]:
    """Return the files that will be written, as far as there are records for them."""
    reviews = {"reviews.jsonl", "interactions.csv"} if sources.reviews else set()
    return reviews | ({"interactions.csv"} if sources.interactions else set())


def _refuse_leftovers(out: Path, replaced: set[str]) -> None:
    """Raise DatasetError if a file of an earlier import would stay and speak of items that are no longer there."""
    for name in ("reviews.jsonl", "interactions.csv"):
        if (out / name).exists() and name not in replaced:
            raise DatasetError(
                f"{out} already holds {name}, and nothing that is imported now would replace it: import everything in "
                f"one command, remove it, or name another --out. {out} is left as it was"
            )


# ---- first reading: which items and users stay -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The selection, and what had to be learnt from the files to apply it."""

    selection: Selection
    in_category: DiskSet | None
    core: DiskCore | None

    def item(self, item: Item) -> bool:
        in_core = self.core is None or not self.selection.min_per_item or self.core.has_item(item.item_id)
        return self.selection.fits_category(item) and in_core

    def event(self, user_id: str, item_id: str, timestamp: int | None) -> bool:
        in_core = self.core is None or (self.core.has_item(item_id) and self.core.has_user(user_id))
        return self._fits(item_id, timestamp) and in_core

    def review(self, review: Review) -> bool:
        """Beside a file of interactions: there the core is one of those, and reviewers need not be in it."""
        in_core = self.core is None or not self.selection.min_per_item or self.core.has_item(review.item_id)
        return self._fits(review.item_id, review.timestamp) and in_core

    def _fits(self, item_id: str, timestamp: int | None) -> bool:
        return self.selection.fits_time(timestamp) and (self.in_category is None or item_id in self.in_category)


def _survey(sources: Sources, selection: Selection, ids: DiskIds, report: Report) -> _Wanted:
    in_category = _in_category(sources.items, selection, ids, report) if selection.categories else None
    before = _Wanted(selection, in_category, None)
    core = _core(sources, before, ids, report) if selection.has_core else None
    return _Wanted(selection, in_category, core)


def _in_category(source: SourceFile[Item] | None, selection: Selection, ids: DiskIds, report: Report) -> DiskSet:
    if source is None:
        raise DatasetError("items can only be chosen by category with a file that says which categories they have")
    found = ids.new_set("in_category")
    # Of a taxonomy there are thousands, however many items it sorts.
    others: Counter[str] = Counter()
    empty = True
    for item in _records(source, report):
        if selection.fits_category(item):
            found.add(item.item_id)
            empty = False
        others.update(item.categories)
    if empty and others:
        frequent = ", ".join(category for category, _ in others.most_common(FREQUENT_CATEGORIES))
        asked = " or ".join(map(repr, selection.categories))
        raise DatasetError(f"{source.path}: no item has the category {asked}; the most frequent are {frequent}")
    return found


def _core(sources: Sources, wanted: _Wanted, ids: DiskIds, report: Report) -> DiskCore:
    core = ids.new_core()
    seen = ids.new_set("surveyed")
    interactions = 0
    for event, key in _events(sources, report):
        if wanted.event(event.user_id, event.item_id, event.timestamp) and seen.add(key):
            core.add(event.user_id, event.item_id)
            interactions += 1
    report("looking for users and items with enough interactions")
    left = core.prune(wanted.selection.min_per_item, wanted.selection.min_per_user)
    if interactions and not left:
        raise DatasetError(
            f"none of the {interactions:,} interactions would be left: no set of items and users has at least "
            f"{wanted.selection.min_per_item} an item and {wanted.selection.min_per_user} a user. Ask for fewer"
        )
    return core


def _events(sources: Sources, report: Report) -> Iterator[tuple[Review | Interaction, str]]:
    """Yield the interactions, or else the reviews, each with what makes it a duplicate."""
    if sources.interactions:
        yield from ((event, _key(event)) for event in _records(sources.interactions, report))
    elif sources.reviews:
        yield from ((review, review.review_id) for review in _records(sources.reviews, report))


def _records(source: SourceFile[R], report: Report) -> Iterator[R]:
    """Yield the good records of a file; of the bad ones the second reading gives account."""
    good = False
    for number, line in enumerate(source.read(source.path), start=1):
        record = None
        with suppress(ValueError):
            record = source.parse(line.json)
        if record is not None:
            good = True
            yield record
        if number % REPORT_LINES == 0:
            report(f"{source.path.name}, first reading: {number:,} lines")
        if number == WRONG_FILE_LINES and not good:
            return


def _key(event: Interaction) -> str:
    return f"{event.user_id}\n{event.item_id}\n{event.timestamp}"  # ids hold no line break


# ---- second reading: what is written ---------------------------------------------------------------------------------


class _Draft:
    """The files being written."""

    def __init__(
        self, staging: Path, files: ExitStack, ids: DiskIds, wanted: _Wanted, *, reviews_are_interactions: bool
    ) -> None:
        self.written: Counter[str] = Counter()
        self._staging = staging
        self._files = files
        self._open: dict[str, IO[str]] = {}
        self._wanted = wanted
        self._reviews_are_interactions = reviews_are_interactions
        self._items = ids.new_set("items")
        self._reviews = ids.new_set("reviews")
        self._interactions = ids.new_set("interactions")
        self._only_named = self._without_text = 0
        self._times: tuple[int, int] | None = None

    def add_item(self, item: Item) -> Outcome:
        if not self._wanted.item(item):
            return Outcome.LEFT_OUT
        if not self._items.add(item.item_id):
            return Outcome.DUPLICATE
        self._write("items.jsonl", json_line(item))
        return Outcome.WRITTEN

    def add_review(self, review: Review) -> Outcome:
        if not self._wants(review):
            return Outcome.LEFT_OUT
        if not self._reviews.add(review.review_id):
            return Outcome.DUPLICATE
        if review.text or review.title:
            self._write("reviews.jsonl", json_line(review))
        else:
            self._without_text += 1
        if self._reviews_are_interactions:
            self._write_interaction(Interaction(review.user_id, review.item_id, review.rating, review.timestamp))
        self._name(review.item_id, review.timestamp)
        return Outcome.WRITTEN

    def add_interaction(self, interaction: Interaction) -> Outcome:
        if not self._wanted.event(interaction.user_id, interaction.item_id, interaction.timestamp):
            return Outcome.LEFT_OUT
        if not self._interactions.add(_key(interaction)):
            return Outcome.DUPLICATE
        self._write_interaction(interaction)
        self._name(interaction.item_id, interaction.timestamp)
        return Outcome.WRITTEN

    def notes(self) -> Iterator[str]:
        if self._times:
            first, last = (datetime.fromtimestamp(time / 1000, UTC).date() for time in self._times)
            yield f"What is dated is from {first} to {last}."
        if self._only_named:
            yield f"{self._only_named:,} items are only named: nothing but their id is known."
        if self._without_text:
            yield f"{self._without_text:,} reviews have no text and became interactions only."

    def _wants(self, review: Review) -> bool:
        if self._reviews_are_interactions:
            return self._wanted.event(review.user_id, review.item_id, review.timestamp)
        return self._wanted.review(review)

    def _name(self, item_id: str, timestamp: int | None) -> None:
        """See to it that what a review or an interaction names is among the items."""
        if self._items.add(item_id):
            self._write("items.jsonl", json_line(Item(item_id)))
            self._only_named += 1
        if timestamp is not None:
            first, last = self._times or (timestamp, timestamp)
            self._times = min(first, timestamp), max(last, timestamp)

    def _write_interaction(self, interaction: Interaction) -> None:
        self._write("interactions.csv", interaction_line(interaction), header=_HEADER)

    def _write(self, name: str, line: str, header: str = "") -> None:
        file = self._open.get(name)
        if file is None:
            file = self._files.enter_context((self._staging / name).open("w", encoding="utf-8", newline=""))
            file.write(header)
            self._open[name] = file
        file.write(line)
        self.written[name] += 1


def _in_order(sources: Sources, draft: _Draft) -> Iterator[tuple[SourceFile[Any] | None, Callable[[Any], Outcome]]]:
    """Items come first: what names one that is not among them adds it, with its id alone."""
    yield sources.items, draft.add_item
    yield sources.interactions, draft.add_interaction
    yield sources.reviews, draft.add_review


def _what_was_read(reports: Iterable[SourceReport]) -> str:
    told = [
        f"of {report.read:,} entries of {report.file} the selection leaves {report.left_out:,} out"
        for report in reports
    ]
    return " and ".join(told)


def _import(
    source: SourceFile[R], add: Callable[[R], Outcome], out: Path, max_bad_share: float, report: Report
) -> SourceReport:
    def take(raw: bytes) -> tuple[Outcome]:
        return (add(source.parse(raw)),)

    def progress(lines: int) -> None:
        report(f"{name}: {lines:,} lines")

    name = source.path.name
    # By its whole path: the dataset's own files are listed by name, and a source may have the same.
    with Rejects(out, str(source.path)) as rejects:
        return account_for(name, source.read(source.path), take, rejects, max_bad_share, progress)
