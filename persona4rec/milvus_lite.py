"""A Milvus for one machine: a `milvus-lite` server, started where no Milvus answers, stopped with the command."""

import importlib.util
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from reranker.errors import ConfigurationError, IndexUnavailableError
from reranker.personas_milvus import MilvusPersonaStore

log = logging.getLogger(__name__)

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
# An empty server answers in 1 s; replaying the log of a large directory takes longer.
READY_SECONDS = 60.0
# A server told to stop writes what it holds in memory first.
STOP_SECONDS = 30.0


@contextmanager
def milvus_at(uri: str, data: Path, *, make_data: bool = True) -> Iterator[None]:
    """Make sure that a Milvus answers at `uri` while the block runs.

    Where none does and the host is this machine, a milvus-lite server is started on `data` and stopped at the end.
    make_data: also where there is no `data` yet. Who only reads finds nothing in an empty one, and it would take the
    port of a Milvus that is late.
    Raises IndexUnavailableError if none answers and none can be started.
    """
    host, port = _address(uri)
    if host not in LOOPBACK or _listening(host, port) or not (make_data or data.exists()):
        yield
        return
    with _running(uri, host, port, data):
        log.info("no Milvus at %s: started milvus-lite there for the time of this command, data in %s", uri, data)
        yield


@contextmanager
def _running(uri: str, host: str, port: int, data: Path) -> Iterator[None]:
    if importlib.util.find_spec("milvus_lite") is None:
        raise IndexUnavailableError(
            f"no Milvus answers at {uri}, and milvus-lite is not installed to start one: "
            "start Milvus, name another address with --milvus, or install persona4rec[lite]"
        )
    output = data.with_name(f"{data.name}.log")
    with _appending(output) as sink:
        command = ["-m", "milvus_lite", "server", "--data-dir", str(data), "--host", host, "--port", str(port)]
        server = subprocess.Popen([sys.executable, *command], stdout=sink, stderr=sink)
    try:
        _wait_until_ready(server, uri, output)
        yield
    finally:
        _stop(server)


def _appending(output: Path) -> BinaryIO:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return output.open("ab")
    except OSError as error:
        raise ConfigurationError(
            f"milvus-lite cannot write {output}: {error}. Name another data directory with --milvus-data"
        ) from error


def _wait_until_ready(server: subprocess.Popen[bytes], uri: str, output: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while server.poll() is None:
        try:
            # A client alone proves nothing: pymilvus may hand out a connection to a server that is gone.
            with closing(MilvusPersonaStore(uri, timeout=5)) as store:
                store.version()
        except IndexUnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
    raise IndexUnavailableError(
        f"milvus-lite for {uri} ended with code {server.returncode} before it answered; {output} says why. "
        "One process at a time may open its data directory"
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _address(uri: str) -> tuple[str, int]:
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.scheme not in {"http", "https"}:
        raise ConfigurationError(f"milvus address {uri!r} is not of the form http://HOST:PORT")
    return host, port or 19530


def _listening(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False
