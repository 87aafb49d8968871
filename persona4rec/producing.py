"""A file's lines as events of a topic: a dataset's interactions or reviews, or the topic's own JSON."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from kafka.errors import KafkaError
from pydantic import TypeAdapter

from offline.lines import Line, read_lines
from offline.records import Interaction, Review
from offline.rejects import reason_of
from reranker.errors import BrokerUnavailableError, ConfigurationError
from reranker.kafka import ASPECTS, ERASURES, INTERACTIONS, ITEMS, REVIEWS, KafkaSettings, producer
from reranker.records import event_id
from reranker.v1 import events_pb2 as pb

# With a rate, sleeps shorter than this cost more than they order.
SHORTEST_SLEEP_SECONDS = 0.005
# A full buffer of the producer makes `send` wait; this is how long the last events may take.
FLUSH_SECONDS = 60.0
LINGER_SECONDS = 0.005

_KEY_FIELDS = {INTERACTIONS: "user_id", ASPECTS: "user_id", ERASURES: "user_id", REVIEWS: "item_id", ITEMS: "item_id"}


@dataclass(frozen=True, slots=True)
class ProduceReport:
    """What became of a file's lines."""

    sent: int
    rejected: int
    first_reason: str
    """With its line number; empty if none was rejected."""
    seconds: float


class Keyed(NamedTuple):
    """One event, with what decides its partition."""

    key: bytes
    value: bytes


def produce(file: Path, topic: str, settings: KafkaSettings, rate: float | None = None) -> ProduceReport:
    """Send the lines of a file to a topic, at `rate` events a second or as fast as it goes; wait until all are there.

    Lines that cannot be sent are counted. Raises ConfigurationError for another topic than those that platforms send,
    DatasetError for a file that cannot be read, BrokerUnavailableError.
    """
    if topic not in _KEY_FIELDS:
        raise ConfigurationError(f"--topic is {topic!r}: choose of {', '.join(_KEY_FIELDS)}")
    started = time.monotonic()
    sent, reasons = 0, []
    events = producer(settings, LINGER_SECONDS)
    try:
        for line in read_lines(file):
            try:
                found = event(topic, line)
            except ValueError as error:
                reasons.append(f"line {line.number}: {reason_of(error)}")
                continue
            events.send(settings.topic(topic), found.value, found.key)
            sent += 1
            _keep_to(rate, sent, started)
        events.flush(FLUSH_SECONDS)
    except KafkaError as error:
        raise BrokerUnavailableError(
            f"cannot write to Kafka at {settings.bootstrap}: {type(error).__name__}"
        ) from error
    finally:
        with suppress(KafkaError):
            events.close(timeout=FLUSH_SECONDS)
    return ProduceReport(sent, len(reasons), next(iter(reasons), ""), time.monotonic() - started)


def event(topic: str, line: Line) -> Keyed:
    """Return the event that a line is or means. Raises ValueError for a line that is neither.

    A line with an eventTime is the topic's own JSON and goes as it stands; any other is a dataset's.
    """
    if line.problem:
        raise ValueError(line.problem)
    fields = json.loads(line.json)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - the caller handles ValueErrors, as of json and pydantic
    if "eventTime" in fields or "event_time" in fields:
        return Keyed(_key(topic, fields), line.json)
    if topic not in _OF_DATASET:
        raise ValueError("no eventTime: only interactions and reviews can be sent from a dataset's own lines")
    message = _OF_DATASET[topic](line.json)
    value = MessageToJson(message, indent=None, ensure_ascii=False).encode()
    return Keyed(getattr(message, _KEY_FIELDS[topic]).encode(), value)


def _key(topic: str, fields: dict[str, object]) -> bytes:
    snake = _KEY_FIELDS[topic]
    camel = snake.replace("_id", "Id")
    key = fields.get(camel, fields.get(snake))
    if not isinstance(key, str) or not key:
        raise ValueError(f"no {camel}, which decides the partition")
    return key.encode()


def _interaction(line: bytes) -> Message:
    found = _INTERACTION.validate_json(line)
    return pb.Interaction(
        event_id=event_id(found.item_id, _dated(found.timestamp)),
        user_id=found.user_id,
        item_id=found.item_id,
        event_time=_dated(found.timestamp),
        rating=found.rating,
    )


def _review(line: bytes) -> Message:
    found = _REVIEW.validate_json(line)
    return pb.Review(
        review_id=found.review_id,
        user_id=found.user_id,
        item_id=found.item_id,
        event_time=_dated(found.timestamp),
        rating=found.rating,
        title=found.title,
        text=found.text,
    )


def _dated(timestamp: int | None) -> int:
    if not timestamp:
        raise ValueError("no timestamp, which an event needs")
    return timestamp


def _keep_to(rate: float | None, sent: int, started: float) -> None:
    if rate and (ahead := sent / rate - (time.monotonic() - started)) > SHORTEST_SLEEP_SECONDS:
        time.sleep(ahead)


_INTERACTION = TypeAdapter(Interaction)
_REVIEW = TypeAdapter(Review)
_OF_DATASET: dict[str, Callable[[bytes], Message]] = {INTERACTIONS: _interaction, REVIEWS: _review}
