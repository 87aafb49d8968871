"""Served records to a Kafka topic."""

from collections.abc import Sequence

from reranker.kafka import KafkaSettings
from reranker.sending import Message, Sender


class KafkaSink:
    """Records of a topic, without a key: order says nothing. Brokers that are away keep no server from starting."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._topic = settings.topic(topic)
        self._sender = Sender(settings)

    def write(self, lines: Sequence[bytes]) -> None:
        """Send, and wait for the brokers' word. Raises KafkaError and BrokerUnavailableError."""
        self._sender.send(Message(self._topic, line) for line in lines)

    def close(self) -> None:
        self._sender.close()
