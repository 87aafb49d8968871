"""The measurement: calls to echo and server in turn, so that a machine that slows down slows both."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import grpc
import numpy as np

from persona4rec.arguments import CANDIDATES
from persona4rec.bench.catalogue import item_id, write_catalogue
from persona4rec.bench.processes import RERANK, Served, cpu_seconds, echo, proportional_bytes, reranker
from persona4rec.bench.scoring import ScoringAlone, measure_scoring
from reranker.config import ServerSettings
from reranker.errors import IndexUnavailableError
from reranker.histories_sqlite import SqliteHistoryStore
from reranker.index import Index
from reranker.records import Event
from reranker.snapshot import open_snapshot, read_snapshot
from reranker.v1 import reranker_pb2 as pb

USER = "user"
TOP_K = 20
EVENTS = 10
# Different requests, so that no answer and no row is warm from the call before.
REQUESTS = 500
WARM_UP_CALLS = 300
# In flight at a time: one, what a budget is set for, and beyond it.
IN_FLIGHT = (1, 8, 32, 64)
CURVE = tuple(share / 200 for share in range(201))
QUANTILES = (50.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Latency:
    """Round trips of one client, in milliseconds."""

    quantiles: dict[float, float]
    curve: list[float]
    """The time within which each of CURVE's shares of the calls had ended."""
    cpu: float
    """Milliseconds of the server's processor time a call."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """A closed loop."""

    in_flight: int
    per_second: float
    cpu: float
    """Milliseconds of the server's processor time a call."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One catalogue size."""

    items: int
    ready_seconds: float
    """From the start of the process to serving, imports included."""
    memory_share: float
    """Proportional set size over the bytes of all vectors, after the run."""
    latency: dict[str, Latency]
    """Of "echo" and "rerank"."""
    throughput: dict[str, list[Throughput]]
    scoring: ScoringAlone


def measure(folder: Path, items: int, calls: int, seconds: float, in_flight: Sequence[int]) -> Measured:
    """Compare the server with the echo over an index of so many items, kept in `folder`."""
    write_catalogue(folder / str(items), items)
    settings = ServerSettings(
        index=folder / str(items), histories=str(folder / f"histories-{items}.sqlite"), host="127.0.0.1"
    )
    _write_history(Path(settings.histories), items)
    requests = _requests(items)
    started = perf_counter()
    with reranker(settings) as server:
        ready = perf_counter() - started
        with grpc.insecure_channel(server.address) as channel:
            reply = _method(channel)(requests[0])
        with echo(settings, reply) as empty:
            servers = {"echo": empty, "rerank": server}
            latency = _latencies(servers, requests, calls)
            loops = {
                name: asyncio.run(_loops(served, requests, seconds, in_flight)) for name, served in servers.items()
            }
            vectors = sum(path.stat().st_size for path in settings.index.glob("segment-*/vectors.npy"))
            share = proportional_bytes(server.pid) / vectors
    return Measured(items, ready, share, latency, loops, measure_scoring(_index(settings.index).single))


def _index(folder: Path) -> Index:
    snapshot = read_snapshot(folder)
    if snapshot is None:
        raise IndexUnavailableError(f"there is no index in {folder}")
    return open_snapshot(folder, snapshot)


def _write_history(path: Path, items: int) -> None:
    store = SqliteHistoryStore(path)
    random = np.random.default_rng(1)
    numbers = random.integers(items, size=EVENTS).tolist()
    store.merge({USER: [Event(f"e{at}", item_id(n), at * 1000) for at, n in enumerate(numbers, start=1)]})
    store.close()


def _requests(items: int) -> list[bytes]:
    random = np.random.default_rng(2)
    return [_request(random, items) for _ in range(REQUESTS)]


def _request(random: np.random.Generator, items: int) -> bytes:
    numbers = random.choice(items, CANDIDATES, replace=False).tolist()
    scores = random.standard_normal(CANDIDATES).tolist()
    candidates = [pb.Candidate(item_id=item_id(n), score=s) for n, s in zip(numbers, scores, strict=True)]
    return pb.RerankRequest(user_id=USER, candidates=candidates, top_k=TOP_K).SerializeToString()


def _method(channel: grpc.Channel) -> Callable[[bytes], bytes]:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(RERANK)
    return call


def _latencies(servers: dict[str, Served], requests: Sequence[bytes], calls: int) -> dict[str, Latency]:
    channels = {name: grpc.insecure_channel(served.address) for name, served in servers.items()}
    methods = {name: _method(channel) for name, channel in channels.items()}
    for number in range(WARM_UP_CALLS):
        for call in methods.values():
            call(requests[number % len(requests)])
    before = {name: cpu_seconds(served.pid) for name, served in servers.items()}
    taken: dict[str, list[float]] = {name: [] for name in servers}
    for number in range(calls):
        for name, call in methods.items():
            started = perf_counter()
            call(requests[number % len(requests)])
            taken[name].append((perf_counter() - started) * 1000)
    for channel in channels.values():
        channel.close()
    return {
        name: Latency(
            dict(zip(QUANTILES, np.percentile(taken[name], QUANTILES).tolist(), strict=True)),
            np.quantile(taken[name], CURVE).tolist(),
            (cpu_seconds(served.pid) - before[name]) / calls * 1000,
        )
        for name, served in servers.items()
    }


async def _loops(
    served: Served, requests: Sequence[bytes], seconds: float, in_flight: Sequence[int]
) -> list[Throughput]:
    async with grpc.aio.insecure_channel(served.address) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(RERANK)
        return [await _loop(method, served, requests, seconds, n) for n in in_flight]


async def _loop(
    method: "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]",
    served: Served,
    requests: Sequence[bytes],
    seconds: float,
    in_flight: int,
) -> Throughput:
    before, started = cpu_seconds(served.pid), perf_counter()
    end = started + seconds

    async def caller(number: int) -> int:
        done = 0
        while perf_counter() < end:
            await method(requests[(number + done * in_flight) % len(requests)])
            done += 1
        return done

    done = sum(await asyncio.gather(*(caller(number) for number in range(in_flight))))
    elapsed = perf_counter() - started
    return Throughput(in_flight, done / elapsed, (cpu_seconds(served.pid) - before) / done * 1000)
