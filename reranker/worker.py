"""One serving process: maps the index, answers RPCs, says whether it is healthy, drains on SIGTERM."""

import asyncio
import gc
import logging
import multiprocessing
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from multiprocessing.connection import Connection

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from candidate_gen.generator import CandidateGenerator
from reranker.config import ServerSettings
from reranker.errors import ConfigurationError, Persona4RecError
from reranker.histories import open_histories
from reranker.live_index import LiveIndex
from reranker.logs import log_to_stderr
from reranker.metrics import Metrics
from reranker.pulse import pulse
from reranker.rpc import SERVICE, Handlers
from reranker.served_log import ServedLog
from reranker.served_log_sinks import open_sink
from reranker.service import RerankerService
from reranker.switch import Switch
from reranker.tls import Certificates, server_credentials, watched_certificates
from reranker.tokens import TokenGuard, watched_tokens
from reranker.tracing import Tracing, open_tracing
from reranker.warm_up import warm_up
from reranker.watched import Watched

log = logging.getLogger(__name__)

# A peer that takes longer to complete its TLS and HTTP/2 handshake holds a socket for nothing; gRPC's own is 120 s.
HANDSHAKE_SECONDS = 10.0
# A client that lives answers a keepalive ping in a round trip.
PING_ANSWER_SECONDS = 10.0
# Beyond our own limit on requests, gRPC's on all calls, health watchers among them: what floods it Python never sees.
CALLS_FOR_A_REQUEST = 4

SERVED = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)


def run(settings: ServerSettings, port: int, started: Connection) -> None:
    """Serve on `port`, shared with the other workers, until SIGTERM or until the supervisor is gone.

    started: told None once it serves, or what keeps it from serving.
    """
    log_to_stderr(settings.log_format)
    try:
        asyncio.run(_run(settings, port, started))
    except Persona4RecError as error:
        # Told rather than raised: a stack of this process would bury the one line that matters.
        _tell(started, error)
        sys.exit(1)


async def _run(settings: ServerSettings, port: int, started: Connection) -> None:
    metrics = Metrics()
    with ExitStack() as stack:
        histories = stack.enter_context(closing(open_histories(settings.histories)))
        live = LiveIndex(settings.index, metrics, settings.stale_seconds)
        switch = Switch(settings.switch_path)
        served_log = _served_log(settings, metrics)
        if served_log is not None:
            stack.enter_context(closing(served_log))
        tracing = open_tracing(settings.tracing)
        if tracing is not None:
            stack.enter_context(closing(tracing))
        generator = load_generator(settings)
        service = RerankerService(settings, live, histories, generator, metrics, switch, served_log)
        warm_up(live.current, settings)
        await _serve(settings, port, service, live, switch, metrics, tracing, started)


def _served_log(settings: ServerSettings, metrics: Metrics) -> ServedLog | None:
    chosen = settings.served_log
    return ServedLog(chosen, open_sink(settings), metrics) if chosen.to and chosen.share else None


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
    switch: Switch,
    metrics: Metrics,
    tracing: Tracing | None,
    started: Connection,
) -> None:
    checks = health.aio.HealthServicer()
    handlers = Handlers(service, metrics, settings.limits, settings.log_share, tracing)
    certificates, tokens = watched_certificates(settings.tls), watched_tokens(settings.token_file)
    server = _server(settings, [TokenGuard(tokens, metrics)] if tokens else [])
    _register(server, handlers, checks)
    address = settings.address(port)
    if certificates:
        server.add_secure_port(address, server_credentials(certificates, settings.tls))
    else:
        server.add_insecure_port(address)
    await server.start()
    for name in ("", *SERVED):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    # What start-up left behind is never looked at again by the collector, whose full passes would take milliseconds.
    gc.collect()
    gc.freeze()
    _tell(started, None)
    followed = [followed for followed in (certificates, tokens, switch, handlers) if followed]
    tell = partial(_gauge, metrics, live, switch, certificates)
    beating = asyncio.create_task(pulse([*(one.look for one in followed), tell], metrics))
    following = asyncio.create_task(live.follow())
    await _stop_signal(following, beating)
    await checks.enter_graceful_shutdown()
    await server.stop(settings.drain_seconds)
    for task in (following, beating):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _gauge(metrics: Metrics, live: LiveIndex, switch: Switch, certificates: Watched[Certificates] | None) -> None:
    metrics.index_stale.set(live.stale)
    metrics.switched_off.set(switch.off)
    for file, expiry in certificates.current.expiries.items() if certificates else ():
        metrics.certificate_expiry.labels(file).set(expiry)


def server_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Return the options of the gRPC server; an echo that is measured against it needs the same."""
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", settings.limits.message_bytes),
        ("grpc.max_concurrent_streams", settings.limits.connection_streams),
        # gRPC hands the loop one request a turn, so most that wait do so here, where they can only be cancelled.
        ("grpc.server.max_pending_requests", settings.limits.concurrency),
        ("grpc.server.max_pending_requests_hard_limit", settings.limits.concurrency),
        ("grpc.max_connection_age_ms", int(settings.connection_age_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", int(settings.drain_seconds * 1000)),
        ("grpc.keepalive_time_ms", int(settings.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", int(PING_ANSWER_SECONDS * 1000)),
        # Clients may do as we do, idle ones too; gRPC's default closes connections of those that ask within 5 minutes.
        ("grpc.http2.min_ping_interval_without_data_ms", int(PING_ANSWER_SECONDS * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_SECONDS * 1000)),
    ]


def _server(settings: ServerSettings, guards: Sequence[grpc.aio.ServerInterceptor]) -> grpc.aio.Server:
    return grpc.aio.server(
        options=server_options(settings),
        interceptors=guards,
        maximum_concurrent_rpcs=settings.limits.concurrency * CALLS_FOR_A_REQUEST,
    )


def _register(server: grpc.aio.Server, handlers: Handlers, checks: health.aio.HealthServicer) -> None:
    server.add_generic_rpc_handlers((handlers,))
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection(SERVED, server)


async def _stop_signal(*tasks: asyncio.Task[None]) -> None:
    """Wait for SIGTERM, SIGINT or the supervisor's end. A task that died of a defect is raised, not ignored."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        # Without a supervisor nobody would refresh the index or stop this process.
        loop.add_reader(supervisor.sentinel, stop.set)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()
