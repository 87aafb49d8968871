"""Kafka to personas: reviews, items and erasures, taken into the worker's state; from there to histories and index.

A batch is in the state, its reviews' aspects extracted and told to histories, before its offsets are committed; what it
asks for later (a summary, personas, the index) is noted in the state with it. So a death at any moment loses nothing,
and what is repeated finds its reply in the cache, its row in the state, its manifest in the index.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.json_format import MessageToJson
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from offline.aspects import AspectsStage
from offline.calls import review_tag, user_tag
from offline.encoder import Embedder
from offline.errors import DatasetError, LlmError, WorkerStateError
from offline.evidence import joined, piece
from offline.reasoning import Reasoning
from offline.records import ReviewAspects
from offline.refresh import Refresh
from offline.stages import Made
from offline.text import interaction_text, summary_of
from offline.worker_events import TOPICS, Changes, Erasure, Origin, ReviewChange, sort_out
from offline.worker_metrics import WorkerMetrics
from offline.worker_settings import WorkerSettings
from offline.worker_state import KnownItem, WorkerState
from reranker.dead_letters import DeadLetter, DeadLetters
from reranker.erased_letters import is_erased
from reranker.errors import BrokerUnavailableError, IndexBusyError, IndexUnavailableError, Persona4RecError
from reranker.group_member import GroupMember, Taken, delays
from reranker.health import Health
from reranker.kafka import ASPECTS, KafkaSettings
from reranker.records import Vector
from reranker.sending import Message, Sender
from reranker.v1 import events_pb2 as pb

log = logging.getLogger(__name__)

# Aspects of one batch go out together.
LINGER_SECONDS = 0.02

PASSING: tuple[type[Persona4RecError], ...] = (
    WorkerStateError, LlmError, DatasetError, BrokerUnavailableError, IndexUnavailableError, IndexBusyError,
)  # fmt: skip
"""What others may mend while the worker waits: an endpoint, a broker, Milvus, a disk, an editor's file."""


