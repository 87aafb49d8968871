"""A server whose processes are killed, whose Milvus is gone when it starts, and whose index directory is torn."""

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import grpc
import pytest

from offline.publish import Document, publish
from offline.vector_cache import CachedEncoder
from reranker.personas_milvus import MilvusPersonaStore
from reranker.snapshot import read_snapshot
from reranker.v1 import reranker_pb2 as pb
from reranker.v1 import reranker_pb2_grpc as pb_grpc
from tests.integration.conftest import Published
from tests.integration.processes import (
    PATIENCE_SECONDS,
    MilvusProcess,
    Server,
    eventually,
    milvus_process,
    refusal,
    serving,
)
from tests.integration.test_operations import value

pytestmark = pytest.mark.integration

CALLERS = 4
# A worker that shuts down cancels what it had accepted but not begun, so CANCELLED is retried like UNAVAILABLE:
# a Rerank only reads, and a call that its own caller cancels is not retried.
RETRYING = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ]
}


class Load:
    """Callers that ask one request after the other, each by a connection of its own."""

    def __init__(self, address: str, retrying: bool) -> None:
        self.codes: Counter[grpc.StatusCode] = Counter()
        self._stop = threading.Event()
        self._options = [
            # Otherwise all channels of a process share a connection, and so a worker.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", int(retrying)),
            ("grpc.service_config", json.dumps(RETRYING if retrying else {})),
        ]
        self._address = address
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        # A channel gives calls to a connection that has ended until it knows of it, some milliseconds later, and
        # a caller that goes on with it counts one loss up to 20 times.
        while not self._stop.is_set():
            with grpc.insecure_channel(self._address, options=self._options) as channel:
                self._ask_until_one_fails(pb_grpc.RerankerStub(channel))

    def _ask_until_one_fails(self, stub: pb_grpc.RerankerStub) -> None:
        request = pb.RerankRequest(user_id="hana", candidates=[pb.Candidate(item_id=i) for i in ("dracula", "x")])
        code = grpc.StatusCode.OK
        while code is grpc.StatusCode.OK and not self._stop.is_set():
            try:
                stub.Rerank(request, timeout=PATIENCE_SECONDS, wait_for_ready=True)
            except grpc.RpcError as error:
                code = error.code()
            self.codes[code] += 1

    def goes_on(self) -> None:
        """Return after every caller could ask a few times more."""
        asked = self.codes.total()
        eventually(lambda: self.codes.total() > asked + 10 * CALLERS, "further answers under load")

    @property
    def failed(self) -> int:
        return self.codes.total() - self.codes[grpc.StatusCode.OK]


@contextmanager
def load_on(address: str, retrying: bool = False) -> Iterator[Load]:
    load = Load(address, retrying)
    load.start()
    try:
        load.goes_on()
        yield load
    finally:
        load.stop()


