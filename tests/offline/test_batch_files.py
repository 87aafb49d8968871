import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offline.batch_files import Exported, Imported, export_calls, import_results
from offline.calls import Model, cache_key, user_tag
from offline.endpoints import Endpoint
from offline.errors import LlmError
from offline.llm import LlmClient
from offline.llm_cache import ResponseCache
from offline.llm_settings import LlmSettings
from offline.replies import Reply, Usage
from offline.spending import Prices
from tests.offline.llm_calls import asked, calls
from tests.stub_llm import completion

MODEL = LlmSettings().named("stub")
PRICES = Prices(1.0, 10.0)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ResponseCache]:
    with ResponseCache(tmp_path / "cache.sqlite") as opened:
        yield opened


def requests(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def result(request: dict[str, Any], text: str = '{"verdict": "yes"}', status: int = 200) -> dict[str, Any]:
    body = json.loads(completion(text).body)
    response = {"status_code": status, "request_id": "x", "body": body}
    return {"id": "batch_1", "custom_id": request["custom_id"], "response": response, "error": None}


def test_requests_are_in_the_batch_format(tmp_path: Path, cache: ResponseCache) -> None:
    path = tmp_path / "requests.jsonl"
    cache.save(cache_key(next(calls(1)), MODEL), Reply("{}", "stop"))
    assert export_calls([*calls(5), *calls(3)], MODEL, cache, path) == Exported(requests=4, cached=2, repeated=2)
    found = requests(path)
    assert [asked(request["body"]) for request in found] == ["1", "2", "3", "4"]
    assert len({request["custom_id"] for request in found}) == 4
    assert {(request["method"], request["url"]) for request in found} == {("POST", "/v1/chat/completions")}
    assert found[0]["body"]["response_format"]["json_schema"]["strict"] is True


def test_a_stage_answered_elsewhere_asks_nobody(tmp_path: Path, cache: ResponseCache) -> None:
    export_calls(calls(1200), MODEL, cache, tmp_path / "requests.jsonl")
    lines = [json.dumps(result(request)) for request in requests(tmp_path / "requests.jsonl")]
    random.Random(0).shuffle(lines)
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    found = import_results("s", calls(1200), tmp_path / "results.jsonl", MODEL, cache, PRICES)
    assert found == Imported(answered=1200, known=0, open=0)
    assert cache.spending()[0].usage == Usage(1200, 120_000, 12_000)
    assert cache.spending()[0].cost == pytest.approx(0.24)
    nobody = LlmClient(Endpoint("http://127.0.0.1:9/v1", "stub"), cache, LlmSettings())
    assert all(outcome.cached for outcome in nobody.run("s", calls(1200)))
    assert cache.forget(user_tag("7")) == 1
    again = import_results("s", calls(1200), tmp_path / "results.jsonl", MODEL, cache, PRICES)
    assert again == Imported(answered=1, known=1199, open=0)


def test_what_is_of_no_use_stays_open_and_is_counted(tmp_path: Path, cache: ResponseCache) -> None:
    export_calls(calls(7), MODEL, cache, tmp_path / "requests.jsonl")
    asks = requests(tmp_path / "requests.jsonl")
    error = {"custom_id": asks[1]["custom_id"], "response": None, "error": {"code": "batch_expired", "message": "x"}}
    lines = [
        json.dumps(result(asks[0])),
        json.dumps(error),
        json.dumps(result(asks[2], status=500)),
        json.dumps(result(asks[3], text="no json")),
        json.dumps({"custom_id": asks[4]["custom_id"], "response": {"status_code": 200, "body": {}}}),
        json.dumps(result({"custom_id": "somebody else's"})),
        "",
        json.dumps(result(asks[5]))[:90],
    ]
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    found = import_results("s", calls(7), tmp_path / "results.jsonl", MODEL, cache, PRICES)
    assert (found.answered, found.known, found.open) == (1, 0, 6)
    reasons = [reason for reason, _ in found.problems]
    assert [number for _, number in found.problems] == [1] * 6
    for expected in ("batch_expired", "500", "malformed", "choices", "custom_id is not of an export", "not a result"):
        assert any(expected in reason for reason in reasons), expected
    assert export_calls(calls(7), MODEL, cache, tmp_path / "again.jsonl").requests == 6


def test_of_a_services_error_only_its_code_is_told(tmp_path: Path, cache: ResponseCache) -> None:
    export_calls(calls(1), MODEL, cache, tmp_path / "requests.jsonl")
    failed = result(requests(tmp_path / "requests.jsonl")[0]) | {"error": {"code": "the review of Ann Smith is bad"}}
    (tmp_path / "results.jsonl").write_text(json.dumps(failed))
    found = import_results("s", calls(1), tmp_path / "results.jsonl", MODEL, cache, PRICES)
    assert found.problems == (("the service reports an error: without a code", 1),)


def test_results_of_calls_that_are_no_longer_made_are_left_out(tmp_path: Path, cache: ResponseCache) -> None:
    export_calls(calls(3), MODEL, cache, tmp_path / "requests.jsonl")
    lines = [json.dumps(result(request)) for request in requests(tmp_path / "requests.jsonl")]
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    remaining = [call for call in calls(3) if call.key != "1"]  # its review was deleted meanwhile
    assert import_results("s", remaining, tmp_path / "results.jsonl", MODEL, cache, PRICES).answered == 2
    assert [cache.find(cache_key(call, MODEL)) is None for call in calls(3)] == [False, True, False]


def test_results_for_another_model_answer_nothing(tmp_path: Path, cache: ResponseCache) -> None:
    export_calls(calls(1), MODEL, cache, tmp_path / "requests.jsonl")
    (tmp_path / "results.jsonl").write_text(json.dumps(result(requests(tmp_path / "requests.jsonl")[0])))
    found = import_results("s", calls(1), tmp_path / "results.jsonl", Model("other"), cache, PRICES)
    assert found == Imported(answered=0, known=0, open=1)


def test_files_that_cannot_be_used_are_named(tmp_path: Path, cache: ResponseCache) -> None:
    with pytest.raises(LlmError, match=r"results\.jsonl cannot be read"):
        import_results("s", calls(1), tmp_path / "results.jsonl", MODEL, cache, PRICES)
    with pytest.raises(LlmError, match=r"requests\.jsonl cannot be written"):
        export_calls(calls(1), MODEL, cache, tmp_path / "nowhere" / "requests.jsonl")
