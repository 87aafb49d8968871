"""A server while its index changes, and while Milvus comes and goes."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from offline.publish import Document, publish
from offline.vector_cache import CachedEncoder
from reranker.client import CallError
from reranker.personas_milvus import MilvusPersonaStore
from reranker.records import Persona, persona_id
from reranker.snapshot import read_snapshot
from reranker.v1 import reranker_pb2 as pb
from tests.integration.processes import MilvusProcess, Server, eventually, milvus_process, serving
from tests.integration.test_operations import value

pytestmark = pytest.mark.integration

Publish = Callable[..., None]


@pytest.fixture(scope="module")
def own_milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusProcess]:
    with milvus_process(tmp_path_factory.mktemp("milvus") / "data") as milvus:
        yield milvus


@pytest.fixture(scope="module")
def few(books: tuple[Document, ...]) -> tuple[Document, ...]:
    return books[:5]


@pytest.fixture(scope="module")
def publishing(own_milvus: MilvusProcess, encoder: CachedEncoder) -> Publish:
    def write(*documents: Document, prune: bool = False, rebuild: bool = False) -> None:
        with closing(MilvusPersonaStore(own_milvus.uri)) as store:
            publish(documents, store, encoder, prune=prune, rebuild=rebuild)

    return write


@pytest.fixture(scope="module")
def following(
    tmp_path_factory: pytest.TempPathFactory,
    own_milvus: MilvusProcess,
    publishing: Publish,
    few: tuple[Document, ...],
    histories: Path,
) -> Iterator[Server]:
    """Give a server that looks for changes several times a second, and has no generator."""
    publishing(*few)
    folder = tmp_path_factory.mktemp("server")
    with serving(
        folder, own_milvus.uri, histories, REFRESH_SECONDS="0.2", STALE_SECONDS="3", SCRUB_SECONDS="1"
    ) as server:
        yield server


def rewritten(document: Document, rationale: str) -> Document:
    """Return the document with one persona alone, whose rationale is this."""
    old = document.personas[0]
    new = persona_id(document.item.item_id, old.name, old.description, rationale)
    return replace(document, personas=(Persona(new, old.name, old.description, rationale, old.evidence),))


def rationales(server: Server, document: Document) -> list[str]:
    (item,) = server.client.item_personas([document.item.item_id]).items
    return [persona.preference_rationale for persona in item.personas]


def reranked(server: Server, *documents: Document) -> pb.RerankResponse:
    return server.client.rerank("hana", [(document.item.item_id, None) for document in documents])


def test_what_is_published_is_served_soon(following: Server, publishing: Publish, few: tuple[Document, ...]) -> None:
    before = following.client.info()
    publishing(rewritten(few[0], "Because of the new rationale."))
    eventually(lambda: rationales(following, few[0]) == ["Because of the new rationale."], "the republished item")
    (item,) = reranked(following, few[0]).items
    assert item.persona.preference_rationale == "Because of the new rationale."
    after = following.client.info()
    assert after.index_generation > before.index_generation
    assert (after.items, after.index_version) == (before.items, before.index_version)
    # Of the worker that is furthest behind.
    eventually(lambda: value(following, "reranker_index_generation") == after.index_generation, "it in all workers")
    assert rationales(following, few[1]) == [persona.preference_rationale for persona in few[1].personas]


def test_a_new_item_is_served_soon(
    following: Server, publishing: Publish, books: tuple[Document, ...], few: tuple[Document, ...]
) -> None:
    new = books[len(few)]
    assert list(reranked(following, new).degraded) == [pb.DEGRADATION_ITEMS_NOT_INDEXED]
    publishing(new)
    eventually(lambda: list(reranked(following, new).degraded) == [], "the new item")
    assert reranked(following, new).items[0].HasField("persona")


def test_an_item_pruned_is_gone_and_comes_back(
    following: Server, publishing: Publish, few: tuple[Document, ...]
) -> None:
    publishing(*few)
    eventually(lambda: len(rationales(following, few[4])) == len(few[4].personas), "the item")
    before = following.client.info()
    publishing(*few[:4], prune=True)
    eventually(lambda: rationales(following, few[4]) == [], "the end of a pruned item")
    (kept, gone) = sorted(
        reranked(following, few[0], few[4]).items, key=lambda item: item.item_id == few[4].item.item_id
    )
    assert (kept.reason, gone.reason) == (pb.ITEM_REASON_UNSPECIFIED, pb.ITEM_REASON_NOT_INDEXED)
    assert not following.client.item_personas([few[4].item.item_id]).items[0].found
    assert following.client.info().items == 4
    assert following.client.info().index_generation > before.index_generation
    publishing(*few)
    eventually(lambda: len(rationales(following, few[4])) == len(few[4].personas), "the item's return")


def test_a_rebuilt_index_takes_the_place_of_the_old_one(
    following: Server, publishing: Publish, few: tuple[Document, ...]
) -> None:
    before = following.client.info().index_version
    publishing(*few[:3], rebuild=True, prune=True)
    eventually(lambda: following.client.info().index_version != before, "the rebuilt index")
    assert following.client.info().items == 3
    publishing(*few)
    eventually(lambda: following.client.info().items == 5, "the items published to the rebuilt index")


def test_what_a_disk_loses_is_found_and_built_anew(
    following: Server, publishing: Publish, few: tuple[Document, ...]
) -> None:
    publishing(*few)
    eventually(lambda: rationales(following, few[0]) == [p.preference_rationale for p in few[0].personas], "the items")
    torn = segments(following)
    with (following.index / torn[0] / "personas.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read()
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    eventually(lambda: torn[0] not in segments(following), "an index without the torn segment")
    assert value(following, "reranker_index_torn_total") >= 1
    built = time.time()
    eventually(lambda: value(following, "reranker_index_verified_timestamp_seconds") > built, "a good scrub")
    assert all(rationales(following, one) == [p.preference_rationale for p in one.personas] for one in few)


def segments(server: Server) -> tuple[str, ...]:
    snapshot = read_snapshot(server.index)
    assert snapshot
    return snapshot.segments


def test_the_server_outlives_milvus(
    following: Server, own_milvus: MilvusProcess, publishing: Publish, few: tuple[Document, ...]
) -> None:
    publishing(*few)
    eventually(lambda: len(rationales(following, few[1])) == len(few[1].personas), "the items")
    before, failures = reranked(following, *few), value(following, "reranker_index_refresh_failures_total")
    assert list(before.degraded) == []

    own_milvus.signal(signal.SIGKILL)
    stale = eventually(
        lambda: reranked(following, *few), "word of a stale index", lambda r: pb.DEGRADATION_INDEX_STALE in r.degraded
    )
    assert list(stale.items) == list(before.items)
    assert value(following, "reranker_index_refresh_failures_total") > failures
    assert value(following, "reranker_degraded_total", reason="index_stale") > 0

    own_milvus.start()
    # Before anything is published, too: whoever starts Milvus again need not do more.
    eventually(lambda: list(reranked(following, *few).degraded) == [], "the end of staleness")
    publishing(rewritten(few[1], "After the return of Milvus."))
    eventually(lambda: rationales(following, few[1]) == ["After the return of Milvus."], "the publish after the return")


def test_the_server_outlives_a_milvus_that_hangs(
    following: Server, own_milvus: MilvusProcess, few: tuple[Document, ...]
) -> None:
    own_milvus.signal(signal.SIGSTOP)
    try:
        stale = eventually(lambda: reranked(following, *few), "word of a stale index", lambda r: list(r.degraded) != [])
        assert list(stale.degraded) == [pb.DEGRADATION_INDEX_STALE]
        assert len(stale.items) == len(few)
    finally:
        own_milvus.signal(signal.SIGCONT)
    eventually(lambda: list(reranked(following, *few).degraded) == [], "the end of staleness")


def test_recommend_without_a_generator_says_what_to_do(following: Server) -> None:
    with pytest.raises(CallError, match=r"--generator DIR.*candidates train") as refused:
        following.client.recommend("hana")
    assert refused.value.code == grpc.StatusCode.FAILED_PRECONDITION
    assert following.client.info().generator == ""
