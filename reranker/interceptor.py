"""Around every RPC of the contract: its metrics, and the status code of what it raises."""

import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import grpc

from reranker.errors import (
    HistoryStoreError,
    IndexUnavailableError,
    InvalidRequestError,
    NotServedError,
    Persona4RecError,
)
from reranker.metrics import Metrics

log = logging.getLogger(__name__)

CODES: dict[type[Persona4RecError], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    NotServedError: grpc.StatusCode.FAILED_PRECONDITION,
    HistoryStoreError: grpc.StatusCode.UNAVAILABLE,
    IndexUnavailableError: grpc.StatusCode.UNAVAILABLE,
}
PREFIX = "/reranker.v1.Reranker/"

Handler = Callable[[Any, Any], Awaitable[Any]]


class ObservingInterceptor(grpc.aio.ServerInterceptor):
    """Counts and times the RPCs of the Reranker service and turns its exceptions into status codes."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self, continuation: Callable[..., Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(PREFIX):
            return handler
        return grpc.unary_unary_rpc_method_handler(
            self._observed(method.removeprefix(PREFIX), handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _observed(self, method: str, answer: Handler) -> Handler:
        async def observed(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            started = perf_counter()
            code = grpc.StatusCode.OK
            with self._metrics.in_flight.track_inprogress():
                try:
                    return await answer(request, context)
                except grpc.aio.AbortError:
                    code = grpc.StatusCode(context.code())
                    raise
                except Exception as error:
                    code, told = _status(method, error)
                    await context.abort(code, told)
                finally:
                    self._metrics.requests.labels(method, code.name).inc()
                    self._metrics.seconds.labels(method).observe(perf_counter() - started)

        return observed


def _status(method: str, error: Exception) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, Persona4RecError):
        return CODES.get(type(error), grpc.StatusCode.INTERNAL), str(error)
    log.error("%s failed", method, exc_info=error)
    return grpc.StatusCode.INTERNAL, "the server failed on this request; its log says how"
