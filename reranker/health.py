"""Whether a consumer process takes its events in, and an HTTP port that says so beside its metrics."""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from reranker.errors import ConfigurationError


class Health:
    """What is wrong with a consumer, as far as it knows. Written by its loop, read by the HTTP port's threads.

    `patience` is the seconds without a turn of the loop, or without a place in the group, that count as trouble: the
    group's session timeout or more, since a rebalance may wait that long for a member that died.
    """

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = patience
        self._clock = clock
        self._turned_at = clock()
        self._joined_at: float | None = None
        self._troubles: dict[str, str] = {}

    def turned(self, joined: bool) -> None:
        """Note a turn of the loop; `joined`: as a member of the group, with partitions or without."""
        self._turned_at = self._clock()
        if joined:
            self._joined_at = self._turned_at

    def trouble(self, doing: str, what: str) -> bool:
        """Note what fails, until `fine`; return whether it is news."""
        known = self._troubles.get(doing)
        self._troubles[doing] = what
        return known != what

    def fine(self, doing: str) -> None:
        self._troubles.pop(doing, None)

    @property
    def told(self) -> str:
        """What is wrong, or nothing."""
        now = self._clock()
        if now - self._turned_at > self._patience:
            return f"the loop has been busy or hung for {now - self._turned_at:.0f} s"
        if self._joined_at is None:
            return "not a member of the consumer group yet"
        if now - self._joined_at > self._patience:
            return f"out of the consumer group for {now - self._joined_at:.0f} s"
        return "; ".join(f"{doing}: {what}" for doing, what in list(self._troubles.items()))


def monitoring_app(registry: CollectorRegistry, health: Health) -> Any:
    """Return a WSGI application: /metrics for Prometheus; /health with 200, or 503 and what is wrong."""
    prometheus = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/health":
            answer: Iterable[bytes] = prometheus(environ, start_response)
            return answer
        trouble = health.told
        start_response(
            "503 Service Unavailable" if trouble else "200 OK", [("Content-Type", "text/plain; charset=utf-8")]
        )
        return [f"{trouble or 'ok'}\n".encode()]

    return app


def serve_monitoring(host: str, port: int, registry: CollectorRegistry, health: Health) -> int:
    """Serve /metrics and /health from threads that end with the process; return the port, given or free for 0.

    Raises ConfigurationError if the port cannot be listened on.
    """
    app = monitoring_app(registry, health)
    try:
        server = make_server(host, port, app, _Server, _Quiet)
    except OSError as error:
        raise ConfigurationError(
            f"metrics_port {port} on {host} cannot be listened on: {error.strerror}. "
            "Set another one (0 takes a free one)"
        ) from error
    threading.Thread(target=server.serve_forever, name="monitoring", daemon=True).start()
    return int(server.server_port)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    # A scraper that goes away in the midst of an answer is no news.
    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        pass
