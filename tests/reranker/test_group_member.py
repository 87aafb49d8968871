"""A member of a consumer group whose brokers and store fail; tests/integration/test_ingest.py has it with real ones."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import KafkaTimeoutError
from kafka.structs import MemberState

from reranker.errors import HistoryStoreError
from reranker.group_member import GroupMember, Taken
from reranker.group_metrics import GroupMetrics
from reranker.health import Health
from reranker.kafka import KafkaSettings

WHERE = TopicPartition("interactions", 0)
START, COMMITTED, END = 5, 9, 12
HOUR = 3600


@dataclass
class Consumer:
    """Gives one batch a poll; after the last one it tells to stop. Questions fail as often as is said."""

    batches: list[list[Any]]
    stop: threading.Event
    told: Callable[[], str]
    failures: Counter[str] = field(default_factory=Counter)
    seen: list[str] = field(default_factory=list)
    """The health before each poll."""
    sought: list[int] = field(default_factory=list)

    def poll(self, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        self.seen.append(self.told())
        if not self.batches:
            self.stop.set()
            return {}
        return {WHERE: self.batches.pop(0)}

    def offsets_for_times(self, times: dict[TopicPartition, int], timeout_ms: int | None = None) -> dict[Any, Any]:
        self._answer("offsets_for_times")
        return {where: SimpleNamespace(offset=START) for where in times}

    def committed(self, where: TopicPartition, timeout_ms: int | None = None) -> int:
        self._answer("committed")
        return COMMITTED

    def position(self, where: TopicPartition, timeout_ms: int | None = None) -> int:
        self._answer("position")
        return COMMITTED

    def highwater(self, where: TopicPartition) -> int:
        return END

    def seek(self, where: TopicPartition, offset: int) -> None:
        self.sought.append(offset)

    def assignment(self) -> set[TopicPartition]:
        return {WHERE}

    def paused(self) -> set[TopicPartition]:
        return set()

    def group_metadata(self) -> Any:
        return SimpleNamespace(state=MemberState.STABLE)

    def subscribe(self, topics: Any, listener: Any) -> None:
        """Do nothing."""

    def resume(self, *partitions: Any) -> None:
        """Do nothing."""

    def commit(self, offsets: Any, timeout_ms: int) -> None:
        """Do nothing."""

    def _answer(self, question: str) -> None:
        if self.failures[question]:
            self.failures[question] -= 1
            raise KafkaTimeoutError("no answer")


class Member(GroupMember):
    """Fails once with each batch; notes what lag is shown by then."""

    topics = ("interactions",)
    passing = (HistoryStoreError,)

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.tried: list[Any] = []
        self.lags: list[tuple[float | None, float | None]] = []

    def take(self, records: list[Any]) -> Taken:
        if self.tried != records:
            self.tried = records
            raise HistoryStoreError("away")
        self.lags.append((self.lag("events"), self.lag("seconds")))
        return Taken(Counter(), Counter())

    def lag(self, unit: str) -> float | None:
        labels = {"topic": WHERE.topic, "partition": str(WHERE.partition)}
        return self._metrics.registry.get_sample_value(f"ingest_lag_{unit}", labels)


def made(batches: list[list[Any]], replay_from: int | None = None, **failures: int) -> tuple[Member, Consumer]:
    health = Health(patience=10)
    consumer = Consumer(batches, threading.Event(), lambda: health.told, Counter(failures))
    return Member(consumer, None, GroupMetrics("ingest"), health, KafkaSettings(), replay_from), consumer


def record(offset: int, seconds_ago: int) -> Any:
    sent = int((time.time() - seconds_ago) * 1000)
    return ConsumerRecord(*WHERE, -1, offset, sent, 0, b"ann", b"{}", [], None, 3, 0, 0)


@pytest.mark.parametrize("question", ["offsets_for_times", "committed"])
def test_a_replay_that_brokers_leave_unanswered_is_told_and_made_by_a_later_turn(question: str) -> None:
    member, consumer = made([[], [], []], replay_from=1, **{question: 1})
    member.run(consumer.stop)
    assert consumer.sought == [START], "once, and to what is older of the two"
    assert consumer.seen[1:] == ["replaying: KafkaTimeoutError: no answer", "", ""]


def test_lag_is_shown_while_writes_fail_and_what_is_at_hand_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reranker.group_member.FIRST_RETRY_SECONDS", 0.0)
    member, consumer = made([[record(7, 2 * HOUR), record(8, HOUR)]])
    member.run(consumer.stop)
    ((events, seconds),) = member.lags
    assert events == END - 7
    assert seconds is not None
    assert seconds >= 2 * HOUR
    assert member.lag("events") == END - COMMITTED
    left = member.lag("seconds")
    assert left is not None
    assert HOUR <= left < 2 * HOUR


def test_a_place_that_brokers_do_not_tell_ends_nothing() -> None:
    member, consumer = made([[], []], position=1)
    member.run(consumer.stop)
    assert member.lag("events") == END - COMMITTED
