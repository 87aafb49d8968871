"""The parts of ingest that need no broker; tests/integration/test_ingest.py has the whole."""

from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import pytest
from kafka.consumer.fetcher import ConsumerRecord
from prometheus_client import CollectorRegistry, Counter

from reranker.batches import sort_out
from reranker.errors import ConfigurationError
from reranker.health import Health, monitoring_app
from reranker.ingest_process import parse_replay

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
MS = 1_769_860_800_000


def record(topic: str, value: bytes | None, offset: int = 0) -> Any:
    return ConsumerRecord(topic, 0, -1, offset, MS, 0, b"key", value, [("h", b"v")], None, 3, 0, 0)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("committed", None),
        ("earliest", 0),
        ("2h", MS - 7_200_000),
        ("90s", MS - 90_000),
        ("7d", MS - 7 * 86_400_000),
        ("2026-01-31T12:00", MS),
        ("2026-01-31T13:00+01:00", MS),
    ],
)
def test_a_replay_starts_where_it_says(text: str, start: int | None) -> None:
    assert parse_replay(text, NOW) == start


@pytest.mark.parametrize("text", ["", "yesterday", "2", "-2h", "2 h", "h", "2026-13-01", "99999999999999d", "999999d"])
def test_a_replay_that_cannot_be_understood_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="replay is"):
        parse_replay(text, NOW)


def test_records_are_sorted_by_what_they_ask_for() -> None:
    own = "prefix.interactions"
    batch = sort_out(
        [
            record(own, b'{"eventId":"e1","userId":"ann","itemId":"i","eventTime":1}'),
            record(own, b"rubbish", offset=7),
            record(own, b'{"eventId":"e2","userId":"ann","itemId":"i","eventTime":%d}' % (MS + 1)),
            record("prefix.erasures", b'{"eventId":"x","userId":"bob","eventTime":5}'),
            record("prefix.erasures", b'{"eventId":"x","userId":"bob","eventTime":3}'),
        ],
        "prefix.",
    )
    assert [event.event_id for event in batch.updates["ann"]] == ["e1", "e2"]
    assert batch.fences == {"bob": 5}
    assert [(letter.letter_id, letter.value) for letter in batch.dead] == [("prefix.interactions/0/7", b"rubbish")]
    assert batch.dated_ahead == {own: 1}


def test_a_header_without_a_value_is_no_reason_to_lose_the_letter() -> None:
    """Kafka allows one; our producer, which has to write the dead letter, does not."""
    odd = record("interactions", b"rubbish")._replace(headers=[("trace", None), ("h", b"v")])
    (letter,) = sort_out([odd], "").dead
    assert letter.headers == (("trace", b""), ("h", b"v"))


def test_health_is_red_until_joined_and_while_something_fails_and_when_nothing_moves() -> None:
    now = 0.0
    health = Health(patience=10, clock=lambda: now)
    assert "not a member" in health.told
    health.turned(joined=True)
    assert health.told == ""
    assert health.trouble("writing", "disk full")
    assert not health.trouble("writing", "disk full")
    assert health.told == "writing: disk full"
    health.fine("writing")
    now = 9
    health.turned(joined=False)
    assert health.told == ""
    now = 11
    health.turned(joined=False)
    assert "out of the consumer group for 11 s" in health.told
    now = 22
    assert "busy or hung for 11 s" in health.told


@pytest.mark.parametrize(
    ("path", "joined", "status", "text"),
    [
        ("/health", True, "200 OK", "ok"),
        ("/health", False, "503 Service Unavailable", "not a member"),
        ("/metrics", False, "200 OK", "seen_total 1.0"),
    ],
)
def test_the_port_tells_health_and_metrics(path: str, joined: bool, status: str, text: str) -> None:
    registry, health = CollectorRegistry(), Health(patience=10)
    Counter("seen", "Things seen.", registry=registry).inc()
    health.turned(joined)
    answered: list[str] = []
    environ = {"PATH_INFO": path, "REQUEST_METHOD": "GET", "QUERY_STRING": "", "wsgi.input": BytesIO()}
    body = monitoring_app(registry, health)(environ, lambda status, headers: answered.append(status))
    assert text in b"".join(body).decode()
    assert answered == [status]
