"""The two servers that are compared, each a process of its own: the real worker, and the echo."""

import asyncio
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import grpc

from reranker.config import ServerSettings
from reranker.errors import Persona4RecError
from reranker.rpc import SERVICE
from reranker.v1 import reranker_pb2 as pb
from reranker.worker import run, server_options

if TYPE_CHECKING:
    from redis import Redis

_SPAWN = multiprocessing.get_context("spawn")
START_SECONDS = 120.0
RERANK = f"/{SERVICE.full_name}/Rerank"


@dataclass(frozen=True, slots=True)
class Served:
    """A server under test."""

    address: str
    pid: int


@contextmanager
def reranker(settings: ServerSettings) -> Iterator[Served]:
    """Run one real worker, metrics on, without a supervisor."""
    with TemporaryDirectory() as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        with _process(run, settings) as served:
            yield served


@contextmanager
def echo(settings: ServerSettings, reply: bytes) -> Iterator[Served]:
    """Run a server that parses the request and answers ready bytes."""
    with _process(run_echo, settings, reply) as served:
        yield served


def run_echo(settings: ServerSettings, port: int, started: Connection, reply: bytes) -> None:
    """Serve the echo until SIGTERM."""
    asyncio.run(_echo(settings, port, started, reply))


async def _echo(settings: ServerSettings, port: int, started: Connection, reply: bytes) -> None:
    async def answer(body: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:  # noqa: ARG001
        pb.RerankRequest.FromString(body)
        return reply

    server = grpc.aio.server(options=server_options(settings))
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Rerank": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, methods),))
    server.add_insecure_port(f"{settings.host}:{port}")
    await server.start()
    started.send(None)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(0)


@contextmanager
def _process(target: object, settings: ServerSettings, *further: object) -> Iterator[Served]:
    port = free_port(settings.host)
    mine, theirs = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=target, args=(settings, port, theirs, *further))  # type: ignore[arg-type]
    process.start()
    try:
        if not mine.poll(START_SECONDS):
            raise Persona4RecError(f"a server of the benchmark did not start within {START_SECONDS:.0f} s")
        if error := mine.recv():
            raise error
        yield Served(f"{settings.host}:{port}", process.pid or 0)
    finally:
        process.terminate()
        process.join()


@contextmanager
def redis_server() -> Iterator["Redis | None"]:
    """Yield a client of a redis-server that lives as long as the block, nothing stored; None where there is none."""
    try:
        from redis import Redis
        from redis.backoff import ExponentialBackoff
        from redis.retry import Retry
    except ImportError:
        yield None
        return
    if shutil.which("redis-server") is None:
        yield None
        return
    port = free_port("127.0.0.1")
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with TemporaryDirectory() as folder:
        server = subprocess.Popen([*command, "--dir", folder], stdout=subprocess.DEVNULL)
        try:
            # Its first answer comes within a second.
            yield Redis(port=port, retry=Retry(ExponentialBackoff(), 10))
        finally:
            server.terminate()
            server.wait()


def cpu_seconds(pid: int) -> float:
    """Return the processor time a process has used (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def proportional_bytes(pid: int) -> int:
    """Return a process's share of memory, shared pages divided among those who map them (proc(5), Pss)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return sys.maxsize


def free_port(host: str) -> int:
    with socket.create_server((host, 0)) as taken:
        return int(taken.getsockname()[1])
