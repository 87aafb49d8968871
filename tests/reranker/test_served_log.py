"""What is recorded of answers, and that a log in trouble is in nobody's way."""

import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry, Counter

from reranker.config import ServedLogSettings
from reranker.errors import ConfigurationError
from reranker.item_ids import ItemIds
from reranker.profile import Profile, build_profile
from reranker.replies import Ranked
from reranker.scoring import rerank
from reranker.served_log import ServedLog, Serving, told_user
from reranker.served_log_sinks import FileSink
from reranker.v1 import reranker_pb2 as pb
from tests.integration.processes import eventually
from tests.reranker.making import event, index, item, item_without_personas, vector

HELD = index(item("a", [vector(1, 0), vector(0, 1)]), item_without_personas("b", vector(0, 1)))
FIRST_STAGE = np.array([0.5, np.nan, 2.0], np.float32)


def profile() -> Profile:
    return build_profile([event("a")], HELD, 0.9)


def serving(scored: bool = True) -> Serving:
    item_ids = ItemIds.of(["a", "b", "x"])
    places = HELD.locate(item_ids)
    ranking = rerank(HELD, profile().vector, places, FIRST_STAGE, 0.5)
    ranked = Ranked.of(HELD, item_ids, places, FIRST_STAGE, profile(), ranking) if scored else None
    degraded = [pb.DEGRADATION_ITEMS_NOT_INDEXED] if scored else [pb.DEGRADATION_SWITCHED_OFF]
    return Serving("r-1", "user", "b", pb.FUSION_UNSPECIFIED, 0.5, 2, item_ids, FIRST_STAGE, degraded, HELD, ranked)


class Metrics:
    def __init__(self) -> None:
        self.served_log = Counter("records", "Records.", ["outcome"], registry=CollectorRegistry())

    def count(self, outcome: str) -> float:
        return float(self.served_log.labels(outcome)._value.get())


