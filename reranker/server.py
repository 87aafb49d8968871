"""The process: loads the index, binds ports, serves, says whether it is healthy, and drains on SIGTERM."""

import asyncio
import logging
import signal
from contextlib import suppress
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from candidate_gen.generator import CandidateGenerator
from reranker.config import ServerSettings
from reranker.errors import ConfigurationError, IndexUnavailableError
from reranker.histories_sqlite import SqliteHistoryStore
from reranker.index import Index
from reranker.interceptor import ObservingInterceptor
from reranker.live_index import LiveIndex
from reranker.metrics import Metrics
from reranker.personas_milvus import MilvusPersonaStore
from reranker.service import RerankerService
from reranker.v1 import reranker_pb2, reranker_pb2_grpc

log = logging.getLogger(__name__)

SERVICE = reranker_pb2.DESCRIPTOR.services_by_name["Reranker"].full_name
SERVED = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the server listens, with ports of 0 replaced by those it was given."""

    grpc: int
    metrics: int


async def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT, then let requests in flight finish.

    Raises IndexUnavailableError if Milvus does not answer or holds no index, EmbeddingSpaceError if it is of another
    space than settings.space, HistoryStoreError, CandidateModelError, and ConfigurationError for a port in use.
    """
    metrics = Metrics()
    store = MilvusPersonaStore(settings.milvus_uri, settings.milvus_token)
    histories = SqliteHistoryStore(settings.histories)
    try:
        live = LiveIndex(load_index(store, settings.space), metrics, settings.stale_seconds)
        service = RerankerService(settings, live, histories, load_generator(settings), metrics)
        await _run(settings, service, live, store, metrics)
    finally:
        histories.close()
        store.close()


def load_index(store: MilvusPersonaStore, space: str | None) -> Index:
    """Read the index in use into memory."""
    version = store.version()
    if version is None:
        raise IndexUnavailableError(f"Milvus at {store.uri} holds no index: run `persona4rec publish` first")
    return store.load(version, space)


def load_generator(settings: ServerSettings) -> CandidateGenerator | None:
    if settings.generator is None:
        return None
    try:
        from candidate_gen.implicit_models import load
    except ImportError as error:
        raise ConfigurationError(
            f"generator is {settings.generator}, but {error.name} is not installed: install persona4rec[candidates]"
        ) from error
    return load(settings.generator)


async def _run(
    settings: ServerSettings,
    service: RerankerService,
    live: LiveIndex,
    store: MilvusPersonaStore,
    metrics: Metrics,
) -> None:
    checks = health.aio.HealthServicer()
    server = _build(settings, service, checks, metrics)
    ports = _bind(server, settings, metrics)
    await server.start()
    for name in ("", *SERVED):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    _announce(settings, live.current, ports)
    following = asyncio.create_task(live.follow(store, settings.refresh_seconds))
    await _stop_signal(following)
    log.info("stopping: requests in flight have %.0f s to finish", settings.drain_seconds)
    await checks.enter_graceful_shutdown()
    await server.stop(settings.drain_seconds)
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following


def _build(
    settings: ServerSettings, service: RerankerService, checks: health.aio.HealthServicer, metrics: Metrics
) -> grpc.aio.Server:
    options = [
        # Without this a second server would bind the same port unnoticed and take half of the requests.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.limits.message_bytes),
    ]
    server = grpc.aio.server(interceptors=[ObservingInterceptor(metrics)], options=options)
    reranker_pb2_grpc.add_RerankerServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection(SERVED, server)
    return server


def _bind(server: grpc.aio.Server, settings: ServerSettings, metrics: Metrics) -> Ports:
    try:
        grpc_port = server.add_insecure_port(f"{settings.host}:{settings.grpc_port}")
    except RuntimeError as error:
        raise _port_taken("grpc_port", settings.host, settings.grpc_port) from error
    try:
        http, _ = start_http_server(settings.metrics_port, settings.host, metrics.registry)
    except OSError as error:
        raise _port_taken("metrics_port", settings.host, settings.metrics_port) from error
    return Ports(grpc_port, http.server_port)


def _port_taken(name: str, host: str, port: int) -> ConfigurationError:
    return ConfigurationError(
        f"{name} {port} on {host} cannot be listened on: another process has it, or the host is not this machine's. "
        f"Stop that process or set another {name} (0 takes a free one)"
    )


def _announce(settings: ServerSettings, index: Index, ports: Ports) -> None:
    log.info(
        "index %s: generation %d, %d items, %d personas, embedding space %s",
        index.version,
        index.generation,
        len(index.manifests),
        index.persona_count,
        index.space,
    )
    log.info(
        "serving gRPC on %s:%d, metrics on http://%s:%d/metrics",
        settings.host,
        ports.grpc,
        settings.host,
        ports.metrics,
    )


async def _stop_signal(following: asyncio.Task[None]) -> None:
    """Wait for SIGTERM or SIGINT. A refresh loop that died of a defect is raised, not ignored."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({stopped, following}, return_when=asyncio.FIRST_COMPLETED)
    if following.done():
        following.result()
