"""Dead letters: records that cannot be used, kept in `<topic>.dlq` until somebody sends them again or discards them.

A dead letter's key is its origin, `topic/partition/offset`, and it is settled by a record of that key without a value.
So a record that dies again on a replay is there once, and a compacted topic (cleanup.policy=compact) really forgets
what is settled, which the erasure of a user needs. The value is the original's, byte for byte; the rest is in headers.
Where there is none it is empty, and a header says so: without a value the letter itself would be forgotten.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from kafka import TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from reranker.errors import BrokerUnavailableError
from reranker.kafka import ANSWER_SECONDS, DLQ_SUFFIX, KafkaSettings, reader
from reranker.sending import Headers, Message, Sender

Kept = TypeVar("Kept")

# All of ours begin so; every other header is the original's.
_PREFIX = "dlq."
# Of an error's message in a header: enough to see the fault, and far below the size that brokers leave for headers.
_MESSAGE_CHARACTERS = 500
_POLL_MS = 200


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be used, and why."""

    topic: str
    """Where it was, with partition and offset."""
    partition: int
    offset: int
    timestamp: int
    """Of the original, milliseconds since the epoch."""
    key: bytes | None
    value: bytes | None
    headers: Headers
    """The original's."""
    error: str
    """The class of the error."""
    message: str

    @property
    def letter_id(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


def dead_letter(record: Any, error: Exception) -> DeadLetter:
    """Return what is kept of a consumed record."""
    return DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        key=record.key,
        value=record.value,
        # A header may have no value, but no producer of ours can write such a one.
        headers=tuple((name, b"" if value is None else value) for name, value in record.headers),
        error=type(error).__name__,
        message=str(error)[:_MESSAGE_CHARACTERS],
    )


class DeadLetters:
    """The `.dlq` topics of some brokers. Methods raise BrokerUnavailableError; what they did is then done again."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._sender = Sender(settings)

    def close(self) -> None:
        self._sender.close()

    def put(self, letters: Collection[DeadLetter]) -> None:
        """Write dead letters; they are acknowledged by all replicas when this returns."""
        self._send(
            Message(_dlq(letter.topic), letter.value or b"", letter.letter_id.encode(), _headers(letter))
            for letter in letters
        )

    def pending(
        self, topics: Iterable[str], wanted: Callable[[DeadLetter], bool] | None = None
    ) -> Iterator[DeadLetter]:
        """Yield the dead letters of input topics that nobody has settled, topic by topic, in their order there.

        Only those that are `wanted`, if that is given; memory holds these of one topic.
        """

        def kept(record: Any) -> DeadLetter | None:
            letter = _read(record)
            return letter if wanted is None or wanted(letter) else None

        for topic in topics:
            letters = filter(None, self._unsettled(topic, kept).values())
            yield from sorted(letters, key=lambda letter: (letter.partition, letter.offset))

    def count(self, topic: str) -> int:
        """Return how many dead letters of an input topic nobody has settled; memory holds their ids."""
        return len(self._unsettled(topic, lambda _: None))

    def discard(self, letters: Collection[DeadLetter]) -> None:
        """Settle dead letters without doing anything with them."""
        self._send(Message(_dlq(letter.topic), None, letter.letter_id.encode()) for letter in letters)

    def redrive(self, letters: Collection[DeadLetter]) -> None:
        """Send dead letters to where they were, as they were, then settle them."""
        self._send(
            Message(letter.topic, letter.value, letter.key, letter.headers, letter.timestamp) for letter in letters
        )
        self.discard(letters)

    def _unsettled(self, topic: str, kept: Callable[[Any], Kept]) -> dict[bytes, Kept]:
        """Return what is kept of the unsettled records of an input topic's DLQ, by their keys."""
        dlq = _dlq(self._settings.topic(topic))
        unsettled: dict[bytes, Kept] = {}
        try:
            for record in _all_records(self._settings, dlq):
                unsettled.pop(record.key, None)
                if _is_dead_letter(record):
                    unsettled[record.key] = kept(record)
        except KafkaError as error:
            raise BrokerUnavailableError(f"cannot read {dlq}: {type(error).__name__}") from error
        return unsettled

    def _send(self, messages: Iterable[Message]) -> None:
        try:
            self._sender.send(messages)
        except MessageSizeTooLargeError as error:
            raise BrokerUnavailableError(
                f"a dead letter is larger than its topic takes: raise max.message.bytes of the {DLQ_SUFFIX} topics "
                "above that of their inputs. Nothing is passed over until then"
            ) from error
        except KafkaError as error:
            raise BrokerUnavailableError(
                f"cannot write to Kafka at {self._settings.bootstrap}: {type(error).__name__}"
            ) from error


def _dlq(topic: str) -> str:
    return topic + DLQ_SUFFIX


def _headers(letter: DeadLetter) -> Headers:
    told = {
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "timestamp": letter.timestamp,
        "error": letter.error,
        "message": letter.message,
    }
    key: Headers = () if letter.key is None else ((f"{_PREFIX}key", letter.key),)
    no_value: Headers = ((f"{_PREFIX}no_value", b"true"),) if letter.value is None else ()
    return (*letter.headers, *((_PREFIX + name, str(value).encode()) for name, value in told.items()), *key, *no_value)


def _is_dead_letter(record: Any) -> bool:
    """Return whether a record is one, and not the settlement of one; those of earlier versions may have no value."""
    return any(name == f"{_PREFIX}offset" for name, _ in record.headers)


def _read(record: Any) -> DeadLetter:
    told = {name.removeprefix(_PREFIX): value for name, value in record.headers if name.startswith(_PREFIX)}
    return DeadLetter(
        topic=told["topic"].decode(),
        partition=int(told["partition"]),
        offset=int(told["offset"]),
        timestamp=int(told["timestamp"]),
        key=told.get("key"),
        value=None if "no_value" in told else record.value,
        headers=tuple((name, value) for name, value in record.headers if not name.startswith(_PREFIX)),
        error=told["error"].decode(),
        message=told["message"].decode(),
    )


def _all_records(settings: KafkaSettings, topic: str) -> Iterator[Any]:
    """Yield a topic's records up to its end at the time of reading. Raises KafkaError if none come for long."""
    consumer = reader(settings)
    try:
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        consumer.assign(partitions)
        heard = time.monotonic()
        while not all(_at_end(consumer, partition) for partition in partitions):
            for records in consumer.poll(_POLL_MS).values():
                heard = time.monotonic()
                yield from records
            if time.monotonic() - heard > ANSWER_SECONDS:
                raise KafkaTimeoutError(f"no records of {topic}")
    finally:
        consumer.close()


def _at_end(consumer: Any, partition: TopicPartition) -> bool:
    # The high-water mark comes with the first fetch; unlike the answer to ListOffsets it is right on every broker.
    end = consumer.highwater(partition)
    return end is not None and consumer.position(partition) >= end
