"""The Python client, blocking and asyncio: a deadline and retries for every call, errors that say what to do.

Answers are the messages of the contract (`reranker.v1`), typed by their stubs: all that is in the protos, nothing of
it copied. One client keeps one connection to each address, so to one worker of each server; share it among threads or
tasks, and let a process that has more to ask than one worker answers open several.
"""

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

import grpc
import numpy as np

from reranker.errors import ConfigurationError, Persona4RecError
from reranker.service_config import CHANNEL_OPTIONS
from reranker.unscored import first_stage_items
from reranker.v1 import reranker_pb2 as pb
from reranker.v1 import reranker_pb2_grpc as pb_grpc

# Some hundred times the median of a rerank: what does not answer in it will not.
TIMEOUT_SECONDS = 1.0

# What to do where the server itself could not say it.
ADVICE = {
    grpc.StatusCode.UNAVAILABLE: ". Is `persona4rec serve` running there, and ready?",
    grpc.StatusCode.UNAUTHENTICATED: ". Set --token-file, or `token_file` of Access",
    grpc.StatusCode.DEADLINE_EXCEEDED: ". Is the server overloaded, or does something else listen there?",
}

AWAY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
"""No answer through no fault of the caller's; others mean a request or a client that has to be corrected."""

Scored = Iterable[tuple[str, float | None]]
"""Item ids with their first-stage scores, None where there is none."""
Options = Sequence[tuple[str, Any]]
"""Of a gRPC channel."""


class RankingOptions(TypedDict, total=False):
    """What Rerank and Recommend may be told; each is optional, and by default the server decides."""

    exclude_item_ids: Iterable[str]
    """Items not to return."""
    explain: bool | None
    """Whether each item carries the persona that explains it."""
    fusion_weight: float | None
    """Share of the persona score, 0 (first stage alone) to 1 (persona alone)."""
    fusion: "pb.Fusion.ValueType"
    """How the two scores become one, e.g. FUSION_RECIPROCAL_RANK."""
    boosts: Mapping[str, float]
    """Added to items' scores after fusion, in standard deviations, -10 to 10."""
    diversity: float
    """How much an item is held back for resembling those above it, 0 to below 1."""
    variant: str
    """A label of the caller's experiment, at most 64 bytes."""
    request_id: str
    """What the server's logs shall call the request, at most 64 printable ASCII characters."""


class RerankOptions(RankingOptions, total=False):
    """What Rerank may be told beside."""

    top_k: int
    """How many items to return; 0: all."""
    history: pb.History | None
    """Takes the place of the stored history."""


