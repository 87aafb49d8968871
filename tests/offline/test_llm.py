"""The client against a real endpoint, which is made to fail in every way that endpoints do."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from offline import retries
from offline.asking import FAILURES_IN_A_ROW, HARMLESS, Asker
from offline.calls import Call, user_tag
from offline.endpoints import Endpoint, model_name, opened
from offline.errors import BudgetExhaustedError, ConfigurationError, EndpointError, ResponseCacheError
from offline.flight import Outcome
from offline.llm import LlmClient
from offline.llm_cache import ResponseCache
from offline.llm_settings import LlmSettings, RemoteLlm
from offline.progress import Progress
from offline.replies import Reason, Rejected, Usage
from tests.conftest import free_port
from tests.offline.llm_calls import Verdict, asked, calls
from tests.stub_llm import Answer, StubLlm, completion, failure

pytestmark = pytest.mark.integration

YES = Verdict(verdict="yes")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ResponseCache]:
    with ResponseCache(tmp_path / "cache.sqlite") as opened:
        yield opened


@pytest.fixture
def stub() -> Iterator[StubLlm]:
    with StubLlm() as running:
        yield running


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let waits be short; what decides them is tested in test_retries."""
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.02)


Client = Callable[..., LlmClient]


@pytest.fixture
def client(stub: StubLlm, cache: ResponseCache) -> Client:
    def made(**settings: Any) -> LlmClient:
        given = {"concurrency": 8, "timeout_seconds": 5, "patience_seconds": 20} | settings
        return LlmClient(Endpoint(stub.url, "stub"), cache, LlmSettings(**given))

    return made


def results(outcomes: Iterator[Outcome[Verdict]]) -> dict[str, Verdict | Reason]:
    found = [(one.key, one.result.reason if isinstance(one.result, Rejected) else one.result) for one in outcomes]
    assert len(found) == len(dict(found)), "a call has two outcomes"
    return dict(found)


def all_yes(count: int) -> dict[str, Verdict]:
    return {str(number): YES for number in range(count)}


def per_call(*scripted: Answer) -> Callable[[int, dict[str, Any]], Answer]:
    """Answer the first request for each call by the first of these, and so on; the last one stands for all further."""
    seen: Counter[str] = Counter()

    def script(number: int, body: dict[str, Any]) -> Answer:
        seen[asked(body)] += 1
        return scripted[min(seen[asked(body)], len(scripted)) - 1]

    return script


# ---- what a run does -------------------------------------------------------------------------------------------------


def test_every_call_has_one_outcome_and_a_further_run_asks_nobody(stub: StubLlm, client: Client) -> None:
    assert results(client().run("s", calls(300))) == all_yes(300)
    assert len(stub.requests) == 300
    again = list(client().run("s", calls(300)))
    assert results(iter(again)) == all_yes(300)
    assert all(outcome.cached for outcome in again)
    assert len(stub.requests) == 300


def test_no_more_requests_are_in_flight_than_set(stub: StubLlm, client: Client, cache: ResponseCache) -> None:
    stub.script = lambda number, body: Answer(body=completion().body, seconds=0.02)
    assert results(client(concurrency=5).run("s", calls(40))) == all_yes(40)
    assert stub.most_in_flight == 5
    narrow = LlmClient(Endpoint(stub.url, "stub", slots=2), cache, LlmSettings(concurrency=5))
    stub.most_in_flight = 0
    assert len(results(narrow.run("s", calls(20, first=40)))) == 20
    assert stub.most_in_flight == 2


def test_calls_are_taken_as_there_is_room(stub: StubLlm, client: Client) -> None:
    taken = 0

    def endless() -> Iterator[Call[Verdict]]:
        nonlocal taken
        for call in calls(1_000_000):
            taken += 1
            yield call

    outcomes = client().run("s", endless())
    for _ in range(10):
        next(outcomes)
    outcomes.close()
    assert taken < 600
    assert len(stub.requests) < 600


