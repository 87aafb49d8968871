"""The client against servers that fail in ways that a good one seldom does."""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import pytest

from reranker.client import AsyncRerankerClient, CallError, RerankerClient
from reranker.service_config import RETRIED, SERVICE_CONFIG
from reranker.v1 import reranker_pb2 as pb
from reranker.v1 import reranker_pb2_grpc as pb_grpc
from tests.conftest import free_port
from tests.integration.processes import PATIENCE_SECONDS

pytestmark = pytest.mark.integration

FOR_OTHERS = Path(__file__).parents[2] / "deploy" / "service_config.json"
SCORED = [("a", 1.0), ("b", None), ("c", 3.0), ("d", 3.0), ("e", -1.0)]


class Scripted(pb_grpc.RerankerServicer):
    """Fails as it is told to, and then answers; remembers what it was asked."""

    def __init__(self) -> None:
        self.failures: list[grpc.StatusCode] = []
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.free = Event()
        self.free.set()

    def Rerank(self, request: pb.RerankRequest, context: Any) -> pb.RerankResponse:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.free.wait(PATIENCE_SECONDS)
        if self.failures:
            context.abort(self.failures.pop(0), "as told")
        return pb.RerankResponse(variant=request.variant)

    def Recommend(self, request: pb.RecommendRequest, context: Any) -> pb.RecommendResponse:
        self.requests.append(request)
        return pb.RecommendResponse(generator="scripted")


@contextmanager
def scripted() -> Iterator[tuple[Scripted, str]]:
    servicer = Scripted()  # type: ignore[abstract]  # no test asks for more
    server = grpc.server(ThreadPoolExecutor(4))
    pb_grpc.add_RerankerServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        servicer.free.set()
        server.stop(0).wait()


def blocking(address: str, timeout: float = PATIENCE_SECONDS, **options: Any) -> pb.RerankResponse:
    with RerankerClient(address, timeout) as client:
        return client.rerank("u", SCORED, **options)


def awaited(address: str, timeout: float = PATIENCE_SECONDS, **options: Any) -> pb.RerankResponse:
    async def call() -> pb.RerankResponse:
        async with AsyncRerankerClient(address, timeout) as client:
            return await client.rerank("u", SCORED, **options)

    return asyncio.run(call())


both = pytest.mark.parametrize("rerank", [blocking, awaited])


def code_of(rerank: Callable[..., Any], *arguments: Any, **options: Any) -> grpc.StatusCode:
    with pytest.raises(CallError) as error:
        rerank(*arguments, **options)
    return error.value.code


def test_other_languages_are_told_what_this_client_does() -> None:
    assert json.loads(FOR_OTHERS.read_text()) == SERVICE_CONFIG


@both
def test_options_become_fields(rerank: Callable[..., pb.RerankResponse]) -> None:
    with scripted() as (servicer, address):
        answered = rerank(
            address,
            top_k=3,
            exclude_item_ids=["b"],
            explain=False,
            fusion_weight=0.25,
            fusion=pb.FUSION_RECIPROCAL_RANK,
            boosts={"a": 0.5},
            diversity=0.25,
            variant="v",
            history=pb.History(events=[pb.HistoryEvent(item_id="h")]),
            request_id="page 7",
        )
    assert answered.variant == "v"
    assert servicer.requests == [
        pb.RerankRequest(
            user_id="u",
            candidates=[pb.Candidate(item_id=item_id, score=score) for item_id, score in SCORED],
            top_k=3,
            exclude_item_ids=["b"],
            explain=False,
            fusion_weight=0.25,
            fusion=pb.FUSION_RECIPROCAL_RANK,
            boosts=[pb.Boost(item_id="a", add=0.5)],
            diversity=0.25,
            variant="v",
            history=pb.History(events=[pb.HistoryEvent(item_id="h")]),
        )
    ]
    assert servicer.metadata[0]["x-request-id"] == "page 7"


