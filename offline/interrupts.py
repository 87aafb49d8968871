"""Coroutines run one after another on one loop, which a signal ends cleanly.

A handler of a signal that raises (KeyboardInterrupt, SystemExit) does so between any two lines, the event loop's own
among them, and may leave a connection waiting for what nobody sends any more. `asyncio.Runner` guards SIGINT against
that, but anew for every coroutine: a signal that falls between two of them ends in a CancelledError.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from types import FrameType
from typing import Any, Self, TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM)

Value = TypeVar("Value")
Handler = Callable[[int, FrameType | None], object]


class InterruptibleRunner(ExitStack):
    """Runs coroutines; on a signal cancels the one that runs, and only then lets the signal's own handler act.

    Between two of them, and on a second signal, that handler acts at once. Signals without a handler in Python are
    left alone, and so are all outside the main thread, where Python handles none.
    """

    def __enter__(self) -> Self:
        self._loop = self.enter_context(asyncio.Runner()).get_loop()
        self._task: asyncio.Task[Any] | None = None
        self._taken: signal.Signals | None = None
        self._handlers: dict[int, Handler] = {}
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._guard(number)
        return super().__enter__()

    def run(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        """Return what `coroutine` does, or raise what it or the handler of a signal raises."""
        self._task = task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        finally:
            self._task = None
            if self._taken:
                number, self._taken = self._taken, None
                self._handlers[number](number, None)

    def _guard(self, number: signal.Signals) -> None:
        handler = signal.getsignal(number)
        if callable(handler):
            self._handlers[number] = handler
            signal.signal(number, self._take)
            self.callback(signal.signal, number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._task is None or self._taken:
            self._handlers[number](number, frame)
        else:
            self._taken = signal.Signals(number)
            self._task.cancel()
            self._loop.call_soon_threadsafe(lambda: None)  # wakes a loop that waits for its sockets
