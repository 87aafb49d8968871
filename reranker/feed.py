"""The change feed: the compacted topic `published`, a record an item, written after the item's manifest.

It says what changed and where to look, never what an item is: that is in Milvus alone. So a record that is lost, late,
doubled or out of order does no harm; whoever follows also looks for newer manifests by itself, only more rarely.
"""

import logging
import time
from collections.abc import Iterable
from typing import Any

from google.protobuf.json_format import MessageToJson, Parse, ParseError
from kafka import TopicPartition
from kafka.errors import KafkaError

from reranker.errors import BrokerUnavailableError
from reranker.kafka import ANSWER_SECONDS, PUBLISHED, KafkaSettings, follower, producer
from reranker.records import Manifest
from reranker.v1 import events_pb2 as pb

log = logging.getLogger(__name__)

# Records of one batch of manifests go out together.
LINGER_SECONDS = 0.02
# After the last record, how long all of them may take to be acknowledged: a million are sent in a minute or two, and
# kept back by full buffers meanwhile; what is left then is a buffer's worth.
FLUSH_SECONDS = 30.0
# What comes within this time of a first record is taken with it: a delta file four times a second at most, and a worker
# looks for one as often.
GATHER_SECONDS = 0.25
# A delta of so many items is built in a second or two, in 100 MB; the others are in the next.
GATHER_ITEMS = 10_000
# How long the brokers may take to say where the topic ends, before they count as away. Nothing waits for it but the
# look for newer manifests, which then takes the feed's place.
ASK_SECONDS = 2.0


class FeedWriter:
    """Tells what was published. With the brokers away only speed is lost, so nothing is raised: `untold` counts."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: Any = None
        self._away = False
        self.untold = 0

    def tell(self, manifests: Iterable[Manifest]) -> None:
        """Send a record for each manifest, which must be stored by now."""
        for manifest in manifests:
            if self._away:
                self.untold += 1
                continue
            try:
                self._send(manifest)
            except (KafkaError, BrokerUnavailableError) as error:
                self._lost(error)
                # A publish would otherwise wait for a dead broker again with every record.
                self._away = True

    def close(self) -> None:
        """Wait until all records are acknowledged, or have failed."""
        if self._producer is None:
            return
        try:
            self._producer.flush(FLUSH_SECONDS)
        except KafkaError as error:
            log.warning("the change feed: not all records were acknowledged: %s", type(error).__name__)
        self._producer.close(timeout=ANSWER_SECONDS)

    def _send(self, manifest: Manifest) -> None:
        if self._producer is None:
            self._producer = producer(self._settings, LINGER_SECONDS)
        topic = self._settings.topic(PUBLISHED)
        sent = self._producer.send(topic, published_record(manifest), manifest.item_id.encode())
        sent.add_errback(self._lost)

    def _lost(self, error: Exception) -> None:
        if not self.untold:
            log.warning("the change feed cannot be written: %s", str(error) or type(error).__name__)
        self.untold += 1


class Feed:
    """Follows the topic from where it ended when this was made."""

    def __init__(self, settings: KafkaSettings) -> None:
        """Note where the topic ends now. Raises BrokerUnavailableError, also if there is no such topic."""
        self._topic = settings.topic(PUBLISHED)
        self._where = f"topic {self._topic} at {settings.bootstrap}"
        self._consumer = follower(settings, ASK_SECONDS)
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._consumer.close()

    def poll(self, seconds: float) -> dict[str, int]:
        """Return the newest generation of each item that was told within this time; empty if none was."""
        told = self._poll(seconds)
        until = time.monotonic() + GATHER_SECONDS
        while told and len(told) < GATHER_ITEMS and (left := until - time.monotonic()) > 0:
            told |= self._poll(left)
        return told

    def ask(self) -> None:
        """Raise BrokerUnavailableError if the brokers are away: polling them only returns nothing."""
        try:
            self._consumer.end_offsets(self._partitions, timeout_ms=round(ASK_SECONDS * 1000))
        except KafkaError as error:
            raise BrokerUnavailableError(f"{self._where} does not answer: {type(error).__name__}") from error

    def _begin(self) -> None:
        try:
            numbers = self._consumer.partitions_for_topic(self._topic)
            self._partitions = [TopicPartition(self._topic, number) for number in sorted(numbers or ())]
            self._consumer.assign(self._partitions)
            # Some brokers name an end before the real one, which costs reading a few records again.
            self._consumer.seek_to_end(*self._partitions)
            for partition in self._partitions:
                self._consumer.position(partition, timeout_ms=round(ASK_SECONDS * 1000))
        except KafkaError as error:
            raise BrokerUnavailableError(f"{self._where} cannot be read: {type(error).__name__}") from error
        if not self._partitions:
            raise BrokerUnavailableError(f"there is no {self._where}: create it, with cleanup.policy=compact")

    def _poll(self, seconds: float) -> dict[str, int]:
        told: dict[str, int] = {}
        try:
            polled = self._consumer.poll(timeout_ms=round(seconds * 1000))
        except KafkaError as error:
            raise BrokerUnavailableError(f"{self._where} cannot be read: {type(error).__name__}") from error
        for records in polled.values():
            for record in records:
                told |= _read(record)
        return told


def published_record(manifest: Manifest) -> bytes:
    """Return the value of a manifest's record: reranker/v1/events.proto, Published, as protobuf JSON."""
    message = pb.Published(item_id=manifest.item_id, generation=manifest.generation, deleted=manifest.deleted)
    return MessageToJson(message, indent=None).encode()


def _read(record: Any) -> dict[str, int]:
    """Return an item's generation. What cannot be read is passed over: looking for newer manifests finds the item."""
    try:
        message = Parse(record.value or b"", pb.Published(), ignore_unknown_fields=True)
    except (ParseError, UnicodeDecodeError) as error:
        log.warning("partition %d, offset %d of the change feed: %s", record.partition, record.offset, error)
        return {}
    return {message.item_id: message.generation} if message.item_id else {}
