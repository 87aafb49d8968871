"""Put calls to an LLM, many at a time, and stream what becomes of them.

Every call ends in an outcome: an answer, or the reason why there is none. Only what concerns all calls ends a run: the
budget, an endpoint that is gone or refuses everything, a cache that takes nothing more. Nothing paid for is lost by
that; a further run goes on from the cache.
"""

import time
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import aclosing
from typing import TypeVar

from httpx2 import Limits, Timeout
from openai import AsyncOpenAI, DefaultAioHttpClient

from offline.asking import Asker
from offline.calls import Answer, Call, Model
from offline.endpoints import Endpoint
from offline.errors import ConfigurationError
from offline.flight import Flight, Outcome
from offline.interrupts import InterruptibleRunner
from offline.llm_cache import ResponseCache
from offline.llm_settings import LlmSettings
from offline.progress import Progress, Report
from offline.spending import Ledger

NO_KEY = "none"
"""Sent where no key is set: the openai package insists on one, endpoints without keys ignore it."""

Value = TypeVar("Value")


class LlmClient:
    """Asks one LLM and keeps its replies."""

    def __init__(self, endpoint: Endpoint, cache: ResponseCache, settings: LlmSettings) -> None:
        if settings.budget is not None and not (settings.input_price or settings.output_price):
            raise ConfigurationError(
                f"a budget of {settings.budget:g} means nothing without prices: set those of a million tokens "
                "(PERSONA4REC_LLM_INPUT_PRICE, PERSONA4REC_LLM_OUTPUT_PRICE)"
            )
        self.endpoint = endpoint
        self.model: Model = settings.named(endpoint.model)
        if not self.model.limits_answers and (settings.budget is not None or settings.token_budget is not None):
            raise ConfigurationError(
                "a budget cannot hold where nothing limits the answers' tokens: PERSONA4REC_LLM_PARAMETERS takes "
                f"{settings.limit_field} out of the requests, give it a number there"
            )
        self.cache = cache
        self.settings = settings

    def run(
        self,
        stage: str,
        calls: Iterable[Call[Answer]],
        *,
        total: int | None = None,
        retry_rejected: bool = False,
        report: Report | None = None,
        before: Progress | None = None,
    ) -> Generator[Outcome[Answer]]:
        """Yield the outcome of every call soon after it is there, in no set order.

        `calls` are taken as there is room, so that memory holds those in flight and a few dozen more. An outcome is
        yielded once its reply is safe in the cache. A further run asks nobody about a call that got a reply, usable or
        not; with `retry_rejected` it does where the reply gave no answer, and always about a call that says `anew`.
        What failed without a reply stays open.

        `stage` names the account; `total` is how many calls there are, for `report`, which is told how far the run is.
        `before` is how far an earlier run was that this one goes on with: one count and one budget for both.

        Requests make progress only while an outcome is waited for: whoever takes longer than `timeout_seconds` over one
        makes those in flight time out, and be made again.

        Raises, once the outcomes of what was in flight are yielded:
            BudgetExhaustedError: the next request might exceed the budget.
            EndpointError: the endpoint refuses the key; or calls got no reply, and a harmless one that was put in
                between got none either, within `patience_seconds` (a wrong model or address, no credit, nobody there).
            ResponseCacheError: the cache cannot be read, or took no reply for `patience_seconds`; those in flight then
                come back as rejected (unsaved).

        """
        bursts = self.stream(stage, calls, total=total, retry_rejected=retry_rejected, report=report, before=before)
        with InterruptibleRunner() as runner:
            try:
                while (burst := runner.run(_next(bursts))) is not None:
                    yield from burst
            finally:
                runner.run(_close(bursts))

    async def stream(
        self,
        stage: str,
        calls: Iterable[Call[Answer]],
        *,
        total: int | None = None,
        retry_rejected: bool = False,
        report: Report | None = None,
        before: Progress | None = None,
    ) -> AsyncGenerator[tuple[Outcome[Answer], ...]]:
        """Do as `run` does, within an event loop; outcomes that are there at the same time come together."""
        progress = before or Progress(total)
        began = time.monotonic() - progress.seconds
        ledger = Ledger(self.settings.prices, self.settings.budget, self.settings.token_budget, progress.usage)
        async with self._api() as api:
            asker = Asker(api, self.model, self.settings, ledger)
            flight = Flight(stage, calls, asker, self.cache, retry_rejected=retry_rejected)
            async with aclosing(flight.bursts(self._slots)) as bursts:
                async for burst in bursts:
                    progress = progress.after(burst, ledger, time.monotonic() - began)
                    if report:
                        report(progress)
                    yield burst

    @property
    def _slots(self) -> int:
        return min(self.settings.concurrency, self.endpoint.slots or self.settings.concurrency)

    def _api(self) -> AsyncOpenAI:
        limits = Limits(max_connections=self._slots, max_keepalive_connections=self._slots)
        return AsyncOpenAI(
            base_url=self.endpoint.url,
            api_key=self.settings.api_key.get_secret_value() or NO_KEY,
            max_retries=0,
            timeout=Timeout(self.settings.timeout_seconds),
            # Half the time per request of the default one at 64 in flight, whose pool looks at every connection.
            http_client=DefaultAioHttpClient(limits=limits),
        )


async def _next(bursts: AsyncGenerator[Value]) -> Value | None:
    return await anext(bursts, None)


async def _close(bursts: AsyncGenerator[Value]) -> None:
    await bursts.aclose()
