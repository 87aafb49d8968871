"""Makes a dataset of Amazon Reviews 2023 (https://amazon-reviews-2023.github.io): reviews and metadata, JSON lines.

Items are keyed by `parent_asin`, as the metadata is: a paperback and its e-book are one item. The published reviews
have no id, so each gets one of what tells it apart; the same words by the same user at the same moment, as reviews of
several variants of one item are listed, are one review.

HTML becomes text, and the marks that stand for a video or another product are taken out of reviews. Left out of the
metadata are pictures, videos and, because they sum up the reviews and sales of all times and so tell of what is to be
predicted, average rating, number of ratings and sales rank.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field, TypeAdapter
from pydantic_core import from_json

from offline.importers.accounting import ImportReport
from offline.importers.json_lines import parsed
from offline.importers.markup import plain_text
from offline.importers.selection import Selection
from offline.importers.sources import Report, SourceFile, Sources, import_sources, review_id_of
from offline.records import Id, Item, Rating, Review, Text, Timestamp, as_text

HINDSIGHT = frozenset(("Best Sellers Rank", "Customer Reviews"))
"""Details that sum up sales and reviews of all times."""

_MARK = re.compile(r"\[\[(?:VIDEOID|ASIN|ASINLINK):([^\[\]]*(?:\[(?!\[)[^\[\]]*){0,9})\]\]")
"""`[[VIDEOID:hash]]` and `[[ASIN:B000000000 name of the product]]`. A name may have a few `[` but no `[[`: so what
is never closed is looked at once, however often it begins."""

_MARK_ID = re.compile(r"^\S*\s*")


def _paragraphs(value: object) -> object:
    """Return a list for the lone text or null that some editions of the files have."""
    return [value] if isinstance(value, str) else (value or [])


def _object(value: object) -> object:
    """Return a mapping also for JSON within JSON, which is how the Parquet edition holds one."""
    return (from_json(value) if isinstance(value, str) else value) or {}


Paragraphs = Annotated[list[str], BeforeValidator(_paragraphs)]
Object = Annotated[dict[str, Any], BeforeValidator(_object)]


@dataclass(frozen=True, slots=True)
class SourceReview:
    """A line of the reviews."""

    user_id: Id
    parent_asin: Id
    text: Text
    title: Text = ""
    rating: Rating = None
    timestamp: Annotated[Timestamp, Field(validation_alias=AliasChoices("timestamp", "sort_timestamp"))] = None


@dataclass(frozen=True, slots=True)
class SourceItem:
    """A line of the metadata."""

    parent_asin: Id
    title: Text = ""
    subtitle: Text = ""
    main_category: Text = ""
    categories: Paragraphs = field(default_factory=list)
    description: Paragraphs = field(default_factory=list)
    features: Paragraphs = field(default_factory=list)
    price: object = None
    store: Text = ""
    author: Object = field(default_factory=dict)
    details: Object = field(default_factory=dict)


_REVIEW = TypeAdapter(SourceReview)
_ITEM = TypeAdapter(SourceItem)


def import_files(
    reviews: Path,
    metadata: Path | None,
    out: Path,
    selection: Selection | None = None,
    max_bad_share: float = 0.05,
    report: Report = lambda _: None,
) -> ImportReport:
    """Make a dataset in `out` of the selected part of a category's reviews and, if given, its metadata.

    Raises as `import_sources` does.
    """
    items = SourceFile(metadata, item) if metadata else None
    return import_sources(Sources(items, SourceFile(reviews, review)), out, selection, max_bad_share, report)


def review(raw: bytes) -> Review:
    """Return the review that a line holds. Raises ValueError if it holds none."""
    source = parsed(_REVIEW, raw)
    title = plain_text(source.title)
    text = plain_text(_MARK.sub(_marked_name, source.text))
    review_id = review_id_of(source.user_id, source.parent_asin, source.timestamp, title, text)
    return Review(review_id, source.user_id, source.parent_asin, text, title, source.rating, source.timestamp)


def _marked_name(mark: re.Match[str]) -> str:
    """Return what stands in a mark behind the hash or id."""
    return _MARK_ID.sub("", mark[1], count=1)


def item(raw: bytes) -> Item:
    """Return the item that a line of metadata holds. Raises ValueError if it holds none."""
    source = parsed(_ITEM, raw)
    # Books repeat their description among the features.
    paragraphs = dict.fromkeys(plain_text(part) for part in (*source.description, *source.features))
    return Item(
        item_id=source.parent_asin,
        title=plain_text(source.title),
        description="\n".join(part for part in paragraphs if part),
        categories=tuple(plain_text(category) for category in source.categories) or _main(source),
        attributes=dict(_attributes(source)),
    )


def _main(source: SourceItem) -> tuple[str, ...]:
    return (source.main_category,) if source.main_category else ()


def _attributes(source: SourceItem) -> Iterator[tuple[str, str]]:
    named: Mapping[str, object] = {
        "main_category": source.main_category,
        "subtitle": source.subtitle,
        "store": source.store,
        "author": source.author.get("name"),
        "price": source.price,
        **{name: value for name, value in source.details.items() if name not in HINDSIGHT},
    }
    for name, value in named.items():
        text = "" if value is None else plain_text(as_text(value))
        if text and text not in {"—", "None"}:  # what the files say of a price that was not shown
            yield name, text