def test_outcomes_come_while_others_are_in_flight(stub: StubLlm, client: Client) -> None:
    stub.script = lambda number, body: Answer(body=completion().body, seconds=3.0 if asked(body) == "0" else 0.0)
    began = time.monotonic()
    outcomes = client().run("s", calls(5))
    assert {next(outcomes).key for _ in range(4)} == {"1", "2", "3", "4"}
    assert time.monotonic() - began < 2.5
    assert next(outcomes).key == "0"


def test_in_an_event_loop(client: Client) -> None:
    async def collect() -> list[Outcome[Verdict]]:
        return [outcome async for burst in client().stream("s", calls(20)) for outcome in burst]

    assert results(iter(asyncio.run(collect()))) == all_yes(20)


def test_progress_tells_calls_tokens_and_cost(stub: StubLlm, client: Client) -> None:
    list(client().run("s", calls(10)))
    stub.script = lambda number, body: completion("no json") if asked(body) == "10" else completion()
    told: list[Progress] = []
    list(client(input_price=1.0, output_price=10.0).run("s", calls(20), total=20, report=told.append))
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)
    last = told[-1]
    assert (last.done, last.total, last.cached, last.rejected) == (20, 20, 10, 1)
    assert last.usage == Usage(12, 1200, 120)
    assert last.cost == pytest.approx(0.0024)
    assert last.rate > 0
    assert last.seconds_left == 0


def test_an_endpoint_that_does_not_count_tokens(stub: StubLlm, client: Client, cache: ResponseCache) -> None:
    stub.script = lambda number, body: completion('{"verdict": "12345678"}', usage=None)
    list(client().run("s", calls(1)))
    assert cache.spending()[0].usage == Usage(1, 5, 6)  # by bytes: 1 for "0" and 4 around it; 23 bytes of reply


def test_the_key_is_sent_and_never_shown(stub: StubLlm, client: Client) -> None:
    made = client(api_key="s3cret")
    list(made.run("s", calls(1)))
    assert "authorization: bearer s3cret" in stub.headers[0].lower()
    assert "s3cret" not in repr(made.settings)


# ---- what a reply may be ---------------------------------------------------------------------------------------------


def test_the_schema_goes_with_the_request(stub: StubLlm, client: Client) -> None:
    list(client().run("s", calls(1)))
    assert stub.requests[0]["response_format"]["json_schema"]["schema"]["required"] == ["verdict"]


def test_an_endpoint_without_schemas_is_asked_in_words_from_then_on(
    stub: StubLlm, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    fenced = completion('```json\n{"verdict": "yes"}\n```')
    stub.script = lambda number, body: failure(400, "unknown response_format") if "response_format" in body else fenced
    assert results(client(concurrency=1).run("s", calls(5))) == all_yes(5)
    assert ["response_format" in body for body in stub.requests] == [True, False, False, False, False, False]
    assert '"verdict"' in stub.requests[-1]["messages"][-1]["content"]
    assert caplog.text.count("takes no JSON schema") == 1


def test_calls_that_learn_together_that_there_are_no_schemas_all_have_answers(stub: StubLlm, client: Client) -> None:
    def script(number: int, body: dict[str, Any]) -> Answer:
        # Once all have asked, refusals come at different times: some calls know already what others are still to learn.
        late = Answer(400, failure(400).body, seconds=0.5 + 0.05 * number)
        return late if "response_format" in body else completion()

    stub.script = script
    assert results(client().run("s", calls(40))) == all_yes(40)
    assert len(stub.requests) == 40 + 8


@pytest.mark.parametrize(
    "bad",
    [
        completion("I think so"),
        completion('{"answer": 1}'),
        completion('{"verdict": "y', finish="length"),
        completion("", refusal="I cannot"),
    ],
)
def test_a_bad_reply_is_asked_for_again_in_another_way(stub: StubLlm, client: Client, bad: Answer) -> None:
    stub.script = per_call(bad, completion())
    assert results(client().run("s", calls(3))) == all_yes(3)
    first, second = (body for body in stub.requests if asked(body) == "0")
    assert second["seed"] != first["seed"]
    assert second["temperature"] > first["temperature"]
    cut_off = b'"length"' in bad.body
    assert second["max_tokens"] == first["max_tokens"] * (2 if cut_off else 1)


@pytest.mark.parametrize(
    ("bad", "reason", "requests"),
    [
        (completion("I think so"), Reason.MALFORMED, 3),
        (completion('{"answer": 1}'), Reason.SCHEMA, 3),
        (completion('{"verdict": "y', finish="length"), Reason.TRUNCATED, 3),
        (completion("", refusal="I cannot"), Reason.REFUSED, 3),
        (completion("", finish="content_filter"), Reason.FILTERED, 1),
    ],
)
def test_a_call_without_a_good_reply_is_rejected_alone_and_for_good(
    stub: StubLlm, client: Client, cache: ResponseCache, bad: Answer, reason: Reason, requests: int
) -> None:
    stub.script = lambda number, body: bad if asked(body) == "1" else completion()
    expected = all_yes(4) | {"1": reason}
    assert results(client().run("s", calls(4))) == expected
    assert len(stub.requests) == 3 + requests
    assert cache.spending()[0].usage.asks == 3 + requests
    assert results(client().run("s", calls(4))) == expected
    assert len(stub.requests) == 3 + requests
    stub.script = lambda number, body: completion()
    assert results(client().run("s", calls(4), retry_rejected=True)) == all_yes(4)
    assert len(stub.requests) == 4 + requests


# ---- what an endpoint may do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        *map(failure, (429, 500, 503, 408)),
        Answer(instead="reset"),
        Answer(instead="babble"),
        Answer(body=b"<html>"),
    ],
    ids=["429", "500", "503", "408", "reset", "no HTTP", "no completion"],
)
def test_faults_that_pass_cost_no_item(stub: StubLlm, client: Client, fault: Answer) -> None:
    stub.script = per_call(fault, fault, completion())
    assert results(client().run("s", calls(20))) == all_yes(20)
    assert len(stub.requests) == 60


