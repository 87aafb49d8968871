"""What a dataset holds: one frozen dataclass a kind of record, and what is accepted for its fields.

The dataclasses are plain. Whoever reads untrusted text builds them through a pydantic `TypeAdapter`, which applies the
annotations below; whoever already has good values just constructs them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, FiniteFloat

from reranker.records import Persona

MAX_ID_BYTES = 256
"""Of any id, in UTF-8; the limit of the public contract."""

LATEST_TIMESTAMP = 253_402_300_799_999
"""The last millisecond of the year 9999. Micro- and nanoseconds since the epoch lie above it, so they are noticed."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _id_text(value: object) -> object:
    is_whole_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_whole_number else value


def _fits_an_id(value: str) -> str:
    size = len(value.encode())
    if not 1 <= size <= MAX_ID_BYTES:
        raise ValueError(f"an id has 1 to {MAX_ID_BYTES} bytes of UTF-8, not {size}")
    if "\n" in value or "\r" in value:
        raise ValueError("an id has no line break")
    return value


def _number(value: object) -> object:
    if not isinstance(value, str | bool):
        return value
    text = str(value).strip()
    try:
        return float(text) if text else None
    except ValueError:
        # Not float()'s own words: they quote the value, and reasons end up in logs.
        raise ValueError("expected a number") from None


def _milliseconds(value: object) -> int | None:
    """Return milliseconds since the epoch for a number of them or for ISO 8601 text; a time without zone is UTC."""
    if isinstance(value, str):
        value = _instant(value.strip())
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ValueError("expected whole milliseconds since the epoch or ISO 8601 text")
    if not 0 <= value <= LATEST_TIMESTAMP:
        raise ValueError("expected milliseconds from 1970 to 9999")
    return int(value)


def _instant(text: str) -> float | None:
    if not text:
        return None
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return _from_iso(text)


def _from_iso(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("expected whole milliseconds since the epoch or ISO 8601 text") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def as_text(value: object) -> str:
    """Return metadata as people read it: text as it is, lists joined by commas, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(as_text(element) for element in value)
    return json.dumps(value, ensure_ascii=False)


def _texts(value: object) -> object:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return value
    return {name: as_text(element) for name, element in value.items() if element is not None}


def _empty_text(value: object) -> object:
    return "" if value is None else value


def _empty_list(value: object) -> object:
    return () if value is None else value


Id = Annotated[str, BeforeValidator(_id_text), AfterValidator(_fits_an_id)]
"""Text of 1 to 256 bytes without line breaks; a whole number is taken as its digits."""

Timestamp = Annotated[int | None, BeforeValidator(_milliseconds)]
"""Milliseconds since the epoch, UTC, 1970 to 9999. Digits are milliseconds, other text is ISO 8601, empty is None."""

Rating = Annotated[FiniteFloat | None, BeforeValidator(_number)]
"""On the platform's own scale."""

Text = Annotated[str, BeforeValidator(_empty_text)]
"""Null is as good as empty: Parquet has no other way to leave a field out."""

Texts = Annotated[tuple[str, ...], BeforeValidator(_empty_list)]
Ids = Annotated[tuple[Id, ...], BeforeValidator(_empty_list)]
Attributes = Annotated[dict[str, str], BeforeValidator(_texts)]


@dataclass(frozen=True, slots=True)
class Item:
    """One thing of the catalogue."""

    item_id: Id
    title: Text = ""
    description: Text = ""
    categories: Texts = ()
    attributes: Attributes = field(default_factory=dict)
    """Further metadata by name. Numbers and lists of a file arrive as text; null ones are left out."""


@dataclass(frozen=True, slots=True)
class Review:
    """What a user wrote of an item."""

    review_id: Id
    user_id: Id
    item_id: Id
    text: str
    title: Text = ""
    rating: Rating = None
    timestamp: Timestamp = None


@dataclass(frozen=True, slots=True)
class Interaction:
    """One user-item event in time."""

    user_id: Id
    item_id: Id
    rating: Rating = None
    timestamp: Timestamp = None


@dataclass(frozen=True, slots=True)
class ItemSummary:
    """Two or three neutral sentences on an item (eq. 1)."""

    item_id: Id
    summary: str
    fingerprint: Text = ""
    """Of the item it was made from (`offline.fingerprints`); "" where that is not known, as in other people's files."""


@dataclass(frozen=True, slots=True)
class ReviewAspects:
    """What was extracted from one review (eq. 2)."""

    review_id: Id
    item_id: Id
    aspects: dict[str, str | None]
    """Slot of the domain to text; None: the review says nothing of it."""
    user_id: Id | None = None
    rating: Rating = None
    timestamp: Timestamp = None
    fingerprint: Text = ""
    """Of the review they were made from; "" as of a summary."""


@dataclass(frozen=True, slots=True)
class ItemPersonas:
    """The personas of one item (eq. 3), in their order."""

    item_id: Id
    personas: tuple[Persona, ...]
    evidence_known: bool = True
    """False only for personas imported without the reviews they were written from: these alone may lack evidence."""
    fingerprint: Text = ""
    """Of the item, its summary and its reviews' words; "" as of a summary."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Which persona of the item best explains that the user chose it (eq. 5)."""

    user_id: Id
    item_id: Id
    persona_id: str
    justification: str
    history: Ids = ()
    """The items of the user that the judgement was made from."""
    fingerprint: Text = ""
    """Of the personas that were to be chosen from; "" as of a summary."""


Record = Item | Review | Interaction | ItemSummary | ReviewAspects | ItemPersonas | Alignment
