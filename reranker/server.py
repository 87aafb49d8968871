"""The supervisor: keeps the index directory up to date and one worker a core alive, and serves their metrics.

Workers share the port by SO_REUSEPORT and the index by mapping the same files; they know nothing of each other. The
supervisor answers no request, so that nothing it does can delay one.
"""

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from reranker.config import ServerSettings
from reranker.errors import ConfigurationError, IndexUnavailableError, Persona4RecError
from reranker.following import Follower, Told
from reranker.indexer import Indexer
from reranker.live_index import checked_at, mark_checked
from reranker.logs import log_to_stderr
from reranker.personas_milvus import MilvusPersonaStore
from reranker.scrub import Scrub
from reranker.snapshot import open_snapshot, read_snapshot
from reranker.worker import run

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

log = logging.getLogger(__name__)

# A worker imports and maps in a second or two; on a busy machine with a large model, twenty times as long.
START_SECONDS = 60.0
# A worker that dies at once again and again is started at most this often, so that its reason can be read in the log.
RESTART_SECONDS = 1.0
# How long the supervisor may notice a signal or a dead worker late.
LOOK_SECONDS = 0.2

_SPAWN = multiprocessing.get_context("spawn")


@dataclass(slots=True)
class Worker:
    """A serving process and when it was started (monotonic seconds)."""

    process: "SpawnProcess"
    started: float


def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT, then let requests in flight finish.

    Raises IndexUnavailableError if Milvus holds no index or does not answer and there is no snapshot,
    EmbeddingSpaceError if it is of another space than settings.space, HistoryStoreError, CandidateModelError, and
    ConfigurationError for a port or an index directory in use.
    """
    if settings.log_format == "json":
        log_to_stderr("json")
    stop = threading.Event()
    with ExitStack() as stack:
        holder = stack.enter_context(_held_port(settings.host, settings.grpc_port))
        registry = stack.enter_context(_worker_environment())
        metrics = SupervisorMetrics(registry, settings)
        metrics_port = _serve_metrics(settings, registry)
        follower = Follower(settings)
        indexer = stack.enter_context(_indexer(settings, metrics))
        refreshing = threading.Thread(
            target=_refresh_for_ever, args=(indexer, follower, settings, metrics, stop), daemon=True
        )
        scrub = Scrub(indexer, settings.scrub_seconds, registry)
        scrubbing = threading.Thread(target=scrub.run, args=(stop,), daemon=True)
        port = holder.getsockname()[1]
        with _workers(settings, port) as workers:
            # Not before: until it serves, a signal ends a bulk load of minutes or the wait for a Milvus at once.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: stop.set())
            refreshing.start()
            scrubbing.start()
            _announce(settings, port, metrics_port)
            _keep_alive(workers, settings, port, metrics, stop)
            log.info("stopping: requests in flight have %.0f s to finish", settings.drain_seconds)
        refreshing.join(LOOK_SECONDS)


class SupervisorMetrics:
    """What the supervisor itself tells."""

    def __init__(self, registry: CollectorRegistry, settings: ServerSettings) -> None:
        self.refresh_failures = Counter(
            "reranker_index_refresh_failures",
            "Refreshes that Milvus did not answer, and refreshes and merges that failed otherwise: the log says how.",
            registry=registry,
        )
        self.refreshes = Counter("reranker_index_refreshes", "Refreshes that changed the index.", registry=registry)
        self.restarts = Counter("reranker_worker_restarts", "Workers that died and were replaced.", registry=registry)
        self.workers = Gauge("reranker_workers", "Workers alive.", registry=registry)
        checked = Gauge(
            "reranker_index_checked_timestamp_seconds",
            "When the index was last brought up to date with Milvus, or found to be.",
            registry=registry,
        )
        checked.set_function(lambda: checked_at(settings.index))


@contextmanager
def _held_port(host: str, port: int) -> Iterator[socket.socket]:
    """Hold the port for the workers, and make sure that nobody else has it.

    SO_REUSEPORT would let a second server take half of the requests unnoticed; a bind without it tells.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # Connections of a server that has just ended linger on the port; they are no reason to refuse it.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise _port_taken("grpc_port", host, port) from error
        port = probe.getsockname()[1]
    with socket.socket(family) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
        yield holder


@contextmanager
def _worker_environment() -> Iterator[CollectorRegistry]:
    with TemporaryDirectory(prefix="persona4rec-metrics-") as folder:
        # Read by prometheus_client when a worker imports it; this process has imported it without.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        # Read by numpy likewise: with a worker a core, threads of one would only take the cores of the others.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        registry = CollectorRegistry()
        MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        yield registry


def _serve_metrics(settings: ServerSettings, registry: CollectorRegistry) -> int:
    try:
        http, _ = start_http_server(settings.metrics_port, settings.host, registry)
    except OSError as error:
        raise _port_taken("metrics_port", settings.host, settings.metrics_port) from error
    return int(http.server_port)


def _port_taken(name: str, host: str, port: int) -> ConfigurationError:
    return ConfigurationError(
        f"{name} {port} on {host} cannot be listened on: another process has it, or the host is not this machine's. "
        f"Stop that process or set another {name} (0 takes a free one)"
    )


