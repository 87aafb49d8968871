"""`persona4rec ingest`: opens what ingest needs, runs it until SIGTERM, and closes it."""

import logging
import re
import signal
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from reranker.config import IngestSettings
from reranker.dead_letters import DeadLetters
from reranker.errors import BrokerUnavailableError, ConfigurationError
from reranker.events import TOPICS
from reranker.group_metrics import GroupMetrics
from reranker.health import Health, serve_monitoring
from reranker.histories import WRITE_SECONDS, open_histories, shown_address
from reranker.ingest import Ingest
from reranker.ingest_metrics import IngestMetrics
from reranker.kafka import KafkaSettings, group_consumer

log = logging.getLogger(__name__)

# Dead letters are few and for people to look at; counting them reads their topics through.
DLQ_COUNT_SECONDS = 60.0

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def ingest(settings: IngestSettings, kafka: KafkaSettings) -> None:
    """Take events into the history store until SIGTERM or SIGINT; then finish the batch, commit, leave the group.

    Raises BrokerUnavailableError or HistoryStoreError if Kafka or the store cannot be opened, ConfigurationError for a
    replay that cannot be understood or a port in use. Later outages are waited out.
    """
    replay_from = parse_replay(settings.replay, datetime.now(UTC))
    stop = stop_on_signals()
    metrics, health = IngestMetrics(), Health(patience=max(kafka.session_seconds, WRITE_SECONDS) * 2)
    metrics.healthy.set_function(lambda: 0 if health.told else 1)
    store = open_histories(settings.histories, WRITE_SECONDS)
    letters = DeadLetters(kafka)
    consumer = group_consumer(kafka, settings.group, settings.max_batch)
    try:
        port = serve_monitoring(settings.host, settings.metrics_port, metrics.registry, health)
        _announce(settings, kafka, port)
        watch_dead_letters(kafka, TOPICS, metrics, stop)
        Ingest(consumer, store, letters, metrics, health, kafka, replay_from).run(stop)
    finally:
        consumer.close(timeout_ms=round(settings.stop_seconds * 1000))
        letters.close()
        store.close()
    log.info("stopped")


def parse_replay(text: str, now: datetime) -> int | None:
    """Return where a replay starts: milliseconds since the epoch, 0 for the beginning, None for no replay.

    Takes "committed", "earliest", a duration before now like 90s, 15m, 2h or 7d, or ISO 8601 (UTC without an offset).
    """
    if text in {"committed", "earliest"}:
        return None if text == "committed" else 0
    try:
        if duration := re.fullmatch(r"(\d{1,6})([smhd])", text):
            return _milliseconds(now - timedelta(**{_UNITS[duration[2]]: int(duration[1])}))
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"replay is {text!r}: write committed, earliest, a duration like 2h, or a time like 2026-01-31T12:00"
        ) from None
    return _milliseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _milliseconds(moment: datetime) -> int:
    return max(1, int(moment.timestamp() * 1000))


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def watch_dead_letters(
    kafka: KafkaSettings, topics: Sequence[str], metrics: GroupMetrics, stop: threading.Event
) -> None:
    """Show how many dead letters wait of topics, from a thread of its own, until told to stop."""
    threading.Thread(target=_count_dead_letters, args=(kafka, topics, metrics, stop), name="dlq", daemon=True).start()


def _count_dead_letters(
    kafka: KafkaSettings, topics: Sequence[str], metrics: GroupMetrics, stop: threading.Event
) -> None:
    letters = DeadLetters(kafka)
    while not stop.is_set():
        for topic in topics:
            try:
                metrics.dlq_depth.labels(kafka.topic(topic)).set(letters.count(topic))
            except BrokerUnavailableError as error:
                log.info("dead letters not counted: %s", error)
        stop.wait(DLQ_COUNT_SECONDS)


def _announce(settings: IngestSettings, kafka: KafkaSettings, port: int) -> None:
    where = shown_address(settings.histories)
    log.info("from %s as group %s into %s, replay %s", kafka.bootstrap, settings.group, where, settings.replay)
    log.info("metrics on http://%s:%d/metrics, health on http://%s:%d/health", *(settings.host, port) * 2)
