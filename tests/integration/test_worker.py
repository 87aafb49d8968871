"""`persona4rec worker` against a real broker and a real Milvus, with the faults that happen to them."""

import itertools
import json
import random
import re
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import TopicPartition

from offline.dataset import Dataset
from offline.llm_cache import CACHE_FILE
from offline.publish import PublishReport, documents, publish
from reranker.batches import sort_out
from reranker.dead_letters import DeadLetters
from reranker.histories import WRITE_SECONDS, open_histories
from reranker.histories_sqlite import SqliteHistoryStore
from reranker.kafka import KafkaSettings, reader
from reranker.personas_milvus import MilvusPersonaStore
from reranker.segment import IndexedItem
from tests.conftest import free_port
from tests.integration.processes import PATIENCE_SECONDS, MilvusProcess, eventually, milvus_process
from tests.integration.streaming import (
    KEYS,
    PARTITIONS,
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
from tests.offline.encoders import Worded
from tests.persona4rec.running import persona4rec, succeeded
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
    # Of this item alone, so that no reply is that to another's.
    said = f"{THEMES[number % len(THEMES)]} Page {number} of {item_id} was best, said reader{number}."
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


def canonical(worker: WorkerProcess, milvus: MilvusProcess) -> dict[str, Any]:
    """Return everything that state, index and histories hold, but for when it was written."""
    tables = {
        "items": "SELECT item_id, event_time, deleted, content, summary FROM items ORDER BY 1",
        "reviews": "SELECT review_id, item_id, user_id, event_time, deleted, content FROM reviews ORDER BY 1",
        "aspects": "SELECT review_id, slots, hex(vector), considered, sent FROM aspects ORDER BY 1",
        "personas": "SELECT item_id, content FROM personas ORDER BY 1",
        "due": "SELECT item_id FROM due",
    }
    with closing(sqlite3.connect(worker.histories)) as state:
        found: dict[str, Any] = {table: state.execute(query).fetchall() for table, query in tables.items()}
    with closing(MilvusPersonaStore(milvus.uri)) as store:
        version = store.version()
        assert version
        store.ensure_loaded(version)
        for manifest in store.manifests_of(version, [row[0] for row in found["items"]]):
            found[manifest.item_id] = manifest.fingerprint, manifest.row_ids, manifest.deleted
        found["rows"] = sorted(store.row_ids(version))
    return found | {"histories": histories(worker.kafka, Path(worker.histories).with_suffix(".histories"))}


def histories(kafka: KafkaSettings, path: Path) -> list[tuple[Any, ...]]:
    """Return what the topic `aspects` makes of histories."""
    where = [TopicPartition(kafka.topic("aspects"), partition) for partition in range(PARTITIONS)]
    records: list[Any] = []
    with closing(reader(kafka)) as consumer, closing(SqliteHistoryStore(path)) as store:
        consumer.assign(where)

        def read_all() -> bool:
            records.extend(record for polled in consumer.poll(200).values() for record in polled)
            return all(consumer.highwater(one) == consumer.position(one) for one in where)

        eventually(read_all, "the end of the aspects")
        updates = sort_out(records, kafka.topic_prefix).updates
        store.merge(updates)
        return [
            (user_id, event.event_id, event.event_time, event.rating, np.asarray(event.aspects_vector).tobytes())
            for user_id in sorted(updates)
            for event in store.read(user_id, 1000) or ()
        ]


def stream(items: Sequence[str], each: int, seed: int) -> list[Event]:
    """Return events of items, one of each in turn; the last takes a review down.

    Between two of one item lies one of every other, so that no batch of fewer holds both: how the events fall into
    batches then does not decide about when what is rewritten.
    """
    draw = random.Random(seed)
    turns = zip(*(reviews_of(item_id, each, draw) for item_id in items), strict=True)
    return [event for turn in turns for event in turn] + [
        review(items[0], 0, eventTime=START + 9_000, deleted=True, text="")
    ]


def reviews_of(item_id: str, count: int, draw: random.Random) -> list[Event]:
    """Return reviews of an item: 5 % of them twice, 5 % out of order, 5 % changed later, but at least one of each."""
    # Without ratings: which are critical hangs on all there are, and partitions are read in any order.
    found = [review(item_id, number, rating=None) for number in range(count)]
    for _ in range(max(1, count // 20)):
        found.insert(draw.randrange(len(found)), draw.choice(found))
        found.insert(draw.randrange(len(found)), found.pop(draw.randrange(len(found))))
        topic, fields = draw.choice(found)
        changed = {**fields, "eventTime": START + 5_000, "text": f"{fields['text']} And once more, a sequel."}
        # Perhaps before what it is a change of.
        found.insert(draw.randrange(len(found)), (topic, changed))
    return found


def uncommitted(worker: WorkerProcess, sent: Sequence[Sent]) -> int:
    """Return how many reviews the state holds that no committed offset covers."""
    offsets = committed(worker)
    covered = {one.fields.get("reviewId") for one in sent if one.offset < offsets.get((one.topic, one.partition), 0)}
    with closing(sqlite3.connect(worker.histories)) as state:
        return len({row[0] for row in state.execute("SELECT review_id FROM reviews")} - covered)


def due(worker: WorkerProcess) -> int:
    """Return of how many items something is still to be done."""
    with closing(sqlite3.connect(worker.histories)) as state:
        return int(state.execute("SELECT count(*) FROM due").fetchone()[0])


def finished(worker: WorkerProcess, sent: Sequence[Sent]) -> bool:
    return all_committed(worker, sent) and not due(worker)


def freeze(worker: WorkerProcess, sent: Sequence[Sent], at_work: Callable[[], int], draw: random.Random) -> None:
    """Stop the process at random moments until one finds it in the midst of work, and leave it there."""
    while True:
        # Far longer than it is stopped for to be looked at: calls that time out meanwhile are another test's matter.
        time.sleep(draw.uniform(0.1, 0.5))
        worker.signal(signal.SIGSTOP)
        if at_work():
            return
        assert not finished(worker, sent), "all was done before work was found open"
        worker.signal(signal.SIGCONT)


@dataclass
class Model:
    """A model's replies, as `reasoner` gives them, and who asked for them."""

    asked: list[tuple[str, str]] = field(default_factory=list)
    """Request and reply."""

    def __call__(self, number: int, body: dict[str, Any]) -> Answer:
        answer = reasoner(number, body)
        reply = json.loads(answer.body)["choices"][0]["message"]["content"]
        self.asked.append((json.dumps(body), reply))
        return answer

    def unsaved(self, cache: Path) -> set[str]:
        """Return the requests whose replies the cache does not hold; each has a reply of its own."""
        with closing(sqlite3.connect(cache)) as replies:
            saved = {row[0] for row in replies.execute("SELECT text FROM replies")}
        return {request for request, reply in self.asked if reply not in saved}

    def asked_again(self) -> set[str]:
        return {request for request, times in Counter(request for request, _ in self.asked).items() if times > 1}


@dataclass(frozen=True)
class Plan:
    """What a worker is given to do."""

    items: int
    each: int
    """Reviews of an item."""
    batch: int
    """At most that many records at once, fewer than there are items."""

    @property
    def item_ids(self) -> list[str]:
        return [f"book{number}" for number in range(self.items)]

    @property
    def events(self) -> list[Event]:
        return stream(self.item_ids, self.each, seed=1)

    def settings(self, folder: Path) -> dict[str, str]:
        """Return the worker's settings; the items are in a dataset in `folder`."""
        catalogue = folder / "catalogue"
        catalogue.mkdir(exist_ok=True)
        lines = [
            json.dumps({"item_id": one, "title": one, "description": f"A novel called {one}."}) for one in self.item_ids
        ]
        (catalogue / "items.jsonl").write_text("\n".join(lines))
        bounds = {"WORKER_MAX_BATCH": str(self.batch), "WORKER_REFRESH_ITEMS": str(self.items)}
        endless = {"WORKER_REWRITES_PER_HOUR": "1000000"}
        return {**AT_ONCE, **bounds, **endless, "WORKER_DATASET": str(catalogue), "LLM_MODEL": "stub"}


SHORT, LONG = Plan(items=4, each=12, batch=1), Plan(items=1000, each=18, batch=64)
"""Of the long one, 20 events an item make 20,000."""


@pytest.fixture(scope="module")
def clean_run(running_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Plan], dict[str, Any]]:
    """Give what a plan ends in where nothing disturbs it; each is run once."""

    @cache
    def run(plan: Plan) -> dict[str, Any]:
        folder, kafka = tmp_path_factory.mktemp("clean"), running_broker.settings()
        sent = send(kafka, plan.events)
        with (
            StubLlm(reasoner) as llm,
            milvus_process(folder / "milvus") as milvus,
            working(folder, kafka, milvus.uri, f"--llm={llm.url}", **plan.settings(folder)) as worker,
        ):
            eventually(lambda: finished(worker, sent), "the end of the clean run", seconds=plan_patience(plan))
            assert worker.stop() == 0
            return canonical(worker, milvus)

    return run


def plan_patience(plan: Plan) -> float:
    """Return seconds: a second an event is ten times what one takes."""
    return PATIENCE_SECONDS + plan.items * plan.each


@pytest.mark.parametrize(
    ("kills", "plan"), [(5, SHORT), pytest.param(50, LONG, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])]
)
def test_killed_again_and_again_it_ends_in_the_state_of_a_clean_run_and_asks_nothing_twice(
    kafka: KafkaSettings,
    tmp_path: Path,
    milvus: MilvusProcess,
    clean_run: Callable[[Plan], dict[str, Any]],
    kills: int,
    plan: Plan,
) -> None:
    sent = send(kafka, plan.events)
    draw, model, under_way = random.Random(kills), Model(), set[str]()
    with (
        StubLlm(model) as llm,
        working(tmp_path, kafka, milvus.uri, f"--llm={llm.url}", **plan.settings(tmp_path)) as worker,
    ):
        # Now with a batch that is not committed, now with items that something is still to be done about.
        at_work = itertools.cycle([lambda: uncommitted(worker, sent), lambda: due(worker)])
        for _ in range(kills):
            # What its predecessor left open is taken up before that.
            eventually(lambda: worker.metric("worker_events_total"), "an event")
            freeze(worker, sent, next(at_work), draw)
            worker.kill()
            eventually(lambda: llm.connections == 0, "all that it had asked")
            under_way |= model.unsaved(tmp_path / CACHE_FILE)
            worker.start(f"--llm={llm.url}")
        eventually(lambda: finished(worker, sent), "the end of all work", seconds=plan_patience(plan))
        assert worker.stop() == 0
        assert canonical(worker, milvus) == clean_run(plan)
        assert model.asked_again() <= under_way, "nothing that was answered and kept is asked again"


@pytest.mark.soak
def test_one_that_froze_in_the_midst_of_work_finds_it_done_by_another(
    kafka: KafkaSettings,
    tmp_path: Path,
    milvus: MilvusProcess,
    clean_run: Callable[[Plan], dict[str, Any]],
) -> None:
    sent, settings = send(kafka, SHORT.events), SHORT.settings(tmp_path)
    with (
        StubLlm(reasoner) as llm,
        working(tmp_path, kafka, milvus.uri, f"--llm={llm.url}", **settings) as one,
    ):
        eventually(lambda: committed(one), "a first commit")
        freeze(one, sent, lambda: uncommitted(one, sent) and unlocked(one), random.Random(1))
        with working(tmp_path, kafka, milvus.uri, f"--llm={llm.url}", **settings) as other:
            eventually(lambda: finished(other, sent), "the end of all work, at the hands of the other")
            one.signal(signal.SIGCONT)
            assigned = "worker_rebalances_total"
            eventually(lambda: one.metric(assigned, what="assigned") > 1, "a share for the one that was frozen")
            assert [worker.stop() for worker in (one, other)] == [0, 0]
            assert canonical(one, milvus) == clean_run(SHORT)


def unlocked(worker: WorkerProcess) -> bool:
    """Return whether another process could write to the worker's state."""
    with closing(sqlite3.connect(worker.histories, timeout=0, isolation_level=None)) as state:
        try:
            state.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        return True


@pytest.mark.soak
def test_a_broker_that_stands_still_is_waited_for(tmp_path: Path, milvus: MilvusProcess) -> None:
    with broker(tmp_path) as frozen:
        kafka = frozen.settings()
        with working(tmp_path, kafka, milvus.uri, **AT_ONCE) as worker:
            send(kafka, [item("emma"), *(review("emma", number) for number in range(2))])
            eventually(lambda: len(evidence(milvus, "emma")) == 2, "personas")
            frozen.signal(signal.SIGSTOP)
            time.sleep(20)
            frozen.signal(signal.SIGCONT)
            sent = send(kafka, [review("emma", number) for number in range(2, 4)])
            eventually(lambda: len(evidence(milvus, "emma")) == 4, "what was sent after")
            eventually(lambda: all_committed(worker, sent), "its commits")
            eventually(lambda: worker.health()[0] == 200, "good health again")
            assert worker.stop() == 0


def test_an_erased_user_s_words_go_from_everywhere_and_neither_replay_nor_export_brings_anything_back(
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

        export = tmp_path / "export"
        said = succeeded(persona4rec("worker-export", "--state", worker.histories, "--out", export))
        assert "items.jsonl 1, reviews.jsonl 7, summaries.jsonl 1, aspects.jsonl 7, personas.jsonl 1" in said
        assert not any(word in file.read_bytes() for file in export.iterdir() for word in (b"marmalade", b"ann"))
        report = published(milvus, export)
        assert (report.written, report.unchanged, report.deleted) == (0, 1, 0)

        Path(worker.histories).unlink()
        worker.start(f"--dataset={export}", f"--llm={llm.url}")
        send(kafka, [review("emma", 8)])
        eventually(lambda: "emma-r8" in evidence(milvus, "emma"), "a persona that rests on the next review")
        assert worker.stop() == 0
        assert evidence(milvus, "emma") == {f"emma-r{number}" for number in (0, 1, 2, 3, 4, 5, 6, 8)}
        schemas = [body["response_format"]["json_schema"]["name"] for body in llm.requests[asked:]]
        assert schemas == ["Aspects", "Personas"], "the rest was taken over"


@pytest.mark.soak
def test_a_user_erased_while_a_worker_asks_about_their_review_leaves_nothing(
    kafka: KafkaSettings, tmp_path: Path, milvus: MilvusProcess
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def slow(number: int, body: dict[str, Any]) -> Answer:
        if "ocelot" in str(body):
            asked.set()
            assert answer.wait(PATIENCE_SECONDS)
        return reasoner(number, body)

    with (
        StubLlm(slow) as llm,
        working(tmp_path, kafka, milvus.uri, f"--llm={llm.url}", **AT_ONCE) as one,
        working(tmp_path, kafka, milvus.uri, f"--llm={llm.url}", **AT_ONCE) as other,
    ):
        send(kafka, [item("emma"), review("emma", 0)])
        eventually(lambda: evidence(milvus, "emma"), "a persona")
        asks, erases = eventually(lambda: apart(kafka, one, other), "a share for each")[0]
        ann = review("emma", 1, "ann", text="Peculiar ocelots, marmalade and a singing lighthouse.")
        sent = send(kafka, [ann], partition=asks)
        assert asked.wait(PATIENCE_SECONDS)
        erasure = ("erasures", {"eventId": "x", "userId": "ann", "eventTime": int(time.time() * 1000)})
        sent += send(kafka, [erasure], partition=erases)
        eventually(lambda: all_committed(one, sent[1:]), "the erasure")
        assert not all_committed(one, sent)
        answer.set()
        eventually(lambda: finished(one, sent), "the end of all work")
        assert [worker.stop() for worker in (one, other)] == [0, 0]
    assert evidence(milvus, "emma") == {"emma-r0"}
    assert not any(word in stored(tmp_path) for word in (b"marmalade", b"ann"))


def apart(kafka: KafkaSettings, *workers: WorkerProcess) -> list[tuple[int, int]]:
    """Return partitions of reviews and of erasures that different workers have; none until each has its share."""
    shares = [
        {topic: [at for at in range(PARTITIONS) if has(worker, kafka.topic(topic), at)] for topic in KEYS}
        for worker in workers
    ]
    if sorted(at for share in shares for at in share["reviews"]) != list(range(PARTITIONS)):
        return []
    pairs = itertools.permutations(shares, 2)
    return [pair for one, other in pairs for pair in itertools.product(one["reviews"], other["erasures"])]


def has(worker: WorkerProcess, topic: str, partition: int) -> bool:
    return bool(worker.told("worker_lag_events", topic=topic, partition=str(partition)))


def test_a_review_dated_ahead_does_not_outlast_the_next(
    kafka: KafkaSettings, tmp_path: Path, milvus: MilvusProcess
) -> None:
    ahead = review("emma", 0, eventTime=int(time.time() * 1000) + 10**10)
    with working(tmp_path, kafka, milvus.uri, **AT_ONCE) as worker:
        send(kafka, [item("emma"), ahead])
        eventually(lambda: evidence(milvus, "emma"), "a persona of a review from the future")
        assert worker.metric("worker_events_dated_ahead_total") == 1
        send(kafka, [review("emma", 0, eventTime=int(time.time() * 1000), deleted=True)])
        eventually(lambda: not evidence(milvus, "emma"), "the end of it")


def published(milvus: MilvusProcess, folder: Path) -> PublishReport:
    """Publish a dataset as the worker would, with its encoder."""
    with closing(MilvusPersonaStore(milvus.uri)) as store:
        return publish(documents(Dataset.open(folder)), store, Worded())


def stored(folder: Path) -> bytes:
    """Return the bytes of the worker's files: state, replies, and their logs."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.sqlite*")))


def reasoner(number: int, body: dict[str, Any]) -> Answer:
    """Answer as a model would that repeats what it is shown."""
    shown = body["messages"][1]["content"]
    reviews = [" ".join(text.split()) for text in re.findall(r"<review[^>]*>\n(.*?)\n</review>", shown, re.DOTALL)]
    schema = body["response_format"]["json_schema"]
    if schema["name"] == "Summary":
        about = " ".join(re.sub(r"<[^>]*>", " ", shown).split()[:12])
        return completion(json.dumps({"summary": f"A novel: {about}"}))
    if schema["name"] == "Personas":
        return completion(json.dumps({"personas": [repeated(reviews, at) for at in range(min(2, len(reviews)))]}))
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
    huge = (" ".join(THEMES) * 4000)[:1_000_000]
    send(kafka, [item("emma"), review("emma", 0, text=huge)])
    with working(tmp_path, kafka, milvus.uri, **AT_ONCE) as worker, closing(DeadLetters(kafka)) as letters:
        eventually(lambda: personas(milvus, "emma"), "personas of what followed, a review of 1 MB")
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
