"""Between the wire and the service: parsing, status codes and metrics of every RPC of the contract.

The handlers take and return bytes. A body that is no message is the caller's mistake and must not look like the
server's (grpc's own parsing answers INTERNAL), and a reply may be spliced from bytes that were serialised long ago.
"""

import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from reranker.errors import (
    HistoryStoreError,
    IndexUnavailableError,
    InvalidRequestError,
    NotServedError,
    Persona4RecError,
    UnknownUserError,
)
from reranker.metrics import Metrics
from reranker.v1 import reranker_pb2 as pb

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["Reranker"]

CODES: dict[type[Persona4RecError], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownUserError: grpc.StatusCode.NOT_FOUND,
    NotServedError: grpc.StatusCode.FAILED_PRECONDITION,
    HistoryStoreError: grpc.StatusCode.UNAVAILABLE,
    IndexUnavailableError: grpc.StatusCode.UNAVAILABLE,
}

Context = grpc.aio.ServicerContext[Any, Any]
Answer = Callable[[Any], Message | bytes]
"""What the service does with a parsed request: a message, or one already serialised."""
Handler = Callable[[bytes, Context], Awaitable[bytes]]


def handlers(service: object, metrics: Metrics) -> grpc.GenericRpcHandler:
    """Return handlers for every method of the contract: each is the service's method of that name."""
    return grpc.method_handlers_generic_handler(
        SERVICE.full_name,
        {
            method.name: grpc.unary_unary_rpc_method_handler(
                _handler(method.name, getattr(service, method.name), getattr(pb, method.input_type.name), metrics)
            )
            for method in SERVICE.methods
        },
    )


def _handler(name: str, answer: Answer, request_type: type[Message], metrics: Metrics) -> Handler:
    # Looked up once: finding a labelled metric costs as much as parsing a request.
    ok, seconds, in_flight = metrics.requests.labels(name, "OK"), metrics.seconds.labels(name), metrics.in_flight

    async def handle(body: bytes, context: Context) -> bytes:
        started = perf_counter()
        in_flight.inc()
        try:
            reply = answer(_parsed(request_type, body))
            told = reply if isinstance(reply, bytes) else reply.SerializeToString()
            ok.inc()
        except Exception as error:
            code, why = _status(name, error)
            metrics.requests.labels(name, code.name).inc()
            await context.abort(code, why)
        else:
            return told
        finally:
            in_flight.dec()
            seconds.observe(perf_counter() - started)

    return handle


def _parsed(request_type: type[Message], body: bytes) -> Message:
    try:
        return request_type.FromString(body)
    except DecodeError as error:
        name = request_type.DESCRIPTOR.name
        raise InvalidRequestError(f"the body of {len(body)} bytes is no {name}: {error}") from error


def _status(method: str, error: Exception) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, Persona4RecError):
        return CODES.get(type(error), grpc.StatusCode.INTERNAL), str(error)
    log.error("%s failed", method, exc_info=error)
    return grpc.StatusCode.INTERNAL, "the server failed on this request; its log says how"
