"""Any stage, run against a real endpoint that fails in every way, in a directory that does."""

import json
import multiprocessing
import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from offline import retries
from offline.alignment import AlignmentStage
from offline.appending import appending
from offline.aspects import AspectsStage
from offline.calls import Call, Model
from offline.dataset import Dataset, Item, write_jsonl
from offline.domains import load_domain
from offline.endpoints import Endpoint
from offline.errors import BudgetExhaustedError, ConfigurationError, DatasetError, EndpointError
from offline.flight import Outcome
from offline.llm import LlmClient
from offline.llm_cache import ResponseCache
from offline.llm_settings import LlmSettings
from offline.records import Review
from offline.rejects import entries
from offline.stages import Ask, Made, Problem, cached_only, open_calls, run, run_without_llm, unanswered
from offline.summaries import SummariesStage
from tests.offline.reviewed import answered, lines, number, reviewed
from tests.stub_llm import Answer, StubLlm, completion, failure

pytestmark = pytest.mark.integration

STAGE = AspectsStage(load_domain("generic"))
COUNT = 60


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ResponseCache]:
    with ResponseCache(tmp_path / "cache.sqlite") as opened:
        yield opened


@pytest.fixture
def stub() -> Iterator[StubLlm]:
    with StubLlm(lambda _, body: answered(body)) as running:
        yield running


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let waits be short; what decides them is tested in test_retries."""
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.02)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return reviewed(tmp_path / "data", COUNT)


@pytest.fixture
def clean(tmp_path: Path, stub: StubLlm) -> list[str]:
    """Return the records of a run in which nothing went wrong."""
    dataset = reviewed(tmp_path / "clean", COUNT)
    with ResponseCache(tmp_path / "clean.sqlite") as cache:
        client = LlmClient(Endpoint(stub.url, "stub"), cache, LlmSettings(concurrency=8))
        assert run(STAGE, dataset, lambda calls: client.run("aspects", calls)).done == COUNT
    stub.requests.clear()
    return lines(dataset.path / "aspects.jsonl")


Asking = Callable[..., Ask]


@pytest.fixture
def asking(stub: StubLlm, cache: ResponseCache) -> Asking:
    def made(**settings: Any) -> Ask:
        given = {"concurrency": 8, "timeout_seconds": 5, "patience_seconds": 20} | settings
        client = LlmClient(Endpoint(stub.url, "stub"), cache, LlmSettings(**given))
        return lambda calls: client.run("aspects", calls)

    return made


def records(dataset: Dataset) -> list[str]:
    return lines(dataset.path / "aspects.jsonl")


def rejects(dataset: Dataset) -> dict[str, str]:
    """Return the reasons in the rejects by the key of the subject."""
    path = dataset.path / "rejects.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert all(entry["file"] == "aspects" for entry in entries)
    return {entry["raw"]: entry["reason"] for entry in entries}


def test_a_finished_stage_asks_nobody_even_without_its_cache(
    stub: StubLlm, dataset: Dataset, asking: Asking, clean: list[str]
) -> None:
    first = run(STAGE, dataset, asking())
    assert (first.before, first.done, first.open, first.rejected) == (0, COUNT, 0, {})
    assert records(dataset) == clean
    stub.requests.clear()
    again = run(STAGE, dataset, unanswered)
    assert (again.before, again.done, again.open) == (COUNT, 0, 0)
    assert records(dataset) == clean


def test_only_new_reviews_are_asked_about(stub: StubLlm, dataset: Dataset, asking: Asking, tmp_path: Path) -> None:
    run(STAGE, dataset, asking())
    stub.requests.clear()
    grown = reviewed(dataset.path, COUNT + 3)
    assert run(STAGE, grown, asking()).done == 3
    assert sorted(map(number, stub.requests)) == [COUNT, COUNT + 1, COUNT + 2]


def test_records_of_reviews_that_are_gone_are_taken_away_and_others_stay(
    stub: StubLlm, dataset: Dataset, asking: Asking, clean: list[str]
) -> None:
    run(STAGE, dataset, asking())
    foreign = '{"review_id": "of someone else", "item_id": "i", "aspects": {"purpose": "p"}}'
    with (dataset.path / "aspects.jsonl").open("a") as file:
        file.write(foreign + "\n")
    write_jsonl(dataset.path / "reviews.jsonl", list(dataset.reviews())[2:])
    stub.requests.clear()
    report = run(STAGE, dataset, asking())
    assert (report.gone, report.stale, report.done, report.before) == (2, 0, 0, COUNT - 1)
    left = {json.loads(line)["review_id"] for line in set(clean) - set(records(dataset))}
    assert left == {"r0", "r1"}
    assert foreign in records(dataset)
    assert stub.requests == []
    assert run(STAGE, dataset, unanswered).gone == 0


def reworded(dataset: Dataset, changed: set[int]) -> Dataset:
    """Let some reviews say more than they did."""
    reviews = [
        replace(review, text=f"{review.text} On second thoughts: dull.") if n in changed else review
        for n, review in enumerate(dataset.reviews())
    ]
    write_jsonl(dataset.path / "reviews.jsonl", reviews)
    return dataset


def test_records_of_reviews_that_have_changed_are_made_anew_and_they_alone(
    stub: StubLlm, dataset: Dataset, asking: Asking, clean: list[str]
) -> None:
    run(STAGE, dataset, asking())
    path = dataset.path / "aspects.jsonl"
    foreign = '{"review_id": "r1", "item_id": "i", "aspects": {"purpose": "of someone else"}}'
    kept = [line for line in path.read_text().splitlines() if json.loads(line)["review_id"] != "r1"]
    path.write_text("\n".join([*kept, foreign, "a bad line"]) + "\n")
    stub.requests.clear()
    changed = reworded(dataset, {1, 7, 30})
    assert len(list(open_calls(STAGE, changed))) == 2
    report = run(STAGE, changed, asking())
    assert (report.stale, report.before, report.done) == (2, COUNT - 2, 2)
    assert sorted(map(number, stub.requests)) == [7, 30], "r1 does not say what it was made from"
    left = set(clean) & set(records(changed))
    assert {json.loads(line)["review_id"] for line in set(clean) - left} == {"r1", "r7", "r30"}
    assert {foreign, "a bad line"} <= set(records(changed))
    assert run(STAGE, changed, unanswered).stale == 0


def test_what_has_changed_keeps_its_record_until_there_is_another(
    dataset: Dataset, asking: Asking, clean: list[str]
) -> None:
    run(STAGE, dataset, asking())
    changed = reworded(dataset, {1, 7, 30})
    report = run(STAGE, changed, unanswered)
    assert (report.stale, report.before, report.done, report.open) == (3, COUNT - 3, 0, 3)
    assert records(changed) == clean


def test_what_a_killed_run_has_made_anew_is_taken_over_once(
    stub: StubLlm, dataset: Dataset, asking: Asking, clean: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(STAGE, dataset, asking())
    changed, anew = reworded(dataset, {1, 7, 30}), dataset.path / "aspects.anew.jsonl"
    with monkeypatch.context() as death:
        death.setattr("offline.stages.take_over", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(STAGE, changed, asking())
    assert records(changed) == clean
    left = anew.read_bytes()
    stub.requests.clear()
    for _ in ("killed before", "killed when it was nearly over"):
        anew.write_bytes(left)
        report = run(STAGE, changed, asking())
        assert (report.stale, report.before, report.done, len(stub.requests)) == (0, COUNT, 0, 0)
        assert not anew.exists()
        assert len({json.loads(line)["review_id"] for line in records(changed)}) == len(records(changed)) == COUNT
        assert len(set(clean) - set(records(changed))) == 3
    # What has changed once more is made once more.
    anew.write_bytes(left)
    reworded(changed, {7})
    assert (run(STAGE, changed, unanswered).stale, anew.exists(), len(records(changed))) == (1, False, COUNT)


def stopped(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_change_that_no_prompt_shows_costs_nothing(
    stub: StubLlm, dataset: Dataset, asking: Asking, clean: list[str]
) -> None:
    run(STAGE, dataset, asking())
    stub.requests.clear()
    write_jsonl(dataset.path / "reviews.jsonl", [replace(review, rating=1) for review in dataset.reviews()])
    report = run(STAGE, dataset, asking())
    assert (report.stale, report.done, len(stub.requests)) == (COUNT, COUNT, 0)
    assert {record.rating for record in dataset.aspects()} == {1.0}


def test_an_item_that_has_changed_is_summarised_anew(dataset: Dataset) -> None:
    stage = SummariesStage(STAGE.domain)
    run_without_llm(stage, dataset)
    write_jsonl(dataset.path / "items.jsonl", [Item("i", "Item", "About the mountains.")])
    assert run_without_llm(stage, dataset).stale == 1
    assert [one.summary for one in dataset.summaries()] == ["About the mountains."]
    write_jsonl(dataset.path / "items.jsonl", [Item("i")])
    assert run_without_llm(stage, dataset).rejected
    assert not dataset.has("summaries"), "there is nothing to summarise any more"


FAULTS = (
    completion("I would rather talk about something else"),
    completion('{"purpose": 1}'),
    completion('{"category_preference": null, "purp', finish="length"),
    completion("", refusal="I cannot"),
    failure(429, retry_after="0"),
    failure(503),
    Answer(instead="reset"),
)


def test_faults_that_pass_change_nothing(stub: StubLlm, dataset: Dataset, asking: Asking, clean: list[str]) -> None:
    seen: Counter[int] = Counter()

    def script(_: int, body: dict[str, Any]) -> Answer:
        seen[number(body)] += 1
        return FAULTS[number(body) % len(FAULTS)] if seen[number(body)] == 1 else answered(body)

    stub.script = script
    assert run(STAGE, dataset, asking()).done == COUNT
    assert records(dataset) == clean
    assert rejects(dataset) == {}


def test_faults_that_stay_cost_their_items_alone_and_say_why(
    stub: StubLlm, dataset: Dataset, asking: Asking, clean: list[str]
) -> None:
    bad = dict(enumerate((*FAULTS[:4], completion("", finish="content_filter"), failure(400, "too long"))))
    # Reviews from 10 on are answered first: an endpoint that never answered would be at fault itself.
    stub.script = lambda _, body: bad[number(body)] if number(body) in bad else answered(body)
    ask = asking(concurrency=32)
    report = run(STAGE, dataset, ask)
    assert report.rejected == dict.fromkeys(("malformed", "schema", "truncated", "refused", "filtered", "request"), 1)
    assert records(dataset) == [line for line in clean if json.loads(line)["review_id"] not in {f"r{n}" for n in bad}]
    assert {key: reason.split(":")[0] for key, reason in rejects(dataset).items()} == {
        "r0": "malformed",
        "r1": "schema",
        "r2": "truncated",
        "r3": "refused",
        "r4": "filtered",
        "r5": "request",
    }
    stub.requests.clear()
    stub.script = lambda _, body: answered(body)
    assert run(STAGE, dataset, asking()).done == 1
    assert set(map(number, stub.requests)) == {5}, "a reply that was of no use is asked for again"
    assert set(rejects(dataset)) == {"r0", "r1", "r2", "r3", "r4"}


def test_an_empty_answer_is_no_record(stub: StubLlm, dataset: Dataset, asking: Asking) -> None:
    nothing = json.dumps(dict.fromkeys(STAGE.domain.slots))
    stub.script = lambda _, body: completion(nothing) if number(body) % 2 else answered(body)
    report = run(STAGE, dataset, asking())
    assert (report.done, report.rejected) == (COUNT // 2, {"says too little": COUNT // 2})
    assert report.counts["null slots"] == COUNT // 2 * 3 + COUNT // 2 * 4


def test_what_was_told_of_subjects_stays_while_others_are_asked_about(
    stub: StubLlm, dataset: Dataset, asking: Asking
) -> None:
    nothing = json.dumps(dict.fromkeys(STAGE.domain.slots))
    stub.script = lambda _, body: completion(nothing) if number(body) < 3 else answered(body)
    run(STAGE, dataset, asking())
    told = rejects(dataset)
    assert set(told) == {"r0", "r1", "r2"}
    run(STAGE, dataset, unanswered)
    assert rejects(dataset) == told, "nobody is asked"
    run(STAGE, reviewed(dataset.path, COUNT + 1), asking())
    assert rejects(dataset) == told
    write_jsonl(dataset.path / "reviews.jsonl", list(dataset.reviews())[1:])
    run(STAGE, dataset, unanswered)
    assert set(rejects(dataset)) == {"r1", "r2"}


@dataclass(frozen=True)
class LeavingOut(SummariesStage):
    """Leaves two parts out of every summary."""

    def extracted(self, subject: Item) -> Made:
        return replace(super().extracted(subject), problems=(Problem("invented"), Problem("repeated", "twice")))


def test_what_was_left_out_of_records_is_told_as_long_as_they_stand(dataset: Dataset) -> None:
    stage = LeavingOut(STAGE.domain)
    write_jsonl(dataset.path / "items.jsonl", [Item(f"i{n}", f"Item number {n}") for n in range(3)])
    path = dataset.path / "rejects.jsonl"
    assert run_without_llm(stage, dataset).left_out == {"invented": 3, "repeated": 3}
    told = path.read_text()
    assert told.count("\n") == 6
    assert run_without_llm(stage, dataset).left_out == {}
    assert path.read_text() == told


@dataclass(frozen=True)
class Deadly(LeavingOut):
    """Dies at the third item."""

    def extracted(self, subject: Item) -> Made:
        if subject.item_id == "i2":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().extracted(subject)


def die(folder: Path) -> None:
    run_without_llm(Deadly(STAGE.domain), Dataset.open(folder))


def test_what_a_killed_run_left_out_is_told_and_by_the_next_one_not_again(dataset: Dataset) -> None:
    write_jsonl(dataset.path / "items.jsonl", [Item(f"i{n}", f"Item number {n}") for n in range(4)])
    process = multiprocessing.get_context("forkserver").Process(target=die, args=(dataset.path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    told = [(entry.raw, entry.reason) for entry in entries(dataset.path / "rejects.jsonl")]
    assert told == [(key, reason) for key in ("i0", "i1") for reason in ("invented", "repeated: twice")]
    assert run_without_llm(LeavingOut(STAGE.domain), dataset).done == 2
    after = [json.loads(line)["raw"] for line in (dataset.path / "rejects.jsonl").read_text().splitlines()]
    assert after == ["i0", "i0", "i1", "i1", "i2", "i2", "i3", "i3"]


class Choosy(AspectsStage):
    """Refuses answers that are good by the schema."""

    def made(self, subject: Review, answers: Sequence[BaseModel]) -> Made:
        dull = answers[0].model_dump()["quality_criteria"] == "dull"
        return Made(None, (Problem("dull"),)) if dull else super().made(subject, answers)


def test_what_a_stage_refused_is_asked_anew_where_that_is_wished(
    stub: StubLlm, dataset: Dataset, asking: Asking, clean: list[str]
) -> None:
    dull = json.dumps(dict.fromkeys(STAGE.domain.slots, "dull"))
    # As from a model that is greedy at first: the same request gets the same reply.
    stub.script = lambda _, body: answered(body) if body["temperature"] else completion(dull)
    choosy = Choosy(STAGE.domain)
    for requests in (COUNT, 0):
        assert run(choosy, dataset, asking()).rejected == {"dull": COUNT}
        assert len(stub.requests) == requests
        stub.requests.clear()
    assert run(choosy, dataset, asking(), retry_rejected=True).done == COUNT
    assert len(stub.requests) == COUNT
    assert records(dataset) == clean


def test_what_is_refused_once_more_is_asked_about_once_a_run(stub: StubLlm, dataset: Dataset, asking: Asking) -> None:
    stub.script = lambda _, body: completion(json.dumps(dict.fromkeys(STAGE.domain.slots, "dull")))
    choosy = Choosy(STAGE.domain)
    for again in (False, True, True):
        assert run(choosy, dataset, asking(), retry_rejected=again).rejected == {"dull": COUNT}
        assert len(stub.requests) == COUNT
        stub.requests.clear()


def test_nobody_is_asked_again_about_a_review_that_says_too_little(
    stub: StubLlm, dataset: Dataset, asking: Asking
) -> None:
    stub.script = lambda _, body: completion(json.dumps(dict.fromkeys(STAGE.domain.slots)))
    for again in (False, True):
        assert run(STAGE, dataset, asking(), retry_rejected=again).rejected == {"says too little": COUNT}
        assert len(stub.requests) == COUNT


def test_a_budget_stops_a_run_that_the_next_one_goes_on_with(
    stub: StubLlm, dataset: Dataset, asking: Asking, clean: list[str]
) -> None:
    report = run(STAGE, dataset, asking(token_budget=5000))
    assert isinstance(report.stopped, BudgetExhaustedError)
    assert 0 < report.done < COUNT
    assert len(records(dataset)) == report.done
    assert run(STAGE, dataset, asking()).stopped is None
    assert records(dataset) == clean
    assert len(stub.requests) == COUNT


def test_an_endpoint_that_stays_away_stops_a_run_that_the_next_one_goes_on_with(
    stub: StubLlm, dataset: Dataset, asking: Asking, clean: list[str]
) -> None:
    stub.script = lambda n, body: answered(body) if n < 20 else failure(503)
    report = run(STAGE, dataset, asking(patience_seconds=0.2))
    assert isinstance(report.stopped, EndpointError)
    assert set(report.rejected) == {"unreachable"}
    stub.script = lambda _, body: answered(body)
    assert run(STAGE, dataset, asking()).stopped is None
    assert records(dataset) == clean
    assert rejects(dataset) == {}


def test_a_full_disk_rejects_what_it_cannot_take_and_tears_nothing(
    stub: StubLlm, dataset: Dataset, asking: Asking, cache: ResponseCache, clean: list[str]
) -> None:
    run(STAGE, dataset, asking())
    (dataset.path / "aspects.jsonl").unlink()
    stub.requests.clear()
    from_cache: Ask = lambda calls: cached_only(calls, Model("stub"), cache)  # noqa: E731
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        report = run(STAGE, dataset, from_cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 < report.done < COUNT
    assert report.rejected == {"unsaved": COUNT - report.done}
    assert set(records(dataset)) < set(clean)
    assert run(STAGE, dataset, from_cache).done == COUNT - report.done
    assert records(dataset) == clean
    assert not stub.requests


def test_a_torn_record_is_made_again_at_no_cost(
    stub: StubLlm, dataset: Dataset, asking: Asking, clean: list[str]
) -> None:
    run(STAGE, dataset, asking())
    path = dataset.path / "aspects.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    stub.requests.clear()
    assert run(STAGE, dataset, asking()).done == 1
    assert records(dataset) == clean
    assert not stub.requests


def test_what_is_not_asked_yet_stays_open(dataset: Dataset) -> None:
    report = run(STAGE, dataset, unanswered)
    assert (report.done, report.open, report.rejected) == (0, COUNT, {})
    assert rejects(dataset) == {}
    assert len(list(open_calls(STAGE, dataset))) == COUNT


def test_without_an_llm(dataset: Dataset) -> None:
    report = run_without_llm(STAGE, dataset)
    assert report.done + sum(report.rejected.values()) == COUNT
    assert run_without_llm(STAGE, dataset).done == 0
    with pytest.raises(ConfigurationError, match="align needs an LLM"):
        AlignmentStage(STAGE.domain).extracted(None)  # type: ignore[arg-type]


def test_two_runs_at_once_are_refused(dataset: Dataset) -> None:
    with appending(dataset.path / "aspects.jsonl"), pytest.raises(DatasetError, match="written by another process"):
        run(STAGE, dataset, unanswered)


def test_records_in_another_format_are_not_written_beside(dataset: Dataset) -> None:
    (dataset.path / "aspects.jsonl.gz").write_bytes(b"")
    with pytest.raises(DatasetError, match="another format"):
        run(STAGE, dataset, unanswered)
    assert not (dataset.path / "aspects.jsonl").exists()


def test_a_defect_shows_itself_and_keeps_what_was_done(dataset: Dataset, cache: ResponseCache, asking: Asking) -> None:
    def failing(calls: Iterator[Call[Any]]) -> Iterator[Outcome[Any]]:
        for place, outcome in enumerate(asking()(calls)):
            if place == 10:
                raise ZeroDivisionError
            yield outcome

    with pytest.raises(ZeroDivisionError):
        run(STAGE, dataset, failing)
    assert len(records(dataset)) == 10
