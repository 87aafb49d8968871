"""Makes a dataset of the Yelp Open Dataset: its businesses are the items; JSON lines.

Reads `business.json` and `review.json`, under these names or those of the archive, which start with
`yelp_academic_dataset_`, also `.gz`. Times have no zone and are taken as UTC. Attributes come as Python literals within
JSON (`"u'free'"`, `"{'casual': True, 'classy': False}"`): they become words, of a group those that apply.

Left out are stars and number of reviews of a business: they sum up the reviews of all times, and so tell of what is to
be predicted. Whether it is still open is kept, as `is_open`.
"""

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter

from offline.errors import DatasetError
from offline.importers.accounting import ImportReport
from offline.importers.json_lines import parsed
from offline.importers.selection import Selection
from offline.importers.sources import Report, SourceFile, Sources, import_sources
from offline.records import Id, Item, Rating, Review, Text, Timestamp, as_text

LITERAL_LIMIT = 1000
"""Characters of an attribute that is taken for a literal; published ones have at most about 200, and parsing nests."""


def _names(value: object) -> object:
    """Return a list for `"Pizza, Restaurants"`; older editions have a list already, a few businesses null."""
    names = value.split(",") if isinstance(value, str) else value or []
    return [name.strip() for name in names if name.strip()] if isinstance(names, list) else names


def _mapping(value: object) -> object:
    return value or {}


Mapped = Annotated[dict[str, Any], BeforeValidator(_mapping)]


@dataclass(frozen=True, slots=True)
class SourceBusiness:
    """A line of `business.json`."""

    business_id: Id
    name: Text = ""
    city: Text = ""
    state: Text = ""
    is_open: bool | None = None
    categories: Annotated[list[str], BeforeValidator(_names)] = field(default_factory=list)
    attributes: Mapped = field(default_factory=dict)
    hours: Mapped = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SourceReview:
    """A line of `review.json`."""

    review_id: Id
    user_id: Id
    business_id: Id
    text: Text
    stars: Rating = None
    date: Timestamp = None


_BUSINESS = TypeAdapter(SourceBusiness)
_REVIEW = TypeAdapter(SourceReview)


def import_files(
    source: Path,
    out: Path,
    selection: Selection | None = None,
    max_bad_share: float = 0.05,
    report: Report = lambda _: None,
) -> ImportReport:
    """Make a dataset in `out` of the selected part of the files in `source`.

    Raises DatasetError if there is not exactly one of each, and else as `import_sources` does.
    """
    businesses, reviews = _only(source, "business.json"), _only(source, "review.json")
    sources = Sources(SourceFile(businesses, item), SourceFile(reviews, review))
    return import_sources(sources, out, selection, max_bad_share, report)


def _only(source: Path, name: str) -> Path:
    found = [path for pattern in (f"*{name}", f"*{name}.gz") for path in sorted(source.glob(pattern))]
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "none"
        raise DatasetError(
            f"{source} must hold one *{name} or *{name}.gz, unpacked from Yelp's archive; found: {there}"
        )
    return found[0]


def review(raw: bytes) -> Review:
    """Return the review that a line of `review.json` holds. Raises ValueError if it holds none."""
    source = parsed(_REVIEW, raw)
    return Review(
        review_id=source.review_id,
        user_id=source.user_id,
        item_id=source.business_id,
        text=source.text.strip(),
        rating=source.stars,
        timestamp=source.date,
    )


def item(raw: bytes) -> Item:
    """Return the item that a line of `business.json` holds. Raises ValueError if it holds none."""
    source = parsed(_BUSINESS, raw)
    return Item(
        item_id=source.business_id,
        title=source.name.strip(),
        categories=tuple(source.categories),
        attributes=dict(_attributes(source)),
    )


def _attributes(source: SourceBusiness) -> Iterator[tuple[str, str]]:
    hours = ", ".join(f"{day} {span}" for day, span in source.hours.items() if span)
    is_open = {True: "yes", False: "no", None: ""}[source.is_open]
    named = {"city": source.city, "state": source.state, "is_open": is_open, "hours": hours}
    spelled = {name: _words(_literal(value)) for name, value in source.attributes.items()}
    yield from ((name, text) for name, text in (named | spelled).items() if text)


def _literal(value: object) -> object:
    if not isinstance(value, str) or len(value) > LITERAL_LIMIT:
        return value
    try:
        found: object = ast.literal_eval(value)
        json.dumps(found)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        # Words without quotes, as older editions have them, or what JSON has not, like a set.
        return value
    return found


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(str(name).replace("_", " ") for name, applies in value.items() if applies is True)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else as_text(value).replace("_", " ")
