"""Records sent to Kafka by processes that live for long: each send waits for the brokers' word, or raises."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from kafka.errors import KafkaError, MessageSizeTooLargeError

from reranker.kafka import ANSWER_SECONDS, KafkaSettings, producer

Headers = tuple[tuple[str, bytes], ...]


class Message(NamedTuple):
    """A record to be sent; `topic` is the brokers' name."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    timestamp: int | None = None
    """Milliseconds since the epoch; None: now."""


class Sender:
    """A producer that is made at the first send, and anew after one that failed.

    kafka-python 3.0.12 never sends again to a partition whose batch expired while it was being retried, as happens when
    a broker stands still: every further send of that producer times out.
    """

    def __init__(self, settings: KafkaSettings, linger_seconds: float = 0.0) -> None:
        """`linger_seconds` is how long a record may wait for others to be sent with it."""
        self._settings = settings
        self._linger_seconds = linger_seconds
        self._made: Any = None

    def send(self, messages: Iterable[Message]) -> None:
        """Send, and return when all replicas have acknowledged all. Raises KafkaError, BrokerUnavailableError."""
        try:
            sent = [self._producer.send(m.topic, m.value, m.key, list(m.headers), None, m.timestamp) for m in messages]
            for one in sent:
                one.get(ANSWER_SECONDS)
        except MessageSizeTooLargeError:
            raise
        except KafkaError:
            self._close(0.0)
            raise

    def close(self) -> None:
        self._close(ANSWER_SECONDS)

    def _close(self, seconds: float) -> None:
        made, self._made = self._made, None
        if made is not None:
            with suppress(KafkaError):
                made.close(timeout=seconds)

    @property
    def _producer(self) -> Any:
        if self._made is None:
            self._made = producer(self._settings, self._linger_seconds)
        return self._made
