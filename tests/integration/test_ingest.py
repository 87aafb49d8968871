"""`persona4rec ingest` against a real broker and real stores, with the faults that happen to them."""

import random
import signal
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from reranker.dead_letters import DeadLetter, DeadLetters, _all_records
from reranker.errors import BrokerUnavailableError
from reranker.histories import WRITE_SECONDS, open_histories
from reranker.kafka import DLQ_SUFFIX, KafkaSettings
from reranker.v1 import events_pb2 as pb
from tests.integration.processes import eventually
from tests.integration.streaming import (
    Broker,
    IngestProcess,
    Sent,
    all_committed,
    broker,
    committed,
    durable_broker,
    ingesting,
    send,
    send_raw,
)
from tests.stores import redis_process

pytestmark = pytest.mark.integration

EVENTS = 20_000
USERS = [f"user{number}" for number in range(400)]
# 2025-01-01, in milliseconds: some time before the tests run, since no event is later than its sending.
START = 1_735_689_600_000

State = dict[str, list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def running_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture
def kafka(running_broker: Broker) -> KafkaSettings:
    return running_broker.settings()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "histories.sqlite"


def interaction(user_id: str, number: int, **more: Any) -> tuple[str, Mapping[str, Any]]:
    fields = {"eventId": f"e{number}", "userId": user_id, "itemId": f"i{number % 97}", "eventTime": str(START + number)}
    return "interactions", fields | more


def aspects(user_id: str, number: int) -> tuple[str, Mapping[str, Any]]:
    topic_fields = interaction(user_id, number)[1]
    return "aspects", {**topic_fields, "vector": [1.0, float(number % 7), -2.0], "embeddingSpace": "space"}


def stream(events: int, seed: int) -> list[tuple[str, Mapping[str, Any]]]:
    """Interactions of many users, a tenth with aspects, some users erased; 5 % twice, 5 % out of order."""
    draw = random.Random(seed)
    found: list[tuple[str, Mapping[str, Any]]] = []
    for number in range(events * 9 // 10):
        user_id = draw.choice(USERS)
        found.append(interaction(user_id, number, kind=draw.choice(["view", "purchase"]), rating=draw.randint(1, 5)))
        if number % 10 == 0:
            found.append(aspects(user_id, number))
    for user_id in USERS[:5]:
        erasure = {"eventId": f"erase-{user_id}", "userId": user_id, "eventTime": START + events // 3}
        found.insert(draw.randrange(len(found)), ("erasures", erasure))
    for _ in range(events // 20):
        found.insert(draw.randrange(len(found)), draw.choice(found))
        moved = found.pop(draw.randrange(len(found)))
        found.insert(draw.randrange(len(found)), moved)
    return found[:events]


def state(histories: object) -> State:
    """Everything the store has of the users, in a form that compares."""
    with closing(open_histories(str(histories), WRITE_SECONDS)) as store:
        return {user_id: [_plain(event) for event in store.read(user_id, 1000) or ()] for user_id in USERS}


def _plain(event: Any) -> tuple[Any, ...]:
    vector = None if event.aspects_vector is None else event.aspects_vector.tolist()
    return event.event_id, event.item_id, event.event_time, event.kind, event.rating, vector, event.aspects_space


def event_ids(histories: object, user_id: str) -> list[str]:
    with closing(open_histories(str(histories), WRITE_SECONDS)) as store:
        return [event.event_id for event in store.read(user_id, 1000) or ()]


def clean_run(folder: Path, kafka: KafkaSettings, sent: Sequence[Sent]) -> State:
    """Return the state that nothing disturbs: another group, another store, the same topics."""
    with ingesting(folder, kafka, folder / "clean.sqlite", name="clean") as ingest:
        eventually(lambda: all_committed(ingest, sent), "the clean run's last commit")
        assert ingest.stop() == 0
    return state(folder / "clean.sqlite")


def written_but_not_committed(ingest: IngestProcess, sent: Sequence[Sent]) -> int:
    """Return how many events the store holds that no committed offset covers: what a crash now would repeat."""
    offsets = committed(ingest)
    covered = {
        event.fields["eventId"] for event in sent if event.offset < offsets.get((event.topic, event.partition), 0)
    }
    held = {event[0] for events in state(ingest.histories).values() for event in events}
    return len(held - covered)


def freeze_with_work_uncommitted(ingest: IngestProcess, sent: Sequence[Sent], draw: random.Random) -> None:
    """Stop the process at random moments until one finds it between a write and its commit, and leave it there."""
    while True:
        time.sleep(draw.uniform(0, 0.05))
        ingest.signal(signal.SIGSTOP)
        if written_but_not_committed(ingest, sent):
            return
        assert not all_committed(ingest, sent), "all was committed before work was found uncommitted"
        ingest.signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("histories", "kills"),
    [
        ("sqlite", 5),
        pytest.param("sqlite", 50, marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
        pytest.param("redis", 50, marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
def test_killed_again_and_again_it_ends_in_the_state_of_a_clean_run(
    kafka: KafkaSettings, tmp_path: Path, histories: str, kills: int
) -> None:
    sent = send(kafka, stream(EVENTS, seed=kills))
    draw = random.Random(kills)
    with ExitStack() as stack:
        where: object = tmp_path / "killed.sqlite"
        if histories == "redis":
            where = stack.enter_context(redis_process(tmp_path / "redis")).url
        # Small batches, so that there are many writes and commits to be killed between.
        batch = str(EVENTS // kills // 20)
        ingest = stack.enter_context(ingesting(tmp_path, kafka, where, INGEST_MAX_BATCH=batch))
        for _ in range(kills):
            eventually(lambda: committed(ingest), "a first commit")
            freeze_with_work_uncommitted(ingest, sent, draw)
            ingest.kill()
            ingest.start()
        eventually(lambda: all_committed(ingest, sent), "the last commit")
        assert ingest.stop() == 0
        assert state(where) == clean_run(tmp_path, kafka, sent)


def test_what_was_sent_before_and_after_the_start_is_read_and_a_stop_commits_it(
    kafka: KafkaSettings, tmp_path: Path, path: Path
) -> None:
    sent = send(kafka, [interaction("ann", 1)])
    with ingesting(tmp_path, kafka, path) as ingest:
        eventually(lambda: event_ids(path, "ann"), "the event sent before the start")
        sent += send(kafka, [interaction("ann", 2), aspects("ann", 2)])
        eventually(lambda: event_ids(path, "ann") == ["e2", "e1"], "the event sent after it")
        eventually(lambda: ingest.health()[0] == 200, "good health")
        assert ingest.stop() == 0
    assert all_committed(ingest, sent)
    assert "ann" not in ingest.said()
    with ingesting(tmp_path, kafka, path) as ingest:
        send(kafka, [interaction("ann", 3)])
        eventually(lambda: event_ids(path, "ann") == ["e3", "e2", "e1"], "the event sent while it was away")
        assert ingest.metric("ingest_events_total", outcome="applied") == 1


def test_poison_goes_to_the_dlq_whole_and_what_follows_is_read(
    kafka: KafkaSettings, tmp_path: Path, path: Path
) -> None:
    bad = b'{"eventId":"e1","userId":"ann","itemId":"","eventTime":1}\xff'
    where = send_raw(kafka, "interactions", bad, b"ann", (("trace", b"\x00\x01"),))
    send_raw(kafka, "erasures", None, b"ann")
    send(kafka, [interaction("ann", 2)])
    protobuf = pb.Interaction(event_id="e1", user_id="ann", item_id="i1", event_time=START + 1).SerializeToString()
    send_raw(kafka, "interactions", protobuf, b"ann", (("content-type", b"application/protobuf"),))
    with ingesting(tmp_path, kafka, path) as ingest:
        eventually(lambda: event_ids(path, "ann") == ["e2", "e1"], "the events behind the poison")
        eventually(lambda: ingest.metric("ingest_events_total", outcome="dead") == 2, "both dead letters")
        assert "ann" not in ingest.said()
    letters = DeadLetters(kafka)
    (letter,) = letters.pending(["interactions"])
    assert (letter.value, letter.key, letter.headers) == (bad, b"ann", (("trace", b"\x00\x01"),))
    assert (letter.topic, letter.partition, letter.offset) == (where.topic, where.partition, where.offset)
    assert (letter.error, letter.timestamp) == ("InvalidEventError", where.timestamp)
    assert "ann" not in letter.message
    (empty,) = letters.pending(["erasures"])
    assert (empty.value, empty.key) == (None, b"ann")
    stored = _all_records(kafka, kafka.topic("erasures") + DLQ_SUFFIX)
    assert [record.value for record in stored] == [b""], "what compaction keeps"
    letters.close()


class NoText(str):
    """A header's name as other clients may write it: two bytes that are no UTF-8."""

    __slots__ = ()

    def encode(self, encoding: str = "", errors: str = "") -> bytes:
        return b"\xff\xfe"


def test_what_the_library_cannot_decode_is_passed_over_and_told(
    kafka: KafkaSettings, tmp_path: Path, path: Path
) -> None:
    first = send(kafka, [interaction("ann", 1)])
    where = send_raw(kafka, "interactions", b"a secret", b"ann", ((NoText("x"), b"v"),))
    last = send(kafka, [interaction("ann", 2)])
    with ingesting(tmp_path, kafka, path) as ingest, closing(DeadLetters(kafka)) as letters:
        eventually(lambda: event_ids(path, "ann") == ["e2", "e1"], "the events around it")
        eventually(lambda: all_committed(ingest, first + last), "the last commit")
        assert ingest.metric("ingest_events_total", outcome="dead") == 1
        (letter,) = letters.pending(["interactions"])
        assert letters.count("interactions") == 1
        assert (letter.topic, letter.partition, letter.offset) == (where.topic, where.partition, where.offset)
        assert (letter.error, letter.value, letter.headers) == ("CorruptRecordError", None, ())
        eventually(lambda: ingest.health()[0] == 200, "good health again")
        assert ingest.stop() == 0


def test_a_dead_letter_can_be_written_after_a_broker_stood_still(tmp_path: Path) -> None:
    with broker(tmp_path) as frozen:
        settings = frozen.settings()
        with closing(DeadLetters(settings)) as letters:
            letters.put([DeadLetter(settings.topic("interactions"), 0, 0, 1, b"ann", b"1", (), "E", "why")])
            frozen.signal(signal.SIGSTOP)
            second = DeadLetter(settings.topic("interactions"), 0, 1, 1, b"ann", b"2", (), "E", "why")
            with pytest.raises(BrokerUnavailableError, match="cannot write"):
                letters.put([second])
            frozen.signal(signal.SIGCONT)
            letters.put([second])
            assert [letter.value for letter in letters.pending(["interactions"])] == [b"1", b"2"]


def test_a_dead_letter_is_sent_again_as_it_was_or_discarded_and_then_settled(
    kafka: KafkaSettings, tmp_path: Path, path: Path
) -> None:
    for number in range(3):
        send_raw(kafka, "interactions", b"rubbish %d" % number, b"ann", (("trace", b"t"),))
    with ingesting(tmp_path, kafka, path) as ingest, closing(DeadLetters(kafka)) as letters:
        first, second, third = eventually(
            lambda: list(letters.pending(["interactions"])), "three dead letters", lambda found: len(found) == 3
        )
        letters.discard([first])
        letters.redrive([second])
        # The second is still rubbish, so it dies again: at another offset, with all else as it was.
        eventually(lambda: ingest.metric("ingest_events_total", outcome="dead") == 4, "the fourth death")
        kept, again = list(letters.pending(["interactions"]))
        assert kept == third
        assert (again.value, again.key, again.headers) == (second.value, second.key, second.headers)
        assert (again.timestamp, again.offset) == (second.timestamp, third.offset + 1)


def test_an_erased_user_stays_away_through_events_in_flight_and_a_replay_of_everything(
    kafka: KafkaSettings, tmp_path: Path, path: Path
) -> None:
    events = [interaction("ann", number) for number in range(300)] + [interaction("bob", 0)]
    send_raw(kafka, "interactions", b"rubbish of ann", b"ann")
    send_raw(kafka, "interactions", b'{"userId":"ann","itemId":7}', b'"ann"')
    with ingesting(tmp_path, kafka, path, INGEST_MAX_BATCH="50") as ingest, closing(DeadLetters(kafka)) as letters:
        eventually(lambda: letters.count("interactions") == 2, "ann's dead letters")
        send(kafka, events[:150])
        now = int(time.time() * 1000)
        erasure = ("erasures", {"eventId": "x", "userId": "ann", "eventTime": now})
        sent = send(kafka, [*events[150:200], erasure, *events[200:]])
        eventually(lambda: all_committed(ingest, sent), "the last commit")
        assert event_ids(path, "ann") == []
        assert event_ids(path, "bob") == ["e0"]
        assert list(letters.pending(["interactions"])) == []
        assert ingest.stop() == 0
    with ingesting(tmp_path, kafka, path, "--replay=earliest") as ingest, closing(DeadLetters(kafka)) as letters:
        eventually(lambda: ingest.metric("ingest_events_total", outcome="applied") >= len(events) + 1, "the replay")
        assert event_ids(path, "ann") == []
        assert list(letters.pending(["interactions"])) == []
        send(kafka, [("interactions", {"eventId": "new", "userId": "ann", "itemId": "i", "eventTime": now + 1})])
        eventually(lambda: event_ids(path, "ann") == ["new"], "what ann does after the erasure")


def test_an_event_dated_ahead_does_not_stay_on_top(kafka: KafkaSettings, tmp_path: Path, path: Path) -> None:
    year_2100 = 4_102_444_800_000
    with ingesting(tmp_path, kafka, path) as ingest:
        send(kafka, [interaction("ann", 1, eventTime=year_2100)])
        eventually(lambda: event_ids(path, "ann"), "the event dated ahead")
        time.sleep(0.002)
        send(kafka, [interaction("ann", 2, eventTime=int(time.time() * 1000))])
        eventually(lambda: event_ids(path, "ann") == ["e2", "e1"], "the later event on top")
        assert ingest.metric("ingest_events_dated_ahead_total") == 1


def test_a_replay_reads_what_is_as_new_as_asked(kafka: KafkaSettings, tmp_path: Path, path: Path) -> None:
    now = int(time.time() * 1000)
    send(kafka, [interaction("ann", 1)], timestamp_ms=now - 10 * 3_600_000)
    sent = send(kafka, [interaction("ann", 2)], timestamp_ms=now - 3_600_000)
    with ingesting(tmp_path, kafka, path) as ingest:
        eventually(lambda: all_committed(ingest, sent), "both events")
        assert ingest.stop() == 0
    path.unlink()
    with ingesting(tmp_path, kafka, path, "--replay=2h") as ingest:
        eventually(lambda: "e2" in event_ids(path, "ann"), "the replay of the last two hours")


OUTAGES = [3, pytest.param(20, marks=pytest.mark.soak)]


@pytest.mark.parametrize("seconds", OUTAGES)
def test_a_locked_file_is_waited_for(kafka: KafkaSettings, tmp_path: Path, path: Path, seconds: int) -> None:
    with ingesting(tmp_path, kafka, path) as ingest:
        eventually(lambda: ingest.health()[0] == 200, "good health")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            sent = send(kafka, [interaction("ann", number) for number in range(50)])
            eventually(lambda: "database is locked" in ingest.health()[1], "bad health")
            time.sleep(seconds)
            assert ingest.metric("ingest_healthy") == 0
            assert ingest.metric("ingest_lag_events") > 0
            assert ingest.metric("ingest_lag_seconds") > 0
            assert not all_committed(ingest, sent)
            other.execute("ROLLBACK")
        eventually(lambda: all_committed(ingest, sent), "the commit after the lock is gone")
        assert len(event_ids(path, "ann")) == 50
        eventually(lambda: ingest.health()[0] == 200, "good health again")
        assert ingest.metric("ingest_retries_total", error="HistoryStoreError") > 0


@pytest.mark.parametrize("seconds", OUTAGES)
def test_redis_may_go_and_come_back(kafka: KafkaSettings, tmp_path: Path, seconds: int) -> None:
    with redis_process(tmp_path / "redis") as redis, ingesting(tmp_path, kafka, redis.url) as ingest:
        send(kafka, [interaction("ann", 0)])
        eventually(lambda: event_ids(redis.url, "ann") == ["e0"], "an event in Redis")
        redis.stop(signal.SIGKILL)
        sent = send(kafka, [interaction("ann", number) for number in range(1, 50)])
        eventually(lambda: "Redis" in ingest.health()[1], "bad health")
        time.sleep(seconds)
        assert not all_committed(ingest, sent)
        redis.start()
        eventually(lambda: all_committed(ingest, sent), "the commit after Redis is back")
        assert len(event_ids(redis.url, "ann")) == 50


@pytest.mark.parametrize("seconds", OUTAGES)
def test_a_broker_that_stands_still_is_waited_for(tmp_path: Path, path: Path, seconds: int) -> None:
    with broker(tmp_path) as frozen:
        kafka = frozen.settings()
        with ingesting(tmp_path, kafka, path) as ingest:
            send(kafka, [interaction("ann", 0)])
            eventually(lambda: event_ids(path, "ann") == ["e0"], "an event before")
            frozen.signal(signal.SIGSTOP)
            time.sleep(seconds)
            frozen.signal(signal.SIGCONT)
            sent = send(kafka, [interaction("ann", number) for number in range(1, 50)])
            eventually(lambda: all_committed(ingest, sent), "what was sent after")
            assert len(event_ids(path, "ann")) == 50
            eventually(lambda: ingest.health()[0] == 200, "good health again")
            assert ingest.stop() == 0


@pytest.mark.parametrize("seconds", [0, pytest.param(20, marks=pytest.mark.soak)])
def test_a_durable_broker_may_die_and_come_back(tmp_path: Path, path: Path, seconds: int) -> None:
    with durable_broker(tmp_path) as mortal:
        kafka = mortal.settings()
        with ingesting(tmp_path, kafka, path) as ingest:
            sent = send(kafka, [interaction("ann", number) for number in range(50)])
            eventually(lambda: all_committed(ingest, sent), "the first events")
            mortal.signal(signal.SIGKILL)
            time.sleep(seconds)
            mortal.start()
            sent += send(kafka, [interaction("ann", number) for number in range(50, 100)])
            eventually(lambda: all_committed(ingest, sent), "what was sent after")
            assert len(event_ids(path, "ann")) == 100
            assert ingest.metric("ingest_events_total", outcome="applied") == 100, "the committed place was kept"
            eventually(lambda: ingest.health()[0] == 200, "good health again")
            assert ingest.stop() == 0


@pytest.mark.parametrize("histories", ["sqlite", pytest.param("redis", marks=pytest.mark.soak)])
def test_one_that_froze_in_the_midst_of_a_batch_finds_it_taken_by_another(
    kafka: KafkaSettings, tmp_path: Path, histories: str
) -> None:
    events = stream(12_000, seed=1)
    sent = send(kafka, events[:10_000])
    small = {"INGEST_MAX_BATCH": "50"}
    with ExitStack() as stack:
        where: object = tmp_path / "frozen.sqlite"
        if histories == "redis":
            where = stack.enter_context(redis_process(tmp_path / "redis")).url
        one = stack.enter_context(ingesting(tmp_path, kafka, where, **small))
        freeze_with_work_uncommitted(one, sent, random.Random(1))
        other = stack.enter_context(ingesting(tmp_path, kafka, where, **small))
        eventually(lambda: all_committed(other, sent), "the commits of the one that took over")
        one.signal(signal.SIGCONT)
        # It has to notice that its partitions were given away, and comes back for a share.
        eventually(lambda: one.metric("ingest_rebalances_total", what="assigned") > 1, "partitions of the frozen one")
        sent += send(kafka, events[10_000:])
        eventually(lambda: all_committed(other, sent), "the commits of both")
        assert [ingest.stop() for ingest in (one, other)] == [0, 0]
        assert state(where) == clean_run(tmp_path, kafka, sent)


def test_when_one_of_two_dies_the_other_takes_its_partitions(kafka: KafkaSettings, tmp_path: Path, path: Path) -> None:
    with ingesting(tmp_path, kafka, path) as one, ingesting(tmp_path, kafka, path) as other:
        first: list[Sent] = []

        def shares() -> list[float]:
            # Who joins last may find all partitions with the other for a while.
            first.extend(send(kafka, [interaction(user_id, 1) for user_id in USERS]))
            eventually(lambda: all_committed(one, first), "the commits of both")
            return [ingest.metric("ingest_events_total", outcome="applied") for ingest in (one, other)]

        eventually(shares, "a share for each", min)
        one.kill()
        second = send(kafka, [interaction(user_id, 2) for user_id in USERS])
        eventually(lambda: all_committed(other, second), "the commits of the one left")
        assert all(len(events) == 2 for events in state(path).values())