def test_recommend_has_the_same_options() -> None:
    wanted = pb.RecommendRequest(
        user_id="u", n=5, candidates=50, boosts=[pb.Boost(item_id="a", add=1)], diversity=0.5, variant="v"
    )

    async def recommended(address: str) -> None:
        async with AsyncRerankerClient(address, PATIENCE_SECONDS) as client:
            await client.recommend("u", 5, candidates=50, boosts={"a": 1}, diversity=0.5, variant="v")

    with scripted() as (servicer, address):
        with RerankerClient(address, PATIENCE_SECONDS) as client:
            client.recommend("u", 5, candidates=50, boosts={"a": 1}, diversity=0.5, variant="v")
        asyncio.run(recommended(address))
    assert servicer.requests == [wanted, wanted]


@both
@pytest.mark.parametrize("code", RETRIED)
def test_what_passes_is_asked_again(rerank: Callable[..., pb.RerankResponse], code: str) -> None:
    with scripted() as (servicer, address):
        servicer.failures = [grpc.StatusCode[code]] * 3
        assert rerank(address, variant="v").variant == "v"
        assert len(servicer.requests) == 4


@both
def test_what_does_not_pass_is_told_at_once(rerank: Callable[..., pb.RerankResponse]) -> None:
    with scripted() as (servicer, address):
        servicer.failures = [grpc.StatusCode.INVALID_ARGUMENT]
        assert code_of(rerank, address, fallback=True) == grpc.StatusCode.INVALID_ARGUMENT
        assert len(servicer.requests) == 1


def test_a_service_that_fails_on_and_on_is_not_asked_more_than_it_was_before() -> None:
    with scripted() as (servicer, address), RerankerClient(address, PATIENCE_SECONDS) as client:
        servicer.failures = [grpc.StatusCode.RESOURCE_EXHAUSTED] * 100
        # Five failures take the tokens down to half; from then on a call is one request.
        for _ in range(5):
            code_of(client.rerank, "u", SCORED)
        asked = len(servicer.requests)
        assert asked < 5 * 4
        for _ in range(10):
            code_of(client.rerank, "u", SCORED)
        assert len(servicer.requests) == asked + 10


@both
def test_an_answer_that_takes_too_long_is_not_waited_for(rerank: Callable[..., pb.RerankResponse]) -> None:
    with scripted() as (servicer, address):
        # Time enough for an answer that comes at once, on a busy machine as well.
        assert rerank(address, timeout=1.5, variant="v").variant == "v"
        servicer.free.clear()
        assert code_of(rerank, address, timeout=0.2) == grpc.StatusCode.DEADLINE_EXCEEDED
        assert list(rerank(address, timeout=0.2, fallback=True).degraded) == [pb.DEGRADATION_NOT_ANSWERED]


@both
@pytest.mark.parametrize(("top_k", "order"), [(0, "cdae"), (2, "cd"), (1000, "cdae")])
def test_without_the_service_the_first_stage_order_is_what_the_server_would_answer(
    rerank: Callable[..., pb.RerankResponse], top_k: int, order: str
) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    answered = rerank(nobody, top_k=top_k, exclude_item_ids=["b", "x"], variant="v", fallback=True)
    assert "".join(item.item_id for item in answered.items) == order
    assert [item.rank for item in answered.items] == list(range(1, len(order) + 1))
    assert {item.reason for item in answered.items} == {pb.ITEM_REASON_NOT_SCORED}
    assert (list(answered.degraded), answered.variant) == ([pb.DEGRADATION_NOT_ANSWERED], "v")
    assert code_of(rerank, nobody) == grpc.StatusCode.UNAVAILABLE


def test_requests_go_to_all_addresses_and_past_one_that_is_gone() -> None:
    with scripted() as (one, first), scripted() as (other, second):
        with RerankerClient(f"ipv4:{first},{second},127.0.0.1:{free_port()}", PATIENCE_SECONDS) as client:
            client.wait_until_ready(PATIENCE_SECONDS)
            for _ in range(50):
                client.rerank("u", SCORED)
        assert len(one.requests) + len(other.requests) == 50
        assert one.requests
        assert other.requests


def test_nobody_there_is_told_with_what_to_do() -> None:
    nobody = f"127.0.0.1:{free_port()}"

    async def wait() -> None:
        async with AsyncRerankerClient(nobody) as client:
            await client.wait_until_ready(0.1)

    with RerankerClient(nobody) as client, pytest.raises(CallError, match="is `persona4rec serve` running there"):
        client.wait_until_ready(0.1)
    with pytest.raises(CallError, match="is `persona4rec serve` running there"):
        asyncio.run(wait())
