"""`persona4rec worker` against a real broker and a real Milvus, with the faults that happen to them."""

import json
import random
import re
import signal
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from reranker.dead_letters import DeadLetters
from reranker.histories import WRITE_SECONDS, open_histories
from reranker.kafka import KafkaSettings
from reranker.personas_milvus import MilvusPersonaStore
from reranker.segment import IndexedItem
from tests.conftest import free_port
from tests.integration.processes import MilvusProcess, eventually, milvus_process
from tests.integration.streaming import (
    Broker,
    Sent,
    WorkerProcess,
    all_committed,
    broker,
    committed,
    ingesting,
    send,
    send_raw,
    working,
)
from tests.stub_llm import Answer, StubLlm, completion

pytestmark = pytest.mark.integration

# 2025-01-01, in milliseconds: some time before the tests run, since no event is later than its sending.
START = 1_735_689_600_000
# Every review is reason enough, however the reviews fall into batches.
AT_ONCE = {"WORKER_DEBOUNCE_SECONDS": "0", "WORKER_LEAST_NEW": "1", "WORKER_NEW_SHARE": "0"}

THEMES = (
    "The slow burning romance and tender letters made me weep over every lonely chapter.",
    "A clever detective, a locked room and a murder weapon hidden in plain sight all evening.",
    "Brutal battles, marching armies and grim generals fill this enormous campaign history.",
    "Gentle jokes about village vicars, tea parties and gossiping aunts kept me smiling.",
)

Event = tuple[str, Mapping[str, Any]]


@pytest.fixture(scope="module")
def running_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture
def kafka(running_broker: Broker) -> KafkaSettings:
    return running_broker.settings()


@pytest.fixture
def milvus(tmp_path: Path) -> Iterator[MilvusProcess]:
    with milvus_process(tmp_path / "milvus") as running:
        yield running


def item(item_id: str, number: int = 0, **more: Any) -> Event:
    fields = {"itemId": item_id, "eventTime": START + number, "title": f"The Book of {item_id}"}
    return "items", {**fields, "description": f"A novel that is called {item_id}.", **more}


def review(item_id: str, number: int, user_id: str = "", **more: Any) -> Event:
    said = f"{THEMES[number % len(THEMES)]} Page {number} was best, said reader{number}."
    fields = {"reviewId": f"{item_id}-r{number}", "userId": user_id or f"user{number}", "itemId": item_id}
    return "reviews", {**fields, "eventTime": START + number, "text": said, "rating": 1 + number % 5, **more}


def indexed(milvus: MilvusProcess, item_id: str) -> IndexedItem | None:
    """Return an item as the index has it."""
    with closing(MilvusPersonaStore(milvus.uri)) as store:
        if (version := store.version()) is None:
            return None
        store.ensure_loaded(version)
        found = list(store.fetch(version, [item_id]))
    return found[0][0] if found else None


def personas(milvus: MilvusProcess, item_id: str) -> dict[str, tuple[str, ...]]:
    """Return the evidence of an item's personas by their ids, as the index has them."""
    found = indexed(milvus, item_id)
    return {row.persona.persona_id: row.persona.evidence for row in found.rows if row.persona} if found else {}


def evidence(milvus: MilvusProcess, item_id: str) -> set[str]:
    return {review_id for of_persona in personas(milvus, item_id).values() for review_id in of_persona}


def test_a_review_travels_to_its_writer_s_history_and_to_the_item_s_personas(
    kafka: KafkaSettings, tmp_path: Path, milvus: MilvusProcess
) -> None:
    histories = tmp_path / "histories.sqlite"
    with (
        working(tmp_path, kafka, milvus.uri, **AT_ONCE) as worker,
        ingesting(tmp_path, kafka, histories),
        closing(open_histories(str(histories), WRITE_SECONDS)) as store,
    ):
        send(kafka, [item("emma")])
        found = eventually(lambda: indexed(milvus, "emma"), "the new item in the index")
        assert found
        assert [row.persona for row in found.rows] == [None], "served by its summary"
        assert "called emma" in found.manifest.summary

        send(kafka, [review("emma", number) for number in range(4)])
        first = eventually(lambda: personas(milvus, "emma"), "personas", lambda seen: len(evidence_of(seen)) == 4)
        (event,) = eventually(lambda: store.read("user1", 10), "the reviewer's history")  # type: ignore[misc]
        assert (event.event_id, event.item_id, event.event_time) == ("emma-r1", "emma", START + 1)
        assert event.rating == 2
        assert event.aspects_space == "worded"
        assert event.aspects_vector is not None

        more = send(kafka, [review("emma", number) for number in range(4, 12)])
        eventually(lambda: all_committed(worker, more), "the next reviews")
        second = eventually(lambda: personas(milvus, "emma"), "more evidence", lambda p: len(evidence_of(p)) >= 10)
        assert set(first) & set(second), "what is kept keeps its id"

        send(kafka, [item("emma", 1, description="Another edition, with woodcuts.")])
        eventually(lambda: "woodcuts" in str(indexed(milvus, "emma")), "the changed summary")
        send(kafka, [item("emma", 2, deleted=True)])
        gone = eventually(lambda: indexed(milvus, "emma"), "the deletion", lambda seen: seen and seen.manifest.deleted)
        assert gone
        assert not gone.rows
        eventually(lambda: worker.health()[0] == 200, "good health")
        assert worker.metric("worker_aspects_sent_total") == 12
        assert worker.metric("worker_personas_total", outcome="rewritten") >= 2
        assert worker.stop() == 0
        assert "user1" not in worker.said()


