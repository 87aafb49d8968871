"""Traces (OpenTelemetry): a span a request within the caller's trace, and in it one a stage.

Spans are made of timings that are taken anyway, once a request is over, so that one that is not sampled costs next to
nothing, and none at all where no endpoint is set. They tell no user, no item and no message of an error, which may.
"""

import logging
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from time import time_ns
from typing import TYPE_CHECKING, Protocol

import grpc

from reranker.config import TracingSettings
from reranker.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

Metadata = Iterable[tuple[str, str | bytes]]

# As W3C Trace Context has them.
HEADERS = frozenset({"traceparent", "tracestate"})
NAMESPACE = "persona4rec"
# Of a batch, to a collector that does not answer. Four wait at most (2,048 spans by 512), so that a worker that stops
# ends within the few seconds that its supervisor leaves it after draining.
SEND_SECONDS = 1.0
# What is the server's doing and not the caller's (OpenTelemetry's conventions for gRPC spans).
FAILURES = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class Trace(Protocol):
    """One request that is traced."""

    def tell(self, stages: Mapping[str, int], degraded: Iterable[str]) -> None:
        """Note what was done: microseconds of each stage, one after the other and up to now, and what went without."""
        ...

    def end(self, code: grpc.StatusCode) -> None: ...


class Tracing:
    """Begins the traces of one process, and sends them in the background."""

    def __init__(self, share: float, exporter: "SpanExporter") -> None:
        """share: of the requests whose caller does not say whether they are to be traced."""
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import DEFAULT_ON
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before our own name.
        resource = Resource({SERVICE_NAME: NAMESPACE}).merge(OTELResourceDetector().detect())
        self._share = share
        # Its parent decides, or else we have: left to a sampler, those that are not sampled take 0.1 ms each.
        self._provider = TracerProvider(DEFAULT_ON, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(NAMESPACE)
        # It logs the headers that it cannot read, word by word: a caller's words, and a line a request.
        logging.getLogger("opentelemetry.trace").setLevel(logging.CRITICAL)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, metadata: Metadata, request_id: str) -> Trace | None:
        """Begin a span under the one that metadata names; None if this request is not sampled.

        method: with its package and service and no slash before them.
        """
        from opentelemetry.trace import SpanKind

        parent = self._parent(metadata)
        if parent is None and random.random() >= self._share:  # noqa: S311 - a sample, not a secret
            return None
        span = self._tracer.start_span(method, parent, SpanKind.SERVER)
        if not span.is_recording():
            return None
        # Names of OpenTelemetry's semantic conventions (RPC), and ours.
        span.set_attributes({"rpc.system.name": "grpc", "rpc.method": method, f"{NAMESPACE}.request_id": request_id})
        return _SpanTrace(span, self._tracer)

    def _parent(self, metadata: Metadata) -> "Context | None":
        """Return the span that metadata names; None without one, or where it cannot be read."""
        from opentelemetry.trace import get_current_span

        carrier = {key: value for key, value in metadata if key in HEADERS and isinstance(value, str)}
        if not carrier:
            return None
        found = self._propagator.extract(carrier)
        return found if get_current_span(found).get_span_context().is_valid else None

    def close(self) -> None:
        """Send what waits, or give it up after `SEND_SECONDS` a batch."""
        self._provider.shutdown()


@dataclass(slots=True)
class _SpanTrace:
    span: "Span"
    tracer: "Tracer"
    began: int = field(default_factory=time_ns)

    def tell(self, stages: Mapping[str, int], degraded: Iterable[str]) -> None:
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(self.span)
        end = time_ns()
        for stage, micros in reversed(list(stages.items())):
            start = max(self.began, end - micros * 1000)
            self.tracer.start_span(stage, context, start_time=start).end(end)
            end = start
        self.span.set_attribute(f"{NAMESPACE}.degraded", tuple(degraded))

    def end(self, code: grpc.StatusCode) -> None:
        from opentelemetry.trace import StatusCode

        self.span.set_attribute("rpc.response.status_code", code.name)
        if code in FAILURES:
            self.span.set_attribute("error.type", code.name)
            self.span.set_status(StatusCode.ERROR)
        self.span.end()


def open_tracing(settings: TracingSettings) -> Tracing | None:
    """Return what traces requests, None if no endpoint is set. Nobody is asked yet: a collector may come later.

    Its headers and certificates are OpenTelemetry's own variables, OTEL_EXPORTER_OTLP_...
    Raises ConfigurationError if OpenTelemetry is not installed.
    """
    if not settings.endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise ConfigurationError(
            f"tracing.endpoint is set, but {error.name} is not installed: install persona4rec[tracing]"
        ) from error
    exporter = OTLPSpanExporter(f"{settings.endpoint.rstrip('/')}/v1/traces", timeout=SEND_SECONDS)
    return Tracing(settings.share, exporter)
