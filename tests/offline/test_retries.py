from email.utils import formatdate

import httpx2
import pytest
from openai import APIConnectionError, APIStatusError, APITimeoutError

from offline.retries import FIRST_SECONDS, LONGEST_SECONDS, NoCompletionError, passes, retry_after, wait_seconds

REQUEST = httpx2.Request("POST", "http://x/v1/chat/completions")


def status(code: int, error: str | None = None, **headers: str) -> APIStatusError:
    response = httpx2.Response(code, request=REQUEST, headers=headers)
    return APIStatusError("said", response=response, body={"code": error})


@pytest.mark.parametrize("code", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_statuses_that_pass(code: int) -> None:
    assert passes(status(code))


@pytest.mark.parametrize(
    "error", [status(400), status(401), status(404), status(501), status(429, "insufficient_quota")]
)
def test_failures_that_stay(error: Exception) -> None:
    assert not passes(error)


@pytest.mark.parametrize(
    "error", [APITimeoutError(REQUEST), APIConnectionError(request=REQUEST), TimeoutError(), NoCompletionError()]
)
def test_failures_without_a_status_pass(error: Exception) -> None:
    assert passes(error)


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 1.5 ", 1.5),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("", 0.0),
        ("soon", 0.0),
        ("-3", 0.0),
        ("inf", 0.0),
        ("²", 0.0),
        ("Fri, 99 Foo 99999999999999 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after(header: str, seconds: float) -> None:
    assert retry_after({"retry-after": header}, NOW) == seconds


def test_waits_are_spread_from_nothing_to_a_bound_that_doubles() -> None:
    for attempt, bound in [(0, FIRST_SECONDS), (1, 2 * FIRST_SECONDS), (3, 8 * FIRST_SECONDS), (5000, LONGEST_SECONDS)]:
        waits = [wait_seconds(attempt, TimeoutError()) for _ in range(400)]
        assert 0.0 <= min(waits) < 0.1 * bound  # each fails once in 10^18 runs
        assert 0.9 * bound < max(waits) <= bound


def test_no_wait_is_shorter_than_the_endpoint_asked_for() -> None:
    assert min(wait_seconds(0, status(429, **{"Retry-After": "20"})) for _ in range(50)) >= 20.0
