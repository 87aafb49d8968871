"""Traces at a real collector's door: an HTTP server that takes what OpenTelemetry sends."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from reranker.v1 import reranker_pb2 as pb
from reranker.v1 import reranker_pb2_grpc as pb_grpc
from tests.conftest import free_port
from tests.integration.conftest import Published
from tests.integration.processes import PATIENCE_SECONDS, Server, eventually, serving

pytestmark = pytest.mark.integration

RERANK = "reranker.v1.Reranker/Rerank"
PARENT = "00f067aa0ba902b7"


@dataclass
class Collector:
    """Keeps what it is sent."""

    url: str
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def of(self, trace: str) -> list[Span]:
        """Return the spans of a trace, once its root is there, which is sent with the others or after them."""
        return eventually(lambda: self._of(trace), f"trace {trace}", until=lambda found: any(map(_is_root, found)))

    def _of(self, trace: str) -> list[Span]:
        return [span for span in self.spans() if span.trace_id.hex() == trace]

    def spans(self) -> list[Span]:
        requests = map(ExportTraceServiceRequest.FromString, tuple(self.bodies))
        scopes = [
            scope for request in requests for resource in request.resource_spans for scope in resource.scope_spans
        ]
        return [span for scope in scopes for span in scope.spans]

    def resources(self) -> set[str]:
        requests = map(ExportTraceServiceRequest.FromString, tuple(self.bodies))
        return {told(r.resource.attributes)["service.name"] for request in requests for r in request.resource_spans}


def _is_root(span: Span) -> bool:
    return span.kind == Span.SPAN_KIND_SERVER


def told(attributes: Iterable[KeyValue]) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            found.paths.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(f"http://127.0.0.1:{server.server_port}")
    Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def traced(
    tmp_path_factory: pytest.TempPathFactory, published: Published, histories: Path, collector: Collector
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("traced")
    endpoint = f"{collector.url}/"
    with serving(folder, published.uri, histories, workers=1, TRACING_ENDPOINT=endpoint, TRACING_SHARE="0") as running:
        yield running


@pytest.fixture
def rerank(traced: Server) -> Iterator[Callable[..., pb.RerankResponse]]:
    with grpc.insecure_channel(traced.address) as channel:
        stub = pb_grpc.RerankerStub(channel)

        def call(
            *metadata: tuple[str, str], user: str = "hana", items: tuple[str, ...] = ("dracula", "emma")
        ) -> pb.RerankResponse:
            candidates = [pb.Candidate(item_id=item_id) for item_id in items]
            request = pb.RerankRequest(user_id=user, candidates=candidates)
            return stub.Rerank(request, timeout=PATIENCE_SECONDS, metadata=metadata)

        yield call


def parent(trace: str, sampled: bool = True) -> tuple[str, str]:
    return "traceparent", f"00-{trace}-{PARENT}-{'01' if sampled else '00'}"


def test_a_request_is_a_span_of_its_caller_s_trace_and_its_stages_are_spans_of_it(
    rerank: Callable[..., pb.RerankResponse], collector: Collector
) -> None:
    trace = "1" * 32
    answer = rerank(parent(trace), ("x-request-id", "r-1"))
    spans = {span.name: span for span in collector.of(trace)}
    root = spans.pop(RERANK)
    assert root.parent_span_id.hex() == PARENT
    assert told(root.attributes)["persona4rec.request_id"] == answer.request_id == "r-1"
    assert told(root.attributes)["rpc.response.status_code"] == "OK"
    assert root.status.code == Status.STATUS_CODE_UNSET
    assert list(spans) == sorted(spans, key=lambda name: -spans[name].start_time_unix_nano)
    assert set(spans) == {"history", "profile", "score", "reply"}
    for stage, span in spans.items():
        assert span.parent_span_id == root.span_id
        taken = (span.end_time_unix_nano - span.start_time_unix_nano) // 1000
        assert abs(taken - getattr(answer.timings, f"{stage}_us")) <= 1
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    assert collector.resources() == {"persona4rec"}
    assert set(collector.paths) == {"/v1/traces"}


def test_what_an_answer_went_without_is_told(rerank: Callable[..., pb.RerankResponse], collector: Collector) -> None:
    trace = "2" * 32
    answer = rerank(parent(trace), user="who-is-this")
    assert list(answer.degraded) == [pb.DEGRADATION_UNKNOWN_USER]
    (root,) = filter(_is_root, collector.of(trace))
    (degraded,) = [pair.value for pair in root.attributes if pair.key == "persona4rec.degraded"]
    assert [value.string_value for value in degraded.array_value.values] == ["unknown_user"]


def test_a_refused_request_is_no_failure_of_the_server(
    rerank: Callable[..., pb.RerankResponse], collector: Collector
) -> None:
    trace = "3" * 32
    with pytest.raises(grpc.RpcError):
        rerank(parent(trace), items=())
    (root,) = collector.of(trace)
    assert told(root.attributes)["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert root.status.code == Status.STATUS_CODE_UNSET


def test_no_span_tells_who_or_what(rerank: Callable[..., pb.RerankResponse], collector: Collector) -> None:
    trace = "4" * 32
    with pytest.raises(grpc.RpcError):
        rerank(parent(trace), items=("private-item", "private-item" * 100))
    collector.of(trace)
    trace = "5" * 32
    rerank(parent(trace), user="private-user", items=("private-item",))
    collector.of(trace)
    assert not any(b"private" in body for body in collector.bodies)


def test_callers_say_what_is_traced_and_the_share_what_comes_without_a_trace(
    rerank: Callable[..., pb.RerankResponse], collector: Collector, traced: Server
) -> None:
    rerank(parent("6" * 32, sampled=False))
    rerank()
    rerank(("traceparent", "rubbish"))
    rerank(("traceparent", "f" * 2000), ("tracestate", "=,=," * 200))
    rerank(parent("6" * 32, sampled=False), ("tracestate", "who=ann,Ann@example.org said this,,"))
    trace = "7" * 32
    rerank(parent(trace))
    collector.of(trace)
    assert all(int(span.trace_id.hex()[0], 16) in range(1, 8) for span in collector.spans() if _is_root(span))
    assert "6" * 32 not in {span.trace_id.hex() for span in collector.spans()}
    assert "Ann" not in traced.output.read_text()


def test_a_collector_that_is_away_is_missed_by_nobody(tmp_path: Path, published: Published, histories: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    with serving(tmp_path, published.uri, histories, workers=1, TRACING_ENDPOINT=endpoint, TRACING_SHARE="1") as server:
        for _ in range(50):
            assert server.client.rerank("hana", [("dracula", 1.0)]).items
        assert server.stop() == 0
        said = server.output.read_text()
        assert "Traceback" not in said
        assert "is killed" not in said
