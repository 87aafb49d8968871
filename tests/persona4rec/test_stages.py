"""The stages' commands, as processes of their own, against a real endpoint."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import offline.stages
from offline.dataset import Dataset, write_jsonl
from offline.errors import ResponseCacheError
from offline.fingerprints import fingerprint
from offline.flight import Outcome
from offline.lines import json_line
from offline.records import ItemPersonas, Review, ReviewAspects
from persona4rec.stages import batch_import
from reranker.records import Persona, persona_id
from tests.conftest import free_port
from tests.offline.reviewed import answer, answered, lines, reviewed
from tests.persona4rec.running import complaint, environment, eventually, persona4rec, succeeded
from tests.stub_llm import Answer, StubLlm, completion

pytestmark = pytest.mark.integration

COUNT = 40


@pytest.fixture
def stub() -> Iterator[StubLlm]:
    with StubLlm(lambda _, body: answered(body)) as running:
        yield running


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return reviewed(tmp_path / "data", COUNT)


def records(dataset: Dataset) -> list[str]:
    return lines(dataset.path / "aspects.jsonl")


def expected() -> list[str]:
    """Return the records of a run in which nothing goes wrong."""
    nulls = dict.fromkeys(("category_preference", "purpose", "quality_criteria", "usage_context"))
    made = (
        ReviewAspects(
            review.review_id,
            review.item_id,
            nulls | {"purpose": f"review number {n}"},
            review.user_id,
            fingerprint=fingerprint(review),
        )
        for n, review in enumerate(Review(f"r{n}", f"u{n}", "i", f"Review number {n}.") for n in range(COUNT))
    )
    return sorted(json_line(record).strip() for record in made)


def test_a_dry_run_tells_the_cost_and_asks_nobody(stub: StubLlm, dataset: Dataset) -> None:
    prices = {"PERSONA4REC_LLM_INPUT_PRICE": "1", "PERSONA4REC_LLM_OUTPUT_PRICE": "2"}
    told = succeeded(persona4rec("aspects", dataset.path, "--llm", stub.url, "--dry-run", settings=prices))
    assert f"{COUNT} calls to make ({COUNT} in all, 0 cached)" in told
    assert "cost about 0.0" in told
    assert not stub.requests
    assert not dataset.has("aspects")


def test_a_run_and_what_it_counts(stub: StubLlm, dataset: Dataset) -> None:
    told = succeeded(persona4rec("aspects", dataset.path, "--llm", stub.url))
    for words in (f"{COUNT} (0 before)", f"null slots {COUNT * 3} (75.0%)", f"{COUNT} requests", "4,000 in, 400 out"):
        assert words in " ".join(told.split())
    assert records(dataset) == expected()


def test_a_finished_stage_needs_no_endpoint(stub: StubLlm, dataset: Dataset) -> None:
    succeeded(persona4rec("aspects", dataset.path, "--llm", stub.url))
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    assert f"0 ({COUNT} before)" in succeeded(persona4rec("aspects", dataset.path, "--llm", nobody))


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_ended_goes_on_as_if_nothing_had_been(
    stub: StubLlm, dataset: Dataset, blow: signal.Signals
) -> None:
    stub.script = lambda _, body: answered(body, seconds=0.1)
    command = [sys.executable, "-m", "persona4rec", "aspects", str(dataset.path), "--llm", stub.url]
    command += ["--concurrency", "2"]
    path = dataset.path / "aspects.jsonl"
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    eventually(lambda: path.exists() and path.read_bytes().count(b"\n") > 5, "some records are written")
    os.kill(process.pid, blow)
    _, complaints = process.communicate(timeout=60)
    assert "RuntimeError" not in complaints
    assert len(records(dataset)) < COUNT
    succeeded(persona4rec("aspects", dataset.path, "--llm", stub.url))
    assert records(dataset) == expected()
    assert COUNT <= len(stub.requests) <= COUNT + 2, "more was lost than what was in flight"


def test_a_budget_ends_the_command_with_a_message_after_the_table(stub: StubLlm, dataset: Dataset) -> None:
    result = persona4rec("aspects", dataset.path, "--llm", stub.url, "--budget-tokens", "3000")
    assert "budget of 3,000 tokens does not reach further" in complaint_of(result)
    assert "rejected" not in result.stdout
    assert 0 < len(records(dataset)) < COUNT


def complaint_of(result: "subprocess.CompletedProcess[str]") -> str:
    """Return the last message of a command that failed after it had told its progress."""
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def test_a_full_disk_loses_nothing(stub: StubLlm, dataset: Dataset) -> None:
    command = [sys.executable, "-m", "persona4rec", "aspects", str(dataset.path), "--llm", stub.url]
    # Room for the cache's tables and a few of its replies, which are long for that.
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))  # noqa: E731
    stub.script = lambda _, body: completion(answer(body) + " " * 8000)
    env = environment(PERSONA4REC_LLM_PATIENCE_SECONDS="0.5")
    result = subprocess.run(command, env=env, capture_output=True, text=True, preexec_fn=limit)
    assert "cannot write the LLM's replies" in complaint_of(result)
    assert "rejected, unsaved" in result.stdout
    succeeded(persona4rec("aspects", dataset.path, "--llm", stub.url))
    assert records(dataset) == expected()


def test_a_batch_goes_out_and_comes_back_in_parts(dataset: Dataset, tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    told = succeeded(persona4rec("batch", "export", "aspects", dataset.path, "--model", "m", "--out", requests))
    assert f"{COUNT} requests for m" in told
    asked = [json.loads(line) for line in requests.read_text().splitlines()]
    results = [result(one) for one in asked]
    failed = results[0] | {"response": None, "error": {"code": "expired"}}
    part = tmp_path / "part.jsonl"
    part.write_text("\n".join([json.dumps(failed), "torn {", *map(json.dumps, results[1:30])]))
    told = succeeded(persona4rec("batch", "import", "aspects", dataset.path, part, "--model", "m"))
    assert "29 calls answered, 0 known before, 11 still open" in told
    assert "of no use, 1 x: the service reports an error: expired" in told
    assert len(records(dataset)) == 29
    told = succeeded(persona4rec("batch", "export", "aspects", dataset.path, "--model", "m", "--out", requests))
    assert "11 requests for m" in told
    rest = tmp_path / "rest.jsonl"
    rest.write_text("\n".join(map(json.dumps, [results[0], *results[30:]])))
    succeeded(persona4rec("batch", "import", "aspects", dataset.path, rest, "--model", "m"))
    assert records(dataset) == expected()


def test_a_cache_that_fails_after_an_import_ends_the_command_with_a_message(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> Iterator[Outcome[Any]]:
        raise ResponseCacheError("cannot read the LLM's replies")

    monkeypatch.setattr(offline.stages, "cached_only", failing)
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(ResponseCacheError, match="cannot read"):
        batch_import("aspects", dataset.path, tmp_path / "results.jsonl", model="m")


def result(request: dict[str, Any]) -> dict[str, Any]:
    body = json.loads(completion(answer(request["body"])).body)
    return {"custom_id": request["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}


def test_a_batch_needs_to_know_its_model(dataset: Dataset, tmp_path: Path) -> None:
    told = complaint(persona4rec("batch", "export", "aspects", dataset.path, "--out", tmp_path / "x"))
    assert "--model NAME" in told
    told = complaint(persona4rec("batch", "export", "aspect", dataset.path, "--model", "m", "--out", tmp_path / "x"))
    assert "there is no stage 'aspect': choose summarize, aspects, personas, align" in told


@pytest.fixture
def chosen(dataset: Dataset) -> Dataset:
    """Return a dataset of two items with three personas each, of which some users chose both."""
    names = ("one", "two", "three")
    personas = {
        item: tuple(Persona(persona_id(item, n, "d", "r"), n, "d", "r", ("r0",)) for n in names) for item in ("i", "j")
    }
    write_jsonl(dataset.path / "items.jsonl", [*Dataset.open(dataset.path).items()])
    write_jsonl(dataset.path / "personas.jsonl", [ItemPersonas(item, made) for item, made in personas.items()])
    write_jsonl(dataset.path / "reviews.jsonl", [Review("r0", "u0", "i", "Fine.")])
    pairs = [f"u{n},{item},{n + place}" for n in range(10) for place, item in enumerate(("i", "j"))]
    (dataset.path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *pairs]) + "\n")
    return dataset


def test_alignments_tell_how_the_judge_prefers_places(stub: StubLlm, chosen: Dataset) -> None:
    stub.script = lambda _, body: completion('{"persona": "A", "reason": "It says so."}')
    told = " ".join(succeeded(persona4rec("align", chosen.path, "--llm", stub.url, "--judge", "orders")).split())
    assert "places chosen (expected of a judge that prefers none): 1: 100% (33%), 2: 0% (33%), 3: 0% (33%)" in told
    assert "judgements that changed with the order 10" in told
    assert "interactions with none before them 10" in told
    found = list(chosen.alignments())
    assert len(found) == 10
    assert {(one.item_id, one.history) for one in found} == {("j", ("i",))}


def test_likelihoods_come_from_the_echoed_prompt(stub: StubLlm, chosen: Dataset) -> None:
    stub.script = lambda _, body: echoed(body, {"one": -0.5, "two": -2.0, "three": -1.0})
    succeeded(persona4rec("align", chosen.path, "--llm", stub.url, "--judge", "likelihood"))
    assert {one.persona_id for one in chosen.alignments()} == {persona_id("j", "one", "d", "r")}


def echoed(body: dict[str, Any], scores: dict[str, float]) -> Answer:
    """Answer as vLLM does: a log-probability for each character but the first, as many as the persona is liked."""
    prompt = body["prompt"]
    assert (body["echo"], body["logprobs"]) == (True, 1)
    score = next(score for name, score in scores.items() if f"\n{name}. d r" in prompt)
    logprobs = {"text_offset": [*range(len(prompt) + 1)], "token_logprobs": [None, *[score] * len(prompt)]}
    usage = {"prompt_tokens": len(prompt), "completion_tokens": 1}
    return Answer(body=json.dumps({"choices": [{"text": "", "logprobs": logprobs}], "usage": usage}).encode())


def test_an_endpoint_without_prompt_log_probabilities_is_named(stub: StubLlm, chosen: Dataset) -> None:
    # What the server of llama.cpp answers: echo is passed over, and logprobs are of what was written.
    written = {"choices": [{"text": " x", "logprobs": {"content": [{"token": " x", "logprob": -1.0}]}}]}
    stub.script = lambda _, body: Answer(body=json.dumps(written).encode())
    told = complaint_of(persona4rec("align", chosen.path, "--llm", stub.url, "--judge", "likelihood"))
    assert f"{stub.url}/ gives no log-probabilities of a prompt" in told
    assert "--judge" in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--llm", "none", "--domain", "boks"], "--domain boks is neither one of books"),
        (["--llm", "none", "--judge", "dice"], "there is no judge 'dice': choose choice, orders, likelihood"),
        (["--llm", "none"], "align needs an LLM"),
    ],
)
def test_rubbish_is_told_in_one_line(chosen: Dataset, flags: list[str], told: str) -> None:
    assert told in complaint(persona4rec("align", chosen.path, *flags))


def test_without_an_llm(dataset: Dataset) -> None:
    for stage in ("summarize", "aspects"):
        assert "done" in succeeded(persona4rec(stage, dataset.path, "--llm", "none"))
    assert [one.summary for one in dataset.summaries()] == ["About the sea."]
    assert len(list(dataset.aspects())) == COUNT
