"""A store that fails slowly is left alone; one that fails at once is not."""

from collections.abc import Callable

import pytest

from reranker import breaker
from reranker.breaker import RESTS_FOR, Breaker
from reranker.errors import HistoryStoreError
from reranker.records import Event

EVENTS = (Event("e", "a", 5),)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Store:
    """Answers after so many seconds of the clock, or fails after them."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.takes = 0.0
        self.fails = False
        self.reads = 0

    def read(self, user_id: str, limit: int) -> tuple[Event, ...] | None:
        self.reads += 1
        self.clock.now += self.takes
        if self.fails:
            raise HistoryStoreError("Redis at host:6379: TimeoutError")
        return EVENTS if user_id == "known" else None


Made = tuple[Breaker, Store, Clock]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    clock = Clock()
    monkeypatch.setattr(breaker, "monotonic", clock)
    store = Store(clock)
    return Breaker(store), store, clock  # type: ignore[arg-type]


def failing(read: Callable[[str, int], object]) -> str:
    with pytest.raises(HistoryStoreError) as error:
        read("known", 20)
    return str(error.value)


def test_what_the_store_says_is_said(made: Made) -> None:
    reads, store, _ = made
    assert (reads.read("known", 20), reads.read("unknown", 20)) == (EVENTS, None)
    store.takes = 10.0
    for _ in range(3):
        assert reads.read("known", 20) == EVENTS, "slow answers are answers"


def test_a_store_that_hangs_is_asked_once_and_then_left_alone(made: Made) -> None:
    reads, store, clock = made
    store.takes, store.fails = 0.25, True
    assert failing(reads.read) == "Redis at host:6379: TimeoutError"
    clock.now += RESTS_FOR * 0.25 - 0.01
    assert "left alone" in failing(reads.read)
    assert "TimeoutError" in failing(reads.read)
    assert store.reads == 1
    clock.now += 0.02
    store.fails = False
    assert reads.read("known", 20) == EVENTS
    assert reads.read("known", 20) == EVENTS


def test_a_store_that_refuses_at_once_is_asked_every_time(made: Made) -> None:
    reads, store, _ = made
    store.fails = True
    for _ in range(3):
        failing(reads.read)
    assert store.reads == 3