def test_a_hanging_request_is_made_again(stub: StubLlm, client: Client) -> None:
    stub.script = per_call(Answer(instead="hang"), completion())
    assert results(client(timeout_seconds=0.5).run("s", calls(4))) == all_yes(4)


def test_a_storm_of_429_is_waited_out_as_the_endpoint_says(stub: StubLlm, client: Client) -> None:
    calm = time.monotonic() + 1.5

    def script(number: int, body: dict[str, Any]) -> Answer:
        return completion() if time.monotonic() > calm else failure(429, retry_after="1")

    stub.script = script
    assert results(client().run("s", calls(30))) == all_yes(30)
    assert len(stub.requests) <= 30 + 2 * 8  # of eight in flight, each was told to wait, and did


def test_a_wait_beyond_all_patience_rejects_the_item_at_once(stub: StubLlm, client: Client) -> None:
    stub.script = lambda number, body: failure(429, retry_after="3600") if asked(body) == "1" else completion()
    began = time.monotonic()
    found = {outcome.key: outcome.result for outcome in client().run("s", calls(3))}
    asks = "HTTP 429 (x), which asks to wait 3600 s more, beyond the patience of 20 s"
    assert found == all_yes(3) | {"1": Rejected(Reason.UNREACHABLE, asks)}
    assert time.monotonic() - began < 10
    stub.script = lambda number, body: completion()
    assert results(client().run("s", calls(3))) == all_yes(3)  # it stayed open


def test_an_endpoint_that_asks_all_to_wait_too_long_is_told_as_such(stub: StubLlm, client: Client) -> None:
    stub.script = lambda number, body: failure(429, retry_after="3600")
    with pytest.raises(EndpointError, match=r"calls in a row .*asks to wait 3600 s more, beyond the patience of 20 s"):
        list(client().run("s", calls(100)))


def test_an_endpoint_that_goes_and_comes_back(cache: ResponseCache) -> None:
    port = free_port()
    settings = LlmSettings(concurrency=4, patience_seconds=30, timeout_seconds=5)
    slow = Answer(body=completion().body, seconds=0.02)
    with StubLlm(lambda number, body: slow, port) as stub:
        outcomes = LlmClient(Endpoint(stub.url, "stub"), cache, settings).run("s", calls(60))
        found = [next(outcomes) for _ in range(10)]
    back = StubLlm(lambda number, body: slow, port)
    timer = threading.Timer(1.0, back.__enter__)
    timer.start()
    try:
        found += outcomes
    finally:
        timer.join()
        back.__exit__(None, None, None)
    assert results(iter(found)) == all_yes(60)
    assert len(back.requests) >= 40


