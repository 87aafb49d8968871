from email.utils import formatdate
from typing import Any

import httpx2
import pytest
from openai import APIConnectionError, APIStatusError, APITimeoutError

from offline.retries import FIRST_SECONDS, LONGEST_SECONDS, NoCompletionError, passes, retry_after, said, wait_seconds

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


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ({"code": "context_length_exceeded", "type": "invalid_request_error"}, "HTTP 400 (context_length_exceeded)"),
        ({"code": 400, "type": "exceed_context_size_error"}, "HTTP 400 (exceed_context_size_error)"),
        ({"code": "unsupported_parameter", "param": "seed"}, "HTTP 400 (unsupported_parameter, seed)"),
        ({"code": "Ann Smith of Leeds", "type": "x" * 65, "param": ["Ann"]}, "HTTP 400"),
        ({"detail": [{"input": "Ann Smith of Leeds"}]}, "HTTP 400"),
    ],
)
def test_of_a_refusal_only_codes_are_told(error: dict[str, Any], told: str) -> None:
    response = httpx2.Response(400, request=REQUEST)
    assert said(APIStatusError("Ann Smith of Leeds", response=response, body=error)) == told


def test_how_a_connection_failed_is_told_and_no_other_cause() -> None:
    lost = APIConnectionError(request=REQUEST)
    lost.__cause__ = OSError("nobody listens")
    rubbish = NoCompletionError("no completion")
    rubbish.__cause__ = ValueError("input_value='Ann Smith'")
    assert (said(lost), said(rubbish)) == ("Connection error. nobody listens", "no completion")


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
