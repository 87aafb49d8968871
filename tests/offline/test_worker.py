"""The parts of the worker that need no broker; tests/integration/test_worker.py has the whole."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition

from offline.reasoning import Reasoning
from offline.records import Item
from offline.worker import Worker
from offline.worker_events import ItemChange, Origin
from offline.worker_metrics import WorkerMetrics
from offline.worker_settings import WorkerSettings
from offline.worker_state import Quiet, WorkerState
from reranker.errors import IndexUnavailableError
from reranker.health import Health
from reranker.kafka import KafkaSettings


class Away:
    """A refresh without a Milvus."""

    def refresh(self, due: Any, tell: Any) -> None:
        raise IndexUnavailableError("Milvus does not answer")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[WorkerState]:
    with closing(WorkerState(tmp_path / "state.sqlite", "space")) as opened:
        yield opened


def test_what_is_due_is_shown_while_nothing_can_be_refreshed(state: WorkerState) -> None:
    consumer: Any = SimpleNamespace(assignment=lambda: {TopicPartition("items", 0)})
    unused: Any = None
    refresh: Any = Away()
    metrics, health = WorkerMetrics(), Health(patience=10)
    health.turned(joined=True)
    worker = Worker(
        consumer, state, Reasoning(None, metrics), unused, refresh, unused, unused, metrics, health,
        KafkaSettings(), WorkerSettings(),
    )  # fmt: skip
    state.apply([(ItemChange(Item("moby", "Moby-Dick"), 1, False), Origin("items", 0))], Quiet(0, 0), 1)
    worker.between()
    assert health.told == "refreshing: Milvus does not answer"
    assert metrics.registry.get_sample_value("worker_items_due") == 1
