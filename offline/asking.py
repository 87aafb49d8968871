"""One call, put to an endpoint until it has an outcome: fallbacks, waits, further attempts, the account."""

import asyncio
import logging
from dataclasses import replace
from itertools import count
from typing import Any

from aiohttp import ClientError
from httpx2 import Response
from openai import APIStatusError, APITimeoutError, AsyncOpenAI, OpenAIError

from offline.calls import Answer, Call, Model, request_body
from offline.errors import EndpointError
from offline.llm_settings import LlmSettings
from offline.replies import NOTHING, NoLikelihoodError, Reason, Rejected, Reply, read, reply_to, usage_in
from offline.retries import NoCompletionError, asked_wait, passes, patiently, said
from offline.spending import Ledger, most_usage, usage_of

log = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 20
"""So many calls without a reply are hardly all at fault themselves: the endpoint is probed."""

HARMLESS = "This asks whether anybody is there. Answer with as few words as you may."
"""What a probe says. An endpoint that refuses even this refuses everything."""

NO_SCHEMA = frozenset({400, 415, 422, 501})
"""Statuses by which endpoints say that they do not know `response_format`."""

WRONG_SETUP = frozenset({401, 429})
"""Statuses that hold for all calls alike: a wrong key, and of the 429s those for want of credit. Others may be said of
one prompt, e.g. 403 by a moderation, as well as of a wrong model or address: there a probe decides."""

FINAL = frozenset({Reason.FILTERED})
"""Rejections of a reply that no further attempt mends: a filter sees the same prompt again."""


