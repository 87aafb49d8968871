"""A dataset is a directory of files, every one optional but the items, so that work can start and resume at any stage.

`items.jsonl`, `reviews.jsonl`, `interactions.csv`, `summaries.jsonl`, `aspects.jsonl`, `personas.jsonl` and
`alignments.jsonl`; each may also be `.jsonl.gz` or `.parquet`, interactions `.csv.gz` too, but only one of them may be
there. Files are read as streams: what grows with a file is at most the set of its ids.

Bad lines end no run and are never lost: see `offline.rejects`.
"""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import StringConstraints, TypeAdapter

from offline.errors import ConfigurationError, DatasetError
from offline.lines import Line, read_lines, write_interactions, write_jsonl
from offline.records import (
    Alignment,
    Id,
    Ids,
    Interaction,
    Item,
    ItemPersonas,
    ItemSummary,
    Record,
    Review,
    ReviewAspects,
    Text,
)
from offline.rejects import Rejects, reason_of
from reranker.records import Persona, persona_id

__all__ = [
    "KINDS",
    "Alignment",
    "Dataset",
    "Interaction",
    "Item",
    "ItemPersonas",
    "ItemSummary",
    "Kind",
    "Record",
    "Review",
    "ReviewAspects",
    "write_interactions",
    "write_jsonl",
]

Kind = Literal["items", "reviews", "interactions", "summaries", "aspects", "personas", "alignments"]

_JSON_FORMATS = (".jsonl", ".jsonl.gz", ".parquet")
KINDS: dict[Kind, tuple[str, ...]] = {
    "items": _JSON_FORMATS,
    "reviews": _JSON_FORMATS,
    "interactions": (".csv", ".csv.gz", *_JSON_FORMATS),
    "summaries": _JSON_FORMATS,
    "aspects": _JSON_FORMATS,
    "personas": _JSON_FORMATS,
    "alignments": _JSON_FORMATS,
}
"""The kinds of record, and the file name endings that each is read from."""

LOST_EVIDENCE = (
    "a review it was written from is gone; it is not used, and `persona4rec personas` writes the item's anew"
)

R = TypeVar("R", bound=Record)
Parse = Callable[[Line, Rejects], R | None]
"""Makes a record of a line. Raises ValueError if it cannot; None: parts of the line were bad and nothing is left."""


@dataclass(frozen=True)
class Dataset:
    """A dataset directory.

    Every method that yields records yields nothing if its file is not there. When its file ends, the bad lines are in
    `rejects.jsonl`, and TooManyRejectsError is raised if there were too many. A second line with the key of an earlier
    one (item_id; review_id for reviews and aspects) is a bad line; interactions and alignments have no key.

    Raises:
        DatasetError: the directory does not exist, or holds one kind of record in two files.
        ConfigurationError: `max_bad_share` is no share.

    """

    path: Path
    max_bad_share: float = 0.05
    """Share of a file's lines, 0 to 1, above which the file is taken for broken."""

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise DatasetError(
                f"{self.path} is not a directory; a dataset is a directory with at least items.jsonl in it"
            )
        if not 0 <= self.max_bad_share <= 1:
            raise ConfigurationError(f"max_bad_share is {self.max_bad_share}; it is a share, from 0 to 1")

    @classmethod
    def open(cls, path: str | Path, max_bad_share: float = 0.05) -> "Dataset":
        """Return the dataset at `path`; raises as the class does."""
        return cls(Path(path), max_bad_share)

    def has(self, kind: Kind) -> bool:
        """Return whether there is a file of this kind. Raises DatasetError if there are two."""
        return self._file(kind) is not None

    def items(self) -> Iterator[Item]:
        """Yield the catalogue. Raises DatasetError if its file is missing or empty."""
        path = self._file("items")
        if path is None:
            raise DatasetError(f"{self.path} holds no items{', items'.join(KINDS['items'])}; a dataset needs one")
        return self._items(path)

    def reviews(self) -> Iterator[Review]:
        """Yield the reviews."""
        return self._records("reviews", _parser(Review), lambda review: review.review_id)

    def interactions(self) -> Iterator[Interaction]:
        """Yield the interactions, repeated ones as often as they are there."""
        return self._records("interactions", _parser(Interaction))

    def summaries(self) -> Iterator[ItemSummary]:
        """Yield the item summaries."""
        return self._records("summaries", _parser(ItemSummary), lambda summary: summary.item_id)

    def aspects(self) -> Iterator[ReviewAspects]:
        """Yield the aspects, review by review."""
        return self._records("aspects", _parser(ReviewAspects), lambda aspects: aspects.review_id)

    def personas(self) -> Iterator[ItemPersonas]:
        """Yield the personas, item by item, without those that are bad: an item's other personas are kept.

        A persona is bad if its persona_id is given and not that of its text, if it repeats another of the item, or if
        its evidence is empty or names a review that is neither in the reviews nor in the aspects (where there is one of
        these files). Evidence may be empty on a line that says `"evidence_known": false`.

        A line with a fingerprint was made here of reviews that were there: one of its personas that names another has
        lost it. It is left out and told without its words, and no such line is a bad one, though it have none left.
        """
        return (found for found in self.recorded_personas() if not _has_lost_all(found))

    def recorded_personas(self) -> Iterator[ItemPersonas]:
        """Yield the personas as `personas` does, and, without any, the lines whose personas have all lost evidence.

        Of these an item may have several, and another line beside them.
        """
        known = self._review_ids()
        return self._records("personas", lambda line, rejects: _item_personas(line, rejects, known), _key_of_personas)

    def alignments(self) -> Iterator[Alignment]:
        """Yield the alignments."""
        return self._records("alignments", _parser(Alignment))

    def _items(self, path: Path) -> Iterator[Item]:
        empty = True
        for item in self._records("items", _parser(Item), lambda item: item.item_id):
            empty = False
            yield item
        if empty:
            raise DatasetError(f"empty dataset: {path} holds no item")

    def _records(self, kind: Kind, parse: Parse[R], key: Callable[[R], str] | None = None) -> Iterator[R]:
        path = self._file(kind)
        return iter(()) if path is None else _read(path, parse, key, self.max_bad_share)

    def _file(self, kind: Kind) -> Path | None:
        found = [path for ending in KINDS[kind] if (path := self.path / f"{kind}{ending}").exists()]
        if len(found) > 1:
            names = " and ".join(path.name for path in found)
            raise DatasetError(f"{self.path} holds both {names}; keep one, it cannot be told which is meant")
        return found[0] if found else None

    def _review_ids(self) -> Collection[str] | None:
        """Return the ids of all reviews that are known, or None if the dataset does not say which there are."""
        files = [path for path in (self._file("reviews"), self._file("aspects")) if path]
        return {review_id for path in files for review_id in _ids_in(path)} if files else None


