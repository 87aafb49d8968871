"""Kafka to histories: interactions, aspects and erasures, applied in batches and committed after.

The store's merge makes nothing of what a crash or a rebalance repeats. What cannot be read goes to the DLQ; what cannot
be written is written again until it can be (`reranker.group_member`).
"""

from collections import Counter
from typing import Any

from reranker.batches import Batch, sort_out
from reranker.dead_letters import DeadLetter, DeadLetters
from reranker.erased_letters import is_erased
from reranker.errors import BrokerUnavailableError, HistoryStoreError
from reranker.events import TOPICS
from reranker.group_member import GroupMember, Taken
from reranker.health import Health
from reranker.ingest_metrics import IngestMetrics
from reranker.kafka import KafkaSettings
from reranker.records import HistoryStore


class Ingest(GroupMember):
    """Writes its share of the events into the history store."""

    topics = TOPICS
    passing = HistoryStoreError, BrokerUnavailableError

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
        super().__init__(consumer, letters, metrics, health, kafka, replay_from)
        self._store = store

    def take(self, records: list[Any]) -> Taken:
        batch = sort_out(records, self._kafka.topic_prefix)
        self._apply(batch)
        return Taken(Counter(letter.topic for letter in batch.dead), batch.dated_ahead)

    def _apply(self, batch: Batch) -> None:
        if batch.dead:
            self._letters.put([letter for letter in batch.dead if not self._erased(letter)])
        if batch.fences:
            self._store.erase(batch.fences)
            self._letters.discard(list(self._letters.pending(TOPICS, self._erased)))
        if batch.updates:
            self._store.merge(batch.updates)

    def _erased(self, letter: DeadLetter) -> bool:
        return is_erased(letter, self._store.erased_until, self._kafka.topic_prefix)
