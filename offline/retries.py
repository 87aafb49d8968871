"""When an endpoint that failed is asked again: backoff with full jitter, and Retry-After."""

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import mktime_tz, parsedate_tz
from itertools import count
from typing import Any, TypeVar

from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAIError

from offline.errors import ResponseCacheError

FIRST_SECONDS = 0.5
"""Upper end of the first wait; each further one is twice as long."""

LONGEST_SECONDS = 30.0
"""Upper end of any wait: an endpoint that comes back is noticed within that time, at little load while it is gone."""

TRANSIENT = frozenset({408, 409, 425, 429})
"""Statuses below 500 that pass: timeout, conflict, too early, too many requests."""

PERMANENT = frozenset({501, 505})
"""Statuses above it that do not: the endpoint lacks what is asked for."""

OUT_OF_CREDIT = "insufficient_quota"
"""The code of a 429 that waiting does not mend: the account is empty."""


SAID = 200
"""Characters of an error's message that are passed on."""

_CODE = re.compile(r"[\w.:\[\]-]{1,64}", re.ASCII)
"""What may be a code, a type or a parameter's name: without spaces it is no sentence, and longer ones are no names."""

Value = TypeVar("Value")
log = logging.getLogger(__name__)


class NoCompletionError(Exception):
    """An endpoint answered 200 with something else than a chat completion, as proxies do whose server is away."""


async def patiently(work: Callable[[], Awaitable[Value]], seconds: float) -> Value:
    """Do work that may fail for a while, again and again for so long, waits included; then raise its last error."""
    clock = asyncio.get_running_loop()
    end = clock.time() + seconds
    for attempt in count():
        try:
            return await work()
        except (OpenAIError, TimeoutError, NoCompletionError, ResponseCacheError) as error:
            wait = wait_seconds(attempt, error)
            if not passes(error) or clock.time() + wait > end:
                raise
            log.debug("%s: trying again in %.1f s", said(error), wait)
        await asyncio.sleep(wait)
    raise AssertionError  # count() has no end


def passes(error: Exception) -> bool:
    """Return whether what failed so, a request or a write to the cache, may succeed when it is tried again."""
    if isinstance(error, APIStatusError):
        if error.code == OUT_OF_CREDIT:
            return False
        return error.status_code in TRANSIENT or (error.status_code >= 500 and error.status_code not in PERMANENT)
    return isinstance(error, APIConnectionError | TimeoutError | NoCompletionError | ResponseCacheError)


def wait_seconds(attempt: int, error: Exception) -> float:
    """Return how long to wait after failed attempt 0, 1, 2, ...: at least what Retry-After says.

    Full jitter (a uniform draw from 0 to the exponential bound) spreads the calls that failed together.
    """
    # Beyond 2^16 the bound stands anyway, and 2.0 ** attempt would overflow in the end.
    jitter = random.uniform(0.0, min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(attempt, 16)))  # noqa: S311
    return asked_wait(error) + jitter


def asked_wait(error: Exception) -> float:
    """Return the seconds that an endpoint asked to be left alone when it failed so, 0 where it did not say."""
    return retry_after(error.response.headers, time.time()) if isinstance(error, APIStatusError) else 0.0


def retry_after(headers: Mapping[str, str], now: float) -> float:
    """Return the seconds that a Retry-After header asks for (a number, or an HTTP date), 0 where there is none.

    `now` is in seconds since the epoch. Keys of `headers` are lower case, or its look-up ignores case.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.replace(".", "", 1).isdecimal():
        return float(text)
    date = parsedate_tz(text)
    try:
        return max(0.0, mktime_tz(date) - now) if date else 0.0
    except (ValueError, OverflowError):
        return 0.0


def said(error: Exception) -> str:
    """Return an error in a few words, for people; of an endpoint's words only codes: the rest may quote."""
    if isinstance(error, APIStatusError):
        return f"HTTP {error.status_code}{_codes(error)}"
    if isinstance(error, APITimeoutError | TimeoutError):
        return "no reply in time"
    # How a connection failed is in its cause; other causes may quote a reply.
    cause = error.__cause__ if isinstance(error, APIConnectionError) else None
    return f"{error} {cause or ''}".strip()[:SAID]


def _codes(error: APIStatusError) -> str:
    code = as_code(error.code)
    if code in {"", str(error.status_code)}:
        code = as_code(error.type)
    told = ", ".join(filter(None, [code, as_code(error.param)]))
    return f" ({told})" if told else ""


def as_code(told: Any) -> str:
    """Return what an endpoint says as the code it is, "" where it is anything longer."""
    return told if isinstance(told, str) and _CODE.fullmatch(told) else ""
