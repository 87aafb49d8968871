"""Items that are due where the LLM is of no use: what was there stays, and nothing is booked for nothing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.domains import load_domain
from offline.encoder import Encoder
from offline.errors import EndpointError
from offline.personas import PersonasStage
from offline.publish import Document
from offline.reasoning import Reasoning
from offline.records import Item, Review
from offline.refresh import Bounds, Refresh
from offline.rewriting import Thresholds
from offline.stages import Made, Problem, Stage
from offline.summaries import SummariesStage
from offline.worker_events import Change, ItemChange, Origin, ReviewChange
from offline.worker_metrics import WorkerMetrics
from offline.worker_state import Quiet, WorkerState

HERE = Origin("reviews", 0)
SAID = [
    "The storm at sea had me holding on to my chair.",
    "I skipped the long chapters on the anatomy of whales.",
    "My favourite is the friendship between the sailors.",
    "The ending is the grandest thing I have read.",
]


class Scripted(Reasoning):
    """Does without an LLM, until it is told what becomes of personas."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        super().__init__(None, metrics)
        self.personas: Callable[[], Made] | None = None

    def made(self, stage: Stage[Any, Any], subjects: Sequence[Any]) -> list[Made]:
        if self.personas is None or stage.name != "personas":
            return super().made(stage, subjects)
        return [self.personas() for _ in subjects]

    def tokens(self, stage: Stage[Any, Any], subject: Any) -> int:
        return 40


class Index:
    """Stands in for Milvus: keeps what was published last."""

    def publish(self, found: Sequence[Document], gone: Sequence[str]) -> int:
        self.found = found
        return len(found)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[WorkerState]:
    with closing(WorkerState(tmp_path / "state.sqlite", "space")) as opened:
        yield opened


@pytest.fixture
def refresh(state: WorkerState, encoder: Encoder) -> Refresh:
    domain, metrics = load_domain("books"), WorkerMetrics()
    return Refresh(
        state,
        Scripted(metrics),
        SummariesStage(domain),
        PersonasStage(domain, encoder),
        Index(),  # type: ignore[arg-type]
        metrics,
        Thresholds(least_new=1, new_share=0),
        Bounds(rewrites=3, tokens=100),
    )


def reviewed(refresh: Refresh, number: int) -> None:
    """Let a review come, its aspects known."""
    review = Review(f"r{number}", f"user{number}", "moby", SAID[number], timestamp=number)
    changes: list[Change] = [
        ItemChange(Item("moby", "Moby-Dick"), 1, deleted=False),
        ReviewChange(review, number, deleted=False),
    ]
    refresh.state.apply([(change, HERE) for change in changes], Quiet(0, 0), 0)
    refresh.state.keep_aspects(review, {"theme": SAID[number]}, np.eye(1, 384, number, dtype=np.float32)[0])


def refreshed(refresh: Refresh, now: int = 10) -> None:
    refresh.refresh(refresh.state.due({HERE}, now, 10), lambda _: None)


def test_what_an_llm_or_the_checks_refuse_takes_no_personas_away(refresh: Refresh) -> None:
    reviewed(refresh, 0)
    refreshed(refresh)
    before = refresh.state.personas("moby")
    assert before
    refresh.reasoning.personas = lambda: Made(None, (Problem("refused", "content filter"),))  # type: ignore[attr-defined]
    reviewed(refresh, 1)
    refreshed(refresh)
    assert refresh.state.personas("moby") == before
    (document,) = refresh.publisher.found  # type: ignore[attr-defined]
    assert document.personas == before
    assert refresh.metrics.unusable._value.get() == 1
    assert refresh.state.due({HERE}, 10, 10) == [], "asked again, it would say the same"


def test_an_endpoint_that_is_away_uses_up_nothing_of_the_hour(refresh: Refresh) -> None:
    def away() -> Made:
        raise EndpointError("nobody answers")

    refresh.reasoning.personas = away  # type: ignore[attr-defined]
    reviewed(refresh, 0)
    for _ in range(5):
        with pytest.raises(EndpointError):
            refreshed(refresh)
        assert refresh.state.rewrites(0) == (0, 0)
    refresh.reasoning.personas = None  # type: ignore[attr-defined]
    refreshed(refresh)
    assert refresh.state.personas("moby")
    assert refresh.state.rewrites(0) == (1, 40)


def test_an_hour_s_bounds_hold(refresh: Refresh) -> None:
    for number in range(4):
        reviewed(refresh, number)
        refreshed(refresh)
    assert refresh.state.rewrites(0) == (2, 80), "a third would take 120 tokens of 100"