class Sink:
    """Keeps records, waiting or failing where it is told to."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.free = threading.Event()
        self.free.set()
        self.error: Exception | None = None

    def write(self, lines: Sequence[bytes]) -> None:
        self.free.wait()
        if self.error:
            raise self.error
        self.lines.extend(lines)

    def close(self) -> None:
        pass


def opened(sink: Sink, **settings: object) -> tuple[ServedLog, Metrics]:
    metrics = Metrics()
    return ServedLog(ServedLogSettings(share=1, **settings), sink, metrics), metrics  # type: ignore[arg-type]


def records(*servings: Serving, **settings: object) -> list[dict[str, object]]:
    sink = Sink()
    log, _ = opened(sink, **settings)
    for one in servings:
        log.offer(one)
    log.close()
    return [json.loads(line) for line in sink.lines]


def test_a_record_tells_the_answer() -> None:
    (told,) = records(serving())
    ranking = rerank(HELD, profile().vector, HELD.locate(["a", "b", "x"]), FIRST_STAGE, 0.5)
    assert told["item_ids"] == ["a", "b", "x"]
    assert told["first_stage_scores"] == [0.5, None, 2.0]
    assert told["scores"] == pytest.approx(ranking.scores.tolist())
    assert told["persona_scores"] == [1.0, 0.0, None]
    assert told["persona_ids"] == ["a:p0", None, None]
    assert told["order"] == ranking.order.tolist()
    assert (told["request_id"], told["variant"], told["fusion"], told["top_k"]) == ("r-1", "b", "blend", 2)
    assert (told["degraded"], told["index_generation"], told["embedding_space"]) == (["items_not_indexed"], 1, "space")


def test_a_record_of_an_answer_that_was_not_scored_tells_the_first_stage_order() -> None:
    (told,) = records(serving(scored=False))
    assert (told["order"], told["degraded"]) == ([2, 0, 1], ["switched_off"])
    assert told["scores"] is told["persona_scores"] is told["persona_ids"] is None


def test_users_are_told_as_chosen() -> None:
    hashed, given, none = (records(serving(), users=how)[0]["user"] for how in ("hashed", "given", "none"))
    assert (given, none) == ("user", None)
    assert hashed == told_user("user", "hashed", b"")
    keyed = records(serving(), hash_key="secret")[0]["user"]
    assert len({"user", hashed, keyed}) == 3
    assert keyed == told_user("user", "hashed", b"secret")
    assert told_user("", "hashed", b"") is None


def test_the_sample_is_a_share_of_the_answers() -> None:
    for share, wanted in ((0.0, 0), (1.0, 100)):
        log = ServedLog(ServedLogSettings(share=share), Sink(), Metrics())  # type: ignore[arg-type]
        assert sum(log.wants() for _ in range(100)) == wanted
        log.close()


def test_a_record_that_cannot_be_made_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Sink()
    log, metrics = opened(sink)
    with monkeypatch.context() as torn:

        def unreadable(_: Serving) -> dict[str, object]:
            raise DecodeError("a persona of a torn index")

        torn.setattr("reranker.served_log.record", unreadable)
        log.offer(serving())
        eventually(lambda: metrics.count("failed") == 1, "the record that cannot be made")
    log.offer(serving())
    eventually(lambda: len(sink.lines) == 1, "the record after it")
    log.close()


def test_a_full_queue_drops_and_counts_and_keeps_nobody_waiting() -> None:
    sink = Sink()
    sink.free.clear()
    log, metrics = opened(sink, queue=3)
    log.offer(serving())
    eventually(log._queue.empty, "the first record at the sink")
    for _ in range(5):
        log.offer(serving())
    assert metrics.count("dropped") == 2
    sink.free.set()
    log.close()
    assert (len(sink.lines), metrics.count("written"), metrics.count("dropped")) == (4, 4, 2)


def test_a_sink_in_trouble_is_told_of_once_and_used_again(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    sink.error = OSError("No space left on device")
    log, metrics = opened(sink)
    log.offer(serving())
    eventually(lambda: metrics.count("failed") == 1, "a failed record")
    log.offer(serving())
    eventually(lambda: metrics.count("failed") == 2, "another one")
    assert [record.getMessage() for record in caplog.records if "No space left" in record.getMessage()] == [
        "the served log cannot be written, until further notice: No space left on device"
    ]
    sink.error = None
    log.offer(serving())
    log.close()
    assert metrics.count("written") == 1


def test_what_is_no_place_for_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"served_log.to {tmp_path}/no/file cannot be written: No such file"):
        FileSink(tmp_path / "no" / "file", 1000, 2)


def test_a_file_is_rotated_by_size_and_the_oldest_goes(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "log", most_bytes=30, kept=2)
    for number in range(10):
        sink.write([b"0123456789-%d" % number])
    sink.close()
    held = {path.name: [line[-1:] for line in path.read_text().splitlines()] for path in tmp_path.glob("log*")}
    assert held.pop("log.lock") == []
    assert held == {"log": ["9"], "log.1": ["6", "7", "8"], "log.2": ["3", "4", "5"]}


def test_writers_that_share_a_file_lose_nothing_when_it_rotates(tmp_path: Path) -> None:
    path = tmp_path / "log"
    sinks = [FileSink(path, most_bytes=300, kept=300) for _ in range(4)]

    def write(writer: int) -> None:
        for number in range(250):
            sinks[writer].write([json.dumps([writer, number, "x" * (number % 50)]).encode()])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    files = [file for file in tmp_path.glob("log*") if file.name != "log.lock"]
    assert len(files) > 10
    told = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert sorted((writer, number) for writer, number, _ in told) == [(w, n) for w in range(4) for n in range(250)]


def test_a_record_that_the_disk_had_no_room_for_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = FileSink(tmp_path / "log", most_bytes=1000, kept=1)
    with monkeypatch.context() as full:
        # A disk that fills up in the midst of a record is not to be had in a test.
        full.setattr(os, "write", lambda file, record, write=os.write: write(file, record[:3]))
        with pytest.raises(OSError, match="part of a record"):
            sink.write([b"first"])
    sink.write([b"second", b"third"])
    sink.close()
    assert (tmp_path / "log").read_text().splitlines() == ["fir", "second", "third"]


def test_a_file_that_somebody_moved_away_is_begun_anew(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "log", most_bytes=1000, kept=1)
    sink.write([b"1"])
    (tmp_path / "log").rename(tmp_path / "taken")
    sink.write([b"2"])
    assert ((tmp_path / "taken").read_text(), (tmp_path / "log").read_text()) == ("1\n", "2\n")