def workers_of(server: Server) -> set[int]:
    """Return the process ids of the server's workers."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return {int(pid) for pid in children if "spawn_main" in _command(int(pid))}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def ask(server: Server) -> pb.RerankResponse:
    with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        request = pb.RerankRequest(user_id="hana", candidates=[pb.Candidate(item_id="dracula")])
        response: pb.RerankResponse = pb_grpc.RerankerStub(channel).Rerank(
            request, timeout=PATIENCE_SECONDS, wait_for_ready=True
        )
        return response


def test_a_killed_worker_costs_what_it_was_answering_and_is_replaced(
    tmp_path: Path, published: Published, histories: Path
) -> None:
    with serving(tmp_path, published.uri, histories) as server:
        first, second = workers_of(server)
        with load_on(server.address) as load:
            os.kill(first, signal.SIGKILL)
            eventually(lambda: len(workers_of(server) - {first}) == 2, "another worker")
            load.goes_on()
        # One at a time by each caller: no more than those were in flight.
        assert load.failed <= CALLERS, load.codes
        assert set(load.codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        os.kill(second, signal.SIGKILL)
        eventually(lambda: len(workers_of(server) - {first, second}) == 2, "two other workers")
        assert ask(server).items[0].item_id == "dracula", "the workers that took the place of both answer"
        assert value(server, "reranker_worker_restarts_total") == 2
        assert f"worker {first} ended with code -9 and is replaced" in server.output.read_text()
        assert server.stop() == 0


def test_workers_end_with_their_supervisor(tmp_path: Path, published: Published, histories: Path) -> None:
    with serving(tmp_path, published.uri, histories) as server:
        workers = workers_of(server)
        assert len(workers) == 2
        server.process.kill()
        server.process.wait()
        eventually(lambda: not any("spawn_main" in _command(pid) for pid in workers), "the end of the workers")


def test_a_second_server_is_refused(tmp_path: Path, server: Server, published: Published) -> None:
    port = server.address.split(":")[1]
    told = refusal(tmp_path, server.histories, published.uri, f"--grpc-port={port}")
    assert f"grpc_port {port} on 127.0.0.1" in told
    told = refusal(tmp_path, server.histories, published.uri, f"--index={server.index}")
    assert f"index directory {server.index} is written by another server" in told


def test_a_server_told_to_stop_and_started_again_loses_no_request(
    tmp_path: Path, published: Published, histories: Path
) -> None:
    with serving(tmp_path, published.uri, histories) as old, load_on(old.address, retrying=True) as load:
        assert old.stop() == 0
        with serving(tmp_path, published.uri, histories, f"--grpc-port={old.address.split(':')[1]}") as new:
            load.goes_on()
            load.stop()
            assert new.stop() == 0
    assert load.failed == 0, load.codes


def test_a_torn_segment_is_named(tmp_path: Path, published: Published, histories: Path) -> None:
    with serving(tmp_path, published.uri, histories) as server:
        assert server.stop() == 0
    snapshot = read_snapshot(server.index)
    assert snapshot
    segment = server.index / snapshot.segments[0]
    vectors = segment / "vectors.npy"
    vectors.write_bytes(vectors.read_bytes()[:-1])
    told = refusal(tmp_path, histories, published.uri)
    assert f"{segment} is torn: vectors.npy" in told
    assert "delete the index directory" in told


@pytest.fixture
def far_milvus(tmp_path: Path) -> Iterator[MilvusProcess]:
    """Give a Milvus at an address where the server does not start one itself."""
    with milvus_process(tmp_path / "data", host="127.0.0.2") as milvus:
        yield milvus


def publish_to(milvus: MilvusProcess, encoder: CachedEncoder, *documents: Document) -> None:
    with closing(MilvusPersonaStore(milvus.uri)) as store:
        publish(documents, store, encoder)


def often_refreshing(folder: Path, milvus: MilvusProcess, histories: Path) -> AbstractContextManager[Server]:
    return serving(folder, milvus.uri, histories, REFRESH_SECONDS="0.2", STALE_SECONDS="3")


def test_milvus_may_be_gone_at_the_start_and_under_load_and_come_back(
    tmp_path: Path, far_milvus: MilvusProcess, books: tuple[Document, ...], encoder: CachedEncoder, histories: Path
) -> None:
    publish_to(far_milvus, encoder, *books[:4])
    with often_refreshing(tmp_path, far_milvus, histories) as server:
        with load_on(server.address) as load:
            far_milvus.signal(signal.SIGKILL)
            eventually(lambda: pb.DEGRADATION_INDEX_STALE in ask(server).degraded, "word of a stale index")
            far_milvus.start()
            publish_to(far_milvus, encoder, *books[:5])
            eventually(lambda: value(server, "reranker_index_items") == 5, "what was published after the return")
            load.goes_on()
        assert load.failed == 0, load.codes
        assert server.stop() == 0

    far_milvus.signal(signal.SIGKILL)
    with often_refreshing(tmp_path, far_milvus, histories) as server:
        assert "the last snapshot is served: Milvus at" in server.output.read_text()
        assert server.client.info().items == 5
        eventually(lambda: pb.DEGRADATION_INDEX_STALE in ask(server).degraded, "word of a stale index")
        far_milvus.start()
        publish_to(far_milvus, encoder, *books[:6])
        eventually(lambda: server.client.info().items == 6, "what was published after the return")
        assert server.stop() == 0