def _read(path: Path, parse: Parse[R], key: Callable[[R], str] | None, max_bad_share: float) -> Iterator[R]:
    lines = kept = 0
    first_line: dict[str, int] = {}
    with Rejects(path.parent, path.name) as rejects:
        for line in read_lines(path):
            lines += 1
            record = _record(line, parse, rejects)
            if record is None:
                continue
            own = key(record) if key else ""
            if own and (first := first_line.setdefault(own, line.number)) != line.number:
                rejects.add(line.number, f"repeats the id of line {first}", line.raw)
                continue
            kept += 1
            yield record
        rejects.finish(lines, lines - kept, max_bad_share)


def _record(line: Line, parse: Parse[R], rejects: Rejects) -> R | None:
    if line.problem:
        rejects.add(line.number, line.problem, line.raw)
        return None
    try:
        return parse(line, rejects)
    except ValueError as error:
        rejects.add(line.number, reason_of(error), line.raw)
        return None


def _parser(kind: type[R]) -> Parse[R]:
    adapter = TypeAdapter(kind)
    return lambda line, _: adapter.validate_json(line.json)


@dataclass(frozen=True, slots=True)
class _PersonasLine:
    item_id: Id
    personas: list[Any]
    evidence_known: bool | None = True
    fingerprint: Text = ""


@dataclass(frozen=True, slots=True)
class _PersonaText:
    name: Annotated[str, StringConstraints(min_length=1)]
    description: str
    preference_rationale: str
    evidence: Ids = ()
    persona_id: str | None = None


@dataclass(frozen=True, slots=True)
class _ReviewId:
    review_id: Id


class _LostEvidenceError(Exception):
    """A persona was written from a review that is there no more."""


_PERSONAS_LINE = TypeAdapter(_PersonasLine)
_PERSONA_TEXT = TypeAdapter(_PersonaText)
_REVIEW_ID = TypeAdapter(_ReviewId)


def _item_personas(line: Line, rejects: Rejects, known: Collection[str] | None) -> ItemPersonas | None:
    entry = _PERSONAS_LINE.validate_json(line.json)
    evidence_known = entry.evidence_known is not False
    kept: dict[str, Persona] = {}
    lost = False
    for place, value in enumerate(entry.personas, start=1):
        try:
            persona = _persona(entry, value, known)
            _check_new(persona, kept)
            kept[persona.persona_id] = persona
        except _LostEvidenceError as error:
            lost = True
            # Without its words: who wrote the review may be erased.
            rejects.add(line.number, f"persona {place}: {error}", entry.item_id.encode())
        except ValueError as error:
            raw = json.dumps(value, ensure_ascii=False).encode()
            rejects.add(line.number, f"persona {place}: {reason_of(error)}", raw)
    nothing_left = bool(entry.personas) and not kept and not lost
    return (
        None if nothing_left else ItemPersonas(entry.item_id, tuple(kept.values()), evidence_known, entry.fingerprint)
    )


def _has_lost_all(found: ItemPersonas) -> bool:
    # No stage writes a line without personas.
    return bool(found.fingerprint) and not found.personas


def _key_of_personas(found: ItemPersonas) -> str:
    return "" if _has_lost_all(found) else found.item_id


def _persona(of_item: _PersonasLine, value: object, known: Collection[str] | None) -> Persona:
    text = _PERSONA_TEXT.validate_python(value)
    gone = sum(review not in known for review in text.evidence) if known is not None else 0
    if gone and of_item.fingerprint:
        raise _LostEvidenceError(LOST_EVIDENCE)
    own_id = persona_id(of_item.item_id, text.name, text.description, text.preference_rationale)
    if text.persona_id not in (None, own_id):
        raise ValueError(
            f"persona_id is not that of its text, {own_id.removeprefix(of_item.item_id)}; leave it out or correct it"
        )
    persona = Persona(own_id, text.name, text.description, text.preference_rationale, text.evidence)
    _check_evidence(persona, of_item, gone)
    return persona


def _check_evidence(persona: Persona, of_item: _PersonasLine, gone: int) -> None:
    if not persona.evidence and of_item.evidence_known is not False:
        raise ValueError("evidence is empty")
    if gone:
        raise ValueError(f"evidence names {gone} reviews that are neither in the reviews nor in the aspects")


def _check_new(persona: Persona, kept: Collection[str]) -> None:
    if persona.persona_id in kept:
        raise ValueError("repeats a persona of the item")


def _ids_in(path: Path) -> Iterator[str]:
    for line in read_lines(path):
        try:
            yield _REVIEW_ID.validate_json(line.json).review_id
        except ValueError:
            continue  # reported when the file itself is read