def test_an_endpoint_that_stays_away_ends_the_run_and_the_next_one_goes_on(
    stub: StubLlm, client: Client, cache: ResponseCache
) -> None:
    stub.script = lambda number, body: completion() if asked(body) in all_yes(20) else failure(503, "asleep")
    found: list[Outcome[Verdict]] = []
    with pytest.raises(EndpointError, match=r"calls in a row came to nothing at .*HTTP 503 \(x\)\."):
        found.extend(client(patience_seconds=0.3).run("s", calls(1_000_000)))
    kept = results(iter(found))
    assert {key: kept[key] for key in all_yes(20)} == all_yes(20)
    assert set(kept.values()) <= {YES, Reason.UNREACHABLE}
    assert len(kept) < 100
    stub.requests.clear()
    stub.script = lambda number, body: completion()
    assert results(client().run("s", calls(50))) == all_yes(50)
    assert len(stub.requests) == 30


def test_a_request_at_fault_is_its_items_affair(stub: StubLlm, client: Client) -> None:
    def script(number: int, body: dict[str, Any]) -> Answer:
        return completion() if asked(body) in {"0", HARMLESS} else failure(400, "the prompt is too long")

    stub.script = script
    found = list(client(concurrency=1).run("s", calls(60)))
    assert results(iter(found)) == {"0": YES} | {str(number): Reason.REQUEST for number in range(1, 60)}
    assert isinstance(found[-1].result, Rejected)
    assert found[-1].result.detail == "HTTP 400 (x)"


def test_requests_refused_from_the_first_on_end_the_run(stub: StubLlm, client: Client) -> None:
    stub.script = lambda number, body: failure(400, "no such parameter: seed")
    with pytest.raises(EndpointError, match=r"refuses to answer: HTTP 400.* Check its key, model, parameters"):
        list(client().run("s", calls(1000)))
    assert len(stub.requests) <= 2 * (8 + 1)


@pytest.mark.parametrize(
    "refusal", [failure(401, "bad key"), failure(404, "no such model"), failure(429, "pay", "insufficient_quota")]
)
def test_a_wrong_setup_ends_the_run_at_once(stub: StubLlm, client: Client, refusal: Answer) -> None:
    stub.script = lambda number, body: refusal
    with pytest.raises(EndpointError, match="refuses to answer: HTTP"):
        list(client().run("s", calls(1000)))
    assert len(stub.requests) <= 16


def refusing(items: int, refusal: Answer) -> Callable[[int, dict[str, Any]], Answer]:
    """Refuse the first so many items, whenever they are asked."""
    return lambda number, body: refusal if asked(body) in all_yes(items) else completion()


def test_items_refused_for_good_do_not_keep_a_later_run_from_those_behind_them(stub: StubLlm, client: Client) -> None:
    stub.script = refusing(2 * FAILURES_IN_A_ROW, failure(400, "flagged"))
    found = results(client(concurrency=1).run("s", calls(50)))
    refused = {str(number): Reason.REQUEST for number in range(2 * FAILURES_IN_A_ROW)}
    assert found == all_yes(50) | refused
    assert [asked(body) for body in stub.requests].count(HARMLESS) == 2, "at the first and after so many in a row"


@pytest.mark.parametrize("status", [402, 403, 404, 405])
@pytest.mark.parametrize("item", ["0", "3"])
def test_a_status_said_of_one_prompt_is_no_end(stub: StubLlm, client: Client, status: int, item: str) -> None:
    stub.script = lambda number, body: failure(status, "flagged") if asked(body) == item else completion()
    assert results(client(concurrency=1).run("s", calls(5))) == all_yes(5) | {item: Reason.REQUEST}


