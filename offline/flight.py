"""The calls in flight: workers that ask, a cache that knows, and outcomes that are handed on once they are safe."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic

from offline.asking import Asker
from offline.calls import Answer, Call, cache_key
from offline.errors import ResponseCacheError
from offline.llm_cache import ResponseCache
from offline.replies import NOTHING, Reason, Rejected, Reply, read
from offline.retries import patiently

CHUNK = 64
"""Calls that are looked up in one transaction, and so the calls in memory beside those in flight."""

BURST = 256
"""Outcomes that may wait to be handed on; then the workers wait too."""

GATHER_SECONDS = 0.02
"""How long the first of them waits for others to share its commit, which may take milliseconds. A killed process loses
these beside the calls in flight; no worker waits for it."""


SPREAD_SECONDS = 0.003
"""Between the first requests. Replies that come in step wait for one processor, which a call takes for 1.5 to 2 ms
(tests/benchmarks/llm_client.py), and so stay in step; what was spread once stays spread."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Answer]):
    """What became of one call."""

    key: str
    """The call's."""
    result: Answer | Rejected
    cached: bool = False
    """Nobody was asked."""


@dataclass(frozen=True, slots=True)
class _Question(Generic[Answer]):
    key: bytes
    """What the cache knows it by."""
    call: Call[Answer]


@dataclass(frozen=True, slots=True)
class _Landed(Generic[Answer]):
    outcome: Outcome[Answer]
    question: _Question[Answer]
    unsaved: Reply | None = None


class Flight(Generic[Answer]):
    """One run's calls, from an iterator to their outcomes. Used within one event loop."""

    def __init__(
        self, stage: str, calls: Iterable[Call[Answer]], asker: Asker, cache: ResponseCache, *, retry_rejected: bool
    ) -> None:
        self._stage = stage
        self._calls = iter(calls)
        self._asker = asker
        self._cache = cache
        self._retry_rejected = retry_rejected
        self._open: deque[_Question[Answer]] = deque()
        self._landed: list[_Landed[Answer]] = []
        self._landing = asyncio.Event()
        self._leaving = asyncio.Event()
        self._working = 0
        self._waits: Iterator[float] = iter(())
        self._booked = asker.ledger.usage
        self._stop: Exception | None = None
        self._ending = False

    async def bursts(self, slots: int) -> AsyncGenerator[tuple[Outcome[Answer], ...]]:
        """Yield outcomes together that are safe together, at most `slots` calls being asked at a time.

        Raises what stopped the run, once the outcomes of what was in flight are yielded.
        """
        self._working = slots
        self._waits = (number * SPREAD_SECONDS for number in range(slots))
        workers = [asyncio.create_task(self._work()) for _ in range(slots)]
        try:
            while self._working or self._landed:
                yield await self._burst()
        finally:
            # Beside the cancellation, which a library may swallow when it comes just as a reply does.
            self._ending = True
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        if self._stop:
            raise self._stop

    async def _work(self) -> None:
        try:
            while not (self._stop or self._ending) and (question := await self._next()):
                await asyncio.sleep(next(self._waits, 0))
                reply, result = await self._asker.ask(question.call)
                self._land(_Landed(Outcome(question.call.key, result), question, reply))
        except Exception as error:  # a defect, too, has to end the run rather than hang it
            self._stop = self._stop or error
        finally:
            self._working -= 1
            self._landing.set()

    async def _next(self) -> _Question[Answer] | None:
        """Return the next call that the cache does not answer, None when there is none."""
        while not self._open:
            while len(self._landed) >= BURST:
                self._leaving.clear()
                await self._leaving.wait()
            chunk = [_Question(cache_key(call, self._asker.model), call) for call in islice(self._calls, CHUNK)]
            if not chunk:
                return None
            replies = self._cache.find_all((question.key, question.call.tags) for question in chunk)
            for question, reply in zip(chunk, replies, strict=True):
                self._sort(question, reply)
        return self._open.popleft()

    def _sort(self, question: _Question[Answer], reply: Reply | None) -> None:
        result = read(reply, question.call.schema) if reply and not question.call.anew else None
        if result is None or (self._retry_rejected and isinstance(result, Rejected)):
            self._open.append(question)
        else:
            self._land(_Landed(Outcome(question.call.key, result, cached=True), question))

    def _land(self, landed: _Landed[Answer]) -> None:
        self._landed.append(landed)
        self._landing.set()

    async def _burst(self) -> tuple[Outcome[Answer], ...]:
        """Wait for outcomes, save their replies, and return them; nothing, if the last worker ended without one."""
        while self._working and not self._landed:
            self._landing.clear()
            await self._landing.wait()
        if self._working and len(self._landed) < BURST:
            await asyncio.sleep(GATHER_SECONDS)
        landed, self._landed = self._landed, []
        self._leaving.set()
        try:
            await patiently(lambda: self._save(landed), self._asker.settings.patience_seconds)
        except ResponseCacheError as error:
            self._stop = self._stop or error
            rejected = Rejected(Reason.UNSAVED, "the reply could not be cached")
            return tuple(Outcome(one.outcome.key, rejected) if one.unsaved else one.outcome for one in landed)
        return tuple(one.outcome for one in landed)

    async def _save(self, landed: list[_Landed[Any]]) -> None:
        used = self._asker.ledger.usage
        new = used - self._booked
        unsaved = [(one.question, one.unsaved) for one in landed if one.unsaved]
        if unsaved or new != NOTHING:
            with self._cache.transaction():
                for question, reply in unsaved:
                    self._cache.save(question.key, reply, question.call.tags)
                cost = self._asker.ledger.prices.cost(new.input_tokens, new.output_tokens)
                self._cache.book(self._stage, self._asker.model.name, new, cost)
            self._booked = used
