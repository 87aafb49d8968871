"""Between the wire and the service: admission, parsing, status codes, metrics and logs of every RPC of the contract.

The handlers take and return bytes. A body that is no message is the caller's mistake and must not look like the
server's (grpc's own parsing answers INTERNAL), and a reply may be spliced from bytes that were serialised long ago.
"""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from secrets import token_hex
from time import perf_counter
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message

from reranker.calls import Call
from reranker.config import Limits
from reranker.errors import (
    DeadlineError,
    HistoryStoreError,
    IndexUnavailableError,
    InvalidRequestError,
    NotServedError,
    Persona4RecError,
    UnknownUserError,
)
from reranker.metrics import Metrics
from reranker.reading import read_rerank
from reranker.tracing import Metadata, Trace, Tracing
from reranker.v1 import reranker_pb2 as pb

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["Reranker"]

CODES: dict[type[Persona4RecError], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownUserError: grpc.StatusCode.NOT_FOUND,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    NotServedError: grpc.StatusCode.FAILED_PRECONDITION,
    HistoryStoreError: grpc.StatusCode.UNAVAILABLE,
    IndexUnavailableError: grpc.StatusCode.UNAVAILABLE,
}

# An answer is computed in milliseconds. What is not over after this waits for a client that does not read it, and would
# hold its place among the requests in flight until the connection ends.
READ_SECONDS = 5.0

REQUEST_ID = "x-request-id"
# As the contract has it: enough for two UUIDs with a dash.
REQUEST_ID_BYTES = 64

Context = grpc.aio.ServicerContext[Any, Any]
Parse = Callable[[bytes], Any]
"""From a body to what the service takes. Raises DecodeError."""
Answer = Callable[[Any, Call], Message | bytes]
"""What the service does with a parsed request: a message, or one already serialised."""
Handler = Callable[[str, Trace | None, bytes, Context], Awaitable[bytes]]
"""From a request's id, trace and body to the reply's bytes."""

_made = (f"{prefix}-{number:x}" for prefix in [token_hex(6)] for number in count(1))


class Handlers(grpc.GenericRpcHandler):
    """Every method of the contract: each is the service's method of that name.

    No more than `limits.concurrency` requests are in flight at a time, from their arrival until the client has taken
    the answer; the next is refused before its body is received. Health and reflection do not count: a server that is
    busy is healthy.
    """

    def __init__(
        self, service: object, metrics: Metrics, limits: Limits, log_share: float = 0.0, tracing: Tracing | None = None
    ) -> None:
        self._tracing = tracing
        self._begun: dict[asyncio.Task[Any], float] = {}
        self._limit = limits.concurrency
        self._metrics = metrics
        self._methods = {
            f"/{SERVICE.full_name}/{method.name}": _handler(
                method.name, getattr(service, method.name), _parser(method.input_type.name, limits), metrics, log_share
            )
            for method in SERVICE.methods
        }

    def service(self, call: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        handle = self._methods.get(call.method)
        if handle is None:
            return None
        if len(self._begun) >= self._limit:
            self._metrics.requests.labels(call.method.rpartition("/")[2], "RESOURCE_EXHAUSTED").inc()
            return _BUSY
        task = asyncio.current_task()
        if task is not None:
            # Not when the handler returns: its answer may have to wait for a client that reads slowly.
            self._begun[task] = perf_counter()
            task.add_done_callback(self._begun.pop)
        # The id is read here, where metadata is at hand; asking the context for it later takes 7 us.
        metadata = call.invocation_metadata or ()
        named = request_id(metadata)
        trace = self._tracing.begin(call.method.removeprefix("/"), metadata, named) if self._tracing else None
        return grpc.unary_unary_rpc_method_handler(partial(handle, named, trace))

    def look(self) -> None:
        """Give up the answers that nobody reads, and tell how many requests are in flight."""
        overdue = perf_counter() - READ_SECONDS
        for task in [task for task, begun in self._begun.items() if begun < overdue]:
            task.cancel()
        self._metrics.in_flight.set(len(self._begun))


def request_id(metadata: Metadata) -> str:
    """Return the id that the caller sent, if it is one to be written to logs, or else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID:
            return value if isinstance(value, str) and _fit_for_logs(value) else next(_made)
    return next(_made)


def _fit_for_logs(sent: str) -> bool:
    return 0 < len(sent) <= REQUEST_ID_BYTES and sent.isascii() and sent.isprintable()


def _parser(message: str, limits: Limits) -> Parse:
    rerank = partial(read_rerank, most=limits.candidates)
    read: Parse = rerank if message == pb.RerankRequest.DESCRIPTOR.name else getattr(pb, message).FromString

    def parsed(body: bytes) -> Any:
        try:
            return read(body)
        except DecodeError as error:
            raise InvalidRequestError(f"the body of {len(body)} bytes is no {message}: {error}") from error

    return parsed


def _handler(name: str, answer: Answer, parse: Parse, metrics: Metrics, log_share: float = 0.0) -> Handler:
    # Looked up once: finding a labelled metric costs as much as parsing a request.
    ok, seconds = metrics.requests.labels(name, "OK"), metrics.seconds.labels(name)

    async def handle(request_id: str, trace: Trace | None, body: bytes, context: Context) -> bytes:
        started, code = perf_counter(), grpc.StatusCode.OK
        try:
            reply = answer(parse(body), Call(request_id, _seconds_left(context), trace))
            told = reply if isinstance(reply, bytes) else reply.SerializeToString()
            ok.inc()
        except Exception as error:
            code, why = _status(name, error, request_id)
            metrics.requests.labels(name, code.name).inc()
            await context.abort(code, why)
        else:
            return told
        finally:
            took = perf_counter() - started
            seconds.observe(took)
            if trace:
                trace.end(code)
            if log_share and random.random() < log_share:  # noqa: S311 - a sample, not a secret
                _log_request(name, code, took, request_id)

    return handle


def _seconds_left(context: Context) -> float:
    left: float | None = context.time_remaining()
    if left == 0:
        raise DeadlineError("the deadline had passed before the request was begun: nothing was computed")
    return math.inf if left is None else left


def _status(method: str, error: Exception, request_id: str) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, Persona4RecError):
        return CODES.get(type(error), grpc.StatusCode.INTERNAL), str(error)
    log.error("%s failed, request %s", method, request_id, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"the server failed on request {request_id}; its log says how"


def _log_request(method: str, code: grpc.StatusCode, took: float, request_id: str) -> None:
    fields = {"method": method, "code": code.name, "seconds": round(took, 6), "request_id": request_id}
    log.info("%s %s in %.2f ms, request %s", method, code.name, took * 1e3, request_id, extra={"fields": fields})


async def _refuse(_: object, context: Context) -> NoReturn:
    await context.abort(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "this worker has all the requests in flight it may have: slow down"
    )


# As a stream: its handler is called without a message having been received.
_BUSY: "grpc.RpcMethodHandler[bytes, bytes]" = grpc.stream_stream_rpc_method_handler(_refuse)
