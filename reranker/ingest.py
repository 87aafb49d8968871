"""Kafka to histories: interactions, aspects and erasures, applied in batches and committed after.

A batch is written whole before its offsets are committed, so what a crash or a rebalance repeats is repeated whole,
and the store's merge makes nothing of it. What cannot be read goes to the DLQ; what cannot be written is written again
until it can be, with the partitions paused: a skipped event would be lost, and a crash would come back to this place.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import MemberState, OffsetAndMetadata

from reranker.batches import Batch, sent_at, sort_out
from reranker.dead_letters import DeadLetter, DeadLetters
from reranker.errors import BrokerUnavailableError, HistoryStoreError
from reranker.events import TOPICS
from reranker.health import Health
from reranker.ingest_metrics import IngestMetrics
from reranker.kafka import KafkaSettings
from reranker.records import HistoryStore

log = logging.getLogger(__name__)

# How long a poll waits for events, which end the wait at once: bounds how late a stop signal is heeded.
POLL_SECONDS = 0.2
# Between attempts at what fails: soon enough for a lock, rare enough for an outage.
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 5.0
# A commit takes 2 ms. One that takes this long is left to the next one, which covers it.
COMMIT_SECONDS = 5.0


class Ingest:
    """One process's share of a consumer group: reads, writes, commits, in one thread."""

    def __init__(
        self,
        consumer: Any,
        store: HistoryStore,
        letters: DeadLetters,
        metrics: IngestMetrics,
        health: Health,
        kafka: KafkaSettings,
        replay_from: int | None = None,
    ) -> None:
        """`replay_from`: milliseconds since the epoch, 0 for the beginning; None: where the group left off."""
        self._consumer = consumer
        self._store = store
        self._letters = letters
        self._metrics = metrics
        self._health = health
        self._kafka = kafka
        self._replay_from = replay_from
        self._replayed: set[TopicPartition] = set()
        self._waiting: list[Any] = []
        self._uncommitted: dict[TopicPartition, OffsetAndMetadata] = {}
        self._read_until: dict[TopicPartition, float] = {}

    def run(self, stop: threading.Event) -> None:
        """Take events in until told to stop. What has been written is then committed, if the broker lets it be."""
        topics = [self._kafka.topic(name) for name in TOPICS]
        self._consumer.subscribe(topics, listener=_CountRebalances(self._metrics))
        while not stop.is_set():
            self._turn(stop)

    def _turn(self, stop: threading.Event) -> None:
        self._poll(POLL_SECONDS)
        self._replay()
        records, self._waiting = self._waiting, []
        if records:
            self._write(records, stop)
        if self._uncommitted:
            self._commit()
        self._show_lag()

    def _poll(self, seconds: float) -> None:
        """Put what the brokers have for us into the waiting list."""
        try:
            polled = self._consumer.poll(timeout_ms=round(seconds * 1000))
        except KafkaError as error:
            # E.g. a topic that we may not read: as bad as a store that is down, and as little reason to skip events.
            self._trouble("reading", error)
            time.sleep(seconds)
            return
        self._health.fine("reading")
        self._health.turned(joined=self._consumer.group_metadata().state == MemberState.STABLE)
        for records in polled.values():
            self._waiting += records

    def _write(self, records: list[Any], stop: threading.Event) -> None:
        """Write records until it succeeds; told to stop meanwhile, leave them to be read again."""
        started = time.perf_counter()
        batch = sort_out(records, self._kafka.topic_prefix)
        for delay in _delays():
            try:
                self._apply(batch)
                break
            except (HistoryStoreError, BrokerUnavailableError) as error:
                self._trouble("writing", error)
            self._hold(delay, stop)
            if stop.is_set():
                log.warning("stopping with %d events unwritten: they will be read again", len(records))
                return
        self._release()
        self._uncommitted |= {_partition(record): _after(record) for record in records}
        self._count(records, batch, time.perf_counter() - started)

    def _apply(self, batch: Batch) -> None:
        """Do all that a batch asks for; done twice, it is as if done once."""
        if batch.dead:
            self._letters.put([letter for letter in batch.dead if not self._erased(letter)])
        if batch.fences:
            self._store.erase(batch.fences)
            self._forget_letters(set(batch.fences))
        if batch.updates:
            self._store.merge(batch.updates)

    def _erased(self, letter: DeadLetter) -> bool:
        """Return whether a letter is of a user, by its key, who was erased after it was sent."""
        until = self._store.erased_until(_user_of(letter)) if letter.key else None
        return until is not None and letter.timestamp <= until

    def _forget_letters(self, user_ids: set[str]) -> None:
        self._letters.discard(
            [
                letter
                for letter in self._letters.pending(TOPICS)
                if letter.key and _user_of(letter) in user_ids and self._erased(letter)
            ]
        )

    def _hold(self, seconds: float, stop: threading.Event) -> None:
        """Wait with every partition paused: polling keeps our place in the group, and takes part in its rebalances."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not stop.is_set():
            self._consumer.pause(*self._consumer.assignment())
            self._poll(min(left, POLL_SECONDS))

    def _release(self) -> None:
        self._consumer.resume(*self._consumer.paused())
        self._health.fine("writing")

    def _commit(self) -> None:
        """Commit what has been written. If that fails, a later turn does it, or the partitions' next owner."""
        ours = self._consumer.assignment()
        self._uncommitted = {where: offset for where, offset in self._uncommitted.items() if where in ours}
        try:
            self._consumer.commit(self._uncommitted, timeout_ms=round(COMMIT_SECONDS * 1000))
        except KafkaError as error:
            self._metrics.commit_failures.inc()
            self._trouble("committing", error)
        else:
            self._health.fine("committing")
            self._uncommitted = {}

    def _trouble(self, doing: str, error: Exception) -> None:
        if self._health.trouble(doing, str(error) or type(error).__name__):
            log.warning("events wait, trouble %s: %s", doing, error)
        self._metrics.retries.labels(type(error).__name__).inc()

    def _replay(self) -> None:
        """Move partitions that are new to this process to where the replay begins."""
        if self._replay_from is None:
            return
        new = self._consumer.assignment() - self._replayed
        self._replayed |= new
        if new and self._replay_from == 0:
            self._consumer.seek_to_beginning(*new)
        elif new:
            found = self._consumer.offsets_for_times(dict.fromkeys(new, self._replay_from))
            for partition, start in found.items():
                # None: nothing is as new as that, so there is nothing to replay.
                if start is not None:
                    self._consumer.seek(partition, start.offset)

    def _show_lag(self) -> None:
        now = time.time()
        for where in self._consumer.assignment():
            # The high-water mark comes with each fetch; asking for the end costs a request, and some brokers err.
            end, position = self._consumer.highwater(where), self._consumer.position(where, timeout_ms=0)
            if end is None or position is None:
                continue
            behind = end - position
            self._metrics.lag_events.labels(*where).set(behind)
            self._metrics.lag_seconds.labels(*where).set(now - self._read_until.get(where, now) if behind else 0)

    def _count(self, records: list[Any], batch: Batch, seconds: float) -> None:
        now = time.time()
        self._metrics.batch_seconds.observe(seconds)
        self._metrics.batch_events.observe(len(records))
        freshness = {topic: self._metrics.freshness.labels(topic) for topic in {record.topic for record in records}}
        for record in records:
            freshness[record.topic].observe(max(0.0, now - sent_at(record) / 1000))
        self._read_until |= {_partition(record): sent_at(record) / 1000 for record in records}
        dead = Counter(letter.topic for letter in batch.dead)
        for topic, count in Counter(record.topic for record in records).items():
            self._metrics.events.labels(topic, "applied").inc(count - dead[topic])
            self._metrics.events.labels(topic, "dead").inc(dead[topic])
            self._metrics.dated_ahead.labels(topic).inc(batch.dated_ahead[topic])


class _CountRebalances(ConsumerRebalanceListener):  # type: ignore[misc]
    """Called on the library's own thread. What is written is committed at once, so there is nothing to save here."""

    def __init__(self, metrics: IngestMetrics) -> None:
        self._metrics = metrics

    def on_partitions_assigned(self, assigned: Any) -> None:
        self._tell("assigned", assigned)

    def on_partitions_revoked(self, revoked: Any) -> None:
        self._tell("revoked", revoked)

    def on_partitions_lost(self, lost: Any) -> None:
        self._tell("lost", lost)

    def _tell(self, what: str, partitions: Any) -> None:
        self._metrics.rebalances.labels(what).inc()
        self._metrics.forget_lag()
        log.info("%d partitions %s", len(partitions), what)


def _delays() -> Iterator[float]:
    delay = FIRST_RETRY_SECONDS
    while True:
        yield delay
        delay = min(2 * delay, LAST_RETRY_SECONDS)


def _partition(record: Any) -> TopicPartition:
    return TopicPartition(record.topic, record.partition)


def _after(record: Any) -> OffsetAndMetadata:
    return OffsetAndMetadata(record.offset + 1, "", -1)


def _user_of(letter: DeadLetter) -> str:
    return (letter.key or b"").decode(errors="replace")