def evidence_of(found: dict[str, tuple[str, ...]]) -> set[str]:
    return {review_id for of_persona in found.values() for review_id in of_persona}


def canonical(worker: WorkerProcess, milvus: MilvusProcess, items: Sequence[str]) -> dict[str, Any]:
    """Return everything that the state and the index hold, but for when it was written."""
    tables = {
        "items": "SELECT item_id, event_time, deleted, content, summary FROM items ORDER BY 1",
        "reviews": "SELECT review_id, item_id, user_id, event_time, deleted, content FROM reviews ORDER BY 1",
        "aspects": "SELECT review_id, slots, hex(vector), considered, sent FROM aspects ORDER BY 1",
        "personas": "SELECT item_id, content FROM personas ORDER BY 1",
        "due": "SELECT item_id FROM due",
    }
    with closing(sqlite3.connect(worker.histories)) as state:
        found: dict[str, Any] = {table: state.execute(query).fetchall() for table, query in tables.items()}
    for item_id in items:
        one = indexed(milvus, item_id)
        assert one
        found[item_id] = (one.manifest.fingerprint, one.manifest.row_ids, one.manifest.deleted)
    with closing(MilvusPersonaStore(milvus.uri)) as store:
        version = store.version()
        assert version
        found["rows"] = sorted(store.row_ids(version))
    return found


def stream(items: Sequence[str], reviews: int, seed: int) -> list[Event]:
    """Reviews of items in any order, 5 % of them twice; some are changed, one is taken down."""
    draw = random.Random(seed)
    # Without ratings: which are critical hangs on all there are, and partitions are read in any order.
    found = [review(item_id, number, rating=None) for item_id in items for number in range(reviews)]
    draw.shuffle(found)
    for again in draw.choices(found, k=max(1, len(found) // 20)):
        found.insert(draw.randrange(len(found)), again)
        changed = {**again[1], "eventTime": START + 5_000, "text": f"{again[1]['text']} And once more, a sequel."}
        found.append(("reviews", changed))
    return [*found, review(items[0], 0, eventTime=START + 9_000, deleted=True, text="")]


def open_work(worker: WorkerProcess, sent: Sequence[Sent]) -> int:
    """Return how many reviews the state holds that no committed offset covers, and items that are due in it."""
    offsets = committed(worker)
    covered = {one.fields.get("reviewId") for one in sent if one.offset < offsets.get((one.topic, one.partition), 0)}
    with closing(sqlite3.connect(worker.histories)) as state:
        held = {row[0] for row in state.execute("SELECT review_id FROM reviews")}
        due = int(state.execute("SELECT count(*) FROM due").fetchone()[0])
    return len(held - covered) + due


def kill_with_open_work(worker: WorkerProcess, sent: Sequence[Sent], draw: random.Random) -> None:
    """Stop the process at random moments until one finds it in the midst of work, then kill it there."""
    while True:
        time.sleep(draw.uniform(0, 0.1))
        worker.signal(signal.SIGSTOP)
        if open_work(worker, sent):
            worker.kill()
            return
        assert not all_committed(worker, sent), "all was committed before a kill found open work"
        worker.signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("kills", "reviews"),
    [(2, 5), pytest.param(20, 60, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])],
)
def test_killed_again_and_again_it_ends_in_the_state_of_a_clean_run(
    kafka: KafkaSettings, tmp_path: Path, milvus: MilvusProcess, kills: int, reviews: int
) -> None:
    items = ["emma", "dracula"]
    catalogue = tmp_path / "catalogue"
    catalogue.mkdir()
    lines = [json.dumps({"item_id": one, "title": one, "description": f"A novel called {one}."}) for one in items]
    (catalogue / "items.jsonl").write_text("\n".join(lines))
    sent = send(kafka, stream(items, reviews, seed=kills))
    draw = random.Random(kills)
    # One record at a time, so that what is rewritten when does not hang on how many came together.
    settings = {**AT_ONCE, "WORKER_MAX_BATCH": "1", "WORKER_DATASET": str(catalogue)}
    with working(tmp_path, kafka, milvus.uri, state="killed.sqlite", **settings) as worker:
        for _ in range(kills):
            eventually(lambda: committed(worker), "a first commit")
            kill_with_open_work(worker, sent, draw)
            worker.start()
        eventually(lambda: all_committed(worker, sent) and not open_work(worker, sent), "the end of all work")
        assert worker.stop() == 0
        killed = canonical(worker, milvus, items)
    with (
        milvus_process(tmp_path / "clean-milvus") as other,
        working(tmp_path, kafka, other.uri, state="clean.sqlite", name="clean", **settings) as worker,
    ):
        eventually(lambda: all_committed(worker, sent) and not open_work(worker, sent), "the end of the clean run")
        assert worker.stop() == 0
        assert killed == canonical(worker, other, items)


