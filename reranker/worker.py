"""One serving process: maps the index, answers RPCs, says whether it is healthy, drains on SIGTERM."""

import asyncio
import gc
import logging
import multiprocessing
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from candidate_gen.generator import CandidateGenerator
from reranker.config import ServerSettings
from reranker.errors import ConfigurationError, Persona4RecError
from reranker.histories import open_histories
from reranker.live_index import LiveIndex
from reranker.metrics import Metrics
from reranker.rpc import SERVICE, handlers
from reranker.service import RerankerService
from reranker.warm_up import warm_up

log = logging.getLogger(__name__)

SERVED = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)


def run(settings: ServerSettings, port: int, started: Connection) -> None:
    """Serve on `port`, shared with the other workers, until SIGTERM or until the supervisor is gone.

    started: told None once it serves, or what keeps it from serving.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        asyncio.run(_run(settings, port, started))
    except Persona4RecError as error:
        # Told rather than raised: a stack of this process would bury the one line that matters.
        _tell(started, error)
        sys.exit(1)


async def _run(settings: ServerSettings, port: int, started: Connection) -> None:
    metrics = Metrics()
    histories = open_histories(settings.histories)
    try:
        live = LiveIndex(settings.index, metrics, settings.stale_seconds)
        service = RerankerService(settings, live, histories, load_generator(settings), metrics)
        warm_up(live.current, settings)
        await _serve(settings, port, service, live, metrics, started)
    finally:
        histories.close()


def _tell(started: Connection, told: Persona4RecError | None) -> None:
    try:
        started.send(told)
    except OSError:
        # A supervisor that only replaces a worker does not listen: the log has it.
        if told:
            log.error("%s", told)  # noqa: TRY400 - the stack is of a pipe that nobody reads


def load_generator(settings: ServerSettings) -> CandidateGenerator | None:
    """Load the first stage's model, if one is set. Raises CandidateModelError; ConfigurationError without implicit."""
    if settings.generator is None:
        return None
    try:
        from candidate_gen.implicit_models import load
    except ImportError as error:
        raise ConfigurationError(
            f"generator is {settings.generator}, but {error.name} is not installed: install persona4rec[candidates]"
        ) from error
    return load(settings.generator)


async def _serve(
    settings: ServerSettings,
    port: int,
    service: RerankerService,
    live: LiveIndex,
    metrics: Metrics,
    started: Connection,
) -> None:
    checks = health.aio.HealthServicer()
    server = _build(settings, service, checks, metrics)
    server.add_insecure_port(f"{settings.host}:{port}")
    await server.start()
    for name in ("", *SERVED):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    # What start-up left behind is never looked at again by the collector, whose full passes would take milliseconds.
    gc.collect()
    gc.freeze()
    _tell(started, None)
    following = asyncio.create_task(live.follow())
    await _stop_signal(following)
    await checks.enter_graceful_shutdown()
    await server.stop(settings.drain_seconds)
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following


def server_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Return the options of the gRPC server; an echo that is measured against it needs the same."""
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", settings.limits.message_bytes),
        ("grpc.max_connection_age_ms", int(settings.connection_age_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", int(settings.drain_seconds * 1000)),
    ]


def _build(
    settings: ServerSettings, service: RerankerService, checks: health.aio.HealthServicer, metrics: Metrics
) -> grpc.aio.Server:
    server = grpc.aio.server(options=server_options(settings), maximum_concurrent_rpcs=settings.limits.concurrency)
    server.add_generic_rpc_handlers((handlers(service, metrics),))
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection(SERVED, server)
    return server


async def _stop_signal(following: asyncio.Task[None]) -> None:
    """Wait for SIGTERM, SIGINT or the supervisor's end. A following that died of a defect is raised, not ignored."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        # Without a supervisor nobody would refresh the index or stop this process.
        loop.add_reader(supervisor.sentinel, stop.set)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({stopped, following}, return_when=asyncio.FIRST_COMPLETED)
    if following.done():
        following.result()