@contextmanager
def _indexer(settings: ServerSettings, metrics: SupervisorMetrics) -> Iterator[Indexer]:
    """Bring the index up to date once; with Milvus away, the last snapshot will do."""
    with Indexer(settings.index, settings.space, settings.merge_seconds) as indexer:
        try:
            _refresh(indexer, settings, metrics)
        except IndexUnavailableError as error:
            snapshot = read_snapshot(settings.index)
            if snapshot is None:
                raise
            # A torn one is none to be served: raised by its name.
            open_snapshot(settings.index, snapshot)
            metrics.refresh_failures.inc()
            log.warning("the last snapshot is served: %s", error)
        yield indexer


def _refresh(indexer: Indexer, settings: ServerSettings, metrics: SupervisorMetrics, told: Told = None) -> None:
    store = MilvusPersonaStore(settings.milvus_uri, settings.milvus_token.get_secret_value())
    try:
        changed = indexer.refresh(store, told)
    finally:
        store.close()
    mark_checked(settings.index)
    if changed:
        metrics.refreshes.inc()


def _refresh_for_ever(
    indexer: Indexer,
    follower: Follower,
    settings: ServerSettings,
    metrics: SupervisorMetrics,
    stop: threading.Event,
) -> None:
    while not stop.is_set():
        try:
            for told in follower.looks(stop):
                _refresh_until_done(indexer, settings, metrics, stop, told)
        except Exception:
            # A defect must not end refreshing for good while workers go on serving an index that ages unseen.
            metrics.refresh_failures.inc()
            log.exception("refreshing failed")
            stop.wait(settings.refresh_seconds)


def _refresh_until_done(
    indexer: Indexer, settings: ServerSettings, metrics: SupervisorMetrics, stop: threading.Event, told: Told
) -> None:
    while not stop.is_set():
        done = _tried(metrics, partial(_refresh, indexer, settings, metrics, told))
        # Also while Milvus is away, but never before the first answer: it may take a minute.
        _tried(metrics, indexer.compact)
        if done:
            return
        stop.wait(settings.refresh_seconds)
        # By then more may have changed than was told.
        told = None


def _tried(metrics: SupervisorMetrics, work: Callable[[], object]) -> bool:
    """Do work on the index, and return whether it was done; what is said otherwise has been told."""
    try:
        work()
    except Persona4RecError as error:
        metrics.refresh_failures.inc()
        log.warning("the index stays as it is: %s", error)
        return False
    return True


@contextmanager
def _workers(settings: ServerSettings, port: int) -> Iterator[list[Worker]]:
    """Start the workers and return once all serve. Raises what the first of them raised if one cannot."""
    started: list[Worker] = []
    try:
        pipes = []
        for _ in range(settings.workers):
            worker, pipe = _start(settings, port)
            started.append(worker)
            pipes.append(pipe)
        for worker, pipe in zip(started, pipes, strict=True):
            _await_start(worker, pipe)
        yield started
    finally:
        _stop(started, settings)


def _start(settings: ServerSettings, port: int) -> "tuple[Worker, Connection]":
    mine, theirs = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=run, args=(settings, port, theirs), name="persona4rec-worker")
    process.start()
    theirs.close()
    return Worker(process, time.monotonic()), mine


def _await_start(worker: Worker, pipe: Connection) -> None:
    try:
        told = pipe.recv() if pipe.poll(START_SECONDS) else ConfigurationError(f"no worker in {START_SECONDS:.0f} s")
    except EOFError:
        told = Persona4RecError(
            f"a worker ended with code {worker.process.exitcode} before it served; its log says why"
        )
    if told is not None:
        raise told


def _keep_alive(
    workers: list[Worker], settings: ServerSettings, port: int, metrics: SupervisorMetrics, stop: threading.Event
) -> None:
    while not stop.is_set():
        wait([worker.process.sentinel for worker in workers], timeout=LOOK_SECONDS)
        for number, worker in enumerate(workers):
            if not worker.process.is_alive() and not stop.is_set():
                workers[number] = _replaced(worker, settings, port, metrics)
        metrics.workers.set(sum(worker.process.is_alive() for worker in workers))


def _replaced(dead: Worker, settings: ServerSettings, port: int, metrics: SupervisorMetrics) -> Worker:
    log.error("worker %s ended with code %s and is replaced", dead.process.pid, dead.process.exitcode)
    mark_process_dead(dead.process.pid)  # type: ignore[no-untyped-call]
    metrics.restarts.inc()
    time.sleep(max(0.0, RESTART_SECONDS - (time.monotonic() - dead.started)))
    worker, pipe = _start(settings, port)
    pipe.close()
    return worker


def _stop(workers: list[Worker], settings: ServerSettings) -> None:
    for worker in workers:
        worker.process.terminate()
    # A worker drains by itself; what is still there a little later hangs.
    deadline = time.monotonic() + settings.drain_seconds + START_SECONDS / 10
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            log.error("worker %s did not stop and is killed", worker.process.pid)
            worker.process.kill()
            worker.process.join()


def _announce(settings: ServerSettings, port: int, metrics_port: int) -> None:
    snapshot = read_snapshot(settings.index)
    log.info("index %s in %s", snapshot.version if snapshot else "none", settings.index)
    log.info(
        "serving gRPC on %s%s with %s, metrics on http://%s/metrics",
        settings.address(port),
        " over TLS" if settings.tls.certificate else "",
        "1 worker" if settings.workers == 1 else f"{settings.workers} workers",
        settings.address(metrics_port),
    )