def test_an_erased_user_s_words_go_from_everywhere_and_a_replay_brings_nothing_back(
    kafka: KafkaSettings, tmp_path: Path, milvus: MilvusProcess
) -> None:
    events = [item("emma"), *(review("emma", number) for number in range(7))]
    ann = review("emma", 7, "ann", text="Peculiar ocelot sightings, marmalade ocelots and a singing lighthouse.")
    with (
        StubLlm(reasoner) as llm,
        working(tmp_path, kafka, milvus.uri, f"--llm={llm.url}", **AT_ONCE) as worker,
        closing(DeadLetters(kafka)) as letters,
    ):
        send_raw(kafka, "reviews", b'{"reviewId":"r","userId":"ann","itemId":"emma","text":"marmalade', b"emma")
        send(kafka, [*events, ann])
        eventually(lambda: "emma-r7" in evidence(milvus, "emma"), "a persona that rests on ann's review")
        assert len(list(letters.pending(["reviews"]))) == 1
        assert b"marmalade" in stored(tmp_path)

        now = int(time.time() * 1000)
        sent = send(kafka, [("erasures", {"eventId": "x", "userId": "ann", "eventTime": now})])
        eventually(lambda: all_committed(worker, sent), "the erasure")
        eventually(lambda: evidence(milvus, "emma") >= {"emma-r1", "emma-r2"}, "personas without her")
        assert worker.stop() == 0
        assert "emma-r7" not in evidence(milvus, "emma")
        assert "ocelot" not in str(indexed(milvus, "emma"))
        assert list(letters.pending(["reviews"])) == []
        assert b"marmalade" not in stored(tmp_path)
        assert b"ann" not in stored(tmp_path)

        asked = len(llm.requests)
        worker.start("--replay=earliest", f"--llm={llm.url}")
        eventually(lambda: worker.metric("worker_events_total") >= len(events) + 3, "the replay")
        eventually(lambda: worker.metric("worker_items_due") == 0, "the end of all work")
        assert worker.stop() == 0
        assert list(letters.pending(["reviews"])) == []
        assert b"marmalade" not in stored(tmp_path)
        assert "emma-r7" not in evidence(milvus, "emma")
        assert len(llm.requests) == asked, "nothing is asked twice"


