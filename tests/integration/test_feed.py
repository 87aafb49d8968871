"""The change feed with a real broker, a real Milvus and a real server: heard at once, and missed without harm."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest

from offline.publish import Document, publish
from offline.versions import roll_back
from reranker.feed import Feed, FeedWriter, published_record
from reranker.indexer import MAX_DELTAS
from reranker.kafka import PUBLISHED, KafkaSettings
from reranker.personas_milvus import MilvusPersonaStore
from reranker.records import persona_id
from reranker.snapshot import read_snapshot
from tests.integration.processes import MilvusProcess, Server, eventually, milvus_process, serving
from tests.integration.streaming import Broker, broker, send_raw
from tests.offline.encoders import Hashed
from tests.reranker.making import deleted, item, vector

pytestmark = pytest.mark.integration

# Nothing but the feed brings a change within a test.
NEVER = "3600"
ENCODER = Hashed(dimension=384)


@pytest.fixture(scope="module")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture(scope="module")
def kafka(kafka_broker: Broker) -> KafkaSettings:
    return kafka_broker.settings()


@pytest.fixture(scope="module")
def own_milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusProcess]:
    with milvus_process(tmp_path_factory.mktemp("milvus") / "data") as milvus:
        yield milvus


@pytest.fixture(scope="module")
def few(books: tuple[Document, ...]) -> tuple[Document, ...]:
    return books[:5]


@pytest.fixture(scope="module")
def following(
    tmp_path_factory: pytest.TempPathFactory,
    own_milvus: MilvusProcess,
    kafka: KafkaSettings,
    few: tuple[Document, ...],
) -> Iterator[Server]:
    """Give a server to which a change comes by the feed, or not at all."""
    published(own_milvus, None, *few)
    folder = tmp_path_factory.mktemp("server")
    with serving(
        folder,
        own_milvus.uri,
        folder / "histories.sqlite",
        KAFKA_BOOTSTRAP=kafka.bootstrap,
        KAFKA_TOPIC_PREFIX=kafka.topic_prefix,
        SCAN_SECONDS=NEVER,
        REFRESH_SECONDS="1",
        STALE_SECONDS="60",
    ) as server:
        eventually(lambda: "following the change feed" in server.output.read_text(), "the feed")
        yield server


def published(
    milvus: MilvusProcess, kafka: KafkaSettings | None, *found: Document, prune: bool = False, rebuild: bool = False
) -> int:
    """Publish, telling the feed if there is one; return how many items it was not told of."""
    with closing(MilvusPersonaStore(milvus.uri)) as store:
        if kafka is None:
            publish(found, store, ENCODER, prune=prune, rebuild=rebuild)
            return 0
        writer = FeedWriter(kafka)
        publish(found, store, ENCODER, tell=writer.tell, prune=prune, rebuild=rebuild)
        writer.close()
        return writer.untold


def rewritten(document: Document, name: str) -> Document:
    old = document.personas[0]
    new = persona_id(document.item.item_id, name, old.description, old.preference_rationale)
    return replace(document, personas=(replace(old, persona_id=new, name=name),))


def names(server: Server, document: Document) -> list[str]:
    (found,) = server.client.item_personas([document.item.item_id]).items
    return [persona.name for persona in found.personas]


def test_the_newest_generation_of_each_item_is_told_after_where_it_ended(kafka_broker: Broker) -> None:
    kafka = kafka_broker.settings()
    writer = FeedWriter(kafka)
    writer.tell([item("before", [vector(1, 0)]).manifest])
    writer.close()
    with closing(Feed(kafka)) as feed:
        writer = FeedWriter(kafka)
        writer.tell([item("a", [vector(1, 0)], generation=generation).manifest for generation in (2, 3)])
        writer.tell([deleted("b", generation=4).manifest])
        writer.close()
        send_raw(kafka, PUBLISHED, b"no record", b"c")
        seen: dict[str, int] = {}

        def hear() -> set[str]:
            seen.update(feed.poll(0.2))
            return set(seen)

        eventually(hear, "both items", until=lambda heard: heard >= {"a", "b"})
        seen.pop("before", None)  # the tests' broker names an end before the real one
        assert seen == {"a": 3, "b": 4}
    assert published_record(deleted("b", generation=4).manifest) == (
        b'{"itemId": "b", "generation": "4", "deleted": true}'
    )


def test_what_the_feed_tells_is_served(
    following: Server, own_milvus: MilvusProcess, kafka: KafkaSettings, few: tuple[Document, ...]
) -> None:
    assert published(own_milvus, kafka, rewritten(few[0], "Told by the feed")) == 0
    eventually(lambda: names(following, few[0]) == ["Told by the feed"], "the item that the feed told of")
    published(own_milvus, kafka, *few[:4], prune=True)
    eventually(lambda: names(following, few[4]) == [], "the end of a pruned item")


def test_a_rebuild_and_the_way_back_are_heard(
    following: Server, own_milvus: MilvusProcess, kafka: KafkaSettings, few: tuple[Document, ...]
) -> None:
    old = following.client.info().index_version
    published(own_milvus, kafka, *(rewritten(document, "Rebuilt") for document in few), rebuild=True)
    eventually(lambda: names(following, few[1]) == ["Rebuilt"], "the rebuilt index")
    with closing(MilvusPersonaStore(own_milvus.uri)) as store:
        assert roll_back(store).version == old
    # No record told of it: that another version is in use is noticed all the same.
    eventually(lambda: following.client.info().index_version == old, "the version before")


def test_a_change_told_while_milvus_is_away_is_served_when_it_is_back(
    following: Server, own_milvus: MilvusProcess, kafka: KafkaSettings, few: tuple[Document, ...]
) -> None:
    published(own_milvus, None, rewritten(few[2], "While it was away"))
    own_milvus.signal(signal.SIGKILL)
    writer = FeedWriter(kafka)
    writer.tell([item(few[2].item.item_id, [vector(1, 0)], generation=10**6).manifest])
    writer.close()
    eventually(lambda: "the index stays as it is" in following.output.read_text(), "the failure")
    own_milvus.start()
    eventually(lambda: names(following, few[2]) == ["While it was away"], "the item")


@contextmanager
def asked_all_along(server: Server, *documents: Document) -> Iterator[tuple[list[tuple[str, ...]], list[Exception]]]:
    """Ask for items' personas without a pause while the block runs; give their names in each answer, and failures."""
    done = threading.Event()
    seen: list[tuple[str, ...]] = []
    failed: list[Exception] = []

    def ask() -> None:
        while not done.is_set():
            try:
                items = server.client.item_personas([document.item.item_id for document in documents]).items
                seen.append(tuple(persona.name for found in items for persona in found.personas))
            except Exception as error:
                failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield seen, failed
    finally:
        done.set()
        asking.join()


