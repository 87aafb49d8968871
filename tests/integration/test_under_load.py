"""What callers see, who use the client as it is, while the processes behind the service are killed, hang and return.

Milvus killed, an index swapped and a server started anew on its port, all under load: test_workers.py, test_feed.py.
"""

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from reranker.client import AsyncRerankerClient, CallError, RerankerClient
from reranker.histories import WRITE_SECONDS, open_histories
from reranker.histories_sqlite import SqliteHistoryStore
from reranker.v1 import reranker_pb2 as pb
from tests.integration.conftest import Published
from tests.integration.processes import PATIENCE_SECONDS, Server, eventually, serving
from tests.integration.streaming import broker
from tests.integration.test_workers import workers_of
from tests.stores import RedisProcess, redis_process

pytestmark = pytest.mark.integration

CALLERS = 4
AWAY = (pb.DEGRADATION_HISTORY_UNAVAILABLE,)

Degraded = tuple["pb.Degradation.ValueType", ...]


class Load:
    """Callers that ask one request after the other, each with a client of its own, until they are stopped."""

    def __init__(self, address: str) -> None:
        self.answers: Counter[Degraded] = Counter()
        self.failures: list[CallError] = []
        self.workers: list[set[str]] = [set() for _ in range(CALLERS)]
        """Those that answered each caller, by what begins the request ids that they make up."""
        self._address = address
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(seen,)) for seen in self.workers]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self, answers: int = 10 * CALLERS, degraded: Degraded | None = None) -> None:
        """Return after so many further answers, of all or of those with this degradation alone."""
        before = self._count(degraded)
        eventually(lambda: self._count(degraded) - before >= answers or self.failures, "further answers under load")

    def _count(self, degraded: Degraded | None) -> int:
        return self.answers.total() if degraded is None else self.answers[degraded]

    def _call(self, workers: set[str]) -> None:
        with RerankerClient(self._address, PATIENCE_SECONDS) as client:
            while not self._stop.is_set():
                try:
                    response = client.rerank("hana", [("dracula", 1.0), ("carmilla", 2.0)])
                except CallError as error:
                    self.failures.append(error)
                else:
                    self.answers[tuple(response.degraded)] += 1
                    workers.add(response.request_id.partition("-")[0])


@pytest.fixture
def redis(tmp_path: Path, histories: Path) -> Iterator[RedisProcess]:
    """Give a Redis that holds the history of a reader."""
    with redis_process(tmp_path / "redis") as running:
        with (
            closing(SqliteHistoryStore(histories)) as source,
            closing(open_histories(running.url, WRITE_SECONDS)) as target,
        ):
            target.merge({"hana": source.read("hana", 200) or ()})
        yield running


def test_a_killed_worker_costs_nobody_who_asks_again(tmp_path: Path, published: Published, histories: Path) -> None:
    with serving(tmp_path, published.uri, histories) as server, Load(server.address) as load:
        first, _ = workers_of(server)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: len(workers_of(server) - {first}) == 2, "another worker")
        load.goes_on()
        assert load.failures == []
        assert set(load.answers) == {()}


def test_redis_may_hang_and_die_and_come_back(tmp_path: Path, published: Published, redis: RedisProcess) -> None:
    with serving(tmp_path, published.uri, redis.url) as server, Load(server.address) as load:
        assert set(load.answers) == {()}
        assert redis.process
        redis.process.send_signal(signal.SIGSTOP)
        load.goes_on(400, AWAY)
        hung = server.output.read_text().count("no history after")
        assert hung * 10 < load.answers[AWAY], "most are answered without waiting for a store that hangs"
        redis.process.send_signal(signal.SIGCONT)
        load.goes_on(40, ())
        redis.stop(signal.SIGKILL)
        load.goes_on(40, AWAY)
        redis.start()
        load.goes_on(40, ())
        assert load.failures == []
        assert set(load.answers) == {(), AWAY}