class Asker:
    """Asks one endpoint on behalf of one run, and knows what the run has learnt about it."""

    def __init__(self, api: AsyncOpenAI, model: Model, settings: LlmSettings, ledger: Ledger) -> None:
        self.model = model
        self.settings = settings
        self.ledger = ledger
        self._api = api
        self._numbers = count()
        self._constrains: bool | None = None
        """Whether the endpoint takes a JSON schema; None until the first reply shows it."""
        self._replies = 0
        self._failures = 0
        """Calls in a row that got no reply."""
        self._probing = asyncio.Lock()
        self._hopeless = ""
        """Why nobody will be answered, once that is known."""

    async def ask(self, call: Call[Answer]) -> tuple[Reply | None, Answer | Rejected]:
        """Return the reply, if one came, and the answer in it, or why there is none.

        A reply that is no good is asked for again, `attempts` times in all, hotter and with another seed; one that was
        cut off with twice the room. The last one counts.

        Raises BudgetExhaustedError, and EndpointError for what will hold for every other call too.
        """
        try:
            reply, result = await self._usable(call)
        except (OpenAIError, TimeoutError, NoCompletionError) as error:
            return None, await self._rejected(error, call)
        self._failures = 0
        return reply, result

    async def _usable(self, call: Call[Answer]) -> tuple[Reply, Answer | Rejected]:
        room = call.max_tokens
        first = int(call.anew)
        last = first + self.settings.attempts - 1
        for attempt in count(first):
            reply = await self._constrained(call, attempt, room)
            result = read(reply, call.schema)
            if not isinstance(result, Rejected) or result.reason in FINAL or attempt == last:
                break
            if result.reason is Reason.TRUNCATED:
                room = 2 * call.max_tokens
        return reply, result

    async def _constrained(self, call: Call[Any], attempt: int, room: int) -> Reply:
        """Ask with the schema; where the endpoint refuses that, in words, from then on."""
        if self._constrains is False:
            return await self._posted(call, attempt, room, constrained=False)
        try:
            reply = await self._posted(call, attempt, room, constrained=True)
        except APIStatusError as error:
            if self._constrains or error.status_code not in NO_SCHEMA:
                raise
            reply = await self._posted(call, attempt, room, constrained=False)
            # The first calls are in flight together: one of them may have learnt meanwhile, either way.
            if self._constrains is None:
                self._constrains = False
                log.warning("the endpoint takes no JSON schema (%s): it is asked for JSON in words", said(error))
        else:
            self._constrains = True
        return reply

    async def _posted(self, call: Call[Any], attempt: int, room: int, *, constrained: bool) -> Reply:
        body = request_body(call, self.model, attempt=attempt, max_tokens=room, constrained=constrained)
        return await patiently(lambda: self._paid(body, call), self.settings.patience_seconds)

    async def _paid(self, body: dict[str, Any], call: Call[Any]) -> Reply:
        """Put one request, if the budget has what it may use, and book what it did."""
        number, most, used = next(self._numbers), most_usage(call, body), NOTHING
        await self.ledger.reserve(number, most)
        try:
            content = await self._post(body, call)
            used = usage_in(content)
            reply = self._reply(content, call)
            used = usage_of(reply, body)
        except (APITimeoutError, TimeoutError):
            # Nobody says what it cost: an endpoint may write on for a client that is gone.
            used = replace(most, asks=0)
            raise
        finally:
            await self.ledger.settle(number, used)
        return reply

    async def _post(self, body: dict[str, Any], call: Call[Any]) -> bytes:
        # Not chat.completions.create: to check its arguments and build its objects takes more time than all the rest.
        async with asyncio.timeout(self.settings.timeout_seconds):
            try:
                response = await self._api.post(call.path, body=body, cast_to=Response)
            except ClientError:
                # Passed through by the client's transport, and quoting what came.
                raise NoCompletionError("it answered with something else than HTTP") from None
        return response.content

    def _reply(self, content: bytes, call: Call[Any]) -> Reply:
        try:
            reply = reply_to(call, content)
        except NoLikelihoodError as error:
            raise EndpointError(
                f"{self._api.base_url} gives no log-probabilities of a prompt (/completions with echo and logprobs): "
                "vLLM does, the server of llama.cpp does not. Judge by choices instead (--judge choice or orders)"
            ) from error
        except ValueError:
            raise NoCompletionError("it answered with something else than a chat completion") from None
        self._replies += 1
        return reply

    async def _rejected(self, error: Exception, call: Call[Any]) -> Rejected:
        """Return what a failure means for its call. Raises EndpointError if it means the same for all others."""
        rejected = self._rejection(error)
        if rejected.reason is Reason.FILTERED:
            self._failures = 0
            return rejected
        self._failures += 1
        if isinstance(error, APIStatusError) and error.status_code in WRONG_SETUP and not passes(error):
            self._hopeless = self._without_hope(error)
        # What those in flight together failed for is asked once.
        async with self._probing:
            if not self._hopeless and self._failures >= self._limit(rejected.reason):
                await self._probe(call)
        if self._hopeless:
            raise EndpointError(self._hopeless) from None
        return rejected

    def _rejection(self, error: Exception) -> Rejected:
        if passes(error):
            return Rejected(Reason.UNREACHABLE, self._why_none(error))
        filtered = isinstance(error, APIStatusError) and error.code == "content_filter"
        return Rejected(Reason.FILTERED if filtered else Reason.REQUEST, said(error))

    def _why_none(self, error: Exception) -> str:
        patience = f"{self.settings.patience_seconds:g} s"
        if wait := asked_wait(error):
            return f"{said(error)}, which asks to wait {wait:.0f} s more, beyond the patience of {patience}"
        return f"none within {patience}: {said(error)}"

    def _limit(self, reason: Reason) -> int:
        """Return how many failures in a row call for a probe."""
        if reason is Reason.UNREACHABLE:
            return min(FAILURES_IN_A_ROW, self.settings.concurrency)
        return FAILURES_IN_A_ROW if self._replies else 1

    async def _probe(self, call: Call[Any]) -> None:
        """Find out whether an endpoint that failed a call, as others before it, answers at all."""
        before = self._replies
        try:
            await self._constrained(_harmless(call), 0, call.max_tokens)
        except (OpenAIError, TimeoutError, NoCompletionError) as error:
            # Others may have been answered meanwhile.
            if self._replies == before:
                self._hopeless = self._without_hope(error)
        else:
            self._failures = 0

    def _without_hope(self, error: Exception) -> str:
        if passes(error):
            return (
                f"{self._failures} calls in a row came to nothing at {self._api.base_url}: "
                f"{self._rejection(error).detail}. What was answered is cached: run again when this is mended"
            )
        return (
            f"{self._api.base_url} refuses to answer: {said(error)}. Check its key, model, parameters, credit and "
            "address"
        )


def _harmless(call: Call[Any]) -> Call[Any]:
    """Return a call that goes where this one does, in the same form, without its words."""
    continuation = "Yes." if call.continuation else ""
    return replace(call, messages=({"role": "user", "content": HARMLESS},), tags=(), continuation=continuation)
