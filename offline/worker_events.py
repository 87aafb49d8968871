"""Records of the topics `reviews`, `items` and `erasures`, read into what the worker's state takes.

Values are protobuf JSON of reranker/v1/events.proto, read as `reranker.events` reads those of ingest. Unknown fields
are passed over, so that the contract can grow.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from offline.records import Item, Review
from reranker import events
from reranker.batches import sent_at
from reranker.dead_letters import DeadLetter, dead_letter
from reranker.errors import InvalidEventError
from reranker.events import Erase, Rating, Time, read_change, told
from reranker.kafka import ERASURES, ITEMS, REVIEWS
from reranker.payloads import json_of

TOPICS = REVIEWS, ITEMS, ERASURES
"""What the worker reads, by the contract's names."""

MAX_TITLE_BYTES = 4096
"""Of an item: titles are stored with every manifest, and Milvus takes 65,535 bytes; no title that people
read comes near."""


@dataclass(frozen=True, slots=True)
class ReviewChange:
    """A review that is new, changed or taken down."""

    review: Review
    """Its timestamp is the event's, milliseconds since the epoch."""
    event_time: int
    deleted: bool


@dataclass(frozen=True, slots=True)
class ItemChange:
    """An item that is new, changed or gone."""

    item: Item
    event_time: int
    deleted: bool


@dataclass(frozen=True, slots=True)
class Erasure:
    """A user to forget."""

    user_id: str
    until: int
    """Reviews up to this time, milliseconds since the epoch."""


Change = ReviewChange | ItemChange | Erasure


@dataclass(frozen=True, slots=True)
class Origin:
    """The partition that a change came from: whoever has it does what the change asks for later."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What a handful of records means."""

    found: list[tuple[Change, Origin]] = field(default_factory=list)
    """In their order."""
    dead: list[DeadLetter] = field(default_factory=list)
    dated_ahead: Counter[str] = field(default_factory=Counter)
    """By the brokers' topic: how many were dated after they were sent."""


def sort_out(records: Iterable[Any], topic_prefix: str = "") -> Changes:
    """Return what consumed records mean; `topic_prefix` is what the brokers put before the contract's topic names."""
    changes = Changes()
    for record in records:
        sent = sent_at(record)
        try:
            topic = record.topic.removeprefix(topic_prefix)
            change, dated_ahead = read(topic, json_of(topic, record.value, record.headers), sent)
        except InvalidEventError as error:
            changes.dead.append(dead_letter(record, error))
            continue
        changes.found.append((change, Origin(record.topic, record.partition)))
        changes.dated_ahead[record.topic] += dated_ahead
    return changes


def read(topic: str, value: bytes | None, sent: int) -> tuple[Change, bool]:
    """Read a record's value; return with it whether it was dated after `sent`, which then is its time.

    `topic` is the contract's name of the topic, `sent` the record's own timestamp in milliseconds since the epoch.
    Raises InvalidEventError.
    """
    if topic == ERASURES:
        found = read_change(topic, value, sent)
        assert isinstance(found.change, Erase)  # noqa: S101 - what that topic holds
        return Erasure(found.user_id, found.change.until), found.dated_ahead
    if value is None:
        raise InvalidEventError("the record has no value")
    try:
        message = _MESSAGES[topic].model_validate_json(value)
    except ValidationError as error:
        raise InvalidEventError(told(error)) from None
    return message.change(min(message.event_time, sent)), message.event_time > sent


def _or(empty: Any) -> BeforeValidator:
    # In protobuf JSON null is as good as absent.
    return BeforeValidator(lambda value: empty if value is None else value)


def _one_line(value: str) -> str:
    if "\n" in value or "\r" in value:
        raise ValueError("an id has no line break")
    return value


Id = Annotated[events.Id, AfterValidator(_one_line)]
"""As datasets and prompts take it: what an id with a line break belongs to could not be read again."""
Text = Annotated[str, _or("")]
Flag = Annotated[bool, _or(False)]


class _Message(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    item_id: Id
    event_time: Time
    deleted: Flag = False


class _Review(_Message):
    review_id: Id
    user_id: Id
    rating: Rating = None
    title: Text = ""
    text: Text = ""

    def change(self, event_time: int) -> ReviewChange:
        if not (self.deleted or self.text.strip()):
            raise InvalidEventError("text: empty in a review that is not deleted")
        review = Review(
            self.review_id, self.user_id, self.item_id, self.text, self.title, self.rating, timestamp=event_time
        )
        return ReviewChange(review, event_time, self.deleted)


class _Item(_Message):
    title: Text = ""
    description: Text = ""
    categories: Annotated[list[str], _or(())] = Field(default_factory=list)
    attributes: Annotated[dict[str, str], _or({})] = Field(default_factory=dict)

    def change(self, event_time: int) -> ItemChange:
        if (size := len(self.title.encode())) > MAX_TITLE_BYTES:
            raise InvalidEventError(f"title: {size} bytes, over {MAX_TITLE_BYTES}")
        item = Item(self.item_id, self.title, self.description, tuple(self.categories), self.attributes)
        return ItemChange(item, event_time, self.deleted)


_MESSAGES: dict[str, type[_Review] | type[_Item]] = {REVIEWS: _Review, ITEMS: _Item}