class Worker(GroupMember):
    """Its share of the reviews, items and erasures."""

    topics = TOPICS
    passing = PASSING

    def __init__(
        self,
        consumer: Any,
        state: WorkerState,
        reasoning: Reasoning,
        aspects: AspectsStage,
        refresh: Refresh,
        embedder: Embedder,
        letters: DeadLetters,
        metrics: WorkerMetrics,
        health: Health,
        kafka: KafkaSettings,
        settings: WorkerSettings,
        replay_from: int | None = None,
    ) -> None:
        """`replay_from`: milliseconds since the epoch, 0 for the beginning; None: where the group left off."""
        super().__init__(consumer, letters, metrics, health, kafka, replay_from)
        self._state = state
        self._reasoning = reasoning
        self._stage = aspects
        self._refresh = refresh
        self._embedder = embedder
        self._counts = metrics
        self._settings = settings
        self._sender = Sender(kafka, LINGER_SECONDS)
        self._delays = delays()
        self._wait_until = 0.0
        reasoning.meanwhile = self.keep_place

    def close(self) -> None:
        self._sender.close()

    def take(self, records: list[Any]) -> Taken:
        # What an earlier batch asked for comes first, also after a crash between the two.
        self.between()
        changes = sort_out(records, self._kafka.topic_prefix)
        self._letters.put([letter for letter in changes.dead if not self._is_erased(letter)])
        lost = self._state.apply(changes.found, self._settings.quiet, _now())
        self._forget([change for change, _ in changes.found if isinstance(change, Erasure)])
        # Nobody is shown words that rest on what is gone, however long the next ones take to be written.
        self._refresh.publish(lost)
        self._extract(changes)
        return Taken(Counter(letter.topic for letter in changes.dead), changes.dated_ahead)

    def between(self) -> None:
        """Refresh what is due of our partitions. What fails is tried again later, while events are taken in."""
        if time.monotonic() < self._wait_until:
            return
        try:
            # First, or it would stand still for as long as refreshing fails.
            self._counts.due.set(self._state.count_due())
            due = self._state.due(self._ours(), _now(), self._settings.refresh_items)
            if due:
                self._refresh.refresh(due, self._tell)
        except self.passing as error:
            self._trouble("refreshing", error)
            self._wait_until = time.monotonic() + next(self._delays)
        else:
            self._health.fine("refreshing")
            self._delays = delays()

    def _ours(self) -> frozenset[Origin]:
        assigned: Iterable[TopicPartition] = self._consumer.assignment()
        return frozenset(Origin(where.topic, where.partition) for where in assigned)

    # ---- reviews -----------------------------------------------------------------------------------------------------

    def _extract(self, changes: Changes) -> None:
        """Extract the aspects of the batch's reviews that have none yet, and tell histories of them."""
        sent = [change.review for change, _ in changes.found if isinstance(change, ReviewChange)]
        reviews = self._state.without_aspects({review.review_id for review in sent})
        made = self._reasoning.made(self._stage, reviews)
        for review, one, vector in zip(reviews, made, self._embedded(made), strict=True):
            slots = one.record.aspects if isinstance(one.record, ReviewAspects) else None
            if not self._state.keep_aspects(review, slots, vector):
                # Changed, or erased by another process, while the LLM was asked: the reply was made of its words.
                self._reasoning.forget(review_tag(review.review_id))
            self._counts.aspects.labels("found" if slots else one.problems[0].reason).inc()
        self._tell(list(dict.fromkeys(review.item_id for review in sent)))

    def _embedded(self, made: Sequence[Made]) -> list[Vector | None]:
        """Return the vectors of what reviews say, as they are told apart by; None where one says nothing."""
        said = [one.record.aspects if isinstance(one.record, ReviewAspects) else None for one in made]
        texts = [piece("", joined(slots), "", None, critical=False).text for slots in said if slots]
        vectors = iter(self._refresh.encoder.encode(texts))
        return [next(vectors) if slots else None for slots in said]

    def _tell(self, item_ids: Sequence[str]) -> None:
        """Send the aspects of items that are known and summarised, if nobody was told of them yet."""
        for item_id in item_ids:
            known = self._state.item(item_id)
            if known is None or known.deleted or known.summary is None:
                continue
            if unsent := self._state.unsent(item_id):
                self._send(known, unsent)
                self._state.mark_sent(unsent)
                self._counts.aspects_sent.inc(len(unsent))

    def _send(self, known: KnownItem, unsent: Sequence[ReviewAspects]) -> None:
        summary = summary_of(known.item, known.summary)
        texts = [interaction_text(known.item, summary, one.aspects) for one in unsent]
        vectors = self._embedder.interactions(texts)
        topic = self._kafka.topic(ASPECTS)
        try:
            self._sender.send(
                Message(topic, _record(one, vector, self._embedder.space), str(one.user_id).encode())
                for one, vector in zip(unsent, vectors, strict=True)
            )
        except KafkaError as error:
            raise BrokerUnavailableError(f"cannot write to {topic}: {type(error).__name__}") from error

    # ---- erasure -----------------------------------------------------------------------------------------------------

    def _forget(self, erasures: Sequence[Erasure]) -> None:
        if not erasures:
            return
        for erasure in erasures:
            self._reasoning.forget(user_tag(erasure.user_id))
        self._state.forget_pages()
        self._letters.discard(list(self._letters.pending(TOPICS, self._is_erased)))

    def _is_erased(self, letter: DeadLetter) -> bool:
        return is_erased(letter, self._state.erased_until, self._kafka.topic_prefix)


def _record(found: ReviewAspects, vector: Vector, space: str) -> bytes:
    """Return the value of a record: reranker/v1/events.proto, Aspects, as protobuf JSON. Its event is the review."""
    message = pb.Aspects(
        event_id=found.review_id,
        user_id=found.user_id or "",
        item_id=found.item_id,
        event_time=found.timestamp or 0,
        aspects={slot: said for slot, said in found.aspects.items() if said},
        vector=vector.tolist(),
        embedding_space=space,
        rating=found.rating,
    )
    return MessageToJson(message, indent=None, ensure_ascii=False).encode()


def _now() -> int:
    return time.time_ns() // 1_000_000
