"""Served records on a real broker, and without one."""

from pathlib import Path

import pytest
from kafka import TopicPartition

from reranker.config import ServedLogSettings, ServerSettings
from reranker.errors import BrokerUnavailableError
from reranker.kafka import INTERACTIONS, reader
from reranker.served_log_kafka import KafkaSink
from reranker.served_log_sinks import open_sink
from tests.conftest import free_port
from tests.integration.processes import eventually
from tests.integration.streaming import PARTITIONS, broker

pytestmark = pytest.mark.integration


def settings(bootstrap: str) -> ServerSettings:
    return ServerSettings(kafka_bootstrap=bootstrap, served_log=ServedLogSettings(to="kafka:served"))


def test_records_arrive_in_the_topic(tmp_path: Path) -> None:
    with broker(tmp_path) as running:
        kafka = running.settings()
        sink = KafkaSink(kafka, INTERACTIONS)
        sink.write([b"1", b"2"])
        sink.write([b"3"])
        sink.close()
        consumer = reader(kafka)
        consumer.assign([TopicPartition(kafka.topic(INTERACTIONS), number) for number in range(PARTITIONS)])
        found: list[bytes] = []

        def arrived() -> list[bytes]:
            for records in consumer.poll(timeout_ms=200).values():
                found.extend(record.value for record in records)
            return found

        eventually(arrived, "three records", until=lambda seen: len(seen) == 3)
        consumer.close()
    assert sorted(found) == [b"1", b"2", b"3"]


def test_brokers_that_are_away_are_told_of_at_the_first_write() -> None:
    sink = open_sink(settings(f"127.0.0.1:{free_port()}"))
    with pytest.raises(BrokerUnavailableError, match="no Kafka broker can be used"):
        sink.write([b"1"])
    sink.close()