def test_an_item_that_always_fails_is_no_end_to_a_run_of_one_at_a_time(stub: StubLlm, client: Client) -> None:
    stub.script = refusing(2, failure(500))
    found = results(client(concurrency=1, patience_seconds=0.2).run("s", calls(5)))
    assert found == all_yes(5) | {"0": Reason.UNREACHABLE, "1": Reason.UNREACHABLE}


def test_a_model_that_goes_away_ends_the_run_soon(stub: StubLlm, client: Client) -> None:
    stub.script = lambda number, body: completion() if number < 30 else failure(404, "no such model")
    with pytest.raises(EndpointError, match=r"refuses to answer: HTTP 404"):
        list(client().run("s", calls(1000)))
    assert len(stub.requests) <= 30 + FAILURES_IN_A_ROW + 2 * 8


def test_a_content_filter_that_answers_400(stub: StubLlm, client: Client) -> None:
    filtered = failure(400, "flagged", "content_filter")
    stub.script = lambda number, body: filtered if asked(body) == "1" else completion()
    assert results(client(concurrency=1).run("s", calls(3))) == all_yes(3) | {"1": Reason.FILTERED}


@pytest.mark.parametrize("status", [200, 400, 422, 503])
def test_an_endpoint_that_quotes_its_input_is_not_quoted(
    stub: StubLlm, client: Client, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level(logging.DEBUG, "offline")
    quoted = {"error": {"message": "Ann Smith", "param": "Ann Smith"}, "choices": [{"Ann Smith": 1}]}
    stub.script = lambda number, body: Answer(status, json.dumps(quoted).encode())
    with pytest.raises(EndpointError) as caught:
        list(client(concurrency=1, patience_seconds=0.2).run("s", calls(1)))
    assert "Ann" not in "".join(traceback.format_exception(caught.value)) + caplog.text


# ---- money -----------------------------------------------------------------------------------------------------------


def test_a_budget_is_never_exceeded_and_the_next_run_goes_on(
    stub: StubLlm, client: Client, cache: ResponseCache
) -> None:
    # A request costs 100 x 1 + 10 x 10 = 200 millionths at most 5 + 100 x 10 = 1005 as it is reserved.
    priced = {"input_price": 1.0, "output_price": 10.0}
    found: list[Outcome[Verdict]] = []
    with pytest.raises(BudgetExhaustedError, match=r"the budget of 0\.005 does not reach further"):
        found.extend(client(budget=0.005, **priced).run("s", calls(1000)))
    first = len(found)
    assert cache.spending()[0].cost == pytest.approx(first * 0.0002)
    assert 0.005 - 0.001005 - 0.0002 < cache.spending()[0].cost <= 0.005
    assert results(iter(found)) == {one.key: YES for one in found}
    list(client(**priced).run("s", calls(50)))
    assert len(stub.requests) == 50


def test_a_run_that_goes_on_with_another_has_its_budget_and_its_count(
    stub: StubLlm, client: Client, cache: ResponseCache
) -> None:
    told: list[Progress] = []
    asking = client(token_budget=3000)
    list(asking.run("s", calls(20), report=told.append))
    assert (told[-1].done, told[-1].usage.tokens) == (20, 2200)
    with pytest.raises(BudgetExhaustedError, match="the budget of 3,000 tokens"):
        list(asking.run("s", calls(20, first=20), report=told.append, before=told[-1]))
    assert 20 < told[-1].done < 28
    assert told[-1].usage.tokens == 110 * len(stub.requests) <= 3000
    assert cache.spending()[0].usage.tokens == told[-1].usage.tokens, "what the first run used is booked once"


def test_the_budget_holds_for_what_is_in_flight(stub: StubLlm, client: Client) -> None:
    stub.script = lambda number, body: completion(usage=(4, 100))  # as costly as can be
    with pytest.raises(BudgetExhaustedError):
        list(client(concurrency=64, budget=0.0051, output_price=10.0).run("s", calls(1000)))
    assert len(stub.requests) == 5


def test_attempts_that_fail_are_paid_for_too(stub: StubLlm, client: Client) -> None:
    stub.script = lambda number, body: completion("no json")
    with pytest.raises(BudgetExhaustedError):
        list(client(concurrency=1, budget=0.0015, output_price=10.0).run("s", calls(1000)))
    assert 3 <= len(stub.requests) <= 15


def test_a_limit_set_by_parameters_is_what_the_budget_counts_with(stub: StubLlm, client: Client) -> None:
    stub.script = lambda number, body: completion(usage=(5, body["max_tokens"]))
    with pytest.raises(BudgetExhaustedError, match="may take 8,005"):
        list(client(token_budget=20_000, parameters={"max_tokens": 8000}).run("s", calls(100)))
    assert len(stub.requests) == 2


@pytest.mark.parametrize("budget", [{"token_budget": 100}, {"budget": 1.0, "output_price": 1.0}])
def test_a_budget_needs_a_limit_of_the_answers(client: Client, budget: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="takes max_tokens out of the requests"):
        client(parameters={"max_tokens": None}, **budget)
    client(parameters={"max_tokens": None})
    client(parameters={"max_tokens": None, "max_completion_tokens": 9}, **budget)


def test_a_schema_said_in_words_counts_in_the_budget(stub: StubLlm, client: Client) -> None:
    stub.script = lambda number, body: failure(400) if "response_format" in body else completion()
    with pytest.raises(BudgetExhaustedError, match="0 are used, and the next request may take"):
        list(client(concurrency=1, token_budget=110).run("s", calls(1)))  # 5 + 100 without the schema
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    "body",
    [b'{"choices": [], %s}', b'{"choices": [{"message": {"content": [{"type": "text", "text": "{}"}]}}], %s}'],
    ids=["no choices", "a list"],
)
def test_a_completion_without_text_is_paid_for_and_rejected(
    stub: StubLlm, client: Client, cache: ResponseCache, body: bytes
) -> None:
    stub.script = lambda number, _: Answer(body=body % b'"usage": {"prompt_tokens": 50, "completion_tokens": 20}')
    assert results(client(attempts=2).run("s", calls(1))) == {"0": Reason.MALFORMED}
    assert cache.spending()[0].usage == Usage(2, 100, 40)