class RecommendOptions(RankingOptions, total=False):
    """What Recommend may be told beside."""

    candidates: int
    """How many to generate before reranking."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a server that asks for more than plain text. Files are PEM, read once."""

    tls: bool = False
    """Encrypt, and trust the authorities that gRPC brings; implied by `ca` and `certificate`."""
    ca: Path | None = None
    """The authorities to trust instead."""
    certificate: Path | None = None
    """This client's own, where the server asks for one."""
    key: Path | None = None
    token_file: Path | None = None
    """Its first line that is no comment is sent as the bearer token."""

    def channel(self, address: str, options: Options = ()) -> grpc.Channel:
        """Return a channel to a server. Raises ConfigurationError for files that cannot be used."""
        credentials = self._credentials()
        if credentials is None:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, credentials, options=options)

    def async_channel(self, address: str, options: Options = ()) -> grpc.aio.Channel:
        """Return a channel for asyncio. Raises ConfigurationError for files that cannot be used."""
        credentials = self._credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, credentials, options=options)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what goes with every call. Raises ConfigurationError for a token file that cannot be used."""
        if self.token_file is None:
            return ()
        lines = [line.strip() for line in _bytes(self.token_file).decode("utf-8", "replace").splitlines()]
        token = next((line for line in lines if line and not line.startswith("#")), None)
        if token is None or not (token.isascii() and token.isprintable()):
            raise ConfigurationError(f"token_file {self.token_file} holds no token: put one on its first line")
        return (("authorization", f"Bearer {token}"),)

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigurationError("certificate and key belong together: give both, or neither")
        if not (self.tls or self.ca or self.certificate):
            return None
        ca, key, certificate = (_bytes(path) if path else None for path in (self.ca, self.key, self.certificate))
        return grpc.ssl_channel_credentials(ca, key, certificate)


PLAIN = Access()
"""Plain text, no token."""


class CallError(Persona4RecError):
    """A call that the server refused or did not answer."""

    def __init__(self, address: str, method: str, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{method} at {address}: {code.name}: {details}")
        self.code = code


class RerankerClient:
    """Calls a server, or several in turn. Use as a context manager, or close it.

    Every call raises CallError if it is refused, or not answered within `timeout` seconds, retries included: see
    `reranker.service_config` for what is retried.
    """

    def __init__(self, address: str, timeout: float = TIMEOUT_SECONDS, access: Access = PLAIN) -> None:
        """Take the files of `access`. Raises ConfigurationError for one that cannot be used.

        address: host:port; all addresses of the host are used in turn. Or any other gRPC name, e.g.
        "ipv4:10.0.0.1:50051,10.0.0.2:50051".
        """
        self.address = address
        self._timeout = timeout
        self._metadata = access.metadata()
        self._channel = access.channel(address, CHANNEL_OPTIONS)
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
        """Return once a server accepts connections. Raises CallError if none does within `seconds`."""
        try:
            grpc.channel_ready_future(self._channel).result(seconds)
        except grpc.FutureTimeoutError as error:
            raise _unready(self.address, seconds) from error

    def rerank(
        self, user_id: str, candidates: Scored, *, fallback: bool = False, **options: Unpack[RerankOptions]
    ) -> pb.RerankResponse:
        """Rerank (item_id, first-stage score) pairs.

        fallback: if the service is away or too slow, return the first-stage order, marked NOT_ANSWERED, instead of
        raising CallError; what the caller has to correct is raised all the same.
        """
        request = _rerank_request(user_id, candidates, options)
        try:
            response: pb.RerankResponse = self._call("Rerank", request, options.get("request_id"))
        except CallError as error:
            return _instead(request, error, fallback)
        return response

    def recommend(self, user_id: str, n: int = 0, **options: Unpack[RecommendOptions]) -> pb.RecommendResponse:
        """Generate candidates and rerank them; n: how many to return, 0: the server's default."""
        request = _recommend_request(user_id, n, options)
        response: pb.RecommendResponse = self._call("Recommend", request, options.get("request_id"))
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

    def _call(self, method: str, request: Any, request_id: str | None = None) -> Any:
        metadata = _metadata(self._metadata, request_id)
        try:
            return getattr(self._stub, method)(request, timeout=self._timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise _call_error(self.address, method, error) from error


class AsyncRerankerClient:
    """`RerankerClient` for asyncio: the same calls, awaited. Make it, use it and close it in one event loop."""

    def __init__(self, address: str, timeout: float = TIMEOUT_SECONDS, access: Access = PLAIN) -> None:
        """Take the files of `access`, as RerankerClient does."""
        self.address = address
        self._timeout = timeout
        self._metadata = access.metadata()
        self._channel = access.async_channel(address, CHANNEL_OPTIONS)
        self._stub = pb_grpc.RerankerStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def wait_until_ready(self, seconds: float) -> None:
        """Return once a server accepts connections. Raises CallError if none does within `seconds`."""
        try:
            await asyncio.wait_for(self._channel.channel_ready(), seconds)
        except TimeoutError as error:
            raise _unready(self.address, seconds) from error

    async def rerank(
        self, user_id: str, candidates: Scored, *, fallback: bool = False, **options: Unpack[RerankOptions]
    ) -> pb.RerankResponse:
        """Rerank (item_id, first-stage score) pairs, as RerankerClient does."""
        request = _rerank_request(user_id, candidates, options)
        try:
            response: pb.RerankResponse = await self._call("Rerank", request, options.get("request_id"))
        except CallError as error:
            return _instead(request, error, fallback)
        return response

    async def recommend(self, user_id: str, n: int = 0, **options: Unpack[RecommendOptions]) -> pb.RecommendResponse:
        """Generate candidates and rerank them; n: how many to return, 0: the server's default."""
        request = _recommend_request(user_id, n, options)
        response: pb.RecommendResponse = await self._call("Recommend", request, options.get("request_id"))
        return response

    async def user_profile(self, user_id: str, include_vector: bool = False) -> pb.GetUserProfileResponse:
        request = pb.GetUserProfileRequest(user_id=user_id, include_vector=include_vector)
        response: pb.GetUserProfileResponse = await self._call("GetUserProfile", request)
        return response

    async def item_personas(self, item_ids: Sequence[str]) -> pb.GetItemPersonasResponse:
        request = pb.GetItemPersonasRequest(item_ids=item_ids)
        response: pb.GetItemPersonasResponse = await self._call("GetItemPersonas", request)
        return response

    async def info(self) -> pb.InfoResponse:
        response: pb.InfoResponse = await self._call("Info", pb.InfoRequest())
        return response

    async def _call(self, method: str, request: Any, request_id: str | None = None) -> Any:
        metadata = _metadata(self._metadata, request_id)
        try:
            return await getattr(self._stub, method)(request, timeout=self._timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise _call_error(self.address, method, error) from error


def _rerank_request(user_id: str, candidates: Scored, options: RerankOptions) -> pb.RerankRequest:
    sent = [pb.Candidate(item_id=item_id, score=score) for item_id, score in candidates]
    return pb.RerankRequest(user_id=user_id, candidates=sent, **_fields(options))


def _recommend_request(user_id: str, n: int, options: RecommendOptions) -> pb.RecommendRequest:
    return pb.RecommendRequest(user_id=user_id, n=n, **_fields(options))


def _fields(options: RankingOptions) -> dict[str, Any]:
    """Return the options as fields of a request; the request id goes with the call instead."""
    fields: dict[str, Any] = {name: value for name, value in options.items() if name != "request_id"}
    boosts = [pb.Boost(item_id=item_id, add=add) for item_id, add in options.get("boosts", {}).items()]
    return fields | {"boosts": boosts}


def _metadata(always: tuple[tuple[str, str], ...], request_id: str | None) -> tuple[tuple[str, str], ...]:
    return (*always, ("x-request-id", request_id)) if request_id else always


def _call_error(address: str, method: str, error: Any) -> CallError:
    details = (error.details() or "no details") + ADVICE.get(error.code(), "")
    return CallError(address, method, error.code(), details)


def _unready(address: str, seconds: float) -> CallError:
    told = f"no server accepted a connection within {seconds:g} s: is `persona4rec serve` running there?"
    return CallError(address, "connect", grpc.StatusCode.UNAVAILABLE, told)


def _instead(request: pb.RerankRequest, error: CallError, fallback: bool) -> pb.RerankResponse:
    """Return what the server would have answered unscored. Raises the error where that would not do."""
    if not fallback or error.code not in AWAY:
        raise error
    excluded = frozenset(request.exclude_item_ids)
    kept = [candidate for candidate in request.candidates if candidate.item_id not in excluded]
    scores = [candidate.score if candidate.HasField("score") else math.nan for candidate in kept]
    item_ids = [candidate.item_id for candidate in kept]
    return pb.RerankResponse(
        items=first_stage_items(item_ids, np.array(scores, np.float32), request.top_k),
        degraded=[pb.DEGRADATION_NOT_ANSWERED],
        variant=request.variant,
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
