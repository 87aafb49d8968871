"""One process's share of a consumer group: polls, has its records taken in, and commits after; in one thread.

A batch is taken in whole before its offsets are committed, so what a crash or a rebalance repeats is repeated whole,
and whoever takes it in makes nothing of the repetition. What fails for a while is tried again until it succeeds, with
the partitions paused: a skipped event would be lost, and a crash would come back to this place.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, ClassVar, NamedTuple

from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.errors import CorruptRecordError, KafkaError
from kafka.structs import MemberState, OffsetAndMetadata

from reranker.batches import sent_at
from reranker.dead_letters import DeadLetters
from reranker.errors import BrokerUnavailableError
from reranker.group_metrics import GroupMetrics
from reranker.health import Health
from reranker.kafka import KafkaSettings
from reranker.unreadable import unreadable

log = logging.getLogger(__name__)

# How long a poll waits for events, which end the wait at once: bounds how late a stop signal is heeded.
POLL_SECONDS = 0.2
# Between attempts at what fails: soon enough for a lock, rare enough for an outage.
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 5.0
# A commit takes 2 ms. One that takes this long is left to the next one, which covers it.
COMMIT_SECONDS = 5.0
# Asking where a replay begins takes as little. What takes this long is asked again by the next turn.
ASK_SECONDS = 5.0


class Taken(NamedTuple):
    """What became of a batch, counted by the brokers' topic."""

    dead: Counter[str]
    """Records that went to the DLQ."""
    dated_ahead: Counter[str]
    """Events dated after they were sent."""


