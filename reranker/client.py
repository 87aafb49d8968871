"""The Python client: one channel, a deadline on every call, and errors that say what to do."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from reranker.errors import Persona4RecError
from reranker.v1 import reranker_pb2 as pb
from reranker.v1 import reranker_pb2_grpc as pb_grpc

# A hundred times the median of a rerank: what does not answer in it will not.
TIMEOUT_SECONDS = 1.0

# What to do where the server itself could not say it.
ADVICE = {
    grpc.StatusCode.UNAVAILABLE: ". Is `persona4rec serve` running there, and ready?",
    grpc.StatusCode.DEADLINE_EXCEEDED: ". Is the server overloaded, or does something else listen there?",
}


class CallError(Persona4RecError):
    """A call that the server refused or did not answer."""

    def __init__(self, address: str, method: str, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{method} at {address}: {code.name}: {details}")
        self.code = code


class RerankerClient:
    """Calls one server. Use as a context manager, or close it."""

    def __init__(self, address: str, timeout: float = TIMEOUT_SECONDS) -> None:
        self.address = address
        self._timeout = timeout
        self._channel = grpc.insecure_channel(address)
        self._stub = pb_grpc.RerankerStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def wait_until_ready(self, seconds: float) -> None:
        """Return once the server accepts connections. Raises CallError if it does not within `seconds`."""
        try:
            grpc.channel_ready_future(self._channel).result(seconds)
        except grpc.FutureTimeoutError as error:
            told = f"no server accepted a connection within {seconds:g} s: is `persona4rec serve` running there?"
            raise CallError(self.address, "connect", grpc.StatusCode.UNAVAILABLE, told) from error

    def rerank(
        self,
        user_id: str,
        candidates: Iterable[tuple[str, float | None]],
        **options: Any,
    ) -> pb.RerankResponse:
        """Rerank (item_id, first-stage score) pairs; `options` are further fields of RerankRequest."""
        sent = [pb.Candidate(item_id=item_id, score=score) for item_id, score in candidates]
        response: pb.RerankResponse = self._call(
            "Rerank", pb.RerankRequest(user_id=user_id, candidates=sent, **options)
        )
        return response

    def recommend(self, user_id: str, n: int = 0, **options: Any) -> pb.RecommendResponse:
        """Generate and rerank; `options` are further fields of RecommendRequest."""
        response: pb.RecommendResponse = self._call("Recommend", pb.RecommendRequest(user_id=user_id, n=n, **options))
        return response

    def user_profile(self, user_id: str, include_vector: bool = False) -> pb.GetUserProfileResponse:
        request = pb.GetUserProfileRequest(user_id=user_id, include_vector=include_vector)
        response: pb.GetUserProfileResponse = self._call("GetUserProfile", request)
        return response

    def item_personas(self, item_ids: Sequence[str]) -> pb.GetItemPersonasResponse:
        request = pb.GetItemPersonasRequest(item_ids=item_ids)
        response: pb.GetItemPersonasResponse = self._call("GetItemPersonas", request)
        return response

    def info(self) -> pb.InfoResponse:
        response: pb.InfoResponse = self._call("Info", pb.InfoRequest())
        return response

    def _call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._stub, method)(request, timeout=self._timeout)
        except grpc.RpcError as error:
            details = (error.details() or "no details") + ADVICE.get(error.code(), "")
            raise CallError(self.address, method, error.code(), details) from error