def stored(folder: Path) -> bytes:
    """Return the bytes of the worker's files: state, replies, and their logs."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.sqlite*")))


def reasoner(number: int, body: dict[str, Any]) -> Answer:
    """Answer as a model would that repeats what it is shown."""
    shown = body["messages"][1]["content"]
    reviews = [" ".join(text.split()) for text in re.findall(r"<review[^>]*>\n(.*?)\n</review>", shown, re.DOTALL)]
    schema = body["response_format"]["json_schema"]
    if schema["name"] == "Summary":
        return completion(json.dumps({"summary": "A novel."}))
    if schema["name"] == "Personas":
        return completion(json.dumps({"personas": [repeated(reviews, at) for at in range(2)]}))
    slots = list(schema["schema"]["properties"])
    values = [*reviews[0].split(". ")[:2], *[None] * len(slots)]
    return completion(json.dumps(dict(zip(slots, values, strict=False))))


def repeated(reviews: Sequence[str], at: int) -> dict[str, Any]:
    """Return a persona that rests on every second review, in the words of its last one."""
    numbers = list(range(at + 1, len(reviews) + 1, 2))
    said = reviews[numbers[-1] - 1][:200]
    words = {"name": f"Reader for {' '.join(said.split()[:2])}", "description": f"A reader who looks for: {said}"}
    return {"evidence": numbers, **words, "preference_rationale": f"This persona appreciates: {said}"}


def test_poison_goes_to_the_dlq_whole_and_what_follows_is_read(
    kafka: KafkaSettings, tmp_path: Path, milvus: MilvusProcess
) -> None:
    bad = b'{"reviewId":"r","userId":"ann","itemId":"emma","eventTime":1}'
    send_raw(kafka, "reviews", bad, b"emma", (("trace", b"\x00\x01"),))
    send_raw(kafka, "items", b"\xff", b"emma")
    huge = " ".join(THEMES) * 2500
    send(kafka, [item("emma"), review("emma", 0, text=huge)])
    with working(tmp_path, kafka, milvus.uri, **AT_ONCE) as worker, closing(DeadLetters(kafka)) as letters:
        eventually(lambda: personas(milvus, "emma"), "personas of what followed, a review of 0.9 MB")
        (letter,) = letters.pending(["reviews"])
        assert (letter.value, letter.key, letter.headers) == (bad, b"emma", (("trace", b"\x00\x01"),))
        assert (letter.error, letter.message) == ("InvalidEventError", "text: empty in a review that is not deleted")
        assert len(list(letters.pending(["items"]))) == 1
        assert worker.metric("worker_events_total", outcome="dead") == 2


@pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.soak)])
def test_milvus_may_go_and_come_back(kafka: KafkaSettings, tmp_path: Path, milvus: MilvusProcess, seconds: int) -> None:
    with working(tmp_path, kafka, milvus.uri, **AT_ONCE) as worker:
        send(kafka, [item("emma"), *(review("emma", number) for number in range(3))])
        eventually(lambda: personas(milvus, "emma"), "personas")
        milvus.signal(signal.SIGKILL)
        sent = send(kafka, [item("dracula"), *(review("dracula", number) for number in range(3))])
        eventually(lambda: "refreshing" in worker.health()[1] or "writing" in worker.health()[1], "bad health")
        time.sleep(seconds)
        milvus.start()
        eventually(lambda: len(evidence(milvus, "dracula")) == 3, "what came while Milvus was away")
        eventually(lambda: all_committed(worker, sent), "its commits")
        eventually(lambda: worker.health()[0] == 200, "good health again")


def test_an_llm_may_go_and_come_back_and_is_asked_once_for_what_it_answered(
    kafka: KafkaSettings, tmp_path: Path, milvus: MilvusProcess
) -> None:
    impatient = {**AT_ONCE, "LLM_PATIENCE_SECONDS": "1", "LLM_MODEL": "stub"}
    port = free_port()
    llm = f"http://127.0.0.1:{port}/v1"
    endpoint = ExitStack()
    endpoint.enter_context(StubLlm(reasoner, port))
    with endpoint, working(tmp_path, kafka, milvus.uri, f"--llm={llm}", **impatient) as worker:
        send(kafka, [item("emma"), *(review("emma", number) for number in range(3))])
        eventually(lambda: len(evidence(milvus, "emma")) == 3, "personas")
        endpoint.close()
        sent = send(kafka, [review("emma", number) for number in range(3, 6)])
        eventually(lambda: worker.metric("worker_retries_total", error="EndpointError"), "a try in vain")
        assert worker.health()[0] == 503
        assert not all_committed(worker, sent)
        with StubLlm(reasoner, port) as again:
            told = "worker_aspects_sent_total"
            eventually(lambda: worker.metric(told) == 6, "aspects of what came while the LLM was away")
            eventually(lambda: all_committed(worker, sent), "its commits")
            eventually(lambda: worker.health()[0] == 200, "good health again")
            # Another group with nothing but the cache: as after a crash that lost the state.
            assert worker.stop() == 0
            asked = len(again.requests)
            Path(worker.histories).unlink()
            worker.start(f"--llm={llm}", "--replay=earliest")
            cached = {"stage": "aspects", "outcome": "cached"}
            eventually(lambda: worker.metric("worker_llm_calls_total", **cached) == 6, "replies from the cache")
            assert worker.stop() == 0
            names = [body["response_format"]["json_schema"]["name"] for body in again.requests[asked:]]
            assert "Aspects" not in names, "no review is asked about again"
