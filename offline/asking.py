"""One call, put to an endpoint until it has an outcome: fallbacks, waits, further attempts, the account."""

import asyncio
import logging
from itertools import count
from typing import Any

from httpx2 import Response
from openai import APIStatusError, APITimeoutError, AsyncOpenAI, OpenAIError

from offline.calls import Answer, Call, Model, estimated_input_tokens, request_body
from offline.errors import EndpointError
from offline.llm_settings import LlmSettings
from offline.replies import NOTHING, NoLikelihoodError, Reason, Rejected, Reply, Usage, read, reply_to
from offline.retries import NoCompletionError, passes, patiently, said
from offline.spending import Ledger, usage_of

log = logging.getLogger(__name__)

REFUSALS_IN_A_ROW = 20
"""So many requests refused before any was answered are the settings' fault, not the items': the run ends."""

NO_SCHEMA = frozenset({400, 415, 422, 501})
"""Statuses by which endpoints say that they do not know `response_format`."""

WRONG_SETUP = frozenset({401, 402, 403, 404, 405, 429})
"""Statuses that hold for all calls alike: key, credit, model, address. Of the 429s, those for want of credit."""

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
        self._answered = False
        self._failures = 0
        """Calls in a row that got no reply."""

    async def ask(self, call: Call[Answer]) -> tuple[Reply | None, Answer | Rejected]:
        """Return the reply, if one came, and the answer in it, or why there is none.

        A reply that is no good is asked for again, `attempts` times in all, hotter and with another seed; one that was
        cut off with twice the room. The last one counts.

        Raises BudgetExhaustedError, and EndpointError for what will hold for every other call too.
        """
        try:
            reply, result = await self._usable(call)
        except (OpenAIError, TimeoutError, NoCompletionError) as error:
            return None, self._rejected(error)
        self._failures = 0
        return reply, result

    async def _usable(self, call: Call[Answer]) -> tuple[Reply, Answer | Rejected]:
        room = call.max_tokens
        for attempt in count():
            reply = await self._paid(call, attempt, room)
            result = read(reply, call.schema)
            if not isinstance(result, Rejected) or result.reason in FINAL or attempt + 1 == self.settings.attempts:
                break
            if result.reason is Reason.TRUNCATED:
                room = 2 * call.max_tokens
        return reply, result

    async def _paid(self, call: Call[Any], attempt: int, room: int) -> Reply:
        number, used = next(self._numbers), NOTHING
        await self.ledger.reserve(number, Usage(1, estimated_input_tokens(call), room))
        try:
            reply = await self._constrained(call, attempt, room)
            used = usage_of(reply, call)
        finally:
            await self.ledger.settle(number, used)
        return reply

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
        return await patiently(lambda: self._post(body, call), self.settings.patience_seconds)

    async def _post(self, body: dict[str, Any], call: Call[Any]) -> Reply:
        # Not chat.completions.create: to check its arguments and build its objects takes more time than all the rest.
        try:
            async with asyncio.timeout(self.settings.timeout_seconds):
                response = await self._api.post(call.path, body=body, cast_to=Response)
        except (APITimeoutError, TimeoutError):
            # Nobody says what it cost; the prompt was probably read.
            self.ledger.book(Usage(0, estimated_input_tokens(call), 0))
            raise
        try:
            reply = reply_to(call, response.content)
        except NoLikelihoodError as error:
            raise EndpointError(
                f"{self._api.base_url} gives no log-probabilities of a prompt (/completions with echo and logprobs): "
                "vLLM does, the server of llama.cpp does not. Judge by choices instead (--judge choice or orders)"
            ) from error
        except ValueError as error:
            raise NoCompletionError("it answered with something else than a chat completion") from error
        self._answered = True
        return reply

    def _rejected(self, error: Exception) -> Rejected:
        """Return what a failure means for its call. Raises EndpointError if it means the same for all others."""
        why = said(error)
        self._failures += 1
        if passes(error):
            rejected = Rejected(Reason.UNREACHABLE, f"none within {self.settings.patience_seconds:g} s: {why}")
        else:
            rejected = self._refused(error, why)
        self._stop_if_hopeless(rejected)
        return rejected

    def _refused(self, error: Exception, why: str) -> Rejected:
        if isinstance(error, APIStatusError) and error.status_code in WRONG_SETUP:
            raise EndpointError(
                f"{self._api.base_url} refuses to answer: {why}. Check its key, model, credit and address"
            )
        filtered = isinstance(error, APIStatusError) and error.code == "content_filter"
        return Rejected(Reason.FILTERED if filtered else Reason.REQUEST, why)

    def _stop_if_hopeless(self, rejected: Rejected) -> None:
        if rejected.reason is Reason.FILTERED or (rejected.reason is Reason.REQUEST and self._answered):
            self._failures = 0
        limit = REFUSALS_IN_A_ROW
        if rejected.reason is Reason.UNREACHABLE:
            limit = min(limit, self.settings.concurrency)
        if self._failures >= limit:
            raise EndpointError(
                f"{self._failures} calls in a row came to nothing at {self._api.base_url}: {rejected.detail}. "
                "What was answered is cached: run again when this is mended"
            )
