"""A signal ends what runs at a line where it waits, and never between two lines of the event loop."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from offline.interrupts import InterruptibleRunner


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def struck(number: int, ended: list[str]) -> None:
    os.kill(os.getpid(), number)
    try:
        await asyncio.sleep(60)
    finally:
        ended.append("where it waits")


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_cancels_what_runs_and_then_acts(number: int, raised: type[BaseException]) -> None:
    ended: list[str] = []
    with InterruptibleRunner() as runner:
        with pytest.raises(raised):
            runner.run(struck(number, ended))
        assert ended == ["where it waits"]
        assert runner.run(asyncio.sleep(0, "the loop goes on")) == "the loop goes on"


def test_between_two_it_acts_at_once() -> None:
    with InterruptibleRunner() as runner:
        runner.run(asyncio.sleep(0))
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_in_the_last_step_is_not_lost() -> None:
    async def last_step() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with InterruptibleRunner() as runner, pytest.raises(KeyboardInterrupt):
        runner.run(last_step())


def test_the_second_one_waits_for_nothing() -> None:
    async def stubborn() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), InterruptibleRunner() as runner:
        runner.run(stubborn())


def test_a_handler_that_raises_nothing_disturbs_nothing() -> None:
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))

    async def struck_and_going_on() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return await asyncio.sleep(0.01, "done")

    with InterruptibleRunner() as runner:
        assert runner.run(struck_and_going_on()) == "done"
    assert told == [signal.SIGTERM]


def test_handlers_are_as_before_afterwards_and_those_of_no_code_are_left_alone() -> None:
    def own(number: int, frame: FrameType | None) -> None: ...

    signal.signal(signal.SIGINT, own)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with InterruptibleRunner():
        assert signal.getsignal(signal.SIGINT) is not own
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is own


def test_outside_the_main_thread_it_only_runs() -> None:
    found: list[int] = []

    def run() -> None:
        with InterruptibleRunner() as runner:
            found.append(runner.run(asyncio.sleep(0, 7)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(timeout=10)
    assert found == [7]
