"""The personas stage with its judge, run against a real endpoint that fails in every way, and killed on its way."""

import json
import multiprocessing
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offline import retries
from offline.calls import Model
from offline.dataset import Dataset
from offline.domains import load_domain
from offline.endpoints import Endpoint
from offline.llm import LlmClient
from offline.llm_cache import ResponseCache
from offline.llm_settings import LlmSettings
from offline.personas import PersonasStage
from offline.stages import Ask, cached_answers, cached_only, open_calls, run
from tests.offline.encoders import Worded
from tests.offline.reviewed import lines, number
from tests.offline.written import PERSONAS, is_question, to_be_written, written
from tests.persona4rec.running import eventually
from tests.stub_llm import Answer, StubLlm, completion, failure

pytestmark = pytest.mark.integration

STAGE = PersonasStage(load_domain("generic"), Worded(), "llm")
COUNT = 24
CALLS = COUNT * (1 + len(PERSONAS))
MODEL = Model("stub")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let waits be short; what decides them is tested in test_retries."""
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.02)


@pytest.fixture
def stub() -> Iterator[StubLlm]:
    with StubLlm(lambda _, body: written(body)) as running:
        yield running


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return to_be_written(tmp_path / "data", COUNT)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ResponseCache]:
    with ResponseCache(tmp_path / "cache.sqlite") as opened:
        yield opened


@pytest.fixture
def ask(stub: StubLlm, cache: ResponseCache) -> Ask:
    return asking(stub.url, cache)


def asking(url: str, cache: ResponseCache) -> Ask:
    client = LlmClient(Endpoint(url, "stub"), cache, LlmSettings(concurrency=4, patience_seconds=20))
    return lambda calls: client.run("personas", calls)


def names(dataset: Dataset) -> dict[str, list[str]]:
    return {of_item.item_id: [persona.name for persona in of_item.personas] for of_item in dataset.personas()}


ALL = {f"i{n}": [str(persona["name"]) for persona in PERSONAS] for n in range(COUNT)}


def test_what_the_judge_finds_unsupported_is_left_out_and_counted(stub: StubLlm, dataset: Dataset, ask: Ask) -> None:
    def script(_: int, body: dict[str, Any]) -> Answer:
        refused = is_question(body) and "ropes" in body["messages"][1]["content"] and number(body) % 2
        return completion('{"supported": "no"}') if refused else written(body)

    stub.script = script
    report = run(STAGE, dataset, ask)
    assert report.left_out == {"not supported by its evidence": COUNT // 2}
    storms, ropes = (str(persona["name"]) for persona in PERSONAS)
    assert names(dataset) == {f"i{n}": [storms] if n % 2 else [storms, ropes] for n in range(COUNT)}
    assert len(stub.requests) == CALLS


def test_the_judge_sees_the_rationale_and_its_evidence_alone(stub: StubLlm, dataset: Dataset, ask: Ask) -> None:
    run(STAGE, dataset, ask)
    questions = [body["messages"][1]["content"] for body in stub.requests if is_question(body)]
    assert len(questions) == COUNT * len(PERSONAS)
    assert all(("are splendid" in text) != ("endless chapters" in text) for text in questions)
    assert not any(str(persona["name"]) in text for persona in PERSONAS for text in questions)


def test_what_is_asked_of_the_judge_is_foreseen_then_known_then_paid_for(
    dataset: Dataset, ask: Ask, cache: ResponseCache
) -> None:
    assert len(list(open_calls(STAGE, dataset))) == COUNT
    assert len(list(open_calls(STAGE, dataset, foreseen=True))) == CALLS
    writing_alone = PersonasStage(STAGE.domain, STAGE.encoder)
    run(writing_alone, dataset, ask)
    (dataset.path / "personas.jsonl").unlink()
    assert len(list(open_calls(STAGE, dataset, cached_answers(MODEL, cache)))) == CALLS
    half_way = run(STAGE, dataset, lambda calls: cached_only(calls, MODEL, cache))
    assert (half_way.done, half_way.open) == (0, COUNT), "as after a batch that nobody was asked to judge in"
    run(STAGE, dataset, ask)
    assert names(dataset) == ALL
    assert cache.spending()[0].usage.asks == CALLS


BAD: dict[str, Answer] = {
    "malformed": completion("I would rather talk about something else"),
    "schema": completion('{"personas": [], "supported": "perhaps"}'),
    "truncated": completion('{"personas": [{"evidence": [1], "na', finish="length"),
    "refused": completion("", refusal="I cannot"),
    "filtered": completion("", finish="content_filter"),
}


@pytest.mark.parametrize("asked_to_judge", [False, True], ids=["writing", "judging"])
def test_a_fault_that_passes_changes_nothing_and_one_that_stays_costs_its_item_alone(
    asked_to_judge: bool, stub: StubLlm, dataset: Dataset, ask: Ask
) -> None:
    bad = dict(enumerate(BAD.values()))
    seen: Counter[str] = Counter()

    def script(n: int, body: dict[str, Any]) -> Answer:
        if n % 3 == 0:
            return failure(429, retry_after="0")
        text = body["messages"][1]["content"]
        seen[text] += 1
        hit = is_question(body) is asked_to_judge
        passing = hit and number(body) >= 2 * len(bad) and seen[text] == 1
        staying = hit and number(body) in bad
        return bad[number(body) % len(bad)] if staying or (passing and number(body) % len(bad) < 4) else written(body)

    stub.script = script
    report = run(STAGE, dataset, ask)
    assert report.rejected == dict.fromkeys(BAD, 1)
    assert names(dataset) == {item_id: found for item_id, found in ALL.items() if int(item_id[1:]) not in bad}
    entries = [json.loads(line) for line in (dataset.path / "rejects.jsonl").read_text().splitlines()]
    assert {entry["raw"]: entry["reason"].split(":")[0] for entry in entries} == {
        f"i{n}": reason for n, reason in enumerate(BAD)
    }


def go_on(url: str, folder: Path) -> None:
    with ResponseCache(folder / "cache.sqlite") as cache:
        run(STAGE, Dataset.open(folder / "data"), asking(url, cache))


PROCESSES = multiprocessing.get_context("forkserver")
"""Processes of their own, forked from one that has imported all this once."""
PROCESSES.set_forkserver_preload([__name__])


def test_kills_at_any_moment_lose_what_was_in_flight_at_most(
    stub: StubLlm, dataset: Dataset, tmp_path: Path, ask: Ask
) -> None:
    stub.script = lambda _, body: written(body, seconds=0.05)
    kills = sorted(random.Random(3).sample(range(1, CALLS - 10), 5))
    for after in kills:
        process = PROCESSES.Process(target=go_on, args=(stub.url, tmp_path))
        process.start()
        eventually(lambda least=after: len(stub.requests) >= least, f"{after} requests came")  # type: ignore[misc]
        process.kill()
        process.join(10)
        assert process.exitcode == -signal.SIGKILL
    stub.script = lambda _, body: written(body)
    last = run(STAGE, dataset, ask)
    assert (last.open, last.rejected) == (0, {})
    assert names(dataset) == ALL
    assert len(lines(dataset.path / "personas.jsonl")) == COUNT
    # Four in flight, and those answered within the time that replies are gathered for one commit.
    assert len(stub.requests) <= CALLS + len(kills) * 2 * 4