def test_what_is_no_completion_but_was_billed_ends_in_the_budget(stub: StubLlm, client: Client) -> None:
    stub.script = lambda number, body: Answer(body=b'{"usage": {"prompt_tokens": 50, "completion_tokens": 20}}')
    with pytest.raises(BudgetExhaustedError, match="210 are used"):
        list(client(token_budget=300).run("s", calls(1)))
    assert len(stub.requests) == 3


def test_requests_that_hang_are_paid_for_as_dear_as_they_may_be(stub: StubLlm, client: Client) -> None:
    stub.script = lambda number, body: Answer(instead="hang")
    with pytest.raises(BudgetExhaustedError, match="210 are used"):
        list(client(token_budget=300, timeout_seconds=0.1).run("s", calls(1)))
    assert len(stub.requests) == 2


def test_a_budget_needs_prices(client: Client) -> None:
    with pytest.raises(ConfigurationError, match="PERSONA4REC_LLM_INPUT_PRICE"):
        client(budget=1.0)


# ---- the cache and the process ---------------------------------------------------------------------------------------


def test_what_was_forgotten_is_asked_again_and_nothing_else(
    stub: StubLlm, client: Client, cache: ResponseCache
) -> None:
    list(client().run("s", calls(10)))
    cache.forget(user_tag("3"))
    stub.requests.clear()
    list(client().run("s", calls(10)))
    assert [asked(body) for body in stub.requests] == ["3"]


def fill(cache: ResponseCache) -> None:
    pages = cache._connection.execute("PRAGMA page_count").fetchone()[0]
    cache._connection.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_is_waited_for(stub: StubLlm, client: Client, cache: ResponseCache) -> None:
    fill(cache)
    stub.script = lambda number, body: completion('{"verdict": "%s"}' % ("yes" * 2000))

    async def freed_meanwhile() -> int:
        asyncio.get_running_loop().call_later(1.0, cache._connection.execute, "PRAGMA max_page_count = 100000")
        return sum([len(burst) async for burst in client().stream("s", calls(30))])

    assert asyncio.run(freed_meanwhile()) == 30
    assert len(stub.requests) == 30


