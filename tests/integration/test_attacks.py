"""Callers who mean harm, or whose fault looks like it: the server names the fault, stays up, and serves the others."""

import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from persona4rec.bench.processes import proportional_bytes
from reranker.client import CallError
from reranker.rpc import SERVICE
from reranker.v1 import reranker_pb2 as pb
from reranker.v1 import reranker_pb2_grpc as pb_grpc
from tests.integration.conftest import Published
from tests.integration.processes import PATIENCE_SECONDS, Server, eventually, serving
from tests.integration.stalling import SlowReader
from tests.integration.test_operations import slow, value
from tests.integration.test_workers import workers_of

pytestmark = pytest.mark.integration

SHORT, LONG = 2_000, 100_000
SIZES = [SHORT, pytest.param(LONG, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
CALLERS = 8
# What allocators and caches of two workers may still take after they have served a few thousand requests.
SETTLED_BYTES = 24 << 20

FAULTS_OF_CALLERS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    # Over the limit of a message.
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def ask_all(server: Server, count: int, draw: Callable[[random.Random], tuple[str, bytes]]) -> Counter[grpc.StatusCode]:
    """Send drawn bodies to the methods drawn with them, by several connections; return the statuses."""

    def ask(caller: int) -> Counter[grpc.StatusCode]:
        chance, codes = random.Random(caller), Counter[grpc.StatusCode]()
        with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            for _ in range(count // CALLERS):
                method, body = draw(chance)
                call: Any = channel.unary_unary(f"/{SERVICE.full_name}/{method}")
                try:
                    call(body, timeout=PATIENCE_SECONDS)
                    codes[grpc.StatusCode.OK] += 1
                except grpc.RpcError as error:
                    codes[error.code()] += 1
        return codes

    with ThreadPoolExecutor(CALLERS) as pool:
        return sum(pool.map(ask, range(CALLERS)), Counter())


def random_body(chance: random.Random) -> tuple[str, bytes]:
    return chance.choice([method.name for method in SERVICE.methods]), chance.randbytes(
        chance.choice([0, 1, 9, 99, 999])
    )


TEXTS = [
    "",
    "a",
    "dracula",
    "hana",
    "\0",
    "é" * 128,
    "i" * 257,
    "\u202e",
    "' or 1=1 --",
    "../../etc/passwd",
    "{}",
    "\ud7ff",
]
NUMBERS = [0.0, -0.0, 1.0, -1.0, 3.4e38, -3.4e38, 1e-45, float("nan"), float("inf"), float("-inf")]
COUNTS = [0, 1, 20, 1000, 1001, 2**31, 2**32 - 1]
TIMES = [0, 1, -1, -(2**63), 2**63 - 1]


def hostile(chance: random.Random) -> tuple[str, bytes]:
    """Draw a valid message whose values are at and beyond every edge."""
    ranking: dict[str, Any] = {
        "user_id": chance.choice(TEXTS),
        "exclude_item_ids": [chance.choice(TEXTS) for _ in range(chance.choice([0, 2, 1001]))],
        "explain": chance.random() < 0.5,
        "fusion_weight": chance.choice([None, chance.choice(NUMBERS)]),
        "variant": chance.choice(TEXTS),
        "fusion": chance.choice([0, 1, 2, 3, 4, 5, -1, 2**31 - 1]),
        "boosts": [
            pb.Boost(item_id=chance.choice(TEXTS), add=chance.choice(NUMBERS)) for _ in range(chance.choice([0, 2]))
        ],
        "diversity": chance.choice([0.0, chance.choice(NUMBERS)]),
    }
    method = chance.choice(["Rerank", "Rerank", "Rerank", "Recommend", "GetUserProfile", "GetItemPersonas"])
    if method == "Rerank":
        message: Any = pb.RerankRequest(
            candidates=[
                pb.Candidate(
                    item_id=chance.choice(TEXTS) + str(place), score=chance.choice([None, chance.choice(NUMBERS)])
                )
                for place in range(chance.choice([0, 1, 3, 100]))
            ],
            top_k=chance.choice(COUNTS),
            history=_history(chance) if chance.random() < 0.5 else None,
            **ranking,
        )
    elif method == "Recommend":
        message = pb.RecommendRequest(n=chance.choice(COUNTS), candidates=chance.choice(COUNTS), **ranking)
    elif method == "GetUserProfile":
        message = pb.GetUserProfileRequest(user_id=chance.choice(TEXTS), include_vector=True)
    else:
        message = pb.GetItemPersonasRequest(item_ids=[chance.choice(TEXTS) for _ in range(chance.choice([0, 3, 1001]))])
    return method, message.SerializeToString()


def _history(chance: random.Random) -> pb.History:
    return pb.History(
        events=[
            pb.HistoryEvent(
                item_id=chance.choice(TEXTS),
                event_time=chance.choice(TIMES),
                kind=chance.choice(TEXTS),
                rating=chance.choice([None, *NUMBERS]),
                event_id=chance.choice(TEXTS),
            )
            for _ in range(chance.choice([0, 1, 3, 201]))
        ]
    )


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("draw", [random_body, hostile])
def test_whatever_is_sent_the_fault_is_the_caller_s(
    server: Server, draw: Callable[[random.Random], tuple[str, bytes]], count: int
) -> None:
    workers = workers_of(server)
    ask_all(server, count // 2, draw)
    before = sum(map(proportional_bytes, workers))
    codes = ask_all(server, count // 2, draw)
    assert set(codes) <= FAULTS_OF_CALLERS, codes
    assert codes[grpc.StatusCode.OK] > 0
    assert codes[grpc.StatusCode.INVALID_ARGUMENT] > 0
    assert workers_of(server) == workers, "a worker died"
    assert sum(map(proportional_bytes, workers)) - before < SETTLED_BYTES
    assert server.client.rerank("hana", [("dracula", 1.0)]).items[0].HasField("persona")


@pytest.mark.parametrize(
    "first_bytes",
    [
        b"",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01" + os.urandom(64),
        os.urandom(512),
    ],
    ids=["silence", "half a preface", "HTTP/1.1", "TLS", "noise"],
)
def test_connections_that_never_get_to_a_request_are_in_nobody_s_way(server: Server, first_bytes: bytes) -> None:
    host, port = server.address.rsplit(":", 1)
    with ExitStack() as stack:
        for _ in range(200):
            half_open = stack.enter_context(socket.create_connection((host, int(port)), PATIENCE_SECONDS))
            half_open.sendall(first_bytes)
            if first_bytes:
                # Closed with a reset, whatever the server still had to say.
                half_open.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert server.client.rerank("hana", [("dracula", 1.0)]).items


def test_an_answer_that_nobody_reads_is_given_up(server: Server, published: Published) -> None:
    # A small answer fits into buffers and is out of the server's hands at once.
    everything = [pb.Candidate(item_id=item_id) for item_id in published.item_ids]
    with SlowReader(server.address) as reader:
        for _ in range(20):
            reader.ask(pb.RerankRequest(user_id="hana", candidates=everything).SerializeToString())
        eventually(lambda: value(server, "reranker_requests_in_flight") > 0, "requests whose answers are not read")
        assert server.client.rerank("hana", [("dracula", 1.0)]).items
        eventually(lambda: value(server, "reranker_requests_in_flight") == 0, "the end of them")


def test_beyond_its_limit_a_worker_refuses_and_says_that_it_is_healthy(
    tmp_path: Path, published: Published, histories: Path
) -> None:
    limit = {"command": slow(tmp_path, 3600), "MAX_CONCURRENCY": "2"}
    with (
        serving(tmp_path, published.uri, histories, workers=1, **limit) as server,  # type: ignore[arg-type]
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = pb_grpc.RerankerStub(channel)
        held: list[Any] = []

        def refusal_beside_two() -> str:
            # A call may be cancelled in gRPC's queue, and is after five seconds that nobody reads its answer.
            held[:] = [call for call in held if not call.done()]
            held.extend(stub.Info.future(pb.InfoRequest(), timeout=PATIENCE_SECONDS) for _ in range(2 - len(held)))
            return refusal()

        def refusal() -> str:
            try:
                server.client.rerank("hana", [("dracula", 1.0)])
            except CallError as error:
                return str(error)
            return ""

        told = eventually(refusal_beside_two, "a refusal", until=lambda told: "slow down" in told)
        assert "RESOURCE_EXHAUSTED" in told
        health: Any = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service=SERVICE.full_name)
        assert health.Check(asked, timeout=PATIENCE_SECONDS).status == health_pb2.HealthCheckResponse.SERVING
        for call in held:
            call.cancel()
        eventually(lambda: refusal() == "", "an answer, once others are over")
        assert value(server, "reranker_requests_total", method="Rerank", code="RESOURCE_EXHAUSTED") > 0