class GroupMember(ABC):
    """Reads topics as a member of a consumer group. Derive it, and say what to do with records."""

    topics: ClassVar[tuple[str, ...]]
    """By the contract's names."""
    passing: ClassVar[tuple[type[Exception], ...]]
    """What `take` raises of faults that pass."""

    def __init__(
        self,
        consumer: Any,
        letters: DeadLetters,
        metrics: GroupMetrics,
        health: Health,
        kafka: KafkaSettings,
        replay_from: int | None = None,
    ) -> None:
        """`replay_from`: milliseconds since the epoch, 0 for the beginning; None: where the group left off."""
        self._consumer = consumer
        self._letters = letters
        self._metrics = metrics
        self._health = health
        self._kafka = kafka
        self._replay_from = replay_from
        self._replayed: set[TopicPartition] = set()
        self._waiting: list[Any] = []
        self._uncommitted: dict[TopicPartition, OffsetAndMetadata] = {}
        self._read_until: dict[TopicPartition, float] = {}
        self._undecodable = False

    @abstractmethod
    def take(self, records: list[Any]) -> Taken:
        """Do all that consumed records ask for, durably; done twice, it is as if done once.

        Raises one of `passing` to be called with the same records again, a little later.
        """

    def between(self) -> None:  # noqa: B027 - for those that have anything to do then
        """Do what is due between two batches, whether there are events or not. Raises nothing that is `passing`."""

    def run(self, stop: threading.Event) -> None:
        """Take events in until told to stop. What has been taken is then committed, if the broker lets it be."""
        topics = [self._kafka.topic(name) for name in self.topics]
        self._consumer.subscribe(topics, listener=_CountRebalances(self._metrics))
        while not stop.is_set():
            self._turn(stop)

    def keep_place(self) -> None:
        """Take part in the group in the midst of long work; nothing is read."""
        self._consumer.pause(*self._consumer.assignment())
        self._poll(0)

    def _turn(self, stop: threading.Event) -> None:
        self._consumer.resume(*self._consumer.paused())
        self._poll(POLL_SECONDS)
        self._replay()
        records, self._waiting = self._waiting, []
        if records:
            self._write(records, stop)
        if self._uncommitted:
            self._commit()
        self.between()
        self._show_lag()

    def _poll(self, seconds: float) -> None:
        """Put what the brokers have for us into the waiting list."""
        try:
            if self._undecodable:
                # Before anything else is read: another poll of kafka-python 3.0.12 would never return.
                self._pass_unreadable()
            polled = self._consumer.poll(timeout_ms=round(seconds * 1000))
        except (KafkaError, BrokerUnavailableError) as error:
            # E.g. a topic that we may not read: as bad as a store that is down, and as little reason to skip events.
            self._undecodable |= isinstance(error, CorruptRecordError)
            self._trouble("reading", error)
            time.sleep(seconds)
            return
        self._health.fine("reading")
        self._health.turned(joined=self._consumer.group_metadata().state == MemberState.STABLE)
        for records in polled.values():
            self._waiting += records

    def _pass_unreadable(self) -> None:
        """Move on from records that cannot be decoded, in whichever partition they are; each leaves a dead letter."""
        for where in self._consumer.assignment():
            offset = self._consumer.position(where)
            letters = unreadable(self._kafka, where, offset)
            if letters:
                self._letters.put(letters)
                self._consumer.seek(where, offset + len(letters))
                self._metrics.events.labels(where.topic, "dead").inc(len(letters))
                log.warning("%d records of %s/%d cannot be decoded, from offset %d", len(letters), *where, offset)
                self._undecodable = False
        if self._undecodable:
            raise BrokerUnavailableError("records could not be decoded, and not which: start this process anew")

    def _write(self, records: list[Any], stop: threading.Event) -> None:
        """Have records taken in until it succeeds; told to stop meanwhile, leave them to be read again."""
        started = time.perf_counter()
        for delay in delays():
            try:
                taken = self.take(records)
                break
            except self.passing as error:
                self._trouble("writing", error)
            self._hold(delay, stop)
            self._show_lag(records)
            if stop.is_set():
                log.warning("stopping with %d events unwritten: they will be read again", len(records))
                return
        self._health.fine("writing")
        self._uncommitted |= {_partition(record): _after(record) for record in records}
        self._count(records, taken, time.perf_counter() - started)

    def _hold(self, seconds: float, stop: threading.Event) -> None:
        """Wait with every partition paused: polling keeps our place in the group, and takes part in its rebalances."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not stop.is_set():
            self._consumer.pause(*self._consumer.assignment())
            self._poll(min(left, POLL_SECONDS))

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
        """Move partitions that are new to this process to where the replay begins. If that fails, a later turn does."""
        if self._replay_from is None:
            return
        new = self._consumer.assignment() - self._replayed
        try:
            if new:
                self._go_back(new, self._replay_from)
        except (KafkaError, ValueError) as error:
            # ValueError: a partition was taken from us meanwhile.
            self._trouble("replaying", error)
        else:
            self._health.fine("replaying")

    def _go_back(self, partitions: set[TopicPartition], start: int) -> None:
        """Move partitions to `start`, milliseconds since the epoch, 0: the beginning. Raises KafkaError, ValueError."""
        if start == 0:
            self._consumer.seek_to_beginning(*partitions)
        else:
            for where, offset in self._offsets(partitions, start).items():
                self._consumer.seek(where, offset)
        # Only now: what was not moved is still to be replayed.
        self._replayed |= partitions

    def _offsets(self, partitions: set[TopicPartition], start: int) -> dict[TopicPartition, int]:
        """Return where partitions are read from that have anything as new as `start`. Raises KafkaError."""
        wait_ms = round(ASK_SECONDS * 1000)
        offsets = {}
        found = self._consumer.offsets_for_times(dict.fromkeys(partitions, start), timeout_ms=wait_ms)
        for where, first in found.items():
            if first is not None:
                committed = self._consumer.committed(where, timeout_ms=wait_ms)
                # A replay goes back; what the group has not read yet is not passed over for it.
                offsets[where] = first.offset if committed is None else min(first.offset, committed)
        return offsets

    def _show_lag(self, unwritten: Sequence[Any] = ()) -> None:
        """Show how far behind we are; what was read and is `unwritten` is still to be done."""
        first = {_partition(record): record for record in reversed([*unwritten, *self._waiting])}
        for where in self._consumer.assignment():
            # What fails here fails the next poll, too, which tells of it.
            with suppress(KafkaError):
                self._show_lag_of(where, first.get(where))

    def _show_lag_of(self, where: TopicPartition, held: Any) -> None:
        """`held`: the partition's first record that is not written yet, if one is at hand. Raises KafkaError."""
        # The high-water mark comes with each fetch; asking for the end costs a request, and some brokers err.
        end, position = self._consumer.highwater(where), self._consumer.position(where, timeout_ms=0)
        if end is None or position is None:
            return
        now = time.time()
        behind = end - (held.offset if held else position)
        since = sent_at(held) / 1000 if held else self._read_until.get(where, now)
        self._metrics.lag_events.labels(*where).set(behind)
        self._metrics.lag_seconds.labels(*where).set(now - since if behind else 0)

    def _count(self, records: list[Any], taken: Taken, seconds: float) -> None:
        now = time.time()
        self._metrics.batch_seconds.observe(seconds)
        self._metrics.batch_events.observe(len(records))
        freshness = {topic: self._metrics.freshness.labels(topic) for topic in {record.topic for record in records}}
        for record in records:
            freshness[record.topic].observe(max(0.0, now - sent_at(record) / 1000))
        self._read_until |= {_partition(record): sent_at(record) / 1000 for record in records}
        for topic, count in Counter(record.topic for record in records).items():
            self._metrics.events.labels(topic, "applied").inc(count - taken.dead[topic])
            self._metrics.events.labels(topic, "dead").inc(taken.dead[topic])
            self._metrics.dated_ahead.labels(topic).inc(taken.dated_ahead[topic])


class _CountRebalances(ConsumerRebalanceListener):  # type: ignore[misc]
    """Called on the library's own thread. What is written is committed at once, so there is nothing to save here."""

    def __init__(self, metrics: GroupMetrics) -> None:
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


def delays() -> Iterator[float]:
    """Yield how many seconds to wait before each further attempt."""
    delay = FIRST_RETRY_SECONDS
    while True:
        yield delay
        delay = min(2 * delay, LAST_RETRY_SECONDS)


def _partition(record: Any) -> TopicPartition:
    return TopicPartition(record.topic, record.partition)


def _after(record: Any) -> OffsetAndMetadata:
    return OffsetAndMetadata(record.offset + 1, "", -1)