def test_a_disk_that_stays_full_rejects_items_and_ends_the_run(
    stub: StubLlm, client: Client, cache: ResponseCache
) -> None:
    fill(cache)
    stub.script = lambda number, body: completion('{"verdict": "%s"}' % ("yes" * 2000))
    found: list[Outcome[Verdict]] = []
    with pytest.raises(ResponseCacheError, match="full"):
        found.extend(client(patience_seconds=0.3).run("s", calls(100_000)))
    assert set(results(iter(found)).values()) == {Reason.UNSAVED}
    assert len(stub.requests) < 1000  # the workers waited, too


KILLED = """
import sys
from pathlib import Path
from offline.endpoints import Endpoint
from offline.llm import LlmClient
from offline.llm_cache import ResponseCache
from offline.llm_settings import LlmSettings
from tests.offline.llm_calls import calls
with ResponseCache(Path(sys.argv[2])) as cache:
    for outcome in LlmClient(Endpoint(sys.argv[1], "stub"), cache, LlmSettings(concurrency=8)).run("s", calls(100_000)):
        print(outcome.key, flush=True)
"""


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_loses_what_was_in_flight_at_most(
    stub: StubLlm, client: Client, cache: ResponseCache, blow: signal.Signals
) -> None:
    stub.script = lambda number, body: Answer(body=completion().body, seconds=0.01)
    command = [sys.executable, "-c", KILLED, stub.url, str(cache.path)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # Where the tests run in the background of a shell, Ctrl-C is ignored, and that would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    assert process.stdout
    told = [process.stdout.readline().strip() for _ in range(100)]
    os.kill(process.pid, blow)
    told += process.communicate(timeout=30)[0].split()
    assert process.returncode == -blow
    before = len(stub.requests)
    list(client().run("s", (call for call in calls(before) if call.key in set(told))))
    assert len(stub.requests) == before, "an outcome that was handed on is asked for again"


def test_a_cancellation_that_gets_lost_ends_the_run_all_the_same(
    stub: StubLlm, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Asker.ask

    async def deaf(asker: Asker, call: Call[Verdict]) -> Any:
        try:
            return await ask(asker, call)
        except asyncio.CancelledError:
            return await ask(asker, call)

    monkeypatch.setattr(Asker, "ask", deaf)
    stub.script = lambda number, body: Answer(body=completion().body, seconds=0.01)
    outcomes = client().run("s", calls(100_000))
    next(outcomes)
    outcomes.close()
    assert len(stub.requests) < 1000


def test_a_defect_in_the_calls_or_the_schema_shows_itself(client: Client) -> None:
    class Broken(Verdict):
        def model_post_init(self, context: object) -> None:
            raise ZeroDivisionError

    broken = Call("x", ({"role": "user", "content": "x"},), Broken, 10)
    with pytest.raises(ZeroDivisionError):
        list(client().run("s", [broken]))

    def failing() -> Iterator[Call[Verdict]]:
        yield from calls(3)
        raise KeyError("dataset")

    with pytest.raises(KeyError):
        list(client().run("s", failing()))


# ---- finding the endpoint --------------------------------------------------------------------------------------------


def test_the_only_model_of_an_endpoint_needs_no_name(stub: StubLlm) -> None:
    with opened(RemoteLlm(stub.url), LlmSettings()) as endpoint:
        assert endpoint == Endpoint(stub.url, "stub")
    assert model_name(RemoteLlm(stub.url), LlmSettings(model="chosen")) == "chosen"


def test_one_of_several_models_has_to_be_named(stub: StubLlm) -> None:
    stub.models = ["small", "large"]
    with pytest.raises(ConfigurationError, match=r"has small, large: set PERSONA4REC_LLM_MODEL"):
        model_name(RemoteLlm(stub.url), LlmSettings())


def test_an_address_where_nobody_answers_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    with pytest.raises(EndpointError, match=r"nobody answers at http://127\.0\.0\.1:"):
        model_name(RemoteLlm(f"http://127.0.0.1:{free_port()}/v1"), LlmSettings(model="m"))