def test_the_broker_may_hang_and_die(tmp_path: Path, published: Published, histories: Path) -> None:
    with broker(tmp_path) as kafka, ExitStack() as stack:
        if kafka.process is None:
            pytest.skip("needs a broker of its own to stop")
        settings = kafka.settings()
        server = stack.enter_context(
            serving(
                tmp_path,
                published.uri,
                histories,
                REFRESH_SECONDS="0.5",
                KAFKA_BOOTSTRAP=settings.bootstrap,
                KAFKA_TOPIC_PREFIX=settings.topic_prefix,
            )
        )
        eventually(lambda: "following the change feed" in server.output.read_text(), "the feed")
        load = stack.enter_context(Load(server.address))
        kafka.process.send_signal(signal.SIGSTOP)
        load.goes_on()
        kafka.process.kill()
        kafka.process.wait()
        load.goes_on()
        # Milvus is asked instead, so nothing is stale.
        assert (load.failures, set(load.answers)) == ([], {()})


def test_servers_are_replaced_one_after_the_other_and_no_request_fails(
    tmp_path: Path, published: Published, histories: Path
) -> None:
    folders = [tmp_path / name for name in ("one", "other", "new")]
    for folder in folders:
        folder.mkdir()

    def started(stack: ExitStack, folder: Path, *flags: str) -> Server:
        return stack.enter_context(serving(folder, published.uri, histories, *flags, workers=1))

    with ExitStack() as stack:
        one, other = (started(stack, folder) for folder in folders[:2])
        load = stack.enter_context(Load(f"ipv4:{one.address},{other.address}"))
        eventually(lambda: all(len(seen) == 2 for seen in load.workers), "answers of both for every caller")
        assert one.stop() == 0
        load.goes_on()
        started(stack, folders[2], f"--grpc-port={one.address.split(':')[1]}")
        # A client tries an address that was away every two seconds: so long one waits between one server and the next.
        eventually(lambda: all(len(seen) == 3 for seen in load.workers), "answers of the new one for every caller")
        assert other.stop() == 0
        load.goes_on()
        assert (load.failures, set(load.answers)) == ([], {()})


# Of two workers: what allocators and caches may still take once warm; 0.3 MB each were measured over 22,500 requests.
# A leak of each request, or of each answer, would take 2 kB and more for every one of 5,000.
SETTLED_BYTES = 8 << 20


def private_bytes(pid: int) -> int:
    """Return the memory that no other process shares: what is shared counts for more whenever another one ends."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in rollup if line.startswith("Private_Dirty:"))


async def _ask(address: str, item_ids: list[str], *, requests: int = 0, seconds: float = 0.0) -> None:
    """Rerank, by both workers, until so many requests are answered and so many seconds over."""
    asked, end = 0, time.monotonic() + seconds

    async def caller(number: int) -> None:
        nonlocal asked
        scored = [(item_id, float(place)) for place, item_id in enumerate(item_ids)]
        async with AsyncRerankerClient(address, PATIENCE_SECONDS) as client:
            while asked < requests or time.monotonic() < end:
                asked += 1
                await client.rerank("hana", scored, diversity=0.3 * (asked % 2), variant=f"{number}-{asked}")

    await asyncio.gather(*(caller(number) for number in range(8)))


@pytest.mark.parametrize(
    "seconds", [0.0, pytest.param(600.0, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])], ids=["short", "long"]
)
def test_memory_stays_what_it_was(tmp_path: Path, published: Published, histories: Path, seconds: float) -> None:
    with serving(tmp_path, published.uri, histories) as server:
        workers = workers_of(server)
        asyncio.run(_ask(server.address, published.item_ids[:20], requests=2000))
        before = sum(map(private_bytes, workers))
        asyncio.run(_ask(server.address, published.item_ids[:20], requests=5000, seconds=seconds))
        assert sum(map(private_bytes, workers)) - before < SETTLED_BYTES
        assert workers_of(server) == workers