def test_a_version_swapped_under_load_fails_no_request_and_mixes_nothing(
    following: Server, own_milvus: MilvusProcess, kafka: KafkaSettings, few: tuple[Document, ...]
) -> None:
    published(own_milvus, kafka, *(rewritten(document, "0") for document in few[:3]))
    eventually(lambda: [names(following, document) for document in few[:3]] == [["0"]] * 3, "the first")
    with asked_all_along(following, *few[:3]) as (seen, failed):
        for number in range(1, 4):
            published(own_milvus, kafka, *(rewritten(d, str(number)) for d in few[:3]), rebuild=True)
            eventually(lambda number=number: names(following, few[0]) == [str(number)], "the next")  # type: ignore[misc]
    assert failed == []
    assert {len(set(found)) for found in seen} == {1}, "each answer is of one version"
    assert len(set(seen)) > 1


def test_segments_merged_under_load_fail_no_request(
    following: Server, own_milvus: MilvusProcess, kafka: KafkaSettings, few: tuple[Document, ...]
) -> None:
    told = [f"merged {number}" for number in range(MAX_DELTAS + 2)]
    with asked_all_along(following, few[0]) as (seen, failed):
        for name in told:
            published(own_milvus, kafka, rewritten(few[0], name))
            eventually(lambda name=name: names(following, few[0]) == [name], "the next")  # type: ignore[misc]
    assert failed == []
    assert {name for (name,) in seen} >= set(told[1:])
    snapshot = read_snapshot(following.index)
    assert snapshot
    assert len(snapshot.segments) <= MAX_DELTAS


def test_while_the_broker_hangs_newer_manifests_are_looked_for(
    following: Server, own_milvus: MilvusProcess, kafka_broker: Broker, kafka: KafkaSettings, few: tuple[Document, ...]
) -> None:
    if kafka_broker.process is None:
        pytest.skip("needs a broker of its own to stop")
    kafka_broker.process.send_signal(signal.SIGSTOP)
    try:
        published(own_milvus, None, rewritten(few[1], "Nobody told of it"))
        eventually(lambda: names(following, few[1]) == ["Nobody told of it"], "the item that nobody told of")
    finally:
        kafka_broker.process.send_signal(signal.SIGCONT)
    eventually(lambda: following.output.read_text().count("following the change feed") == 2, "the feed again")
    published(own_milvus, kafka, rewritten(few[1], "Told again"))
    eventually(lambda: names(following, few[1]) == ["Told again"], "the item that the feed told of")


def test_without_a_broker_a_publish_is_done_and_says_who_was_not_told(
    own_milvus: MilvusProcess, few: tuple[Document, ...]
) -> None:
    nowhere = KafkaSettings(bootstrap="127.0.0.1:1")
    assert published(own_milvus, nowhere, rewritten(few[3], f"Without a broker {os.getpid()}")) == 1
