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
    """Runs coroutines; what a signal's handler raises is raised once the coroutine that runs is cancelled.

    Between two of them, and on a second signal, it is raised at once. A handler that raises nothing disturbs nothing.
    Signals without a handler in Python are left alone, and so is every signal outside the main thread, where Python
    handles none.
    """

    def __enter__(self) -> Self:
        self._loop = self.enter_context(asyncio.Runner()).get_loop()
        self._task: asyncio.Task[Any] | None = None
        self._raised: BaseException | None = None
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
            if self._raised:
                raised, self._raised = self._raised, None
                raise raised

    def _guard(self, number: signal.Signals) -> None:
        handler = signal.getsignal(number)
        if callable(handler):
            self._handlers[number] = handler
            signal.signal(number, self._take)
            self.callback(signal.signal, number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        try:
            self._handlers[number](number, frame)
        except BaseException as error:
            if self._task is None or self._raised:
                raise
            self._raised = error
            self._task.cancel()
            self._loop.call_soon_threadsafe(lambda: None)  # wakes a loop that waits for its sockets
