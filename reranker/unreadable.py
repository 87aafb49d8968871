"""Records that the Kafka library cannot decode: a header's name that is no UTF-8, a batch that fails its checksum.

Nothing of such a record can be used; what matters is to get past it, and to say so. The library decodes batch by batch,
so what follows in the same batch is lost with it.
"""

import time
from typing import Any

from kafka import TopicPartition
from kafka.errors import CorruptRecordError, KafkaTimeoutError

from reranker.dead_letters import DeadLetter
from reranker.kafka import ANSWER_SECONDS, KafkaSettings, reader

_POLL_MS = 200


def unreadable(settings: KafkaSettings, where: TopicPartition, offset: int) -> list[DeadLetter]:
    """Return a dead letter, without any words, for each record from `offset` on until one that can be decoded.

    Asks with a consumer of its own. Raises KafkaError, BrokerUnavailableError.
    """
    found = []
    consumer = reader(settings)
    try:
        consumer.assign([where])
        while not _is_readable(consumer, where, offset):
            found.append(_letter(where, offset))
            offset += 1
    finally:
        consumer.close()
    return found


def _is_readable(consumer: Any, where: TopicPartition, offset: int) -> bool:
    """Return whether what a consumer gets at an offset can be decoded, also if that is nothing yet."""
    consumer.seek(where, offset)
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        try:
            if consumer.poll(_POLL_MS, max_records=1):
                return True
        except CorruptRecordError:
            return False
        end = consumer.highwater(where)
        if end is not None and end <= offset:
            return True
    raise KafkaTimeoutError(f"no records of {where.topic}")


def _letter(where: TopicPartition, offset: int) -> DeadLetter:
    message = "the record, or one before it in its batch, cannot be decoded: nothing of it is here"
    now = time.time_ns() // 1_000_000
    return DeadLetter(where.topic, where.partition, offset, now, None, None, (), CorruptRecordError.__name__, message)
